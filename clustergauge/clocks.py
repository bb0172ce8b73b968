"""The only room that reads a clock for results.

A clock times a sequence of calls as one sample: nothing but the calls stands between its two readings.  Sequences are made
beforehand, so that rotating through buffer sets costs the timed region nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

Calls = Sequence[Callable[[], object]]

read_ns = time.perf_counter_ns
"""Nanoseconds since some moment, monotonic and the same in all processes of a machine (``CLOCK_MONOTONIC`` on Linux): for the
latencies of the many operations that one run of a storage case is made of, which an engine notes beside the clock."""


class Clock(Protocol):
    """Times calls."""

    @property
    def name(self) -> Literal["wall", "cuda_event", "cuda_graph"]:
        """What the record calls it."""
        ...

    @property
    def tick_s(self) -> float:
        """The smallest step it can show, in seconds."""
        ...

    @property
    def max_calls(self) -> int:
        """The most calls one sample may hold."""
        ...

    @property
    def exposed(self) -> int:
        """Samples whose time may hold the cost of launching; 0 for a clock that means to hold it."""
        ...

    @property
    def started_s(self) -> float:
        """When the latest sample began, on the scale of `now`: a reading that timing it took anyway."""
        ...

    def now(self) -> float:
        """Seconds since some moment, monotonic: for budgets and for the start of samples.

        Of all processes of a host the same (``time.perf_counter`` and ``time.monotonic`` both read CLOCK_MONOTONIC), so that a
        sensor's readings can be laid beside the samples.
        """
        ...

    def settle(self) -> None:
        """Wait until what was launched before is done, so that none of it falls into the next sample."""
        ...

    def time(self, calls: Calls) -> float:
        """Run the calls once, in order, and return the seconds they took together."""
        ...

    def owned(self) -> AbstractContextManager[Any]:
        """Context in which the whole case runs (the stream that the clock watches)."""
        ...


class WallClock:
    """The processor's monotonic clock (``time.perf_counter_ns``)."""

    name: Literal["wall"] = "wall"
    max_calls = 1 << 16
    exposed = 0
    _started = 0

    def __init__(self) -> None:
        self.tick_s = _wall_tick()

    @property
    def started_s(self) -> float:
        """The first of the two readings of the latest sample."""
        return self._started * 1e-9

    def now(self) -> float:
        """Seconds of ``time.perf_counter``."""
        return time.perf_counter()

    def settle(self) -> None:
        """Calls on the processor are done when they return."""

    def time(self, calls: Calls) -> float:
        """Seconds between just before the first call and just after the last."""
        read = time.perf_counter_ns
        if len(calls) == 1:
            call = calls[0]
            start = read()
            call()
            end = read()
        else:
            start = read()
            for call in calls:
                call()
            end = read()
        self._started = start
        return (end - start) * 1e-9

    def owned(self) -> AbstractContextManager[Any]:
        """Nothing to own."""
        return nullcontext()


class CudaClock:
    """CUDA (or HIP) events on a stream of its own, around launches queued behind a bounded spin kernel.

    The spin keeps the device busy while the host queues the launches, so that the events enclose device work only.  It is
    bounded, so that launches that fill the queue, or wait for the device themselves, delay it and never hang it.  Whether it
    was long enough is looked at each time: if the device had begun before all was queued, the next spin is twice as long, up to
    ``LONGEST_SPIN_S``.  Warming up and calibrating go through here too, so this settles before samples count.

    The resolution is about 0.5 µs (CUDA runtime documentation, ``cudaEventElapsedTime``).
    """

    name: Literal["cuda_event", "cuda_graph"] = "cuda_event"
    tick_s = 0.5e-6
    max_calls = 512  # below the depth of the launch queue (about 1000), beyond which queueing itself would block
    LONGEST_SPIN_S = 20e-3

    _SPIN_S = 50e-6
    _SPIN_PER_CALL_S = 10e-6
    _FAST_KHZ = 2_000_000  # where torch does not tell: too fast a clock only makes the spin longer

    def __init__(self, device: str) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device(device)
        torch.cuda.set_device(self._device)
        self.stream: Any = _stream(self._torch.cuda, self._device)
        self._start: Any = torch.cuda.Event(enable_timing=True)
        self._end: Any = torch.cuda.Event(enable_timing=True)
        properties: Any = self._torch.cuda.get_device_properties(self._device)
        # The highest clock (kHz): the spin kernel counts cycles, so a slower one only makes it longer.
        self._cycles_per_s = (int(getattr(properties, "clock_rate", 0)) or self._FAST_KHZ) * 1000
        self._stretch = 1
        self.started_s = 0.0
        """When the host began to queue the latest sample: the device begins after the spin."""
        self.exposed = 0
        """Samples in which the device began before the host had queued them all: launch gaps may be in their time."""

    def now(self) -> float:
        """Seconds of ``time.perf_counter``."""
        return time.perf_counter()

    def settle(self) -> None:
        """Wait for the owned stream."""
        self.stream.synchronize()

    def time(self, calls: Calls) -> float:
        """Seconds between two events recorded just before the first and just after the last call.

        Raises ``RuntimeError`` outside of `owned`: events on one stream say nothing of work on another.
        """
        if self._torch.cuda.current_stream(self._device) != self.stream:
            raise RuntimeError("the CUDA clock watches its own stream: run the case inside clock.owned()")
        launch = self._prepared(calls)
        started = time.perf_counter()
        spin = min(self.LONGEST_SPIN_S, self._stretch * (self._SPIN_S + self._SPIN_PER_CALL_S * len(launch)))
        self._torch.cuda._sleep(int(spin * self._cycles_per_s))
        self._start.record(self.stream)
        for call in launch:
            call()
        self._end.record(self.stream)
        if self._start.query():
            self.exposed += 1
            if spin < self.LONGEST_SPIN_S:
                self._stretch *= 2
        self._end.synchronize()
        self.started_s = started
        return self._start.elapsed_time(self._end) * 1e-3

    def owned(self) -> AbstractContextManager[Any]:
        """The stream, once what was launched before is done; everything the probe launches inside goes there."""
        self._torch.cuda.synchronize(self._device)
        return self._torch.cuda.stream(self.stream)

    def _prepared(self, calls: Calls) -> Calls:
        """What is launched between the events, made ready outside of them: here the calls themselves."""
        return calls


class CudaGraphClock(CudaClock):
    """As `CudaClock`, around the replay of a CUDA graph that holds the calls: for work shorter than launching it takes.

    A sequence is captured when it is first timed, after the calls have run once outside of the graph (kernels are compiled,
    libraries have their workspaces), and replayed once (the first replay brings the graph onto the device) before that.  The
    calls must launch the same work on the same buffers each time.
    """

    name = "cuda_graph"
    MOST_GRAPHS = 64
    """Graphs kept; each holds memory of the device."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._graphs: dict[int, tuple[Calls, Calls]] = {}

    def _prepared(self, calls: Calls) -> Calls:
        """The replay of the graph of these calls; a sequence is known by identity, and kept so that none takes its place."""
        known = self._graphs.get(id(calls))
        if known is None:
            for call in calls:
                call()
            self.settle()
            graph: Any = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph, stream=self.stream):
                for call in calls:
                    call()
            graph.replay()
            self.settle()
            if len(self._graphs) >= self.MOST_GRAPHS:
                self._graphs.clear()
            known = self._graphs[id(calls)] = (calls, (graph.replay,))
        return known[1]


@functools.cache
def _stream(cuda: Any, device: Any) -> Any:
    """The stream that all clocks of a device watch, one after the other: libraries keep a workspace for every stream they meet
    (cuBLAS 32 MiB on Hopper), and no pool gives that back.  ``cuda`` is the module `torch.cuda`."""
    return cuda.Stream(device)


def _wall_tick() -> float:
    """The smallest step that two successive readings show: the larger of the clock's resolution and the cost of reading it."""
    read = time.perf_counter_ns
    steps = sorted(second - first for first, second in ((read(), read()) for _ in range(200)))
    return max(time.get_clock_info("perf_counter").resolution, steps[len(steps) // 2] * 1e-9)


def clock_for(kind: Literal["wall", "device", "graph"], device: str) -> Clock:
    """The clock a work asks for on a device: ``device`` and ``graph`` mean the accelerator's own where there is one."""
    if kind == "wall" or not device.startswith("cuda"):
        return WallClock()
    return CudaGraphClock(device) if kind == "graph" else CudaClock(device)
