"""The cases of a run over several nodes: `plan` for each kind of node, and for all together.

Node-local cases are planned once for all nodes where they come to the same (`Planned.hosts`).  Cases of several ranks are planned
a second time over all nodes, on the device ``cpu:nodes`` or ``cuda:nodes``: the same case by its id, another place.  Where there
are many nodes collectives are planned for groups of them, too, on ``cpu:group1`` and on (`groups`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from clustergauge import groups, hosts, sweeps
from clustergauge.errors import UsageError
from clustergauge.model import Machine, Planned
from clustergauge.plan import Suite, Wish, plan
from clustergauge.probe import Probe


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

    ``machines``: of the nodes that answered.  The others are planned like the first of these, so that what they owe is missed.
    ``most``: nodes of a group.  ``shared``: by target the groups of nodes that share it (`meeting`): what each of them measures
    there alone, they measure one after another.
    Raises `UsageError` if none answered, and as `plan` does.
    """
    if not machines:
        raise UsageError(f"none of {len(names)} nodes can be measured")
    kinds: dict[bytes, list[str]] = {}
    plans: dict[bytes, list[Planned]] = {}
    for name, machine in machines.items():
        first_of = {target: group[0] for target, found in (shared or {}).items() for group in found if name in group}
        planned = [msgspec.structs.replace(p, in_turn=first_of.get(p.target, "")) for p in plan(suite, probes, machine, wish)]
        key = msgspec.json.encode(planned)
        plans.setdefault(key, planned)
        kinds.setdefault(key, []).append(name)
    next(iter(kinds.values())).extend(name for name in names if name not in machines)
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
    if len(names) < 2:
        return local
    least = min(machines.values(), key=lambda machine: (len(machine.gpus), machine.cpu.cores))
    together = _over(suite, probes, least, wish, names)
    parts = groups.split(names, most)
    for number, part in enumerate(parts if len(parts) > 1 else [], 1):
        together += [
            msgspec.structs.replace(case, device=case.device.replace(":nodes", f":group{number}"))
            for case in _over(suite, probes, least, wish, part)
            if case.probe != sweeps.PROBE
        ]
    return [*local, *(case for tier in groups.tiers(together) for case in tier)]


def _over(suite: Suite, probes: Mapping[str, Probe], machine: Machine, wish: Wish, names: Sequence[str]) -> list[Planned]:
    """The cases that span the nodes called ``names``."""
    planned = plan(suite, probes, machine, replace(wish, nodes=len(names)))
    return [msgspec.structs.replace(case, hosts=hosts.compress(names)) for case in planned if case.nodes > 1]
