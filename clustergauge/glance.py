"""Whether the numbers of a case may be untrue, told at a glance.  Pure.

Of a fleet nearly every number may be true, and to work out all that `believed` looks at takes longer than to read it.  What
raises no doubt here is not invalid there; of what does, `believed` decides.
"""

from __future__ import annotations

import math

from clustergauge import ceilings, rates, searched
from clustergauge.catalogue import Catalogue, known
from clustergauge.model import Machine, Metric, Record, Workload

CLOSE = 1e-6
"""Of ln of a time: so much nearer the limit a doubt begins, for a median is worked out in more than one way."""
LIMITED = ("compute", "bandwidth")
"""The metrics that have a ceiling (`ceilings.ceiling`)."""


class Glance:
    """Looks at records of many machines.  ``catalogue``: of ceilings, if not ours.

    The least time that physics allows is worked out once for each kind of work on each kind of device.
    """

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self._catalogue = catalogue or known()
        self._least: dict[tuple[str, int, float | None, Workload, str], float] = {}

    def doubts(self, record: Record, machine: Machine | None, middle: float) -> bool:
        """Whether the number of a measured launch may be untrue.  ``middle``: ln of its median time, not a number without one."""
        counters, measurement = record.counters, record.measurement
        if counters.health or counters.device_bytes or counters.path:
            return True
        if measurement and measurement.series and not measurement.series.keys().isdisjoint(searched.SERIES):
            return True
        return machine is not None and middle < self._least_of(record, machine)

    def _least_of(self, record: Record, machine: Machine) -> float:
        """ln of the time in which its work reaches the lowest firm ceiling, and somewhat more; −∞ where there is none."""
        work = record.workload
        there = ceilings.under(record, machine, self._catalogue) if work and record.ranks == 1 else None
        if work is None or there is None:
            return -math.inf
        key = (there.part.name, there.count, there.highest_mhz, work, record.measurement.cache if record.measurement else "")
        if key not in self._least:
            self._least[key] = self._least_time(record, machine)
        return self._least[key]

    def _least_time(self, record: Record, machine: Machine) -> float:
        times: list[float] = []
        for name in LIMITED:
            amount = rates.AMOUNTS[name](record)
            low = Metric(name=name, value=0.0, unit=rates.unit_of(name, record))  # above no ceiling: nothing excuses it
            limit = ceilings.ceiling(record, machine, low, self._catalogue)
            if limit and limit.firm and amount > 0:
                times.append(math.log(amount / limit.value) + CLOSE)
        return max(times, default=-math.inf)


_GLANCES: dict[str, Glance] = {}


def of(catalogue: Catalogue | None) -> Glance:
    """The one for these ceilings, for all runs that this process reads."""
    return _GLANCES.setdefault(catalogue.sha256 if catalogue else "", Glance(catalogue))
