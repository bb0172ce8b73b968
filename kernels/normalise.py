"""Probe ``normalise``: softmax and RMSNorm of rows on torch and Triton, as a share of memory bandwidth."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe

if TYPE_CHECKING:
    import torch

    Values = torch.Tensor

Call = Callable[[], object]
Starter = Callable[["Values", "Values", "list[Values]", int], Call]
"""From input, weights, all outputs and which of them: what computes that one."""

EPS = 1e-5
"""Added to the mean of squares, as LLaMA does."""
MOST_SETS = 512
INTERPRETED = 1 << 20
"""Most elements that are worth sending through the interpreter (a few seconds)."""
_LONGEST = 1 << 24
"""Columns up to which sums of ones are exact in float32."""
_BLOCK = 1 << 20
"""Elements (4 MiB of float32) that RMSNorm on a processor takes at a time, to stay in the cache."""


def parse_shape(text: str) -> tuple[int, int]:
    """``4096x8192``: rows × columns.  Raises `UsageError` with an example."""
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text, re.ASCII)
    if not match or int(match[2]) > _LONGEST:
        raise UsageError(f"not a shape: {text!r} (write rows x columns, at most {_LONGEST} columns: 4096x8192)")
    return int(match[1]), int(match[2])


def _needs(backend: str, op: str, dtype: str, shape: str) -> Needs:  # noqa: ARG001 (a case's needs get all its parameters)
    parse_shape(str(shape))
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=80, interpreter=True)
    return Needs(modules=("torch",), arch=80 if dtype == "bf16" else 0)


@probe(
    "normalise",
    needs=_needs,
    backend=("torch", "triton"),
    op=("softmax", "rmsnorm"),
    dtype=("fp32", "bf16", "fp16"),
    shape=("4096x4096", "8192x8192", "1024x131072"),
)
def normalise(ctx: Context, backend: str, op: str, dtype: str, shape: str) -> Work:
    """Softmax or RMSNorm of every row of a matrix, sums in float32.  shape: rows x columns.

    Bytes are the least that must move: input, output and weights once each.  torch's softmax writes to a given output; its
    RMSNorm is the fused kernel on a GPU, and on a processor, where there is none, calls over blocks that stay in the cache.
    """
    import torch

    from kernels import budget, buffers, products, rows as checks

    rows, columns = parse_shape(str(shape))
    start = _starter(ctx, backend, op, rows * columns)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    per_set = 2 * rows * columns * kind.itemsize
    buffers.require(per_set, ctx.device)

    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    base = torch.randn((checks.period(rows, columns), columns), generator=generator, device=ctx.device).to(kind)
    weight = (1 + 0.1 * torch.randn(columns, generator=generator, device=ctx.device)).to(kind)
    if backend == "torch" and ctx.kind == "cpu":
        some = torch.ones((rows, columns), dtype=kind)
        like = torch.empty_like(some)
        budget.refuse_hopeless(ctx, budget.rows_of(lambda n: start(some[:n], weight, [like[:n]], 0), rows, columns))
        del some, like
    sets, cache = buffers.rotation(ctx, per_set, MOST_SETS)
    x = buffers.stack(sets, rows, columns, kind, ctx.device)
    checks.repeat(base, x)
    out = buffers.stack(sets, rows, columns, kind, ctx.device)
    outputs = list(out)
    runs = [start(x[i], weight, outputs, i) for i in range(sets)]
    bounds = checks.Bounds.of(op, base, weight, dtype, EPS)

    def reset() -> None:
        checks.poison(out)
        if start is _rmsnorm_fused:  # makes its own outputs: those it made, and what it is likely given next
            for one in (*outputs, torch.empty_like(outputs[0])):
                checks.poison(one)

    def exact() -> None:
        marked, marked_weight, expected = checks.exact_rows(op, base, generator)
        checks.repeat(marked, x[:1])
        weight.copy_(marked_weight)
        reset()
        runs[0]()
        checks.check_exact(outputs[0], expected, slack=op == "rmsnorm" and dtype == "fp32")

    reset()
    moved = rows * columns * kind.itemsize
    read = moved + (weight.nbytes if op == "rmsnorm" else 0)
    work = Work(
        run=runs,
        reset=reset,
        check=lambda: bounds.check(outputs[work.last]),
        exact=exact,
        digest=lambda: products.digest(outputs[work.last]),
        workload=Workload(bytes_read=read, bytes_written=moved, dtype=dtype, bound="memory"),
        clock="device" if ctx.kind == "cuda" else "wall",
        cache=cache,
    )
    return work


# --------------------------------------------------------------------------------------------------------------------------
# what runs


def _starter(ctx: Context, backend: str, op: str, elements: int) -> Starter:
    """What makes a callable for one set.  Raises `Skip` where the case has no meaning."""
    if backend == "torch":
        if ctx.kind == "cpu":
            import torch

            ctx.set("threads", torch.get_num_threads())
        return _softmax if op == "softmax" else _rmsnorm_blocks if ctx.kind == "cpu" else _rmsnorm_fused
    if ctx.interpret:
        from kernels.triton import interpreter

        if elements > INTERPRETED:
            raise Skip(f"too large for the interpreter: rows × columns up to {INTERPRETED} fits")
        interpreter.install()
    elif ctx.kind == "cpu":
        raise Skip("Triton kernels run on a processor in the interpreter only")
    from kernels.triton import normalise as kernel

    def start(x: Values, weight: Values, outputs: list[Values], index: int) -> Call:
        ctx.set("config", str(kernel.configuration(x.shape[1])))
        return kernel.call(op, x, weight, outputs[index], EPS)

    return start


def _softmax(x: Values, _weight: Values, outputs: list[Values], index: int) -> Call:
    import torch

    out = outputs[index]
    return lambda: torch.softmax(x, -1, out=out)


def _rmsnorm_fused(x: Values, weight: Values, outputs: list[Values], index: int) -> Call:
    """torch's own, which always makes its output (on a GPU an allocation costs next to nothing)."""
    import torch

    normal, columns = torch.nn.functional.rms_norm, (x.shape[1],)

    def run() -> None:
        outputs[index] = normal(x, columns, weight, EPS)

    return run


def _rmsnorm_blocks(x: Values, weight: Values, outputs: list[Values], index: int) -> Call:
    """Blocks of rows in float32 that stay in the cache between one call and the next; one rounding on the way out."""
    import torch

    (rows, columns), out = x.shape, outputs[index]
    step = max(1, _BLOCK // columns)
    narrow, wide = x.dtype != torch.float32, torch.empty(columns)
    sums, scratch = torch.empty((step, 1)), torch.empty((step, columns) if narrow else (0,))
    blocks = [(x[at : at + step], out[at : at + step]) for at in range(0, rows, step)]

    def run() -> None:
        wide.copy_(weight)
        for source, target in blocks:
            if narrow:
                values = scratch[: len(source)].copy_(source)
                result = values
            else:
                values, result = source, target
            scale = sums[: len(source)]
            torch.linalg.vector_norm(values, dim=-1, keepdim=True, out=scale)
            scale.square_().div_(columns).add_(EPS).rsqrt_()
            torch.mul(values, scale, out=result).mul_(wide)
            if narrow:
                target.copy_(result)

    return run
