"""Whether the numbers of a case may be untrue, told at a glance.  Pure.

Of a fleet nearly every number may be true, and to work out all that `believed` looks at takes longer than to read it.  What
raises no doubt here is not invalid there; of what does, `believed` decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from clustergauge import ceilings, rates, searched
from clustergauge.catalogue import Catalogue, known
from clustergauge.model import Machine, Metric, Record, Workload

CLOSE = 1e-6
"""Of ln of a time: so much nearer the limit a doubt begins, for a median is worked out in more than one way."""
LIMITED = ("compute", "bandwidth")
"""The metrics that have a ceiling (`ceilings.ceiling`)."""

_Parts = tuple[str, int, float | None]
"""`ceilings.Under` by the name of the part."""
_LEAST: dict[str, dict[tuple[_Parts, Workload, str], float]] = {}
"""By the SHA-256 of the user's ceilings (empty: ours), for all runs that this process reads: ln of the least time of each kind of
work on each kind of device, and a cache policy."""


class Glance:
    """Looks at the records of a run.  ``machines``: by their ids.  ``catalogue``: of ceilings, if not ours."""

    def __init__(self, machines: Mapping[str, Machine], catalogue: Catalogue | None = None) -> None:
        self._machines, self._catalogue = machines, catalogue or known()
        self._least = _LEAST.setdefault(self._catalogue.sha256, {})
        self._parts: dict[tuple[str, ...], _Parts | None] = {}

    def doubts(self, record: Record, middle: float) -> bool:
        """Whether the number of a measured launch may be untrue.  ``middle``: ln of its median time, not a number without one."""
        counters, measurement, work = record.counters, record.measurement, record.workload
        if counters.health or counters.device_bytes or counters.path:
            return True
        if work is None or measurement is None:
            return False
        if measurement.series and not measurement.series.keys().isdisjoint(searched.SERIES):
            return True
        parts = self._parts_under(record) if record.ranks == 1 else None
        if parts is None:
            return False
        key = parts, work, measurement.cache
        if key not in self._least:
            self._least[key] = self._least_time(record)
        return middle < self._least[key]

    def _parts_under(self, record: Record) -> _Parts | None:
        """The known parts that the record ran on: looked up once for each device of the run."""
        place = record.placement[0] if record.placement else None
        key = (record.machine_id, record.device, *((place.device, place.pci) if place else ()))
        if key not in self._parts:
            machine = self._machines.get(record.machine_id)
            there = ceilings.under(record, machine, self._catalogue) if machine else None
            self._parts[key] = (there.part.name, there.number, there.highest_mhz) if there else None
        return self._parts[key]

    def _least_time(self, record: Record) -> float:
        """ln of the time in which its work reaches the lowest firm ceiling, and somewhat more; −∞ where there is none."""
        machine, times = self._machines[record.machine_id], [-math.inf]
        for name in LIMITED:
            amount = rates.AMOUNTS[name](record)
            low = Metric(name=name, value=0.0, unit=rates.unit_of(name, record))  # above no ceiling: nothing excuses it
            limit = ceilings.ceiling(record, machine, low, self._catalogue)
            if limit and limit.firm and amount > 0:
                times.append(math.log(amount / limit.value) + CLOSE)
        return max(times)
