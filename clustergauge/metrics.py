"""From counted work and measured times to rates: the only place that divides.

Pure functions of records: a mended formula mends old runs.  A rate is work over the median time; its interval is that of the
time, turned round (Hoefler and Belli, SC'15: summarise times, then divide).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from clustergauge import stats
from clustergauge.model import Metric, Record, Workload

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
