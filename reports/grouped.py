"""Many cases of which one thing is to be said, in few lines: why they were skipped, or what else became of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.cells import cell_len

from clustergauge.valid import printable
from reports.layout import Page, fit, packed

T = TypeVar("T")
Parts = tuple[str, ...]

_FIGURE = re.compile(r"\d[\w.,]*(?:(?<=\d) (?:ns|µs|ms|s|min|h)\b)*")
"""A number with its unit, in a reason."""


def by_reason(told: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """What is told of each, by the words: reasons that differ in their figures alone are one, with ``…`` for those."""
    groups: dict[str, list[tuple[str, T]]] = {}
    for reason, one in told:
        words = " ".join(printable(reason).split()) or "no reason given"
        groups.setdefault(_FIGURE.sub("0", words), []).append((words, one))
    return {_common([words for words, _ in group]): [one for _, one in group] for group in groups.values()}


def _common(reasons: Sequence[str]) -> str:
    figures = [_FIGURE.findall(reason) for reason in reasons]
    alike = iter([values[0] if len(set(values)) == 1 else "…" for values in zip(*figures, strict=True)])
    return _FIGURE.sub(lambda _: next(alike), reasons[0])


def draw(page: Page, lead: str, reason: str, cases: Iterable[Parts]) -> None:
    """The reason and the cases on one line, where it is short; else in full, and the cases below."""
    start = f"{lead}{reason}: "
    if cell_len(reason) > page.width // 2:
        page.wrap(reason, lead)
        start = " " * cell_len(lead)
    page.add(start, (named(cases, page.width - cell_len(start)), "dim"))


def named(cases: Iterable[Parts], width: int) -> str:
    """As many cases as fit into ``width`` cells, those that are alike in one name, and how many more *cases* there are."""
    entries = packed(cases)
    counts = [math.prod(map(len, entry)) for _, entry in entries]
    for shown in range(len(entries), 0, -1):
        more = f", … +{sum(counts[shown:])}" if shown < len(entries) else ""
        text = ", ".join(name for name, _ in entries[:shown]) + more
        if cell_len(text) <= width:
            return text
    if not entries:
        return ""
    first = "/".join(values[0] for values in entries[0][1])  # one that can be shortened: it has no braces
    more = f" … +{sum(counts) - 1}" if sum(counts) > 1 else ""
    return fit(first, width - cell_len(more)) + more
