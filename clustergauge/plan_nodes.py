"""The cases of a run over several nodes: `plan` for each kind of node, and for all together.

Node-local cases are planned once for all nodes where they come to the same (`Planned.hosts`).  Cases of several ranks are planned
a second time over all nodes, on the device ``cpu:nodes`` or ``cuda:nodes``: the same case by its id, another place.  Where there
are many nodes collectives are planned for groups of them, too, on ``cpu:group1`` and on (`groups`).

Nodes that share a storage target would disturb each other there: what is measured by one node alone they measure one after
another.  For 64 nodes that takes hours, and says of each only how it fares while no other works.  So where a case over all nodes
at once is planned on the target, which measures each of them and names the slow, some nodes measure alone (`SOME`) and the others
leave it to them; and no groups are planned there, which would disturb each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from clustergauge import groups, hosts, sweeps
from clustergauge.errors import UsageError
from clustergauge.model import Machine, Planned
from clustergauge.plan import Suite, Wish, on_gpus, plan
from clustergauge.probe import Probe

SOME = 4
"""Nodes, from the first to the last, that measure alone what is of one process: each has three to be held against
(`accept.LEAST_PEERS`), and neighbours often hang on one switch.  What is of several ranks takes longer: the first measures it."""


def plan_nodes(
    suite: Suite,
    probes: Mapping[str, Probe],
    machines: Mapping[str, Machine],
    names: Sequence[str],
    wish: Wish,
    most: int = groups.MOST,
    shared: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> list[Planned]:
    """The cases for the nodes called ``names``: first those of single nodes, then what spans them, tier by tier.

    ``machines``: of the nodes that answered.  The others are planned like most of these, so that what they owe is missed.  What
    spans nodes is for the least of them; where most have GPUs, for the least of those (`short_of_gpus`).
    ``most``: nodes of a group.  ``shared``: by target the groups of nodes that share it (`meeting`).
    Raises `UsageError` if none answered, and as `plan` does.
    """
    if not machines:
        raise UsageError(f"none of {len(names)} nodes can be measured")
    least = min(_spanned(machines.values(), wish.device), key=lambda machine: (len(machine.gpus), machine.cpu.cores))
    together = _over(suite, probes, least, wish, names) if len(names) > 1 else []
    sharing = _sharing(shared or {}, together, len(machines))
    kinds: dict[bytes, list[str]] = {}
    plans: dict[bytes, list[Planned]] = {}
    for name, machine in machines.items():
        planned = [_in_turn(p, sharing.get((p.target, name)), name) for p in plan(suite, probes, machine, wish)]
        key = msgspec.json.encode(planned)
        plans.setdefault(key, planned)
        kinds.setdefault(key, []).append(name)
    max(kinds.values(), key=len).extend(name for name in names if name not in machines)
    order = {name: number for number, name in enumerate(names)}
    members: dict[bytes, list[str]] = {}
    cases: dict[bytes, Planned] = {}
    for key, planned in plans.items():
        for case in planned:
            same = msgspec.json.encode(case)
            cases.setdefault(same, case)
            members.setdefault(same, []).extend(kinds[key])
    local = [
        msgspec.structs.replace(case, hosts=hosts.compress(sorted(members[same], key=order.__getitem__)))
        for same, case in cases.items()
    ]
    at_once = {target for (target, _), one in sharing.items() if one.by}
    parts = groups.split(names, most)
    for number, part in enumerate(parts if len(parts) > 1 else [], 1):
        together += [
            msgspec.structs.replace(case, device=case.device.replace(":nodes", f":group{number}"))
            for case in _over(suite, probes, least, wish, part)
            if case.probe != sweeps.PROBE and case.target not in at_once
        ]
    return [*local, *(case for tier in groups.tiers(together) for case in tier)]


def short_of_gpus(machines: Mapping[str, Machine], planned: Sequence[Planned]) -> dict[str, str]:
    """The nodes that have too few GPUs for what is to span them, in words: where most have them, one that lost its own keeps
    nobody from it but itself."""
    found: dict[str, str] = {}
    for plan_ in planned:
        each = plan_.ranks // plan_.nodes if plan_.nodes > 1 and not plan_.skip and plan_.device.startswith("cuda") else 0
        for name in hosts.expand(plan_.hosts) if each else ():
            count = len(machines[name].gpus) if name in machines and on_gpus(machines[name]) else 0
            if name in machines and count < each:
                found.setdefault(name, f"what spans nodes takes {each} GPUs of each, here {count} can be used")
    return found


def _spanned(machines: Collection[Machine], device: str) -> Collection[Machine]:
    """Those that decide what spans nodes: with GPUs, where these are asked for or most nodes have them; else all."""
    able = [machine for machine in machines if on_gpus(machine)]
    return able if able and (device == "cuda" or (device == "auto" and 2 * len(able) > len(machines))) else machines


@dataclass(frozen=True)
class _Sharing:
    """Nodes that share a target.  ``by``: the probe that measures all of them at once, empty where none does."""

    group: Sequence[str]
    by: str = ""

    def alone(self, ranks: int) -> Sequence[str]:
        """Those to which the others leave what has so many ranks."""
        last = len(self.group) - 1
        return [self.group[number * last // (SOME - 1)] for number in range(SOME)] if ranks == 1 else self.group[:1]


def _sharing(
    shared: Mapping[str, Sequence[Sequence[str]]], together: Sequence[Planned], count: int
) -> dict[tuple[str, str], _Sharing]:
    """By target and node.  ``together``: the cases over all ``count`` nodes; they judge those that share a target if these are
    most of them."""
    at_once = {case.target: case.probe for case in together if case.target and not case.skip}
    found: dict[tuple[str, str], _Sharing] = {}
    for target, sharing in shared.items():
        for group in sharing:
            by = at_once.get(target, "") if 2 * len(group) > count else ""
            found |= dict.fromkeys(((target, name) for name in group), _Sharing(group, by))
    return found


def _in_turn(planned: Planned, sharing: _Sharing | None, name: str) -> Planned:
    """A case of a node on a target that it shares: in turn with the others, or left to some of them."""
    if sharing is None or planned.skip:
        return planned
    left, count = "", len(sharing.group)
    if sharing.by and count > SOME and name not in (alone := sharing.alone(planned.ranks)):
        to = hosts.compress(alone)
        left = f"left to {to}: {count} nodes share {planned.target}, and {sharing.by} measures all of them at once"
    return msgspec.structs.replace(planned, in_turn=sharing.group[0], skip=left)


def _over(suite: Suite, probes: Mapping[str, Probe], machine: Machine, wish: Wish, names: Sequence[str]) -> list[Planned]:
    """The cases that span the nodes called ``names``."""
    planned = plan(suite, probes, machine, replace(wish, nodes=len(names)))
    return [msgspec.structs.replace(case, hosts=hosts.compress(names)) for case in planned if case.nodes > 1]
