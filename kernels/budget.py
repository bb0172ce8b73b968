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
FIRST = 1 << 20
"""Elements of the first part of rows: so many that the cost of starting it is not taken for slowness."""
GROWTH = 4
"""Of the parts of rows."""
SPEND_S = 0.5
"""No larger part is tried once the tries of one as fast would take longer than this."""
_ROWS_SPEND_S = 0.1
"""For what goes on although its first part tells that it is not hopeless."""


def at_least(parts: Iterable[Part], enough: float, spend_s: float = 0.0) -> float:
    """Seconds of a call of the whole case, were it as efficient as the best of its parts.

    ``parts``: in order of size, the last may be the whole.  Stops at an estimate of at most ``enough``, or where the next part
    would cost too much; a part that does not suffice is tried for at least ``spend_s``.
    """
    least = math.inf
    for share, start in parts:
        if math.isfinite(least) and TRIES * least * share > SPEND_S:
            break
        least = min(least, least_seconds(start(), TRIES, enough * share, spend_s) / share)
        if least <= enough:
            break
    return least


def refuse_hopeless(ctx: Context, parts: Iterable[Part]) -> None:
    """Raises `Skip` if a call would take longer than the budget even if it were `GENEROUS` times as efficient as its parts.

    To refuse, tries go on for half of the budget: a busy moment is no reason.
    """
    _refuse(ctx, at_least(parts, GENEROUS * ctx.budget_s, ctx.budget_s / 2))


def foresee(start: Callable[[int], Call], rows: int, width: int, enough: float) -> float:
    """`at_least` the seconds of a call that takes time in proportion to its rows, of ``width`` elements each.

    ``start``: makes the call for so many rows.
    """

    def parts() -> Iterator[Part]:
        some = min(rows, max(1, FIRST // width))
        while True:
            yield some / rows, functools.partial(start, some)
            if some == rows:
                return
            some = min(rows, GROWTH * some)

    return at_least(parts(), enough, _ROWS_SPEND_S)


def fit(ctx: Context, seconds: float, sets: int) -> int:
    """``sets``, whose number never depends on time.  Raises `Skip` if a call that takes ``seconds`` by `foresee` is hopeless."""
    _refuse(ctx, seconds)
    return sets


def _refuse(ctx: Context, seconds: float) -> None:
    if seconds > GENEROUS * ctx.budget_s:
        raise Skip(
            f"one call would take about {format_time(seconds)}, far beyond the budget of {format_duration(ctx.budget_s)}: "
            "a smaller shape fits"
        )
