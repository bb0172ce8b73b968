"""The cases of a run over several nodes: `plan` for each kind of node, and for all together.

Node-local cases are planned once for all nodes where they come to the same (`Planned.hosts`).  Cases of several ranks are planned
a second time over all nodes, on the device ``cpu:nodes`` or ``cuda:nodes``: the same case by its id, another place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from clustergauge import hosts
from clustergauge.errors import UsageError
from clustergauge.model import Machine, Planned
from clustergauge.plan import Suite, Wish, plan
from clustergauge.probe import Probe


def plan_nodes(
    suite: Suite, probes: Mapping[str, Probe], machines: Mapping[str, Machine], names: Sequence[str], wish: Wish
) -> list[Planned]:
    """The cases for the nodes called ``names``: first those of single nodes, then those over all.

    ``machines``: of the nodes that answered.  The others are planned like the first of these, so that what they owe is missed.
    Raises `UsageError` if none answered, and as `plan` does.
    """
    if not machines:
        raise UsageError(f"none of {len(names)} nodes can be measured")
    kinds: dict[bytes, list[str]] = {}
    plans: dict[bytes, list[Planned]] = {}
    for name, machine in machines.items():
        planned = plan(suite, probes, machine, wish)
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
    everywhere = plan(suite, probes, least, replace(wish, nodes=len(names)))
    together = [msgspec.structs.replace(case, hosts=hosts.compress(names)) for case in everywhere if case.nodes > 1]
    return [*local, *together]
