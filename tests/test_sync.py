"""Arrivals on one clock: planted offsets between threads that talk over queues, and planted arrivals."""

from __future__ import annotations

import queue
import threading
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from clustergauge import sync, warnings
from clustergauge.measure import Plan, Sampler
from clustergauge.model import Measurement, Place, Series, Workload
from clustergauge.probe import Work
from clustergauge.world import Serial
from tests import made
from tests.test_measure import FakeClock, always


class Wire:
    """Ranks as threads of one process: real messages over queues."""

    def __init__(self, rank, size, queues):
        self.rank, self.size, self.queues = rank, size, queues

    def send_number(self, rank, number):
        self.queues[self.rank, rank].put(number)

    def receive_number(self, rank):
        return self.queues[rank, self.rank].get(timeout=20)

    def from_root(self, value):
        for rank in range(1, self.size) if self.rank == 0 else ():
            self.send_number(rank, value)
        return value if self.rank == 0 else self.receive_number(0)

    def gather(self, value):
        if self.rank:
            self.send_number(0, value)
            return None
        return [value, *(self.receive_number(rank) for rank in range(1, self.size))]

    def barrier(self):
        self.from_root(self.gather(0) and 0)


def together(size, step):
    """What ``step`` gives on each of ``size`` ranks."""
    queues = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    results = [None] * size

    def run(rank):
        results[rank] = step(Wire(rank, size, queues))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert None not in results
    return results


@pytest.fixture
def shifted(monkeypatch):
    """Clocks that differ by a shift of each thread's own."""
    own = threading.local()

    def reading():
        return time.perf_counter_ns() + getattr(own, "shift_ns", 0)

    fake = SimpleNamespace(perf_counter_ns=reading, perf_counter=lambda: reading() * 1e-9, sleep=time.sleep)
    monkeypatch.setattr(sync, "time", fake)
    return own


def test_offsets_between_kernels_are_right_within_the_stated_error(shifted):
    shifts = [0, 5_000_000_000, -7_250_000_000, 5_000_000_000]

    def step(world):
        shifted.shift_ns = shifts[world.rank]
        name = "a" if world.rank in (1, 3) else f"of rank {world.rank}"
        clocks = sync.Clocks(world, name)
        return clocks.leaders, clocks.look()

    for leaders, look in together(4, step):
        assert leaders == [0, 1, 2, 1]
        assert look.error_s > 0
        for offset, shift in zip(look.offsets_s, shifts, strict=True):
            assert abs(offset + shift * 1e-9) <= look.error_s + 1e-9
        assert look.offsets_s[1] == look.offsets_s[3]


def test_ranks_under_one_kernel_read_one_clock():
    assert sync.kernel_clock()

    def step(world):
        clocks = sync.Clocks(world)
        return clocks.leaders, clocks.look()

    for leaders, look in together(3, step):
        assert leaders == [0, 0, 0]
        assert (look.offsets_s, look.error_s) == ([0.0] * 3, 0.0)


def test_a_clock_that_cannot_be_named_is_nobody_elses():
    assert together(3, lambda world: sync.Clocks(world, "").leaders) == [[0, 1, 2]] * 3


def arrivals(before, after, rows, error=1e-6):
    """Arrivals of ranks whose offsets went from ``before`` to ``after`` within 10 s."""
    with mock.patch.object(sync, "Clocks") as clocks:
        clocks.return_value.look.side_effect = [sync.Look(0.0, before, error), sync.Look(10.0, after, 2 * error)]
        made_up = sync.Arrivals(Serial())
        made_up.look_again()
    made_up.rows = [np.array(rows)]
    return made_up


def test_skew_and_lateness_by_rank():
    rows = [[1.0, 2.0, 3.0, 4.0], [1.002, 2.002, 3.002, 4.002], [1.001, 2.0, 3.001, 4.003]]
    one = arrivals([0.0] * 3, [0.0] * 3, rows)
    skew, series = one.summary()
    assert skew == pytest.approx([0.002, 0.002, 0.002, 0.003])
    assert series["late"].values == pytest.approx([0.0, 0.002, 0.001])
    assert series["last"].values == [0.0, 0.75, 0.25]
    assert (one.error_s, one.drift_s) == (2e-6, 0.0)


def test_who_is_last_by_less_than_clocks_can_tell_is_not_said():
    _, series = arrivals([0.0] * 2, [0.0] * 2, [[1.0, 2.0], [1.002, 2.002]], error=1e-3).summary()
    assert series["last"].values == [0.0, 0.0]
    assert series["late"].values == pytest.approx([0.0, 0.002])


def test_a_clock_that_drifts_is_corrected_along_a_line():
    true = np.array([0.0, 5.0, 10.0])
    drifting = true - 100.0 - 1e-3 * true  # 100 s behind, and losing 1 ms a second
    one = arrivals([0.0, 100.0], [0.0, 100.01], [true, drifting])
    skew, _ = one.summary()
    assert skew == pytest.approx([0.0] * 3, abs=1e-4)
    assert one.drift_s == pytest.approx(0.01)


class Pair(Serial):
    """Rank 0 of two; the other begins every sample 2 ms later."""

    def __init__(self):
        super().__init__()
        self.size = 2

    def gather(self, value):
        if isinstance(value, str):
            return [value, value]
        times, problem, arrived = value
        return [value, [times, problem, [t + 0.002 for t in arrived]]]


def test_the_timing_loop_notes_the_arrival_of_each_sample_it_keeps():
    clock = FakeClock(always(0.001))
    clock.started_s = 3.0
    measured = Sampler(Work(run=lambda: None, sync=True, workload=Workload()), clock, Pair(), Plan()).measure()
    assert measured.arrival_skew_s == pytest.approx([0.002] * len(measured.samples_s))
    assert measured.series["late"].values == pytest.approx([0.0, 0.002])
    assert measured.series["last"].values == [0.0, 1.0]


def test_ranks_that_do_not_meet_have_no_arrivals():
    measured = Sampler(Work(run=lambda: None, workload=Workload()), FakeClock(always(0.001)), Serial(), Plan()).measure()
    assert (measured.arrival_skew_s, measured.series) == ([], {})


def test_who_leaves_before_all_have_entered_did_not_wait():
    def step(world, meet):
        return sync.impatient(world, meet or world.barrier, late=1)

    assert together(3, lambda world: step(world, None)) == [""] * 3
    words = together(3, lambda world: step(world, lambda: None))
    assert len(set(words)) == 1
    assert " ms before rank 1 had entered" in words[0]


def late_record(late, last, samples=1e-3, error=4e-6):
    series = {"late": Series(unit="s", values=late), "last": Series(unit="1", values=last)}
    return made.record(
        measurement=Measurement(clock="wall", cache="none", samples_s=[samples] * 30, series=series),
        settings={"clock_error_s": error},
        placement=[Place(rank=rank, host=f"node-{rank}") for rank in range(len(late))],
    )


def test_a_late_rank_is_named_with_its_host():
    found = [w for w in warnings.doubts([late_record([0.0, 1e-6, 0.002], [0.0, 0.1, 0.9])]) if w.name == "late rank"]
    words = "rank 2 on node-2 began 2.00 ms after the first (clocks agree within 4.00 µs), in 90% of the samples the last"
    assert [w.detail for w in found] == [words]


@pytest.mark.parametrize(
    "record",
    [
        late_record([0.0, 0.00005], [0.0, 1.0]),  # as far apart as a barrier leaves them
        late_record([0.0, 0.002], [0.0, 1.0], samples=0.1),  # little beside the time of a call
        late_record([0.0, 0.002], [0.0, 1.0], error=0.0019),  # the clocks do not tell
        late_record([0.0, 0.002], [0.6, 0.4]),  # not by habit
        made.record(),
    ],
)
def test_nobody_is_accused_of_being_late_without_reason(record):
    assert "late rank" not in [w.name for w in warnings.doubts([record])]
