"""The pictures on the page of a run: rates over sizes, rates over intensity, pairs, distributions of times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from clustergauge import ceilings, readings, stats, sweeps
from clustergauge.believed import deciding
from clustergauge.ceilings import Ceiling
from clustergauge.loading import LoadedRun
from clustergauge.model import Metric, PairFindings
from clustergauge.pair_fit import Array
from clustergauge.units import format_rate, format_time
from reports import charts
from reports.charts import Axes, Point
from reports.export import host_of
from reports.rows import BAD, Row
from reports.web import paragraph, text

MOST_CHARTS, MOST_SERIES, MOST_ENDPOINTS, MOST_ROOFS = 24, 12, 48, 8
"""What a page holds, so that it stays small; it says what it leaves out."""
QUANTILES = 100
"""Points of a distribution."""


# --------------------------------------------------------------------------------------------------------------------------
# over sizes


def sizes(loaded: LoadedRun, rows: Sequence[Row]) -> Iterator[str]:
    """Cases that differ in their size alone are one line; those of one probe, metric and device one chart."""
    groups: dict[tuple[str, str, str, str], dict[str, list[Point]]] = {}
    limits: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in rows:
        size, metric = row.params.get("size"), next(iter(row.believable), None)
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or not metric or metric.value <= 0:
            continue
        rest = " ".join(str(v) for k, v in row.params.items() if k != "size")
        key = (row.records[0].probe, metric.name, metric.unit, _where(loaded, row))
        groups.setdefault(key, {}).setdefault(text(rest), []).append((float(size), metric.value))
        if row.ceiling and row.ceiling.unit == metric.unit:
            limits.setdefault(key, {})[_named(row.ceiling)] = row.ceiling.value
    drawn = 0
    for key, series in groups.items():
        probe, name, unit, where = key
        shown = {rest or probe: sorted(line) for rest, line in series.items() if len(line) > 2}
        for first in range(0, len(shown), MOST_SERIES):
            drawn += 1
            if drawn <= MOST_CHARTS:
                part = dict(list(shown.items())[first : first + MOST_SERIES])
                ends = [x for line in part.values() for x, _ in line]
                bounds = {words: [(min(ends), y), (max(ends), y)] for words, y in limits.get(key, {}).items()}
                axes = Axes("size", name, _size, partial(format_rate, unit=unit))
                yield charts.lines(text(f"{probe} on {where}: {name}"), part, axes, bounds)
    if drawn > MOST_CHARTS:
        yield paragraph(f"{drawn - MOST_CHARTS} more charts are left out of this page; the tables above hold their numbers.")


def _size(value: float) -> str:
    step = 0
    while value >= 1023.5 and step < 5:
        value, step = value / 1024, step + 1
    return f"{value:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[step]}"


# --------------------------------------------------------------------------------------------------------------------------
# roofline


def rooflines(loaded: LoadedRun, rows: Sequence[Row]) -> Iterator[str]:
    """Rates of computing over the operations per byte that must cross memory (Williams et al., CACM 52(4), 2009).

    One chart for each device and unit that has several points.  The roof is the data sheet's where it is known; else the best
    that this run measured there, and says so.
    """
    rows = [row for row in rows if row.believable]
    places: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if (rate := row.metric("compute")) and rate.value > 0 and _intensity(row) > 0:
            places.setdefault((row.machine_id, row.device, rate.unit), []).append(row)
    places = {place: members for place, members in places.items() if len(set(map(_intensity, members))) > 1}
    for (machine_id, device, unit), members in list(places.items())[:MOST_ROOFS]:
        here = [row for row in rows if (row.machine_id, row.device) == (machine_id, device)]
        yield _roofline(_where(loaded, members[0]), unit, members, _slope(loaded, here))
    if len(places) > MOST_ROOFS:
        yield paragraph(f"{len(places) - MOST_ROOFS} more devices are not drawn.")


def _roofline(where: str, unit: str, members: Sequence[Row], slope: tuple[str, float] | None) -> str:
    series: dict[str, list[Point]] = {}
    tops: dict[str, float] = {}
    best: dict[str, float] = {}
    for row in members:
        rate, record = row.metric("compute"), row.measured[0]
        assert rate
        dtype = record.workload.dtype if record.workload else ""
        name = " ".join(filter(None, (record.probe, str(row.params.get("backend", "")), dtype)))
        series.setdefault(text(name), []).append((_intensity(row), rate.value))
        best[dtype] = max(best.get(dtype, 0.0), rate.value)
        if row.ceiling and row.ceiling.unit == unit:
            tops[f"{dtype} {_named(row.ceiling)}"] = row.ceiling.value
    if not tops:
        tops = {f"{dtype}: the best measured here, {format_rate(rate, unit)}": rate for dtype, rate in best.items()}
    xs = [x for line in series.values() for x, _ in line]
    left, right = min(xs) / 2, max(xs) * 2
    if slope:  # the ridge and some of the slope before it
        left = min(left, min(tops.values()) / slope[1] / 4)
    bounds = {text(words): _roof(left, right, top, slope[1] if slope else None) for words, top in tops.items()}
    title = f"Roofline of {where}, {unit}" + (f" · slope: {slope[0]}" if slope else "")
    axes = Axes(f"{unit.removesuffix('/s')} a byte of memory", "rate", lambda x: f"{x:.3g}", partial(format_rate, unit=unit))
    return charts.points(text(title), {name: sorted(line) for name, line in series.items()}, axes, bounds)


def _roof(left: float, right: float, top: float, bandwidth: float | None) -> list[Point]:
    """The lower of what memory and units allow, from ``left`` to ``right``; of the units alone where memory is not known."""
    if bandwidth is None or bandwidth * left >= top:
        return [(left, top), (right, top)]
    ridge = top / bandwidth
    return [(left, bandwidth * left), (ridge, top), (right, top)] if ridge < right else [
        (left, bandwidth * left), (right, bandwidth * right)
    ]  # fmt: skip


def _slope(loaded: LoadedRun, rows: Sequence[Row]) -> tuple[str, float] | None:
    """Bandwidth of memory in words and B/s: the data sheet's, else the best of cold caches here; ``None`` where neither is."""
    cold = [
        (row, rate)
        for row in rows
        if (rate := row.metric("bandwidth")) and row.measured
        and (m := row.measured[0].measurement) and m.cache == "cold"
        and (w := row.measured[0].workload) and w.bound == "memory"
    ]  # fmt: skip
    if not cold:
        return None
    known = [limit for row, rate in cold if (limit := _limit(loaded, row, rate))]
    if known:
        return f"memory {_named(known[0])}", known[0].value
    top = max(rate.value for _, rate in cold)
    return f"memory, the best measured here, {format_rate(top, 'B/s')}", top


def _limit(loaded: LoadedRun, row: Row, rate: Metric) -> Ceiling | None:
    if row.headline is rate:
        return row.ceiling
    machine = loaded.machines.get(row.machine_id)
    return ceilings.ceiling(row.measured[0], machine, rate, loaded.catalogue) if machine else None


def _intensity(row: Row) -> float:
    """Operations for a byte that must cross memory; 0 where either is not counted."""
    record = row.measured[0] if row.measured else None
    if record is None or record.workload is None:
        return 0.0
    work, counted = record.workload, record.settings.get("compulsory_bytes")
    moved = work.bytes_read + work.bytes_written or (counted if isinstance(counted, int) and counted > 0 else 0)
    return (work.flops or work.ops) / moved if moved else 0.0


# --------------------------------------------------------------------------------------------------------------------------
# pairs


def between_pairs(loaded: LoadedRun, found: Sequence[PairFindings]) -> Iterator[str]:
    """Who is slow, in words, and a heat map of every case."""
    for one in found[:MOST_CHARTS]:
        key = (one.machine_id, one.case, one.device)
        records = [r for r in loaded.records if (r.machine_id, r.case, r.device) == key and sweeps.is_sweep(r)]
        for suspect in one.suspects:
            yield paragraph(sweeps.sentence(suspect), "bad" if suspect.confirmed else "doubt")
        if not 1 < len(one.endpoints) <= MOST_ENDPOINTS:
            yield paragraph(f"{one.case}: {len(one.endpoints)} endpoints, not drawn.")
            continue
        middle = _median_pass(sweeps.sweep_of(deciding(records)).bandwidth)
        known = [value for line in middle for value in line if value is not None]
        if not known:
            continue
        typical = stats.median(known)
        shares = [[None if value is None else value / typical for value in line] for line in middle]
        yield charts.heat(text(f"{one.case}, of the median {format_rate(typical, 'B/s')}"), [*map(text, one.endpoints)], shares)


def _median_pass(bandwidth: Array) -> list[list[float | None]]:
    """The median over the passes of each pair, ``None`` where no pass has a number."""
    count = bandwidth.shape[1]
    found: list[list[float | None]] = [[None] * count for _ in range(count)]
    for i, j in np.ndindex(count, count):
        known = [float(value) for value in bandwidth[:, i, j] if np.isfinite(value)]
        found[i][j] = stats.median(known) if known else None
    return found


# --------------------------------------------------------------------------------------------------------------------------
# distributions


def distributions(loaded: LoadedRun, rows: Sequence[Row]) -> Iterator[str]:
    """Bad cases first; the share of samples, or of single operations where they were timed, that took no longer."""
    timed = sorted((r for r in rows if r.headline), key=lambda r: r.word not in BAD)
    for row in timed[:MOST_CHARTS]:
        taken, what = _times(row)
        shares = np.linspace(0, 1, min(len(taken), QUANTILES))
        line = [(float(t), float(s)) for t, s in zip(np.quantile(taken, shares), shares, strict=True)]
        title = text(f"{row.case} on {_where(loaded, row)}, {len(taken)} {what}")
        marks = _quantile_marks(row.metrics)
        yield charts.lines(title, {"all launches": line}, Axes("time", "share", format_time, _percent, share=True), marks)
    if len(timed) > MOST_CHARTS:
        yield paragraph(f"{len(timed) - MOST_CHARTS} more cases are not drawn.")


def _times(row: Row) -> tuple[list[float], str]:
    """Seconds, and of what; never 0, which a logarithm has no place for."""
    operations = [t for r in row.measured for t in readings.series(r, "latency")]
    found = operations or [t for r in row.measured for t in readings.samples(r)]
    return [t for t in found if t > 0], "operations" if operations else "samples"


def _quantile_marks(found: Sequence[Metric]) -> Mapping[str, Sequence[Point]]:
    """Upright lines at the tails that the record has enough values for."""
    tails = {"latency_p99": "p99", "latency_p999": "p99.9", "time_p99": "p99"}
    return {
        f"{tails[m.name]} {format_time(m.value)}": [(m.value, 0.0), (m.value, 1.0)]
        for m in found
        if m.name in tails and m.value > 0
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# --------------------------------------------------------------------------------------------------------------------------


def _where(loaded: LoadedRun, row: Row) -> str:
    return f"{host_of(loaded, row)} {row.device}"


def _named(limit: Ceiling) -> str:
    """A ceiling in a few words; the whole source is in the table of results."""
    return f"{'' if limit.firm else 'about '}{format_rate(limit.value, limit.unit)} ({limit.source.partition(':')[0]})"
