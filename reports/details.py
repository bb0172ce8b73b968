"""The lines under a row: what its columns have no room for."""

from __future__ import annotations

from collections.abc import Iterator

from clustergauge import believed, ceilings, readings, special
from clustergauge.units import format_rate, format_time
from clustergauge.valid import printable
from reports.layout import Part, fit_end
from reports.rows import Row

LONGEST = 70
"""Cells of a line that says how much was saved, or who was there."""
CLOCK_OFF = 0.03
"""So far from the clock of its ceiling a case's own clock is worth a line."""


def details(row: Row) -> Iterator[list[Part]]:
    """What is known of the row beyond its columns, a line each."""
    for tell in (_over, _held, _cut, *_TOLD):
        yield from tell(row)
    if words := _latencies(row, "p99", "p999"):  # their median is a column
        yield [(f"  {words}", "dim")]


def in_one_line(row: Row) -> str:
    """The same for tables that say elsewhere which nodes it was over and how it ended; and how long single operations took."""
    lines = (line for tell in (_held, *_TOLD) for line in tell(row))
    told = ["".join(part if isinstance(part, str) else part[0] for part in line).strip() for line in lines]
    return "; ".join(filter(None, [*told, _latencies(row, "p50", "p99", "p999")]))


def _over(row: Row) -> Iterator[list[Part]]:
    """Which nodes a case was over, if not over all that it was to span."""
    if row.over:
        yield ["  ", (fit_end(printable(row.over), LONGEST), "yellow")]


def _held(row: Row) -> Iterator[list[Part]]:
    """What a burn-in held from its first to its last window."""
    first, last, held = (row.metric(name) for name in ("first_window", "last_window", "sustained"))
    if first and last and held:
        rates = (format_rate(metric.value, metric.unit) for metric in (first, last))
        yield [f"  sustained {held.value:.1%}: ", (" → ".join(rates), "dim")]


def _cut(row: Row) -> Iterator[list[Part]]:
    """Of a burn-in that did not run for all its time: how far it came, and what it held until it went wrong."""
    for record in row.records:
        if row.metrics and believed.is_cut(record) and not any(v.reason == record.reason for v in row.verdicts):
            yield [f"  {fit_end(printable(record.reason), 100)}"]
        rates = [format_rate(m.value, m.unit) for m in special.windows(record) if m.name != "sustained"]
        if rates and record.status in ("wrong", "error"):
            yield ["  before that, first to last window: ", (" → ".join(rates), "dim")]


def _clock(row: Row) -> Iterator[list[Part]]:
    """The share of the ceiling at the clock observed, where that is not about the one that the ceiling holds at."""
    headline, limit, mhz = row.headline, row.ceiling, row.mhz
    there = ceilings.at_clock(limit, mhz) if limit and mhz else None
    if headline and limit and mhz and there and limit.clock_mhz and abs(mhz / limit.clock_mhz - 1) > CLOCK_OFF:
        share = f"{'' if limit.firm else '~'}{100 * headline.value / there:.0f} % of ceiling"
        yield [f"  at the clock observed, {mhz:.0f} MHz instead of {limit.clock_mhz:.0f}: ", (share, "dim")]


def _energy(row: Row) -> Iterator[list[Part]]:
    """What the work drew by the counter of its device."""
    for metric in (row.metric("energy_per_flop"), row.metric("energy_per_byte")):
        if metric and metric.low is not None and metric.high is not None:
            low, high = (format_rate(end, metric.unit) for end in (metric.low, metric.high))
            words = f"{low} … {high}, with idle power and resets"
            yield [f"  {format_rate(metric.value, metric.unit)} by the energy counter: ", (words, "dim")]


def _checkpoint(row: Row) -> Iterator[list[Part]]:
    """The library's seconds and the device's, and how much of a real checkpoint that was."""
    framework, device = row.metric("framework_time"), row.metric("device_time")
    if framework:
        rest = f" · device {format_time(device.value)}" if device else ""
        yield [f"  framework {format_time(framework.value)}{rest}"]
    for shard in dict.fromkeys(str(r.settings["shard"]) for r in row.measured if "shard" in r.settings):
        yield [(f"  {fit_end(shard, LONGEST)}", "dim")]


def _loader(row: Row) -> Iterator[list[Part]]:
    """Accelerator utilisation, with the compute time it is about."""
    used, compute = row.metric("utilisation"), [r.settings.get("compute_s") for r in row.measured]
    seconds = compute[0] if compute else None
    if used and isinstance(seconds, int | float):
        yield [f"  AU {format_rate(used.value, '1')}", (f" with {format_time(seconds)} of compute a batch", "dim")]


def _cross_check(row: Row) -> Iterator[list[Part]]:
    """Our rate over that of another program doing the same, by turns; or why there is none."""
    ratios = [ratio for record in row.measured for ratio in readings.over_peer(record)]
    names = ", ".join(dict.fromkeys(str(r.settings["cross_check"]) for r in row.measured if r.settings.get("cross_check")))
    if ratios and (found := row.metric("over_peer")):
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns of each"
        yield [printable(f"  over {names}: {found.value:.2f} "), (f"({spread})", "dim")]
    elif names:
        yield [printable(f"  no cross-check: {names}")]


def _latencies(row: Row, *names: str) -> str:
    """Those of single operations."""
    found = [(name, row.metric(f"latency_{name}")) for name in names]
    return " · ".join(f"{name.replace('999', '99.9')} {format_time(metric.value)}" for name, metric in found if metric)


_TOLD = (_clock, _energy, _checkpoint, _loader, _cross_check)
