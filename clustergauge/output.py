"""What a started command prints: read to the end, and the end of it kept."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from dataclasses import dataclass, field

TAIL_BYTES = 64 << 10
"""How much of what workers print is kept."""


@dataclass
class Command:
    """One started command of a pool, with the end of what it printed."""

    process: subprocess.Popen[bytes]
    tail: deque[bytes] = field(default_factory=deque[bytes])
    kept: int = 0

    def drain(self) -> None:
        """Read until the end, keeping the last `TAIL_BYTES`: a flood costs no memory and blocks nobody."""
        assert self.process.stdout
        while chunk := os.read(self.process.stdout.fileno(), 1 << 16):
            self.tail.append(chunk)
            self.kept += len(chunk)
            while self.kept - len(self.tail[0]) > TAIL_BYTES:
                self.kept -= len(self.tail.popleft())

    def words(self) -> str:
        """The last words as text."""
        return b"".join(self.tail).decode("utf-8", "replace")[-TAIL_BYTES:]


def quote(tail: str) -> str:
    """The last line somebody printed, as the end of a sentence."""
    lines = [line.strip() for line in tail.splitlines() if line.strip(" =-\t")]
    return f" (last words: {lines[-1][:200]})" if lines else ""
