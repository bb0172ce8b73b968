"""Two runs compared, or many side by side, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clustergauge.compare import Pair, Report
from clustergauge.units import counted, format_rate
from reports import charts, comparison, heading, side_by_side
from reports.charts import Bar
from reports.comparison import weakness, word_of
from reports.side_by_side import Table
from reports.table import percent
from reports.web import banner, document, paragraph, section, table

MOST_BARS, MOST_ROWS, MOST_RUNS = 60, 2000, 40
"""What a page holds, so that it stays small; it says what it leaves out."""
COLUMNS = 6
"""So many runs stand side by side in one table: a sheet of paper holds no more."""
STYLES = {"broken": "bad", "slower": "bad", "faster": "good", "inconclusive": "doubt", "incomparable": "doubt"}


def html_of(report: Report) -> str:
    """B against A: what got worse first."""
    names = comparison.names_of(report.pairs)
    pairs = list(reversed(report.pairs))
    loud = [p for p in pairs if p.word not in (*comparison.QUIET, "incomparable")]
    quiet = [p for p in pairs if p.word in comparison.QUIET]
    parts = [
        *_banner(report),
        *section("What changed, broke, or can't be told", _table(loud, names, "the largest slowdown first")),
        *section("Shifts of the time", _shifts(pairs, names)),
        *section("The same", _table(quiet, names, "no change beyond what matters")),
        *section("Not compared", _left_out(report, names)),
        *section("What differs between the runs", _differences(report)),
        *section("Methods", _methods(report)),
    ]
    return document(f"ClusterGauge: {report.run_b} against {report.run_a}", parts)


def _banner(report: Report) -> Iterator[str]:
    bad = [p for p in report.pairs if word_of(p) in ("broken", "slower")]
    unsure = [p for p in report.pairs if p.word in ("inconclusive", "incomparable")]
    if not report.pairs:
        lead, style = "Nothing to compare: no case was measured in both runs", "doubt"
    elif bad:
        lead, style = f"{len(bad)} of {counted(len(report.pairs), 'case')} got slower or broke", "bad"
    elif unsure:
        lead, style = f"{len(unsure)} of {counted(len(report.pairs), 'case')} can't be told; none is known to be slower", "doubt"
    else:
        lead, style = "Nothing got slower", "good"
    yield banner(style, lead, f"B {report.run_b} against A {report.run_a}: {comparison.summary(report.pairs)}")
    if report.anyway and any(d.bars for d in report.differences):
        yield paragraph("Compared in spite of differences that decide results (--anyway).", "doubt")


def _table(pairs: Sequence[Pair], names: dict[comparison.Key, str], order: str) -> Iterator[str]:
    if not pairs:
        return
    left = f"; {len(pairs) - MOST_ROWS} more are left out of this page" if len(pairs) > MOST_ROWS else ""
    head = ["case", "A", "B", "time", "95 % interval", "launches", "word", "why"]
    shown = pairs[:MOST_ROWS]
    told = [[names[comparison.key_of(p)], *comparison.columns_of(p), word_of(p), p.why] for p in shown]
    styles = [STYLES.get(word_of(p), "") for p in shown]
    yield table(f"{counted(len(pairs), 'case')}, {order}{left}", head, told, styles, word="word")


def _shifts(pairs: Sequence[Pair], names: dict[comparison.Key, str]) -> Iterator[str]:
    bars = [
        Bar(names[comparison.key_of(p)], p.shift.low, p.shift.shift, p.shift.high, STYLES.get(word_of(p), ""))
        for p in pairs
        if p.shift
    ]
    if bars:
        yield charts.intervals("How much longer B takes than A", bars[:MOST_BARS], "change of the time, 95 % interval", percent)
    if len(bars) > MOST_BARS:
        yield paragraph(f"{len(bars) - MOST_BARS} smaller ones are not drawn; the tables hold them.")


def _left_out(report: Report, names: dict[comparison.Key, str]) -> Iterator[str]:
    barred = report.having("incomparable")
    told = [[names[comparison.key_of(p)], p.why] for p in barred[:MOST_ROWS]]
    told += [[case, "only in A"] for case in report.only_a[:MOST_ROWS]]
    told += [[case, "only in B"] for case in report.only_b[:MOST_ROWS]]
    if told:
        count = len(barred) + len(report.only_a) + len(report.only_b)
        left = f", {count - len(told)} of them left out of this page" if count > len(told) else ""
        yield table(f"{counted(count, 'case')}{left}", ["case", "why"], told)


def _differences(report: Report) -> Iterator[str]:
    if report.differences:
        told = [[d.name, d.kind, d.a, d.b, "no" if d.bars else "yes"] for d in report.differences]
        styles = ["bad" if d.bars else "" for d in report.differences]
        yield table(counted(len(told), "difference"), ["what", "kind", "A", "B", "comparable"], told, styles, word="comparable")


def _methods(report: Report) -> Iterator[str]:
    unit = "fresh processes of both sides that measured by turns" if report.paired else "medians of fresh processes on both sides"
    yield paragraph(
        f"The launch is the unit: {unit}, and the interval of the ratio of their times with the "
        "spread between launches in it. Same: surely within the smallest change that matters. Changed: surely outside it. "
        "Inconclusive: neither."
    )
    if weak := weakness(report):
        yield paragraph(weak, "doubt")


# --------------------------------------------------------------------------------------------------------------------------
# many runs


def html_of_many(runs: Table) -> str:
    """One column a run: the best is marked, the others say which share of it they reach."""
    return document(f"ClusterGauge: {len(runs.runs)} runs side by side", section("Cases", _many(runs)))


def _many(runs: Table) -> Iterator[str]:
    more = len(runs.runs) - MOST_RUNS
    found = side_by_side.table_of(runs.runs[:MOST_RUNS]) if more > 0 else runs
    told = [
        [
            letter,
            r.run.run_id,
            "; ".join(heading.kinds(r.machines.values())),
            "; ".join(dict.fromkeys(map(heading.versions, r.machines.values()))),
        ]
        for letter, r in zip(found.labels, found.runs, strict=True)
    ]
    yield table("Runs", ["column", "run", "machines", "versions"], told)
    if more > 0:
        yield paragraph(f"{counted(more, 'more run is', 'more runs are')} left out of this page.")
    for remark in found.remarks():
        yield paragraph(remark, "doubt")
    left = f"; {len(found.lines) - MOST_ROWS} more are left out of this page" if len(found.lines) > MOST_ROWS else ""
    title = f"{counted(len(found.lines), 'case')}, medians, and the share of the best{left}"
    for first in range(0, len(found.runs), COLUMNS):
        block = range(first, min(first + COLUMNS, len(found.runs)))
        more = f"; {found.labels[block[0]]} to {found.labels[block[-1]]}" if len(found.runs) > COLUMNS else ""
        yield table(f"{title}{more}", ["case", "device", *(found.labels[i] for i in block)], _rows(found, block))
    yield paragraph(side_by_side.LEGEND)


def _rows(found: Table, block: range) -> list[list[str]]:
    names = found.names()
    rows: list[list[str]] = []
    for line in found.lines[:MOST_ROWS]:
        cells: list[str] = []
        for index in block:
            metric, ratio = line.values[index], line.ratio(index)
            share = "" if ratio is None else " (best)" if line.best == index else f" ({100 * ratio:.0f} %)"
            cells.append(format_rate(metric.value, metric.unit) + share if metric else line.words[index] or "–")
        rows.append([names[line.case], line.device, *cells])
    return rows
