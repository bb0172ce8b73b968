"""What would run here, what would not and why, and how long it would take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
from rich.cells import cell_len

from clustergauge.forecast import DEVICE_RATE, at_best, predict, predict_case
from clustergauge.model import Planned
from clustergauge.units import counted, format_duration, format_rate
from clustergauge.valid import printable
from reports import grouped
from reports.layout import Page, fit, pad, parts_of, put, squeezed, width_of

LABELS = ("case", "device", "ranks", "budget", "about")


def show(planned: Sequence[Planned], form: str) -> None:
    """Print the plan on stdout: a table, or one JSON document (a list of what ``planned`` holds in ``run.json``)."""
    if form == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(planned)) + b"\n")
    else:
        put(page_of(planned, width_of(sys.stdout)))


def page_of(planned: Sequence[Planned], width: int) -> Page:
    """The plan as lines of at most ``width`` cells: a line for each case and device with its whole id where there is room."""
    page = Page(width)
    once = list({(p.case, p.device, p.skip): p for p in reversed(planned)}.values())[::-1]  # launches of a case are one line
    running, skipped = [p for p in once if not p.skip], [p for p in once if p.skip]
    if running:
        _table(page, running)
        page.gap()
    if skipped:
        _skipped(page, skipped)
        page.gap()
    launches = len({p.launch for p in planned})
    times = f" × {launches} launches" if launches > 1 else ""
    devices = len({p.device for p in running})
    where = f" on {devices} devices" if devices > 1 else ""
    cases = f"{counted(len(running), 'case')}{where}{times}"
    words = [f"{cases} would run, about {_about(planned)}" if running else "nothing would run"]
    in_turn = sum(bool(p.in_turn) for p in running)
    words += [f"{in_turn} of them on one node after another, which share the target"] if in_turn else []
    words += [f"{len(skipped)} would be skipped"] if skipped else []
    page.wrap(" · ".join(words))
    return page


def _about(planned: Sequence[Planned]) -> str:
    """How long it takes; where that depends on storage, whose rate nobody knows yet, with fast one and with modest one."""
    best, modest = (format_duration(seconds) for seconds in (at_best(planned), predict(planned)))
    rate = format_rate(DEVICE_RATE, "B/s") + (" on each node" if any(p.hosts for p in planned) else "")
    return best if best == modest else f"{best}, or {modest} with storage of {rate}"


def _table(page: Page, running: Sequence[Planned]) -> None:
    cells = [(printable(p.device), str(p.ranks), _budget(p), format_duration(predict_case(p))) for p in running]
    widths = [max(cell_len(c[i]) for c in [*cells, LABELS[1:]]) for i in range(4)]
    widths[0] = min(widths[0], page.width // 4)
    names = [printable(p.case) for p in running]
    room = page.width - sum(widths) - 8
    natural = max(map(cell_len, [*names, LABELS[0]]))
    name = min(natural, room)
    short = squeezed(names, name)
    for texts, label in [(LABELS, True), *(((n, *c), False) for n, c in zip(names, cells, strict=True))]:
        case = texts[0] if label else short[texts[0]]
        line = [pad(case, name), pad(fit(texts[1], widths[0]), widths[0])]
        line += [pad(text, width, right=True) for text, width in zip(texts[2:], widths[1:], strict=True)]
        page.add(("  ".join(line), "bold" if label else ""))


def _budget(planned: Planned) -> str:
    return "not timed" if planned.interpret else format_duration(planned.budget_s)


def _skipped(page: Page, skipped: Sequence[Planned]) -> None:
    page.add(("would be skipped", "bold"))
    for reason, cases in grouped.by_reason((p.skip, p) for p in skipped).items():
        grouped.draw(page, f"  {len(cases)}  ", reason, [parts_of(p.case, p.params) for p in cases])
