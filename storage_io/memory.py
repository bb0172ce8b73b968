"""How much memory there is for buffers, and how it lies."""

from __future__ import annotations

from pathlib import Path

from clustergauge.memory import available_bytes as available
from clustergauge.probe import Skip

__all__ = ["SPARE", "available", "huge_pages", "meminfo", "require"]
SPARE = 256 << 20
"""Bytes of memory that must be available beside the buffers."""


def require(need: int, what: str) -> None:
    """Raise `Skip` unless so many bytes and `SPARE` are available.  ``what``: what needs them (``a buffer of 1GiB needs``)."""
    free = available()
    if free is not None and free < need + SPARE:
        raise Skip(f"{what} more memory than the {free >> 20} MiB available ({SPARE >> 20} MiB must stay free)")


def meminfo(name: str, text: str | None = None) -> int | None:
    """Bytes of a field of ``/proc/meminfo`` (or of a ``text`` like it); ``None`` where it isn't told."""
    for line in (_read(Path("/proc/meminfo")) if text is None else text).splitlines():
        field, _, value = line.partition(":")
        words = value.split()
        if field == name and len(words) == 2 and words[0].isdecimal() and words[1] == "kB":
            return int(words[0]) << 10
    return None


def huge_pages() -> int | None:
    """Bytes of this process that lie on transparent huge pages; ``None`` where it isn't told."""
    return meminfo("AnonHugePages", _read(Path("/proc/self/smaps_rollup")))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
