"""Metrics that a few kinds of cases have beside time and rates: latencies of single operations, windows of a burn-in, what a
loader and a checkpoint say of their parts, what the device itself moved.  Pure; each is absent where a launch does not know it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clustergauge import readings, stats
from clustergauge.energy import number
from clustergauge.model import Metric, Record
from clustergauge.rates import as_if_same, operations, rate, time, unit_of
from clustergauge.readings import samples, series

WINDOW = 0.1
"""Share of a burn-in's samples that its first and its last window hold."""
WINDOW_SAMPLES = 20
"""The fewest samples of a window."""
P99_SAMPLES = 100
"""The fewest samples that have a 99th percentile."""
LATENCIES = (("latency_p50", 0.5, 1), ("latency_p99", 0.99, P99_SAMPLES), ("latency_p999", 0.999, 10 * P99_SAMPLES))
"""Quantiles of a record's series ``latency``: name, quantile, and the fewest values that have it."""


def latencies(records: Sequence[Record]) -> Iterator[Metric]:
    """Quantiles of the single operations, where every launch has enough of them."""
    launches = [series(record, "latency") for record in records]
    fewest = min(len(launch) for launch in launches)
    for name, quantile, least in LATENCIES:
        if fewest >= least and (interval := stats.judging_interval(launches, quantile=quantile)).median > 0:
            yield time(name, interval)


def beside(records: Sequence[Record]) -> Iterator[Metric]:
    """The rate of a writer at work beside the case, where every launch knows what it wrote during each sample."""
    launches: list[list[float]] = []
    for record in records:
        counts, times = series(record, "beside_bytes"), samples(record)
        scale = record.measurement.iterations_per_sample if record.measurement else 1
        if len(counts) != len(times) or min(counts) <= 0:
            return
        launches.append([took * scale / count for count, took in zip(counts, times, strict=True)])  # seconds for a byte
    yield from rate("beside", [1.0] * len(launches), "B/s", launches)


def utilisation(records: Sequence[Record]) -> Iterator[Metric]:
    """Accelerator utilisation (AU) of a loader as MLPerf Storage defines it: declared compute time over the time it all took, the
    first step of each sample left out of both.  Absent where nothing is computed."""
    launches: list[list[float]] = []
    for record in records:
        compute, times = number(record.settings.get("compute_s")), series(record, "later_steps")
        steps = record.measurement.iterations_per_sample - 1 if record.measurement else 0
        if not compute or compute < 0 or steps < 1 or len(times) != len(samples(record)):
            return
        launches.append([took / (compute * steps) for took in times])
    yield from rate("utilisation", [1.0] * len(launches), "1", launches)


def framework(records: Sequence[Record]) -> Iterator[Metric]:
    """The library's part of a checkpoint's time, and the rest, which is the device's; where every launch knows."""
    launches = [series(record, "framework") for record in records]
    if any(len(launch) != len(samples(record)) for launch, record in zip(launches, records, strict=True)):
        return
    pairs = [zip(samples(record), launch, strict=True) for record, launch in zip(records, launches, strict=True)]
    rest = [[took - framework for took, framework in of_launch] for of_launch in pairs]
    for name, values in (("framework_time", launches), ("device_time", rest)):
        if (interval := stats.judging_interval(values)).median > 0:
            yield time(name, interval)


def over_peer(records: Sequence[Record]) -> Iterator[Metric]:
    """The median ratio, where every launch was held against a peer."""
    launches = [readings.over_peer(record) for record in records]
    if all(launches):
        interval = stats.judging_interval(launches)
        yield Metric(name="over_peer", value=interval.median, unit="1", low=interval.low, high=interval.high)


def windows(record: Record) -> list[Metric]:
    """First and last window of one burn-in, whatever became of it: what it had measured before it went wrong was checked."""
    return list(over_windows([record], [samples(record)])) if record.settings.get("burn_in") and samples(record) else []


def over_windows(records: Sequence[Record], launches: Sequence[Sequence[float]]) -> Iterator[Metric]:
    """Rates at the start and at the end of a burn-in, and the second over the first; absent where it was too short."""
    sizes = [int(WINDOW * len(launch)) for launch in launches]
    if min(sizes) < WINDOW_SAMPLES:
        return
    works, unit = [operations(record) for record in records], unit_of("compute", records[0])
    firsts = [launch[:size] for launch, size in zip(launches, sizes, strict=True)]
    lasts = [launch[-size:] for launch, size in zip(launches, sizes, strict=True)]
    yield from rate("first_window", works, unit, firsts)
    yield from rate("last_window", works, unit, lasts)
    first, last = (stats.judging_interval(as_if_same(works, windows)) for windows in (firsts, lasts))
    if first.low and first.high and last.low and last.high and last.median > 0:
        worst, best = first.low / last.high, first.high / last.low
        yield Metric(name="sustained", value=first.median / last.median, unit="1", low=worst, high=best)


def device_fraction(records: Sequence[Record]) -> Iterator[Metric]:
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
