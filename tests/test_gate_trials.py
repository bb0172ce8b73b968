"""The trials of the gate: what is planted is planted, in one case alone, and outcomes are called by their names."""

from __future__ import annotations

import time

import pytest

from clustergauge.plan import load_probes
from tools import gate_trials
from tools.gate_trials import Trial

MODULE = """
import time
from clustergauge.model import Workload
from clustergauge.probe import Work, probe

@probe("pace", what=("one", "other"), sets=(1, 2))
def pace(ctx, what, sets):
    run = lambda: time.sleep(1)
    return Work(run=run if sets == 1 else [run] * sets, workload=Workload(ops=1))
"""


class Clock:
    """Every reading takes a thousandth of a second; sleeping takes what it says."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("sets", [1, 2])
def test_the_planted_case_takes_longer_by_its_share_and_no_other_does(tmp_path, monkeypatch, sets):
    name = f"planted_pace_{sets}"
    params = {"what": "other", "sets": sets}
    (tmp_path / f"{name}.py").write_text(MODULE + gate_trials.PLANT.format(probe="pace", params=params, effect=0.05))
    monkeypatch.syspath_prepend(tmp_path)
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    (probe,) = load_probes([name]).values()

    def seconds(**given):
        work = probe.function(None, **given)
        runs = [work.run] if callable(work.run) else work.run
        before = clock.now
        for run in runs:
            run()
        return (clock.now - before) / len(runs)

    assert seconds(**params) == pytest.approx(1.05, abs=0.005)
    assert seconds(what="one", sets=sets) == pytest.approx(1)
    assert seconds(what="other", sets=3 - sets) == pytest.approx(1)


def test_cases_are_those_that_the_comparison_measures_however_its_flags_are_written():
    flags = ["--launches", "4", "-klatency", "--suite=mine.toml", "--set", "size=1GiB", "--threshold", "4%", "--device=cpu"]
    wanted = ["-k", "latency", "--suite", "mine.toml", "--set", "size=1GiB", "--device", "cpu"]
    assert gate_trials.choosing(flags) == wanted


def test_what_cannot_be_compared_is_said_without_a_traceback(capfd):
    with pytest.raises(SystemExit) as ended:
        gate_trials.main(["1", "-k", "nothing"])
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith("run_suite.py: ")


@pytest.mark.parametrize(
    ("planted", "code", "slower", "outcome"),
    [
        ("", 0, {}, "green"),
        ("", 4, {}, "undecided"),
        ("", 1, {"a": 0.05}, "FALSE RED"),
        ("a", 1, {"a": 0.05}, "hit"),
        ("a", 1, {"a": 0.05, "b": 0.05}, "WRONG NAME"),
        ("a", 1, {"b": 0.05}, "WRONG NAME"),
        ("a", 0, {}, "MISSED"),
        ("a", 4, {}, "undecided"),
        ("", 3, {}, "FAILED (3)"),
    ],
)
def test_outcomes(planted, code, slower, outcome):
    trial = Trial(planted, code, 1.0, slower)
    assert trial.outcome == outcome
    assert outcome in gate_trials.line(0, trial, 5.0)
    assert f"1 {outcome}" in "\n".join(gate_trials.summary([trial]))


def test_an_interrupted_comparison_ends_the_trials_and_what_was_done_is_told(monkeypatch, capsys):
    monkeypatch.setattr(gate_trials, "listed", lambda *_: [{"case": "pace"}])
    monkeypatch.setattr(gate_trials.subprocess, "run", lambda *_, **__: None)
    done = iter([Trial("", 0, 10.0)])
    monkeypatch.setattr(gate_trials, "carry_out", lambda *_: next(done, None) or gate_trials.ended(130))
    assert gate_trials.main(["3"]) == 130
    assert capsys.readouterr().out.splitlines()[-3:-1] == ["interrupted", "equal: 1 trials: 1 green; 10 s each"]
