"""The latencies of a case for its record: all of them, or every 2nd, 4th … where they are many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clustergauge.probe import Context

if TYPE_CHECKING:
    from storage_io.pattern import Numbers

MOST = 16384
"""Latencies that a record holds: 16 of them lie beyond the 99.9th percentile."""
_DIGITS = 8
"""Decimals kept of a second: 10 ns, the cost of reading the clock."""


class Latencies:
    """Keeps series ``latency`` (seconds, in the order of submission) and settings ``latencies`` (how many there were) and
    ``latency_every`` (each how many-th is kept, a power of two)."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._count = 0
        self._every = 1
        ctx.add("latency", "s")
        self._kept = ctx.series["latency"][1]

    def add(self, nanoseconds: Numbers) -> None:
        """The latencies of one sample."""
        first = -self._count % self._every
        self._count += len(nanoseconds)
        self._kept += [round(value * 1e-9, _DIGITS) for value in nanoseconds[first :: self._every].tolist()]
        while len(self._kept) > MOST:
            del self._kept[1::2]
            self._every *= 2
        self._ctx.set("latencies", self._count)
        self._ctx.set("latency_every", self._every)
