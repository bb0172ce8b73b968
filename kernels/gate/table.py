"""The gate's answer as text, Markdown for the docs, and JSON."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kernels.gate.facts import BULK, Facts
from kernels.gate.targets import TARGETS

HEAD = ("kernel", "target", "configuration", "tensor core", "regs", "spilled", "shared", "TMEM", "loads", "stores", "copies")


class Row(msgspec.Struct, frozen=True):
    """One entry on one target.  ``problems``: empty where all is well; ``golden``: whether it was compared to golden facts."""

    entry: str
    target: str
    config: str
    facts: Facts | None
    problems: tuple[str, ...]
    golden: bool


class Report(msgspec.Struct, frozen=True):
    """All rows, and what concerns none of them: ``problems`` fail, ``notes`` are only said."""

    triton: str
    rows: tuple[Row, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> int:
        """Rows and general problems that fail."""
        return sum(bool(row.problems) for row in self.rows) + len(self.problems)


def text(report: Report) -> str:
    """Columns for a terminal, then what is wrong, each with its row, and a summary."""
    lines = [(*HEAD, "verdict"), *((*_cells(row), _verdict(row)) for row in report.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", *_wrong(report), *report.notes, _summary(report), ""])


def markdown(report: Report) -> str:
    """The same table as a page for the docs; advisories of the compiler below it."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in report.rows]
    advisories = [f"- {row.entry}, {row.target}: {said}" for row in report.rows if row.facts for said in row.facts.advisories]
    wrong = [f"- {line}" for line in _wrong(report)]
    parts = [
        "# Triton kernels as they are compiled",
        "What the compiler makes of the Triton kernels for each target, without a GPU: the configuration each gets, but not with "
        f"every type, mask and length that a launch may bring. Made with triton {report.triton} by "
        "`python -m kernels.gate --format markdown`.",
        " ".join([*report.notes, _summary(report)]),
        "\n".join(lines),
        *(["\n".join(advisories)] if advisories else []),
        *(["\n".join(wrong)] if wrong else []),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(report: Report) -> str:
    """One document."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"


def _wrong(report: Report) -> list[str]:
    return [*(f"{row.entry}, {row.target}: {said}" for row in report.rows for said in row.problems), *report.problems]


def _summary(report: Report) -> str:
    compared = sum(row.golden and not row.problems for row in report.rows)
    others = sum(not row.golden and not row.problems for row in report.rows)
    parts = (f"{compared} as golden", f"{others} by the rules alone", f"{report.failures} FAIL")
    return " · ".join(part for part in parts if not part.startswith("0 "))


def _verdict(row: Row) -> str:
    return "FAIL" if row.problems else "as golden" if row.golden else "rules"


def _cells(row: Row) -> tuple[str, ...]:
    start = (row.entry, row.target, row.config)
    if row.facts is None:
        return (*start, *["–"] * (len(HEAD) - len(start)))
    facts, target = row.facts, TARGETS[row.target]
    return (
        *start,
        _counted(facts.tensor),
        str(facts.registers),
        str(facts.spilled_bytes),
        f"{facts.shared_bytes} B, {100 * facts.shared_bytes / target.shared_bytes:.0f} %" if facts.shared_bytes else "0",
        str(facts.tmem_columns) if target.tmem_columns else "–",
        _widths(facts.loads),
        _widths(facts.stores),
        _copies(facts.copies),
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "–"


def _widths(counts: Mapping[int, int]) -> str:
    return " + ".join(f"{count}×{bits // 8} B" for bits, count in sorted(counts.items(), reverse=True)) or "–"


def _copies(counts: Mapping[str, int]) -> str:
    named = (name if name in BULK else f"{name.partition(' ')[0]} {int(name.partition(' ')[2]) // 8} B" for name in counts)
    return ", ".join(f"{count} {name}" for name, count in zip(named, counts.values(), strict=True)) or "–"
