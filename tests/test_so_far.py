"""A burn-in that is cut short keeps what it measured, whatever cut it: real workers, faults really injected."""

from __future__ import annotations

import json
import signal
import time

import pytest

from clustergauge import accept, exits, messages as m, metrics, run as runs, so_far, warnings
from clustergauge.messages import Outcome
from clustergauge.model import Criterion, Measurement, Place, Planned, Series
from clustergauge.plan import load_probes
from clustergauge.pool import Pool, Rank
from reports.export import reason_of
from tests import made, misbehaved
from tests.made_up import loaded
from tests.shown import shown
from tests.test_cli import living, only_run, records, start, suite, wait_for

MODULE = "tests.faults.steady"
PROBE = load_probes([MODULE])["steady"]


@pytest.fixture(scope="module")
def supervisor():
    with misbehaved.supervised() as owner:
        yield owner


def plan(how: str, world: str = "serial", budget_s: float = 60.0) -> Planned:
    (case,) = PROBE.cases(how=[how], world=[world])
    return Planned(
        case=case.id,
        probe=case.probe,
        module=case.module,
        params=dict(case.params),
        device="cpu:0",
        ranks=1 if world == "serial" else 2,
        world=world,  # type: ignore[arg-type]
        budget_s=budget_s,
        timeout_s=20.0,
    )


@pytest.mark.parametrize(
    ("world", "how", "status", "words"),
    [
        ("serial", "kill", "error", "killed by SIGKILL in phase 'measure'"),
        ("serial", "raise", "error", "planned failure"),
        ("serial", "wrong", "wrong", "planned: one output of many"),
        ("torch", "wrong", "wrong", "rank 1: planned: one output of many"),
        ("torch", "kill", "error", "rank 1 on {host}"),
        ("mpi", "kill", "error", "rank 1 on {host}"),
    ],
)
@pytest.mark.slow
def test_what_was_measured_before_a_fault_is_kept_and_the_fault_is_named(supervisor, world, how, status, words):
    outcome = supervisor.run(plan(how, world), 1, 1 << 20).outcome
    assert outcome.status == status
    assert words.format(host=supervisor.machine.host) in outcome.reason
    assert outcome.reason.endswith(" of 1 min 0 s")
    measured = outcome.measurement
    assert measured.stop_reason == "interrupted"
    assert len(measured.samples_s) == len(measured.sample_start_s) >= 20
    assert measured.sample_start_s == sorted(measured.sample_start_s)
    assert outcome.workload.flops == 1_000_000
    assert outcome.settings["burn_in"] is True


def test_a_case_that_can_be_cut_short_ends_when_the_time_of_the_run_is_up(supervisor):
    result = supervisor.run(plan("well"), 1, 1 << 20, stop_at=time.monotonic() + 3.0)
    assert result.outcome.status == "ok"
    assert result.outcome.reason.startswith("the time was up after ")
    assert result.outcome.measurement.stop_reason == "interrupted"
    assert result.facts.telemetry
    assert supervisor.run(plan("well", budget_s=0.3), 1, 1 << 20).outcome.measurement.stop_reason == "budget"


def test_one_that_runs_to_its_end_is_as_if_nothing_had_been_said(supervisor):
    outcome = supervisor.run(plan("well", budget_s=0.5), 1, 1 << 20).outcome
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.measurement.stop_reason == "budget"


def test_a_slow_rank_of_a_real_world_is_named(supervisor):
    planned = plan("slow", "torch", budget_s=1.0)
    result = supervisor.run(planned, 1, 1 << 20)
    record = runs._record(made.run([], planned=[planned]), supervisor.machine, planned, made.STARTED, result)
    (doubt,) = [w for w in warnings.doubts([record]) if w.name == "slow rank"]
    assert doubt.detail.startswith("rank 1 (cpu")
    assert f" on {supervisor.machine.host}) reached " in doubt.detail


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_ctrl_c_keeps_the_windows_says_how_far_it_came_and_leaves_no_process(tmp_path, asked):
    path = tmp_path / "burn.toml"
    path.write_text('title = "burn"\nbudget_s = 30.0\n[[cases]]\nprobe = "steady"\nhow = "well"\nworld = "serial"\n')
    process = start(
        "--suite", str(path), "--probes", MODULE, "-o", str(tmp_path / "results"), env={"CLUSTERGAUGE_TEST": str(tmp_path)}
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "steady").exists(), 60)
    process.send_signal(asked)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert living(f"CLUSTERGAUGE_TEST={tmp_path}") == []
    (record,) = records(tmp_path)
    assert record["status"] == "ok"
    assert record["reason"].startswith("interrupted after ")
    assert record["reason"].endswith(" s of 30 s")
    assert record["measurement"]["stop_reason"] == "interrupted"
    assert out.count(record["reason"]) == 1
    assert "1 inconclusive" in out
    assert "ok (no criterion)" not in out
    assert "goes on" not in out
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["settings"]["case_seconds"] > 0
    assert "sustained " in out
    assert "MFLOP/s → " in out
    assert "interrupted: what was measured is kept\n" in err  # nothing is left for --resume
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["interrupted"] is True
    again = suite("report", "latest", "-o", str(tmp_path / "results"))
    assert again.returncode == 4  # less was measured than was asked


# -- what follows from such a record


def cut(samples: list[float], **more):
    measured = Measurement(clock="wall", cache="none", samples_s=samples, stop_reason="interrupted")
    settings = {"burn_in": True}
    return made.record(measurement=measured, reason="interrupted after 3 min 12 s of 10 min 0 s", settings=settings, **more)


def test_what_was_cut_short_never_passes_and_may_fail():
    record = cut([1.0, 1.001] * 200)
    for floor, word in (("1 TFLOP/s", "inconclusive"), ("3 TFLOP/s", "FAIL")):
        value, unit = float(floor.split()[0]), floor.split()[1]
        (verdict,) = accept.judge([record], [Criterion(case="*", floor=value, unit=unit)])
        assert verdict.verdict == word
    (verdict,) = accept.judge([record])
    assert (verdict.verdict, verdict.reason, verdict.value) == ("inconclusive", record.reason, pytest.approx(2e12, rel=0.01))
    assert exits.exit_code([record], []) == exits.UNKNOWN
    assert exits.exit_code([made.record()], []) == exits.OK


def test_the_page_shows_first_and_last_window_of_what_was_cut_short_and_of_what_went_wrong():
    samples = [1.0] * 200 + [1.25] * 200
    text = shown(loaded(cut(samples)))
    assert "  sustained 80.0%: 2.00 TFLOP/s → 1.60 TFLOP/s\n" in text
    assert "  interrupted after 3 min 12 s of 10 min 0 s\n" in text
    judged = shown(loaded(cut(samples)), accept.judge([cut(samples)]))
    assert judged.count("interrupted after") == 1
    assert "inconclusive" in judged
    assert "ok (no criterion)" not in judged
    wrong = cut(samples, status="wrong")
    assert metrics.derive([wrong]) == []  # it has no rate
    assert "  before that, first to last window: 2.00 TFLOP/s → 1.60 TFLOP/s\n" in shown(loaded(wrong))


def test_samples_are_joined_and_the_last_word_counts():
    def part(samples: list[float], starts: list[float], cut: int, digest: str) -> Outcome:
        measured = Measurement(
            clock="wall", cache="none", warmup_cut=cut, samples_s=samples, sample_start_s=starts, digest=digest,
            iterations_per_sample=3, stop_reason="interrupted", series={"rank_time": Series(unit="s", values=samples[:1])},
        )  # fmt: skip
        return Outcome("ok", measurement=measured, settings={"samples": len(samples)})

    first, second = part([1.0, 2.0], [0.0, 4.0], 2, "a"), part([3.0], [189.0], 1, "b")
    assert not so_far.stands(None)
    assert not so_far.stands(first)  # all of it is warm-up
    both = so_far.join(so_far.join(None, first), second)
    assert both.measurement.samples_s == [1.0, 2.0, 3.0]
    assert both.measurement.sample_start_s == [0.0, 4.0, 189.0]
    assert (both.measurement.warmup_cut, both.measurement.digest, both.settings) == (1, "b", {"samples": 1})
    assert so_far.stands(both)
    assert so_far.cut_short(both, "interrupted", 600.0).reason == "interrupted after 3 min 18 s of 10 min 0 s"
    broken = so_far.broken_off(Outcome("error", "rank 3 was killed", settings={"log": "x"}), both, 600.0)
    assert (broken.status, broken.reason) == ("error", "rank 3 was killed; after 3 min 18 s of 10 min 0 s")
    assert broken.measurement == both.measurement
    assert broken.settings == {"samples": 1, "log": "x"}


@pytest.mark.parametrize(
    ("times", "last", "words"),
    [
        ([1.0, 1.0, 1.25, 1.02], [1.0, 1.0, 1.25, 1.0], "rank 2 (cuda:2 on node-1) reached 80% of the rate of the others ("),
        ([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.0], "rank 1 (cuda:1 on node-1) reached 50% of the rate of the others in"),
        ([1.0, 1.05, 1.08, 1.0], [1.0, 1.05, 1.08, 1.0], ""),
        ([1.0], [1.0], ""),
    ],
)  # fmt: skip
def test_a_rank_well_below_the_others_is_named(times, last, words):
    series = {"rank_time": Series(unit="s", values=times), "rank_time_last": Series(unit="s", values=last)}
    measured = Measurement(clock="cuda_event", cache="none", samples_s=[max(times)] * 40, series=series)
    places = [Place(rank=rank, host="node-1", device=f"cuda:{rank}") for rank in range(len(times))]
    found = [w.detail for w in warnings.doubts([made.record(measurement=measured, placement=places, ranks=4)])]
    slow = [detail for detail in found if "of the rate of the others" in detail]
    assert len(slow) == bool(words)
    assert all(detail.startswith(words) for detail in slow)


def test_exports_say_that_it_was_cut_short():
    from reports.rows import rows_of

    (row,) = rows_of(loaded(cut([1.0] * 400)), [])
    assert reason_of(row) == "interrupted after 3 min 12 s of 10 min 0 s"


def test_once_a_rank_failed_the_others_have_their_grace_though_the_time_is_up():
    """That the run's time is over cuts short what goes well; a case that fails is waited for as any other."""
    up = time.monotonic() + 0.2
    said = [
        m.From(11, m.SoFar(Outcome("ok", measurement=made.record().measurement), 3)),
        m.From(12, Outcome("error", "rank 1: planned", job=3)),
        m.From(11, Outcome("error", "rank 0: its peer failed", job=3)),
    ]

    class Node:
        def send(self, message): ...

        def hear(self, until):
            if len(said) == 1:
                time.sleep(max(0.0, up - time.monotonic()))
            return said.pop(0) if until > time.monotonic() else None

    ranks = {11: Rank(11, 0, "n"), 12: Rank(12, 1, "n")}
    pool = Pool(Node(), "n", None, [Place(rank=n, host="n") for n in range(2)], ranks=ranks)  # type: ignore[arg-type]
    outcome = pool.run(m.Job("c", "m", "p", {}, "cpu:0", 60.0, 1, number=3), limit_s=60.0, grace_s=30.0, stop_at=up)
    assert outcome.reason == "rank 1: planned"
    assert said == []
