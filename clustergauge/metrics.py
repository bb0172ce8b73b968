"""From counted work and measured times to rates: the only place that divides, with `energy` for what a run drew.

Pure functions of records: a mended formula mends old runs.  A rate is work over the median time; its interval is that of the
time, turned round (Hoefler and Belli, SC'15: summarise times, then divide).  Launches that did different amounts of work (each
chose its own shape, say) have no time in common, but a rate: every launch's own work is divided by its own times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import structs

from clustergauge import stats, turnstile
from clustergauge.energy import joules_of_a_run, number
from clustergauge.model import Metric, Record, Workload

UNITS: Mapping[str, tuple[str, ...]] = {
    "time": ("s",),
    "time_p99": ("s",),
    "compute": ("FLOP/s", "OP/s"),
    "bandwidth": ("B/s",),
    "iops": ("IO/s",),
    "samples": ("samples/s",),
    "utilisation": ("1",),
    "framework_time": ("s",),
    "device_time": ("s",),
    "latency_p50": ("s",),
    "latency_p99": ("s",),
    "latency_p999": ("s",),
    "beside": ("B/s",),
    "over_peer": ("1",),
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
LATENCIES = (("latency_p50", 0.5, 1), ("latency_p99", 0.99, P99_SAMPLES), ("latency_p999", 0.999, 10 * P99_SAMPLES))
"""Quantiles of a record's series ``latency``: name, quantile, and the fewest values that have it."""


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


def by_turn(record: Record) -> dict[float, list[float]]:
    """Seconds of one iteration, by the beginning of the turn in which each was taken (`turnstile`); all at 0 without turns."""
    measurement = record.measurement
    kept = measurement.series.get(turnstile.SERIES) if measurement else None
    if not measurement or not kept:
        return {0.0: samples(record)}
    found: dict[float, list[float]] = {}
    for turn, seconds in zip(kept.values, measurement.samples_s, strict=False):
        found.setdefault(turn, []).append(seconds)
    return found


def derive(records: Sequence[Record]) -> list[Metric]:
    """What the launches of one case (one device of one machine) say together, the headline first.

    Records that are not *ok* or hold no samples say nothing: no number without its check.  Launches that did different amounts of
    work have rates alone; what they did on different numbers of ranks, or of another kind, has nothing in common
    (`disagreement`).  What can't be known is absent.
    """
    measured = _measured(records)
    if not measured:
        return []
    found = list(_all(measured))
    work = measured[0].workload or Workload()
    first = "samples" if work.samples else "iops" if work.ios else HEADLINES[work.bound]
    return sorted(found, key=lambda metric: metric.name != first)  # stable: the rest keeps its order


def disagreement(records: Sequence[Record]) -> str:
    """In which way measured launches of one case did different work, in words; empty where they did not."""
    measured = _measured(records)
    ranks = sorted({record.ranks for record in measured})
    if len(ranks) > 1:
        return f"launches ran on {' and '.join(map(str, ranks))} ranks"
    if len({_kind(record.workload) for record in measured}) > 1:
        return "launches did different kinds of work"
    return "launches did different amounts of work" if len({record.workload for record in measured}) > 1 else ""


def _measured(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.status == "ok" and samples(record)]


def _kind(workload: Workload | None) -> tuple[object, ...]:
    """What a work is, whatever its amounts."""
    if workload is None:
        return ()
    return tuple(value > 0 if isinstance(value, int) else value for value in structs.astuple(workload))


def headline(records: Sequence[Record]) -> Metric | None:
    """The metric that says most about the case; ``None`` where there is nothing to say."""
    found = derive(records)
    return found[0] if found else None


def half_width(metric: Metric) -> float | None:
    """Half of the interval over the number: the ± of a table; ``None`` where there is no interval."""
    if metric.low is None or metric.high is None or metric.value <= 0:
        return None
    return (metric.high - metric.low) / 2 / metric.value


def _all(records: Sequence[Record]) -> Iterator[Metric]:
    """Every metric of measured launches."""
    launches = [samples(record) for record in records]
    looped = [record for record in records if record.measurement and record.measurement.loop_mean_s is not None]
    loops = [[r.measurement.loop_mean_s] for r in looped if r.measurement and r.measurement.loop_mean_s is not None]
    same = not disagreement(records)
    alike = len({(_kind(record.workload), record.ranks) for record in records}) == 1
    if same:
        yield _time("time", stats.judging_interval(launches))
        singles = all(r.measurement and r.measurement.iterations_per_sample == 1 for r in records)
        if singles and min(map(len, launches)) >= P99_SAMPLES:  # the tail of means over iterations is another thing
            yield _time("time_p99", stats.judging_interval(launches, quantile=0.99))
    if alike:
        for name, amount in AMOUNTS.items():
            yield from _rate(name, [amount(record) for record in records], unit_of(name, records[0]), launches)
    yield from _latencies(records)
    yield from _beside(records)
    yield from _utilisation(records)
    if same:
        yield from _framework(records)
    yield from _over_peer(records)
    if loops and same:
        yield _time("loop_time", stats.judging_interval(loops))
    if loops and alike:
        yield from _rate("loop_busbw", [_bus_bytes(record) for record in looped], "B/s", loops)
    if alike and all(r.settings.get("burn_in") for r in records):
        yield from _windows(records, launches)
    yield from _device_fraction(records)
    if alike:
        yield from _energies(records)


def _operations(record: Record) -> float:
    return record.workload.flops or record.workload.ops if record.workload else 0


def _bytes(record: Record) -> float:
    return record.workload.bytes_read + record.workload.bytes_written if record.workload else 0


def _ios(record: Record) -> float:
    return record.workload.ios if record.workload else 0


def _samples(record: Record) -> float:
    return record.workload.samples if record.workload else 0


def _message_bytes(record: Record) -> float:
    return record.workload.message_bytes if record.workload else 0


def _bus_bytes(record: Record) -> float:
    return record.workload.message_bytes * _factor(record.workload, record.ranks) if record.workload else 0


AMOUNTS: Mapping[str, Callable[[Record], float]] = {
    "compute": _operations,
    "bandwidth": _bytes,
    "iops": _ios,
    "samples": _samples,
    "algbw": _message_bytes,
    "busbw": _bus_bytes,
}
"""Work of one iteration, by the rate that it gives."""


def unit_of(name: str, record: Record) -> str:
    """The unit of one of the rates of `AMOUNTS`."""
    if name != "compute":
        return {"iops": "IO/s", "samples": "samples/s"}.get(name, "B/s")
    return "FLOP/s" if record.workload and record.workload.flops else "OP/s"


def _factor(workload: Workload, ranks: int) -> float:
    """busbw over algbw; 0 for an unknown collective, and for one rank where nothing crosses a link: no such metric then."""
    factor = BUS_FACTOR.get(workload.collective)
    return factor(ranks) if factor and ranks > 0 else 0.0


def _time(name: str, interval: stats.Interval) -> Metric:
    return Metric(name=name, value=interval.median, unit="s", low=interval.low, high=interval.high, better="lower")


def _rate(name: str, works: Sequence[float], unit: str, launches: Sequence[Sequence[float]]) -> Iterator[Metric]:
    """Each launch's work over its times, where there was work and it took time."""
    if min(works) <= 0:
        return
    interval = stats.judging_interval(_as_if_same(works, launches))
    if interval.median > 0:
        yield Metric(
            name=name,
            value=works[0] / interval.median,
            unit=unit,
            low=works[0] / interval.high if interval.high else None,
            high=works[0] / interval.low if interval.low else None,
        )


def series(record: Record, name: str) -> list[float]:
    """The values of a series without those of the warm-up; empty where the record has none of that name.

    Every sample has added as many values as every other.
    """
    measurement = record.measurement
    found = measurement.series.get(name) if measurement else None
    if measurement is None or found is None or not measurement.samples_s:
        return []
    return found.values[len(found.values) * measurement.warmup_cut // len(measurement.samples_s) :]


def _latencies(records: Sequence[Record]) -> Iterator[Metric]:
    """Quantiles of the single operations, where every launch has enough of them."""
    launches = [series(record, "latency") for record in records]
    fewest = min(len(launch) for launch in launches)
    for name, quantile, least in LATENCIES:
        if fewest >= least and (interval := stats.judging_interval(launches, quantile=quantile)).median > 0:
            yield _time(name, interval)


def _beside(records: Sequence[Record]) -> Iterator[Metric]:
    """The rate of a writer at work beside the case, where every launch knows what it wrote during each sample."""
    launches: list[list[float]] = []
    for record in records:
        counts, times = series(record, "beside_bytes"), samples(record)
        scale = record.measurement.iterations_per_sample if record.measurement else 1
        if len(counts) != len(times) or min(counts) <= 0:
            return
        launches.append([took * scale / count for count, took in zip(counts, times, strict=True)])  # seconds for a byte
    yield from _rate("beside", [1.0] * len(launches), "B/s", launches)


def _utilisation(records: Sequence[Record]) -> Iterator[Metric]:
    """Accelerator utilisation (AU) of a loader as MLPerf Storage defines it: declared compute time over the time it all took, the
    first step of each sample left out of both.  Absent where nothing is computed."""
    launches: list[list[float]] = []
    for record in records:
        compute, times = number(record.settings.get("compute_s")), series(record, "later_steps")
        steps = record.measurement.iterations_per_sample - 1 if record.measurement else 0
        if not compute or compute < 0 or steps < 1 or len(times) != len(samples(record)):
            return
        launches.append([took / (compute * steps) for took in times])
    yield from _rate("utilisation", [1.0] * len(launches), "1", launches)


def _framework(records: Sequence[Record]) -> Iterator[Metric]:
    """The library's part of a checkpoint's time, and the rest, which is the device's; where every launch knows."""
    launches = [series(record, "framework") for record in records]
    if any(len(launch) != len(samples(record)) for launch, record in zip(launches, records, strict=True)):
        return
    pairs = [zip(samples(record), launch, strict=True) for record, launch in zip(records, launches, strict=True)]
    rest = [[took - framework for took, framework in of_launch] for of_launch in pairs]
    for name, values in (("framework_time", launches), ("device_time", rest)):
        if (interval := stats.judging_interval(values)).median > 0:
            yield _time(name, interval)


def over_peer(record: Record) -> list[float]:
    """Our rate over that of another program doing the same, in each pair of turns; empty where there were none."""
    found = record.measurement.series if record.measurement else {}
    if not {"own_s", "peer_s"} <= found.keys():
        return []
    pairs = zip(found["own_s"].values, found["peer_s"].values, strict=False)
    return [theirs / ours for ours, theirs in pairs if ours > 0 and theirs > 0]


def _over_peer(records: Sequence[Record]) -> Iterator[Metric]:
    """The median ratio, where every launch was held against a peer."""
    launches = [over_peer(record) for record in records]
    if all(launches):
        interval = stats.judging_interval(launches)
        yield Metric(name="over_peer", value=interval.median, unit="1", low=interval.low, high=interval.high)


def _as_if_same(works: Sequence[float], launches: Sequence[Sequence[float]]) -> list[list[float]]:
    """The times that the first launch's work would have taken at the rates of each; as they are where nothing was counted."""
    shares = [works[0] / work if work > 0 else 1.0 for work in works]
    return [[seconds * share for seconds in launch] for share, launch in zip(shares, launches, strict=True)]


def windows(record: Record) -> list[Metric]:
    """First and last window of one burn-in, whatever became of it: what it had measured before it went wrong was checked."""
    return list(_windows([record], [samples(record)])) if record.settings.get("burn_in") and samples(record) else []


def _windows(records: Sequence[Record], launches: Sequence[Sequence[float]]) -> Iterator[Metric]:
    """Rates at the start and at the end of a burn-in, and the second over the first; absent where it was too short."""
    sizes = [int(WINDOW * len(launch)) for launch in launches]
    if min(sizes) < WINDOW_SAMPLES:
        return
    works, unit = [_operations(record) for record in records], unit_of("compute", records[0])
    firsts = [launch[:size] for launch, size in zip(launches, sizes, strict=True)]
    lasts = [launch[-size:] for launch, size in zip(launches, sizes, strict=True)]
    yield from _rate("first_window", works, unit, firsts)
    yield from _rate("last_window", works, unit, lasts)
    first, last = (stats.judging_interval(_as_if_same(works, windows)) for windows in (firsts, lasts))
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


def _energies(records: Sequence[Record]) -> Iterator[Metric]:
    """Energy by operation and by byte of memory, the median of the launches that know it, each of its own work; else absent.

    The ends are the furthest of all launches.  Storage and links have their own devices, whose energy is not counted here.
    """
    known = [(record, joules) for record in records if (joules := joules_of_a_run(record))]
    workload = records[0].workload
    if not known or workload is None or workload.bound in ("storage", "network"):
        return
    of_one = "J/FLOP" if workload.flops else "J/OP"
    for name, amount, unit in (("energy_per_flop", _operations, of_one), ("energy_per_byte", _bytes, "J/B")):
        each = [(j.value / work, j.low / work, j.high / work) for record, j in known if (work := amount(record)) > 0]
        if each:
            values, lows, highs = zip(*each, strict=True)
            yield Metric(name=name, value=stats.median(values), unit=unit, low=min(lows), high=max(highs), better="lower")
