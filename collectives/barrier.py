"""Barrier: no rank leaves before all have entered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clustergauge import sync
from clustergauge.model import Workload
from clustergauge.probe import Context, Skip, Work, Wrong, probe
from collectives import over_mpi, over_torch
from collectives.operations import needs


@probe("barrier", needs=needs, backend=("mpi", "gloo", "nccl"))
def barrier(ctx: Context, backend: str) -> Work:
    """No rank leaves before all have entered.  (Over NCCL the host waits for a small all-reduce.)"""
    if ctx.world.size < 2:
        raise Skip("one rank has nobody to wait for")
    overhead: Any = None
    if backend == "mpi":
        from mpi4py import MPI

        meet: Callable[[], object] = over_mpi.world_of(ctx).comm.Barrier
        overhead = MPI.COMM_SELF.Barrier
    else:
        over_torch.world_of(ctx, backend)
        import torch.distributed

        dist: Any = torch.distributed
        meet = dist.barrier

    def exact() -> None:
        for late in sorted({0, ctx.world.size - 1}):
            words = sync.impatient(ctx.world, meet, late)
            if words:
                raise Wrong(words, rank=int(words.split()[1]))

    return Work(
        run=meet,
        exact=exact,
        workload=Workload(collective="barrier", bound="latency"),
        sync=True,
        loop=True,
        overhead=overhead,
    )
