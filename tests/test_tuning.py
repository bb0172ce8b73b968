"""Choosing among candidates that do the same work, on a clock that is made up."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, strategies as st

from clustergauge import tuning
from clustergauge.probe import Context
from clustergauge.tuning import ALIKE, ROUNDS, TUNE_S, choose, fastest, measure
from clustergauge.world import Serial
from tests.faults.tuned import Clock


class TooLarge(Exception):
    """What a candidate raises that does not fit."""


def a_context(tmp_path, **more):
    return Context(Serial(), "cpu", 1, tmp_path, **more)


def run(tmp_path, times, pins=(), clock=None, **more):
    """What is chosen among candidates that take so long, and the context that was told."""
    clock = clock or Clock()
    ctx = a_context(tmp_path, pins=dict(pins), **more)
    started = []

    def ready(name):
        started.append(name)
        if times[name] is None:
            return [lambda: raise_(TooLarge(name))]
        return [clock.pass_by(times[name])]

    chosen = choose(ctx, "what", {name: name for name in times}, ready, (TooLarge,), lambda: clock)
    return chosen, ctx.settings, started


def raise_(error):
    raise error


# -- the choice


def test_the_fastest_is_chosen_and_all_is_told(tmp_path):
    chosen, settings, started = run(tmp_path, {"slow": 2e-3, "fast": 1e-3, "slower": 3e-3})
    assert chosen == "fast"
    assert started == ["slow", "fast", "slower"]
    assert {name: value for name, value in settings.items() if not name.startswith("tuning_s.")} == {
        "candidates": 3,
        "tuned": "measured",
        "pin.what": "fast",
    }
    told = {name: settings[f"tuning_s.{name}"] for name in ("slow", "fast", "slower")}
    assert told == pytest.approx({"slow": 2e-3, "fast": 1e-3, "slower": 3e-3})


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.floats(1e-6, 1.0), max_size=5), min_size=1, max_size=6),
)
def test_no_candidate_that_is_slower_than_alike_is_chosen(times):
    medians = {name: statistics.median(seconds) for name, seconds in times.items() if seconds}
    chosen = fastest(times)
    if not medians:
        assert chosen == next(iter(times))
    else:
        assert medians[chosen] <= min(medians.values()) * (1 + ALIKE)
        before = list(medians)[: list(medians).index(chosen)]
        assert all(medians[name] > min(medians.values()) * (1 + ALIKE) for name in before)


def test_one_disturbed_burst_does_not_decide():
    assert fastest({"a": [2.0] * 5, "b": [1.0, 1.0, 9.0, 1.0, 9.0]}) == "b"
    assert fastest({"a": [2.0, 2.0, 0.1, 2.0, 2.0], "b": [1.0] * 5}) == "b"


def test_candidates_take_turns_in_bursts_of_as_many_calls_over_all_buffer_sets():
    clock, ran = Clock(), []

    def ready(name, seconds):
        move = clock.pass_by(seconds)
        return lambda: [lambda number=number: (ran.append((name, number)), move()) for number in range(3)]

    times = measure({"a": ready("a", 1e-4), "b": ready("b", 4e-4)}, clock)
    length = round(tuning.BURST_S / 1e-4)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": ROUNDS, "b": ROUNDS}
    assert clock.timed == [1, *[length] * 2 * ROUNDS]
    assert ran[:3] == [("a", 0), ("a", 0), ("b", 0)]  # compiled, how long a burst is, compiled
    turns = [("a", "b")[burst % 2] for burst in range(2 * ROUNDS)]
    assert ran[3:] == [(turns[number // length], number % 3) for number in range(2 * ROUNDS * length)]
    assert times["b"] == pytest.approx([4e-4] * ROUNDS)


@pytest.mark.parametrize(("seconds", "calls"), [(1e-7, tuning.BURST_MOST), (1.0, 1), (0.0, tuning.BURST_MOST)])
def test_a_burst_has_one_call_at_least_and_no_more_than_are_queued_in_time(seconds, calls):
    clock = Clock()
    measure({"a": lambda: [clock.pass_by(seconds)], "b": lambda: [clock.pass_by(seconds)]}, clock)
    assert set(clock.timed[1:]) == {calls}


def test_a_burst_has_no_more_calls_than_the_clock_may_hold():
    clock = Clock()
    clock.max_calls = 7
    measure({"a": lambda: [clock.pass_by(1e-7)], "b": lambda: [clock.pass_by(1e-7)]}, clock)
    assert set(clock.timed[1:]) == {7}


class Exposing(Clock):
    """Bursts hold what launching costs until the clock has been asked often enough."""

    def __init__(self, too_early):
        super().__init__()
        self.too_early = too_early

    def time(self, calls):
        took = super().time(calls)
        if len(calls) > 1 and self.too_early > 0:
            self.too_early -= 1
            self.exposed += 1
            return took + 1e-4 * len(calls)
        return took


@pytest.mark.parametrize(("too_early", "clean"), [(0, True), (1, True), (tuning.AGAIN - 1, True), (10**6, False)])
def test_a_burst_that_holds_the_cost_of_launching_does_not_count(too_early, clean):
    clock = Exposing(too_early)
    times = measure({"a": lambda: [clock.pass_by(2e-5)], "b": lambda: [clock.pass_by(1e-5)]}, clock)
    assert times["a"] == pytest.approx([2e-5 if clean else 1.2e-4] * ROUNDS)
    assert times["b"] == pytest.approx([1e-5 if clean else 1.1e-4] * ROUNDS)
    bursts = 2 * ROUNDS * (1 if clean else tuning.AGAIN) + (too_early if clean else 0)
    assert len(clock.timed) == 1 + bursts


def test_what_does_not_fit_is_passed_over(tmp_path):
    chosen, settings, _ = run(tmp_path, {"large": None, "slow": 2e-3, "fast": 1e-3})
    assert (chosen, settings["candidates"]) == ("fast", 3)
    assert "tuning_s.large" not in settings
    assert run(tmp_path, {"large": None, "small": 1.0})[0] == "small"
    with pytest.raises(tuning.Unfit, match="larger") as unfit:
        run(tmp_path, {"large": None, "larger": None})
    assert [type(error) for error in unfit.value.refusals] == [TooLarge, TooLarge]


def test_other_errors_are_the_cases():
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: [lambda: 1 // 0], "b": lambda: [lambda: None]}, Clock(), (TooLarge,))


# -- its deadline


def slow_to_compile(clock, seconds, each):
    """A candidate whose first call takes so long, all others ``each``."""
    first = [seconds]

    def call():
        clock.moment += first.pop() if first else each

    return lambda: [call]


def test_nothing_is_started_after_the_deadline_and_what_was_measured_decides():
    clock = Clock()
    starts = {name: slow_to_compile(clock, 0.6 * TUNE_S, each) for name, each in (("a", 2e-3), ("b", 1e-3), ("c", 3e-3))}
    times = measure({**starts, "d": lambda: pytest.fail("too late")}, clock)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 1, "b": 1, "c": 1}  # one turn is made in any case
    assert fastest(times) == "b"


def test_the_first_is_compiled_in_any_case_and_that_leaves_the_others_their_time():
    clock = Clock()
    starts = {"a": slow_to_compile(clock, 3 * TUNE_S, 2e-3), "b": slow_to_compile(clock, 0.5 * TUNE_S, 1e-3)}
    times = measure(starts, clock)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": ROUNDS, "b": ROUNDS}
    assert fastest(times) == "b"


def test_where_no_other_is_reached_the_first_is_chosen(tmp_path):
    clock = Clock()
    ctx = a_context(tmp_path)
    starts = {"a": lambda: [clock.pass_by(TUNE_S)], "b": lambda: pytest.fail("too late")}
    assert choose(ctx, "what", {"a": "a", "b": "b"}, lambda name: starts[name](), clock=lambda: clock) == "a"
    assert ctx.settings == {"candidates": 2, "tuned": "first", "pin.what": "a"}


def test_long_calls_end_the_turns(tmp_path):
    chosen, settings, _ = run(tmp_path, {"a": 0.4 * TUNE_S, "b": 0.3 * TUNE_S})
    assert chosen == "b"
    assert settings["tuning_s.b"] == pytest.approx(0.3 * TUNE_S)


# -- where there is nothing to tune


def test_one_candidate_needs_no_choice(tmp_path):
    assert run(tmp_path, {"only": 1.0}, pins={"what": "only"}) == ("only", {}, [])


def test_the_pin_decides_without_a_measurement(tmp_path):
    chosen, settings, started = run(tmp_path, {"a": 1e-3, "b": 2e-3}, pins={"what": "b", "other": "a"})
    assert (chosen, started) == ("b", [])
    assert settings == {"candidates": 2, "tuned": "pinned", "pin.what": "b"}


@pytest.mark.parametrize("pin", ["", "c", "A", "a ", "__import__('os')", "a\x00", "b" * 10**6])
def test_a_pin_that_is_no_candidate_is_not_looked_at(tmp_path, pin):
    chosen, settings, started = run(tmp_path, {"a": 1e-3, "b": 2e-3}, pins={"what": pin})
    assert (chosen, started, settings["tuned"]) == ("a", ["a", "b"], "measured")


def test_where_nothing_may_be_tuned_the_pin_or_else_the_first_is_taken_and_the_first_is_not_pinned(tmp_path):
    times = {"a": 2e-3, "b": 1e-3}
    assert run(tmp_path, times, tunes=False) == ("a", {"candidates": 2, "tuned": "first"}, [])
    assert run(tmp_path, times, pins={"what": "b"}, tunes=False)[0] == "b"
