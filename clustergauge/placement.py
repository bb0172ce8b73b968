"""Where ranks go: each beside its GPU, or on an equal share of the physical cores, always inside the allowed set."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence, Set as AbstractSet
from pathlib import Path
from typing import Literal

from clustergauge import hosts, sysfs
from clustergauge.model import Gpu, Machine, Nic, Place

MOST_CPUS = 1 << 16
"""No kernel numbers its processors higher; a longer range in a list is a mistake, or meant to fill memory."""
RANKS_A_PROCESSOR = 16
"""More ranks than so many a processor wait for the scheduler, and not for the transport."""
RANK_BYTES = {"mpi": 24 << 20, "torch": 150 << 20}
"""Memory that a rank has for itself before any case (measured: four ranks, Python 3.11, mpich 5.0, torch 2.13 for CPUs)."""


def parse_cpus(text: str) -> set[int]:
    """The processors of a kernel list: ``0-3,8``; empty text is the empty set.

    Raises ``ValueError`` on anything else: blanks, signs, strides, reversed ranges, numbers of `MOST_CPUS` and above.
    """
    found: set[int] = set()
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if not match:
            raise ValueError(f"{part[:20]!r} in {text[:60]!r} is not a processor or a range of them (write 0-3,8)")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= MOST_CPUS:
            raise ValueError(f"{part!r} in {text[:60]!r} is not a rising range below {MOST_CPUS}")
        found.update(range(first, last + 1))
    return found


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest kernel list of the processors: ``0-3,8``."""
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def read_list(path: Path) -> set[int]:
    """A kernel list in a file; empty if it cannot be read."""
    try:
        return parse_cpus(sysfs.text(path) or "")
    except ValueError:
        return set()


def cores(cpus: AbstractSet[int], sys: Path = Path("/sys")) -> list[set[int]]:
    """The processors grouped by physical core, lowest first; one that the kernel says nothing of stands alone."""
    found: list[set[int]] = []
    seen: set[int] = set()
    for cpu in sorted(cpus):
        if cpu not in seen:
            topology = sys / f"devices/system/cpu/cpu{cpu}/topology"
            core = read_list(topology / "core_cpus_list") or read_list(topology / "thread_siblings_list")
            core = ((core | {cpu}) & cpus) - seen
            found.append(core)
            seen |= core
    return found


def place(machine: Machine, ranks: int, kind: Literal["cpu", "cuda"], sys: Path | None = None) -> list[Place]:
    """A place for each rank; every one has at least one processor.

    ``cpu``: equal shares of the physical cores, a core's hardware threads together; ranks beyond the number of cores share
    them in turn.  ``cuda``: rank r gets GPU r (they are dealt again if there are fewer GPUs) and its share of the processors
    beside it, and the nearest NIC.  ``sys``: where the topology is read; by default /sys if this is the machine described.
    """
    if ranks < 1:
        raise ValueError(f"cannot place {ranks} ranks")
    if sys is None and machine.host == hosts.own():
        sys = Path("/sys")
    allowed = parse_cpus(machine.cpu.allowed)
    if not allowed:
        raise ValueError(f"{machine.host} has no processor for {ranks} ranks")
    if kind == "cpu":
        shares = _split(_cores(allowed, machine, sys), ranks)
        return [Place(rank=rank, host=machine.host, cpus=format_cpus(share)) for rank, share in enumerate(shares)]
    if not machine.gpus:
        raise ValueError("cannot place ranks on GPUs: there are none")
    gpus = [machine.gpus[rank % len(machine.gpus)] for rank in range(ranks)]
    near = [frozenset(_beside(gpu, machine, allowed)) for gpu in gpus]
    places: list[Place] = []
    for rank, gpu in enumerate(gpus):
        sharing = [r for r in range(ranks) if near[r] & near[rank]]
        pool = frozenset[int]().union(*(near[r] for r in sharing))
        if all(near[r] == near[rank] for r in sharing):
            cpus = _split(_cores(pool, machine, sys), len(sharing))[sharing.index(rank)]
        else:
            cpus = set(near[rank])  # overlapping but not equal: no fair split is known, so they share
        nic = nearest_nic(gpu, machine.nics, sys)
        places.append(
            Place(
                rank=rank,
                host=machine.host,
                device=f"cuda:{gpu.index}",
                pci=gpu.pci,
                cpus=format_cpus(cpus),
                nic=nic.name if nic else "",
            )
        )
    return places


def nearest_nic(gpu: Gpu, nics: Sequence[Nic], sys: Path | None = None) -> Nic | None:
    """The NIC with the longest common PCIe path, then on the same memory node; InfiniBand before Ethernet, fast before slow.

    NICs that are down are not considered.  GPUs with several equally near NICs take turns by their index.
    """
    down = ("down", "init", "polling", "disabled", "lowerlayerdown")
    up = [nic for nic in nics if nic.state.lower() not in down and (nic.pci or nic.numa is not None)]
    if not up:
        return None
    own = _pci_path(gpu.pci, sys)

    def nearness(nic: Nic) -> tuple[int, bool, bool, float]:
        pairs = zip(own, _pci_path(nic.pci, sys), strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        same_node = gpu.numa is not None and gpu.numa >= 0 and nic.numa == gpu.numa
        return common, same_node, nic.kind in ("infiniband", "roce"), nic.rate_gbit_s or 0.0

    best = max(map(nearness, up))
    equal = [nic for nic in up if nearness(nic) == best]
    return equal[gpu.index % len(equal)]


def _pci_path(pci: str, sys: Path | None) -> list[str]:
    """The bridges from the root complex to a device, with itself; empty if unknown."""
    if sys is None or not re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", pci):
        return []
    link = sys / "bus/pci/devices" / pci
    if not link.exists():
        return []
    return [part for part in link.resolve().parts if part.startswith("pci") or ":" in part]


def _beside(gpu: Gpu, machine: Machine, allowed: set[int]) -> set[int]:
    """Allowed processors nearest to the GPU: by its own affinity, else by its memory node, else all."""
    try:
        near = parse_cpus(gpu.cpus) & allowed
    except ValueError:
        near = set[int]()
    if not near and gpu.numa is not None:
        near = parse_cpus(machine.cpu.numa.get(str(gpu.numa), "")) & allowed
    return near or allowed


def _cores(cpus: AbstractSet[int], machine: Machine, sys: Path | None) -> list[set[int]]:
    """The processors by physical core, in the order in which ranks take them: memory node by memory node."""
    node_of = {cpu: number for number, text in enumerate(machine.cpu.numa.values()) for cpu in parse_cpus(text)}
    found = cores(cpus, sys) if sys else [{cpu} for cpu in sorted(cpus)]
    return sorted(found, key=lambda core: (node_of.get(min(core), 0), min(core)))


def _split(cores: Sequence[set[int]], shares: int) -> list[set[int]]:
    """Consecutive cores in shares that differ by at most one; with more shares than cores, they get cores in turn."""
    if shares > len(cores):
        return [set(cores[share * len(cores) // shares]) for share in range(shares)]
    edges = [share * len(cores) // shares for share in range(shares + 1)]
    return [set[int]().union(*cores[a:b]) for a, b in itertools.pairwise(edges)]


def too_many(world: Literal["mpi", "torch"], kind: str, ranks: int, machine: Machine) -> str:
    """Why so many ranks cannot run on such a machine, or would say nothing, in words; empty if they can.  ``kind``: of device."""
    if kind == "cuda":
        have = len(machine.gpus)
        return f"{ranks} ranks need a GPU each, here {'is 1' if have == 1 else f'are {have}'}" if ranks > have else ""
    threads, most, memory = machine.cpu.threads, RANKS_A_PROCESSOR * machine.cpu.threads, ranks * RANK_BYTES[world]
    if ranks > most:
        return f"{ranks} ranks on {threads} processor{'s' if threads > 1 else ''}: more than {most} time the scheduler"
    if memory > machine.memory_bytes:
        return f"{ranks} ranks need {memory >> 20} MiB for themselves, here are {machine.memory_bytes >> 20}"
    return ""
