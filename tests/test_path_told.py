"""What becomes of a proof of path: in verdicts, reports and records; and one for real, over the loop of this machine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from clustergauge import accept, exits, inventory, path, run as running
from clustergauge.messages import Facts, Outcome
from clustergauge.model import Finding, Machine, Measurement, Planned, Record, Workload
from clustergauge.supervise import CaseResult, Patience, Supervisor
from reports import terminal
from tests import made
from tests.made_up import loaded
from tests.paths import ETH, GLOO, node, record, state

# -- verdict and report


def test_a_contradicted_path_makes_the_number_invalid_and_the_run_broken() -> None:
    what = record({"h": 2}, {"h/lo": 2.0}, backend="mpi")
    (verdict,) = accept.judge([what], standards=accept.Standards(machines=[node("h", ETH)]))
    assert (verdict.verdict, verdict.reason) == (
        "invalid",
        "another path: meant for memory of the host, but lo moved 100 % of the predicted bytes",
    )
    assert exits.exit_code([what], [verdict]) == exits.BROKEN


def test_one_launch_of_several_on_another_path_is_enough() -> None:
    launches = [record({"h": 2}, {"h/lo": share}, backend="gloo", settings=GLOO) for share in (2.0, 0.1)]
    assert [v.verdict for v in accept.judge(launches)] == ["invalid"]


def test_the_report_says_under_a_case_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    what = record({"node-017": 2}, {"node-017/lo": 2.0}, backend="gloo", settings=GLOO)
    page = terminal.page_of(loaded(what), accept.judge([what]), 120)
    assert "  path: lo, proven (100 % of predicted bytes)" in text_of(page)


def test_the_report_has_a_row_for_a_link_that_trained_down() -> None:
    finding = Finding(name="link/mlx5_3:1", state="warning", detail="mlx5_3:1 trained down", remedy="replace it", fails=True)
    machine = made.machine(findings=[finding])
    page = terminal.page_of(loaded(machines=(machine,)), inventory.trained_down([machine]), 120)
    lines = text_of(page)
    assert any(line.startswith("link/mlx5_3:1") and line.endswith("FAIL") for line in lines), lines
    assert "  mlx5_3:1 trained down; replace it" in lines


def text_of(page: Any) -> list[str]:
    return [line.plain for line in page.lines]


# -- what a record keeps of it


def kept(size: int, ranks: int = 2) -> dict[str, Any]:
    planned = made.planned(record({"h": ranks}, {}))
    work = Workload(message_bytes=size, collective="all_reduce")
    outcome = Outcome("ok", workload=work, measurement=Measurement(clock="wall", cache="none"), runs=7)
    result = CaseResult(outcome, Facts({}, {}, {"h/lo.tx_bytes": 5}), [])
    return running._path(planned, result)  # pyright: ignore[reportPrivateUsage]


def test_counters_are_kept_for_large_cases_of_several_ranks() -> None:
    assert kept(path.LEAST_BYTES) == {"h/lo.tx_bytes": 5, "runs": 7}
    assert kept(path.LEAST_BYTES - 1) == {}
    assert kept(path.LEAST_BYTES, ranks=1) == {}


# -- for real


@pytest.fixture(scope="module")
def measured() -> Any:
    """A real all-reduce of 4 MiB by two gloo ranks over the loop of this machine, as its record."""
    supervisor = Supervisor(patience=Patience(start_s=120))
    machine = supervisor.start()
    planned = Planned(
        case="all_reduce/backend=gloo/dtype=fp32/size=4MiB",
        probe="all_reduce",
        module="collectives.operations",
        params={"backend": "gloo", "dtype": "fp32", "size": 1 << 22},
        device="cpu:0",
        ranks=2,
        world="torch",
        budget_s=0.3,
    )
    try:
        result = supervisor.run(planned, 1, 1 << 20)
    finally:
        supervisor.close()
    assert result.outcome.status == "ok", result.outcome
    return running._record(made.run([]), machine, planned, made.STARTED, result), machine  # pyright: ignore[reportPrivateUsage]


def test_gloo_over_the_loop_of_this_machine_is_proven(measured: tuple[Record, Machine]) -> None:
    """Counters, no timing.  Others may use the loop at the same time: more than predicted is said to be other traffic."""
    what, machine = measured
    found = path.proof(what, [machine])
    assert found
    assert found.path == "lo"
    assert found.share is not None
    assert found.share >= path.LEAST
    if "other traffic" in found.reason:
        pytest.skip(f"others use the loop of this machine: {found}")
    assert found.state == "proven"


def test_the_same_bytes_contradict_another_interface(measured: tuple[Record, Machine]) -> None:
    what, machine = measured
    others = sorted(
        {k.partition("/")[2].removesuffix(".tx_bytes") for k in what.counters.path if k.endswith(".tx_bytes")} - {"lo"}
    )
    if not others:
        pytest.skip("this machine has no interface but its loop")
    for name in others:
        told = msgspec.structs.replace(
            what, placement=[msgspec.structs.replace(place, interface=name) for place in what.placement]
        )
        assert state(told, machine) == "contradicted"
