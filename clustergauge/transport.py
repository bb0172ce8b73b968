"""What the communication libraries of a rank chose: NCCL's debug file."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from clustergauge import nccl_log
from clustergauge.model import Scalar

MOST_READ = 8 << 20
"""Bytes of the debug file that are looked at after a case; what lies between its head and its tail is left out."""
OPERATIONS = {
    "all_reduce": "AllReduce",
    "all_gather": "AllGather",
    "reduce_scatter": "ReduceScatter",
    "broadcast": "Broadcast",
    "reduce": "Reduce",
}
"""Our names and NCCL's; the others are made of sends and receives, which have no algorithm."""


class NcclFile:
    """NCCL's debug file of this process, read as it grows."""

    def __init__(self, path: Path | None = None) -> None:
        """``path``: by default as ``NCCL_DEBUG_FILE`` says, with ``%p`` for the process id and ``%h`` for the short host name."""
        named = os.environ.get("NCCL_DEBUG_FILE", "")
        named = named.replace("%p", str(os.getpid())).replace("%h", os.uname().nodename.partition(".")[0])
        self.path = path or (Path(named) if named else None)
        self._at = 0
        self._log = nccl_log.Log()

    def read(self) -> nccl_log.Log:
        """What was written up to now; choices only of what is new.  Never raises: an unreadable file holds nothing."""
        self._log.choices.clear()
        try:
            if self.path is None:
                return self._log
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                for start, end in self._parts(size):
                    file.seek(start)
                    self._log.add(file.read(end - start).decode("utf-8", "replace"))
                self._at = size
        except OSError:
            pass
        return self._log

    def _parts(self, size: int) -> list[tuple[int, int]]:
        if size - self._at <= MOST_READ:
            return [(min(self._at, size), size)]
        half = MOST_READ // 2
        return [(self._at, self._at + half), (size - half, size)]


def settings(log: nccl_log.Log, transports: Counter[str], collective: str) -> dict[str, Scalar]:
    """A log as a record's settings.  ``transports``: of all ranks."""
    algorithm, protocol = log.choice(OPERATIONS.get(collective, ""))
    found = {
        "nccl_version": log.version,
        "nccl_network": log.network,
        "nccl_plugin": log.plugin,
        "nccl_transports": nccl_log.kinds(transports),
        "nccl_algorithm": algorithm,
        "nccl_protocol": protocol,
    }
    return {name: value for name, value in found.items() if value}
