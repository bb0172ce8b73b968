"""Taking turns: of runs that name the same folder one measures at a time, a stretch of samples each.

What disturbs a machine for longer than a stretch meets both alike, and cancels where they are compared.  Two locks, held by the
kernel: whoever waits for its turn holds the door, so that whoever leaves is behind it (if a turn lasts longer than it takes to
wake); what dies lets go of both.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERIES = "turn"
"""Of a measurement: when the turn began in which each sample was taken, in seconds of the machine's monotonic clock."""
WAITING = "wait for its turn"
"""The phase of a worker meanwhile."""
MOST_TIMES = 10
"""How many times its own limit a case waits at most: who holds the turn may be past ending."""
SETTLE_S = 0.01
"""Before a turn ends: threads of a library go on turning for some milliseconds when their work is done (libgomp does)."""
VARIABLE = "CLUSTERGAUGE_TURNS"
"""Names the folder to the workers of a run."""


class Turnstile:
    """One process's way through; of several ranks the first goes for all.  Raises ``OSError`` where the folder is none."""

    def __init__(self, folder: Path) -> None:
        self._door, self._inside = (os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in ("door", "inside"))

    def take(self) -> None:
        """Wait for the turn."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._inside, fcntl.LOCK_EX)
        finally:  # told to leave meanwhile, a process cleans up first: the other needs not wait for that
            fcntl.flock(self._door, fcntl.LOCK_UN)

    def give(self) -> None:
        """End the turn, once our threads are at rest."""
        time.sleep(SETTLE_S)
        fcntl.flock(self._inside, fcntl.LOCK_UN)

    def pass_on(self) -> None:
        """End the turn and wait for the next, behind whoever waits already."""
        self.give()
        self.take()

    @contextmanager
    def turn(self) -> Generator[None]:
        """A turn, ended in any case."""
        self.take()
        try:
            yield
        finally:
            self.give()


@dataclass
class Away:
    """What a case waits for its turn, as its phase tells: it is the other run's time, and none of the limit of the case.

    ``left_s``: how much of it may still be.
    """

    left_s: float
    _since: float | None = None

    def spent(self, phase: str, now: float) -> float:
        """Seconds waited since this was asked last, by a worker that is in ``phase`` now."""
        began, self._since = self._since, now if phase == WAITING else None
        spent = 0.0 if began is None else min(now - began, self.left_s)
        self.left_s -= spent
        return spent


def asked_for() -> Turnstile | None:
    """What this process's environment asks for."""
    folder = os.environ.get(VARIABLE)
    return Turnstile(Path(folder)) if folder else None
