"""What one run of a case drew, by the energy counter of its device, and for each operation and byte.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clustergauge import stats
from clustergauge.model import Metric, Record, Scalar
from clustergauge.rates import bytes_moved, operations

ENERGY_S = 1.0
"""The least time between two readings of an energy counter that give a metric."""
ENERGY_SHARE = 0.5
"""The least share of that time in which the work must have run."""
COUNTER_STEP_S = 0.1
"""The longest step of an energy counter: NVML's sensor on A100 and H100 (arXiv:2312.02741); RAPL moves every millisecond."""


class Joules(NamedTuple):
    """Of one run."""

    value: float
    low: float
    high: float


def joules_of_a_run(record: Record) -> Joules | None:
    """What the counter of the case's device moved between two readings, over the runs between them.

    All that happened meanwhile is in it: idle power, which is not subtracted, and what was done between samples (resets, checks
    of outputs).  The low end is what the work itself took if the device drew as much outside of it; both ends allow for a sample
    cut at each reading, and for the counter's step.  ``None`` where no counter was read for long enough while samples were
    taken, where the work ran too little of that time, and for several ranks, whose devices need not have worked alike.
    """
    measured, telemetry = record.measurement, record.telemetry
    part = f"gpu{record.device.removeprefix('cuda:')}" if record.device.startswith("cuda") else "cpu"
    joules, start, end = (number(telemetry.get(f"{part}_energy_{name}")) for name in ("j", "from_s", "to_s"))
    if measured is None or record.ranks != 1 or telemetry.get("window") != "sampling":
        return None
    if joules is None or start is None or end is None or joules <= 0 or not end - start >= ENERGY_S:
        return None
    starts = zip(measured.sample_start_s, measured.samples_s, strict=False)
    inside = [seconds for began, seconds in starts if start <= began < end]
    calls, span = measured.iterations_per_sample, end - start
    share = sum(inside) * calls / span
    if len(inside) < 2 or share < ENERGY_SHARE:
        return None
    step = COUNTER_STEP_S / span
    low = joules * (1 - step) * min(1.0, share) / (calls * (len(inside) + 1))
    return Joules(joules / (calls * len(inside)), low, joules * (1 + step) / (calls * (len(inside) - 1)))


def number(value: Scalar) -> float | None:
    """A setting or a reading as a number; ``None`` for whatever is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def energies(records: Sequence[Record]) -> Iterator[Metric]:
    """Energy by operation and by byte of memory, the median of the launches that know it, each of its own work; else absent.

    The ends are the furthest of all launches.  Storage and links have their own devices, whose energy is not counted here.
    """
    known = [(record, joules) for record in records if (joules := joules_of_a_run(record))]
    workload = records[0].workload
    if not known or workload is None or workload.bound in ("storage", "network"):
        return
    of_one = "J/FLOP" if workload.flops else "J/OP"
    for name, amount, unit in (("energy_per_flop", operations, of_one), ("energy_per_byte", bytes_moved, "J/B")):
        each = [(j.value / work, j.low / work, j.high / work) for record, j in known if (work := amount(record)) > 0]
        if each:
            values, lows, highs = zip(*each, strict=True)
            yield Metric(name=name, value=stats.median(values), unit=unit, low=min(lows), high=max(highs), better="lower")
