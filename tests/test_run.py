"""The order of a run, without a process or a second of time: a stand-in takes the supervisor's place."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from clustergauge import messages as m
from clustergauge.model import Measurement, Planned, Record, Workload
from clustergauge.pins import Pins
from clustergauge.run import Progress, carry_out, seed_of
from clustergauge.store import RunFolder, StoreError, load
from clustergauge.supervise import CaseResult
from tests import made

FACTS = m.Facts({"memory_errors": 1}, {"load1_max": 0.5})


@dataclass
class StandIn:
    """A supervisor that measures nothing: each case takes ten seconds of a clock that it owns, and ends as planned."""

    ends: dict[str, m.Outcome] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    time: float = 0.0
    pins: Pins = field(default_factory=Pins)

    def run(self, planned: Planned, seed: int, llc_bytes: int, stop_at: float | None = None) -> CaseResult:
        self.ran.append(planned.case)
        self.time += 10.0
        well = m.Outcome(
            "ok",
            workload=Workload(flops=1, bound="compute"),
            measurement=Measurement(clock="wall", cache="none", samples_s=[1.0]),
            settings={"seed": seed},
        )
        outcome = self.ends.get(planned.case, well)
        return CaseResult(outcome, FACTS, [], log="stacks" if outcome.status == "error" else "", seconds=9.0)


@dataclass
class Watching:
    """Notes what a progress display is told."""

    told: list[str] = field(default_factory=list)

    def start(self, total, seconds):
        pass

    def case(self, planned):
        self.told.append(f"case {planned.case}")

    def done(self, record):
        self.told.append(f"done {record.case} {record.status}")

    def stop(self):
        pass


@pytest.fixture
def go(tmp_path):
    """Runs four cases, the second of which is skipped: (progress, records on disk, supervisor, what the display was told)."""

    def carried(stop_at=None, ends=None, append=None) -> tuple[Progress, list[Record], StandIn, list[str]]:
        plans = [made.planned(made.record(shape=s)) for s in "abcd"]
        plans[1] = made.planned(made.record(shape="b"), skip="no GPU")
        run = made.run([], planned=plans)
        supervisor, watching, progress = StandIn(ends or {}), Watching(), Progress()
        folder = RunFolder.create(tmp_path, run)
        folder.write_machine(made.machine())
        if append:
            folder.append = append  # type: ignore[method-assign]
        carry_out(folder, run, plans, supervisor, made.machine(), watching, progress, stop_at, lambda: supervisor.time)  # type: ignore[arg-type]
        folder.finish(run)
        return progress, load(folder.path).records, supervisor, watching.told

    return carried


def test_cases_run_in_order_and_each_is_told_when_it_is_on_disk(go):
    progress, records, supervisor, told = go()
    assert supervisor.ran == ["matmul/shape=a", "matmul/shape=c", "matmul/shape=d"]
    assert [(r.case, r.status) for r in records][:2] == [("matmul/shape=a", "ok"), ("matmul/shape=b", "skipped")]
    assert told[:3] == ["case matmul/shape=a", "done matmul/shape=a ok", "case matmul/shape=c"]
    assert progress.case_seconds == 27.0
    assert not progress.not_reached


def test_what_the_node_says_is_in_the_record(go):
    _, records, _, _ = go()
    assert records[0].counters.health == {"memory_errors": 1}
    assert records[0].telemetry == {"load1_max": 0.5}
    assert records[1].reason == "no GPU"


def test_inputs_depend_on_the_case_alone(go):
    _, records, _, _ = go()
    assert records[0].settings["seed"] == seed_of("matmul/shape=a")
    assert seed_of("matmul/shape=a") != seed_of("matmul/shape=b")
    assert seed_of("") == 0xE3B0C442 >> 1  # the same on every machine and in every version


def test_no_case_starts_after_the_time_is_up_but_what_is_skipped_says_so(go):
    progress, records, supervisor, _ = go(stop_at=5.0)
    assert supervisor.ran == ["matmul/shape=a"]
    assert [p.case for p in progress.not_reached] == ["matmul/shape=c", "matmul/shape=d"]
    assert [r.status for r in records] == ["ok", "skipped"]


def test_interrupted_the_time_of_the_case_in_hand_counts_and_what_is_skipped_has_its_record(tmp_path):
    plans = [made.planned(made.record(shape="a")), made.planned(made.record(shape="b"), skip="no GPU")]
    run, supervisor, progress = made.run([], planned=plans), StandIn(), Progress()

    def interrupted(*_) -> CaseResult:
        supervisor.time += 23.6
        raise KeyboardInterrupt

    supervisor.run, supervisor.interrupted = interrupted, lambda _: None  # type: ignore[method-assign,attr-defined]
    folder = RunFolder.create(tmp_path, run)
    folder.write_machine(made.machine())
    with pytest.raises(KeyboardInterrupt):
        carry_out(folder, run, plans, supervisor, made.machine(), Watching(), progress, clock=lambda: supervisor.time)  # type: ignore[arg-type]
    folder.finish(run)
    assert progress.case_seconds == 23.6
    assert [(r.case, r.status) for r in load(folder.path).records] == [("matmul/shape=b", "skipped")]


def test_an_error_keeps_its_log_and_costs_one_case(go):
    _, records, _, _ = go(ends={"matmul/shape=a": m.Outcome("error", "died")})
    assert [r.status for r in records] == ["error", "skipped", "ok", "ok"]
    assert str(records[0].settings["log"]).startswith("logs/")


def test_what_no_record_can_hold_is_an_error_and_costs_one_case(go):
    _, records, _, _ = go(ends={"matmul/shape=a": m.Outcome("ok", settings={"x": 1})})
    assert records[0].status == "error"
    assert records[0].reason == "the case returned what no record can hold: status is ok but there is no workload"
    assert records[0].settings == {}
    assert [r.status for r in records[1:]] == ["skipped", "ok", "ok"]


def test_a_full_disk_ends_the_run(go):
    def full(record):
        raise StoreError("records.jsonl: No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        go(append=full)


def test_told_to_stop_only_what_a_burn_in_had_measured_is_kept(tmp_path):
    """As a thread of one of several nodes is: its agent is told to end, and its case ends as an error."""
    measured = Measurement(clock="wall", cache="none", samples_s=[1.0] * 30, sample_start_s=[1.0 * n for n in range(30)])
    said = m.Outcome("ok", workload=Workload(flops=1, bound="compute"), measurement=measured)
    for so_far, kept in ((said, [("ok", "interrupted after 30 s of 10 min 0 s")]), (None, [])):
        plan = made.planned(made.record(), budget_s=600.0)
        run, supervisor, progress, stop = made.run([], planned=[plan]), StandIn(), Progress(), []

        def ended(*_, so_far=so_far, stop=stop) -> CaseResult:
            stop.append(True)
            return CaseResult(m.Outcome("error", "the node agent died"), FACTS, [], log="stacks", so_far=so_far)

        supervisor.run = ended  # type: ignore[method-assign]
        folder = RunFolder.create(tmp_path / str(len(kept)), run)
        folder.write_machine(made.machine())
        carry_out(folder, run, [plan], supervisor, made.machine(), Watching(), progress, stopped=lambda stop=stop: bool(stop))  # type: ignore[arg-type]
        folder.finish(run)
        assert [(r.status, r.reason) for r in load(folder.path).records] == kept
