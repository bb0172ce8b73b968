"""One case in one class: units that should be alike held against each other, and what that says of their machines.  Pure.

What numbers alone say is in `peers`; here rows get their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clustergauge import columns, peers
from clustergauge.blamed import CaseFinding, RackFinding, Reason
from clustergauge.classes import classes_of
from clustergauge.columns import Index, Units, grouped
from clustergauge.model import Data
from clustergauge.reduce import Part

SHARE = 0.5
"""Of a machine's devices: when as many are slow in a case, the machine is."""


def groups(units: Units, classes: Mapping[str, str]) -> list[Index]:
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


@dataclass(frozen=True)
class Said:
    """What one case says in one class.

    ``finding``: ``None`` where too few are alike to tell who of them is slow.  ``reasons``: by the machine that each is of.
    ``cleared``: the machines of suspects that fresh launches cleared, once for each.
    """

    finding: CaseFinding | None
    racks: list[RackFinding]
    reasons: list[tuple[str, Reason]]
    cleared: list[str]


class Racks(NamedTuple):
    """The names of racks, and for each of the machines that `Units` name the place of its rack's, −1 where unknown."""

    names: list[str]
    of_machine: peers.Index


def racks_of(names: Sequence[str]) -> Racks:
    """``names``: of the rack of each machine, empty where unknown."""
    return Racks(sorted({*names} - {""}), _numbers(names))


def judge(units: Units, rows: Index, racks: Racks, classes: Mapping[str, str]) -> Said:
    """What one of `groups` says."""
    table = units.table()[rows]
    machines = table["machine"]
    in_rack = racks.of_machine[machines]
    group = peers.Group(table["y"], table["tail"], table["fresh"], table["fresh_tail"], in_rack, table["device"])
    found = peers.judge(group)
    first = units.unit(int(rows[0]))
    slow: dict[int, list[Reason]] = {}
    for one in found.slow:
        unit = units.unit(int(rows[one.row]))
        reason = Reason(kind=one.kind, device=unit.device, case=unit.case, ratio=one.ratio, confirmed=one.confirmed)  # pyright: ignore[reportArgumentType]
        slow.setdefault(int(machines[one.row]), []).append(reason)
    devices = np.bincount(machines) if slow else machines
    reasons: list[tuple[str, Reason]] = []
    for machine, several in slow.items():
        reasons += [(units.machine[machine], reason) for reason in _of_node(several, int(devices[machine]))]
    for row in peers.minority(table["digest"].tolist(), columns.DISAGREE):
        unit = units.unit(int(rows[row]))
        words = "its result differs from what most others of its kind computed, bit for bit"
        wrong = Reason(kind="corrupting", device=unit.device, case=unit.case, confirmed=True, detail=words)
        reasons.append((unit.machine, wrong))
    cleared = [units.unit(int(rows[row])).machine for row in found.cleared]
    if len(rows) < peers.LEAST_GROUP:
        return Said(None, [], reasons, cleared)
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
    slow_racks = [RackFinding(rack=racks.names[r.rack], case=first.case, ratio=r.ratio, devices=r.devices) for r in found.racks]
    return Said(finding, slow_racks, reasons, cleared)


def _of_node(several: list[Reason], devices: int) -> list[Reason]:
    """Slow devices of one machine in one case: when most of them are, it is the machine."""
    if len(several) < 2 or len(several) < SHARE * devices:
        return several
    ratio = float(np.median([r.ratio for r in several if r.ratio is not None]))
    kind = "slow" if any(r.kind == "slow" for r in several) else "intermittent"
    words = f"{len(several)} of its {devices} devices"
    return [Reason(kind=kind, case=several[0].case, ratio=ratio, confirmed=all(r.confirmed for r in several), detail=words)]


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
    for rows in groups(units, classes):
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
