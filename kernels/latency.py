"""Probe ``latency``: the time of one load, by a walk along pointers through working sets of growing size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_size
from kernels import working_sets

if TYPE_CHECKING:
    import torch

    Longs = torch.Tensor

Call = Callable[[], object]

STRIDE = {"native": 64, "cupy": 128}
"""Bytes from one pointer to the next: a cache line, so that every load asks for another."""
LEAST = 4096
MOST_STEPS, LEAST_STEPS = 1 << 21, 1 << 16
"""Loads of a run: some milliseconds, from the nearest cache as from memory."""
TURN = 16
"""Loads of a run are a multiple of this: what one turn of the kernels' loops holds."""
_EXACT = 3
_WORD = 8


def _needs(backend: str, size: int) -> Needs:
    if size < LEAST or size % STRIDE[backend]:
        raise UsageError(f"size {size}: at least {format_size(LEAST)}, in whole lines of {STRIDE[backend]} bytes")
    if backend == "cupy":
        return Needs(modules=("torch", "cupy"), device="cuda")
    return Needs(modules=("torch", "llvmlite"), device="cpu")


@probe("latency", needs=_needs, backend=("native", "cupy"), size=working_sets.LADDER)
def latency(ctx: Context, backend: str, size: int) -> Work:
    """Time of one load by one core, each at an address that the load before it found.  size: bytes of the working set.

    One pointer in every cache line, in one random cycle through all of them, so that nothing can be fetched ahead: McVoy and
    Staelin's lat_mem_rd (lmbench, USENIX 1996) in random order.  A large set costs address translations too; whether pages are
    huge is recorded.  A run goes on where the last one ended, so that lines come back only after all others.
    """
    import torch

    from kernels import buffers

    if backend == "native":
        from kernels import native

        if reason := native.available():
            raise Skip(reason)
    stride = STRIDE[backend]
    nodes = size // stride
    buffers.require(size + 3 * nodes * _WORD, ctx.device)
    memory = _memory(backend, size, ctx.device)
    order = link(memory, stride, torch.Generator(ctx.device).manual_seed(ctx.seed))
    steps = steps_of(size if ctx.kind == "cpu" else None, nodes)
    walk = Walk(memory, order)
    run = _call(backend, memory, walk.cell, steps)

    policy = working_sets.policy(ctx, size)
    if policy == "hot":
        for _ in range(-(-nodes // steps)):
            run()  # all of the set is where it will be found
    ctx.set("stride_bytes", stride)
    ctx.set("loads_per_run", steps)
    working_sets.describe(ctx, memory, size, native.team(1).processors if backend == "native" else ())
    work = Work(
        run=run,
        reset=walk.begin,
        check=lambda: walk.check(work.count * steps),
        exact=lambda: walk.exact(run, steps),
        steps=steps,
        workload=Workload(bound="latency"),
        clock="device" if ctx.kind == "cuda" else "wall",
        cache=policy,
    )
    return work


def steps_of(size: int | None, nodes: int) -> int:
    """Loads of a run: fewer where they are slower (``size``: of a processor's set), never so many that it ends where it began."""
    loads = LEAST_STEPS if size is None else max(LEAST_STEPS, min(MOST_STEPS, (1 << 40) // size))
    turns = loads // TURN | 1
    while TURN * turns % nodes == 0:
        turns += 2
    return TURN * turns


def link(memory: Longs, stride: int, generator: torch.Generator) -> Longs:
    """Make of ``memory`` (int64) one random cycle of addresses, ``stride`` bytes apart; returns the addresses in its order.

    A walk of i steps from ``order[k]`` on ends at ``order[(k + i) % nodes]``.  A random order of the lines, each pointing to the
    next and the last to the first, is one of all cycles with equal chances, as Sattolo's algorithm draws it (Information
    Processing Letters 22, 1986); a random permutation would fall into short ones.
    """
    import torch

    every = stride // _WORD
    places = torch.randperm(memory.numel() // every, generator=generator, device=memory.device) * every
    order = memory.data_ptr() + _WORD * places
    memory[places] = order.roll(-1)
    return order


def _memory(backend: str, size: int, device: str) -> Longs:
    """Zeros; native ones on huge pages beside the core that walks there."""
    import torch

    if backend == "native":
        from kernels import native

        return torch.from_numpy(native.team(1).array(size // _WORD)).view(torch.int64)
    return torch.zeros(size // _WORD, dtype=torch.int64, device=device)


def _call(backend: str, memory: Longs, cell: Longs, steps: int) -> Call:
    """The work itself."""
    if backend == "native":
        from kernels import native
        from kernels.native import caches

        return caches.chase(native.team(1), memory.numpy(), cell.numpy(), steps)
    from kernels import cuda

    return cuda.chase(memory, cell, steps)


class Walk:
    """Where a walk through a cycle is, and where it must be.

    ``cell``: what the kernel brings up to date: the address to go on from, and the loads since `begin`.
    """

    def __init__(self, memory: Longs, order: Longs) -> None:
        """``memory``, ``order``: see `link`.  Starts at ``order[0]``."""
        import torch

        self.order = order
        self.cell = torch.tensor([int(order[0]), 0], dtype=torch.int64, device=memory.device)
        self.start = 0

    def begin(self) -> None:
        """Count from here on."""
        self.start = (self.start + int(self.cell[1])) % self.order.numel()
        self.cell[1] = 0

    def check(self, loads: int) -> None:
        """Raises `Wrong` unless there were so many ``loads`` since `begin`, and the walk is where they lead."""
        where, counted = self.cell.tolist()
        if counted != loads:
            raise Wrong(f"{counted} loads were counted, not {loads}")
        expected = int(self.order[(self.start + counted) % self.order.numel()])
        if where != expected:
            raise Wrong(
                f"after {counted} loads from line {self.start} of the cycle on: expected address {expected:x}, got {where:x}"
            )

    def exact(self, run: Call, steps: int) -> None:
        """Walk from several lines of the cycle that no walk before led to, each time ``steps`` loads.  Then go back."""
        before, start, nodes = self.cell.clone(), self.start, self.order.numel()
        try:
            for part in range(_EXACT):
                self.start = (nodes * part // _EXACT + 1) % nodes
                self.cell[0], self.cell[1] = self.order[self.start], 0
                run()
                self.check(steps)
        finally:
            self.cell.copy_(before)
            self.start = start
