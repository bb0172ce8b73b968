"""Many runs side by side, a column each: which is best, and how much of it the others reach.  Terminal, Markdown and JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.cells import cell_len

from clustergauge import believed
from clustergauge.loading import LoadedRun
from clustergauge.model import Metric, Scalar
from clustergauge.reached import grouped, kind_of_device
from clustergauge.units import format_rate
from clustergauge.valid import printable
from reports.comparison import LEAST_NAME, join
from reports.layout import Page, Part, listed, pad, put, short_names, squeezed, width_of
from reports.markdown import cell


@dataclass(frozen=True)
class Line:
    """One case over many runs: its headline in each (``None``: not measured there) and the index of the best."""

    case: str
    params: dict[str, Scalar]
    device: str
    values: list[Metric | None]

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


def lines_of(runs: Sequence[LoadedRun]) -> list[Line]:
    """One line for each case and device kind; of the machines and devices of one run the median one speaks for it.

    Whose number cannot be believed (wrong, an error, invalid) has none here either.
    """
    found: dict[tuple[str, str], list[Metric | None]] = {}
    params: dict[str, dict[str, Scalar]] = {}
    for index, loaded in enumerate(runs):
        limits = believed.limits_of(loaded.machines, loaded.catalogue)
        heads: dict[tuple[str, str], list[Metric]] = {}
        timed = (r for r in loaded.records if r.status not in ("skipped", "verified"))
        for (_, case, device), records in grouped(timed).items():
            params[case] = records[0].params
            _, head = believed.number(records, limits)
            heads.setdefault((case, kind_of_device(device)), []).extend([head] if head else [])
        for kind, known in heads.items():
            middle = sorted(known, key=lambda metric: metric.value)[len(known) // 2 :][:1]
            found.setdefault(kind, [None] * len(runs))[index] = middle[0] if middle else None
    return [Line(case, params[case], device, values) for (case, device), values in found.items() if any(values)]


def letter_of(number: int) -> str:
    """What a column is called."""
    return chr(ord("A") + number) if number < 26 else f"R{number}"


def page_of(runs: Sequence[LoadedRun], width: int) -> Page:
    """A column for each run: the best is marked, the others say which share of it they reach."""
    page = Page(width)
    labels = [letter_of(i) for i in range(len(runs))]
    for label, loaded in zip(labels, runs, strict=True):
        hosts = [printable(m.host) for m in loaded.machines.values()]
        page.add((f"{label}  ", "bold"), f"{printable(loaded.run.run_id)}  ", (listed(hosts, max(10, width - 40)), "dim"))
    page.gap()
    lines = lines_of(runs)
    names = short_names({line.case: line.params for line in lines})
    cells = [[_share(line, i) for i in range(len(runs))] for line in lines]
    widths = [max(cell_len(row[i]) for row in [*cells, labels]) for i in range(len(runs))]
    room = max(LEAST_NAME, width - sum(widths) - 2 * len(widths))
    shown = [names[line.case] for line in lines]
    name = min(max(map(cell_len, [*shown, "case"])), room)
    short = squeezed(shown, name)
    page.add((join("case", labels, name, widths), "bold"))
    for full, row, line in zip(shown, cells, lines, strict=True):
        parts: list[Part] = [pad(short[full], name)]
        for index, (text, cells_wide) in enumerate(zip(row, widths, strict=True)):
            parts += ["  ", (pad(text, cells_wide, right=True), "bold green" if line.best == index else "")]
        page.add(*parts)
    if not lines:
        page.add("nothing was measured in these runs")
    page.gap()
    page.wrap("* best; otherwise the share of the best. Medians side by side: whether two differ, compare two runs for that.")
    return page


def _share(line: Line, index: int) -> str:
    metric = line.values[index]
    if metric is None:
        return "–"
    ratio = line.ratio(index)
    mark = "" if ratio is None else "    *" if line.best == index else f" {ratio:>3.0%}".replace("%", " %")
    return format_rate(metric.value, metric.unit) + mark


def show(runs: Sequence[LoadedRun], form: str) -> None:
    """Print the runs on stdout as ``text``, ``md``, ``html`` or ``json``."""
    if form == "html":
        from reports import comparison_page

        sys.stdout.buffer.write(comparison_page.html_of_many(runs).encode(errors="replace"))
    elif form == "json":
        lines = [{"case": line.case, "device": line.device, "best": line.best, "values": line.values} for line in lines_of(runs)]
        sys.stdout.buffer.write(msgspec.json.encode({"runs": [r.run.run_id for r in runs], "cases": lines}) + b"\n")
    elif form == "md":
        sys.stdout.write(markdown(runs))
    else:
        put(page_of(runs, width_of(sys.stdout)))


def markdown(runs: Sequence[LoadedRun]) -> str:
    """The runs as a Markdown table."""
    lines = [f"| case | {' | '.join(cell(r.run.run_id) for r in runs)} |", f"|---|{'--:|' * len(runs)}"]
    found = lines_of(runs)
    names = short_names({line.case: line.params for line in found})
    for line in found:
        texts = [_share(line, i).replace("    *", "") for i in range(len(runs))]
        shown = [f"**{cell(t)}**" if line.best == i else cell(t) for i, t in enumerate(texts)]
        lines.append(f"| {cell(names[line.case])} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
