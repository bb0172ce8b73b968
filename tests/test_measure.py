"""The timing loop on a fake clock: exact counts, exact times, and nothing but the calls between two readings."""

from __future__ import annotations

import gc
import itertools
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from clustergauge.measure import Plan, Sampler
from clustergauge.model import Workload
from clustergauge.probe import Work, Wrong
from clustergauge.world import Serial


@dataclass
class FakeClock:
    """Time passes only where a test says: every call takes the next of ``durations`` seconds."""

    durations: Any
    tick_s: float = 1e-9
    max_calls: int = 1 << 16
    name: str = "wall"
    exposed: int = 0
    time_s: float = 0.0
    log: list[str] = field(default_factory=list)

    def now(self) -> float:
        return self.time_s

    def time(self, calls) -> float:
        self.log.append(f"start {len(calls)}")
        total = 0.0
        for call in calls:
            call()
            total += next(self.durations)
        self.time_s += total
        self.log.append("stop")
        return total

    def settle(self) -> None:
        self.log.append("settle")

    def owned(self):
        return nullcontext()


def always(seconds: float):
    return itertools.repeat(seconds)


def sampler(clock: FakeClock, work: Work | None = None, **plan) -> Sampler:
    return Sampler(work or Work(run=lambda: None, workload=Workload()), clock, Serial(), Plan(**plan))


def test_constant_times_converge_at_the_first_look():
    measured = sampler(FakeClock(always(0.001))).measure()
    assert measured.samples_s == [0.001] * 20
    assert measured.stop_reason == "converged"
    assert measured.iterations_per_sample == 1
    assert measured.sample_start_s == pytest.approx([i * 0.001 for i in range(20)])


def test_short_calls_are_gathered_until_a_sample_has_100_ticks():
    clock = FakeClock(always(2e-6), tick_s=1e-6)
    measured = sampler(clock).measure()
    assert measured.iterations_per_sample >= 50
    assert measured.iterations_per_sample <= 80
    assert measured.samples_s == pytest.approx([2e-6] * 20)


def test_an_interruption_while_calibrating_does_not_pass_for_work():
    clock = FakeClock(itertools.chain([2e-6, 1e-3], always(2e-6)), tick_s=1e-6)
    assert sampler(clock).measure().iterations_per_sample >= 50


def test_work_may_limit_its_iterations():
    work = Work(run=lambda: None, workload=Workload(), max_iterations=3)
    assert sampler(FakeClock(always(1e-9), tick_s=1e-6), work).measure().iterations_per_sample == 3


def test_times_are_of_one_step_where_a_run_is_steps():
    clock = FakeClock(always(2e-6), tick_s=1e-6)
    one = sampler(clock, Work(run=lambda: None, workload=Workload(), steps=1000))
    measured = one.measure()
    calls = int(clock.log[-2].removeprefix("start "))
    assert 50 <= calls <= 80
    assert measured.iterations_per_sample == 1000 * calls
    assert measured.samples_s == pytest.approx([2e-9] * 20)
    assert measured.sample_start_s[1] == pytest.approx(calls * 2e-6)


def test_every_run_is_counted_those_that_do_not_count_too():
    ran = []
    one = sampler(FakeClock(always(0.01)), Work(run=lambda: ran.append(1), workload=Workload(), steps=3), budget_s=0.3)
    one.measure()
    one.loop_mean()
    assert one.ran == 3 * len(ran)


def test_a_loop_of_runs_that_are_steps_holds_as_many_runs_as_its_share_affords():
    clock = FakeClock(always(2e-3))
    one = sampler(clock, Work(run=lambda: None, workload=Workload(), steps=1000), budget_s=2.0)
    one.measure()
    assert one.loop_mean() == pytest.approx(2e-6)
    assert clock.log[-10::2] == ["start 40"] * 5


def test_the_budget_ends_a_restless_case_and_says_so():
    noise = itertools.cycle([0.01, 0.03, 0.02, 0.05, 0.04])
    measured = sampler(FakeClock(noise), budget_s=1.0).measure()
    assert measured.stop_reason == "budget"
    assert 0.8 <= sum(measured.samples_s) <= 1.1


def test_a_slow_case_gets_the_fewest_samples_that_give_an_interval():
    measured = sampler(FakeClock(always(1.0)), budget_s=2.0).measure()
    assert len(measured.samples_s) == 6
    measured = sampler(FakeClock(always(10.0)), budget_s=2.0).measure()
    assert len(measured.samples_s) == 3


def test_a_record_keeps_no_more_samples_than_it_may():
    noise = itertools.cycle([0.0001, 0.0003])
    measured = sampler(FakeClock(noise), budget_s=1e6, most=500).measure()
    assert len(measured.samples_s) == 500
    assert measured.stop_reason == "samples"


def test_reset_is_outside_the_clock_and_before_every_sample():
    clock = FakeClock(always(0.001))
    work = Work(run=lambda: clock.log.append("run"), reset=lambda: clock.log.append("reset"), workload=Workload())
    sampler(clock, work).measure()
    assert len(clock.log) % 4 == 0
    assert clock.log == ["reset", "start 1", "run", "stop"] * (len(clock.log) // 4)


def test_what_a_sample_has_to_say_is_noted_after_each_that_counts_and_before_its_check():
    log: list[str] = []
    work = Work(
        run=lambda: log.append("run"), note=lambda: log.append("note"), check=lambda: log.append("check"), workload=Workload()
    )
    measured = sampler(FakeClock(always(0.001)), work).measure()
    assert log.count("note") == len(measured.samples_s)
    counted = log[log.index("note") - 1 :]
    assert [word for word in counted if word != "check"] == ["run", "note"] * len(measured.samples_s)
    assert counted[counted.index("check") - 1] == "note"


def test_buffer_sets_take_turns_without_end():
    order: list[int] = []
    work = Work(run=[lambda i=i: order.append(i) for i in range(3)], workload=Workload())
    sampler(FakeClock(always(0.001)), work).measure()
    assert order == [i % 3 for i in range(len(order))]
    assert work.last == order[-1]


def test_buffer_sets_take_turns_inside_a_sample_too():
    order: list[int] = []
    work = Work(run=[lambda i=i: order.append(i) for i in range(3)], workload=Workload())
    sampler(FakeClock(always(1e-5), tick_s=1e-6), work).measure()
    assert order[3:] == [(i + order[3]) % 3 for i in range(len(order) - 3)]
    assert work.last == order[-1]


def test_no_garbage_is_collected_while_timing():
    seen: list[bool] = []
    sampler(FakeClock(always(0.001)), Work(run=lambda: seen.append(gc.isenabled()), workload=Workload())).measure()
    assert not any(seen)
    assert gc.isenabled()


def test_outputs_that_change_between_samples_are_wrong():
    digests = iter(["same", "same", "other"])
    work = Work(run=lambda: None, digest=lambda: next(digests), workload=Workload())
    with pytest.raises(Wrong, match="digests same and other"):
        sampler(FakeClock(itertools.cycle([0.001, 0.003])), work, budget_s=1.0).measure()


def test_outputs_that_change_within_a_case_of_one_batch_are_wrong_too():
    digests = iter(["warm", "other"])
    work = Work(run=lambda: None, digest=lambda: next(digests), workload=Workload())
    with pytest.raises(Wrong, match="digests warm and other"):
        sampler(FakeClock(always(0.001)), work).measure()


def test_the_slowest_rank_makes_the_sample():
    class Pair(Serial):
        """Rank 0 of two; the other is twice as slow in every second sample."""

        size = 2

        def gather(self, value):
            times, problem = value
            return [value, [[2 * t if i % 2 else t / 2 for i, t in enumerate(times)], problem]]

    work = Work(run=lambda: None, workload=Workload())
    measured = Sampler(work, FakeClock(always(0.001)), Pair(), Plan(budget_s=0.019)).measure()
    assert measured.samples_s[:4] == [0.001, 0.002, 0.001, 0.002]


@pytest.mark.parametrize(("seconds", "lead"), [(0.001, 1), (0.00019, 5), (1e-6, 20)])
def test_ranks_that_have_talked_first_take_samples_that_do_not_count(seconds, lead):
    two, clock = Serial(), FakeClock(always(seconds))
    two.size = 2
    measured = Sampler(Work(run=lambda: None, workload=Workload()), clock, two, Plan()).measure()
    before = 1 + 1 + (20 if seconds < 1e-5 else 0)  # warm-up, calibration and its second look
    assert clock.log.count("stop") == before + lead + len(measured.samples_s)


@pytest.mark.parametrize("checked", [True, False])
def test_after_a_check_one_sample_does_not_count(checked):
    log: list[str] = []
    work = Work(run=lambda: log.append("run"), check=(lambda: log.append("check")) if checked else None, workload=Workload())
    clock = FakeClock(itertools.cycle([0.040, 0.050, 0.030, 0.060, 0.020]))
    measured = sampler(clock, work, budget_s=1.0, target=0.0).measure()
    batches = [list(group) for name, group in itertools.groupby(log) if name == "run"]
    assert len(batches) == (2 if checked else 1)
    assert log.count("run") == 2 + checked + len(measured.samples_s)  # after warming up and calibration


def test_ranks_meet_before_every_sample_and_only_where_asked():
    class Counting(Serial):
        met = 0

        def barrier(self):
            self.met += 1

    for sync in (True, False):
        world, clock = Counting(), FakeClock(always(0.001))
        Sampler(Work(run=lambda: None, sync=sync, workload=Workload()), clock, world, Plan()).measure()
        assert world.met == (clock.log.count("stop") if sync else 0)


def test_the_window_of_sampling_leaves_out_warming_up_calibrating_and_the_loop():
    clock, resets = FakeClock(itertools.chain([5.0, 7.0], itertools.cycle([0.010, 0.030, 0.020, 0.050, 0.040]))), []

    class Talking(Serial):
        def from_root(self, value):
            clock.time_s += 0.25
            return value

    def check() -> None:
        clock.time_s += 0.5

    work = Work(run=lambda: None, reset=lambda: resets.append(clock.time_s), check=check, workload=Workload())
    one = Sampler(work, clock, Talking(), Plan(budget_s=0.15))  # so little that no sample is left out after a check
    one.phase = lambda name: resets.clear() if name == "measure" and not one.mine else None
    assert one.window is None
    measured = one.measure()
    assert one.window == (resets[0], clock.time_s)
    assert resets[0] > 12.0
    assert measured.sample_start_s == pytest.approx([moment - resets[0] for moment in resets])
    one.loop_mean()
    assert one.window[1] < clock.time_s


def test_the_loop_mean_is_that_of_long_samples_of_which_the_middle_counts():
    clock = FakeClock(itertools.chain([0.001] * 22, [0.001] * 80, [0.003] * 80, [0.002] * 80, [0.009] * 80, [0.0] * 80))
    one = sampler(clock, budget_s=2.0)
    one.measure()
    assert one.loop_mean() == pytest.approx(0.002)
    assert clock.log[-10::2] == ["start 80"] * 5  # a fifth of the budget


def test_one_call_is_the_loop_where_there_is_no_time_for_more():
    clock = FakeClock(always(0.5))
    one = sampler(clock, budget_s=2.0)
    one.measure()
    clock.log.clear()
    assert one.loop_mean() == 0.5
    assert clock.log == ["start 1", "stop"]


def test_a_call_with_nobody_to_talk_to_is_timed_apart():
    assert sampler(FakeClock(always(1e-6))).overhead() is None
    calls: list[int] = []
    work = Work(run=lambda: None, overhead=lambda: calls.append(1), workload=Workload())
    one = sampler(FakeClock(always(2e-6)), work)
    one.measure()
    assert calls == []
    assert one.overhead() == pytest.approx(2e-6)
    assert len(calls) == 9 * 200


def test_outputs_are_checked_between_batches_while_time_allows():
    clock, checks = FakeClock(itertools.cycle([0.010, 0.030, 0.020, 0.050, 0.040])), []

    def check() -> None:
        checks.append(clock.now())
        clock.time_s += 0.15

    one = sampler(clock, Work(run=lambda: None, check=check, workload=Workload()), budget_s=3.0)
    one.measure()
    assert one.checked == len(checks) == 5  # a fifth of the budget, and the one that went over it
    assert not one.checked_last


def test_a_cheap_check_sees_the_last_sample_too():
    one = sampler(FakeClock(always(0.001)), Work(run=lambda: None, check=lambda: None, workload=Workload()))
    one.measure()
    assert (one.checked, one.checked_last) == (1, True)


def test_ranks_leave_together_when_the_output_of_one_is_wrong():
    class Pair(Serial):
        def gather(self, value):
            return [value, [value[0], "element 3 is off"]]

    with pytest.raises(Wrong, match="element 3 is off") as caught:
        Sampler(Work(run=lambda: None, workload=Workload()), FakeClock(always(0.001)), Pair(), Plan()).measure()
    assert caught.value.rank == 1


def test_a_wrong_output_is_found_in_whichever_batch_it_lies():
    runs = itertools.count()
    last = 0

    def run() -> None:
        nonlocal last
        last = next(runs)

    def check() -> None:
        if last > 30:
            raise Wrong(f"run {last} is off")

    noise = itertools.cycle([0.010, 0.030, 0.020, 0.050, 0.040])
    with pytest.raises(Wrong, match=r"run 3[1-9] is off"):
        sampler(FakeClock(noise), Work(run=run, check=check, workload=Workload()), budget_s=10.0).measure()


def test_an_output_is_wrong_even_where_the_check_has_no_word_for_it():
    def check() -> None:
        raise Wrong("")

    with pytest.raises(Wrong, match="the output is wrong"):
        sampler(FakeClock(always(0.001)), Work(run=lambda: None, check=check, workload=Workload())).measure()


def test_warming_up_many_slow_sets_ends_with_its_share_of_the_budget():
    order: list[int] = []
    work = Work(run=[lambda i=i: order.append(i) for i in range(100)], workload=Workload())
    sampler(FakeClock(always(0.1)), work, budget_s=2.0).measure()
    assert order[:6] == [0, 1, 2, 3, 4, 5]
    assert len(order) < 40


def test_launches_exposed_while_warming_up_do_not_count():
    clock = FakeClock(always(0.001))
    clock.exposed = 7
    one = sampler(clock)
    one.measure()
    assert one.exposed == 0


def test_a_burn_in_takes_all_its_time_in_samples_of_a_fair_length_and_looks_often():
    clock, looks = FakeClock(always(0.001)), []
    work = Work(run=lambda: None, digest=lambda: looks.append(1) or "same", whole_budget=True, workload=Workload())
    measured = sampler(clock, work, budget_s=100.0).measure()
    assert measured.stop_reason == "budget"
    assert 99 < clock.time_s < 103
    assert 3000 < len(measured.samples_s) < 5000
    assert len(looks) >= len(measured.samples_s) / 20


def test_a_burn_in_whose_samples_must_be_short_works_between_those_it_keeps_rather_than_ending_early():
    clock = FakeClock(always(0.001))
    work = Work(run=lambda: None, digest=lambda: "same", whole_budget=True, max_iterations=2, workload=Workload())
    measured = sampler(clock, work, budget_s=100.0).measure()
    assert measured.stop_reason == "budget"
    assert 99 < clock.time_s < 103
    assert 3000 < len(measured.samples_s) < 5100
    assert measured.sample_start_s[-1] > 97


def test_a_burn_in_says_between_batches_what_it_has_measured_since_it_said_so_last():
    clock, parts = FakeClock(always(0.001)), []
    work = Work(run=lambda: None, digest=lambda: "same", whole_budget=True, workload=Workload())
    one = sampler(clock, work, budget_s=10.0)
    one.tell = lambda part: parts.append((part, clock.log[-1], len(one.merged)))
    measured = one.measure()
    assert [s for part, *_ in parts for s in part.samples_s] == measured.samples_s
    assert [s for part, *_ in parts for s in part.sample_start_s] == measured.sample_start_s
    assert len(parts) >= len(measured.samples_s) / 20
    assert {after for _, after, _ in parts} == {"stop"}  # never between the two readings of a sample
    assert {part.stop_reason for part, *_ in parts} == {"interrupted"}
    assert all(part.warmup_cut <= known for part, _, known in parts)


def test_a_batch_whose_output_is_wrong_is_not_among_what_a_burn_in_said():
    told, digests = [], iter(["same"] * 5)
    work = Work(run=lambda: None, digest=lambda: next(digests, "other"), whole_budget=True, workload=Workload())
    one = sampler(FakeClock(always(0.001)), work, budget_s=10.0)
    one.tell = told.append
    with pytest.raises(Wrong, match="two samples of a deterministic kernel differ"):
        one.measure()
    assert len(told) == 4  # the first digest is the one that the others are held against
    assert sum(len(part.samples_s) for part in told) < len(one.merged)


def test_work_that_ends_when_it_has_converged_says_nothing_before():
    one = sampler(FakeClock(always(0.001)))
    one.tell = lambda _: pytest.fail("nobody asked")
    one.measure()


class Several(Serial):
    """Three ranks of which the others take twice and three times as long as this one."""

    def gather(self, value):
        first, *rest = value
        return [[[rank * s for s in first], *rest] for rank in (1, 2, 3)]


def test_a_burn_in_on_several_ranks_keeps_how_long_each_took():
    work = Work(run=lambda: None, digest=lambda: "same", whole_budget=True, workload=Workload())
    one = Sampler(work, FakeClock(always(0.25)), Several(), Plan(budget_s=20.0))
    measured = one.measure()
    assert {name: series.values for name, series in measured.series.items()} == {
        "rank_time": [0.25, 0.5, 0.75],
        "rank_time_last": [0.25, 0.5, 0.75],
    }
    assert set(measured.samples_s) == {0.75}


# -- sweeps: callables that are different things


def sweeping(passes: list, seconds: list[float], **plan) -> tuple[Any, list[int]]:
    """A sweep of as many callables as ``seconds``, each taking its own; what it measured, and which ran."""
    ran: list[int] = []
    runs = [lambda i=i: ran.append(i) for i in range(len(seconds))]
    work = Work(run=runs, check=lambda: None, workload=Workload(), max_iterations=1, sweep=lambda times, _: passes.extend(times))
    return sampler(FakeClock(itertools.cycle(seconds)), work, **plan).measure(), ran


def test_a_sweep_takes_whole_passes_and_tells_every_rank_apart():
    times: list = []
    measured, ran = sweeping(times, [0.1, 0.2, 0.3], budget_s=6.0)
    assert times == [measured.samples_s] == [[0.1, 0.2, 0.3] * 10]
    assert ran == [0, 1, 2] * 11  # the first pass warms up
    assert measured.stop_reason == "budget"
    assert measured.warmup_cut == 0
    assert measured.iterations_per_sample == 1


def test_a_slow_sweep_takes_the_fewest_passes():
    assert len(sweeping([], [1.0, 1.0], budget_s=4.0)[0].samples_s) == 5 * 2
    assert len(sweeping([], [10.0, 10.0], budget_s=4.0)[0].samples_s) == 3 * 2


def test_a_sweep_keeps_no_more_samples_than_it_may():
    measured, _ = sweeping([], [1e-5, 1e-5, 1e-5], budget_s=1e6, most=100)
    assert len(measured.samples_s) == 99
    assert measured.stop_reason == "samples"


def test_equal_times_do_not_end_a_sweep_early():
    assert len(sweeping([], [0.01, 0.01], budget_s=2.001)[0].samples_s) == 200
