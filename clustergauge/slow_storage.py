"""Which nodes are slow in a storage case over many: their ranks wait for nobody, so each one's own seconds are its own.  Pure.

Where nodes share a target this judges all of them, in few samples of many bytes.  A node takes in a sample what the median of its
ranks takes, and is slow if that is clearly longer than what nodes usually take, every time.  That is a suspicion: the file system
may have put its files on a slow part of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clustergauge import readings
from clustergauge.model import Record
from clustergauge.units import format_time

SLOW_RATIO = 1.5
"""Times what is usual."""
LEAST_SAMPLES = 3
LEAST_NODES = 4
"""Of fewer the median says nothing of what is usual."""


class Slow(NamedTuple):
    """A node that is slow in every sample: its seconds and what nodes usually take, at the median."""

    host: str
    own_s: float
    usual_s: float
    samples: int

    @property
    def speed(self) -> float:
        """Over what is usual."""
        return self.usual_s / self.own_s

    def __str__(self) -> str:
        every = f"in every one of {self.samples} samples"
        return f"its ranks take {format_time(self.own_s)} where nodes usually take {format_time(self.usual_s)}, {every}"


def rank_seconds(record: Record) -> np.ndarray[tuple[int, int], np.dtype[np.float64]] | None:
    """Each rank's own seconds, a line for each sample that counts; ``None`` where the record has none, or nonsense."""
    values, ranks = readings.series(record, "rank_seconds"), record.ranks
    if ranks < 2 or not values or len(values) % ranks or min(values) <= 0:
        return None
    return np.asarray(values).reshape(len(values) // ranks, ranks)


def nodes(record: Record) -> Iterator[Slow]:
    """The slow nodes of a case."""
    times = rank_seconds(record)
    ranks_of: dict[str, list[int]] = {}
    for place in record.placement:
        ranks_of.setdefault(place.host, []).append(place.rank)
    placed = sorted(rank for ranks in ranks_of.values() for rank in ranks)
    if times is None or len(times) < LEAST_SAMPLES or len(ranks_of) < LEAST_NODES or placed != list(range(record.ranks)):
        return
    own = np.stack([np.median(times[:, ranks], axis=1) for ranks in ranks_of.values()], axis=1)
    usual = np.median(own, axis=1)
    for number, host in enumerate(ranks_of):
        if (own[:, number] > SLOW_RATIO * usual).all():
            yield Slow(host, float(np.median(own[:, number])), float(np.median(usual)), len(times))
