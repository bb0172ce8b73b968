"""What a case reached elsewhere: on the peers of a device, in a baseline run.  Pure.

Each number is worked out once, and nobody is gone through for everybody: ten thousand nodes may be held against each other, or
against a run of as many.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from clustergauge import hosts, metrics, stats
from clustergauge.believed import Limits, contradiction, deciding
from clustergauge.model import Metric, Record

Group = tuple[str, str, str]
"""Machine, case, device: the launches of one group are judged together."""
_Place = tuple[str, str]
"""Machine and device."""
_Alike = tuple[str, str | None, int]
"""Kind of device, class of machine and number of ranks, equal among peers."""


def grouped(records: Iterable[Record]) -> dict[Group, list[Record]]:
    """The launches of each group, in the order in which groups first appear."""
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault((record.machine_id, record.case, record.device), []).append(record)
    return groups


def kind_of_device(device: str) -> str:
    """``cpu`` or ``cuda`` of one machine, ``cpu:nodes`` over all, ``cpu:groups`` over some: what is alike can be compared."""
    kind = device.partition(":")[0]
    return f"{kind}:groups" if hosts.is_group(device) else device if hosts.spans(device) else kind


class Reached(NamedTuple):
    """What one device reached in a case.  ``why``: its numbers cannot be true."""

    record: Record
    metrics: Sequence[Metric]
    why: str

    def metric(self, name: str) -> Metric | None:
        """The metric of this name, if its numbers can be true."""
        return next((m for m in self.metrics if m.name == name), None) if not self.why else None


@dataclass(frozen=True)
class Devices:
    """Devices of one run, each with its launches of every case."""

    groups: Mapping[Group, list[Record]]
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def _by_case(self) -> dict[str, list[list[Record]]]:
        found: dict[str, list[list[Record]]] = {}
        for (_, case, _), group in self.groups.items():
            found.setdefault(case, []).append(group)
        return found

    def reached(self, case: str) -> list[Reached]:
        """What each device reached in a case; without those of which a launch was wrong or an error, or none was measured."""
        found: list[Reached] = []
        for group in self._by_case.get(case, ()):
            measured = [record for record in deciding(group) if record.status == "ok"]
            if measured and not any(record.status in ("wrong", "error") for record in group):
                numbers = metrics.derive(measured)
                found.append(Reached(measured[0], numbers, contradiction(measured, numbers, self.limits)[0]))
        return found


# --------------------------------------------------------------------------------------------------------------------------
# peers


class _Values(NamedTuple):
    """One metric of all devices that are alike: by device, and in order."""

    own: dict[_Place, float]
    ordered: list[float]


@dataclass(frozen=True)
class Peers:
    """The devices of a run, to be held against each other.  ``classes``: the peer class of every machine."""

    devices: Devices
    classes: Mapping[str, str]
    _known: dict[str, dict[tuple[_Alike, str], _Values]] = field(default_factory=dict[str, dict[tuple[_Alike, str], _Values]])

    def others(self, record: Record, name: str) -> tuple[int, float]:
        """How many devices beside this record's measured the metric in its case, and the median of theirs (0 of none).

        Devices of its kind, machines with the same parts, as many ranks.
        """
        values = self._of_case(record.case).get((self._alike(record), name), _Values({}, []))
        own = values.own.get((record.machine_id, record.device))
        count = len(values.ordered) - (own is not None)
        if count < 1:
            return 0, 0.0
        without = len(values.ordered) if own is None else bisect_left(values.ordered, own)
        middle = [values.ordered[n + (n >= without)] for n in ((count - 1) // 2, count // 2)]
        return count, sum(middle) / 2

    def _alike(self, record: Record) -> _Alike:
        return kind_of_device(record.device), self.classes.get(record.machine_id), record.ranks

    def _of_case(self, case: str) -> dict[tuple[_Alike, str], _Values]:
        if case not in self._known:
            found: dict[tuple[_Alike, str], _Values] = {}
            for one in self.devices.reached(case):
                for metric in one.metrics if not one.why else ():
                    values = found.setdefault((self._alike(one.record), metric.name), _Values({}, []))
                    values.own[one.record.machine_id, one.record.device] = metric.value
                    values.ordered.append(metric.value)
            for values in found.values():
                values.ordered.sort()
            self._known[case] = found
        return self._known[case]


# --------------------------------------------------------------------------------------------------------------------------
# a baseline


class Number(NamedTuple):
    """A number to be as good as.  ``width``: how unsure it is itself (half an interval, relative)."""

    value: float
    width: float


@dataclass(frozen=True)
class Baseline:
    """A run to be as good as."""

    devices: Devices
    _known: dict[str, _OfCase] = field(default_factory=dict[str, "_OfCase"])

    def number(self, record: Record, name: str) -> Number | str:
        """What the record's own device reached of a metric in its case, else the median of the devices of its kind; in words why
        there is none."""
        if record.case not in self._known:
            self._known[record.case] = _OfCase(self.devices.reached(record.case))
        return self._known[record.case].number(record, name)


@dataclass(frozen=True)
class _OfCase:
    """What a baseline reached in one case."""

    reached: Sequence[Reached]
    _middles: dict[tuple[str, int, str], Number | str] = field(default_factory=dict[tuple[str, int, str], Number | str])

    @cached_property
    def _own(self) -> dict[tuple[str, str, int], Reached]:
        return {(r.record.machine_id, r.record.device, r.record.ranks): r for r in self.reached}

    def number(self, record: Record, name: str) -> Number | str:
        if own := self._own.get((record.machine_id, record.device, record.ranks)):
            return _number([own], name)
        key = (kind_of_device(record.device), record.ranks, name)
        if key not in self._middles:
            self._middles[key] = self._middle(kind_of_device(record.device), record.ranks, name)
        return self._middles[key]

    def _middle(self, kind: str, ranks: int, name: str) -> Number | str:
        there = [one.record.ranks for one in self.reached]
        if there and ranks not in there:
            return f"the baseline measured it on {there[0]} ranks, here are {ranks}"
        alike = [r for r in self.reached if (kind_of_device(r.record.device), r.record.ranks) == (kind, ranks)]
        return _number(alike, name)


def _number(reached: Sequence[Reached], name: str) -> Number | str:
    """The median over devices, and how unsure it is."""
    found = [metric for one in reached if (metric := one.metric(name))]
    if not found:
        lie = next((one.why for one in reached if one.why), "")
        return f"the baseline's number cannot be true: {lie}" if lie else "the baseline has no number for it"
    widths = [width for metric in found if (width := metrics.half_width(metric)) is not None]
    if not widths:
        return "the baseline has too few samples for an interval"
    return Number(stats.median([m.value for m in found]), stats.median(widths) / math.sqrt(len(widths)))
