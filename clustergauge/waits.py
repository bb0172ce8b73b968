"""How long this process wanted a processor and had to wait for one: others run on it, or a control group's quota is spent.

The kernel counts both for every thread (Documentation/scheduler/sched-stats.rst): nanoseconds on a processor, and nanoseconds
runnable without one.  A thread that sleeps wants none.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clustergauge import sysfs

SERIES = "waited"
"""Name of the series in a measurement: by rank, the share of the time it wanted a processor in which it waited for one."""
LEAST = 0.2
"""A rank that waited less is not slow for that."""
ALONE = 0.1
"""One process that waited less is believed.  A wake-up on an idle processor is a wait, too: of what sleeps between transfers
(storage, ranks that meet) `LEAST` is asked."""
OTHERS = 0.5
"""Of the share that the others got (their median) what a rank got must be less: where all wait, nobody stands out."""


class Waits:
    """Counts from when it is made.  ``root``: see `sysfs`."""

    def __init__(self, root: Path = sysfs.ROOT) -> None:
        self._root = root
        self._before = self._read()

    def share(self) -> float | None:
        """Of the time that the threads wanted a processor since then, the part in which they waited; ``None`` if unknown."""
        ran = waited = 0
        for thread, (ran_now, waited_now) in self._read().items():
            ran_then, waited_then = self._before.get(thread, (0, 0))
            ran += max(0, ran_now - ran_then)
            waited += max(0, waited_now - waited_then)
        return waited / (ran + waited) if ran + waited else None

    def _read(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for thread in sysfs.entries(self._root / "proc/self/task"):
            if numbers := re.fullmatch(r"([0-9]{1,20}) ([0-9]{1,20}) [0-9]{1,20}", sysfs.text(thread / "schedstat") or ""):
                found[thread.name] = int(numbers[1]), int(numbers[2])
        return found


class Starved(NamedTuple):
    """A rank that waited for its processor far longer than the others for theirs.  ``share``, ``others``: see `SERIES`."""

    rank: int
    share: float
    others: float

    def __str__(self) -> str:
        share, others = round(100 * self.share), round(100 * self.others)
        return f"waited for a processor {share} % of the time it wanted one, the others {others} %"


def crowded(shares: Sequence[float], sleeps: bool) -> float | None:
    """The share that the ranks waited (their median), where it is so large that the times are those of a shared machine.

    ``sleeps``: whether the work does, between transfers.
    """
    if not shares:
        return None
    middle = statistics.median(shares)
    return middle if middle >= (LEAST if sleeps or len(shares) > 1 else ALONE) else None


def starved(shares: Sequence[float]) -> list[Starved]:
    """The ranks that got far less of the processors than the others."""
    found: list[Starved] = []
    for rank, share in enumerate(shares):
        others = [*shares[:rank], *shares[rank + 1 :]]
        if not others or share < LEAST:
            continue
        middle = statistics.median(others)
        if 1 - share < OTHERS * (1 - middle):
            found.append(Starved(rank, share, middle))
    return found
