"""Groups of nodes that run the same collectives at once, between the pairs and everything: which group is slow.  Pure.

A collective is as fast as its slowest member, so over a whole fleet it says that something is slow, and not where.  Over groups
it says which group, and the nodes of a slow one are kept out of what spans everything.  A group fails for a large loss against
its peers of the same run, as a pair does; a run measures it afresh (`retry`), and then only the fresh launches count.

Peers are the groups with as many ranks.  One that has none (nodes were kept out, or lost) is held against those of other sizes by
what each link had to carry, where that bounds the case, and only a loss beyond what the size explains counts.  What has no such
rate (small messages, a barrier) is not compared: `alone` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clustergauge import hosts, rates, readings, slow_storage, stats, sweeps
from clustergauge.believed import deciding, is_bad
from clustergauge.model import Data, Machine, Planned, Record, Verdict
from clustergauge.topology import Topology

MOST = 8
"""Nodes of a group.  A fleet that is no larger has none: everything is one group."""
THRESHOLD = 0.8
"""Of the other groups' speed: a group that is slower in the same case fails."""
UNLIKE = 0.5
"""What the number of ranks alone may make of a group's bus bandwidth: where it is no power of two, an algorithm that halves has
the remaining ranks hand over all of their data first and get all of it back, as much again as everything else (Thakur,
Rabenseifner, Gropp: Optimization of Collective Communication Operations in MPICH, 2005)."""
FARTHEST = 2
"""Groups of which one has more than so many times the ranks of the other are not compared."""
METRIC = "groups"


def split(names: Sequence[str], most: int = MOST) -> list[list[str]]:
    """Disjoint groups of neighbours, none larger than the others by more than one node, and none of one node alone.

    One group where there are ``most`` nodes or fewer.  Otherwise as few as there can be; or some more, of more than half of
    ``most`` nodes, if then no group is the only one of its size.
    """
    count = max(1, min(-(-len(names) // most), len(names) // 2))
    more = range(count, len(names) // (most // 2 + 1) + 1) if len(names) > most else ()
    count = next((n for n in more if len(names) % n == 0 or 2 <= len(names) % n <= n - 2), count)
    ends = [len(names) * number // count for number in range(count + 1)]
    return [list(names[begin:end]) for begin, end in itertools.pairwise(ends)]


def tiers(planned: Iterable[Planned]) -> list[list[Planned]]:
    """What spans nodes in the order in which it is measured: pairs, groups, everything.  Without those that are empty."""
    found: dict[int, list[Planned]] = {0: [], 1: [], 2: []}
    for one in planned:
        found[0 if one.probe == sweeps.PROBE else 1 if hosts.is_group(one.device) else 2].append(one)
    return [tier for tier in found.values() if tier]


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """A FAIL for each group that is surely slower than its peers in a case.

    Held against the median of the peers is even its fastest quarter of samples, those of the fresh launches where there are such.
    """
    found: list[Verdict] = []
    for case, of_group in _cases(records).items():
        for group, own in of_group.items():
            peers = _peers(group, of_group)
            if peers is None:
                continue
            usual = stats.median([_cost(of_group[name], 0.5) for name in peers.names])
            if usual / _cost(own, 0.25) >= peers.threshold:
                continue
            ratio, record = usual / _cost(own, 0.5), own[0]
            found.append(
                Verdict(
                    case=case,
                    device=group,
                    machine_id=record.machine_id,
                    metric=METRIC,
                    verdict="FAIL",
                    reason=f"{members(record)} at {100 * ratio:.0f} % of the {peers.words}",
                    value=ratio,
                    unit="1",
                    bound=peers.threshold,
                    margin=ratio / peers.threshold - 1,
                    source=f"{len(peers.names)} other group{'s' if len(peers.names) > 1 else ''} in the same run",
                )
            )
    return found


def alone(records: Iterable[Record]) -> dict[str, list[str]]:
    """The cases in which a group had nothing to be held against, by its hosts and how many ranks it had, in words."""
    found: dict[str, list[str]] = {}
    for case, of_group in _cases(records).items():
        for group, own in of_group.items():
            if _peers(group, of_group) is None:
                found.setdefault(f"{members(own[0])} ({own[0].ranks} ranks)", []).append(case)
    return found


@dataclass(frozen=True)
class _Peers:
    """What a group is held against: which others, what is asked of it, and what of theirs it is compared with, in words."""

    names: list[str]
    threshold: float
    words: str


def _cases(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """What was measured, by case and group."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.status == "ok" and hosts.is_group(record.device) and readings.samples(record):
            found.setdefault(record.case, {}).setdefault(record.device, []).append(record)
    return found


def _peers(group: str, of_group: Mapping[str, Sequence[Record]]) -> _Peers | None:
    """``None`` where nothing can be compared."""
    own = deciding(of_group[group])
    ranks = own[0].ranks
    sizes = {name: them[0].ranks for name, records in of_group.items() if name != group and (them := deciding(records))}
    if alike := [name for name, size in sizes.items() if size == ranks]:
        return _Peers(alike, THRESHOLD, "speed of the other groups")
    near = [name for name, size in sizes.items() if max(size, ranks) <= FARTHEST * min(size, ranks)]
    if not near or not _carried(own[0]):
        return None
    there = ", ".join(map(str, sorted({sizes[name] for name in near})))
    words = f"bus bandwidth of the other groups ({ranks} ranks here, {there} there: that alone may halve it)"
    return _Peers(near, THRESHOLD * UNLIKE, words)


def _carried(record: Record) -> float:
    """Bytes that each link has to carry for a run; 0 where they don't bound it."""
    work = record.workload
    factor = rates.BUS_FACTOR.get(work.collective) if work and work.bound == "network" else None
    return factor(record.ranks) * work.message_bytes if factor and work else 0.0


def _cost(own: Sequence[Record], quantile: float) -> float:
    """Seconds of a run, or for each byte that a link has to carry where these bound it."""
    return stats.median([float(np.quantile(readings.samples(r), quantile)) / (_carried(r) or 1.0) for r in deciding(own)])


def members(record: Record) -> str:
    """The hosts of a group."""
    return hosts.compress(dict.fromkeys(place.host for place in record.placement))


class Failed(Data, frozen=True, kw_only=True):
    """A host that failed among pairs or in storage (``by_itself``), or whose group failed: one of its members is to blame.

    ``ratio``: its speed, or its group's, over its peers'; ``None`` where something broke.  ``sure``: no suspicion.
    """

    host: str
    case: str
    device: str
    kind: Literal["slow", "failed"]
    ratio: float | None = None
    by_itself: bool = False
    sure: bool = True
    reason: str

    def __str__(self) -> str:
        return f"{'' if self.by_itself else 'its group '}failed {self.case}: {self.reason}"


def failed(records: Sequence[Record], machines: Iterable[Machine], topology: Topology | None = None) -> list[Failed]:
    """Hosts that failed among pairs, in their group or in storage over many nodes, and how.

    ``machines``: they know what is between the GPUs of one host.
    """
    found = [
        Failed(
            host=suspect.where.partition("/")[0],
            case=one.case,
            device=one.device,
            kind="slow",
            ratio=suspect.ratio,
            by_itself=True,
            reason=sweeps.sentence(suspect),
        )
        for one in sweeps.findings(records, topology, machines)
        for suspect in one.suspects
        if suspect.confirmed and suspect.kind in ("endpoint", "node")
    ]
    in_groups = [r for r in records if hosts.is_group(r.device)]
    slow = {(v.case, v.device): v for v in verdicts(in_groups)}
    groups = {r.device for r in in_groups}
    broken: dict[str, set[str]] = {}
    for record in in_groups:
        if is_bad(record):
            broken.setdefault(record.case, set()).add(record.device)
    for record in in_groups:
        verdict = slow.get((record.case, record.device))
        by_itself = is_bad(record) and broken[record.case] != groups  # what failed in all of them says nothing of one
        if not verdict and not by_itself:
            continue
        reason = verdict.reason if verdict else f"{members(record)}: {record.reason or 'counted errors'}"
        found += [
            Failed(
                host=host,
                case=record.case,
                device=record.device,
                kind="slow" if verdict else "failed",
                ratio=verdict.value if verdict else None,
                reason=reason,
            )
            for host in dict.fromkeys(place.host for place in record.placement)
        ]
    found += [
        Failed(
            host=slow.host,
            case=record.case,
            device=record.device,
            kind="slow",
            ratio=slow.speed,
            by_itself=True,
            sure=False,
            reason=str(slow),
        )
        for record in records
        if record.status == "ok" and hosts.spans(record.device)
        for slow in slow_storage.nodes(record)
    ]
    return list(dict.fromkeys(found))


def unfit(records: Sequence[Record], machines: Mapping[str, Machine], topology: Topology | None = None) -> dict[str, str]:
    """Nodes that failed among pairs or in their group, and how: they are kept out of the next tier.

    ``machines``: of the nodes that take part, by the names of the nodes.
    """
    names = {machine.host: name for name, machine in machines.items()}
    found: dict[str, str] = {}
    for one in failed(records, machines.values(), topology):
        if one.host in names and one.sure:
            found.setdefault(names[one.host], str(one))
    return found
