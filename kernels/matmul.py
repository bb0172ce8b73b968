"""Probe ``matmul``: C = A·Bᵀ on torch, numpy, Triton and CUDA."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from kernels.shapes import Shape, format_shape, parse_shape

if TYPE_CHECKING:
    import torch

    Scales = tuple[torch.Tensor, torch.Tensor]
    Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Callable[[], object]]

Call = Callable[[], object]

MOST_SETS = 512
INTERPRETED = 512**3
"""Most multiply-adds that are worth sending through the interpreter (a few seconds)."""
PIECE = 256**3
"""Multiply-adds of the first part that is tried: a mid-size product."""
_LONGEST_INT8_SUM = 1 << 17
"""Beyond this K, sums of int8 products can leave int32 (and reach the poison)."""
_LONGEST_FP8_SUM = 1 << 16
"""From this K on, sums kept in 14 bits mean little (`products`)."""
DTYPES = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp8_fast", "int8")
NUMPY = ("fp64", "fp32")
"""What numpy's BLAS computes in."""
TRITON = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp8_fast", "int8")
"""What the Triton kernel computes in."""


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
    fp32 for tf32, bf16 for fp8).  Names of shapes are in `kernels.shapes`.  On a processor the Triton kernel is checked in the
    interpreter and not timed; on a GPU it runs in the fastest of a few configurations.  fp8: e4m3, one scale a tensor, quantised
    beforehand; fp8_fast lets tensor cores sum in fewer bits.  How they did sum is the setting ``accumulated``: ``fp32`` or
    ``reduced``, absent where K is too short to tell.
    """
    return prepare(ctx, backend, dtype, shape)[0]


def prepare(ctx: Context, backend: str, dtype: str, shape: str, least_sets: int = 1) -> tuple[Work, torch.Tensor]:
    """The work of `matmul`, and the outputs (sets × M × N) that its runs write in rotation: ``least_sets`` if they fit."""
    import torch

    from kernels import accumulation, buffers, products

    m, n, k = parse_shape(str(shape))
    operand, output = _types(dtype)
    scales = _scales(ctx)
    start = _starter(ctx, backend, dtype, (m, n, k), scales)
    per_set = (m * k + n * k) * operand.itemsize + m * n * output.itemsize
    buffers.require(per_set, ctx.device)
    if backend in {"torch", "numpy"} and ctx.kind == "cpu":
        _refuse_hopeless(ctx, dtype, (m, n, k))
    sets, cache = buffers.rotation(ctx, per_set, MOST_SETS, least_sets)
    a = buffers.stack(sets, m, k, operand, ctx.device)
    b = buffers.stack(sets, n, k, operand, ctx.device)
    c = buffers.stack(sets, m, n, output, ctx.device)
    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    scale = _fill(ctx, dtype, (a[0], b[0]), scales, generator)
    a[1:] = a[0]
    b[1:] = b[0]
    products.poison(c)
    ctx.set("layout", "A MxK, B NxK, C MxN, row-major")
    ctx.set("mnk", format_shape((m, n, k)))
    ctx.set("compulsory_bytes", per_set)

    set_precision(dtype)
    if backend == "triton":
        start = _tune(ctx, dtype, (m, n, k), scales, (a, b, c))
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
        workload=Workload(**{"ops" if dtype == "int8" else "flops": 2 * m * n * k}, dtype=kind, bound="compute"),
        clock="device" if ctx.kind == "cuda" else "wall",
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
    start = _starter(ctx, backend, dtype, (m, n, k), scales)
    buffers.require((m * k + n * k) * operand.itemsize + m * n * output.itemsize, ctx.device)
    a, b, c = (
        buffers.stack(1, rows, columns, kind, ctx.device)[0]
        for rows, columns, kind in ((m, k, operand), (n, k, operand), (m, n, output))
    )
    _fill(ctx, dtype, (a, b), scales, torch.Generator(ctx.device).manual_seed(ctx.seed))
    set_precision(dtype)
    return start(a, b, c)


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

    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _starter(ctx: Context, backend: str, dtype: str, mnk: Shape, scales: Scales) -> Start:
    """What makes a callable for one set of buffers.  ``scales``: of A and B, for fp8.  Raises `Skip` without a meaning."""
    if backend in {"cupy", "cuda"}:
        from kernels import cuda

        engine = "cublas" if backend == "cupy" else "simt"
        ctx.set("engine", cuda.describe(engine, mnk[2]))
        return lambda a, b, c: cuda.matmul(engine, dtype, a, b, c)
    if backend == "triton":
        return _triton_starter(ctx, dtype, mnk, scales)
    if backend == "numpy":
        return _numpy_starter(ctx, dtype)
    import torch

    m, n, k = mnk
    if dtype.startswith("fp8"):
        _refuse_fp8(ctx, n, k)
        return lambda a, b, c: _scaled_call(a, b, c, scales, fast=dtype == "fp8_fast")
    if ctx.kind == "cuda":
        if dtype == "int8" and (m <= 16 or n % 8 or k % 8):
            raise Skip("int8 on a GPU needs M above 16 and N and K divisible by 8")
    else:
        ctx.set("threads", torch.get_num_threads())
        ctx.set("mkl", torch.backends.mkl.is_available())
        ctx.set("onednn", torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
        ctx.set("vector", torch.backends.cpu.get_cpu_capability())
    return _torch_call


def _numpy_starter(ctx: Context, dtype: str) -> Start:
    """numpy's own BLAS (OpenBLAS in its wheels): on some processors faster than what torch brings.  It has no smaller types."""
    import numpy as np

    if dtype not in NUMPY:
        raise Skip(f"numpy's BLAS has no {dtype}: it has {', '.join(NUMPY)}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    ctx.set("blas", f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip())
    ctx.set("threads", int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count())

    def start(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Call:
        left, right, out = a.numpy(), b.numpy().T, c.numpy()
        return lambda: np.matmul(left, right, out=out)

    return start


def _torch_call(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Call:
    import torch

    right = b.T
    if a.dtype == torch.int8:
        return lambda: torch._int_mm(a, right, out=c)
    return lambda: torch.mm(a, right, out=c)


def _scaled_call(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, scales: Scales, *, fast: bool) -> Call:
    import torch

    right, (of_a, of_b) = b.T, scales
    return lambda: torch._scaled_mm(a, right, of_a, of_b, out_dtype=c.dtype, use_fast_accum=fast, out=c)


def _tell_accumulation(ctx: Context, kept: float | None, *, fast: bool) -> None:
    """Record how sums were ``accumulated``, where that is known.  Raises `Wrong` if it was not as asked."""
    if kept is None:
        return
    ctx.set("accumulated", "fp32" if kept == 1 else "reduced")
    if not math.isfinite(kept) or (kept != 1 and not fast):
        raise Wrong(f"sums kept {kept:.1%} of small terms beside a large one: fewer bits than fp32, which only fp8_fast allows")


def _refuse_fp8(ctx: Context, n: int, k: int) -> None:
    """Raises `Skip` where torch has no fp8 product that is worth measuring."""
    import torch

    if ctx.kind == "cpu":
        raise Skip("a processor has no fp8 arithmetic: torch converts, and that is what would be measured")
    if torch.version.hip and torch.cuda.get_device_properties(torch.device(ctx.device)).gcnArchName.startswith("gfx94"):
        raise Skip("this device multiplies e4m3 of a format of its own (fnuz), not the e4m3 of OCP that is measured here")
    if n % 16 or k % 16:
        raise Skip("fp8 needs N and K divisible by 16")


def _triton_starter(ctx: Context, dtype: str, mnk: Shape, scales: Scales) -> Start:
    if dtype not in TRITON:
        raise Skip(f"the Triton matmul has no {dtype}: it has {', '.join(TRITON)}")
    if ctx.interpret:
        from kernels.triton import interpreter

        if math.prod(mnk) > INTERPRETED:
            raise Skip("too large for the interpreter: M·N·K up to 512x512x512 fits")
        interpreter.install()
    elif ctx.kind == "cpu":
        raise Skip("Triton kernels run on a processor in the interpreter only")
    from kernels.triton import matmul as kernel

    config = kernel.chosen("interpreter" if ctx.interpret else kernel.architecture(ctx.device), dtype, *mnk[1:])
    ctx.set("config", str(config))
    factors = scales if dtype.startswith("fp8") else None
    return lambda a, b, c: kernel.call(config, dtype, a, b, c, factors)


def _tune(ctx: Context, dtype: str, mnk: Shape, scales: Scales, stacks: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Start:
    """What makes a callable for one set of buffers, of the candidate that is fastest on all of them in turn."""
    from kernels.triton import matmul as kernel, tuned

    factors = scales if dtype.startswith("fp8") else None

    def start(config: kernel.Config | kernel.matmul_tma.Config) -> Start:
        return lambda a, b, c: kernel.call(config, dtype, a, b, c, factors)

    arch = "interpreter" if ctx.interpret else kernel.architecture(ctx.device)
    candidates = {str(config): config for config in kernel.candidates(arch, dtype, *mnk[1:])}
    config = tuned.choose(
        ctx,
        f"matmul {dtype} {format_shape(mnk)}",
        candidates,
        lambda config: [start(config)(*tensors) for tensors in zip(*stacks, strict=True)],
    )
    ctx.set("config", str(config))
    return start(config)


# --------------------------------------------------------------------------------------------------------------------------
# what is not worth starting


def _refuse_hopeless(ctx: Context, dtype: str, whole: Shape) -> None:
    """Raises `Skip` if one call would take far longer than the budget, by ever larger parts of it."""
    import torch

    from kernels import budget

    operand, output = _types(dtype)

    def start(shape: Shape) -> Call:
        m, n, k = shape
        a, b = torch.ones((m, k), dtype=operand), torch.ones((n, k), dtype=operand)
        return _torch_call(a, b, torch.empty((m, n), dtype=output))

    parts = ((math.prod(shape) / math.prod(whole), functools.partial(start, shape)) for shape in pieces(whole))
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
