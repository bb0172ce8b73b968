"""The processors this process may use: model, cores, caches, vector unit, memory nodes.  Read from /proc and /sys."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from clustergauge import sysfs
from clustergauge.model import Cpu, Scalar
from clustergauge.placement import cores, format_cpus, read_list

_VECTORS = (
    ("amx", "amx_tile"),
    ("avx512", "avx512f"),
    ("avx2", "avx2"),
    ("sse2", "sse2"),
    ("sve", "sve"),
    ("neon", "asimd"),
    ("neon", "neon"),
)
"""Names of `Cpu.vector` with the flag of /proc/cpuinfo that tells of it, widest first."""
_ARM_PARTS = {
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd84"): "Arm Neoverse-V3",
    ("0x41", "0xd8e"): "Arm Neoverse-N3",
    ("0x48", "0xd01"): "HiSilicon Kunpeng-920",
    ("0x46", "0x001"): "Fujitsu A64FX",
}
"""Implementer and part number of the MIDR register, as Linux's ``cputype.h`` names them."""


def allowed(root: Path = sysfs.ROOT, affinity: AbstractSet[int] | None = None) -> set[int]:
    """Processors this process may run on and that are online.  ``affinity``: instead of asking the kernel."""
    mine = set(os.sched_getaffinity(0) if affinity is None else affinity)
    return (mine & read_list(root / "sys/devices/system/cpu/online")) or mine


def describe(cpus: AbstractSet[int], root: Path = sysfs.ROOT) -> Cpu:
    """What the allowed processors are."""
    folder = root / "sys/devices/system/cpu"
    blocks = _cpuinfo(root)
    own = [b for number, b in blocks.items() if number in cpus] or list(blocks.values())
    packages = {sysfs.number(folder / f"cpu{cpu}/topology/physical_package_id") for cpu in cpus}
    clocks = [sysfs.number(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in cpus]
    known_clocks = [clock for clock in clocks if clock]
    return Cpu(
        model=_model(own),
        sockets=None if packages & {None, -1} else len(packages),
        cores=len(cores(cpus, root / "sys")),
        threads=len(cpus),
        allowed=format_cpus(cpus),
        llc_bytes=_last_level(cpus, root),
        clock_max_mhz=max(known_clocks) / 1000 if known_clocks else None,
        vector=_vector(own),
        numa=_numa(cpus, root),
    )


def flags(root: Path = sysfs.ROOT) -> set[str]:
    """Flags that all processors have."""
    return _flags(list(_cpuinfo(root).values()))


class Cache(NamedTuple):
    """A cache that holds data.  ``shared``: the processors that use it."""

    level: int
    bytes: int
    shared: frozenset[int]


def caches(cpu: int, root: Path = sysfs.ROOT) -> list[Cache]:
    """The data caches of a processor, the nearest first; those that do not tell level and size are left out."""
    found: list[Cache] = []
    for index in sysfs.entries(root / f"sys/devices/system/cpu/cpu{cpu}/cache", "index*"):
        level, size = sysfs.number(index / "level"), _size(sysfs.text(index / "size"))
        if level and size and sysfs.text(index / "type") != "Instruction":
            found.append(Cache(level, size, frozenset(read_list(index / "shared_cpu_list") or {cpu})))
    return sorted(found, key=lambda cache: cache.level)


def cache_level(size: int, cpus: Sequence[int], root: Path = sysfs.ROOT) -> str:
    """The nearest cache with room for ``size`` bytes of each of the processors: ``L1`` …, or ``memory``; empty where unknown.

    Processors that share a cache share its room.  Where they have different caches it is the farthest that one of them needs.
    """
    farthest = 0
    for cpu in cpus:
        own = caches(cpu, root)
        if not own:
            return ""
        holding = (c.level for c in own if c.bytes >= size * max(1, len(c.shared.intersection(cpus))))
        level = next(holding, None)
        if level is None:
            return "memory"
        farthest = max(farthest, level)
    return f"L{farthest}" if farthest else ""


def settings(cpus: AbstractSet[int], root: Path = sysfs.ROOT) -> dict[str, Scalar]:
    """What changes a processor's results without changing the part; unknown ones are absent."""
    folder = root / "sys/devices/system/cpu"
    found: dict[str, Scalar] = {}
    governors = {g for cpu in cpus if (g := sysfs.text(folder / f"cpu{cpu}/cpufreq/scaling_governor"))}
    if governors:
        found["cpu_governor"] = ",".join(sorted(governors))
    if driver := sysfs.text(folder / f"cpu{min(cpus)}/cpufreq/scaling_driver"):
        found["cpu_frequency_driver"] = driver
    if smt := sysfs.text(folder / "smt/control"):
        found["smt"] = smt
    no_turbo, boost = sysfs.number(folder / "intel_pstate/no_turbo"), sysfs.number(folder / "cpufreq/boost")
    if no_turbo is not None:
        found["cpu_turbo"] = no_turbo == 0
    elif boost is not None:
        found["cpu_turbo"] = boost == 1
    if offline := sysfs.text(folder / "offline"):
        found["cpus_offline"] = offline
    if online := read_list(folder / "online") - cpus:
        found["cpus_not_allowed"] = format_cpus(online)
    if isolated := sysfs.text(folder / "isolated"):
        found["cpus_isolated"] = isolated
    if (quota := sysfs.cpu_quota(root)) is not None:
        found["cpu_quota"] = round(quota, 3)
    return found


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    """The blocks of /proc/cpuinfo by number of the processor."""
    blocks: dict[int, dict[str, str]] = {}
    for block in (sysfs.text(root / "proc/cpuinfo") or "").split("\n\n"):
        fields = sysfs.pairs(block)
        if fields.get("processor", "").isdigit():
            blocks[int(fields["processor"])] = fields
    return blocks


def _model(blocks: list[dict[str, str]]) -> str:
    """Name of the part; kinds of cores that have different names are joined by ``+``."""
    names: dict[str, None] = {}
    for block in blocks:
        part = (block.get("CPU implementer", ""), block.get("CPU part", ""))
        unnamed = f"{os.uname().machine} implementer {part[0]} part {part[1]}" if all(part) else ""
        if name := block.get("model name") or block.get("cpu") or _ARM_PARTS.get(part, unnamed):
            names.setdefault(" ".join(name.split()))
    return " + ".join(names) or os.uname().machine


def _flags(blocks: list[dict[str, str]]) -> set[str]:
    lines = {block.get("flags") or block.get("Features") or "" for block in blocks}
    return set[str].intersection(*(set(line.split()) for line in lines)) if lines else set()


def _vector(blocks: list[dict[str, str]]) -> str:
    common = _flags(blocks)
    return next((name for name, flag in _VECTORS if flag in common), "")


def _last_level(cpus: AbstractSet[int], root: Path) -> int | None:
    """Bytes of all caches of the highest level that the processors use, each counted once."""
    found: dict[tuple[int, frozenset[int]], int] = {}
    covered: set[int] = set()
    for cpu in sorted(cpus):
        if cpu in covered:
            continue
        if own := caches(cpu, root):
            last = max(own, key=lambda cache: cache.level)
            found[last.level, last.shared] = last.bytes
            covered |= last.shared
    top = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == top) or None


def _size(content: str | None) -> int | None:
    """``32768K`` in bytes."""
    if content and content[:-1].isdigit() and content[-1] in "KMG":
        return int(content[:-1]) << {"K": 10, "M": 20, "G": 30}[content[-1]]
    return None


def _numa(cpus: AbstractSet[int], root: Path) -> dict[str, str]:
    """Memory nodes with the allowed processors beside them; nodes without any are left out."""
    nodes = {
        node.name.removeprefix("node"): read_list(node / "cpulist") & cpus
        for node in sysfs.entries(root / "sys/devices/system/node", "node[0-9]*")
    }
    return {name: format_cpus(members) for name, members in nodes.items() if members}
