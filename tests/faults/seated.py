"""Cases for ranks that mpiexec started around pytest: right, wrong on the last rank, the last rank killed, and without end."""

from __future__ import annotations

import os
import signal
import time

from clustergauge import launched
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Work, Wrong, probe


@probe(
    "seated",
    needs=lambda how, world: Needs(device="cpu", world=world, ranks=1 if world == "serial" else 2),
    how=("well", "wrong", "kill", "late"),
    world=("serial", "torch", "mpi"),
)
def seated(ctx: Context, how: str, world: str) -> Work:
    """Half a millisecond of nothing.  how: what becomes of it."""
    last = ctx.world.rank == ctx.world.size - 1
    ctx.set("given", " ".join(sorted(launched.given(os.environ))))
    ctx.set("parent", os.getppid())
    ctx.set("cpus", len(os.sched_getaffinity(0)))

    def run() -> None:
        if how == "kill" and last:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600 if how == "late" else 0.0005)

    def check() -> None:
        if how == "wrong" and last:
            raise Wrong("element 3 is 4, not 5")

    return Work(run=run, check=check, workload=Workload(bytes_read=1000, bound="memory"), cache="none")
