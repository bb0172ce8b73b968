"""Run B against run A, the largest slowdown last.  Terminal, Markdown and JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.cells import cell_len

from clustergauge.compare import Pair, Report
from clustergauge.model import Metric
from clustergauge.units import format_rate
from clustergauge.valid import printable
from reports.layout import Page, Part, listed, pad, put, short_names, squeezed, width_of
from reports.markdown import cell
from reports.table import percent

WORDS = ("broken", "slower", "faster", "same", "not slower", "inconclusive", "incomparable")
QUIET = ("same", "not slower")
STYLES = {"broken": "bold red", "slower": "bold red", "faster": "green", "inconclusive": "yellow", "incomparable": "yellow"}
WEAK = "a weak word: below 4 launches a side the spread between launches is assumed; measure both with --launches 5"
WEAK_PAIRS = "a weak word: fewer than 6 launches of both sides together say nothing beyond doubt"
LEAST_NAME = 16


def show(report: Report, form: str) -> None:
    """Print a comparison on stdout as ``text``, ``md``, ``html`` or ``json``."""
    if form == "html":
        from reports import comparison_page

        sys.stdout.buffer.write(comparison_page.html_of(report).encode(errors="replace"))
    elif form == "json":
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    elif form == "md":
        sys.stdout.write(markdown(report))
    else:
        put(page_of(report, width_of(sys.stdout)))


def keep(report: Report, folder: Path) -> None:
    """The comparison as files, ``report.json`` and ``report.md``, in an existing folder."""
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def weakness(report: Report) -> str:
    """What words that lean on too few launches are worth; empty where there are none."""
    weak = any(pair.shift and pair.shift.weak for pair in report.pairs)
    return "" if not weak else WEAK_PAIRS if report.paired else WEAK


def word_of(pair: Pair) -> str:
    """The pair's word as people read it: *changed* says in which direction."""
    return ("slower" if pair.slower else "faster") if pair.word == "changed" else pair.word


# --------------------------------------------------------------------------------------------------------------------------
# two runs


def page_of(report: Report, width: int) -> Page:
    """The comparison as lines of at most ``width`` cells."""
    page = Page(width)
    page.add((f"B {report.run_b} against A {report.run_a}", "bold"))
    for d in report.differences:
        page.wrap(f"{d.name}: {d.a} → {d.b}", f"  {d.kind}  ", "yellow" if d.bars else "dim")
    if barred := [d for d in report.differences if d.bars]:
        words = (
            "compared anyway" if report.anyway else "they differ in what decides results: --anyway compares them in spite of it"
        )
        page.wrap(words if barred else "", "→ ", "yellow")
    page.gap()
    compared = [p for p in report.pairs if p.word != "incomparable"]
    names = names_of(report.pairs)
    if compared:
        _table(page, compared, names)
        page.gap()
    _incomparable(page, report, names)
    for letter, cases in (("A", report.only_a), ("B", report.only_b)):
        if cases:
            page.add((f"only in {letter}  {len(cases)}: ", ""), (listed([printable(c) for c in cases], width - 16), "dim"))
    if weak := weakness(report):
        page.wrap(weak, "note: ", "dim")
    for note in report.notes:
        page.wrap(note, "note: ", "dim")
    page.gap()
    page.add(*_summary(report.pairs))
    return page


def _table(page: Page, pairs: Sequence[Pair], names: dict[Key, str]) -> None:
    labels = ["A", "B", "time", "95 %", "launches"]
    cells = [columns_of(p) for p in pairs]
    widths = [max(cell_len(row[i]) for row in [*cells, labels]) for i in range(len(labels))]
    last = max(cell_len(word_of(p)) for p in pairs)
    shown = [names[key_of(p)] for p in pairs]
    room = page.width - sum(widths) - 2 * len(widths) - 2 - last
    if room < LEAST_NAME:  # the launches give way first: they are alike in most rows
        labels, widths, cells = labels[:-1], widths[:-1], [row[:-1] for row in cells]
        room = page.width - sum(widths) - 2 * len(widths) - 2 - last
    name = min(max(map(cell_len, [*shown, "case"])), max(room, LEAST_NAME))
    short = squeezed(shown, name)
    page.add((join("case", labels, name, widths), "bold"))
    for pair, full, row in zip(pairs, shown, cells, strict=True):
        page.add(join(short[full], row, name, widths), "  ", (word_of(pair), STYLES.get(word_of(pair), "")))
        if pair.why:
            page.wrap(pair.why, "  ", "dim" if pair.word != "broken" else "red")


def join(name: str, texts: Sequence[str], width: int, widths: Sequence[int]) -> str:
    """A row of a table: a name, and texts at the right end of their columns."""
    return "  ".join([pad(name, width), *(pad(text, w, right=True) for text, w in zip(texts, widths, strict=True))])


def columns_of(pair: Pair) -> list[str]:
    """A, B, the shift, its interval and the launches of a pair, in words."""
    shift = pair.shift
    return [
        _number(pair.a),
        _number(pair.b),
        percent(shift.shift) if shift else "–",
        f"{percent(shift.low)} … {percent(shift.high)}" if shift else "–",
        f"{pair.launches[0]}+{pair.launches[1]}",
    ]


def _number(metric: Metric | None) -> str:
    return format_rate(metric.value, metric.unit) if metric else "–"


def _incomparable(page: Page, report: Report, names: dict[Key, str]) -> None:
    reasons: dict[str, list[Pair]] = {}
    for pair in report.having("incomparable"):
        reasons.setdefault(pair.why, []).append(pair)
    for reason, pairs in reasons.items():
        cases = [names[key_of(p)] for p in pairs]
        page.add((f"incomparable  {len(pairs)}: ", "yellow"), (listed(cases, page.width - 22), "dim"))
        page.wrap(reason, "  ")


def _summary(pairs: Sequence[Pair]) -> list[Part]:
    parts: list[Part] = []
    for word in WORDS:
        if number := sum(word_of(p) == word for p in pairs):
            parts += [" · "] if parts else []
            parts.append((f"{number} {word}", STYLES.get(word, "")))
    return parts or ["nothing to compare: no case was measured in both runs"]


Key = tuple[str, str, str, str]
"""What tells pairs apart: hosts on both sides, case, device."""


def key_of(pair: Pair) -> Key:
    """See `Key`."""
    return (*pair.hosts, pair.case, pair.device)


def names_of(pairs: Sequence[Pair]) -> dict[Key, str]:
    """What tables call each pair: host and device where there are several."""
    short = short_names({p.case: p.params for p in pairs})
    of_hosts, of_devices = len({p.hosts for p in pairs}) > 1, len({(p.hosts, p.device) for p in pairs}) > 1
    names: dict[Key, str] = {}
    for pair in pairs:
        place = [pair.hosts[1] or pair.hosts[0]] * of_hosts + [pair.device] * of_devices
        names[key_of(pair)] = " ".join([short[pair.case], *map(printable, place)])
    return names


def markdown(report: Report) -> str:
    """The comparison for a pull request: the largest slowdown first, what did not change folded away."""
    lines = [f"**{summary(report.pairs)}** — B {cell(report.run_b)} against A {cell(report.run_a)}", ""]
    names = names_of(report.pairs)
    if report.differences:
        lines += ["| what differs | A | B |", "|---|---|---|"]
        lines += [f"| {cell(f'{d.kind} {d.name}')} | {cell(d.a)} | {cell(d.b)} |" for d in report.differences]
        lines += [""]
    loud = [p for p in reversed(report.pairs) if p.word not in (*QUIET, "incomparable")]
    quiet = [p for p in reversed(report.pairs) if p.word in QUIET]
    lines += _markdown_table(loud, names) if loud else []
    if quiet:
        counted = summary(quiet)
        lines += ["<details>", f"<summary>{counted}</summary>", "", *_markdown_table(quiet, names), "</details>", ""]
    lines += [f"- {cell(names[key_of(p)])}: {cell(p.word)}: {cell(p.why)}" for p in report.having("incomparable")]
    for letter, cases in (("A", report.only_a), ("B", report.only_b)):
        lines += [f"- only in {letter}: {', '.join(f'{cell(c)}' for c in cases)}"] if cases else []
    if weak := weakness(report):
        lines += ["", f"_{weak}_"]
    if report.notes:
        lines += ["", *(f"_{cell(note)}_  " for note in report.notes)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_table(pairs: Sequence[Pair], names: dict[Key, str]) -> list[str]:
    lines = ["| case | A | B | time | 95 % | launches | |", "|---|--:|--:|--:|--:|--:|---|"]
    for pair in pairs:
        word = f"**{word_of(pair)}**" if word_of(pair) in ("slower", "broken") else word_of(pair)
        why = f": {cell(pair.why)}" if pair.why else ""
        lines.append(f"| {' | '.join(cell(t) for t in (names[key_of(pair)], *columns_of(pair)))} | {word}{why} |")
    return [*lines, ""]


def summary(pairs: Sequence[Pair]) -> str:
    """How many of each word there are."""
    return "".join(p if isinstance(p, str) else p[0] for p in _summary(pairs))
