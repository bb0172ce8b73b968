"""The launches of a run reduced to a unit for each case on each device: a few numbers, or why there is none to believe.  Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustergauge import believed, columns, hosts, readings
from clustergauge.columns import Unit, Work
from clustergauge.glance import Glance
from clustergauge.loading import LoadedRun
from clustergauge.model import Record

TAIL_SAMPLES = 10
"""The fewest samples whose 90th percentile says something."""

Key = tuple[str, str, str]
"""Machine, case, device."""


def units(loaded: LoadedRun, alone: Sequence[Record]) -> list[Unit]:
    """What was measured, and what was planned and was not.  ``alone``: the records that are of one host."""
    own: dict[Key, list[_Launch]] = {}
    for record, middle, tail in zip(alone, *_middles_and_tails(alone), strict=True):
        own.setdefault((record.machine_id, record.case, record.device), []).append(_Launch(record, middle, tail))
    began, missing = loaded.run.started, _missing(loaded)
    names, lie = {m: machine.node for m, machine in loaded.machines.items()}, _lie(loaded)
    found = [_unit(key, launches, began, missing.pop(key, 0), names.get(key[0], ""), lie) for key, launches in own.items()]
    found += [Unit(case, device, machine, began, missing=count) for (machine, case, device), count in missing.items()]
    return found


class _Launch(NamedTuple):
    """``middle``, ``tail``: ln of the median and of the 90th percentile of its samples, not a number where there are too few."""

    record: Record
    middle: float
    tail: float


Lie = Callable[[Sequence[_Launch]], str]
"""Why measured launches have no number to believe, in words; empty where they have one."""


def _unit(key: Key, launches: list[_Launch], began: str, missing: int, node: str, lie: Lie) -> Unit:
    """``node``: what the user called the machine."""
    machine, case, device = key
    records = [launch.record for launch in launches]
    ordinary = [launch for launch in launches if not launch.record.confirms]
    if trouble := _trouble(launches, node, lie):
        return Unit(case, device, machine, began, trouble=trouble, missing=missing, confirms=not ordinary)
    first = (ordinary or launches)[0].record
    assert first.workload
    y, tail = _means(ordinary)
    fresh_y = fresh_tail = math.nan
    if len(ordinary) < len(launches) - 1:  # one launch does not confirm
        fresh_y, fresh_tail = _means([launch for launch in launches if launch.record.confirms])
    digests = {r.measurement.digest for r in records if r.measurement and r.measurement.digest}
    digest = digests.pop() if len(digests) == 1 else "-" if digests else ""
    work = Work(first.workload, first.ranks)
    return Unit(case, device, machine, began, work, y, tail, fresh_y, fresh_tail, digest, "", missing, not ordinary)


def _middles_and_tails(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """The numbers of a `_Launch` for each record.  Those with as many samples are one table: one at a time it takes a fifth of
    reading a fleet."""
    of_count: dict[int, list[int]] = {}
    taken = [readings.samples(record) for record in records]
    for place, samples in enumerate(taken):
        of_count.setdefault(len(samples), []).append(place)
    middles, tails = np.full(len(records), math.nan), np.full(len(records), math.nan)
    for count, places in of_count.items():
        if count:
            table = np.sort(np.array([taken[place] for place in places]), axis=1)
            middles[places] = _ln(table, 0.5)
            if count >= TAIL_SAMPLES:
                tails[places] = _ln(table, 0.9)
    return middles.tolist(), tails.tolist()


def _ln(table: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """ln of a quantile of each line of sorted samples, interpolated between neighbours."""
    place = quantile * (table.shape[1] - 1)
    low = int(place)
    below, above = table[:, low], table[:, min(low + 1, table.shape[1] - 1)]
    return np.log(below + (above - below) * (place - low))


def _means(launches: Sequence[_Launch]) -> tuple[float, float]:
    """Over launches; of the tails, over those that have one."""
    if len(launches) == 1:
        return launches[0].middle, launches[0].tail
    tails = [launch.tail for launch in launches if not math.isnan(launch.tail)]
    return _mean([launch.middle for launch in launches]), _mean(tails)


def _trouble(launches: Sequence[_Launch], node: str, lie: Lie) -> str:
    """Why these launches have no number to believe: wrong, an error, or invalid; and lost, where they went with the node."""
    lost = ""
    for record, *_ in launches:
        if record.status == "error" and hosts.went_with(record.reason, node):
            lost = f"{columns.LOST}{record.reason[:200]}"
        elif record.status != "ok":
            return f"{record.status}: {record.reason[:200]}"
    return lie([launch for launch in launches if launch.record.status == "ok"] if lost else launches) or lost


def _lie(loaded: LoadedRun) -> Lie:
    """What tells why measured launches of one case on one machine have no number to believe (`believed.number`)."""
    limits, look = believed.limits_of(loaded.machines, loaded.catalogue), Glance(loaded.machines, loaded.catalogue)

    def lie(launches: Sequence[_Launch]) -> str:
        for record, middle, _ in launches:
            if look.doubts(record, middle):
                return believed.number([launch.record for launch in launches], limits)[0]
        return ""

    return lie


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _missing(loaded: LoadedRun) -> dict[Key, int]:
    """How many planned launches have no record at all: of each node they were planned for, or of the only machine.

    Launches that were to confirm are no part of it: without them a suspect stays one.
    """
    recorded = {(r.machine_id, r.case, r.device, r.launch) for r in loaded.records}
    by_host = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    alone = list(loaded.machines) if len(loaded.machines) == 1 else []
    named: dict[str, list[str]] = {}
    missing: Counter[Key] = Counter()
    for plan in loaded.run.planned:
        if plan.skip or plan.nodes > 1 or plan.confirms:
            continue
        if plan.hosts not in named:  # the same few lists again and again
            named[plan.hosts] = [by_host[h] for h in hosts.expand(plan.hosts) if h in by_host] if plan.hosts else alone
        for machine in named[plan.hosts]:
            if (machine, plan.case, plan.device, plan.launch) not in recorded:
                missing[machine, plan.case, plan.device] += 1
    return missing
