"""How much memory new work can have before the kernel, or a control group, ends somebody for it, or a limit refuses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clustergauge import sysfs
from clustergauge.sysfs import control_groups

_LIMITS = {
    "memory.max": "memory.current",
    "memory.high": "memory.current",  # beyond it nothing dies, but all is slowed down
    "memory.limit_in_bytes": "memory.usage_in_bytes",
}
"""Files of limits, and of what is used of them: versions 2 and 1 (Linux: admin-guide/cgroup-v2, cgroup-v1/memory)."""
_UNLIMITED = 1 << 60
"""Version 1 writes LONG_MAX rounded to pages where there is no limit."""


def available_bytes(root: Path = sysfs.ROOT) -> int | None:
    """Bytes that new work on this machine can have: the least of what the kernel (``MemAvailable``), each control group and this
    process's own limit (``ulimit -v``) leave.

    ``root``: of the file system, for made-up trees.  ``None`` where nothing is told; 0 if nothing is left.
    """
    known = [*_left_by_groups(root), *_left_by_limit(root)]
    machine = sysfs.memory_available(root)
    return min(known if machine is None else [machine, *known], default=None)


def _left_by_groups(root: Path) -> Iterator[int]:
    """What each limited control group of this process, or above it, leaves."""
    for group in control_groups(root, "memory"):
        for limits, usage in _LIMITS.items():
            limit = sysfs.number(group / limits)
            if limit is not None and 0 <= limit < _UNLIMITED:
                used = sysfs.number(group / usage) or 0  # unreadable: no more than the limit is all that is known
                yield max(0, limit - max(0, used - _reclaimable(group)))


def _left_by_limit(root: Path) -> Iterator[int]:
    """What the limit of this process's address space leaves, where there is one."""
    limit = re.search(r"^Max address space +([0-9]{1,20}) ", sysfs.text(root / "proc/self/limits") or "", re.MULTILINE)
    if limit:
        mapped = sysfs.kib(sysfs.pairs(sysfs.text(root / "proc/self/status")).get("VmSize", ""))
        yield max(0, int(limit[1]) - (mapped or 0))


def _reclaimable(group: Path) -> int:
    """Bytes of files that a group's usage counts and that give way to work, as the kernel counts them in ``MemAvailable``.

    Version 1 counts those of the groups below, as its usage does, in ``total_…``.
    """
    stat = sysfs.pairs(sysfs.text(group / "memory.stat"), " ")
    values = [stat.get(f"total_{name}", stat.get(name, "")) for name in ("active_file", "inactive_file")]
    return sum(int(value) for value in values if value.isdecimal())
