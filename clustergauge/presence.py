"""Which nodes were in what was to span them: one that was lost or kept out leaves the case to the others.  Pure.

Of several runs over nodes the newest counts, as of the nodes' own cases: what a run found is outdone once later ones have
numbers there (`Since`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clustergauge import hosts
from clustergauge.model import Data, Machine, Planned, Record

Launch = tuple[str, str, int, bool]
"""Case, device, number, and whether it confirms."""


class Since(Data, frozen=True, array_like=True):
    """What a finding of pairs, of groups or over nodes is about: machines, cases (`case_of`), and when its run began."""

    began: str
    machines: list[str]
    cases: list[str]

    def outdone(self, newest: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether later runs have a number for each of the machines in each of the cases.

        ``newest``: when the last such run began, by machine and case.
        """
        begun = [newest.get(machine, {}).get(case, "") for machine in self.machines for case in self.cases]
        return bool(begun) and all(later > self.began for later in begun)


def case_of(case: str, device: str) -> str:
    """A case on its kind of device, in any run: groups are numbered anew in each."""
    kind, _, what = device.partition(":")
    return f"{case} on {kind}:{'groups' if hosts.is_group(device) else what}"


def launch_of(one: Record | Planned) -> Launch:
    """Which launch it is, planned or recorded."""
    return one.case, one.device, one.launch, one.confirms


def absent(records: Iterable[Record], planned: Iterable[Planned], machines: Iterable[Machine]) -> dict[Launch, list[str]]:
    """The nodes that were not in a launch that was to span them, by launch; without those where all were, or nobody was."""
    names = {machine.host: machine.node or machine.host for machine in machines}
    present = {
        launch_of(record): {names.get(place.host, place.host) for place in record.placement}
        for record in records
        if record.placement and hosts.spans(record.device)
    }
    found: dict[Launch, list[str]] = {}
    for plan in planned:
        there = present.get(launch_of(plan)) if plan.nodes > 1 and not plan.skip else None
        if there and (missing := [name for name in hosts.expand(plan.hosts) if name not in there]):
            found[launch_of(plan)] = missing
    return found


def partly(records: Iterable[Record], planned: Sequence[Planned], machines: Iterable[Machine]) -> dict[Launch, str]:
    """The launches that were over fewer nodes than they were to span, and over which, in words."""
    missing = absent(records, planned, machines)
    nodes = {launch_of(plan): len(hosts.expand(plan.hosts)) for plan in planned if missing and plan.nodes > 1}
    return {launch: words(nodes[launch], names) for launch, names in missing.items()}


def unjudged(records: Iterable[Record], planned: Iterable[Planned]) -> list[str]:
    """Targets on which nodes left cases to others (`plan_nodes`) though no case over all of them came to a number, in words."""
    measured = {launch_of(record) for record in records if record.status == "ok" and hosts.spans(record.device)}
    left: dict[str, set[str]] = {}
    judged: set[str] = set()
    for plan in planned:
        if plan.skip and plan.in_turn:
            left.setdefault(plan.target, set()).update(hosts.expand(plan.hosts))
        elif plan.nodes > 1 and launch_of(plan) in measured:
            judged.add(plan.target)
    return [
        f"{hosts.compress(hosts.ordered(names))}: storage was not measured: no case over all nodes on {target} came to a number"
        for target, names in left.items()
        if target not in judged
    ]


def words(nodes: int, missing: list[str]) -> str:
    """``3 of 4 nodes (without h2)``."""
    return f"{nodes - len(missing)} of {nodes} nodes (without {hosts.compress(missing)})"
