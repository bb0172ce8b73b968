"""The table: one line a row, columns as wide as what stands in them, nothing wrapped."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from clustergauge import metrics
from clustergauge.model import Metric, Verdict
from clustergauge.units import format_rate, format_width
from clustergauge.valid import printable
from reports.layout import Part, above, pad, squeezed
from reports.rows import Row

STYLES = {"pass": "green", "unreferenced": "", "inconclusive": "yellow", "not measured": "yellow"}
"""By word; the other bad ones are red."""
LEAST_NAME = 16
"""Cells that the name of a case keeps, whatever else wants room."""


class Table:
    """Columns as wide as their cells; the name of the case gives way where there is no room, then the bound of the verdict.

    ``above``: names by case that would look alike if they were shorter: they go on lines of their own, each above its row.
    """

    def __init__(self, rows: list[Row], names: dict[str, str], width: int) -> None:
        self.full = True
        self.cells = [_numbers(row) for row in rows]
        self.wide = max((cell_len(_verdict(row, True)) for row in rows), default=0)
        short = [names.get(row.case, printable(row.case)) for row in rows]
        natural = max(map(cell_len, [*short, "case"]))
        room = self._room(width)
        if natural > room:
            self.full = False
            self.wide = max((cell_len(_verdict(row, False)) for row in rows), default=0)
            room = self._room(width)
        self.name = min(natural, max(room, LEAST_NAME))
        shorter = squeezed(short, self.name)
        alike = above(shorter, width)
        self.above = {row.case: alike[name] for row, name in zip(rows, short, strict=True) if name in alike}
        self.short = {row.case: "" if name in alike else shorter[name] for row, name in zip(rows, short, strict=True)}

    def _room(self, width: int) -> int:
        """Cells left for the name of the case."""
        self.widths = [max(cell_len(c[i]) for c in [*self.cells, self._labels()]) for i in range(4)]
        return width - sum(self.widths) - 2 * 4 - 2 - max(self.wide, len("verdict"))

    def _labels(self) -> list[str]:
        return ["median", "rate", "of ceiling" if self.full else "ceiling", "±"]

    def header(self) -> str:
        """The line above the rows."""
        return self._join("case", self._labels()) + "  verdict"

    def line(self, row: Row) -> list[Part]:
        """One row."""
        return [self._join(self.short[row.case], _numbers(row)), "  ", (_verdict(row, self.full), style_of(row.word))]

    def _join(self, name: str, numbers: Sequence[str]) -> str:
        columns = zip(numbers, self.widths, strict=True)
        return "  ".join([pad(name, self.name), *(pad(text, width, right=True) for text, width in columns)])


def _numbers(row: Row) -> list[str]:
    """Median time (of single operations, where they were timed), rate, share of the ceiling, half of the interval.

    ``–`` where unknown.
    """
    time, headline = row.metric("latency_p50") or row.metric("time"), row.headline
    median = format_rate(time.value, time.unit) if time else "–"
    rate = _rate(headline) if headline and headline.name != "time" else _tail(row)
    ceiling = row.ceiling
    share = "–"
    if headline and ceiling and ceiling.unit == headline.unit and ceiling.value > 0:
        share = f"{'' if ceiling.firm else '~'}{100 * headline.value / ceiling.value:.0f} %"
    return [median, rate, share, _half_width(headline)]


def amount(value: float, unit: str) -> str:
    """A number with its unit as people read it; a plain ratio in percent."""
    return f"{100 * value:.0f} %" if unit == "1" else format_rate(value, unit)


def _rate(metric: Metric) -> str:
    kind = {"busbw": " bus", "algbw": " alg"}.get(metric.name, "")
    return amount(metric.value, metric.unit) + kind


def _tail(row: Row) -> str:
    """A latency has no rate; its 99th percentile says more."""
    tail = row.metric("time_p99")
    return f"p99 {format_rate(tail.value, tail.unit)}" if tail else "–"


def _half_width(metric: Metric | None) -> str:
    half = metrics.half_width(metric) if metric else None
    return "–" if half is None else format_width(half)


def _verdict(row: Row, full: bool) -> str:
    """The word, and (``full``) what was asked: ``FAIL  ≥ 460 (−4.1 %)``."""
    words = {"unreferenced": "ok"}.get(row.word, row.word)
    verdict = row.verdict
    if not full or verdict is None or verdict.bound is None:
        return words
    bound, own = amount(verdict.bound, verdict.unit), row.headline
    if own and own.name == verdict.metric and bound.partition(" ")[2] == amount(own.value, own.unit).partition(" ")[2]:
        bound = bound.partition(" ")[0]
    metric = "" if own and own.name == verdict.metric else f"{verdict.metric} "
    margin = f" ({percent(verdict.margin)})" if row.word == "FAIL" and verdict.margin is not None else ""
    return printable(f"{words}  {metric}{sign_of(verdict)} {bound}{margin}")


def asked(verdict: Verdict, named: bool = True) -> str:
    """What was reached and asked: ``bandwidth 3.52 GB/s, asked ≥ 4.75 GB/s (−26.0 %)``; empty where there is no bound or number.

    Without ``named`` the bound alone, for a line that tells the number: ``≥ 4.75 GB/s (−26.0 %)``.
    """
    if verdict.value is None or verdict.bound is None:
        return ""
    value, bound = (amount(v, verdict.unit) for v in (verdict.value, verdict.bound))
    margin = f" ({percent(verdict.margin)})" if verdict.margin is not None else ""
    lead = f"{verdict.metric} {value}, asked " if named else ""
    return f"{lead}{sign_of(verdict)} {bound}{margin}"


def sign_of(verdict: Verdict) -> str:
    """Whether the bound is a floor or a limit: a margin says how much better than it, an excess how much larger."""
    excess = (verdict.value or 0) - (verdict.bound or 0)
    limit = excess * (verdict.margin or 0) < 0 or (excess == 0 and (verdict.unit == "s" or verdict.unit.startswith("J/")))
    return "≤" if limit else "≥"


def percent(fraction: float) -> str:
    """A signed fraction in words: ``−4.1 %``."""
    return f"{'−' if fraction < 0 else '+'}{abs(fraction):.1%}".replace("%", " %")


def style_of(word: str) -> str:
    """The rich style of a row's word."""
    return STYLES.get(word, "dim" if word in ("verified", "skipped") else "bold red")
