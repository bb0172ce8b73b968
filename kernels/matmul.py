"""Probe ``matmul``: C = A·Bᵀ on torch, numpy, Triton and CUDA."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from clustergauge.errors import UsageError
from clustergauge.model import Device, Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from kernels import matmul_backends as backends
from kernels.matmul_backends import Call
from kernels.shapes import Shape, format_shape, parse_shape

if TYPE_CHECKING:
    import torch

    from kernels.matmul_backends import Scales, Start

Bound = Literal["compute", "memory"]

MOST_SETS = 512
PIECE = 256**3
"""Multiply-adds of the first part that is tried: a mid-size product."""
_LONGEST_INT8_SUM = 1 << 17
"""Beyond this K, sums of int8 products can leave int32 (and reach the poison)."""
_LONGEST_FP8_SUM = 1 << 16
"""From this K on, sums kept in 14 bits mean little (`products`)."""
BALANCE: Mapping[str, Mapping[str, float]] = {
    "cuda": {"fp64": 0.5, "fp32": 4, "tf32": 32, "fp16": 64, "bf16": 64, "fp8": 128, "int8": 128},
    "cpu": {"fp64": 0.25, "fp32": 0.5, "tf32": 0.5, "fp16": 1, "bf16": 1, "fp8": 2, "int8": 2},
}
"""Operations for each byte of operands and output up to which reading and writing them is what takes the time.

On GPUs about what any whose figures are known can do while its memory moves a byte, or less (`clustergauge.catalogue`; B300 has
next to no units for int8 and fp64): on tensor cores products of up to 64 rows (decoding).  On processors, whose balance differs
more than a hundredfold, products of one row.
"""
DTYPES = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp8_fast", "int8")


def _needs(backend: str, dtype: str, shape: str) -> Needs:
    k = parse_shape(str(shape))[2]
    if dtype == "int8" and k >= _LONGEST_INT8_SUM:
        raise UsageError(f"shape {shape}: with int8, K must be below {_LONGEST_INT8_SUM}, or sums leave int32")
    if dtype.startswith("fp8") and k >= _LONGEST_FP8_SUM:
        raise UsageError(f"shape {shape}: with {dtype}, K must be below {_LONGEST_FP8_SUM}, or sums of 14 bits mean little")
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=89 if dtype.startswith("fp8") else 80, interpreter=True, tunes=True)
    arch = {"tf32": 80, "bf16": 80, "fp8": 89, "fp8_fast": 89, "int8": 75}.get(dtype, 0)
    if backend == "numpy":
        return Needs(modules=("torch", "numpy"), device="cpu")
    if backend in {"cupy", "cuda"}:
        return Needs(modules=("torch", "cupy"), device="cuda", arch=arch)
    return Needs(modules=("torch",), arch=arch, device="cuda" if dtype == "tf32" else "any")


@probe(
    "matmul",
    needs=_needs,
    backend=("torch", "numpy", "triton", "cupy", "cuda"),
    dtype=DTYPES,
    shape=("256", "512", "1024", "2048", "4096", "8192"),
)
def matmul(ctx: Context, backend: str, dtype: str, shape: str) -> Work:
    """Matrix product with B stored N×K, as the weight of a linear layer.  shape: edge of a square, MxNxK, or a name.

    2·M·N·K operations.  Random normal data (uniform for int8), sums in fp32 (fp64 in fp64), output in the dtype (int32 for int8,
    fp32 for tf32, bf16 for fp8).  Where rows are so few that memory decides (`BALANCE`), operands are counted too, read once, and
    the output, written once; a GPU is then timed replaying a graph.  Names of shapes are in `kernels.shapes`.  On a processor the
    Triton kernel is checked in the interpreter and not timed; on a GPU it runs in the fastest of a few configurations.  fp8:
    e4m3, one scale a tensor, quantised beforehand; fp8_fast lets tensor cores sum in fewer bits.  How they did sum is the setting
    ``accumulated``: ``fp32`` or ``reduced``, absent where K is too short to tell.
    """
    return prepare(ctx, backend, dtype, shape)[0]


def prepare(ctx: Context, backend: str, dtype: str, shape: str, least_sets: int = 1) -> tuple[Work, torch.Tensor]:
    """The work of `matmul`, and the outputs (sets × M × N) that its runs write in rotation: ``least_sets`` if they fit."""
    set_precision(dtype)
    try:
        return _prepare(ctx, backend, dtype, shape, least_sets)
    except BaseException:  # no case after this one has the precision of it
        set_precision("fp32")
        raise


def _prepare(ctx: Context, backend: str, dtype: str, shape: str, least_sets: int) -> tuple[Work, torch.Tensor]:
    import torch

    from kernels import accumulation, buffers, products

    m, n, k = parse_shape(str(shape))
    operand, output = _types(dtype)
    scales = _scales(ctx)
    start = backends.starter(ctx, backend, dtype, (m, n, k), scales)
    per_set = (m * k + n * k) * operand.itemsize + m * n * output.itemsize
    buffers.require(per_set, ctx.device)
    if backend in {"torch", "numpy"} and ctx.kind == "cpu":
        _refuse_hopeless(ctx, start, dtype, (m, n, k))
    sets, cache = buffers.rotation(ctx, per_set, MOST_SETS, least_sets)
    bound = _bound(ctx.kind, dtype, (m, n, k), per_set)
    a = buffers.stack(sets, m, k, operand, ctx.device)
    b = buffers.stack(sets, n, k, operand, ctx.device)
    c = buffers.stack(sets, m, n, output, ctx.device)
    if dtype == "tf32" and backend != "triton":
        _refuse_fp32(a[0], b[0], c[0], start(a[0], b[0], c[0]))
    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    scale = _fill(ctx, dtype, (a[0], b[0]), scales, generator)
    a[1:] = a[0]
    b[1:] = b[0]
    products.poison(c)
    ctx.set("layout", "A MxK, B NxK, C MxN, row-major")
    ctx.set("mnk", format_shape((m, n, k)))
    ctx.set("compulsory_bytes", per_set)

    if backend == "triton":
        start = backends.tune(ctx, dtype, (m, n, k), scales, (a, b, c))
    runs = [start(a[i], b[i], c[i]) for i in range(sets)]
    picks = torch.Generator().manual_seed(ctx.seed)
    rows = sorted({0, m - 1, *torch.randint(m, (products.ROWS - 2,), generator=picks).tolist()})
    kind = dtype.removesuffix("_fast")
    precision = products.PRECISION[kind]

    def check() -> None:
        products.check_rows(a[work.last], b[work.last], c[work.last], precision, rows, scale)
        products.check_whole(a[work.last], b[work.last], c[work.last], precision, generator, scale)

    def exact() -> None:
        products.check_exact(a[0], b[0], c[0], runs[0], generator, scale)
        if kind == "fp8":
            _tell_accumulation(ctx, accumulation.kept(a[0], b[0], c[0], runs[0], scale), fast=dtype == "fp8_fast")

    work = Work(
        run=runs,
        reset=lambda: products.poison(c),
        check=check,
        exact=exact,
        digest=lambda: products.digest(c[work.last]),
        close=lambda: set_precision("fp32"),
        workload=Workload(
            flops=0 if dtype == "int8" else 2 * m * n * k,
            ops=2 * m * n * k if dtype == "int8" else 0,
            bytes_read=(m + n) * k * operand.itemsize if bound == "memory" else 0,
            bytes_written=m * n * output.itemsize if bound == "memory" else 0,
            dtype=kind,
            bound=bound,
        ),
        clock=_clock(ctx.kind, backend, bound),
        cache=cache,
    )
    return work, c


def trial(ctx: Context, backend: str, dtype: str, shape: str) -> Call:
    """One product on one set of buffers, ready to run, for trying it.  Raises `Skip` where the case has no meaning.

    Whoever tries it puts the precision back (`set_precision`).
    """
    import torch

    from kernels import buffers

    m, n, k = parse_shape(shape)
    operand, output = _types(dtype)
    scales = _scales(ctx)
    start = backends.starter(ctx, backend, dtype, (m, n, k), scales)
    buffers.require((m * k + n * k) * operand.itemsize + m * n * output.itemsize, ctx.device)
    a, b, c = (
        buffers.stack(1, rows, columns, kind, ctx.device)[0]
        for rows, columns, kind in ((m, k, operand), (n, k, operand), (m, n, output))
    )
    _fill(ctx, dtype, (a, b), scales, torch.Generator(ctx.device).manual_seed(ctx.seed))
    set_precision(dtype)
    call = start(a, b, c)
    if backend == "triton":
        from kernels.triton import tuned

        tuned.attempt(ctx, call)
    return call


def _bound(kind: Device, dtype: str, mnk: Shape, moved: int) -> Bound:
    """What takes the time of a product whose operands and output are ``moved`` bytes."""
    return "memory" if 2 * math.prod(mnk) <= BALANCE[kind][dtype.removesuffix("_fast")] * moved else "compute"


def _clock(kind: Device, backend: str, bound: Bound) -> Literal["wall", "device", "graph"]:
    """A graph for what may be shorter than launching it; CuPy launches by a context of its own, which none is captured of."""
    if kind == "cpu":
        return "wall"
    return "graph" if bound == "memory" and backend in {"torch", "triton"} else "device"


def _refuse_fp32(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, run: Call) -> None:
    """Raises `Skip` if what was asked for in tf32 is not computed in it, whatever a library was told."""
    from kernels import accumulation

    if accumulation.keeps_fp32(a, b, c, run):
        raise Skip("tf32 was allowed and is not what this product is computed in here: it keeps the bits of fp32")


def _types(dtype: str) -> tuple[torch.dtype, torch.dtype]:
    """Types of the operands and of the output."""
    import torch

    if dtype == "int8":
        return torch.int8, torch.int32
    if dtype.startswith("fp8"):
        return torch.float8_e4m3fn, torch.bfloat16
    operand = {"fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype, torch.float32)
    return operand, operand


def _scales(ctx: Context) -> Scales:
    """Scales of A and of B, on the device, each in memory of its own: as aligned as a library may want them."""
    import torch

    return torch.ones((), device=ctx.device), torch.ones((), device=ctx.device)


def _fill(
    ctx: Context, dtype: str, operands: tuple[torch.Tensor, torch.Tensor], scales: Scales, generator: torch.Generator
) -> float:
    """Random data in both operands; for fp8 their scales too, whose product is returned (1 for all others)."""
    from kernels import products

    if not dtype.startswith("fp8"):
        for operand in operands:
            products.fill(operand, dtype, generator)
        return 1.0
    chosen = [products.quantise(operand, generator) for operand in operands]
    for scale, value in zip(scales, chosen, strict=True):
        scale.fill_(value)
    ctx.set("format", "e4m3")
    ctx.set("fast_accum", dtype == "fp8_fast")
    ctx.set("scale_a", chosen[0])
    ctx.set("scale_b", chosen[1])
    return math.prod(chosen)


def set_precision(dtype: str) -> None:
    """Let torch's GPU products use TF32 for ``tf32`` alone, and sum fp16 and bf16 in fp32 even where K is split."""
    import torch

    if dtype == "tf32" and torch.version.hip:
        os.environ.setdefault("HIPBLASLT_ALLOW_TF32", "1")  # without it torch for ROCm ignores what it is told next
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _tell_accumulation(ctx: Context, kept: float | None, *, fast: bool) -> None:
    """Record how sums were ``accumulated``, where that is known.  Raises `Wrong` if it was not as asked."""
    if kept is None:
        return
    ctx.set("accumulated", "fp32" if kept == 1 else "reduced")
    if not math.isfinite(kept) or (kept != 1 and not fast):
        raise Wrong(f"sums kept {kept:.1%} of small terms beside a large one: fewer bits than fp32, which only fp8_fast allows")


# --------------------------------------------------------------------------------------------------------------------------
# what is not worth starting


def _refuse_hopeless(ctx: Context, start: Start, dtype: str, whole: Shape) -> None:
    """Raises `Skip` if one call would take far longer than the budget, by ever larger parts of it on the same backend."""
    import torch

    from kernels import budget

    operand, output = _types(dtype)

    def part(shape: Shape) -> Call:
        m, n, k = shape
        return start(torch.ones((m, k), dtype=operand), torch.ones((n, k), dtype=operand), torch.empty((m, n), dtype=output))

    parts = ((math.prod(shape) / math.prod(whole), functools.partial(part, shape)) for shape in pieces(whole))
    budget.refuse_hopeless(ctx, parts)


def pieces(whole: Shape) -> Iterator[Shape]:
    """Products of at most `PIECE` multiply-adds, of eight times as many, and so on up to the whole; long edges are cut first."""
    most = PIECE
    while True:
        edges = list(whole)
        while math.prod(edges) > most:
            longest = edges.index(max(edges))
            edges[longest] = -(-edges[longest] // 2)
        yield edges[0], edges[1], edges[2]
        if most >= math.prod(whole):
            return
        most *= 8
