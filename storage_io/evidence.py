"""Proof that data came from and went to a device: what the kernel counted for this process, beside what was asked for."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path


def process_io(pids: Sequence[int] = ()) -> tuple[int, int] | None:
    """``read_bytes`` and ``write_bytes`` of this process (``/proc/self/io``, proc(5)) and of ``pids``; ``None`` where unreadable.

    All threads are in them, and the children that were waited for.
    Reads served from the page cache are not.  Buffered writes are, from the moment a page is dirtied: only the sync that
    ends a run takes them to the device.
    """
    read = written = 0
    try:
        for process in ("self", *pids):
            lines = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
            fields = dict(line.split(": ") for line in lines)
            read, written = read + int(fields["read_bytes"]), written + int(fields["write_bytes"])
    except (OSError, ValueError, KeyError):
        return None
    return read, written


def cached_bytes(descriptor: int, size: int) -> int | None:
    """Bytes of an open file that lie in the page cache (mincore(2), in whole pages); ``None`` where the kernel won't say."""
    import numpy as np

    try:
        view = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    with view:
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        seen = np.frombuffer(view, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(seen.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data))
        del seen  # the mapping can't be closed while it is looked at
    return None if failed else int((pages & 1).sum()) * mmap.PAGESIZE


class DeviceBytes:
    """Adds up the bytes of runs into ``totals``: ``read``, ``written``, ``asked_read``, ``asked_written``.

    ``totals`` stays empty where the kernel's counters are unreadable.  ``pids``: helpers that do the work beside this process.
    """

    def __init__(self, totals: dict[str, int], pids: Sequence[int] = ()) -> None:
        self._totals = totals
        self._pids = pids
        self._before: tuple[int, int] | None = None

    def mark(self) -> None:
        """A run begins."""
        self._before = process_io(self._pids)

    def settle(self, asked_read: int, asked_written: int) -> None:
        """The run since `mark` has ended and had asked for these bytes.  Without a mark nothing is added."""
        before, now = self._before, process_io(self._pids)
        self._before = None
        if before and now:
            moved = {"read": now[0] - before[0], "written": now[1] - before[1]}
            for name, count in (moved | {"asked_read": asked_read, "asked_written": asked_written}).items():
                self._totals[name] = self._totals.get(name, 0) + count
