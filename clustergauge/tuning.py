"""Which of a few kernels that compute the same is to run: the fastest here, found while preparing and never a sample.

What was found is pinned for the run (`pins`): later launches, other devices of the model and a resumed run use the same, so that
they are compared on the same code.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from clustergauge.clocks import Clock, clock_for
from clustergauge.pins import PREFIX
from clustergauge.probe import Context

Calls = Sequence[Callable[[], object]]
T = TypeVar("T")

TUNE_S = 10.0
"""So long after the first candidate is compiled, as it must be in any case, nothing more is tried; what was measured until then
decides."""
ROUNDS = 5
BURST_S = 2e-3
"""Seconds of a burst, about: so long that launching costs little."""
BURST_MOST = 100
"""Calls of a burst at most: a launch with descriptors takes the host 0.1 ms, and all are to be queued before the first begins."""
AGAIN = 8
"""A burst that may hold the cost of launching is repeated so often at most; the clock waits twice as long each time."""
ALIKE = 0.01
"""Of candidates that differ by no more than this the first is chosen, so that the choice depends less on chance."""


class Unfit(Exception):
    """No candidate fits the device.  ``refusals``: what each raised, in their order."""

    def __init__(self, refusals: Sequence[Exception]) -> None:
        super().__init__(str(refusals[-1]))
        self.refusals = refusals


def choose(
    ctx: Context,
    what: str,
    candidates: Mapping[str, T],
    start: Callable[[T], Calls],
    unfit: tuple[type[Exception], ...] = (),
    clock: Callable[[], Clock] | None = None,
) -> T:
    """One of the candidates, which are there by name, the one to be had without measuring first.

    ``what``: kernel, device model, dtype and shape: launches of which this is the same get the same candidate.  ``start``: the
    callables of a candidate, one for each buffer set, ready to run.  ``unfit``: raised by the first run of a candidate that does
    not fit the device: it is passed over; `Unfit` where none is left.  ``clock``: the device's own unless given.

    The pin of the run decides where it names a candidate; another is not looked at.  Where nothing is to be tuned
    (`Context.tunes`) the first is taken, and not pinned.  Settings: ``tuned`` (``measured``, ``pinned``, ``first``), how many
    ``candidates``, ``tuning_s.NAME`` with the seconds of a call, and the pin; none of them where there is one candidate.
    """
    names = list(candidates)
    if len(names) == 1:
        return candidates[names[0]]
    ctx.set("candidates", len(names))
    pinned = ctx.pins.get(what, "")
    if pinned in candidates:
        ctx.set("tuned", "pinned")
        ctx.set(PREFIX + what, pinned)
        return candidates[pinned]
    if not ctx.tunes:
        ctx.set("tuned", "first")
        return candidates[names[0]]
    watch = clock() if clock else clock_for("device", ctx.device)
    with watch.owned():
        times = measure({name: lambda name=name: start(candidates[name]) for name in names}, watch, unfit)
    chosen = fastest(times)
    for name, seconds in times.items():
        if seconds:
            ctx.set(f"tuning_s.{name}", statistics.median(seconds))
    ctx.set("tuned", "measured" if times[chosen] else "first")
    ctx.set(PREFIX + what, chosen)
    return candidates[chosen]


def fastest(times: Mapping[str, Sequence[float]]) -> str:
    """The first candidate whose median is the least, up to `ALIKE`; the first of all where nothing was measured."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items() if seconds}
    enough = min(medians.values(), default=0.0) * (1 + ALIKE)
    return next((name for name, median in medians.items() if median <= enough), next(iter(times)))


def measure(
    starts: Mapping[str, Callable[[], Calls]], clock: Clock, unfit: tuple[type[Exception], ...] = ()
) -> dict[str, list[float]]:
    """Seconds of a call of every candidate that fits and was reached in time, in bursts of as many calls each, in turn.

    Every burst goes on with the buffer set after that where the one before ended, so that none finds its own in a cache more than
    another.  The first calls compile and are not looked at.  Raises `Unfit` where none fits.
    """
    until = math.inf
    ready: dict[str, Calls] = {}
    length = 0
    refusals: list[Exception] = []
    for name, start in starts.items():
        if clock.now() >= until:
            break
        try:
            calls = start()
            calls[0]()
            clock.settle()
        except unfit as error:
            refusals.append(error)
            continue
        if not ready:
            until = clock.now() + TUNE_S
            length = max(1, min(clock.max_calls, BURST_MOST, round(BURST_S / max(clock.time(calls[:1]), clock.tick_s))))
        ready[name] = calls
    if not ready:
        raise Unfit(refusals)
    times: dict[str, list[float]] = {name: [] for name in ready}
    numbers = itertools.count()
    for _ in range(ROUNDS if len(ready) > 1 else 0):
        if clock.now() >= until and all(times.values()):
            break
        for name, calls in ready.items():
            times[name].append(_burst(clock, calls, numbers, length) / length)
    return times


def _burst(clock: Clock, calls: Calls, numbers: Iterator[int], length: int) -> float:
    """Seconds of so many calls, of the next ``numbers``; without the cost of launching, if `AGAIN` tries can have it so."""
    took = 0.0
    for _ in range(AGAIN):
        exposed = clock.exposed
        took = clock.time([calls[number % len(calls)] for number in itertools.islice(numbers, length)])
        if clock.exposed == exposed:
            break
    return took
