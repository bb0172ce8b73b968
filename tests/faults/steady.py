"""Work that runs for its whole budget as a burn-in does, until it goes wrong as planned after some hundred samples."""

from __future__ import annotations

import os
import time
from pathlib import Path

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Work, Wrong, probe
from tests.faults.misbehaving import misbehave

GOOD_RUNS = 500
MARK_RUNS = 2500
"""After so many a file ``steady`` is made in the folder that the environment names."""


def _needs(how: str, world: str) -> Needs:
    return Needs(world=world, ranks=1 if world == "serial" else 2)  # type: ignore[arg-type]


@probe("steady", needs=_needs, how=("well", "kill", "wrong", "raise", "slow"), world=("serial", "torch", "mpi"))
def steady(ctx: Context, how: str, world: str) -> Work:
    """Sleeps 1 ms a run; the last rank goes wrong, or is slow from the beginning."""
    victim = ctx.world.rank == ctx.world.size - 1
    ran = 0

    def run() -> None:
        nonlocal ran
        ran += 1
        time.sleep(0.004 if how == "slow" and victim else 0.001)
        if ran == MARK_RUNS and (folder := os.environ.get("CLUSTERGAUGE_TEST")):
            (Path(folder) / "steady").touch()
        if victim and ran == GOOD_RUNS and how in ("kill", "raise"):
            misbehave(how)

    def digest() -> str:
        if victim and how == "wrong" and ran > GOOD_RUNS:
            raise Wrong("planned: one output of many")
        return "same"

    ctx.set("burn_in", True)
    return Work(
        run=run,
        check=lambda: None,
        digest=digest,
        whole_budget=True,
        max_iterations=2,
        workload=Workload(flops=1_000_000, bound="compute"),
    )
