"""Refusing cases whose single call would take hopelessly long on a processor.  Nothing else here depends on time.

What else the machine does must not decide what is measured, so the estimate is an optimistic one: the least of several tries
(`least_seconds`), of parts that grow while they are cheap, and a case is refused only if even `GENEROUS` times the speed of its
parts were too slow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator

from clustergauge.budget import TRIES, least_seconds
from clustergauge.probe import Context, Skip
from clustergauge.units import format_duration, format_time

Call = Callable[[], object]
Part = tuple[float, Callable[[], Call]]
"""Share of a case's work, and what makes the call that does so much of it."""

GENEROUS = 4
"""How many times more efficient the whole may be than its parts."""
PATIENCE = 0.5
FIRST = 1 << 20
"""Elements of the first part of rows: so many that the cost of starting it is not taken for slowness."""
GROWTH = 4
"""Of the parts of rows."""


def at_least(parts: Iterable[Part], enough: float, spend_s: float) -> float:
    """Seconds of a call of the whole case, were it as efficient as the best of its parts.

    ``parts``: in order of size, the last may be the whole.  Stops at an estimate of at most ``enough``, or where one try of the
    next part would take longer than ``spend_s``; a part that does not suffice is tried for at least that long.
    """
    least = math.inf
    for share, start in parts:
        if math.isfinite(least) and least * share > spend_s:
            break
        least = min(least, least_seconds(start(), TRIES, enough * share, spend_s) / share)
        if least <= enough:
            break
    return least


def refuse_hopeless(ctx: Context, parts: Iterable[Part]) -> None:
    """Raises `Skip` if a call would take longer than the budget even if it were `GENEROUS` times as efficient as its parts.

    Before that, tries of each part go on for `PATIENCE` of the budget, and parts grow until a try takes as long: neither a busy
    moment nor late threads, which cost a small part the most, are a reason.
    """
    seconds = at_least(parts, GENEROUS * ctx.budget_s, PATIENCE * ctx.budget_s)
    if seconds > GENEROUS * ctx.budget_s:
        raise Skip(
            f"one call would take about {format_time(seconds)}, far beyond the budget of {format_duration(ctx.budget_s)}: "
            "a smaller shape fits"
        )


def rows_of(start: Callable[[int], Call], rows: int, width: int) -> Iterator[Part]:
    """Ever more rows, of ``width`` elements each, of a call that takes time in proportion to them.  ``start``: makes the call."""
    some = min(rows, max(1, FIRST // width))
    while True:
        yield some / rows, functools.partial(start, some)
        if some == rows:
            return
        some = min(rows, GROWTH * some)
