"""Probe ``matmul``: C = A·Bᵀ on torch and Triton."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int, int]
Call = Callable[[], object]

MOST_SETS = 512
INTERPRETED = 512**3
"""Most multiply-adds that are worth sending through the interpreter (a few seconds)."""
PIECE = 256**3
"""Multiply-adds of the first part that is tried: a mid-size product."""
_LONGEST = 1 << 20
_LONGEST_INT8_SUM = 1 << 17
"""Beyond this K, sums of int8 products can leave int32 (and reach the poison)."""


def parse_shape(text: str) -> Shape:
    """``2048`` is square, ``200x136x96`` is M×N×K.  Raises `UsageError` with an example."""
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}x[1-9]\d{0,6})?", text, re.ASCII):
        raise UsageError(f"not a shape: {text!r} (write 2048, or MxNxK: 200x136x96)")
    edges = [int(edge) for edge in text.split("x")]
    if max(edges) > _LONGEST:
        raise UsageError(f"shape {text}: no edge may be longer than {_LONGEST}")
    return (edges[0], edges[-2], edges[-1]) if len(edges) == 3 else (edges[0],) * 3


def _needs(backend: str, dtype: str, shape: str) -> Needs:
    k = parse_shape(str(shape))[2]
    if dtype == "int8" and k >= _LONGEST_INT8_SUM:
        raise UsageError(f"shape {shape}: with int8, K must be below {_LONGEST_INT8_SUM}, or sums leave int32")
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=80, interpreter=True)
    arch = {"tf32": 80, "bf16": 80, "int8": 75}.get(dtype, 0)
    if backend in {"cupy", "cuda"}:
        return Needs(modules=("torch", "cupy"), device="cuda", arch=arch)
    return Needs(modules=("torch",), arch=arch, device="cuda" if dtype == "tf32" else "any")


@probe(
    "matmul",
    needs=_needs,
    backend=("torch", "triton", "cupy", "cuda"),
    dtype=("fp32", "tf32", "fp16", "bf16", "int8"),
    shape=("256", "512", "1024", "2048", "4096", "8192"),
)
def matmul(ctx: Context, backend: str, dtype: str, shape: str) -> Work:
    """Matrix product with B stored N×K, as the weight of a linear layer.  shape: edge of a square, or MxNxK.

    Random normal data (uniform for int8), output in the dtype (int32 for int8, fp32 for tf32), sums in fp32.  On a processor the
    Triton kernel is checked in the interpreter and not timed.
    """
    import torch

    from kernels import buffers, products

    m, n, k = parse_shape(str(shape))
    operand, output = _types(dtype)
    _set_precision(dtype)
    start = _starter(ctx, backend, dtype, (m, n, k))
    per_set = (m * k + n * k) * operand.itemsize + m * n * output.itemsize
    buffers.require(per_set, ctx.device)
    if backend == "torch" and ctx.kind == "cpu":
        _refuse_hopeless(ctx, dtype, (m, n, k))
    sets, cache = buffers.rotation(ctx, per_set, MOST_SETS)
    a = buffers.stack(sets, m, k, operand, ctx.device)
    b = buffers.stack(sets, n, k, operand, ctx.device)
    c = buffers.stack(sets, m, n, output, ctx.device)
    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    products.fill(a[0], dtype, generator)
    products.fill(b[0], dtype, generator)
    a[1:] = a[0]
    b[1:] = b[0]
    products.poison(c)
    ctx.set("layout", "A MxK, B NxK, C MxN, row-major")

    runs = [start(a[i], b[i], c[i]) for i in range(sets)]
    picks = torch.Generator().manual_seed(ctx.seed)
    rows = sorted({0, m - 1, *torch.randint(m, (products.ROWS - 2,), generator=picks).tolist()})
    precision = products.PRECISION[dtype]

    def check() -> None:
        products.check_rows(a[work.last], b[work.last], c[work.last], precision, rows)
        products.check_whole(a[work.last], b[work.last], c[work.last], precision, generator)

    work = Work(
        run=runs,
        reset=lambda: products.poison(c),
        check=check,
        exact=lambda: products.check_exact(a[0], b[0], c[0], runs[0], generator),
        digest=lambda: products.digest(c[work.last]),
        close=lambda: _set_precision("fp32"),
        workload=Workload(**{"ops" if dtype == "int8" else "flops": 2 * m * n * k}, dtype=dtype, bound="compute"),
        clock="device" if ctx.kind == "cuda" else "wall",
        cache=cache,
    )
    return work


def _types(dtype: str) -> tuple[torch.dtype, torch.dtype]:
    """Types of the operands and of the output."""
    import torch

    if dtype == "int8":
        return torch.int8, torch.int32
    operand = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype, torch.float32)
    return operand, operand


def _set_precision(dtype: str) -> None:
    """Let torch's GPU products use TF32 for ``tf32`` alone, and sum fp16 and bf16 in fp32 even where K is split."""
    import torch

    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _starter(ctx: Context, backend: str, dtype: str, mnk: Shape) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Call]:
    """What makes a callable for one set of buffers.  Raises `Skip` where the case has no meaning."""
    if backend in {"cupy", "cuda"}:
        from kernels import cuda

        engine = "cublas" if backend == "cupy" else "simt"
        ctx.set("engine", cuda.describe(engine, mnk[2]))
        return lambda a, b, c: cuda.matmul(engine, dtype, a, b, c)
    if backend == "triton":
        return _triton_starter(ctx, dtype, mnk)
    import torch

    m, n, k = mnk
    if ctx.kind == "cuda":
        if dtype == "int8" and (m <= 16 or n % 8 or k % 8):
            raise Skip("int8 on a GPU needs M above 16 and N and K divisible by 8")
    else:
        ctx.set("threads", torch.get_num_threads())
        ctx.set("mkl", torch.backends.mkl.is_available())
        ctx.set("onednn", torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
        ctx.set("vector", torch.backends.cpu.get_cpu_capability())
    return _torch_call


def _torch_call(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Call:
    import torch

    right = b.T
    if a.dtype == torch.int8:
        return lambda: torch._int_mm(a, right, out=c)
    return lambda: torch.mm(a, right, out=c)


def _triton_starter(ctx: Context, dtype: str, mnk: Shape) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Call]:
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
    return lambda a, b, c: kernel.call(config, dtype, a, b, c)


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
