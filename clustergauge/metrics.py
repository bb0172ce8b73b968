"""What launches of a case say together: every metric with its interval, the headline first.

Pure functions of records: a mended formula mends old runs.  Nothing but `rates`, `special` and `energy` divides.  Launches that
did different amounts of work (each chose its own shape, say) have no time in common, but a rate: every launch's own work is
divided by its own times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from clustergauge import special, stats
from clustergauge.energy import energies
from clustergauge.model import Metric, Record, Workload
from clustergauge.rates import AMOUNTS, bus_bytes, kind_of_work, rate, time, unit_of
from clustergauge.readings import samples

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
    if len({kind_of_work(record.workload) for record in measured}) > 1:
        return "launches did different kinds of work"
    return "launches did different amounts of work" if len({record.workload for record in measured}) > 1 else ""


def _measured(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.status == "ok" and samples(record)]


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
    alike = len({(kind_of_work(record.workload), record.ranks) for record in records}) == 1
    if same:
        yield time("time", stats.judging_interval(launches))
        singles = all(r.measurement and r.measurement.iterations_per_sample == 1 for r in records)
        if singles and min(map(len, launches)) >= special.P99_SAMPLES:  # the tail of means over iterations is another thing
            yield time("time_p99", stats.judging_interval(launches, quantile=0.99))
    if alike:
        for name, amount in AMOUNTS.items():
            yield from rate(name, [amount(record) for record in records], unit_of(name, records[0]), launches)
    yield from special.latencies(records)
    yield from special.beside(records)
    yield from special.utilisation(records)
    if same:
        yield from special.framework(records)
    yield from special.over_peer(records)
    if loops and same:
        yield time("loop_time", stats.judging_interval(loops))
    if loops and alike:
        yield from rate("loop_busbw", [bus_bytes(record) for record in looped], "B/s", loops)
    if alike and all(r.settings.get("burn_in") for r in records):
        yield from special.over_windows(records, launches)
    yield from special.device_fraction(records)
    if alike:
        yield from energies(records)
