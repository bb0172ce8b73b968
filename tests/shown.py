"""Runs as the terminal shows them, with planted ceilings, and texts that would harm it."""

from __future__ import annotations

from clustergauge import ceilings
from clustergauge.loading import LoadedRun
from reports import terminal

HOSTILE = (
    "[red]stop[/red]",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "<script>alert(1)</script>",
    "漢字" * 60,
    "x" * 3000,
    "a\nb\r\tc\u202ed\u200be",
    "[link=http://evil]x[/link]",
    "{0} %s $(reboot) `reboot`",
    ":smile: [/]",
)


def planted_ceiling(record, machine, metric, catalogue=None):
    """Known for compute, estimated for memory, unknown for the rest."""
    known = {"compute": (2.5e12, "FLOP/s", True), "bandwidth": (1e12, "B/s", False)}.get(metric.name)
    return ceilings.Ceiling(*known, source="planted") if known else None


def shown(run: LoadedRun, verdicts=(), width: int = 120) -> str:
    return terminal.page_of(run, verdicts, width).text()


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line
