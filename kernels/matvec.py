"""Probe ``matvec``: an int8 weight matrix times one vector, the work of decoding at batch 1, on torch and Triton."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe

if TYPE_CHECKING:
    import torch

    Values = torch.Tensor

Call = Callable[[], object]
Starter = Callable[["Values", "Values", "Values", "Values"], Call]
"""From weights (n×k), vector (k), scales (n) and output (n): what computes the output."""

MOST_SETS = 512
INTERPRETED = 1 << 22
"""Most weights that are worth sending through the interpreter (a few seconds)."""
GPU_COLUMNS = 8
"""torch's int8 product on a GPU needs at least so many columns: the vector stands in the first, the others are zero."""
_LONGEST = 1 << 24
_LONGEST_SUM = 1 << 17
"""Beyond this K, sums of int8 products can leave int32."""
_PIECE = 1 << 23


def parse_shape(text: str) -> tuple[int, int]:
    """``14336x4096``: outputs × inputs (N×K).  Raises `UsageError` with an example."""
    match = re.fullmatch(r"([1-9]\d{0,7})x([1-9]\d{0,7})", text, re.ASCII)
    if not match or int(match[1]) > _LONGEST:
        raise UsageError(f"not a shape: {text!r} (write outputs x inputs, NxK: 14336x4096)")
    if int(match[2]) >= _LONGEST_SUM:
        raise UsageError(f"shape {text}: K must be below {_LONGEST_SUM}, or sums of int8 products leave int32")
    return int(match[1]), int(match[2])


def _needs(backend: str, activations: str, shape: str) -> Needs:
    parse_shape(str(shape))
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=80, interpreter=True)
    return Needs(modules=("torch",), arch=80 if activations == "bf16" else 75)


@probe(
    "matvec",
    needs=_needs,
    backend=("torch", "triton"),
    activations=("bf16", "fp32"),
    shape=("4096x4096", "14336x4096", "4096x14336", "28672x8192"),
)
def matvec(ctx: Context, backend: str, activations: str, shape: str) -> Work:
    """int8 matrix times int8 vector, sums in int32, scaled into the type of the activations.  shape: outputs x inputs (NxK).

    Weights have one float32 scale a row; the vector is quantised with one scale, untimed, and both scales are multiplied
    beforehand.  Work: 2·N·K operations.  Bytes: weights, vector and scales read once, outputs written once.  torch: ``_int_mm``
    into int32, then one product with the scales.  Every output is compared bit for bit: the sum has no rounding, and what follows
    has one way to round.
    """
    import torch

    from kernels import budget, buffers

    n, k = parse_shape(str(shape))
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[activations]
    start = _starter(ctx, backend, n, k)
    per_set = n * k
    buffers.require(per_set, ctx.device)
    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    vector, step = quantise(torch.randn(k, generator=generator, device=ctx.device).to(kind))
    scales = step * (0.5 + torch.rand(n, generator=generator, device=ctx.device)) / 100
    if backend == "torch" and ctx.kind == "cpu":
        trial, some = torch.ones((n, k), dtype=torch.int8), torch.empty(n, dtype=kind)
        budget.refuse_hopeless(ctx, budget.rows_of(lambda r: start(trial[:r], vector, scales[:r], some[:r]), n, k))
        del trial, some
    sets, cache = buffers.rotation(ctx, per_set, MOST_SETS)
    out = buffers.stack(sets, 1, n, kind, ctx.device)[:, 0]
    weights = buffers.stack(sets, n, k, torch.int8, ctx.device)
    weights[0].random_(-128, 128, generator=generator)
    weights[1:] = weights[0]
    runs = [start(weights[i], vector, scales, out[i]) for i in range(sets)]
    right = expected(weights[0], vector, scales, kind)
    out.fill_(math.nan)

    def exact() -> None:
        extremes(weights[0], vector, generator)
        out.fill_(math.nan)
        start(weights[0], vector, scales, out[0])()
        compare(out[0], expected(weights[0], vector, scales, kind), "extremes of int8: ")

    work = Work(
        run=runs,
        reset=lambda: out.fill_(math.nan),
        check=lambda: compare(out[work.last], right),
        exact=exact,
        digest=lambda: hashlib.blake2b(out[work.last].float().cpu().numpy().tobytes(), digest_size=16).hexdigest(),
        workload=Workload(
            ops=2 * n * k,
            bytes_read=n * k + k + n * scales.itemsize,
            bytes_written=n * kind.itemsize,
            dtype="int8",
            bound="memory",
        ),
        clock="graph" if ctx.kind == "cuda" else "wall",
        cache=cache,
    )
    return work


# --------------------------------------------------------------------------------------------------------------------------
# what runs


def _starter(ctx: Context, backend: str, n: int, k: int) -> Starter:
    """What makes a callable for one set.  Raises `Skip` where the case has no meaning."""
    if backend == "torch":
        if ctx.kind == "cuda":
            if n <= 16 or k % 8:
                raise Skip("torch's int8 product on a GPU needs more than 16 outputs and inputs divisible by 8")
            ctx.set("op", f"_int_mm of the weights with {GPU_COLUMNS} columns, 1 of them used; mul")
            return _torch_gpu
        import torch

        ctx.set("op", "_int_mm, mul")
        ctx.set("threads", torch.get_num_threads())
        ctx.set("vector", torch.backends.cpu.get_cpu_capability())
        ctx.set("onednn", torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
        return _torch_cpu
    if ctx.interpret:
        from kernels.triton import interpreter

        if n * k > INTERPRETED:
            raise Skip(f"too large for the interpreter: N·K up to {INTERPRETED} fits")
        interpreter.install()
    elif ctx.kind == "cpu":
        raise Skip("Triton kernels run on a processor in the interpreter only")
    from kernels.triton import matvec as kernel

    ctx.set("config", f"{kernel.ROWS}x{kernel.BLOCK}, {kernel.WARPS} warps")
    return kernel.call


def _torch_cpu(weights: Values, vector: Values, scales: Values, out: Values) -> Call:
    """One row times the transposed weights: oneDNN's matrix-vector kernel (with more rows it repacks the weights every time)."""
    import torch

    row, turned = vector[None], weights.T
    sums = torch.empty((1, len(weights)), dtype=torch.int32)
    multiply, scale, flat = torch._int_mm, torch.mul, sums[0]

    def run() -> None:
        multiply(row, turned, out=sums)
        scale(flat, scales, out=out)

    return run


def _torch_gpu(weights: Values, vector: Values, scales: Values, out: Values) -> Call:
    """Weights as the tall operand, so that the padding is a few columns, where it would be 16 rows of vectors otherwise.

    The padded vector is a copy: a call multiplies by the vector as it was when the call was made.
    """
    import torch

    columns = torch.zeros((GPU_COLUMNS, len(vector)), dtype=torch.int8, device=weights.device)
    sums = torch.empty((len(weights), GPU_COLUMNS), dtype=torch.int32, device=weights.device)
    columns[0] = vector
    multiply, scale, turned, used = torch._int_mm, torch.mul, columns.T, sums[:, 0]

    def run() -> None:
        multiply(weights, turned, out=sums)
        scale(used, scales, out=out)

    return run


# --------------------------------------------------------------------------------------------------------------------------
# what the output must be


def quantise(activations: Values) -> tuple[Values, Values]:
    """Symmetric, one step for all: int8 in −127…127, and the float32 step that gives the activations back, rounded."""
    wide = activations.float()
    step = wide.abs().max() / 127
    return (wide / step).round().clamp(-127, 127).char(), step


def expected(weights: Values, vector: Values, scales: Values, kind: torch.dtype) -> Values:
    """Sums in float64, exact below 2^53; then as every backend must: to float32, times the scale, to the type of the output."""
    import torch

    sums = torch.cat([piece.double() @ vector.double() for piece in weights.split(max(1, _PIECE // len(vector)))])
    return (sums.float() * scales).to(kind)


def extremes(weights: Values, vector: Values, generator: torch.Generator) -> None:
    """Random −128 and 127 everywhere, and in the first and last row the largest sum there is: too few bits for sums show."""
    vector.copy_(vector.random_(0, 2, generator=generator) * -1 ^ 127)
    weights.copy_(weights.random_(0, 2, generator=generator) * -1 ^ 127)
    weights[0], weights[-1] = vector, vector


def compare(out: Values, right: Values, what: str = "") -> None:
    """Bit for bit.  Raises `Wrong` naming the first element that differs."""
    import torch

    bits = torch.int16 if out.itemsize == 2 else torch.int32
    same = out.view(bits) == right.view(bits)
    if not bool(same.all()):
        at = int((~same).nonzero()[0])
        raise Wrong(
            f"{what}element {at}: expected {float(right[at]):.9g}, got {float(out[at]):.9g} "
            f"({int((~same).sum())} of {len(out)} elements differ)"
        )
