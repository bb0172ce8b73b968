"""Collectives with a planted fault on one rank, for which everything else is real: what the checks must catch and name."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from clustergauge import sync
from clustergauge.probe import Context, Needs, Work, probe
from clustergauge.world import Mpi
from collectives import barrier, exact, operations, send_recv
from collectives.over_torch import ALL_GATHER, REDUCE_SCATTER

OPERATIONS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "reduce",
    "all_to_all",
    "gather",
    "scatter",
    "barrier",
    "pingpong",
    "unidirectional",
    "bidirectional",
)
FAULTS = ("none", "flip", "nothing", "stale", "missing", "late", "slow", "far")
LATE_S = {"gloo": 2e-3, "mpi": 40e-3}
"""MPI's ranks spin: where they are more than the cores, each waits for its turn for some 10 ms anyway."""
MPI_OUTPUTS = {
    "Allreduce": 1,
    "Allgather": 1,
    "Reduce_scatter_block": 1,
    "Bcast": 0,
    "Reduce": 1,
    "Alltoall": 1,
    "Gather": 1,
    "Scatter": 1,
}
"""MPI's calls and which of their arguments is the output."""
TORCH_OUTPUTS = dict.fromkeys(
    ("all_reduce", "broadcast", "reduce", "all_to_all_single", "scatter", *ALL_GATHER, *REDUCE_SCATTER), 0
) | {"gather": 1}


def needs(operation: str, backend: str, **_axes: object) -> Needs:
    return Needs(world="mpi" if backend == "mpi" else "torch", ranks=2)


def victim(operation: str, size: int) -> int:
    """A rank that has an output to be wrong."""
    return 0 if operation in ("reduce", "gather", "pingpong") else size - 1


@probe(
    "planted",
    needs=needs,
    operation=OPERATIONS,
    backend=("mpi", "gloo"),
    dtype=("fp32", "bf16", "fp16", "fp64", "int32"),
    size=(4096,),
    place=("", "in"),
    fault=FAULTS,
)
def planted(ctx: Context, operation: str, backend: str, dtype: str, size: int, place: str, fault: str) -> Work:
    """The operation itself, with the fault in the library's call, in the output, or before the call."""
    bad = ctx.world.rank == victim(operation, ctx.world.size)
    with ExitStack() as stack:
        stack.enter_context(faulty_calls(ctx, fault, bad))
        work = make(ctx, operation, backend, dtype, size, place)
    if fault == "flip" and operation in send_recv.MODES:
        work.check = flipped_before(work.check, bad)
    if fault == "far":  # every rank's clock is one of its own, as on other hosts
        known = sync.kernel_clock
        sync.kernel_clock = lambda: f"kernel {ctx.world.rank}"
        work.close = functools.partial(setattr, sync, "kernel_clock", known)
    if fault in ("late", "slow"):
        delay(ctx, work, fault, LATE_S[backend] if bad else 0.0)
    return work


def make(ctx: Context, operation: str, backend: str, dtype: str, size: int, place: str) -> Work:
    """The work without a fault."""
    if operation == "barrier":
        return barrier.barrier.function(ctx, backend)
    if operation in send_recv.MODES:
        return send_recv.send_recv.function(ctx, backend, operation, size)
    function = getattr(operations, operation).function
    return function(ctx, backend, dtype, size) if operation == "broadcast" else function(ctx, backend, dtype, size, place)


def delay(ctx: Context, work: Work, fault: str, seconds: float) -> None:
    """``late``: the rank is late at the call, after it met the others; ``slow``: its call itself takes longer."""
    meet, run = ctx.world.barrier, work.runs[0]

    def late() -> None:
        meet()
        if seconds:
            time.sleep(seconds)

    def slow() -> None:
        if seconds:
            time.sleep(seconds)
        run()

    if fault == "late":
        ctx.world.barrier = late  # type: ignore[method-assign]
        work.close = functools.partial(setattr, ctx.world, "barrier", meet)
    else:
        work.run = slow


def flipped_before(check: Any, bad: bool) -> Callable[[], object]:
    """The check after one bit of the output was changed."""
    compare = exact.compare_blocks

    def compare_flipped(got: Any, *more: Any) -> None:
        got[len(got) // 2] ^= 1
        compare(got, *more)

    def checked() -> None:
        with mock.patch.object(exact, "compare_blocks", compare_flipped if bad else compare):
            check()

    return checked


@contextmanager
def faulty_calls(ctx: Context, fault: str, bad: bool) -> Iterator[None]:
    """While a work binds its calls: those of the library with a fault."""
    if fault in ("none", "late", "slow", "far"):
        yield
    elif isinstance(ctx.world, Mpi):
        comm = ctx.world.comm
        ctx.world.comm = FaultyComm(comm, fault, bad)
        try:
            yield
        finally:
            ctx.world.comm = comm
    else:
        import torch.distributed as dist

        with ExitStack() as stack:
            for name, output in TORCH_OUTPUTS.items():
                if hasattr(dist, name):
                    call = faulty(getattr(dist, name), output, fault, bad)
                    stack.enter_context(mock.patch.object(dist, name, call))
            stack.enter_context(mock.patch.object(dist, "barrier", faulty(dist.barrier, -1, fault, bad)))
            yield


class FaultyComm:
    """MPI's communicator whose collective calls have a fault."""

    def __init__(self, comm: Any, fault: str, bad: bool) -> None:
        self.comm, self.fault, self.bad = comm, fault, bad

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.comm, name)
        if name == "Barrier":
            return faulty(call, -1, self.fault, self.bad)
        return faulty(call, MPI_OUTPUTS[name], self.fault, self.bad) if name in MPI_OUTPUTS else call


def faulty(call: Callable[..., object], output: int, fault: str, bad: bool) -> Callable[..., object]:
    """``flip``: one wrong bit in the output.  ``nothing``: the output is left alone.  ``stale``: no call after the first.
    ``missing``: contributes zeros.  A call without an output (a barrier) is only ever ``stale``."""
    calls, wrong = 0, None

    def wrapped(*arguments: Any, **more: Any) -> None:
        nonlocal calls, wrong
        calls += 1
        if fault == "stale" and calls > 1:
            return
        if output < 0:
            call(*arguments, **more)
            return
        given = list(arguments)
        if bad and fault == "nothing":
            given[output] = copied(given[output])
        if bad and fault == "missing":
            source = 0 if output == 1 else 1 if len(given) > 1 else 0
            given[source] = zeroed(given[source])
        call(*given, **more)
        if bad and fault == "flip":
            bits = as_bits(arguments[output])
            at = len(bits) // 4  # of two ranks' blocks the first: in place, the second is the victim's own input
            wrong = int(bits[at]) ^ 1 if wrong is None else wrong  # the same each time: a second flip would mend the first
            bits[at] = wrong

    return wrapped


def copied(buffer: Any) -> Any:
    return [bytearray(buffer[0]), *buffer[1:]] if isinstance(buffer, list) else buffer.clone()


def zeroed(buffer: Any) -> Any:
    if isinstance(buffer, list):
        return [bytearray(len(buffer[0])), *buffer[1:]]
    buffer.zero_()
    return buffer


def as_bits(buffer: Any) -> Any:
    """The bits of an output: of an MPI spec its bytes (the first of an element are its least); of a tensor an integer view;
    of a list of tensors that of the last."""
    if isinstance(buffer, list) and not hasattr(buffer[-1], "view"):
        return memoryview(buffer[0]).cast("B")
    import torch

    buffer = buffer[-1] if isinstance(buffer, list) else buffer
    return buffer.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[buffer.itemsize])
