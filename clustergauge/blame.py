"""Many machines held against each other: who is slow, silently wrong, not as the others, or not measured.  Pure.

Machines of one class (the same parts, drivers and libraries) are peers.  One that deviates from a large class is *bad* for that:
it must not become a class of its own.  What a case says in a class is in `alike`; here it is gathered by machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from clustergauge import alike, columns, exits, hosts, inventory, reduce
from clustergauge.blamed import CaseFinding, Fleet, Node, RackFinding, Reason, State
from clustergauge.classes import classes_of
from clustergauge.columns import Units
from clustergauge.groups import Failed
from clustergauge.loading import LoadedRun
from clustergauge.model import Machine
from clustergauge.reduce import Part
from clustergauge.topology import Topology, racks
from clustergauge.units import counted


def judge(part: Part, rack_of: Callable[[str], str] | None = None, missing: Sequence[str] = ()) -> Fleet:
    """Who is bad.

    ``rack_of``: the rack of a host, empty where unknown.  ``missing``: hosts that should have been measured and said nothing.
    """
    racks = {m: (rack_of(machine.host) if rack_of else "") for m, machine in part.machines.items()}
    classes, deviants, notes = classes_of(part.machines)
    units = columns.confirmed(part.units)
    reasons = _by_themselves(part, units, deviants)
    cleared: Counter[str] = Counter()
    cases: list[CaseFinding] = []
    slow_racks: list[RackFinding] = []
    of_machines = alike.racks_of([racks[machine] for machine in units.machine])
    compared = np.zeros(len(units.machine), np.bool_)
    for rows in alike.groups(units, classes):
        said = alike.judge(units, rows, of_machines, classes)
        cases += [said.finding] if said.finding else []
        compared[units.table()["machine"][rows]] |= said.finding is not None
        slow_racks += said.racks
        cleared.update(said.cleared)
        for machine_id, reason in said.reasons:
            reasons[machine_id].append(reason)
    missing_of, measured = _missing(units), _measured(units) | set(part.spanned)
    for since, failed in part.failed:
        reasons[since.machines[0]].append(_over_nodes(failed))
    cut = {since.machines[0]: why for since, why in part.cut}
    for machine_id in part.machines:
        count = missing_of.get(machine_id, 0)
        if why := _unmeasured(cut.get(machine_id, ""), machine_id in measured, count, reasons[machine_id]):
            reasons[machine_id].append(Reason(kind="unmeasured", detail=why))
    nodes = [_node(machine, racks[m], reasons[m], cleared[m]) for m, machine in part.machines.items()]
    held = {units.machine[n] for n in np.flatnonzero(compared).tolist()}.union(part.spanned)
    alone = [node.name for node in nodes if node.state == "good" and node.machine_id not in held]
    notes += [*_of_alone(alone), *_of_namesakes(part.machines.values())]
    known = {name for machine in part.machines.values() for name in (machine.host, machine.node)}
    unreached = "no run that can be read is of it" if part.unreadable else "it was never reached"
    lost = dict.fromkeys(missing, unreached) | part.left_out
    nodes += [
        Node(host=host, machine_id="", state="unmeasured", reasons=[Reason(kind="unmeasured", detail=why)])
        for host, why in lost.items()
        if host not in known
    ]
    nodes += [
        Node(host="", run=run, machine_id="", state="unmeasured", reasons=[Reason(kind="unreadable", detail=why)])
        for run, why in part.unreadable.items()
    ]
    joint = list(dict.fromkeys(one for _, one in part.joint))
    order: tuple[State, ...] = ("bad", "suspect", "unmeasured", "good")
    nodes.sort(key=lambda n: (order.index(n.state), _worst(n), n.name))
    return Fleet(nodes=nodes, cases=cases, racks=slow_racks, notes=[*notes, *part.notes], joint=joint, alone=alone)


def of_run(loaded: LoadedRun, topology: Topology | None = None) -> Fleet | None:
    """The nodes of one run held against each other; ``None`` for a run of one machine."""
    if len(loaded.machines) + len(loaded.run.left_out.keys() - {m.node for m in loaded.machines.values()}) < 2:
        return None
    return judge(reduce.part_of(loaded), racks(topology))


def exit_code(fleet: Fleet, *, held: bool = False) -> int:
    """3 where a result was wrong or its bits differ · 1 where a node is bad · 4 where one is suspect or unmeasured · 0.

    ``held``: nodes are to be held against each other, and who is held against nobody is not known to be good either: 4.
    Cases over nodes count as they do where their run is judged.  Of one run: see `judgement.exit_code_of`.
    """
    if any(r.kind in ("corrupting", "failed", "lost") for node in fleet.nodes for r in node.reasons):
        return exits.BROKEN
    of_nodes = exits.OK
    if fleet.of("bad"):
        of_nodes = exits.FAILED
    elif fleet.of("suspect") or fleet.of("unmeasured") or fleet.racks or (held and fleet.alone) or not fleet.nodes:
        of_nodes = exits.UNKNOWN
    return exits.worst([of_nodes, exits.code_of(one.word for one in fleet.joint)])


def _by_themselves(part: Part, units: Units, deviants: Mapping[str, str]) -> dict[str, list[Reason]]:
    """What speaks against each machine whatever others reach: its parts, its links, what failed on it."""
    reasons: dict[str, list[Reason]] = {m: [] for m in part.machines}
    for machine_id, why in deviants.items():
        reasons[machine_id].append(Reason(kind="deviates", confirmed=True, detail=why))
    for verdict in inventory.trained_down(part.machines.values()):
        reasons[verdict.machine_id].append(Reason(kind="link", confirmed=True, detail=verdict.reason))
    for machine_id, told in part.fell.items():
        fell = ", ".join(dict.fromkeys(words for _, words in told))
        reasons[machine_id] += [Reason(kind="link", confirmed=True, detail=f"trained down meanwhile: {fell}")] if fell else []
    for machine_id, (_, why) in part.gpus.items():
        reasons[machine_id] += [Reason(kind="unmeasured", detail=why)] if why else []
    for row in np.flatnonzero(units.table()["trouble"]).tolist():
        unit = units.unit(row)
        lost = unit.trouble.startswith(columns.LOST)
        reasons[unit.machine].append(
            Reason(
                kind="lost" if lost else "failed",
                device=unit.device,
                case=unit.case,
                confirmed=not lost,
                detail=unit.trouble.removeprefix(columns.LOST),
            )
        )
    return reasons


def _node(machine: Machine, rack: str, reasons: list[Reason], cleared: int) -> Node:
    state: State = "good"
    if any(r.confirmed for r in reasons):
        state = "bad"
    elif any(r.kind in ("unmeasured", "lost") for r in reasons):
        state = "unmeasured"
    elif reasons:
        state = "suspect"
    parts = [gpu.uuid for gpu in machine.gpus if gpu.uuid]
    order = ("corrupting", "failed", "lost", "link", "deviates", "slow", "intermittent", "unmeasured", "unreadable")
    ordered = sorted(reasons, key=lambda r: (not r.confirmed, order.index(r.kind), r.ratio if r.ratio is not None else 0.0))
    return Node(
        host=machine.host, machine_id=machine.machine_id, state=state, rack=rack, parts=parts, reasons=ordered, cleared=cleared
    )


def _of_alone(names: Sequence[str]) -> list[str]:
    """What a reader should know of good nodes that no case held against others."""
    if not names:
        return []
    told = ", ".join(names[:3]) + (f", … +{len(names) - 3}" if len(names) > 3 else "")
    return [f"good means here that nothing failed: no case has enough peers to show whether these are slow: {told}"]


def _of_namesakes(machines: Iterable[Machine]) -> list[str]:
    """That several machines bear one name: by their serials they are not one, and neither outdoes the other."""
    count = Counter(machine.host for machine in machines)
    told = ", ".join(f"{host} ({number})" for host, number in count.items() if number > 1)
    words = "several machines of one name: each is judged by itself; leave out the runs of one that is gone"
    return [f"{words}: {told}"] if told else []


def _over_nodes(failed: Failed) -> Reason:
    """What pairs, storage or its group say of a node.  Of a group that failed one member is to blame, nobody knows which."""
    return Reason(
        kind=failed.kind,
        device=failed.device,
        case=failed.case,
        ratio=failed.ratio,
        confirmed=failed.by_itself and failed.sure,
        detail=failed.reason if failed.by_itself else f"its group: {failed.reason}",
    )


def _measured(units: Units) -> set[str]:
    """The machines that have a record of their own, whatever it says."""
    table = units.table()
    recorded = ~(np.isnan(table["y"]) & np.isnan(table["fresh"]) & (table["trouble"] == 0) & (table["missing"] > 0))
    numbers: list[int] = np.unique(table["machine"][recorded]).tolist()
    return {units.machine[n] for n in numbers}


def _missing(units: Units) -> dict[str, int]:
    """How many launches have no record, by machine."""
    table = units.table()
    counts = np.bincount(table["machine"], table["missing"], len(units.machine))
    return {units.machine[n]: int(counts[n]) for n in np.flatnonzero(counts).tolist()}


def _unmeasured(cut: str, measured: bool, count: int, reasons: Sequence[Reason]) -> str:
    """Why a machine was not measured, or not in all that it was to be in; empty where it was, or ``reasons`` say why.

    ``cut``: why it was not in a case over nodes.  ``count``: launches without a record.
    """
    if cut and not any(r.confirmed or r.kind == "lost" or hosts.spans(r.device) for r in reasons):
        return cut
    if count:
        return counted(count, "planned case has no record", "planned cases have no record")
    return "" if measured or cut else "no case was measured"


def _worst(node: Node) -> float:
    return min((r.ratio for r in node.reasons if r.ratio is not None), default=0.0 if node.reasons else 1.0)
