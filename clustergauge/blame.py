"""Many machines held against each other: who is slow, silently wrong, not as the others, or not measured.  Pure.

Machines of one class (the same parts, drivers and libraries) are peers.  One that deviates from a large class is *bad* for that:
it must not become a class of its own.  What a class says of a case is in `peers`; here it is gathered by machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from clustergauge import accept, columns, hosts, inventory, peers, reduce
from clustergauge.between import Joint
from clustergauge.classes import classes_of
from clustergauge.columns import Index, Units, grouped
from clustergauge.groups import Failed
from clustergauge.loading import LoadedRun
from clustergauge.model import Data, Machine
from clustergauge.reduce import Part
from clustergauge.topology import Topology, racks
from clustergauge.units import counted

SHARE = 0.5
"""Of a machine's devices: when as many are slow in a case, the machine is."""

State = Literal["good", "suspect", "bad", "unmeasured"]
Kind = Literal["slow", "intermittent", "corrupting", "deviates", "link", "failed", "lost", "unmeasured", "unreadable"]


class Reason(Data, frozen=True, kw_only=True):
    """Why a machine is not good.

    ``kind``: *lost*: its agent was, in a case in which nothing had failed before.  ``device``: empty for the machine as a whole.
    ``ratio``: its speed over what is usual in its class.  ``confirmed``: fresh launches agree, or it needs no confirming (wrong
    bits, a missing part).
    """

    kind: Kind
    device: str = ""
    case: str = ""
    ratio: float | None = None
    confirmed: bool = False
    detail: str = ""


class Node(Data, frozen=True, kw_only=True):
    """One machine of the fleet.  ``parts``: identities of its GPUs, so that a replaced one is seen in a later run.

    ``run``: of a run that cannot be read, its folder; whose it is nobody knows, and ``host`` is empty.
    """

    host: str
    machine_id: str
    state: State
    rack: str = ""
    parts: list[str] = msgspec.field(default_factory=list[str])
    reasons: list[Reason] = msgspec.field(default_factory=list[Reason])
    cleared: int = 0
    """Cases in which it was suspected and fresh launches cleared it."""
    run: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        return self.host or self.run


class RackFinding(Data, frozen=True, kw_only=True):
    """A rack that is slower as a whole in a case."""

    rack: str
    case: str
    ratio: float
    devices: int


class CaseFinding(Data, frozen=True, kw_only=True):
    """What one case said in one class.  ``usual``: the median time (s); ``smallest``: the slowdown it would have shown."""

    case: str
    device: str
    peer_class: str
    devices: int
    usual: float
    low: float
    high: float
    smallest: float | None
    weak: bool


class Fleet(Data, frozen=True, kw_only=True):
    """The judgement on a fleet, worst nodes first.

    ``joint``: cases over nodes that no single node is to blame for.  ``alone``: good nodes that no case held against others.
    """

    nodes: list[Node]
    cases: list[CaseFinding]
    racks: list[RackFinding]
    notes: list[str]
    joint: list[Joint] = msgspec.field(default_factory=list[Joint])
    alone: list[str] = msgspec.field(default_factory=list[str])

    def of(self, state: State) -> list[Node]:
        """The nodes in this state."""
        return [node for node in self.nodes if node.state == state]


def judge(part: Part, rack_of: Callable[[str], str] | None = None, missing: Sequence[str] = ()) -> Fleet:
    """Who is bad.

    ``rack_of``: the rack of a host, empty where unknown.  ``missing``: hosts that should have been measured and said nothing.
    """
    racks = {m: (rack_of(machine.host) if rack_of else "") for m, machine in part.machines.items()}
    classes, deviants, notes = classes_of(part.machines)
    reasons: dict[str, list[Reason]] = {m: [] for m in part.machines}
    cleared: Counter[str] = Counter()
    for machine_id, why in deviants.items():
        reasons[machine_id].append(Reason(kind="deviates", confirmed=True, detail=why))
    for verdict in inventory.trained_down(part.machines.values()):
        reasons[verdict.machine_id].append(Reason(kind="link", confirmed=True, detail=verdict.reason))
    for machine_id, told in part.fell.items():
        fell = ", ".join(dict.fromkeys(words for _, words in told))
        reasons[machine_id] += [Reason(kind="link", confirmed=True, detail=f"trained down meanwhile: {fell}")] if fell else []
    for machine_id, (_, why) in part.gpus.items():
        reasons[machine_id] += [Reason(kind="unmeasured", detail=why)] if why else []
    units = columns.confirmed(part.units)
    table = units.table()
    for row in np.flatnonzero(table["trouble"]).tolist():
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
    cases: list[CaseFinding] = []
    slow_racks: list[RackFinding] = []
    of_machines = [racks[machine] for machine in units.machine]
    rack_names, rack_numbers = sorted({*of_machines} - {""}), _numbers(of_machines)
    compared = np.zeros(len(units.machine), np.bool_)
    for rows in _groups(units, classes):
        finding, found_racks = _judge_case(units, rows, rack_names, rack_numbers, classes, reasons, cleared)
        cases += [finding] if finding else []
        compared[table["machine"][rows]] |= finding is not None
        slow_racks += found_racks
    recorded = ~(np.isnan(table["y"]) & np.isnan(table["fresh"]) & (table["trouble"] == 0) & (table["missing"] > 0))
    numbers: list[int] = np.unique(table["machine"][recorded]).tolist()
    measured = {units.machine[n] for n in numbers} | set(part.spanned)
    missing_of = _missing(units)
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
    notes += _of_alone(alone)
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


class Share(Data, frozen=True, array_like=True):
    """The speed of one device in one case over what is usual in its class: 0.9 takes a ninth longer."""

    machine_id: str
    device: str
    value: float


def shares(part: Part, cases: Sequence[CaseFinding]) -> list[list[Share]]:
    """For each of ``cases``, findings of `judge` on the same part, what every device of its class reached."""
    classes, _, _ = classes_of(part.machines)
    wanted = {(c.case, c.device, c.peer_class): n for n, c in enumerate(cases)}
    found: list[list[Share]] = [[] for _ in cases]
    units, table = part.units, part.units.table()
    for rows in _groups(units, classes):
        first = units.unit(int(rows[0]))
        number = wanted.get((first.case, _kind(first.device), classes[first.machine]))
        if number is not None and len(rows) == cases[number].devices:
            usual = math.log(cases[number].usual)
            machines: list[int] = table["machine"][rows].tolist()
            devices: list[int] = table["device"][rows].tolist()
            values: list[float] = table["y"][rows].tolist()
            of = zip(machines, devices, values, strict=True)
            found[number] = [Share(units.machine[m], units.device[d], math.exp(usual - y)) for m, d, y in of]
    return found


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
        return accept.BROKEN
    of_nodes = accept.OK
    if fleet.of("bad"):
        of_nodes = accept.FAILED
    elif fleet.of("suspect") or fleet.of("unmeasured") or fleet.racks or (held and fleet.alone) or not fleet.nodes:
        of_nodes = accept.UNKNOWN
    return accept.worst([of_nodes, accept.code_of(one.word for one in fleet.joint)])


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


# --------------------------------------------------------------------------------------------------------------------------
# cases


def _groups(units: Units, classes: Mapping[str, str]) -> list[Index]:
    """Rows of units that should be alike: of one case, kind of device, class and work."""
    table = units.table()
    class_of = _numbers([classes.get(machine, "") for machine in units.machine])[table["machine"]]
    kind_of = _numbers([_kind(device) for device in units.device])[table["device"]]
    rows = np.flatnonzero(~np.isnan(table["y"]) & (class_of >= 0))
    return [rows[group] for group in grouped(table["work"][rows], class_of[rows], kind_of[rows], table["case"][rows])]


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _numbers(names: Sequence[str]) -> peers.Index:
    """The same number for the same name, in the order of the names; −1 for an empty one."""
    number = {name: n for n, name in enumerate(sorted({*names} - {""}))} | {"": -1}
    return np.asarray([number[name] for name in names], np.int64)


def _judge_case(
    units: Units,
    rows: Index,
    rack_names: Sequence[str],
    rack_numbers: peers.Index,
    classes: Mapping[str, str],
    reasons: dict[str, list[Reason]],
    cleared: Counter[str],
) -> tuple[CaseFinding | None, list[RackFinding]]:
    """One case in one class: its reasons go to the machines.  ``rack_numbers``: of each machine, the place of its rack's name."""
    table = units.table()[rows]
    machines = table["machine"]
    group = peers.Group(table["y"], table["tail"], table["fresh"], table["fresh_tail"], rack_numbers[machines], table["device"])
    found = peers.judge(group)
    first = units.unit(int(rows[0]))
    slow: dict[int, list[Reason]] = {}
    for one in found.slow:
        unit = units.unit(int(rows[one.row]))
        reason = Reason(kind=one.kind, device=unit.device, case=unit.case, ratio=one.ratio, confirmed=one.confirmed)  # pyright: ignore[reportArgumentType]
        slow.setdefault(int(machines[one.row]), []).append(reason)
    devices = np.bincount(machines) if slow else machines
    for machine, several in slow.items():
        reasons[units.machine[machine]] += _of_node(several, int(devices[machine]))
    for row in found.cleared:
        cleared[units.unit(int(rows[row])).machine] += 1
    for row in peers.minority(table["digest"].tolist(), columns.DISAGREE):
        unit = units.unit(int(rows[row]))
        words = "its result differs from what most others of its kind computed, bit for bit"
        reasons[unit.machine].append(Reason(kind="corrupting", device=unit.device, case=unit.case, confirmed=True, detail=words))
    if len(rows) < peers.LEAST_GROUP:
        return None, []
    low, usual, high = (math.exp(float(v)) for v in np.quantile(group.y, (0.0, 0.5, 1.0)))
    finding = CaseFinding(
        case=first.case,
        device=_kind(first.device),
        peer_class=classes[first.machine],
        devices=len(rows),
        usual=usual,
        low=low,
        high=high,
        smallest=found.smallest,
        weak=found.weak,
    )
    slow_racks = [RackFinding(rack=rack_names[r.rack], case=first.case, ratio=r.ratio, devices=r.devices) for r in found.racks]
    return finding, slow_racks


def _of_node(several: list[Reason], devices: int) -> list[Reason]:
    """Slow devices of one machine in one case: when most of them are, it is the machine."""
    if len(several) < 2 or len(several) < SHARE * devices:
        return several
    ratio = float(np.median([r.ratio for r in several if r.ratio is not None]))
    kind = "slow" if any(r.kind == "slow" for r in several) else "intermittent"
    words = f"{len(several)} of its {devices} devices"
    return [Reason(kind=kind, case=several[0].case, ratio=ratio, confirmed=all(r.confirmed for r in several), detail=words)]
