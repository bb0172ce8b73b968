"""The collectives: all_reduce, all_gather, reduce_scatter, broadcast, reduce, all_to_all, gather, scatter.

What each rank sends and must receive stands in `layout`, the calls in `over_mpi` and `over_torch`.  Timed outputs are compared
bit for bit, on inputs whose outcome is known exactly (`exact`): the last of a batch of samples while the time for it lasts, and
the last of all.

``size`` is S of nccl-tests: bytes each rank contributes where all of it stays one message (all_reduce, broadcast, reduce), and
what a rank holds of all ranks together where it is dealt out or collected.  ``place``: ``in`` has input and output in one buffer;
without it they are two, except where a library has one form only (the setting ``place`` of a record says which it was).

Operations in place that change their own input (sums, all_to_all) run once for each buffer in a sample, and inputs are refreshed
before it: a second run would sum sums, which grow beyond what the dtype holds exactly.  (Their loop that is timed for comparison
with peers does sum sums; its outputs are not looked at, and the time does not depend on the values.)
"""

from __future__ import annotations

from typing import Any

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe
from clustergauge.units import format_size
from collectives import buffers, exact, over_mpi, over_torch
from collectives.layout import OPERATIONS, Operation, patterns, write

SIZES = (8, 128, 2**10, 2**13, 2**16, 2**20, 2**23, 2**26, 2**28, 2**30, 2**32, 2**33)
DTYPES = ("fp32", "bf16", "fp16", "fp64", "int32")
PLACES = ("", "in")
LATENCY_BYTES = 2**13
"""Up to here the time of a call says more than its rate."""
DEVICE_BUFFERS = 8
DEVICE_BUFFERS_UP_TO = 2**24
"""On a GPU, messages up to this size get several buffers, so that a sample can last the 50 µs its clock needs."""


def needs(backend: str, **_axes: object) -> Needs:
    """MPI ranks, or torch.distributed ranks on the processor (gloo) or on GPUs (NCCL); two at least."""
    device = "cuda" if backend in ("nccl", "mpi_device") else "cpu"
    if backend in ("mpi", "mpi_device"):
        return Needs(world="mpi", ranks=2, device=device, modules=("mpi4py",) if backend == "mpi" else ("mpi4py", "torch"))
    return Needs(world="torch", ranks=2, device=device, modules=("torch",))


def bound(size: int) -> Any:
    """What limits a message of that size: ``latency`` or ``network``."""
    return "latency" if size <= LATENCY_BYTES else "network"


@probe("all_reduce", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def all_reduce(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Sum over all ranks; every rank ends with the total.  size: bytes each rank contributes (S of nccl-tests)."""
    return collective(ctx, OPERATIONS["all_reduce"], backend, dtype, size, place)


@probe("all_gather", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def all_gather(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Every rank ends with the blocks of all ranks.  size: bytes of all blocks together (S of nccl-tests)."""
    return collective(ctx, OPERATIONS["all_gather"], backend, dtype, size, place)


@probe("reduce_scatter", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def reduce_scatter(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Sum over all ranks; each ends with its own block of the total.  size: bytes each rank contributes (S of nccl-tests)."""
    return collective(ctx, OPERATIONS["reduce_scatter"], backend, dtype, size, place)


@probe("broadcast", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES)
def broadcast(ctx: Context, backend: str, dtype: str, size: int) -> Work:
    """Rank 0's data on every rank.  size: bytes of the data."""
    return collective(ctx, OPERATIONS["broadcast"], backend, dtype, size, "")


@probe("reduce", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def reduce(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Sum over all ranks; rank 0 ends with the total.  size: bytes each rank contributes."""
    return collective(ctx, OPERATIONS["reduce"], backend, dtype, size, place)


@probe("all_to_all", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def all_to_all(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Each rank sends a block of its own to each.  size: bytes each rank sends in all (S of nccl-tests)."""
    return collective(ctx, OPERATIONS["all_to_all"], backend, dtype, size, place)


@probe("gather", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def gather(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Rank 0 ends with the blocks of all ranks.  size: bytes of all blocks together (S of nccl-tests)."""
    return collective(ctx, OPERATIONS["gather"], backend, dtype, size, place)


@probe("scatter", needs=needs, backend=buffers.BACKENDS, dtype=DTYPES, size=SIZES, place=PLACES)
def scatter(ctx: Context, backend: str, dtype: str, size: int, place: str = "") -> Work:
    """Each rank ends with its block of what rank 0 has.  size: bytes of all blocks together (S of nccl-tests)."""
    return collective(ctx, OPERATIONS["scatter"], backend, dtype, size, place)


def collective(ctx: Context, operation: Operation, backend: str, dtype: str, size: int, place: str) -> Work:
    """The work of any of them."""
    ranks, item = ctx.world.size, exact.FORMATS[dtype].bytes
    if size % item or not size:
        raise Skip(f"{format_size(size)} is not a whole number of {dtype} elements")
    if ranks < 2:
        raise Skip("one rank has nobody to talk to")
    length = operation.length(size, ranks, dtype)
    if not length:
        raise Skip(f"{format_size(size)} dealt out to {ranks} ranks is less than one {dtype} element each")
    over_mpi_ = backend in ("mpi", "mpi_device")
    if over_mpi_:
        world = over_mpi.world_of(ctx)
        over_mpi.refuse(operation, dtype)
        if backend == "mpi_device":
            over_mpi.require_device_buffers()
    else:
        world = over_torch.world_of(ctx, backend)
        over_torch.refuse(operation, place)
    in_place = place == "in" or operation.name == "broadcast" or (not over_mpi_ and operation.name in over_torch.ONLY_IN_PLACE)
    once = in_place and not operation.again
    sets = DEVICE_BUFFERS if once and backend == "nccl" and size <= DEVICE_BUFFERS_UP_TO else 1
    held = _Held(ctx, operation, buffers.buffers(ctx, backend, dtype), length, in_place, sets)
    if over_mpi_ and operation.name == "reduce_scatter":
        held.receive_at = 0  # where MPI puts it, in place
    buffers.require(ctx, backend, held.bytes())
    held.allocate()
    ctx.set("place", "in" if in_place else "out")
    work = Work(
        run=[
            over_mpi.bind(world, operation, *pair, length, dtype, in_place)
            if isinstance(world, over_mpi.Mpi)
            else over_torch.bind(operation, *pair, ranks, dtype)
            for pair in held.pairs
        ],
        reset=held.reset,
        workload=Workload(
            message_bytes=operation.message_bytes(length, ranks, dtype),
            collective=operation.name,
            dtype=dtype,
            bound=bound(size),
        ),
        clock="device" if backend == "nccl" else "wall",
        sync=True,
        loop=True,
        max_iterations=sets if once else None,
        overhead=over_mpi.alone(operation, held.buffers.empty, dtype) if backend == "mpi" else None,
    )
    if over_mpi_:
        over_mpi.note_way(ctx, work.runs[0])
    work.check = lambda: held.check(work.last)
    return work


class _Held:
    """The buffers of one rank: ``sets`` of them, each a pair of what it sends and where it receives (``None`` if it does not)."""

    def __init__(self, ctx: Context, operation: Operation, made: buffers.Buffers, length: int, in_place: bool, sets: int) -> None:
        self.rank, self.ranks = ctx.world.rank, ctx.world.size
        self.sends = operation.sends(self.rank, self.ranks)
        self.receives = operation.receives(self.rank, self.ranks)
        self.send_at, self.receive_at = operation.shared_at(self.rank, self.ranks)
        self.buffers, self.length, self.in_place, self.sets = made, length, in_place, sets
        self.pairs: list[tuple[Any, Any]] = []
        self.shared: list[Any] = []
        self.source: Any = None

    def bytes(self) -> int:
        """Of all that `allocate` makes."""
        blocks = len(self.sends), len(self.receives)
        count = (self.sets + 1) * max(blocks) if self.in_place else sum(blocks)
        return count * self.length * exact.FORMATS[self.buffers.dtype].bytes

    def allocate(self) -> None:
        """Make the buffers and write what is sent."""
        if not self.in_place:
            send, receive = (self.buffers.empty(len(b) * self.length) if b else None for b in (self.sends, self.receives))
            if send is not None:
                self._write(send)
            self.pairs = [(send, receive)]
            return
        count = max(len(self.sends), len(self.receives))
        self.source = self.buffers.empty(count * self.length)
        self.source[:] = -1
        if self.sends:
            self._write(self._part(self.source, self.send_at, len(self.sends)))
        self.shared = [self.buffers.empty(count * self.length) for _ in range(self.sets)]
        for shared in self.shared:
            send = self._part(shared, self.send_at, len(self.sends)) if self.sends else None
            receive = self._part(shared, self.receive_at, len(self.receives)) if self.receives else None
            self.pairs.append((send, receive))

    def reset(self) -> None:
        """Poison what is received (all bits set: a NaN where there is one); in place, refresh what is sent, too."""
        for shared in self.shared:
            shared[:] = self.source
        if not self.shared and self.pairs[0][1] is not None:
            self.pairs[0][1][:] = -1
        self.buffers.settle()

    def check(self, last: int) -> None:
        """Raise `Wrong` unless the set that ran last holds what it must."""
        receive = self.pairs[last][1]
        if receive is not None:
            expected = map(self.buffers.moved, patterns(self.receives, self.buffers.dtype, self.ranks, self.length))
            exact.compare_blocks(receive, self.length, expected, self.buffers.dtype, self.rank)

    def _part(self, buffer: Any, block: int, blocks: int) -> Any:
        return buffer[block * self.length : (block + blocks) * self.length]

    def _write(self, out: Any) -> None:
        write(out, self.sends, self.buffers.dtype, self.ranks, self.length, self.buffers.moved)
