"""A probe that tunes among candidates whose times are planted on a clock that is made up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Work, probe
from clustergauge.tuning import choose

WHAT = "planted on cpu"
NAMES = ("first", "second", "third")


class Clock:
    """Moves when a call says so, and by nothing else."""

    name = "wall"
    tick_s = 1e-9
    max_calls = 512
    exposed = 0
    started_s = 0.0

    def __init__(self) -> None:
        self.moment = 0.0
        self.timed: list[int] = []

    def now(self) -> float:
        return self.moment

    def settle(self) -> None:
        pass

    def pass_by(self, seconds: float) -> Callable[[], None]:
        """A call that takes so long."""

        def call() -> None:
            self.moment += seconds

        return call

    def time(self, calls: Sequence[Callable[[], object]]) -> float:
        before = self.moment
        for call in calls:
            call()
        self.timed.append(len(calls))
        return self.moment - before

    def owned(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@probe("tuned", needs=Needs(tunes=True), fastest=NAMES)
def tuned(ctx: Context, fastest: str) -> Work:
    """What was chosen is the setting ``config``.  fastest: the candidate that takes 1 ms, the others take 2."""
    clock = Clock()
    seconds = {name: 1e-3 if name == fastest else 2e-3 for name in NAMES}
    candidates = {name: name for name in NAMES}
    ctx.set("config", choose(ctx, WHAT, candidates, lambda name: [clock.pass_by(seconds[name])], clock=lambda: clock))
    done: list[int] = []
    return Work(run=lambda: done.append(1), check=lambda: None, workload=Workload(ops=1))
