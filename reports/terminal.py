"""What a person sees of a run: the table, what was skipped and why, what to doubt, what failed and how to run it again.

Good rows come first, failed ones last, so that they are on screen.  The same folder gives the same text every time.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len

from clustergauge import ceilings, path, stats, sweeps, warnings
from clustergauge.believed import Limits
from clustergauge.hosts import spans
from clustergauge.loading import LoadedRun
from clustergauge.model import PairFindings, Verdict, Warning_
from clustergauge.units import format_duration, format_rate, format_time
from clustergauge.valid import printable
from reports import grouped, heading, pairs, storage
from reports.again import again
from reports.details import details
from reports.export import lacking, owed, unanswered
from reports.layout import Page, Part, fit_end, listed, parts_of, put, short_names, width_of
from reports.rows import BAD, Row, rows_of
from reports.table import Table, amount, percent, sign_of, style_of

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf

MANY = 3
"""More cases than this share one line of a warning."""


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
        self.good = [r for r in rows if r.word in ("pass", "unreferenced")]
        self.names = short_names({r.case: r.params for r in rows} | {p.case: p.params for p in loaded.run.planned})
        self.hosts = {m.machine_id: m.host for m in loaded.machines.values()}
        measured = dict.fromkeys((r.machine_id, r.device) for r in (*self.good, *self.bad) if r.machine_id)
        self.places = {place: number for number, place in enumerate(measured)}
        self.several = len({machine for machine, _ in self.places}) > 1
        self.limits = Limits(machines=tuple(loaded.machines.values()))
        self.table = Table([*self.good, *self.bad], self.names, page.width)

    def draw(self) -> Page:
        page = self.page
        heading.draw(page, self.run.run_id, self.loaded.machines.values())
        for line in storage.lines(self.loaded):
            page.wrap(line, "target ", "dim", 3)
        page.gap()
        self._rows(self.good)
        page.gap()
        self._untimed()
        page.gap()
        self._doubts()
        page.gap()
        self._rows(self.bad)
        page.gap()
        self._summary()
        return page

    # -- rows

    def _rows(self, rows: list[Row]) -> None:
        if rows:
            self.page.add((self.table.header(), "bold"))
        rows = sorted(rows, key=lambda r: self.places.get((r.machine_id, r.device), len(self.places)))
        for place, members in groupby(rows, key=lambda r: (r.machine_id, r.device)):
            if len(self.places) > 1:
                self.page.gap()
                self.page.add((self._place(*place), "bold"))
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
                    self._why(row)

    def _place(self, machine_id: str, device: str) -> str:
        words = [self.hosts.get(machine_id, machine_id)] if self.several and machine_id else []
        return fit_end(" · ".join(map(printable, [*words, device or "any device"])), self.page.width)

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

    def _why(self, row: Row) -> None:
        """Reasons of a bad row, and how to run it again."""
        for reason in _reasons(row, self.table.full):
            self.page.wrap(reason, "  ")
        logs = [str(r.settings["log"]) for r in row.records if r.settings.get("log")]
        for log in dict.fromkeys(logs):
            self.page.add("  log: ", _shown_path(self.loaded.path / printable(log)))
        skipped = {r.status for r in row.records} == {"skipped"}
        if row.records and not skipped and (words := again(self.run, row.case, row.word in ("error", "wrong"))):
            for line in _continued(words, self.page.width):
                self.page.add((line, "cyan"))

    # -- what has no row

    def _untimed(self) -> None:
        verified = [r for r in self.rows if r.word == "verified"]
        if verified:
            grouped.draw(self.page, "", f"verified (interpreter, not timed)  {len(verified)}", _parts(verified))
        told = [(why, r) for r in self.rows for why in dict.fromkeys(x.reason for x in r.records if x.status == "skipped")]
        for reason, rows in grouped.by_reason(told).items():
            grouped.draw(self.page, f"skipped  {len(rows)}  ", reason, _parts(rows))

    def _doubts(self) -> None:
        """Warnings of cases, those that share a name and a remedy together; then of the run and its machines."""
        shared: dict[tuple[str, str], list[tuple[Row, Warning_]]] = {}
        for row in self.rows:
            for doubt in warnings.doubts(row.measured, self.ceiling) if row.metrics else []:
                shared.setdefault((doubt.name, doubt.remedy), []).append((row, doubt))
        for (name, remedy), found in shared.items():
            if len(found) > MANY:
                lead = f"warning: {printable(name)}: {len(found)} cases: "
                cases = list(dict.fromkeys(self.names[row.case] for row, _ in found))
                self.page.add((lead, "yellow"), listed(cases, self.page.width - cell_len(lead)))
                self._most_often(found)
            else:
                for row, doubt in found:
                    self._warning(name, f"{self._where(row)}: {doubt.detail}")
            self.page.wrap(remedy, "  → ", "dim")
        health: dict[str, list[str]] = {}
        for row in self.rows:
            for record in [] if row.metrics else row.records:  # those with numbers have had their say as doubts
                for counter, change in record.counters.health.items():
                    if counter != "unknown":
                        health.setdefault(f"{counter}: {change}", []).append(self._where(row))
        for change, places in health.items():
            self._warning("health", f"{change} during {listed(list(dict.fromkeys(places)), self.page.width)}")
        self._findings()
        for doubt in warnings.of_run(self.loaded.records):
            self._warning(doubt.name, doubt.detail)
            self.page.wrap(doubt.remedy, "  → ", "dim")

    def _most_often(self, found: Sequence[tuple[Row, Warning_]]) -> None:
        """Which ranks a warning that many cases share is about, most often first; or which of several hosts, where most are."""
        lead, count = "  most often: ", len(found)
        counts = Counter(doubt.who for _, doubt in found if doubt.who)
        if not counts and len(self.hosts) > 1:
            places = Counter(self.hosts.get(row.machine_id, "") for row, _ in found if not spans(row.device))
            counts = Counter({host: times for host, times in places.items() if host and 2 * times > count})
        if counts:
            told = [printable(f"{who} ({times} of {count})") for who, times in counts.most_common()]
            self.page.add(lead, listed(told, self.page.width - cell_len(lead)))

    def _findings(self) -> None:
        found: dict[tuple[str, str, str], list[str]] = {}
        unread = {str(r.counters.health["unknown"]) for r in self.loaded.records if "unknown" in r.counters.health}
        unknown = dict.fromkeys(name for names in sorted(unread) for name in names.split(","))
        for machine in self.loaded.machines.values():
            for finding in machine.findings:
                if finding.fails:
                    continue  # it has a row of its own
                if finding.state == "warning":
                    found.setdefault((finding.name, finding.detail, finding.remedy), []).append(machine.host)
                elif finding.state == "unknown":
                    unknown[finding.name] = None
        for (name, detail, remedy), hosts in found.items():
            where = f"{listed(hosts, self.page.width // 2)}: " if len(self.hosts) > 1 else ""
            self._warning(name, where + detail)
            self.page.wrap(remedy, "  → ", "dim")
        if unknown:
            self.page.wrap(f"unknown, because unreadable here: {', '.join(unknown)}", style="dim", most=2)

    def _warning(self, name: str, detail: str) -> None:
        self.page.wrap(f"{name}: {detail}", "warning: ", "yellow", 4)

    def _where(self, row: Row) -> str:
        name = self.names[row.case]
        return f"{name} on {self._place(row.machine_id, row.device)}" if len(self.places) > 1 else name

    # -- the end

    def _summary(self) -> None:
        for note in self.loaded.notes:
            self.page.wrap(note, style="yellow")
        for name, why in self.run.left_out.items():
            self.page.wrap(printable(why), f"node {printable(name)}: ", "yellow")
        if missing := len(unanswered(self.loaded)):
            lead = "interrupted: " if self.run.interrupted else "" if self.run.finished else "the run did not end: "
            words = f"{lacking(missing, owed(self.run))}; run_suite.py run --resume"
            self.page.wrap(f"{words} {self.run.run_id} goes on", lead, "yellow")
        parts: list[Part] = []
        for part in [*self._counts(), *self._time()]:
            parts += [" · ", part] if parts else [part]
        folder = f"run folder: {_shown_path(self.loaded.path)}"
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


def _reasons(row: Row, full: bool) -> Iterable[str]:
    """Why a row is bad, a sentence each, no sentence twice.  ``full``: the row itself says what was asked of its headline."""
    found: dict[str, None] = {}
    launches = len(row.records) > 1
    for record in row.records:
        if record.status in ("error", "wrong"):
            who = f"launch {record.launch}: " if launches else ""
            found[f"{who}{record.reason or 'no reason given'}"] = None
    for verdict in row.verdicts:
        if verdict.metric == sweeps.METRIC:
            continue  # said below the row
        if verdict.verdict in BAD and row.word not in ("error", "wrong") and not found.keys() & {verdict.reason}:
            asked = ""
            told = full and verdict is row.verdict and row.headline is not None and verdict.metric == row.headline.name
            if not told and verdict.value is not None and verdict.bound is not None:
                value, bound = (amount(v, verdict.unit) for v in (verdict.value, verdict.bound))
                margin = f" ({percent(verdict.margin)})" if verdict.margin is not None else ""
                asked = f"{verdict.metric} {value}, asked {sign_of(verdict)} {bound}{margin}"
            elif verdict.verdict == "not measured" and verdict.value is None:
                asked = f"{verdict.metric} is required".strip()
            source = f"source: {verdict.source}" if verdict.source else ""
            why = verdict.reason if verdict.reason != row.over else ""  # said below the row
            found["; ".join(filter(None, (asked, why, verdict.remark, source)))] = None
    return [reason for reason in found if reason]


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


def _continued(words: list[str], width: int) -> list[str]:
    """A command on as many lines as it needs; the shell joins them.  A word is never broken, or pasting would change it."""
    lines = ["  again:"]
    for word in words:
        if cell_len(lines[-1]) + 1 + cell_len(word) + 2 > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines


def _shown_path(path: Path) -> str:
    """Relative to the current folder if it lies in it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (links stay as they are)
    try:
        return str(absolute.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(absolute)
