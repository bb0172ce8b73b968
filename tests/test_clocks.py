"""Clocks: what stands between two readings, and in which order.

There may be no GPU where this runs: `FakeCuda` is a mock of the few parts of ``torch.cuda`` that the CUDA clock uses.  It keeps
a queue and its own time, and says nothing of how a real device behaves; it proves the order of the calls and the arithmetic.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from clustergauge import clocks
from clustergauge.clocks import CudaClock, CudaGraphClock, WallClock, clock_for


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.at = 0.0

    def record(self, stream: object) -> None:
        assert stream is self.cuda.current
        name = "start" if self.cuda.log[-1].startswith("sleep") else "end"
        self.cuda.log.append(f"record {name}")
        self.at = self.cuda.device_s

    def query(self) -> bool:
        self.cuda.log.append("query")
        return self.at <= self.cuda.host_s

    def synchronize(self) -> None:
        self.cuda.log.append("synchronize")
        self.cuda.host_s = max(self.cuda.host_s, self.at)

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1e3


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.kernels: list[float] = []

    def replay(self) -> None:
        self.cuda.log.append("replay")
        self.cuda.launch(sum(self.kernels))


class FakeCuda:
    """A mock device.  ``device_s``: when the queue runs dry; ``host_s``: where the host is; a launch costs it ``launch_s``."""

    def __init__(self, clock_rate: int | None = 1_000_000, launch_s: float = 1e-6) -> None:
        self.log: list[str] = []
        self.host_s = self.device_s = 0.0
        self.launch_s = launch_s
        self.default = self.current = object()
        self.properties = SimpleNamespace() if clock_rate is None else SimpleNamespace(clock_rate=clock_rate)
        self.spins: list[int] = []
        self.hertz = (clock_rate or 2_000_000) * 1000

    def launch(self, seconds: float) -> None:
        self.host_s += self.launch_s
        self.device_s = max(self.device_s, self.host_s) + seconds

    def kernel(self, name: str, seconds: float):
        def call() -> None:
            self.log.append(name)
            self.launch(seconds)

        return call

    # what the clock uses of torch.cuda
    def set_device(self, device: object) -> None:
        self.log.append(f"set {device}")

    def Stream(self, device: object) -> object:  # noqa: N802 (torch's name)
        return SimpleNamespace(device=device, synchronize=lambda: self.log.append("synchronize stream"))

    def Event(self, enable_timing: bool) -> FakeEvent:  # noqa: N802 (torch's name)
        assert enable_timing
        return FakeEvent(self)

    def get_device_properties(self, device: object) -> object:
        return self.properties

    def current_stream(self, device: object) -> object:
        return self.current

    def _sleep(self, cycles: int) -> None:
        assert isinstance(cycles, int)
        self.log.append(f"sleep {cycles}")
        self.spins.append(cycles)
        self.launch(cycles / self.hertz)

    def synchronize(self, device: object) -> None:
        self.log.append("synchronize device")

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802 (torch's name)
        return FakeGraph(self)

    @contextmanager
    def graph(self, graph: FakeGraph, stream: object):
        """What is launched inside is kept by the graph and takes no time now."""
        assert stream is self.current
        before, self.launch = self.launch, lambda seconds: graph.kernels.append(seconds)  # type: ignore[method-assign]
        self.log.append("capture")
        yield
        self.log.append("captured")
        self.launch = before  # type: ignore[method-assign]

    @contextmanager
    def stream(self, stream: object):
        self.current, before = stream, self.current
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    return installed(monkeypatch)


def installed(monkeypatch, **device) -> FakeCuda:
    fake = FakeCuda(**device)
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def test_a_sample_is_spin_start_calls_end_in_this_order(cuda):
    clock = CudaClock("cuda:0")
    with clock.owned():
        cuda.log.clear()
        clock.time([cuda.kernel("a", 1e-3), cuda.kernel("b", 1e-3)])
    assert cuda.log == ["sleep 70000", "record start", "a", "b", "record end", "query", "synchronize"]


def test_the_time_is_that_of_the_calls_without_the_spin(cuda):
    clock = CudaClock("cuda:0")
    with clock.owned():
        assert clock.time([cuda.kernel("a", 2e-3), cuda.kernel("b", 3e-3)]) == pytest.approx(5e-3)
        assert clock.time([cuda.kernel("a", 2e-6)] * 100) == pytest.approx(200e-6)


def test_what_was_launched_before_is_not_in_the_time(cuda):
    clock = CudaClock("cuda:0")
    with clock.owned():
        cuda.kernel("reset", 1.0)()
        assert clock.time([cuda.kernel("a", 2e-3)]) == pytest.approx(2e-3)


def test_the_spin_counts_cycles_of_the_highest_clock_and_grows_with_the_calls(monkeypatch):
    cuda = installed(monkeypatch, clock_rate=1_980_000)
    clock = CudaClock("cuda:0")
    with clock.owned():
        clock.time([cuda.kernel("a", 1e-3)])
        clock.time([cuda.kernel("a", 1e-3)] * 10)
    assert cuda.spins == [round(60e-6 * 1.98e9), round(150e-6 * 1.98e9)]


@pytest.mark.parametrize("rate", [None, 0])
def test_an_unknown_clock_rate_is_taken_for_a_fast_one(monkeypatch, rate):
    cuda = installed(monkeypatch, clock_rate=rate)
    clock = CudaClock("cuda:0")
    with clock.owned():
        clock.time([cuda.kernel("a", 1e-3)])
    assert cuda.spins == [120_000]


def test_a_spin_that_ended_too_early_is_noticed_and_the_next_is_longer(monkeypatch):
    cuda = installed(monkeypatch, launch_s=45e-6)  # slower than the 10 µs a call that the spin allows for
    clock = CudaClock("cuda:0")
    with clock.owned():
        times = [clock.time([cuda.kernel("a", 2e-6)] * 20) for _ in range(6)]
    assert cuda.spins == [250_000, 500_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000]
    assert clock.exposed == 2
    assert times[0] > 100e-6  # the launch gaps are in it
    assert times[2:] == pytest.approx([40e-6] * 4)


def test_a_spin_that_was_long_enough_stays(cuda):
    clock = CudaClock("cuda:0")
    with clock.owned():
        for _ in range(5):
            clock.time([cuda.kernel("a", 2e-6)] * 3)
    assert set(cuda.spins) == {80_000}
    assert clock.exposed == 0


def test_calls_that_wait_for_the_device_never_make_the_spin_longer_than_its_bound(cuda):
    clock = CudaClock("cuda:0")

    def waits() -> None:
        cuda.launch(1e-3)
        cuda.host_s = cuda.device_s

    with clock.owned():
        for _ in range(30):
            clock.time([waits])
    assert max(cuda.spins) == 20_000_000  # 20 ms at 1 GHz
    assert clock.exposed == 30
    assert clock._stretch < 1024


def test_the_most_calls_of_a_sample_are_queued_behind_a_bounded_spin(cuda):
    clock = CudaClock("cuda:0")
    with clock.owned():
        clock.time([cuda.kernel("a", 1e-6)] * clock.max_calls)
    assert cuda.spins[0] <= clock.LONGEST_SPIN_S * 1e9


def test_outside_its_stream_the_clock_refuses_and_runs_nothing(cuda):
    clock = CudaClock("cuda:0")
    with pytest.raises(RuntimeError, match="own stream"):
        clock.time([cuda.kernel("a", 1e-3)])
    assert "a" not in cuda.log
    assert not cuda.spins


def test_the_device_is_idle_before_the_case_owns_its_stream(cuda):
    clock = CudaClock("cuda:1")
    cuda.log.clear()
    with clock.owned():
        assert cuda.current is clock.stream
        assert cuda.log == ["synchronize device"]
    assert cuda.current is cuda.default
    assert str(clock.stream.device) == "cuda:1"


def test_all_clocks_of_a_device_watch_the_same_stream(cuda):
    assert CudaClock("cuda:0").stream is CudaGraphClock("cuda:0").stream
    assert CudaClock("cuda:0").stream is not CudaClock("cuda:1").stream


# -- the wall clock


@pytest.fixture
def wall() -> WallClock:
    return WallClock()


@pytest.fixture
def readings(wall, monkeypatch) -> list[int]:
    """Nanoseconds that ``perf_counter_ns`` will show; each reading takes one away."""
    values: list[int] = []
    monkeypatch.setattr(clocks.time, "perf_counter_ns", lambda: values.pop(0))
    return values


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_the_wall_clock_is_read_twice_around_the_calls(wall, readings, count):
    readings += [5_000_000_000, 5_000_002_500]
    seen: list[int] = []
    assert wall.time([lambda: seen.append(len(readings))] * count) == 2_500 * 1e-9
    assert seen == [1] * count
    assert readings == []


def test_the_calls_run_once_and_in_order(wall):
    order: list[int] = []
    wall.time([lambda i=i: order.append(i) for i in range(50)])
    assert order == list(range(50))


def test_a_call_that_raises_is_not_swallowed(wall):
    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wall.time([fails])


def test_the_tick_is_what_two_readings_differ_by_or_the_resolution_if_that_is_coarser(monkeypatch):
    reading = iter(range(0, 10**9, 40))
    monkeypatch.setattr(clocks.time, "perf_counter_ns", lambda: next(reading))
    monkeypatch.setattr(clocks.time, "get_clock_info", lambda _: SimpleNamespace(resolution=1e-9))
    assert WallClock().tick_s == pytest.approx(40e-9)
    monkeypatch.setattr(clocks.time, "get_clock_info", lambda _: SimpleNamespace(resolution=1e-6))
    assert WallClock().tick_s == 1e-6


def test_now_is_the_monotonic_clock_in_seconds(wall, monkeypatch):
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: 12.5)
    assert wall.now() == 12.5


def test_a_graph_is_captured_once_after_a_run_outside_and_only_its_replay_is_timed(cuda):
    clock = CudaGraphClock("cuda:0")
    calls = (cuda.kernel("a", 1e-6), cuda.kernel("b", 2e-6))
    with clock.owned():
        cuda.log.clear()
        assert clock.time(calls) == pytest.approx(3e-6)
        assert cuda.log == [
            *("a", "b", "synchronize stream", "capture", "a", "b", "captured"),
            *("replay", "synchronize stream"),  # the first brings the graph onto the device
            *("sleep 60000", "record start", "replay", "record end", "query", "synchronize"),
        ]
        cuda.log.clear()
        assert clock.time(calls) == pytest.approx(3e-6)
        assert cuda.log == ["sleep 60000", "record start", "replay", "record end", "query", "synchronize"]
    assert clock.name == "cuda_graph"


def test_no_more_graphs_are_kept_than_memory_should_hold(cuda):
    clock = CudaGraphClock("cuda:0")
    with clock.owned():
        for number in range(3 * clock.MOST_GRAPHS):
            assert clock.time((cuda.kernel(str(number), number * 1e-6),)) == pytest.approx(number * 1e-6)
            assert len(clock._graphs) <= clock.MOST_GRAPHS


def test_owning_the_wall_clock_owns_nothing(wall):
    with wall.owned() as owned:
        assert owned is None


def test_a_work_gets_the_clock_of_its_device(cuda):
    assert isinstance(clock_for("wall", "cpu"), WallClock)
    assert isinstance(clock_for("wall", "cuda:0"), WallClock)
    assert isinstance(clock_for("device", "cpu"), WallClock)
    assert isinstance(clock_for("device", "cuda:0"), CudaClock)
    assert clock_for("device", "cuda:0").name == "cuda_event"
    assert isinstance(clock_for("graph", "cuda:0"), CudaGraphClock)
    assert isinstance(clock_for("graph", "cpu"), WallClock)
    assert clock_for("wall", "cpu").name == "wall"
    assert time.get_clock_info("perf_counter").monotonic
