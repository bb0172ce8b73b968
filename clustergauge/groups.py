"""Groups of nodes that run the same collectives at once, between the pairs and everything: which group is slow.  Pure.

A collective is as fast as its slowest member, so over a whole fleet it says that something is slow, and not where.  Over groups
it says which group, and the nodes of a slow one are kept out of what spans everything.  A group fails for a large loss against
its peers of the same run, as a pair does; a run measures it afresh (`retry`), and then only the fresh launches count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clustergauge import hosts, metrics, stats, sweeps
from clustergauge.accept import deciding, is_bad
from clustergauge.model import Machine, Planned, Record, Verdict
from clustergauge.topology import Topology

MOST = 8
"""Nodes of a group.  A fleet that is no larger has none: everything is one group."""
THRESHOLD = 0.8
"""Of the other groups' speed: a group that is slower in the same case fails."""
METRIC = "groups"


def split(names: Sequence[str], most: int = MOST) -> list[list[str]]:
    """Disjoint groups of neighbours, none larger than the others by more than one node, and none of one node alone.

    One group where there are ``most`` nodes or fewer.
    """
    count = max(1, min(-(-len(names) // most), len(names) // 2))
    ends = [len(names) * number // count for number in range(count + 1)]
    return [list(names[begin:end]) for begin, end in itertools.pairwise(ends)]


def tiers(planned: Iterable[Planned]) -> list[list[Planned]]:
    """What spans nodes in the order in which it is measured: pairs, groups, everything.  Without those that are empty."""
    found: dict[int, list[Planned]] = {0: [], 1: [], 2: []}
    for one in planned:
        found[0 if one.probe == sweeps.PROBE else 1 if hosts.is_group(one.device) else 2].append(one)
    return [tier for tier in found.values() if tier]


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """A FAIL for each group that is surely slower than the others in a case.

    Held against the median of the others with as many ranks is even its fastest quarter of samples, those of the fresh launches
    where there are such.  A group without such others has nothing to be held against.
    """
    cases: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.status == "ok" and hosts.is_group(record.device) and metrics.samples(record):
            cases.setdefault(record.case, {}).setdefault(record.device, []).append(record)
    found: list[Verdict] = []
    for case, of_group in cases.items():
        middle, fast = (
            {
                group: stats.median([float(np.quantile(metrics.samples(r), q)) for r in deciding(own)])
                for group, own in of_group.items()
            }
            for q in (0.5, 0.25)
        )
        for group, own in of_group.items():
            record = own[0]
            others = [middle[name] for name, them in of_group.items() if name != group and them[0].ranks == record.ranks]
            if not others or stats.median(others) / fast[group] >= THRESHOLD:
                continue
            ratio = stats.median(others) / middle[group]
            found.append(
                Verdict(
                    case=case,
                    device=group,
                    machine_id=record.machine_id,
                    metric=METRIC,
                    verdict="FAIL",
                    reason=f"{members(record)} at {100 * ratio:.0f} % of the speed of the other groups",
                    value=ratio,
                    unit="1",
                    bound=THRESHOLD,
                    margin=ratio / THRESHOLD - 1,
                    source=f"{len(others)} other group{'s' if len(others) > 1 else ''} in the same run",
                )
            )
    return found


def members(record: Record) -> str:
    """The hosts of a group."""
    return hosts.compress(dict.fromkeys(place.host for place in record.placement))


def unfit(records: Sequence[Record], machines: Mapping[str, Machine], topology: Topology | None = None) -> dict[str, str]:
    """Nodes that failed among pairs or in their group, and how: they are kept out of the next tier.

    ``machines``: of the nodes that take part, by the names of the nodes.
    """
    names = {machine.host: name for name, machine in machines.items()}
    found: dict[str, str] = {}
    for one in sweeps.findings(records, topology, machines.values()):
        for suspect in one.suspects:
            host = suspect.where.partition("/")[0]
            if suspect.confirmed and suspect.kind in ("endpoint", "node") and host in names:
                found.setdefault(names[host], f"failed {one.case}: {sweeps.sentence(suspect)}")
    slow = {(v.case, v.device): v.reason for v in verdicts(records)}
    in_groups = [r for r in records if hosts.is_group(r.device)]
    groups = {r.device for r in in_groups}
    broken: dict[str, set[str]] = {}
    for record in in_groups:
        if is_bad(record):
            broken.setdefault(record.case, set()).add(record.device)
    for record in in_groups:
        alone = is_bad(record) and broken[record.case] != groups  # what failed in all of them says nothing of one
        reason = slow.get((record.case, record.device), record.reason or "counted errors" if alone else "")
        for host in dict.fromkeys(place.host for place in record.placement) if reason else ():
            if host in names:
                found.setdefault(names[host], f"its group failed {record.case}: {reason}")
    return found
