"""The only room that reads a clock for results.

A clock times a sequence of calls as one sample: nothing but the calls stands between its two readings.  Sequences are made
beforehand, so that rotating through buffer sets costs the timed region nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

Calls = Sequence[Callable[[], object]]


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

    def now(self) -> float:
        """Seconds since some moment, monotonic: for budgets and for the start of samples."""
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

    def __init__(self) -> None:
        self.tick_s = _wall_tick()

    def now(self) -> float:
        """Seconds of ``time.perf_counter``."""
        return time.perf_counter()

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
        return (end - start) * 1e-9

    def owned(self) -> AbstractContextManager[Any]:
        """Nothing to own."""
        return nullcontext()


class CudaClock:
    """CUDA (or HIP) events on one owned stream, around launches queued behind a bounded spin kernel.

    The spin keeps the device busy while the host queues the launches, so that the events enclose device work only.  Their
    resolution is about 0.5 µs (CUDA runtime documentation, ``cudaEventElapsedTime``).
    """

    name: Literal["cuda_event"] = "cuda_event"
    tick_s = 0.5e-6
    max_calls = 512  # below the depth of the launch queue (about 1000), beyond which queueing itself would block

    _SPIN_S = 50e-6
    _SPIN_PER_CALL_S = 10e-6

    def __init__(self, device: str) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device(device)
        torch.cuda.set_device(self._device)
        self.stream: Any = torch.cuda.Stream(self._device)
        self._start: Any = torch.cuda.Event(enable_timing=True)
        self._end: Any = torch.cuda.Event(enable_timing=True)
        properties: Any = self._torch.cuda.get_device_properties(self._device)
        khz = int(getattr(properties, "clock_rate", 1_500_000))
        self._cycles_per_s = khz * 1000

    def now(self) -> float:
        """Seconds of ``time.perf_counter``."""
        return time.perf_counter()

    def time(self, calls: Calls) -> float:
        """Seconds between two events recorded just before the first and just after the last call."""
        spin = int((self._SPIN_S + self._SPIN_PER_CALL_S * len(calls)) * self._cycles_per_s)
        self._torch.cuda._sleep(spin)
        self._start.record(self.stream)
        for call in calls:
            call()
        self._end.record(self.stream)
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3

    def owned(self) -> AbstractContextManager[Any]:
        """The stream, once what was launched before is done; everything the probe launches inside goes there."""
        self._torch.cuda.synchronize(self._device)
        return self._torch.cuda.stream(self.stream)


def _wall_tick() -> float:
    """The smallest step that two successive readings show: the larger of the clock's resolution and the cost of reading it."""
    read = time.perf_counter_ns
    steps = sorted(second - first for first, second in ((read(), read()) for _ in range(200)))
    return max(time.get_clock_info("perf_counter").resolution, steps[len(steps) // 2] * 1e-9)


def clock_for(kind: Literal["wall", "device"], device: str) -> Clock:
    """The clock a work asks for on a device: ``device`` means the accelerator's own where there is one."""
    return CudaClock(device) if kind == "device" and device.startswith("cuda") else WallClock()
