"""Many runs side by side, a column each: which is best, and how much of it the others reach.  Terminal, Markdown and JSON."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from rich.cells import cell_len

from clustergauge import believed
from clustergauge.loading import LoadedRun
from clustergauge.model import Metric, Scalar
from clustergauge.reached import grouped, kind_of_device
from clustergauge.units import counted, format_rate
from clustergauge.valid import printable
from reports import heading
from reports.comparison import LEAST_NAME, join
from reports.layout import Page, Part, listed, pad, put, short_names, squeezed, width_of
from reports.markdown import cell

LEGEND = "Medians side by side: whether two differ, compare two runs for that."
BROKEN = ("wrong", "error", "invalid")
"""Words for what has no number because something is bad, the worst first."""
ABSENT = (*BROKEN, "verified", "skipped")
"""All words that stand where a number would; verified: checked and not timed."""


@dataclass(frozen=True)
class Line:
    """One case over many runs: its headline in each (``None``: none there) and the index of the best.

    ``words``: for each run what there is instead of a number (one of `ABSENT`), empty where there is one, or no such case.
    """

    case: str
    params: dict[str, Scalar]
    device: str
    values: list[Metric | None]
    words: list[str]

    @property
    def best(self) -> int | None:
        """Index of the run that is best; ``None`` where fewer than two runs have a number in the same unit."""
        known = {i: m for i, m in enumerate(self.values) if m}
        if len(known) < 2 or len({(m.unit, m.better) for m in known.values()}) > 1:
            return None
        lower = next(iter(known.values())).better == "lower"
        return min(known, key=lambda i: known[i].value * (1 if lower else -1))

    def ratio(self, index: int) -> float | None:
        """How much of the best this run reaches, 1 for the best itself; ``None`` where unknown."""
        best, metric = self.best, self.values[index]
        if best is None or metric is None or (top := self.values[best]) is None or top.value <= 0 or metric.value <= 0:
            return None
        return top.value / metric.value if top.better == "lower" else metric.value / top.value


@dataclass(frozen=True)
class Table:
    """Runs side by side.  ``broken``: for each run how many cases came to each of `BROKEN`, each device counted."""

    runs: Sequence[LoadedRun]
    lines: list[Line]
    broken: list[Counter[str]]

    @property
    def labels(self) -> list[str]:
        """What the columns are called."""
        return [letter_of(i) for i in range(len(self.runs))]

    def names(self) -> dict[str, str]:
        """Short names of the cases."""
        return short_names({line.case: line.params for line in self.lines})

    def remarks(self) -> Iterator[str]:
        """A sentence for each run in which something is bad, whether it has a number beside it or not."""
        for label, loaded, found in zip(self.labels, self.runs, self.broken, strict=True):
            if found:
                told = ", ".join(f"{found[word]} {word}" for word in BROKEN if found[word])
                yield f"in {label}: {told}, of {counted(len(loaded.run.planned), 'case')}: report {loaded.run.run_id} says why"


def table_of(runs: Sequence[LoadedRun]) -> Table:
    """One line for each case and device kind; of the machines and devices of one run the median one speaks for it.

    Whose number cannot be believed (wrong, an error, invalid) has none here either.  There is a line for what somebody measured,
    or failed.
    """
    found: dict[tuple[str, str], Line] = {}
    broken = [Counter[str]() for _ in runs]
    for index, loaded in enumerate(runs):
        limits = believed.limits_of(loaded.machines, loaded.catalogue)
        heads: dict[tuple[str, str], list[Metric]] = {}
        words: dict[tuple[str, str], set[str]] = {}
        for (_, case, device), records in grouped(loaded.records).items():
            key = (case, kind_of_device(device))
            none: list[Metric | None] = [None] * len(runs)
            found.setdefault(key, Line(case, records[0].params, key[1], none, [""] * len(runs)))
            timed = [r for r in records if r.status not in ("skipped", "verified")]
            why, head = believed.number(timed, limits) if timed else (records[0].status, None)
            word = why.partition(":")[0]
            words.setdefault(key, set()).add(word)
            heads.setdefault(key, []).extend([head] if head else [])
            broken[index].update([word] if word in BROKEN else [])
        for key, known in heads.items():
            middle = sorted(known, key=lambda metric: metric.value)[len(known) // 2 :][:1]
            found[key].values[index] = middle[0] if middle else None
            found[key].words[index] = "" if middle else next((w for w in ABSENT if w in words[key]), "")
    return Table(runs, [line for line in found.values() if any(line.values) or set(line.words) & set(BROKEN)], broken)


def letter_of(number: int) -> str:
    """What a column is called."""
    return chr(ord("A") + number) if number < 26 else f"R{number}"


def page_of(table: Table, width: int) -> Page:
    """A column for each run: the best is marked, the others say which share of it they reach.

    What does not fit beside one another stands below.
    """
    page = Page(width)
    for label, loaded in zip(table.labels, table.runs, strict=True):
        run_id = printable(loaded.run.run_id)
        room = max(10, width - cell_len(label) - cell_len(run_id) - 4)
        page.add((f"{label}  ", "bold"), f"{run_id}  ", (listed(heading.kinds(loaded.machines.values()), room, "; "), "dim"))
    page.gap()
    names = table.names()
    shown = [names[line.case] for line in table.lines]
    cells = [[_share(line, i) for i in range(len(table.runs))] for line in table.lines]
    widths = [max(cell_len(row[i]) for row in [*cells, table.labels]) for i in range(len(table.runs))]
    name = min(max(map(cell_len, [*shown, "case"])), max(LEAST_NAME, width - 2 - max(widths)))
    for block in _blocks(widths, width - name):
        _block(page, table, block, name, squeezed(shown, name), cells, widths)
        page.gap()
    if not table.lines:
        page.add("nothing was measured in these runs")
        page.gap()
    page.wrap(f"* best; otherwise the share of the best. {LEGEND}")
    for remark in table.remarks():
        page.wrap(remark, style="yellow")
    return page


def _blocks(widths: Sequence[int], room: int) -> list[range]:
    """Columns that fit beside one another, one after the other; at least one at a time."""
    starts, used = [0], 0
    for index, width in enumerate(widths):
        if used and used + width + 2 > room:
            starts.append(index)
            used = 0
        used += width + 2
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(widths)], strict=True)]


def _block(
    page: Page, table: Table, block: range, name: int, short: dict[str, str], cells: Sequence[list[str]], widths: Sequence[int]
) -> None:
    """The rows of some columns."""
    names = table.names()
    page.add((join("case", [table.labels[i] for i in block], name, [widths[i] for i in block]), "bold"))
    for line, row in zip(table.lines, cells, strict=True):
        parts: list[Part] = [pad(short[names[line.case]], name)]
        for i in block:
            style = "bold green" if line.best == i else "bold red" if line.words[i] in BROKEN else ""
            parts += ["  ", (pad(row[i], widths[i], right=True), style)]
        page.add(*parts)


def _share(line: Line, index: int) -> str:
    metric = line.values[index]
    if metric is None:
        return line.words[index] or "–"
    ratio = line.ratio(index)
    mark = "" if ratio is None else "    *" if line.best == index else f" {ratio:>3.0%}".replace("%", " %")
    return format_rate(metric.value, metric.unit) + mark


def show(runs: Sequence[LoadedRun], form: str) -> bool:
    """Print the runs on stdout as ``text``, ``md``, ``html`` or ``json``; whether any has a number to show."""
    table = table_of(runs)
    if form == "html":
        from reports import comparison_page

        sys.stdout.buffer.write(comparison_page.html_of_many(table).encode(errors="replace"))
    elif form == "json":
        lines = [{name: getattr(line, name) for name in ("case", "device", "best", "values", "words")} for line in table.lines]
        document = {"runs": [r.run.run_id for r in runs], "cases": lines, "broken": table.broken}
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    elif form == "md":
        sys.stdout.write(markdown(table))
    else:
        put(page_of(table, width_of(sys.stdout)))
    return any(any(line.values) for line in table.lines)


def markdown(table: Table) -> str:
    """The runs as a Markdown table."""
    runs = table.runs
    lines = [f"| case | {' | '.join(cell(r.run.run_id) for r in runs)} |", f"|---|{'--:|' * len(runs)}"]
    names = table.names()
    lines.append(f"| | {' | '.join(cell('; '.join(heading.kinds(r.machines.values()))) for r in runs)} |")
    for line in table.lines:
        texts = [_share(line, i).replace("    *", "") for i in range(len(runs))]
        shown = [f"**{cell(t)}**" if line.best == i or line.words[i] in BROKEN else cell(t) for i, t in enumerate(texts)]
        lines.append(f"| {cell(names[line.case])} | {' | '.join(shown)} |")
    lines += ["", f"_The best in bold; otherwise the share of the best. {LEGEND}_"]
    lines += [f"- {cell(remark)}" for remark in table.remarks()]
    return "\n".join(lines) + "\n"
