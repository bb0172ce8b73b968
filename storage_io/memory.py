"""How much memory there is for buffers."""

from __future__ import annotations

from pathlib import Path


def available() -> int | None:
    """Bytes that a case may take without pushing others out: what is available, and at most half of a control group's limit."""
    limit = control_group_limit()
    known = [count for count in (meminfo("MemAvailable"), limit and limit // 2) if count is not None]
    return min(known, default=None)


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


def control_group_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit of this process's control groups, in bytes, versions 1 and 2; ``None`` without one."""
    limits: list[int] = []
    for line in _read(own).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "", "")[:3]
        if controllers in ("", "memory"):
            folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
            inside = Path(path.lstrip("/"))
            texts = [_read(folder / level / name).strip() for level in (inside, *inside.parents)]
            limits += [int(text) for text in texts if text.isdecimal() and int(text) < 1 << 62]  # version 1 says "none" so
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
