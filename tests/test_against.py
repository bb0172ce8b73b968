"""The gate: planted shifts through a launcher that is made up, and what is said of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import against, chance, compare, plan, side, stats
from clustergauge.against import Rules
from clustergauge.loading import LoadedRun
from clustergauge.model import Scalar, Series
from reports import comparison
from tests import made

CASES = [f"matmul/shape={number}" for number in range(8)]


class Made:
    """Launches of both sides that take 1 s a call, times ``factor(side, case, number of the launch)``, each spread on its own."""

    def __init__(self, factor=lambda side, case, number: 1.0, spread=0.003, seed=0, probes=""):
        self.factor, self.spread, self.rng, self.calls = factor, spread, random.Random(seed), []
        self.probes = probes

    def __call__(self, first, cases):
        number = len(self.calls)
        self.calls.append((first, list(cases)))
        return {letter: self.launch(letter, cases, number) for letter in "AB"}

    def launch(self, letter, cases, number):
        records = [r for case in cases if (r := self.record(letter, case, number))]
        run = made.run(records, code=f"code of {letter}")
        return LoadedRun(run, {"m1": made.machine()}, records, Path("x"), [])

    def record(self, letter, case, number):
        shape, factor = case.partition("=")[2], self.factor(letter, case, number)
        if isinstance(factor, tuple):
            return made.failed(*factor, shape=shape)
        time = factor * (1 + self.spread * self.rng.gauss(0, 1))
        return made.record(samples=[time * (1 + 0.001 * self.rng.gauss(0, 1)) for _ in range(10)], shape=shape)


def planted(effect, case=CASES[3]):
    return lambda side, of, number: 1 + effect if (side, of) == ("B", case) else 1.0


def conduct(launch, cases=CASES, rules=None, **more):
    return against.conduct(cases, launch, rules or Rules(), **more)


def words(report):
    return {pair.case: comparison.word_of(pair) for pair in report.pairs}


def test_sides_take_turns_so_that_drift_meets_both_alike():
    assert list(against.order(3)) == ["A", "B", "A"]


def test_nothing_is_said_by_fewer_launches_than_could_say_it():
    assert chance.depth_of_pairs(against.FEWEST, stats.ALPHA)
    assert not chance.depth_of_pairs(against.FEWEST - 1, stats.ALPHA)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.026, 0.08, "changed"),
        (0.02, 0.08, "inconclusive"),
        (-0.001, 0.0251, "inconclusive"),
        (-0.02, 0.025, "same"),
        (0.005, 0.02, "same"),
        (-0.08, 0.01, "not slower"),
        (-0.08, -0.03, "changed"),
        (-0.5, 0.5, "inconclusive"),
    ],
)
def test_the_whole_interval_decides(low, high, word):
    assert against.word_of(stats.Comparison((low + high) / 2, low, high, "same", weak=False, p=0.5), 0.025) == word
    assert against.word_of(stats.Comparison((low + high) / 2, low, high, "same", weak=True, p=0.5), 0.025) == "inconclusive"


def test_the_same_on_both_sides_is_green_and_nothing_is_launched_twice():
    launch = Made()
    report = conduct(launch)
    assert set(words(report).values()) == {"same"}
    assert compare.exit_code(report) == 0
    assert [side for side, _ in launch.calls] == list("ABABAB")
    assert all(cases == CASES for _, cases in launch.calls)


def test_a_slower_case_is_named_alone_and_judged_on_launches_of_its_own():
    launch = Made(planted(0.05))
    report = conduct(launch)
    assert [case for case, word in words(report).items() if word != "same"] == [CASES[3]]
    assert report.pairs[-1].case == CASES[3]
    assert report.pairs[-1].slower
    assert compare.exit_code(report) == 1
    assert [cases for _, cases in launch.calls[6:]] == [[CASES[3]]] * 6
    assert "afresh; the first 6+6 launches said +" in report.pairs[-1].why
    assert "**slower**: afresh" in comparison.markdown(report)
    assert "**1 slower · 7 same**" in comparison.markdown(report)


def test_what_looked_slower_at_first_only_is_not():
    launch = Made(lambda side, case, number: 1.05 if (side, case) == ("B", CASES[3]) and number < 6 else 1.0)
    report = conduct(launch)
    assert set(words(report).values()) == {"same"}
    assert "said +4.8 %" in next(p.why for p in report.pairs if p.case == CASES[3])
    assert compare.exit_code(report) == 0
    assert len(launch.calls) == 12


def test_faster_is_confirmed_too_and_green():
    report = conduct(Made(planted(-0.1)))
    assert words(report)[CASES[3]] == "faster"
    assert compare.exit_code(report) == 0


def test_a_slow_down_that_is_certain_and_below_the_threshold_is_green():
    report = conduct(Made(planted(0.015), spread=0.001))
    assert words(report)[CASES[3]] == "same"
    assert compare.exit_code(report) == 0
    assert compare.exit_code(conduct(Made(planted(0.015), spread=0.001), rules=Rules(threshold=0.01))) == 1


def test_noise_is_inconclusive_after_all_rounds_and_says_how_much():
    launch = Made(spread=0.2)
    report = conduct(launch, CASES[:1])
    assert words(report) == {CASES[0]: "inconclusive"}
    assert compare.exit_code(report) == 4
    assert len(launch.calls) == 6 + against.ROUNDS * 6
    assert report.pairs[0].launches == (6 * against.ROUNDS,) * 2
    assert any("launches differ too much here to tell (up to ± " in note for note in report.notes)


@pytest.mark.parametrize("status", ["wrong", "error"])
def test_what_broke_in_this_tree_is_broken_whatever_else_got_slower(status):
    def factor(side, case, number):
        return (status, "element 3") if (side, case) == ("B", CASES[0]) else planted(0.05)(side, case, number)

    report = conduct(Made(factor))
    assert words(report)[CASES[0]] == "broken"
    assert words(report)[CASES[3]] == "slower"
    assert compare.exit_code(report) == 3
    assert "element 3" in comparison.page_of(report, 120).text()


@pytest.mark.parametrize(("side", "other"), [("A", "B"), ("B", "A")])
def test_what_was_skipped_on_one_side_is_not_passed_over(side, other):
    report = conduct(Made(lambda s, case, number: ("skipped", "no room") if (s, case) == (side, CASES[0]) else 1.0))
    assert words(report)[CASES[0]] == "incomparable"
    assert next(p.why for p in report.pairs if p.case == CASES[0]) == f"in {side}: skipped: no room"
    assert compare.exit_code(report) == 4


def test_what_one_device_skips_on_one_side_hides_nothing_of_another_device():
    class TwoDevices(Made):
        def launch(self, letter, cases, number):
            loaded = super().launch(letter, cases, number)
            other = [msgspec.structs.replace(record, device="cuda:1") for record in loaded.records]
            if letter == "A":
                other = [msgspec.structs.replace(r, status="skipped", reason="no room", measurement=None) for r in other]
            plans = [msgspec.structs.replace(plan, device="cuda:1") for plan in loaded.run.planned]
            run = msgspec.structs.replace(loaded.run, planned=[*loaded.run.planned, *plans])
            return replace(loaded, run=run, records=[*loaded.records, *other])

    report = conduct(TwoDevices(planted(0.05)), CASES[3:4])
    assert [(pair.device, comparison.word_of(pair)) for pair in report.pairs] == [("cuda:1", "incomparable"), ("cpu:0", "slower")]
    assert report.pairs[0].why == "in A: skipped: no room"
    assert compare.exit_code(report) == 1


def test_what_was_only_checked_before_and_is_wrong_now_is_broken():
    launch = Made(lambda s, case, number: ("verified" if s == "A" else "wrong", "element 3") if case == CASES[0] else 1.0)
    report = conduct(launch, CASES[:2])
    assert words(report)[CASES[0]] == "broken"
    assert compare.exit_code(report) == 3


def test_what_no_side_could_time_is_told():
    report = conduct(Made(lambda s, case, number: ("skipped", "no GPU") if case == CASES[0] else 1.0), CASES[:2])
    assert words(report) == {CASES[1]: "same"}
    assert f"skipped, or checked only: {CASES[0]}" in report.notes


def test_the_end_of_the_time_leaves_the_undecided_undecided():
    launch = Made(planted(0.2))
    report = conduct(launch, over=lambda: len(launch.calls) >= 6)
    assert words(report)[CASES[3]] == "inconclusive"
    assert compare.exit_code(report) == 4
    assert len(launch.calls) == 6
    early = Made(planted(0.2))
    report = conduct(early, over=lambda: len(early.calls) >= 2)
    assert set(words(report).values()) == {"inconclusive"}
    assert "fewer than 6 launches of both sides together say nothing" in comparison.page_of(report, 120).text()
    assert compare.exit_code(conduct(Made(), over=lambda: True)) == 4


def test_the_end_of_the_time_among_fresh_launches_judges_what_there_is():
    launch = Made(planted(0.2))
    report = conduct(launch, rules=Rules(launches=8), over=lambda: len(launch.calls) >= 15)
    assert words(report)[CASES[3]] == "slower"
    assert report.pairs[-1].launches == (7, 7)


def test_launches_that_did_not_meet_do_not_count_and_that_is_told():
    class Apart(Made):
        def record(self, letter, case, number):
            made_up = super().record(letter, case, number)
            began = [*range(10)] if letter == "A" or number else [*range(100, 110)]  # the other was through already
            turns = {"turn": Series(unit="s", values=[at + 0.5 * (letter == "B") for at in began])}
            return msgspec.structs.replace(made_up, measurement=msgspec.structs.replace(made_up.measurement, series=turns))

    launches = against._Launches([], [])
    launches.measure(CASES[:1], Apart(), 6, lambda: False, lambda _: None)
    (pair,) = launches.judged(Rules()).pairs
    assert pair.launches == (5, 5)
    assert pair.why == "1 of 6 launches were not measured turn beside turn: a longer budget_s helps"
    assert pair.word == "inconclusive"  # five are too few to be sure


def test_nothing_in_common_is_unknown_not_green():
    launch = Made()
    report = conduct(launch, [])
    assert launch.calls == []
    assert compare.exit_code(report) == 4


def test_the_same_code_on_both_sides_is_told():
    def launch(first, cases):
        return {
            letter: LoadedRun(msgspec.structs.replace(of.run, code="c0de"), of.machines, of.records, Path("x"), [])
            for letter, of in Made()(first, cases).items()
        }

    assert "both sides have the same code of the suite: what differs is noise" in conduct(launch).notes
    assert not any("same code" in note for note in conduct(Made()).notes)


def test_simulated_gates_are_never_red_without_a_cause_and_find_five_percent():
    """Launches that spread by 1 %, with a slow drift and, one in twenty, a launch that something disturbed."""

    def restless(rng, effect, drift):
        def factor(side, case, number):
            disturbed = 1.1 if rng.random() < 0.05 else 1.0
            return planted(effect)(side, case, number) * (1 + drift * number) * disturbed

        return factor

    for seed in range(12):
        rng = random.Random(seed)
        assert compare.exit_code(conduct(Made(restless(rng, 0.0, 0.002), spread=0.01, seed=seed))) == 0, seed
        report = conduct(Made(restless(rng, 0.05, 0.002), spread=0.01, seed=seed))
        assert [case for case, word in words(report).items() if word == "slower"] == [CASES[3]], seed


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
values: st.SearchStrategy[Scalar] = st.one_of(names, st.booleans(), st.integers(-(2**60), 2**60))
OWN = {"probe", "first_of", "device", "budget_s", "timeout_s"}


@given(
    st.lists(st.tuples(names, st.dictionaries(names.filter(lambda n: n not in OWN), values, max_size=4)), min_size=1, max_size=4)
)
def test_a_suite_of_given_cases_is_read_back_as_these(tmp_path_factory, given_cases):
    listed = [side.Listed(str(number), probe, params, budget_s=0.5) for number, (probe, params) in enumerate(given_cases)]
    path = tmp_path_factory.getbasetemp() / "made.toml"
    path.write_text(side.suite_of(listed), encoding="utf-8")
    read = plan.load_suite(path).cases
    assert [(s.probe, s.axes, s.budget_s) for s in read] == [
        (c.probe, {k: [v] for k, v in c.params.items()}, 0.5) for c in listed
    ]


@pytest.mark.parametrize("done", [0, 1, 5])
def test_where_the_time_was_over_too_soon_that_is_said_and_no_other_reason(done):
    launch = Made()
    report = conduct(launch, over=lambda: len(launch.calls) >= done)
    assert len(report.pairs) == (len(CASES) if done else 0)
    assert compare.exit_code(report) == 4
    said = [note for note in report.notes if "the time was over" in note]
    assert said == [f"the time was over after {done} of the first 6 launches of both: more --max-time"]
    assert not [note for note in report.notes if "skipped" in note or "differ too much" in note]
