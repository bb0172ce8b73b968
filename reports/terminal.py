"""What a person sees of a run: the table, what was skipped and why, what to doubt, what failed and how to run it again.

Good rows come first, failed ones last, so that they are on screen.  The same folder gives the same text every time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.cells import cell_len

from clustergauge import ceilings, path, stats
from clustergauge.believed import Limits
from clustergauge.loading import LoadedRun
from clustergauge.model import PairFindings, Verdict
from clustergauge.units import format_duration, format_rate, format_time
from clustergauge.valid import printable
from reports import doubts, grouped, heading, pairs, storage, why
from reports.again import resuming
from reports.called import GOOD, Called
from reports.details import details
from reports.export import lacking, owed, unanswered
from reports.layout import Page, Part, fit_end, parts_of, put, width_of
from reports.rows import BAD, Row, rows_of
from reports.table import Table, style_of

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf


def show(
    loaded: LoadedRun, verdicts: Sequence[Verdict], ceiling: CeilingOf | None = None, found: Sequence[PairFindings] = ()
) -> None:
    """Print the run on stdout, as wide as it is (120 columns in a pipe, or ``COLUMNS``)."""
    put(page_of(loaded, verdicts, width_of(sys.stdout), ceiling, found))


def page_of(
    loaded: LoadedRun,
    verdicts: Sequence[Verdict],
    width: int,
    ceiling: CeilingOf | None = None,
    found: Sequence[PairFindings] = (),
) -> Page:
    """The run as lines of at most ``width`` cells.

    ``ceiling``: what physics allows a metric, if it is not as we know it.  ``found``: what transfers between pairs say.
    """
    ceiling = ceiling or ceilings.of_machines(loaded.machines, loaded.catalogue)
    return _View(loaded, rows_of(loaded, verdicts, ceiling), Page(width), ceiling, found).draw()


class _View:
    """One run being drawn."""

    def __init__(self, loaded: LoadedRun, rows: list[Row], page: Page, ceiling: CeilingOf, found: Sequence[PairFindings]) -> None:
        self.pairs = {(f.machine_id, f.case, f.device): f for f in found}
        self.loaded, self.run, self.page = loaded, loaded.run, page
        self.ceiling = ceiling
        self.rows = rows
        self.bad = [r for r in rows if r.word in BAD]
        self.good = [r for r in rows if r.word in GOOD]
        self.called = Called(loaded, rows, page.width)
        self.limits = Limits(machines=tuple(loaded.machines.values()))
        self.table = Table([*self.good, *self.bad], self.called.names, page.width)

    def draw(self) -> Page:
        page = self.page
        heading.draw(page, self.run.run_id, self.loaded.machines.values())
        for line in storage.lines(self.loaded, page.width // 2):
            page.wrap(line, "target ", "dim", 3)
        page.gap()
        self._rows(self.good)
        page.gap()
        self._untimed()
        page.gap()
        doubts.draw(page, self.loaded, self.rows, self.called, self.ceiling)
        page.gap()
        self._rows(self.bad)
        page.gap()
        self._summary()
        return page

    # -- rows

    def _rows(self, rows: list[Row]) -> None:
        if rows:
            self.page.add((self.table.header(), "bold"))
        rows = sorted(rows, key=lambda r: self.called.places.get((r.machine_id, r.device), len(self.called.places)))
        for place, members in groupby(rows, key=lambda r: (r.machine_id, r.device)):
            if len(self.called.places) > 1:
                self.page.gap()
                self.page.add((self.called.place(*place), "bold"))
            for row in members:
                if row.case in self.table.above:
                    self.page.add(self.table.above[row.case])
                self.page.add(*self.table.line(row))
                for parts in details(row):
                    self.page.add(*parts)
                self._beside(row)
                if found := self.pairs.get((row.machine_id, row.case, row.device)):
                    pairs.draw(self.page, found, row.measured, self.run, self.loaded.machines.values())
                self._path(row)
                if row.word in BAD:
                    why.draw(self.page, self.loaded, row, self.table.full)

    def _path(self, row: Row) -> None:
        """What the counters of the links prove of the path a case took: of its launches the least."""
        proofs = [p for r in row.measured if (p := path.proof(r, self.limits.around(r)))]
        if proofs:
            worst = min(proofs, key=lambda p: ("contradicted", "unproven", "proven").index(p.state))
            self.page.wrap(f"path: {worst}", "  ", "" if worst.state == "contradicted" else "dim", 2)

    def _beside(self, row: Row) -> None:
        """What peers report (the mean of a loop of calls), what a call costs before anything moves, how far apart ranks began."""
        words: list[str] = []
        if loop := row.metric("loop_time"):
            rate = row.metric("loop_busbw")
            words.append(
                f"in a loop {format_time(loop.value)}" + (f" ({format_rate(rate.value, rate.unit)} bus)" if rate else "")
            )
        costs = [r.settings.get("call_overhead_s") for r in row.measured]
        if known := [float(cost) for cost in costs if isinstance(cost, int | float)]:
            words.append(f"a call alone {format_time(stats.median(known))}")
        if skews := [skew for r in row.measured if r.measurement for skew in r.measurement.arrival_skew_s]:
            words.append(f"ranks begin within {format_time(stats.median(skews))}")
        if words:
            self.page.wrap(" · ".join(words), "  ", "dim")

    # -- what has no row

    def _untimed(self) -> None:
        verified = [r for r in self.rows if r.word == "verified"]
        if verified:
            grouped.draw(self.page, "", f"verified (interpreter, not timed)  {len(verified)}", _parts(verified))
        told = [(reason, r) for r in self.rows for reason in dict.fromkeys(x.reason for x in r.records if x.status == "skipped")]
        for reason, rows in grouped.by_reason(told).items():
            grouped.draw(self.page, f"skipped  {len(rows)}  ", reason, _parts(rows))

    # -- the end

    def _summary(self) -> None:
        for note in self.loaded.notes:
            self.page.wrap(note, style="yellow")
        for name, reason in self.run.left_out.items():
            self.page.wrap(printable(reason), f"node {printable(name)}: ", "yellow")
        if missing := len(unanswered(self.loaded)):
            lead = "interrupted: " if self.run.interrupted else "" if self.run.finished else "the run did not end: "
            self.page.wrap(f"{lacking(missing, owed(self.run))}; {resuming(self.run)} goes on", lead, "yellow")
        parts: list[Part] = []
        for part in [*self._counts(), *self._time()]:
            parts += [" · ", part] if parts else [part]
        folder = f"run folder: {why.shown_path(self.loaded.path)}"
        used = sum(cell_len(p if isinstance(p, str) else p[0]) for p in parts)
        if used + 3 + cell_len(folder) <= self.page.width:
            self.page.add(*parts, " " * (self.page.width - used - cell_len(folder)), folder)
        else:
            for line in _side_by_side(parts, self.page.width):
                self.page.add(*line)
            self.page.add(folder)

    def _counts(self) -> list[Part]:
        count = {word: sum(r.word == word for r in self.rows) for word in ("pass", "unreferenced", *BAD, "verified", "skipped")}
        reasons = grouped.by_reason((r.reason, r) for row in self.rows if row.word == "skipped" for r in row.records)
        reason = f" ({fit_end(next(iter(reasons)), 30)})" if len(reasons) == 1 else ""
        words = {"unreferenced": "ok (no criterion)", "skipped": f"skipped{reason}"}
        return [
            (f"{number} {words.get(word, word)}", style_of(word) if word != "unreferenced" else "")
            for word, number in count.items()
            if number
        ] or ["no case was measured"]

    def _time(self) -> list[Part]:
        seconds, inside = self.run.settings.get("seconds"), self.run.settings.get("case_seconds")
        launches = max((len(row.measured) for row in self.rows), default=0)
        several: list[Part] = [f"{launches} launches"] if launches > 1 else []
        if not isinstance(seconds, int | float) or seconds <= 0:
            return several
        share = f" ({100 * min(inside / seconds, 1):.0f} % inside cases)" if isinstance(inside, int | float) else ""
        return [*several, format_duration(seconds) + share]


# --------------------------------------------------------------------------------------------------------------------------
# lines


def _parts(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    return [parts_of(row.case, row.params) for row in rows]


def _side_by_side(parts: list[Part], width: int) -> list[list[Part]]:
    """Parts on as many lines as they need."""
    lines: list[list[Part]] = [[]]
    used = 0
    for part in parts:
        size = cell_len(part if isinstance(part, str) else part[0])
        if used + size > width and used and part != " · ":
            lines.append([])
            used = 0
        lines[-1].append(part)
        used += size
    return lines
