"""Taking turns: of runs that name the same folder one measures at a time, a stretch of samples each.

What disturbs a machine for longer than a stretch meets both alike, and cancels where they are compared.  Two locks, held by the
kernel: whoever waits for its turn holds the door, so that whoever leaves is behind it (if a turn lasts longer than it takes to
wake); what dies lets go of both.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

SERIES = "turn"
"""Of a measurement: in which turn each sample was taken, from 0."""
VARIABLE = "CLUSTERGAUGE_TURNS"
"""Names the folder to the workers of a run."""


class Turnstile:
    """One process's way through; of several ranks the first goes for all.  Raises ``OSError`` where the folder is none."""

    def __init__(self, folder: Path) -> None:
        self._door, self._inside = (os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in ("door", "inside"))

    def take(self) -> None:
        """Wait for the turn."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._inside, fcntl.LOCK_EX)
        fcntl.flock(self._door, fcntl.LOCK_UN)

    def give(self) -> None:
        """End the turn."""
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


def asked_for() -> Turnstile | None:
    """What this process's environment asks for."""
    folder = os.environ.get(VARIABLE)
    return Turnstile(Path(folder)) if folder else None
