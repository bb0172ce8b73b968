"""All-reduce: the sum over all ranks, through MPI (host buffers) or torch.distributed (gloo, NCCL).

Timed sums are compared bit for bit, on inputs whose result is exact (`exact`): the last of a batch of samples while the time for
it lasts, and the last of all.  MPI sums from one buffer into another, so a sample may hold any number of runs.  torch.distributed
sums in place: a second run on the same buffer would sum sums, which grow beyond what the dtype holds exactly.  So its inputs are
refreshed before every sample, a sample holds no more runs than there are buffers, and each buffer is summed once.  (Its loop that
is timed for comparison with peers does sum sums; the outputs are not looked at, and the time does not depend on the values.)
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from clustergauge import memory
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe
from clustergauge.units import format_size
from clustergauge.world import Mpi, TorchDistributed
from collectives import exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = (8, 128, 2**10, 2**13, 2**16, 2**20, 2**23, 2**26, 2**28, 2**30)
MPI_TYPES = {"fp32": "FLOAT", "fp64": "DOUBLE"}
"""MPI's names; the standard has neither bf16 nor fp16."""
LATENCY_BYTES = 2**13
"""Up to here the time of a call says more than its rate."""
DEVICE_BUFFERS = 8
DEVICE_BUFFERS_UP_TO = 2**24
"""On a GPU, messages up to this size get several buffers, so that a sample can last the 50 µs its clock needs."""


def needs(backend: str, dtype: str, size: int) -> Needs:  # noqa: ARG001 (called with all axes)
    """MPI ranks, or torch.distributed ranks on the processor (gloo) or on GPUs (NCCL); two at least."""
    if backend == "mpi":
        return Needs(world="mpi", ranks=2, device="cpu", modules=("mpi4py",))
    return Needs(world="torch", ranks=2, device="cuda" if backend == "nccl" else "cpu", modules=("torch",))


@probe("all_reduce", needs=needs, backend=("mpi", "gloo", "nccl"), dtype=("fp32", "bf16", "fp16", "fp64"), size=SIZES)
def all_reduce(ctx: Context, backend: str, dtype: str, size: int) -> Work:
    """Sum over all ranks; every rank ends with the total.  size: bytes each rank contributes (S of nccl-tests)."""
    count, rest = divmod(size, exact.FORMATS[dtype].bytes)
    if rest or not count:
        raise Skip(f"{format_size(size)} is not a whole number of {dtype} elements")
    if ctx.world.size < 2:
        raise Skip("one rank has nobody to sum with")
    if backend == "mpi" and dtype not in MPI_TYPES:
        raise Skip(f"MPI has no {dtype} (it has {' and '.join(MPI_TYPES)}; gloo and nccl sum {dtype} too)")
    if backend != "nccl":
        _require_memory(2 * size, ctx.world.size)
    length = min(count, exact.PERIOD)
    mine = exact.encode(exact.contribution(dtype, ctx.world.rank, ctx.world.size, length), dtype)
    total = exact.encode(exact.total(dtype, ctx.world.size, length), dtype)
    work = Work(
        run=[],
        workload=Workload(
            message_bytes=size, collective="all_reduce", dtype=dtype, bound="latency" if size <= LATENCY_BYTES else "network"
        ),
        clock="device" if backend == "nccl" else "wall",
        sync=True,
        loop=True,
    )
    (_over_mpi if backend == "mpi" else _over_torch)(ctx, work, backend, dtype, count, mine, total)
    return work


def _over_mpi(ctx: Context, work: Work, backend: str, dtype: str, count: int, mine: NDArray[Any], total: NDArray[Any]) -> None:
    """MPI_Allreduce from host buffer to host buffer: specs and operation are bound beforehand, the timed call is the bare one."""
    if not isinstance(ctx.world, Mpi):
        raise TypeError(f"all_reduce over {backend} needs MPI ranks")
    import numpy as np
    from mpi4py import MPI

    send, receive = np.empty(count, mine.dtype), np.empty(count, mine.dtype)
    exact.fill(send, mine)
    kind: Any = getattr(MPI, MPI_TYPES[dtype])
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    ctx.set("library", ctx.world.library)
    ctx.set("mpi_thread_level", levels.get(MPI.Query_thread(), "multiple"))
    work.run = functools.partial(ctx.world.comm.Allreduce, [send, count, kind], [receive, count, kind], MPI.SUM)
    work.reset = functools.partial(receive.fill, -1)  # all bits set: a NaN in every dtype
    work.check = functools.partial(exact.compare, receive, total, dtype, ctx.world.rank)


def _over_torch(ctx: Context, work: Work, backend: str, dtype: str, count: int, mine: NDArray[Any], total: NDArray[Any]) -> None:
    """torch.distributed.all_reduce on the default process group, in place."""
    if not isinstance(ctx.world, TorchDistributed) or ctx.world.backend != backend:
        raise TypeError(f"all_reduce over {backend} needs torch.distributed ranks joined by {backend}")
    import torch
    import torch.cuda.nccl
    import torch.distributed as dist

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}[dtype]
    several = backend == "nccl" and work.workload.message_bytes <= DEVICE_BUFFERS_UP_TO
    source = torch.empty(count, dtype=getattr(torch, exact.FORMATS[dtype].bits), device=ctx.device)
    exact.fill(source, torch.from_numpy(mine).to(ctx.device))
    expected = torch.from_numpy(total).to(ctx.device)
    buffers = [torch.empty_like(source) for _ in range(DEVICE_BUFFERS if several else 1)]
    ctx.set("library", f"{ctx.world.library}, torch {torch.__version__}")
    ctx.set("torch_distributed_backend", str(dist.get_backend()))
    ctx.set("threads", torch.get_num_threads())
    if backend == "nccl":
        ctx.set("nccl", ".".join(map(str, torch.cuda.nccl.version())))

    def refresh() -> None:
        for buffer in buffers:
            buffer.copy_(source)

    work.run = [functools.partial(dist.all_reduce, buffer.view(kind), op=dist.ReduceOp.SUM) for buffer in buffers]
    work.reset = refresh  # this poisons too: what a run leaves untouched is not the total
    work.check = lambda: exact.compare(buffers[work.last], expected, dtype, ctx.world.rank)
    work.max_iterations = len(buffers)


def _require_memory(bytes_per_rank: int, ranks: int) -> None:
    """`Skip` unless the memory available holds the buffers of all ranks twice over (libraries have buffers too)."""
    wanted, available = 2 * bytes_per_rank * ranks, memory.available_bytes()
    if available is not None and wanted > available:
        raise Skip(f"{ranks} ranks need about {wanted >> 20} MiB of memory, {available >> 20} MiB are available")
