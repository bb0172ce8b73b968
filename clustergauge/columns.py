"""What a fleet is judged by: a row for each case on each device of each machine, as numbers in one table and names beside it.

Ten thousand machines have millions of rows.  As a table they are sent, joined, sorted and grouped in a few seconds and take 72
bytes each; as objects that alone took longer than a minute, and ten times the memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from clustergauge.model import Data, Workload

ROW = np.dtype(
    [
        *((name, np.float64) for name in ("y", "tail", "fresh", "fresh_tail")),
        *((name, np.int32) for name in ("case", "device", "machine", "run", "work", "digest", "trouble", "missing")),
        ("confirms", np.int64),  # wide enough that no row has a gap: rows are compared and sent as bytes
    ]
)
"""A `Unit`: names as their index in the lists of `Units`, numbers that are not known as not a number."""
_KEY = ("case", "device", "machine")
NAMED = ("case", "device", "machine", "run", "work", "digest", "trouble")
LOST = "lost: "
"""How the trouble of a unit begins whose machine was lost: nothing in it had failed before."""
DISAGREE = 1
"""The digest of launches that do not agree on one."""
_PACK = struct.Struct("=4d8iq")
assert _PACK.size == ROW.itemsize

Rows = NDArray[np.void]
Index = NDArray[np.intp]


class Work(Data, frozen=True, array_like=True):
    """What a unit did: devices are compared only where this is equal."""

    workload: Workload = Workload()
    ranks: int = 0


class Unit(NamedTuple):
    """One case on one device of one machine: all launches of a run together.

    ``run``: when that run began.  ``y``, ``tail``: ln of the median time (s) and of its 90th percentile, not a number where all
    launches are fresh; ``fresh``, ``fresh_tail``: the mean of both over fresh launches.  ``digest``: of the output, where all
    launches agree on one; ``-`` where they do not.  ``trouble``: wrong, error or lost, in words.  ``missing``: launches that were
    planned and have no record.  ``confirms``: there are none but fresh launches.
    """

    case: str
    device: str
    machine: str
    run: str
    work: Work = Work()
    y: float = math.nan
    tail: float = math.nan
    fresh: float = math.nan
    fresh_tail: float = math.nan
    digest: str = ""
    trouble: str = ""
    missing: int = 0
    confirms: bool = False


class Units(Data, frozen=True):
    """Many units.  ``rows``: of `ROW`, as bytes; the others: names by their index (of digests and troubles the first is none)."""

    rows: bytes
    case: list[str]
    device: list[str]
    machine: list[str]
    run: list[str]
    work: list[Work]
    digest: list[str]
    trouble: list[str]

    def table(self) -> Rows:
        """The rows, not to be written to."""
        return np.frombuffer(self.rows, ROW)

    def unit(self, number: int) -> Unit:
        """One row with its names."""
        row = self.table()[number]
        values: dict[str, Any] = {name: row[name].item() for name in ROW.names or ()}
        values["confirms"] = bool(values["confirms"])
        return Unit(**values | {name: getattr(self, name)[values[name]] for name in NAMED})

    def of_cases(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[Unit]]:
        """The units of each machine and case that is wanted, on all devices."""
        found: dict[tuple[str, str], list[Unit]] = {key: [] for key in wanted}
        machines, cases = {machine for machine, _ in found}, {case for _, case in found}
        table = self.table()
        of_machine = np.asarray([machine in machines for machine in self.machine], np.bool_)[table["machine"]]
        of_case = np.asarray([case in cases for case in self.case], np.bool_)[table["case"]]
        for number in np.flatnonzero(of_machine & of_case).tolist():
            unit = self.unit(number)
            if (key := (unit.machine, unit.case)) in found:
                found[key].append(unit)
        return found


def _lists() -> dict[str, dict[Any, int]]:
    """The lists of no units, to be filled."""
    return {name: {} for name in NAMED} | {"digest": {"": 0, "-": DISAGREE}, "trouble": {"": 0}}


def of(units: Iterable[Unit]) -> Units:
    """Units as a table."""
    lists = _lists()
    case, device, machine, run, work, digest, trouble = lists.values()
    rows = [
        _PACK.pack(
            *u[5:9],
            case.setdefault(u.case, len(case)),
            device.setdefault(u.device, len(device)),
            machine.setdefault(u.machine, len(machine)),
            run.setdefault(u.run, len(run)),
            work.setdefault(u.work, len(work)),
            digest.setdefault(u.digest, len(digest)),
            trouble.setdefault(u.trouble, len(trouble)),
            u.missing,
            u.confirms,
        )
        for u in units
    ]
    return Units(rows=b"".join(rows), **{name: list(found) for name, found in lists.items()})


def joined(parts: Sequence[Units], gone: Collection[tuple[str, str, str]] = ()) -> tuple[Units, list[Unit]]:
    """Several as one, in their order, without those that do not count any more; and these.

    Of each case on a device of a machine the newest run counts (of runs of one second the last), and the newest of those that
    only confirm.  ``gone``: machine, device and run of what was measured on a device that is not there any more.
    """
    lists = _lists()
    tables = [np.zeros(0, ROW)]
    for part in parts:
        table = part.table().copy()
        for name, known in lists.items():
            moved = [known.setdefault(value, len(known)) for value in getattr(part, name)]
            table[name] = np.asarray(moved, np.int32)[table[name]]
        tables.append(table)
    names: dict[str, Any] = {name: list(found) for name, found in lists.items()}
    rows = np.concatenate(tables)
    rows = rows[~_among(rows, gone, lists)] if gone else rows
    order = _in_order(rows, names["run"])
    kept = np.ones(len(rows), np.bool_)
    kept[order[:-1][_alike(rows, order[:-1], order[1:], *_KEY, "confirms")]] = False
    if kept.all():
        return Units(rows=rows.tobytes(), **names), []
    outdone = Units(rows=rows[~kept].tobytes(), **names)
    return Units(rows=rows[kept].tobytes(), **names), [outdone.unit(number) for number in range(len(outdone.table()))]


def _among(rows: Rows, wanted: Iterable[tuple[str, str, str]], lists: Mapping[str, Mapping[Any, int]]) -> NDArray[np.bool_]:
    """Whether machine, device and run of each row are among those ``wanted``.  ``lists``: the numbers of names."""
    machines, devices, runs = (lists[name] for name in ("machine", "device", "run"))

    def key(machine: Any, device: Any, run: Any) -> Any:
        return (machine * np.int64(len(devices)) + device) * np.int64(len(runs)) + run

    known = [(m, d, r) for m, d, r in wanted if m in machines and d in devices and r in runs]
    return np.isin(
        key(rows["machine"], rows["device"], rows["run"]), [key(machines[m], devices[d], runs[r]) for m, d, r in known]
    )


def confirmed(units: Units) -> Units:
    """What runs that only confirm say, put to what they confirm: unless that was measured later, or was other work."""
    if not units.table()["confirms"].any():
        return units
    rows = units.table().copy()
    order, began = _in_order(rows, units.run), _ranks(units.run)
    ones, others = order[:-1], order[1:]  # neighbours: a row, and what confirms it
    one, other = rows[ones], rows[others]
    fits = _alike(rows, ones, others, *_KEY, "work") & (began[one["run"]] <= began[other["run"]])
    fits &= ~np.isnan(one["y"]) & ~np.isnan(other["fresh"]) & (one["confirms"] == 0) & (other["confirms"] == 1)
    agree = (other["digest"] == 0) | (other["digest"] == one["digest"])
    one["fresh"], one["fresh_tail"] = other["fresh"], other["fresh_tail"]
    one["digest"] = np.where(agree, one["digest"], DISAGREE)
    rows[ones[fits]] = one[fits]
    return replace(units, rows=rows.tobytes())


def _in_order(rows: Rows, runs: Sequence[str]) -> Index:
    """By what is measured, what confirms it behind it, the newest run last."""
    cases = 1 + int(rows["case"].max(initial=0))
    within = (rows["device"] * np.int64(cases) + rows["case"]) * 2 + rows["confirms"]  # one key sorts faster than three
    return np.lexsort((_ranks(runs)[rows["run"]], within, rows["machine"]))


def _ranks(texts: Sequence[str]) -> Index:
    """The place of each text in their order."""
    return np.argsort(np.argsort(np.asarray(texts, np.str_), kind="stable"))


def _alike(rows: Rows, ones: Index, others: Index, *names: str) -> NDArray[np.bool_]:
    return np.all([rows[name][ones] == rows[name][others] for name in names], axis=0)


def grouped(*keys: NDArray[Any]) -> list[Index]:
    """The places that have the same values in all ``keys``, in the order in which each group first appears."""
    order = np.lexsort(keys)
    changes = np.any([k[order[1:]] != k[order[:-1]] for k in keys], axis=0)
    groups = np.split(order, np.flatnonzero(changes) + 1) if len(order) else []
    return sorted(groups, key=lambda group: int(group[0]))
