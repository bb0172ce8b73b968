"""A search for the best rate, as its record tells it: whether what was measured then can be the best.  Pure.

A probe that searches first (`kernels.best`) records what it saw: no results, but rates of the same work on the same device a
moment before.  What was measured must stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clustergauge.model import Metric, Record
from clustergauge.units import format_rate

SERIES = {"search": "searched", "finals": "finalists"}
"""Series of rates, and the setting that names what reached them, in the same order, with blanks between."""
UNTRIED = "untried"
"""Setting: what there was no time to try, likewise."""
LEAST = 0.5
"""Of the best rate that the search saw: below it the number measured says what the machine was doing, not what it reaches."""
FEW = 4
"""With fewer tried, nothing was chosen among: the search ended at the foot of its ladder."""


def refuted(records: Sequence[Record], found: Iterable[Metric]) -> str:
    """Why the rate of these launches is not the best one, in words; empty where nothing speaks against it."""
    seen = [one for record in records for one in _rates(record)]
    if not seen:
        return ""
    best, unit, what = max(seen)
    metric = next((m for m in found if m.unit == unit), None)
    if metric is None or metric.value >= LEAST * best:
        return ""
    rates = f"{format_rate(metric.value, unit)} was measured, {format_rate(best, unit)} seen{what} while searching"
    return f"not the best rate: {rates} (did others take the machine meanwhile?)"


def cut_short(record: Record) -> str:
    """In words that the search had no time for more than the first few; empty where it had."""
    tried, untried = (str(record.settings.get(name, "")).split() for name in (SERIES["search"], UNTRIED))
    if not untried or len(tried) >= FEW:
        return ""
    return f"there was time to try {', '.join(tried)} of {len(tried) + len(untried)}: what is larger may well be faster"


def _rates(record: Record) -> Iterable[tuple[float, str, str]]:
    """Rates that the search saw, their unit, and of what they are."""
    for series, setting in SERIES.items():
        kept = record.measurement.series.get(series) if record.measurement else None
        names = str(record.settings.get(setting, "")).split()
        for index, value in enumerate(kept.values if kept else []):
            yield value, kept.unit if kept else "", f" at {names[index]}" if index < len(names) else ""
