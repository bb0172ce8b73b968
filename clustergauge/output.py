"""What a started command prints: read to the end, and the end of it kept."""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from dataclasses import dataclass, field

TAIL_BYTES = 64 << 10
"""How much of what workers print is kept."""
_SAYS_NOTHING = re.compile(
    r"""
    [\s=*-]*$ | =\ {3} | YOUR\ APPLICATION\ TERMINATED\ WITH | This\ typically\ refers\ to\ a\ problem
    | Please\ see\ the\ FAQ\ page | Primary\ job\ +terminated | a\ non-zero\ exit\ code.\ Per\ user-direction
    | \S+\ detected\ that\ one\ or\ more\ processes\ exited | the\ job\ to\ be\ terminated | (Process\ name|Exit\ code):
    | \[\S+\]\ \*{3}\ +and\ (potentially\ your\ MPI\ job|MPI\ will\ try)
    | srun:\ (Job\ step\ aborted|Terminating) | slurmstepd:\ .*CANCELLED
    """,
    re.VERBOSE,
)
"""Lines that launchers frame the end of a job with, whatever its cause: MPICH's Hydra, Open MPI's mpirun, Slurm's srun."""


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
    """The last line somebody printed that tells something, as the end of a sentence; empty where none does."""
    lines = [line.strip() for line in tail.splitlines()]
    telling = [line for line in lines if not _SAYS_NOTHING.match(line)]
    return f" (last words: {telling[-1][:200]})" if telling else ""


def exit_string(tail: str) -> str:
    """How a process ended in the words of MPICH's Hydra: ``Bus error (signal 7)``; empty where it says nothing."""
    if found := re.search(r"EXIT STRING: ([^\n]{1,80}? \(signal \d+\))", tail):
        return found[1]
    found = re.search(r"KILLED BY SIGNAL: (\d{1,3}) \(([^()\n]{1,80})\)", tail)  # from version 4 on
    return f"{found[2]} (signal {found[1]})" if found else ""
