"""Probe ``cache``: how fast working sets of growing size are read over and over, from the nearest cache to memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_size
from kernels import working_sets

if TYPE_CHECKING:
    import torch

    Ints = torch.Tensor

Call = Callable[[], object]

UNIT = 16 << 10
"""Bytes that sets are a multiple of: a tile of the Triton kernel."""
LARGEST = 4 << 30
"""Bytes of the largest set: the Triton kernel counts its words in 32 bits."""
PER_CORE = 256 << 20
"""About the bytes that a core reads in one run: a millisecond and more even from the nearest cache."""
PERIOD = (1 << 17) - 1
"""Words after which the values in memory repeat: prime, so that no two sets, and no two parts of one, are alike."""
MARKS = 32
INTERPRETED = 1 << 20
"""Most bytes a set may have in the interpreter."""
INTERPRETED_PASSES = 5
_WORD = 4
_MODULUS = 1 << 32


def _needs(backend: str, cores: str, size: int) -> Needs:  # noqa: ARG001 (a case's needs get all its parameters)
    if not UNIT <= size <= LARGEST or size % UNIT:
        raise UsageError(f"size {size}: working sets are multiples of {format_size(UNIT)}, at most {format_size(LARGEST)}")
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=80, interpreter=True)
    if backend == "cupy":
        return Needs(modules=("torch", "cupy"), device="cuda")
    return Needs(modules=("torch", "llvmlite"), device="cpu")


@probe("cache", needs=_needs, backend=("native", "triton", "cupy"), cores=("one", "each", "together"), size=working_sets.LADDER)
def cache(ctx: Context, backend: str, cores: str, size: int) -> Work:
    """Reads a working set over and over.  size: bytes of one set; where they step down, a cache is full.

    one: one core (of a GPU: multiprocessor) reads it; each: every core at once, each a set of its own; together: all
    multiprocessors of a GPU read the same set, past their own L1.  Bytes are counted as the program loads them: passes × sets ×
    size, wherever they come from (as in McCalpin's and lmbench's bw_mem, reading alone).
    """
    import torch

    from kernels import buffers

    _refuse_unfit(ctx, backend, cores, size)
    readers = _readers(backend, cores, ctx.device)
    total = size * (readers if cores == "each" else 1)
    buffers.require(total, ctx.device)
    passes = INTERPRETED_PASSES if ctx.interpret else _passes(total, _cores(backend, cores, ctx.device))
    data = _array(backend, cores, total, ctx.device)
    _fill(data, ctx.seed)
    sums = torch.zeros(readers, dtype=torch.int64 if backend == "triton" else torch.int32, device=ctx.device)
    run = _call(backend, cores, data, sums, passes)
    watch = _Sums(sums, data, passes)

    ctx.set("passes", passes)
    working_sets.describe(ctx, data, size, _processors(cores) if backend == "native" else (), past_l1=cores == "together")
    return Work(
        run=run,
        reset=watch.poison,
        check=watch.check,
        exact=lambda: watch.exact(run),
        digest=watch.digest,
        workload=Workload(bytes_read=passes * total, bound="memory"),
        clock="device" if ctx.kind == "cuda" else "wall",
        cache=working_sets.policy(ctx, total),
    )


def _refuse_unfit(ctx: Context, backend: str, cores: str, size: int) -> None:
    """Raises `Skip` where the case has no meaning."""
    if backend == "native":
        from kernels import native

        if reason := native.available():
            raise Skip(reason)
        if cores == "together":
            raise Skip("the cores of a processor do not pass their own caches by: cores=together has a meaning on a GPU alone")
    if backend == "triton" and ctx.kind == "cpu":
        if not ctx.interpret:
            raise Skip("Triton kernels run on a processor in the interpreter only")
        if size > INTERPRETED:
            raise Skip(f"too large for the interpreter: up to {format_size(INTERPRETED)} fits")


def _passes(total: int, cores: int) -> int:
    """How often a run reads ``total`` bytes: odd, or the sum of all passes, modulo a power of two, would lose bits of each."""
    return max(1, PER_CORE * cores // total) | 1


def _processors(cores: str) -> tuple[int, ...]:
    from kernels import native

    return native.team(1 if cores == "one" else None).processors


def _readers(backend: str, cores: str, device: str) -> int:
    """How many sums the readers leave, one each."""
    if backend == "native":
        return len(_processors(cores))
    if backend == "triton":
        from kernels.triton import cache as kernel

        return kernel.programs(cores, device)
    from kernels import cuda

    return 1 if cores == "one" else cuda.cache_blocks("l2" if cores == "together" else "l1", device)


def _cores(backend: str, cores: str, device: str) -> int:
    """How many cores, or multiprocessors, read."""
    return _readers(backend, "each" if cores == "together" else cores, device)


def _array(backend: str, cores: str, total: int, device: str) -> Ints:
    """Words; native ones on huge pages, each page beside the core that reads it."""
    import torch

    if backend == "native":
        from kernels import native

        return torch.from_numpy(native.team(1 if cores == "one" else None).array(total // 8)).view(torch.int32)
    return torch.empty(total // _WORD, dtype=torch.int32, device=device)


def _fill(data: Ints, seed: int) -> None:
    """Random words, repeated after `PERIOD`."""
    import torch

    low, high = -(1 << 31), (1 << 31) - 1
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(low, high, (PERIOD,), generator=generator, dtype=torch.int32).to(data.device)
    whole = data.numel() // PERIOD
    data[: whole * PERIOD].view(whole, PERIOD).copy_(block)
    data[whole * PERIOD :] = block[: data.numel() - whole * PERIOD]


def _call(backend: str, cores: str, data: Ints, sums: Ints, passes: int) -> Call:
    """The work itself."""
    if backend == "native":
        from kernels import native
        from kernels.native import caches

        return caches.passes(native.team(1 if cores == "one" else None), data.numpy(), sums.numpy(), passes)
    if backend == "cupy":
        from kernels import cuda

        return cuda.cache_read("l2" if cores == "together" else "l1", data, sums, passes)
    if data.device.type == "cpu":
        from kernels.triton import interpreter

        interpreter.install()
    from kernels.triton import cache as kernel

    return kernel.call(cores, data, sums, passes)


class _Sums:
    """What the readers leave: sums that together are that of all words, as often as they were read, modulo 2³².

    A word that was not read, or read once too often, changes it, and so does a pass: no load can be left out.
    """

    def __init__(self, sums: Ints, data: Ints, passes: int) -> None:
        self.sums, self.data, self.passes = sums, data, passes
        self.total = self._total()

    def poison(self) -> None:
        """Sums that are wrong together."""
        self.sums.zero_()
        self.sums[0] = _signed(self.passes * self.total + 1)

    def check(self) -> None:
        """Raises `Wrong` unless the sums add up."""
        expected, got = self.passes * self.total % _MODULUS, _sum(self.sums) % _MODULUS
        if got != expected:
            words = f"{self.data.numel()} words read {self.passes} times"
            raise Wrong(f"the sum of {words} is {expected:08x}, got {got:08x} (modulo 2^32)")

    def exact(self, run: Call) -> None:
        """Change words from the first to the last, each by another power of two: the next sum is of what is there now."""
        last = self.data.numel() - 1
        places = [last * mark // (MARKS - 1) for mark in range(MARKS)]
        before, self_total = self.data[places].clone(), self.total
        try:
            for bit, place in enumerate(places):
                self.data[place] = _signed(int(self.data[place]) + (1 << bit))
            self.total = self._total()
            self.poison()
            run()
            self.check()
        finally:
            self.data[places], self.total = before, self_total

    def digest(self) -> str:
        """Of the sums."""
        return hashlib.blake2b(self.sums.cpu().numpy().tobytes(), digest_size=16).hexdigest()

    def _total(self) -> int:
        return _sum(self.data)


def _sum(words: Ints) -> int:
    """The sum in integers that do not wrap (below 2³¹ words)."""
    import torch

    return int(words.sum(dtype=torch.int64))


def _signed(value: int) -> int:
    """The 32-bit integer with the lowest bits of ``value``."""
    low = value % _MODULUS
    return low - _MODULUS if low >= _MODULUS // 2 else low
