"""How long a call takes at least: decides whether a case is worth measuring, or which of several, and is no result.

A probe never reads a clock; what would take hopelessly long, or what time is left to prepare, it learns here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from clustergauge.clocks import WallClock

TRIES = 5
MOST_TRIES = 1000


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes, the first as it is: for what is too dear to be done twice (writing a file)."""
    return WallClock().time([call])


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


def least_in_turn(calls: Sequence[Callable[[], object]], turns: int, spend_s: float = 0.0) -> list[float]:
    """The shortest run of each call, which all have run before: ``turns`` times, in turn.

    In turn, so that whatever else the machine does meets them alike.  Calls to be compared should take equally long: short ones
    slip through between what others do.  More turns follow, up to `MOST_TRIES`, while another would fit ``spend_s``.
    """
    clock = WallClock()
    least, spent, done = [math.inf] * len(calls), 0.0, 0
    while done < turns or (spent * (done + 1) / done <= spend_s and done < MOST_TRIES):
        for index in range(done, done + len(calls)):  # each is first now and then
            number = index % len(calls)
            took = clock.time([calls[number]])
            least[number], spent = min(least[number], took), spent + took
        done += 1
    return least


def stopwatch() -> Callable[[], float]:
    """Begins to run; the callable tells the seconds since."""
    clock = WallClock()
    began = clock.now()
    return lambda: clock.now() - began
