"""Refusing cases whose single call would take hopelessly long on a processor.  Nothing else here depends on time.

What else the machine does must not decide what is measured, so the estimate is an optimistic one: the least of several tries
(`least_seconds`), of parts that grow while they are cheap or tell nothing yet, and a case is refused only if even `GENEROUS`
times the speed of its parts were too slow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from clustergauge.budget import TRIES, least_seconds, seconds
from clustergauge.probe import Context, Skip
from clustergauge.units import format_duration, format_time

Call = Callable[[], object]
Part = tuple[float, Callable[[], Call]]
"""Share of a case's work, and what makes the call that does so much of it."""

GENEROUS = 4
"""How many times more efficient the whole may be than its parts."""
PATIENCE = 0.5
DEAREST = 8
"""Budgets that one try of a part may take, where those before it say nothing yet of the whole."""
GROWN = 0.5
"""Of the time that a part would take by the one before: from so much on, what both took is mostly their work."""
FIRST = 1 << 20
"""Elements of the first part of rows: so many that the cost of starting it is not taken for slowness."""
GROWTH = 4
"""Of the parts of rows."""


class _Tried(NamedTuple):
    """A part that was tried: its share of the work, and the seconds that it took at least."""

    share: float
    seconds: float

    @property
    def whole_s(self) -> float:
        """Seconds of the whole at this part's efficiency."""
        return self.seconds / self.share


def at_least(parts: Iterable[Part], enough: float, spend_s: float, most_s: float) -> float:
    """Seconds of a call of the whole case, were it as efficient as the best of its parts.

    ``parts``: in order of size, the last may be the whole.  Stops at an estimate of at most ``enough``; a part that does not
    suffice is tried for at least ``spend_s``.  Stops too where one try of the next part would take longer than that; but while
    time did not grow with the work (threads that wait for each other, which every part pays alike), only where it would take
    longer than ``most_s``.  What a larger part took more than a smaller one is what its work took.
    """
    tried: list[_Tried] = []
    for share, start in parts:
        expected = tried[-1].whole_s * share if tried else 0.0
        if expected > (spend_s if _grew(tried) else most_s):
            break
        tried.append(_Tried(share, _seconds(start(), expected > spend_s, enough * share, spend_s)))
        if tried[-1].whole_s <= enough:
            break
    return min(*(one.whole_s for one in tried), _by_difference(tried))


def _seconds(call: Call, dear: bool, enough: float, spend_s: float) -> float:
    """Seconds of a call at least; ``dear``: of its first, if that does take longer than ``spend_s``."""
    if dear and (once := seconds(call)) > spend_s:
        return once
    return least_seconds(call, TRIES, enough, spend_s)


def _grew(tried: Sequence[_Tried]) -> bool:
    """Whether the time of the last part is mostly that of its work."""
    return len(tried) > 1 and tried[-1].whole_s >= GROWN * tried[-2].whole_s


def _by_difference(tried: Sequence[_Tried]) -> float:
    """Seconds of the whole by what the last part took more than the one before; infinite where that says nothing."""
    if len(tried) < 2 or tried[-1].seconds <= tried[-2].seconds:
        return math.inf
    before, last = tried[-2:]
    return last.seconds + (1 - last.share) * (last.seconds - before.seconds) / (last.share - before.share)


def refuse_hopeless(ctx: Context, parts: Iterable[Part]) -> None:
    """Raises `Skip` if a call would take longer than the budget even if it were `GENEROUS` times as efficient as its parts.

    Before that, tries of each part go on for `PATIENCE` of the budget, and parts grow until a try takes as long and its time is
    that of its work: neither a busy moment nor late threads, which cost a small part the most, are a reason.
    """
    budget_s = ctx.budget_s
    whole_s = at_least(parts, GENEROUS * budget_s, PATIENCE * budget_s, DEAREST * budget_s)
    if whole_s > GENEROUS * budget_s:
        raise Skip(
            f"one call would take about {format_time(whole_s)}, far beyond the budget of {format_duration(budget_s)}: "
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
