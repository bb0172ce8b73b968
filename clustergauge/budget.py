"""How long a call takes at least: decides whether a case is worth measuring, and is no result.

A probe never reads a clock; what would take hopelessly long it learns here.
"""

from __future__ import annotations

from collections.abc import Callable

from clustergauge.clocks import WallClock

TRIES = 5
MOST_TRIES = 1000


def least_seconds(call: Callable[[], object], tries: int = TRIES, enough: float = 0.0, spend_s: float = 0.0) -> float:
    """The shortest of ``tries`` runs of a call that returns when its work is done, after one that is not looked at.

    That one starts threads and lets libraries choose their kernels.  Goes on, up to `MOST_TRIES`, until the runs have taken
    ``spend_s`` together: tries that follow each other closely are all late where somebody else has the processor.  Ends at the
    first run of at most ``enough`` seconds.
    """
    clock = WallClock()
    call()
    least = spent = clock.time([call])
    done = 1
    while least > enough and (done < tries or (spent < spend_s and done < MOST_TRIES)):
        took = clock.time([call])
        least, spent, done = min(least, took), spent + took, done + 1
    return least
