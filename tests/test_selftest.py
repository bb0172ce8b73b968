"""The gauge gauges itself: for real, and with lies planted where it could not miss them."""

import dataclasses
import hashlib
import json
import random
import re
from pathlib import Path

import msgspec
import pytest

from clustergauge import selftest, selftest_probe, stats
from clustergauge.conversation import Died
from clustergauge.messages import Facts, Outcome
from clustergauge.model import Measurement, Workload
from clustergauge.probe import Context, Wrong
from clustergauge.supervise import CaseResult
from clustergauge.world import Serial
from tests.run_folders import a_machine

OVERHEAD, STEP, HASHING = 40e-9, 100e-9, 600e-6


class Honest:
    """A gauge that measures what is true, with noise of 0.1 % between launches and 0.3 % inside them; lies come on top.

    ``lie``: what becomes of a time, by case (its probe and parameters).
    """

    def __init__(self, lie=lambda planned, seconds: seconds, outcome=None):
        self.lie, self.outcome = lie, outcome
        self.chance = random.Random(3)
        self.notes, self.closed, self.ran = [], False, []

    def start(self):
        return a_machine()

    def close(self):
        self.closed = True

    def run(self, planned, seed, llc_bytes):
        self.ran.append(planned)
        if self.outcome:
            return CaseResult(self.outcome, Facts({}, {}), [])
        spread = abs(self.chance.gauss(0, 1e-3))  # a known duration is never shorter
        truth = {
            "known": lambda ns: ns * 1e-9 + OVERHEAD + STEP / 2,
            "nothing": lambda: OVERHEAD,
            "hash": lambda percent, side: HASHING * (100 + percent) / 100,
        }[planned.probe](**planned.params)
        samples = [truth * (1 + spread + abs(self.chance.gauss(0, 3e-3))) for _ in range(40)]
        measured = Measurement(clock="wall", cache="none", samples_s=[self.lie(planned, s) for s in samples])
        settings = {"clock_tick_s": 50e-9} | ({"own_step_s": STEP} if planned.probe == "known" else {})
        return CaseResult(Outcome("ok", workload=Workload(), measurement=measured, settings=settings), Facts({}, {}), [])


def examined(gauge):
    said = []
    return selftest.run(short=True, say=said.append, gauge=gauge), said


# -- for real


def test_the_gauge_does_not_contradict_what_is_known():
    """The whole path, in its short form; only what must be true whatever else this machine is doing."""
    result, said = examined(None)
    assert result.problems == []
    assert result.passed
    assert [known.seconds for known in result.known] == [pytest.approx(s) for s in (1e-5, 1e-4, 1e-3, 1e-2)]
    assert all(known.measured >= known.least >= known.seconds * 0.999 for known in result.known)
    assert all(known.verdicts[1] != "pass" for known in result.known)
    assert [shift.injected for shift in result.shifts] == [0, 0.02, 0.05]
    assert all(shift.low <= shift.shift <= shift.high for shift in result.shifts)
    assert result.overhead_s > 0
    assert result.tick_s > 0
    assert result.smallest_change >= 0.01  # what is smaller is never called changed
    assert said[: result.launches] == [f"selftest: launch {n} of 5" for n in (1, 2, 3, 4, 5)]
    json.loads(msgspec.json.encode(result))


# -- on a gauge whose every figure is known


def test_a_true_gauge_on_a_quiet_machine_has_no_problem_and_no_doubt():
    result, said = examined(gauge := Honest())
    assert (result.problems, result.doubts) == ([], [])
    assert gauge.closed
    assert [known.verdicts for known in result.known] == [("pass", "FAIL")] * 4
    assert [shift.word for shift in result.shifts] == ["same", "changed", "changed"]
    assert [shift.shift for shift in result.shifts] == [pytest.approx(s, abs=0.005) for s in (0, 0.02, 0.05)]
    assert result.overhead_s == pytest.approx(OVERHEAD, rel=0.01)
    assert result.tick_s == 50e-9
    assert 0.01 <= result.smallest_change < 0.02
    assert len(said) == 5


def test_sides_take_turns_and_never_share_a_process():
    _, _ = examined(gauge := Honest())
    sides = {}
    for planned in gauge.ran:
        sides.setdefault(planned.launch, set()).add(planned.params.get("side", "a"))
    assert list(sides.values()) == [{s} for s in "abbaabbaab"]
    firsts = [next(p.params.get("percent") for p in gauge.ran if p.launch == n and p.params.get("side") == "b") for n in (2, 3)]
    assert firsts == [0, 5]  # within a process too, the order turns round


def scaled(factor, probe=None):
    return lambda planned, seconds: seconds * factor if probe in (None, planned.probe) else seconds


LIES = {
    "a clock that runs 5 % fast": (
        scaled(1.05),
        [r"no known duration was ever measured less than [45]\.\d% too long: the clock runs fast"],
    ),
    "a clock that runs 5 % slow": (
        scaled(0.95),
        [rf"{us} µs was measured as [\d.]+ µs: shorter than it can be" for us in (10, 100, 1000, 10000)]
        + [rf"{us} µs passed a limit 2 % below it" for us in (10, 100, 1000, 10000)],
    ),
    "a gauge that loses a microsecond": (
        lambda planned, seconds: seconds - 1e-6 if planned.probe == "known" else seconds,
        [
            r"10 µs was measured as 9\.\d+ µs: shorter than it can be",
            r"100 µs was measured as 99\.\d+ µs: shorter than it can be",
            "10 µs passed a limit 2 % below it",
        ],
    ),
    "a slowdown that does not show": (
        lambda planned, seconds: seconds / (1 + planned.params.get("percent", 0) / 100),
        ["a slowdown of 2% was called the same, twice", "a slowdown of 5% was called the same, twice"],
    ),
    "a slowdown of 5 % that shows as 2 %": (
        lambda planned, seconds: seconds * (1.02 / 1.05 if planned.params.get("percent") == 5 else 1),
        [r"a slowdown of 5% was shown as \+.* … \+.*, twice"],
    ),
    "a slowdown that shows as a speed-up": (
        lambda planned, seconds: seconds * (0.9 if planned.params.get("percent") == 5 else 1),
        [r"a slowdown of 5% was shown as -.* … -.*, twice"],
    ),
    "equal cases that differ": (
        lambda planned, seconds: seconds * (1.03 if planned.params == {"percent": 0, "side": "b"} else 1),
        [r"two equal cases were called different \(\+[23]\.\d\d%\), twice"],
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_a_problem(name):
    lie, told = LIES[name]
    result, _ = examined(Honest(lie))
    assert not result.passed
    joined = "\n".join(sorted(result.problems))
    assert len(result.problems) == len(told), joined
    for pattern in told:
        assert any(re.fullmatch(pattern, problem) for problem in result.problems), (pattern, joined)


def test_a_gauge_that_never_decides_is_a_problem(monkeypatch):
    """Everything compares as inconclusive: nothing is contradicted, and nothing shown."""
    real = stats.compare_launches
    undecided = lambda a, b: dataclasses.replace(real(a, b), word="inconclusive")  # noqa: E731
    monkeypatch.setattr(stats, "compare_launches", undecided)
    result, _ = examined(Honest())
    assert any(re.fullmatch(r"a slowdown of 5% was not shown, though one of [\d.]+% can be, twice", p) for p in result.problems)


def test_what_fresh_launches_do_not_confirm_is_no_problem():
    """Two equal cases seem to differ in the first launches only: chance, or something else was running."""

    def lie(planned, seconds):
        return seconds * 1.05 if planned.launch <= 10 and planned.params == {"percent": 0, "side": "b"} else seconds

    result, said = examined(Honest(lie))
    assert result.problems == []
    assert result.shifts[0].word == "same"
    assert any("two equal cases were called different" in text and text.endswith("launching both again, fresh") for text in said)


def test_a_restless_machine_is_doubted_and_the_gauge_is_not():
    chance, slow = random.Random(6), {}

    def lie(planned, seconds):
        """Work is slow in every process in its own way."""
        return seconds * (1 + slow.setdefault(planned.launch, chance.expovariate(10)) * (planned.probe == "hash"))

    result, _ = examined(Honest(lie))
    assert result.problems == []
    assert "a slowdown of 5% could not be told from noise here (inconclusive)" in result.doubts
    assert result.smallest_change > 0.05


def test_a_slow_machine_is_doubted_where_some_samples_are_right():
    """Most samples are late, a few are not: something else was running, the clock is right."""
    turn = iter(range(10**6))
    result, _ = examined(Honest(lambda planned, s: s * (1.2 if planned.probe == "known" and next(turn) % 10 else 1)))
    assert result.problems == []
    assert [d for d in result.doubts if "failed a limit 2 % above it" in d]


def test_a_case_that_fails_is_a_problem_and_no_figure_is_made_up():
    result, _ = examined(gauge := Honest(outcome=Outcome("wrong", "the chain ends in nothing")))
    assert result.problems == ["known/ns=10000: wrong: the chain ends in nothing"]
    assert gauge.closed
    shown = json.loads(msgspec.json.encode(result))
    assert (shown["overhead_s"], shown["tick_s"], shown["smallest_change"], shown["known"]) == (None, None, None, [])


def test_a_gauge_that_does_not_start_is_a_problem(monkeypatch):
    gauge = Honest()
    monkeypatch.setattr(gauge, "start", lambda: (_ for _ in ()).throw(Died("the node agent did not start")))
    result, _ = examined(gauge)
    assert result.problems == ["the node agent did not start"]
    assert gauge.closed


def test_what_the_gauge_could_not_end_is_told():
    gauge = Honest()
    gauge.notes.append("could not be ended: pid 1")
    assert examined(gauge)[0].doubts == ["could not be ended: pid 1"]


# -- its probes


def context():
    return Context(world=Serial(), device="cpu", seed=1, scratch=Path())


@pytest.mark.parametrize("percent", [0, 2, 5])
def test_injected_work_is_an_exact_multiple(percent, monkeypatch):
    work = selftest_probe.hashing.function(context(), percent=percent, side="a")
    lengths, sha256 = [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda data: lengths.append(len(data)) or sha256(data))
    work.run()
    assert lengths == [selftest_probe.HASH_BYTES] * (4 * (100 + percent))
    assert work.workload.bytes_read == sum(lengths)


def test_hashing_that_was_left_out_is_caught(monkeypatch):
    work = selftest_probe.hashing.function(context(), percent=2, side="b")
    work.run()
    work.check()
    work.reset()
    with pytest.raises(Wrong, match="ends in nothing, not in"):
        work.check()
    monkeypatch.setattr(selftest_probe, "chain", lambda value, count, real=selftest_probe.chain: real(value, count - 1))
    work.run()
    with pytest.raises(Wrong):
        work.check()


def test_a_known_duration_ends_with_the_first_reading_beyond_it(monkeypatch):
    now = [0]

    def read():
        now[0] += 7
        return now[0]

    monkeypatch.setattr(selftest_probe, "own_clock_ns", read)
    here = context()
    work = selftest_probe.known.function(here, ns=100)
    assert here.settings["own_step_s"] == pytest.approx(7e-9)
    began = now[0] + 7
    work.run()
    assert 100 <= now[0] - began < 107


def test_the_clock_of_a_known_duration_runs_forward():
    readings = [selftest_probe.own_clock_ns() for _ in range(100)]
    assert readings == sorted(readings)
    assert readings[-1] > readings[0]
