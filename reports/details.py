"""The lines under a row: what its columns have no room for."""

from __future__ import annotations

from collections.abc import Iterator

from clustergauge import ceilings, metrics
from clustergauge.units import format_rate
from clustergauge.valid import printable
from reports.layout import Part
from reports.rows import Row

CLOCK_OFF = 0.03
"""So far from the clock of its ceiling a case's own clock is worth a line."""


def details(row: Row) -> Iterator[list[Part]]:
    """What is known of the row beyond its columns, a line each."""
    yield from _held(row)
    yield from _clock(row)
    yield from _energy(row)
    yield from _cross_check(row)


def _held(row: Row) -> Iterator[list[Part]]:
    """What a burn-in held from its first to its last window."""
    first, last, held = (row.metric(name) for name in ("first_window", "last_window", "sustained"))
    if first and last and held:
        rates = (format_rate(metric.value, metric.unit) for metric in (first, last))
        yield [f"  sustained {held.value:.1%}: ", (" → ".join(rates), "dim")]


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


def _cross_check(row: Row) -> Iterator[list[Part]]:
    """Our rate over that of another program doing the same, by turns; or why there is none."""
    ratios = [ratio for record in row.measured for ratio in metrics.over_peer(record)]
    names = ", ".join(dict.fromkeys(str(r.settings["cross_check"]) for r in row.measured if r.settings.get("cross_check")))
    if ratios and (found := row.metric("over_peer")):
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns of each"
        yield [printable(f"  over {names}: {found.value:.2f} "), (f"({spread})", "dim")]
    elif names:
        yield [printable(f"  no cross-check: {names}")]
