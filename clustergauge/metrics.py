"""From counted work and measured times to rates: the only place that divides.

Pure functions of records: a mended formula mends old runs.  A rate is work over the median time; its interval is that of the
time, turned round (Hoefler and Belli, SC'15: summarise times, then divide).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from clustergauge import stats
from clustergauge.model import Metric, Record, Scalar, Workload

UNITS: Mapping[str, tuple[str, ...]] = {
    "time": ("s",),
    "time_p99": ("s",),
    "compute": ("FLOP/s", "OP/s"),
    "bandwidth": ("B/s",),
    "algbw": ("B/s",),
    "busbw": ("B/s",),
    "loop_time": ("s",),
    "loop_busbw": ("B/s",),
    "device_fraction": ("1",),
    "first_window": ("FLOP/s", "OP/s"),
    "last_window": ("FLOP/s", "OP/s"),
    "sustained": ("1",),
    "energy_per_flop": ("J/FLOP", "J/OP"),
    "energy_per_byte": ("J/B",),
}
"""Every metric there is, and the bare units it comes in."""

HEADLINES: Mapping[str, str] = {
    "compute": "compute",
    "memory": "bandwidth",
    "storage": "bandwidth",
    "network": "busbw",
    "latency": "time",
    "": "time",
}
"""The metric that says most about a case, by what bounds it."""

WINDOW = 0.1
"""Share of a burn-in's samples that its first and its last window hold."""
WINDOW_SAMPLES = 20
"""The fewest samples of a window."""
P99_SAMPLES = 100
"""The fewest samples that have a 99th percentile."""
ENERGY_S = 1.0
"""The least time between two readings of an energy counter that give a metric."""
ENERGY_SHARE = 0.5
"""The least share of that time in which the work must have run."""
COUNTER_STEP_S = 0.1
"""The longest step of an energy counter: NVML's sensor on A100 and H100 (arXiv:2312.02741); RAPL moves every millisecond."""


def _one(_ranks: int) -> float:
    return 1.0


def _twice_the_rest(ranks: int) -> float:
    return 2 * (ranks - 1) / ranks


def _the_rest(ranks: int) -> float:
    return (ranks - 1) / ranks


BUS_FACTOR: Mapping[str, Callable[[int], float]] = {
    "all_reduce": _twice_the_rest,
    "all_gather": _the_rest,
    "reduce_scatter": _the_rest,
    "all_to_all": _the_rest,
    "gather": _the_rest,
    "scatter": _the_rest,
    "broadcast": _one,
    "reduce": _one,
    "send_recv": _one,
}
"""busbw over algbw for a number of ranks: what each link must carry, whatever the algorithm (nccl-tests, PERFORMANCE.md)."""


def samples(record: Record) -> list[float]:
    """Seconds of one iteration, in the order taken, without the warm-up; empty where nothing was measured."""
    measurement = record.measurement
    return measurement.samples_s[measurement.warmup_cut :] if measurement else []


def derive(records: Sequence[Record]) -> list[Metric]:
    """What the launches of one case (one device of one machine) say together, the headline first.

    Records that are not *ok* or hold no samples say nothing: no number without its check.  Rates need launches that counted
    the same work on as many ranks.  What can't be known is absent.
    """
    measured = [record for record in records if record.status == "ok" and samples(record)]
    if not measured:
        return []
    found = list(_all(measured))
    workload = measured[0].workload
    first = HEADLINES[workload.bound if workload else ""]
    return sorted(found, key=lambda metric: metric.name != first)  # stable: the rest keeps its order


def headline(records: Sequence[Record]) -> Metric | None:
    """The metric that says most about the case; ``None`` where there is nothing to say."""
    found = derive(records)
    return found[0] if found else None


def _all(records: Sequence[Record]) -> Iterator[Metric]:
    """Every metric of measured launches."""
    launches = [samples(record) for record in records]
    interval = stats.judging_interval(launches)
    yield _time("time", interval)
    singles = all(r.measurement and r.measurement.iterations_per_sample == 1 for r in records)
    if singles and min(len(launch) for launch in launches) >= P99_SAMPLES:  # the tail of means over iterations is another thing
        yield _time("time_p99", stats.judging_interval(launches, quantile=0.99))
    workload, ranks = records[0].workload, records[0].ranks
    comparable = all(r.workload == workload and r.ranks == ranks for r in records)
    if workload and comparable:
        yield from _rates(workload, ranks, interval)
    loops = [[r.measurement.loop_mean_s] for r in records if r.measurement and r.measurement.loop_mean_s is not None]
    if loops:
        loop = stats.judging_interval(loops)
        yield _time("loop_time", loop)
        if workload and comparable:
            yield from _rate("loop_busbw", workload.message_bytes * _factor(workload, ranks), "B/s", loop)
    if workload and comparable and all(r.settings.get("burn_in") for r in records):
        yield from _windows(workload, launches)
    yield from _device_fraction(records)
    if workload and comparable:
        yield from _energies(workload, records)


def _rates(workload: Workload, ranks: int, interval: stats.Interval) -> Iterator[Metric]:
    yield from _rate("compute", workload.flops or workload.ops, "FLOP/s" if workload.flops else "OP/s", interval)
    yield from _rate("bandwidth", workload.bytes_read + workload.bytes_written, "B/s", interval)
    yield from _rate("algbw", workload.message_bytes, "B/s", interval)
    yield from _rate("busbw", workload.message_bytes * _factor(workload, ranks), "B/s", interval)


def _factor(workload: Workload, ranks: int) -> float:
    """busbw over algbw; 0 for an unknown collective, and for one rank where nothing crosses a link: no such metric then."""
    factor = BUS_FACTOR.get(workload.collective)
    return factor(ranks) if factor and ranks > 0 else 0.0


def _time(name: str, interval: stats.Interval) -> Metric:
    return Metric(name=name, value=interval.median, unit="s", low=interval.low, high=interval.high, better="lower")


def _rate(name: str, work: float, unit: str, interval: stats.Interval) -> Iterator[Metric]:
    """Work over time, where there was work and it took time."""
    if work > 0 and interval.median > 0:
        yield Metric(
            name=name,
            value=work / interval.median,
            unit=unit,
            low=work / interval.high if interval.high else None,
            high=work / interval.low if interval.low else None,
        )


def _windows(workload: Workload, launches: Sequence[Sequence[float]]) -> Iterator[Metric]:
    """Rates at the start and at the end of a burn-in, and the second over the first; absent where it was too short."""
    sizes = [int(WINDOW * len(launch)) for launch in launches]
    if min(sizes) < WINDOW_SAMPLES:
        return
    first = stats.judging_interval([launch[:size] for launch, size in zip(launches, sizes, strict=True)])
    last = stats.judging_interval([launch[-size:] for launch, size in zip(launches, sizes, strict=True)])
    work, unit = workload.flops or workload.ops, "FLOP/s" if workload.flops else "OP/s"
    yield from _rate("first_window", work, unit, first)
    yield from _rate("last_window", work, unit, last)
    if first.low and first.high and last.low and last.high and last.median > 0:
        worst, best = first.low / last.high, first.high / last.low
        yield Metric(name="sustained", value=first.median / last.median, unit="1", low=worst, high=best)


def _device_fraction(records: Sequence[Record]) -> Iterator[Metric]:
    """Bytes the device moved over bytes asked for, all launches together; the smaller of reading and writing.

    Absent unless every launch knows: one launch that a cache answered must not hide behind others.
    """
    fractions: list[float] = []
    for way in ("read", "written"):
        pairs = [(r.counters.device_bytes.get(way), r.counters.device_bytes.get(f"asked_{way}")) for r in records]
        known = [moved / asked for moved, asked in pairs if moved is not None and asked]
        if len(known) == len(pairs):
            fractions.append(min(known))
    if fractions:
        least = min(fractions)
        yield Metric(name="device_fraction", value=least, unit="1", low=least, high=least)  # counted, not sampled


def _energies(workload: Workload, records: Sequence[Record]) -> Iterator[Metric]:
    """Energy by operation and by byte of memory, the median of the launches that know it; absent where none does.

    The ends are the furthest of all launches.  Storage and links have their own devices, whose energy is not counted here.
    """
    known = [joules for record in records if (joules := _joules_of_a_run(record))]
    if not known or workload.bound in ("storage", "network"):
        return
    median, low, high = stats.median([j.value for j in known]), min(j.low for j in known), max(j.high for j in known)
    operations, moved = workload.flops or workload.ops, workload.bytes_read + workload.bytes_written
    of_one = "J/FLOP" if workload.flops else "J/OP"
    for name, work, unit in (("energy_per_flop", operations, of_one), ("energy_per_byte", moved, "J/B")):
        if work > 0:
            yield Metric(name=name, value=median / work, unit=unit, low=low / work, high=high / work, better="lower")


class _Joules(NamedTuple):
    """Of one run."""

    value: float
    low: float
    high: float


def _joules_of_a_run(record: Record) -> _Joules | None:
    """What the counter of the case's device moved between two readings, over the runs between them.

    All that happened meanwhile is in it: idle power, which is not subtracted, and what was done between samples (resets, checks
    of outputs).  The low end is what the work itself took if the device drew as much outside of it; both ends allow for a sample
    cut at each reading, and for the counter's step.  ``None`` where no counter was read for long enough while samples were
    taken, where the work ran too little of that time, and for several ranks, whose devices need not have worked alike.
    """
    measured, telemetry = record.measurement, record.telemetry
    part = f"gpu{record.device.removeprefix('cuda:')}" if record.device.startswith("cuda") else "cpu"
    joules, start, end = (_number(telemetry.get(f"{part}_energy_{name}")) for name in ("j", "from_s", "to_s"))
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
    return _Joules(joules / (calls * len(inside)), low, joules * (1 + step) / (calls * (len(inside) - 1)))


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
