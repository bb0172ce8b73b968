"""What a reader should know before believing a number: doubts derived from the records, each with a remedy.  Pure.

The limits are those of the notes on statistics that `stats` follows: chosen by simulation so that a quiet machine is not accused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clustergauge import believed, groups, metrics, readings, searched, stats, sweeps, waits
from clustergauge.model import Record, Scalar, Warning_
from clustergauge.slow_storage import SLOW_RATIO, rank_seconds
from clustergauge.units import format_rate, format_time, format_width

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf

CV_MOST = 0.05
RHO_MOST = 0.7
DRIFT_LEAST = 0.01
DRIFT_ERRORS = 3.0
SERIES_SAMPLES = 20
"""The fewest samples whose order says something."""
MODES_SAMPLES = 50
MODES_SHARE = 0.10
"""The least share of the samples in the smaller mode."""
MODES_GAP = 0.02
MODES_SCALES = 3.0
MODES_BETWEEN = 0.15
"""The most of the samples in the middle third of the way from one mode to the other."""
CLOCK_LEAST = 0.9
LATE_LEAST_S = 100e-6
"""Ranks leave a barrier within this of each other, over a network too."""
LATE_SHARE = 0.1
"""The share of a sample's time below which a late rank does not change it much."""
LATE_OFTEN = 0.5
"""A rank that is the last at so many of the samples is late by habit."""
SLOW_RANK = 0.9
"""The share of the others' rate below which a rank of a burn-in is slow: good parts of one kind differ by a few per cent."""
SLOW_OFTEN = 0.75
"""A rank that takes `SLOW_RATIO` times what the others take at the median in so many of the samples is slow by habit."""
SLOW_SAMPLES = 5
"""The fewest samples that show a habit."""
STEADY_WINDOWS = 5
STEADY_RANGE = 0.20
STEADY_SLOPE = 0.10
LAUNCHES_LEAST = 3
OF_ALIKE = ("restless", "wide interval", "correlated", "drift", "two modes")
"""Doubts about samples of one thing; those of a sweep are of different pairs, and `pairs` knows their spread."""
ABOVE = "believe neither before the part's data sheet and highest clock are looked up; --ceilings FILE takes what they say"


class Seen(NamedTuple):
    """A doubt about one launch: how bad (to name the worst launch), what was seen, and which rank it is about, if one."""

    weight: float
    detail: str
    who: str = ""


@dataclass(frozen=True)
class Doubt:
    """A kind of doubt."""

    name: str
    remedy: str
    look: Callable[[Record, list[float]], Seen | None]


def doubts(records: Sequence[Record], ceiling: CeilingOf | None = None) -> list[Warning_]:
    """The doubts about one case on one device: of each kind the worst launch, and how many launches show it.

    ``ceiling``: what physics allows a metric.
    """
    timed = [(r, s) for r in records if r.status == "ok" and (s := readings.samples(r))]
    looked_at = [doubt for doubt in DOUBTS if not (doubt.name in OF_ALIKE and any(sweeps.is_sweep(r) for r, _ in timed))]
    found = (warning for doubt in looked_at for warning in _of_kind(doubt, timed))
    return [*_apart(records), *_above([r for r, _ in timed], ceiling), *found]


def of_run(records: Sequence[Record]) -> list[Warning_]:
    """What is to be said once for a whole run."""
    return [*_few_launches(records), *_groups_alone(records)]


def _groups_alone(records: Sequence[Record]) -> Iterator[Warning_]:
    alone = groups.alone(records)
    if alone:
        words = [
            f"{who}: {cases[0]}{f' and {len(cases) - 1} more' if len(cases) > 1 else ''}"
            for who, cases in list(alone.items())[:8]
        ]
        yield Warning_(
            name="group alone",
            detail=f"held against no other group: none has as many ranks, and no rate allows for that: {'; '.join(words)}",
            remedy="judge by an acceptance file, or measure a number of nodes that groups of one size divide",
        )


def _few_launches(records: Sequence[Record]) -> list[Warning_]:
    launches: dict[tuple[str, str, str], set[int]] = {}
    for record in records:
        if record.status == "ok" and readings.samples(record):
            launches.setdefault((record.machine_id, record.case, record.device), set()).add(record.launch)
    few = [len(numbers) for numbers in launches.values() if len(numbers) < LAUNCHES_LEAST]
    if not few:
        return []
    cases = "every case" if len(few) == len(launches) else f"{len(few)} of {len(launches)} cases"
    count = f"{min(few)} launch{'es' if min(few) > 1 else ''}" if min(few) == max(few) else f"{min(few)} or {max(few)} launches"
    return [
        Warning_(
            name="few launches",
            detail=f"{cases} had {count}: the spread between launches is not measured, {stats.RUN_SPREAD:.1%} is assumed",
            remedy="--launches 5 measures every case in fresh processes",
        )
    ]


def _apart(records: Sequence[Record]) -> Iterator[Warning_]:
    """Launches that cannot be held against each other by their times."""
    if apart := metrics.disagreement(records):
        yield Warning_(
            name="different work",
            detail=f"{apart}: they have no time in common",
            remedy="compare rates, or fix what the launches chose for themselves (settings of the records)",
        )


def _above(records: Sequence[Record], ceiling: CeilingOf | None) -> Iterator[Warning_]:
    """What lies above a ceiling that is no proof against it (above a firm one the verdict is *invalid*)."""
    for metric in metrics.derive(records):
        limit = ceiling(records[0], metric) if ceiling else None
        if limit and not limit.firm and believed.surely_above(metric, limit.value):
            value, most = (format_rate(rate, metric.unit) for rate in (metric.value, limit.value))
            detail = f"{metric.name} {value}, at most {most}: {limit.source}"
            yield Warning_(name="above the ceiling", detail=detail, remedy=ABOVE)


def _of_kind(doubt: Doubt, timed: Sequence[tuple[Record, list[float]]]) -> Iterator[Warning_]:
    found = [(seen, record.launch) for record, samples in timed if (seen := doubt.look(record, samples))]
    if found:
        worst, launch = max(found, key=lambda item: item[0].weight)
        where = f" (launch {launch}; {len(found)} of {len(timed)} launches)" if len(timed) > 1 else ""
        yield Warning_(name=doubt.name, detail=worst.detail + where, remedy=doubt.remedy, who=worst.who)


# --------------------------------------------------------------------------------------------------------------------------
# one launch


def _restless(record: Record, samples: list[float]) -> Seen | None:
    values = np.asarray(samples)
    mean = float(values.mean())
    cv = float(values.std()) / mean if mean > 0 else 0.0
    ends = f"from {_shown(record, min(samples))} to {_shown(record, max(samples))}"
    detail = f"samples spread by {cv:.1%} (standard deviation over mean), {ends}"
    return Seen(cv, detail) if cv > CV_MOST else None


def _shown(record: Record, seconds: float) -> str:
    ios = _operations(record)
    return format_rate(ios / seconds, "IO/s") if ios and seconds > 0 else format_time(seconds)


def _operations(record: Record) -> int:
    """Of one step, where each was timed: the table then has the time of one of them, and samples are told by their rates."""
    return record.workload.ios if record.workload and readings.series(record, "latency") else 0


def _wide(record: Record, samples: list[float]) -> Seen | None:
    """Measuring aims at the interval inside a launch; what is told is that of the headline, which stands in the table."""
    inside, count = stats.median_interval(samples).half_width, len(samples)
    if inside is None:
        return Seen(math.inf, no_interval(samples))
    if inside <= stats.TARGET:
        return None
    ended = record.measurement.stop_reason if record.measurement else ""
    why = {"budget": ": the time was up", "samples": ": a record keeps no more"}.get(ended, "")
    headline = metrics.headline([record])
    shown = metrics.half_width(headline) if headline else None
    width = format_width(inside if shown is None else shown)
    return Seen(inside, f"±{width} after {count} samples, which were to bring it near {stats.TARGET:.0%}{why}")


def no_interval(samples: list[float]) -> str:
    """Why a launch has no interval, in words; empty where it has."""
    if stats.median_interval(samples).half_width is not None:
        return ""
    count = len(samples)
    if count < stats.FEWEST:
        return f"{count} sample{'s are' if count > 1 else ' is'} too few for an interval"
    return f"{_resemblance(samples)}, too few for an interval"


def _resemblance(samples: list[float]) -> str:
    rho = stats.autocorrelation(samples)
    worth = max(1.0, len(samples) * (1 - rho) / (1 + rho))
    return f"each sample resembles the one before (ρ = {rho:.2f}): {len(samples)} are worth {worth:.0f}"


def _correlated(_record: Record, samples: list[float]) -> Seen | None:
    if len(samples) < SERIES_SAMPLES:
        return None
    rho = stats.autocorrelation(samples)
    return Seen(rho, _resemblance(samples)) if rho > RHO_MOST else None


def _short(record: Record, samples: list[float]) -> Seen | None:
    tick = _number(record.settings.get("clock_tick_s"))
    if record.measurement is None or not tick or tick < 0:
        return None
    took = stats.median(samples) * record.measurement.iterations_per_sample
    detail = f"a sample takes {format_time(took)}, {took / tick:.0f} ticks of its clock ({format_time(tick)})"
    return Seen(-took, detail) if took < stats.TICKS_PER_SAMPLE * tick else None


def _drift(_record: Record, samples: list[float]) -> Seen | None:
    third = len(samples) // 3
    if len(samples) < SERIES_SAMPLES:
        return None
    first, last = samples[:third], samples[-third:]
    before, after = stats.median(first), stats.median(last)
    if before <= 0 or after <= 0:
        return None
    change = after / before - 1
    error = math.hypot(stats.standard_error(first), stats.standard_error(last))
    detail = (
        f"the last third is {abs(change):.1%} {'slower' if change > 0 else 'faster'} than the first (standard error {error:.1%})"
    )
    return Seen(abs(change), detail) if abs(change) > max(DRIFT_LEAST, DRIFT_ERRORS * error) else None


def _unsteady(record: Record, samples: list[float]) -> Seen | None:
    """The rates of the last five windows, each a tenth of the samples: all within 20 % of their mean, and no slope above 10 % of
    it from the first to the last (after SNIA's "Solid State Storage Performance Test Specification", steady state)."""
    if record.workload is None or record.workload.bound != "storage" or len(samples) < STEADY_WINDOWS:
        return None
    width = max(1, len(samples) // (2 * STEADY_WINDOWS))
    last = np.asarray(samples[-STEADY_WINDOWS * width :]).reshape(STEADY_WINDOWS, width)
    rates = width / last.sum(axis=1)
    rates /= rates.mean()
    off = float(np.abs(rates - 1).max())
    steps = np.arange(STEADY_WINDOWS) - (STEADY_WINDOWS - 1) / 2
    slope = round(float(steps @ rates / (steps @ steps)) * (STEADY_WINDOWS - 1), 3)
    detail = f"in the last {STEADY_WINDOWS} windows the rate strays by {off:.0%} from its mean and changes by {slope + 0.0:+.0%}"
    return Seen(max(off, abs(slope)), detail) if off > STEADY_RANGE or abs(slope) > STEADY_SLOPE else None


def _two_modes(record: Record, samples: list[float]) -> Seen | None:
    """The best split of the sorted samples in two: least squared deviation inside both, their outer twentieths pulled in."""
    if len(samples) < MODES_SAMPLES:
        return None
    values = np.sort(np.asarray(samples))
    count = len(values)
    held = np.clip(values - values[count // 2], *(np.quantile(values, (0.05, 0.95)) - values[count // 2]))  # outliers are no mode
    left = np.arange(1, count)
    sums = np.cumsum(held)[:-1]
    between = sums**2 / left + (held.sum() - sums) ** 2 / (count - left)
    edge = math.ceil(MODES_SHARE * count)
    split = edge + int(np.argmax(between[edge - 1 : count - edge]))
    lower, upper = values[:split], values[split:]
    low, high = float(np.median(lower)), float(np.median(upper))
    scale = max(_scale(lower), _scale(upper))
    if low <= 0 or high - low < max(MODES_GAP * low, MODES_SCALES * scale):
        return None
    third = (high - low) / 3
    if np.count_nonzero((values > low + third) & (values < high - third)) > MODES_BETWEEN * count:
        return None
    does = "reach" if _operations(record) else "take"
    detail = f"{split / count:.0%} of the samples {does} about {_shown(record, low)}, the others {_shown(record, high)}"
    return Seen((high - low) / low, f"{detail} ({high / low - 1:+.1%})")


def _scale(side: stats.Array) -> float:
    """Standard deviation of one mode by MAD and by its middle 80 %, the larger: alone, each is too often small by chance."""
    low, high = np.quantile(side, (0.1, 0.9))
    return max(stats.scale(side), float(high - low) / 2.5631)


def _slowing_clock(record: Record, _samples: list[float]) -> Seen | None:
    """A clock at the end against the same clock at its start, while measuring."""
    found: list[Seen] = []
    for name, start in record.telemetry.items():
        part, mark, _ = name.rpartition("_mhz_start")
        first, last = _number(start), _number(record.telemetry.get(f"{part}_mhz_end"))
        if mark and first and last is not None and last < CLOCK_LEAST * first:
            clock = part.replace("_", " ")
            found.append(
                Seen(1 - last / first, f"the {clock} clock fell from {first:.0f} to {last:.0f} MHz ({last / first:.0%})")
            )
    return max(found, key=lambda seen: seen.weight, default=None)


def _throttled(record: Record, _samples: list[float]) -> Seen | None:
    """A thermal, power-brake or hardware throttle, as sensors saw it or counters kept it.  A power cap is information."""
    found: list[str] = []
    for name, value in record.telemetry.items():
        if name.endswith("_throttle") and isinstance(value, str) and value not in ("", "none"):
            found.append(f"{name.removesuffix('_throttle')}: {value}")
    for name, value in record.counters.health.items():
        if not _is_throttle(name):
            continue
        if isinstance(value, str) and not value.endswith("none"):
            found.append(f"{name}: {value}")
        elif isinstance(value, int | float) and value > 0:
            found.append(f"{name}: +{value:g}")
    return Seen(len(found), "; ".join(dict.fromkeys(found))) if found else None


def _health(record: Record, _samples: list[float]) -> Seen | None:
    """Error counters that grew and states that changed during the case.  What could not be read is unknown, and no doubt."""
    found = [
        f"{name}: {value}" if isinstance(value, str) else f"{name}: +{value}"
        for name, value in record.counters.health.items()
        if name != "unknown" and not _is_throttle(name)
    ]
    return Seen(len(found), "; ".join(found)) if found else None


def _exposed(record: Record, _samples: list[float]) -> Seen | None:
    """The device waited for the host in some samples."""
    count = _number(record.settings.get("exposed_samples"))
    return Seen(count, f"in {count:.0f} samples the device began before all launches were queued") if count else None


def _late(record: Record, samples: list[float]) -> Seen | None:
    """A rank that began most samples clearly after the others, though all had met just before: its host, not the network."""
    measured = record.measurement
    if measured is None or not {"late", "last"} <= measured.series.keys():
        return None
    late, last = measured.series["late"].values, measured.series["last"].values
    rank = max(range(len(late)), key=late.__getitem__, default=0)
    if not late or len(last) != len(late) or last[rank] < LATE_OFTEN:
        return None
    error = _number(record.settings.get("clock_error_s")) or 0.0
    if late[rank] <= error + max(LATE_LEAST_S, LATE_SHARE * stats.median(samples) * measured.iterations_per_sample):
        return None
    clocks = f"clocks agree within {format_time(error)}" if error > 0 else "on one clock"
    behind = f"began {format_time(late[rank])} after the first ({clocks}), in {last[rank]:.0%} of the samples the last"
    return Seen(late[rank], f"{_who(record, rank)} {behind}", _who(record, rank))


def _starved(record: Record, _samples: list[float]) -> Seen | None:
    """A rank that waited for its processor far longer than the others for theirs: its host, whatever the network does."""
    series = record.measurement.series.get(waits.SERIES) if record.measurement else None
    found = waits.starved(series.values) if series else []
    if not found:
        return None
    worst = max(found, key=lambda one: one.share)
    more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
    return Seen(worst.share, f"{_who(record, worst.rank)} {worst}{more}", _who(record, worst.rank))


def _crowded(record: Record, _samples: list[float]) -> Seen | None:
    """Work whose time is in part that of others on the same processors: a steady neighbour leaves the interval narrow."""
    series = record.measurement.series.get(waits.SERIES) if record.measurement else None
    sleeps = record.workload is not None and record.workload.bound in ("storage", "network")
    share = waits.crowded(series.values, sleeps) if series else None
    if share is None:
        return None
    who = "its ranks" if record.ranks > 1 else "it"
    return Seen(share, f"{who} waited for a processor {share:.0%} of the time {'they' if record.ranks > 1 else 'it'} wanted one")


def _cut_short(record: Record, _samples: list[float]) -> Seen | None:
    """A search for the best that had no time to search."""
    words = searched.cut_short(record)
    return Seen(1.0, words) if words else None


def _slow_rank(record: Record, _samples: list[float]) -> Seen | None:
    """A rank that does the same work as the others clearly slower, in the same samples: of all, or of the last tenth."""
    found: list[Seen] = []
    for name, when in (("rank_time", ""), ("rank_time_last", " in the last window")):
        kept = record.measurement.series.get(name) if record.measurement else None
        times = kept.values if kept else []
        for rank, time in enumerate(times):
            others = stats.median(times[:rank] + times[rank + 1 :]) if len(times) > 1 else 0.0
            if time > 0 and 0 < others < SLOW_RANK * time:
                where = next((f" ({p.device} on {p.host})" for p in record.placement if p.rank == rank), "")
                words = f"rank {rank}{where} reached {others / time:.0%} of the rate of the others{when}"
                words += f" ({format_time(time)} against {format_time(others)})"
                found.append(Seen(time / others, words, _who(record, rank)))
    return max(found, key=lambda seen: seen.weight, default=None)


def _slow_storage(record: Record, _samples: list[float]) -> Seen | None:
    """A rank whose own transfers, which wait for no other rank, took clearly longer than those of the others."""
    times = rank_seconds(record)
    if times is None or len(times) < SLOW_SAMPLES:
        return None
    others = np.stack([np.median(np.delete(times, rank, axis=1), axis=1) for rank in range(record.ranks)], axis=1)
    ratios = times / others
    rank = int(np.median(ratios, axis=0).argmax())
    often = float((ratios[:, rank] > SLOW_RATIO).mean())
    if often < SLOW_OFTEN:
        return None
    who = _who(record, rank)
    own, rest = (format_time(float(np.median(t[:, rank]))) for t in (times, others))
    return Seen(often, f"{who} takes {own} where the others take {rest}, in {often:.0%} of the samples", who)


def _unproven(record: Record, _samples: list[float]) -> Seen | None:
    """Storage of which nothing proves that a device, and not a cache, did the work."""
    if record.workload is None or record.workload.bound != "storage":
        return None
    kind = record.settings.get("fs_type") or "this file system"
    if believed.is_remote(record):
        return Seen(1.0, f"{kind}: what its servers read from their caches cannot be seen from here")
    if behind := record.settings.get("device_cached"):
        return Seen(1.0, f"{behind}: what the device does cannot be seen from here")
    if any(metric.name == "device_fraction" for metric in metrics.derive([record])):
        return None
    return Seen(1.0, f"the kernel counts no device bytes on {kind}: a cache may have answered")


def _who(record: Record, rank: int) -> str:
    return f"rank {rank}" + next((f" on {place.host}" for place in record.placement if place.rank == rank), "")


def _retried(record: Record, _samples: list[float]) -> Seen | None:
    """A store that refused requests for the moment: the waits and the new tries are in the times."""
    count = _number(record.settings.get("retries"))
    return Seen(count, f"{count:.0f} requests were tried again: the store asked to slow down, or broke off") if count else None


def _disturbed(record: Record, _samples: list[float]) -> Seen | None:
    """Other runs that were seen at work in the target just before the case, meanwhile, or just after it."""
    said = record.settings.get("other_runs")
    return Seen(1.0, f"other runs of ClusterGauge were at work in the target: {said}") if said else None


def _is_throttle(name: str) -> bool:
    return name.endswith(("throttle", "thermal_violation_ns"))


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


DOUBTS = (
    Doubt(
        "restless",
        "stop what else runs on the machine, fix the clocks, or believe the interval rather than the median",
        _restless,
    ),
    Doubt("wide interval", "give the case more time (budget_s in the suite file), or stop what else runs", _wide),
    Doubt(
        "correlated",
        "something slower than a sample swings (clock, heat, a neighbour): fix the clocks, measure longer",
        _correlated,
    ),
    Doubt("short samples", "give one run more work (a larger size): the clock is too coarse for this one", _short),
    Doubt("drift", "let the machine reach its working temperature first, fix the clocks, and measure again", _drift),
    Doubt("not steady", "give the case more time, until the device's own caches are full and its speed settles", _unsteady),
    Doubt("two modes", "find what switches: placement on cores and memory, clock steps, huge pages, a neighbour", _two_modes),
    Doubt("slowing clock", "look at power limit and cooling, or fix the clocks lower than the machine can hold", _slowing_clock),
    Doubt("throttled", "mend cooling or power supply; until then this is not what the part can do", _throttled),
    Doubt("launch gaps", "use a larger size, or an idle host: launching may be in the time", _exposed),
    Doubt(
        "late rank",
        "look at that host (what else runs there, clocks, cores given): the others wait for it, not for a link",
        _late,
    ),
    Doubt(
        "starved rank",
        "look at that host: what else runs on its processors, the quota of its control group, cores given",
        _starved,
    ),
    Doubt(
        "shared processors",
        "others run here, or a quota is spent, or there are more threads than processors: measure on an idle machine",
        _crowded,
    ),
    Doubt("short search", "measure on an idle machine, or give the case more time (budget_s in the suite file)", _cut_short),
    Doubt(
        "slow rank",
        "look at clocks, power and temperature of that device, and see whether it stays slow in another slot",
        _slow_rank,
    ),
    Doubt(
        "slow storage of a rank",
        "look at that rank's host: its path to the storage, and what else runs on its cores",
        _slow_storage,
    ),
    Doubt("unproven", "take files larger than the memory of this machine and of its servers", _unproven),
    Doubt("target in use", "measure again when the others have ended: each had only a part of what the target gives", _disturbed),
    Doubt("retries", "take a smaller concurrency, or ask who else is using the store", _retried),
    Doubt("health", "look at the system log; run the case again, and replace the part if the counters keep moving", _health),
)
