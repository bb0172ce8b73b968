"""Why a row is bad, where its log is, and how to run it again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rich.cells import cell_len

from clustergauge import sweeps
from clustergauge.loading import LoadedRun
from clustergauge.valid import printable
from reports import table
from reports.again import again
from reports.layout import Page
from reports.rows import BAD, Row


def draw(page: Page, loaded: LoadedRun, row: Row, full: bool) -> None:
    """Reasons, logs and the command.  ``full``: the row itself says what was asked of its headline."""
    for reason in _reasons(row, full):
        page.wrap(reason, "  ")
    logs = [str(r.settings["log"]) for r in row.records if r.settings.get("log")]
    for log in dict.fromkeys(logs):
        page.add("  log: ", shown_path(loaded.path / printable(log)))
    skipped = {r.status for r in row.records} == {"skipped"}
    if row.records and not skipped and (words := again(loaded.run, row.case, row.word in ("error", "wrong"))):
        for line in _continued(words, page.width):
            page.add((line, "cyan"))


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
            if verdict.verdict == "not measured" and verdict.value is None:
                asked = f"{verdict.metric} is required".strip()
            elif not told:
                asked = table.asked(verdict)
            source = f"source: {verdict.source}" if verdict.source else ""
            why = verdict.reason if verdict.reason != row.over else ""  # said below the row
            found["; ".join(filter(None, (asked, why, verdict.remark, source)))] = None
    return [reason for reason in found if reason]


def _continued(words: list[str], width: int) -> list[str]:
    """A command on as many lines as it needs; the shell joins them.  A word is never broken, or pasting would change it."""
    lines = ["  again:"]
    for word in words:
        if cell_len(lines[-1]) + 1 + cell_len(word) + 2 > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines


def shown_path(path: Path) -> str:
    """Relative to the current folder if it lies in it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (links stay as they are)
    try:
        return str(absolute.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(absolute)
