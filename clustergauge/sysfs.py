"""Reading what the kernel says of this machine in small files.  What cannot be read is ``None``, never zero.

Every reader takes the root of the file system, so that a made-up tree can stand in for another machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_MOST = 1 << 20
"""No file read here is longer, except ``/proc/interrupts`` of large machines, which has its own reader."""
_UNLIMITED = 1 << 60
"""A cgroup v1 memory limit beyond this means no limit (the kernel writes LONG_MAX rounded to pages)."""


def text(path: Path) -> str | None:
    """The content without surrounding white space; ``None`` if unreadable (a missing device answers with an I/O error)."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST).decode("utf-8", "replace").strip(" \t\r\n\0")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The content as a decimal integer; ``None`` if it is none."""
    content = text(path)
    return int(content) if content is not None and re.fullmatch(r"-?[0-9]{1,20}", content) else None


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """The entries of a folder in natural order (``cpu2`` before ``cpu10``); none if there is no such folder."""
    with contextlib.suppress(OSError):
        return sorted(folder.glob(pattern), key=lambda p: [int(w) if w.isdigit() else w for w in re.split(r"([0-9]+)", p.name)])
    return []


def pairs(content: str | None, separator: str = ":") -> dict[str, str]:
    """``name: value`` lines as a dictionary; the first of a name counts."""
    found: dict[str, str] = {}
    for line in (content or "").splitlines():
        name, between, value = line.partition(separator)
        if between:
            found.setdefault(name.strip(), value.strip())
    return found


def link_name(path: Path) -> str:
    """The last part of what a symbolic link points to; empty if it is none."""
    try:
        return path.readlink().name
    except OSError:
        return ""


# --------------------------------------------------------------------------------------------------------------------------
# control groups


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control groups that may limit it, for version 2 and for ``controller`` of version 1, leaf first."""
    mount = root / "sys/fs/cgroup"
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        tops = [mount, mount / "unified"] if not controllers else [mount / controller]
        if controllers and controller not in controllers.split(","):
            continue
        parts = [p for p in path.split("/") if p not in ("", ".", "..")]
        for top in tops:
            for length in range(len(parts), -1, -1):  # a container may see only the top of its own tree
                yield top.joinpath(*parts[:length])


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that control groups allow this process; ``None`` if they set no limit."""
    limits: list[float] = []
    for group in control_groups(root, "cpu"):
        quota, _, period = (text(group / "cpu.max") or "").partition(" ")
        if not quota:
            quota, period = text(group / "cpu.cfs_quota_us") or "", text(group / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that control groups allow this process; ``None`` if they set no limit."""
    limits: list[int] = []
    for group in control_groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = number(group / name)
            if limit is not None and 0 < limit < _UNLIMITED:
                limits.append(limit)
    return min(limits, default=None)


def memory_total(root: Path = ROOT) -> int | None:
    """Bytes of memory the kernel manages."""
    return kib(pairs(text(root / "proc/meminfo")).get("MemTotal", ""))


def memory_available(root: Path = ROOT) -> int | None:
    """Bytes that new work can have without swapping, as the kernel estimates."""
    return kib(pairs(text(root / "proc/meminfo")).get("MemAvailable", ""))


def kib(value: str) -> int | None:
    """Bytes of ``4096 kB``."""
    match = re.fullmatch(r"([0-9]{1,18}) kB", value)
    return int(match[1]) << 10 if match else None


def chosen(content: str | None) -> str | None:
    """The bracketed choice of ``always [madvise] never``."""
    match = re.search(r"\[([^\]]+)\]", content or "")
    return match[1] if match else None
