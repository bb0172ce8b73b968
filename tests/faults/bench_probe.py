"""Cases for the benchmark lane: right, wrong, wrong without a word, crashing, absurd, and without a meaning here."""

from __future__ import annotations

import os
import time

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe


@probe(
    "benched",
    needs=lambda how: Needs(device="cpu", target=how == "target"),
    how=("right", "wrong", "mute", "crash", "absurd", "skip", "target"),
)
def benched(ctx: Context, how: str) -> Work:
    """Half a millisecond of nothing.  how: what becomes of it."""
    if how == "skip":
        raise Skip("no meaning here")
    runs: list[int] = []

    def run() -> None:
        if how == "crash":
            os._exit(7)
        time.sleep(0.0005)
        runs.append(1)

    def check() -> None:
        ctx.set("runs", len(runs))
        if how == "wrong":
            raise Wrong("element 3 is 4, not 5")
        if how == "mute":
            raise Wrong(" ")

    moved = -1 if how == "absurd" else 1000
    return Work(run=run, check=check, workload=Workload(bytes_read=moved, bound="memory"), cache="none")
