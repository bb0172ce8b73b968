"""Probe ``memory``: STREAM's operations, and pure reads and writes, on torch and Triton."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_size

if TYPE_CHECKING:
    import torch

    Values = torch.Tensor

READS: Mapping[str, int] = {"read": 1, "write": 0, "copy": 1, "scale": 1, "add": 2, "triad": 2}
"""Arrays read by each operation; all but ``read`` write one."""
SCALAR = 3.0
ITEM = 8
"""Bytes of an element: float64, as in STREAM."""
PERIOD = (1 << 17) - 1
"""Elements after which an array's values repeat: prime, so that no two blocks of a kernel are alike."""
LARGEST = 512
"""Inputs are integers below this: every result is exact, sums of up to 2^44 elements included."""
SAMPLES = 4096
PAGE = 4096 // ITEM
INTERPRETED = 16 << 20
"""Most bytes an array may have in the interpreter."""
_CHUNK = 1 << 24


def _needs(backend: str, op: str, size: int) -> Needs:
    if size % ITEM or size < 2 * PAGE * ITEM:
        raise UsageError(f"size {size}: arrays hold {ITEM}-byte elements and at least two pages (8KiB)")
    streamed = (READS[op] + (op != "read")) * size
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=80, interpreter=True, working_set=streamed)
    if backend == "cupy":
        return Needs(modules=("torch", "cupy"), device="cuda", working_set=streamed)
    if backend == "native":
        return Needs(modules=("torch", "llvmlite"), device="cpu", working_set=streamed)
    return Needs(modules=("torch",), working_set=streamed)


@probe("memory", needs=_needs, backend=("torch", "native", "triton", "cupy"), op=tuple(READS), size=(256 << 20, 1 << 30, 4 << 30))
def memory(ctx: Context, backend: str, op: str, size: int) -> Work:
    """Streams through memory in float64, far beyond the caches.  size: bytes per array.

    write: a = s; copy: a = b; scale: a = s·b; add: a = b + c; triad: a = b + s·c; read: the sum of b.  Bytes are counted as
    STREAM counts them: each array once, nothing for lines fetched only to be overwritten.
    """
    import torch

    from kernels import buffers

    inputs, written = READS[op], op != "read"
    arrays = inputs + written
    _refuse_unfit(ctx, backend, size)
    buffers.require(arrays * size, ctx.device)
    memory = [_zeros(ctx, backend, size // ITEM) for _ in range(arrays)]
    sources = memory[:inputs]
    blocks = _blocks(ctx, inputs)
    for source, block in zip(sources, blocks, strict=True):
        _repeat(block, source)
    out = memory[-1] if written else torch.zeros(_partials(ctx, backend, size // ITEM), dtype=torch.float64, device=ctx.device)
    run = _call(backend, op, out, sources)
    watch = _Summed(out, sources[0]) if op == "read" else _Streamed(out, _expected(op, blocks, ctx.device), ctx.seed)
    watch.poison()

    _describe(ctx, backend, memory)
    return Work(
        run=run,
        reset=watch.poison,
        check=watch.check,
        exact=lambda: watch.exact(run),
        digest=watch.digest,
        workload=Workload(bytes_read=inputs * size, bytes_written=size if written else 0, dtype="fp64", bound="memory"),
        clock="device" if ctx.kind == "cuda" else "wall",
        cache="none" if ctx.interpret else "cold",
    )


def _refuse_unfit(ctx: Context, backend: str, size: int) -> None:
    """Raises `Skip` where native code cannot be made, and for a Triton kernel on a processor, unless it is to be checked in the
    interpreter and fits there."""
    if backend == "native":
        from kernels import native

        if reason := native.available():
            raise Skip(reason)
    if backend == "triton" and ctx.kind == "cpu":
        if not ctx.interpret:
            raise Skip("Triton kernels run on a processor in the interpreter only")
        if size > INTERPRETED:
            raise Skip(f"too large for the interpreter: up to {format_size(INTERPRETED)} fits")


def _zeros(ctx: Context, backend: str, n: int) -> Values:
    """Zeroed first, in the kernels' own division of work: each page settles near the thread that will use it."""
    import torch

    if backend == "native":
        from kernels import native

        return torch.from_numpy(native.team().array(n))
    return torch.empty(n, dtype=torch.float64, device=ctx.device).zero_()


def _describe(ctx: Context, backend: str, arrays: list[Values]) -> None:
    """Note what matters to the result."""
    if ctx.kind == "cpu" and not ctx.interpret:
        import torch

        from kernels import buffers

        ctx.set("threads", _partials(ctx, backend, 0)[0] if backend == "native" else torch.get_num_threads())
        if backend == "native":
            from kernels.native import code

            ctx.set("prefetch_bytes", code.ahead())
        buffers.note_huge_pages(ctx, arrays)


def _blocks(ctx: Context, inputs: int) -> list[Values]:
    """The random integers that each input repeats."""
    import torch

    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    return [
        torch.randint(-LARGEST, LARGEST, (PERIOD,), generator=generator, device=ctx.device).to(torch.float64)
        for _ in range(inputs)
    ]


def _expected(op: str, blocks: list[Values], device: str) -> Values:
    """What the output repeats."""
    import torch

    if op == "write":
        return torch.full((PERIOD,), SCALAR, dtype=torch.float64, device=device)
    first = SCALAR * blocks[0] if op == "scale" else blocks[0]
    if op in {"add", "triad"}:
        return first + (SCALAR if op == "triad" else 1.0) * blocks[1]
    return first.clone()


def _repeat(block: Values, array: Values) -> None:
    """Fill an array with a block, over and over."""
    whole = array.numel() // PERIOD
    array[: whole * PERIOD].view(whole, PERIOD).copy_(block)
    array[whole * PERIOD :] = block[: array.numel() - whole * PERIOD]


def _partials(ctx: Context, backend: str, n: int) -> tuple[int, ...]:
    """Shape of what ``read`` leaves: one sum, or one for each program."""
    if backend == "torch":
        return ()
    if backend == "cupy":
        from kernels import cuda

        return (cuda.readers(n, ctx.device),)
    if backend == "native":
        from kernels import native

        return (len(native.team().processors),)
    from kernels.triton import memory as kernel

    return (kernel.readers(n, ctx.device),)


def _call(backend: str, op: str, out: Values, sources: list[Values]) -> Callable[[], object]:
    """The work itself.  Nothing in it allocates an array."""
    b, c = (*sources, out, out)[:2]
    if backend == "triton":
        return _triton_call(op, out, sources)
    if backend == "cupy":
        from kernels import cuda

        return cuda.stream(op, out, b, c, SCALAR)
    if backend == "native":
        from kernels import native

        return native.team().call(op, out.numpy(), [source.numpy() for source in sources], SCALAR)
    import torch

    return {
        "read": lambda: torch.sum(b, dim=0, out=out),
        "write": lambda: out.fill_(SCALAR),
        "copy": lambda: out.copy_(b),
        "scale": lambda: torch.mul(b, SCALAR, out=out),
        "add": lambda: torch.add(b, c, out=out),
        "triad": lambda: torch.add(b, c, alpha=SCALAR, out=out),
    }[op]


def _triton_call(op: str, out: Values, sources: list[Values]) -> Callable[[], object]:
    if out.device.type == "cpu":
        from kernels.triton import interpreter

        interpreter.install()
    from kernels.triton import memory as kernel

    b, c = (*sources, out, out)[:2]
    return kernel.call(op, out, b, c, SCALAR)


# --------------------------------------------------------------------------------------------------------------------------
# what the output must be


def _digest(values: Values) -> str:
    return hashlib.blake2b(values.cpu().numpy().tobytes(), digest_size=16).hexdigest()


@dataclass
class _Summed:
    """The output of ``read``: sums that together are the sum of all elements, exactly."""

    out: Values
    source: Values

    def __post_init__(self) -> None:
        self.total = self._total()

    def poison(self) -> None:
        """NaN in every sum."""
        self.out.fill_(math.nan)

    def check(self, total: float | None = None) -> None:
        """Raises `Wrong` unless the sums add up."""
        expected, got = self.total if total is None else total, float(self.out.sum())
        if got != expected:
            raise Wrong(f"the sum of {self.source.numel()} elements is {expected:.0f}, got {got:.0f}")

    def exact(self, run: Callable[[], object]) -> None:
        """Mark elements from the first to the last with powers of two: the sum shows which of them were read, and how often."""
        marks = {round(place): 2.0 ** (bit + 12) for bit, place in enumerate(_spread(self.source.numel() - 1, 32))}
        for place, mark in marks.items():
            self.source[place] += mark
        try:
            self.poison()
            run()
            self.check(self.total + sum(marks.values()))
        finally:
            for place, mark in marks.items():
                self.source[place] -= mark

    def digest(self) -> str:
        """Of the sums."""
        return _digest(self.out)

    def _total(self) -> float:
        """The sum of the source in integers, piece by piece."""
        import torch

        return float(sum(int(piece.to(torch.int64).sum()) for piece in self.source.split(_CHUNK)))


class _Streamed:
    """An output array that must repeat a block, bit for bit."""

    def __init__(self, out: Values, block: Values, seed: int) -> None:
        import torch

        self.out, self.block = out, block
        n = out.numel()
        random = torch.randint(n, (SAMPLES,), generator=torch.Generator().manual_seed(seed))
        stretch = -(-n // SAMPLES)
        spread = (torch.arange(SAMPLES) * stretch + random % stretch).clamp(max=n - 1)
        pages = torch.cat([torch.arange(PAGE), torch.arange(n - PAGE, n)])
        self.places = torch.cat([pages, spread]).unique().to(out.device)

    def poison(self) -> None:
        """NaN in the first and the last page and in one element of each of `SAMPLES` equal stretches.

        All of it would cost as much as the operation itself, before every sample.
        """
        self.out.index_fill_(0, self.places, math.nan)

    def check(self) -> None:
        """Compare all of the output.  Raises `Wrong` naming the first element that differs."""
        import torch

        whole = self.out.numel() // PERIOD * PERIOD
        pieces = [*self.out[:whole].view(-1, PERIOD).split(_CHUNK // PERIOD), self.out[whole:].view(1, -1)]
        start = 0
        for piece in pieces:
            expected = self.block[: piece.shape[1]]
            same = piece.view(torch.int64) == expected.view(torch.int64)
            if not bool(same.all()):
                at = int((~same).flatten().nonzero()[0])
                want, got = float(expected[at % PERIOD]), float(piece.flatten()[at])
                raise Wrong(f"element {start + at}: expected {want:.0f}, got {got!r}")
            start += piece.numel()

    def exact(self, run: Callable[[], object]) -> None:
        """Poison all of the output, run, and compare."""
        self.out.fill_(math.nan)
        run()
        self.check()

    def digest(self) -> str:
        """Of the elements that `poison` overwrites."""
        return _digest(self.out[self.places])


def _spread(last: int, count: int) -> list[float]:
    """``count`` evenly spaced places from 0 to ``last``."""
    return [last * i / (count - 1) for i in range(count)]
