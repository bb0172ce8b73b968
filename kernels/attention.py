"""Probe ``attention``: softmax(Q·Kᵀ/√D)·V forward, backward, and for one token over a cache, on torch's kernels and Triton."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe

if TYPE_CHECKING:
    import torch

    from kernels.attended import Shape, Tensors

Call = Callable[[], object]

BACKENDS = ("sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "triton")
MODES = ("forward", "backward", "decode")
MASKS = ("causal", "full")
HEAD_DIMS = (64, 128)
LONGEST = 65536
"""Keys that the exact pass can tell apart with 64 columns."""
MOST_SETS = 64
FIRST = 256
"""Queries of the first part that is tried of a case that may be too long."""
_EACH = 64
"""Queries of a head before there are more heads."""
_SCORES = 6
"""Matrices of fp32 scores that torch's unfused kernel holds at a time, at most: scores, mask, weights, and in backward their
derivatives."""


def parse_heads(text: str) -> tuple[int, int]:
    """``32x8``: 32 query heads, 8 heads of keys and values.  Raises `UsageError` with an example."""
    if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", text, re.ASCII):
        raise UsageError(f"not a number of heads: {text!r} (write QxKV: 32x32, or 32x8 for groups of four)")
    heads, kv_heads = (int(part) for part in text.split("x"))
    if heads % kv_heads:
        raise UsageError(f"heads {text}: query heads must be a multiple of key heads")
    return heads, kv_heads


def _needs(backend: str, mode: str, mask: str, dtype: str, head_dim: int, heads: str, seq: int, batch: int) -> Needs:
    parse_heads(str(heads))
    for axis, value, known in (
        ("backend", backend, BACKENDS),
        ("mode", mode, MODES),
        ("mask", mask, MASKS),
        ("dtype", dtype, ("bf16", "fp16")),
        ("head_dim", head_dim, HEAD_DIMS),
    ):
        if value not in known:
            raise UsageError(f"{axis} {value!r}: there are {', '.join(str(k) for k in known)}")
    for axis, value, most in (("seq", seq, LONGEST), ("batch", batch, 4096)):
        if not isinstance(value, int) or not 1 <= value <= most:
            raise UsageError(f"{axis} {value!r}: must be a whole number from 1 to {most}")
    if backend == "triton":
        return Needs(modules=("torch", "triton"), arch=80, interpreter=True, tunes=True)
    arch = {"sdpa_flash": 80, "sdpa_cudnn": 80, "sdpa_efficient": 80 if dtype == "bf16" else 50}.get(backend, 0)
    return Needs(modules=("torch",), arch=arch, device="cuda" if backend in {"sdpa_efficient", "sdpa_cudnn"} else "any")


@probe(
    "attention",
    needs=_needs,
    backend=BACKENDS,
    mode=MODES,
    mask=MASKS,
    dtype=("bf16", "fp16"),
    head_dim=HEAD_DIMS,
    heads=("32x8",),
    seq=(4096,),
    batch=(1,),
)
def attention(
    ctx: Context, backend: str, mode: str, mask: str, dtype: str, head_dim: int, heads: str, seq: int, batch: int
) -> Work:
    """Attention of seq queries over as many keys; decode: one query over a cache of seq keys.  heads: QxKV, grouped if not equal.

    FLOPs: 4·D for each pair of a query and a key that it sees (Q·Kᵀ and P·V; softmax not counted), in all query heads of the
    batch: seq·(seq + 1)/2 pairs a head if causal, seq² if full.  Backward counts 2.5 × that: five products for two
    (FlashAttention-2, section 4.1), whatever a kernel computes again.  Decode is bound by reading keys and values,
    2·kv heads·seq·D elements a sequence, and counts its queries and outputs too.  Random normal data.  On a processor the
    Triton kernels are checked in the interpreter and not timed; on a GPU each is the fastest of a few configurations.
    """
    import torch

    from kernels import attended, attended_exact, attention_live, buffers

    query_heads, kv_heads = parse_heads(str(heads))
    if mode == "decode" and mask == "causal":
        raise Skip("one query at the end of a cache sees all of it: mask=full is the same case")
    shape = attended.Shape(batch, query_heads, kv_heads, 1 if mode == "decode" else seq, seq, head_dim, mask == "causal")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    per_set, scratch = _bytes(shape, mode, backend)
    buffers.require(per_set + scratch, ctx.device)
    with ExitStack() as stack:
        start = attention_live.starter(ctx, stack, backend, mode, shape)
        if ctx.kind == "cpu" and not ctx.interpret:
            _refuse_hopeless(ctx, shape, kind, mode)
        keeps_scores = mode == "backward" and scratch > 0
        sets, cache = buffers.rotation(ctx, per_set, 1 if keeps_scores else MOST_SETS)
        generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
        first = _inputs(shape, kind, mode, ctx.device, generator)
        live = [start(first if i == 0 else tuple(x.clone() for x in first)) for i in range(sets)]
        attention_live.tune(ctx, live, shape, dtype)
        attention_live.attempt(live[0])
        keep = stack.pop_all()
    ctx.set("flops_counted", "2.5 x forward" if mode == "backward" else "4 D per visible pair")
    ctx.set("compulsory_bytes", per_set)

    def check() -> None:
        made = live[work.last].tensors()
        if mode == "backward":
            attended.check_gradients(shape, made, ctx.seed)
        else:
            attended.check_rows(shape, made, ctx.seed)

    def again() -> Tensors:
        live[0].restart()
        live[0].poison()
        live[0].run()
        return live[0].tensors()

    def exact() -> None:
        inputs = live[0].tensors()
        attended_exact.check_exact(shape, inputs, again, ctx.seed)
        if mode != "backward":
            attended_exact.check_counts(shape, inputs, again, ctx.seed)

    def digest() -> str:
        made = live[work.last].tensors()
        return attended.digest(made.grads or (made.o,))

    # torch's fused backward kernels add to dQ in no particular order.
    repeats = mode != "backward" or backend in {"triton", "sdpa_math"}
    work = Work(
        run=[one.run for one in live],
        reset=lambda: [one.poison() for one in live],
        check=check,
        exact=exact,
        digest=digest if repeats else None,
        close=keep.close,
        workload=_workload(shape, mode, dtype),
        clock="device" if ctx.kind == "cuda" else "wall",
        cache=cache,
    )
    return work


def _workload(shape: Shape, mode: str, dtype: str) -> Workload:
    if mode != "decode":
        flops = shape.flops * 5 // 2 if mode == "backward" else shape.flops
        return Workload(flops=flops, dtype=dtype, bound="compute")
    cache = 2 * shape.batch * shape.kv_heads * shape.keys * shape.head_dim * 2
    query = shape.batch * shape.heads * shape.head_dim * 2
    return Workload(flops=shape.flops, bytes_read=cache + query, bytes_written=query, dtype=dtype, bound="memory")


def _bytes(shape: Shape, mode: str, backend: str) -> tuple[int, int]:
    """Of one set of buffers, and of what torch's unfused kernel holds beside."""
    of_q = shape.batch * shape.heads * shape.queries * shape.head_dim * 2
    of_k = shape.batch * shape.kv_heads * shape.keys * shape.head_dim * 2
    scores = shape.batch * shape.heads * shape.queries * shape.keys * 4
    # backward: Q, O, dO, dQ and lse, delta; K, V, dK, dV
    per_set = 4 * of_q + 4 * of_k + of_q // 8 if mode == "backward" else 2 * of_q + 2 * of_k
    return per_set, _SCORES * scores if backend == "sdpa_math" else 0


def _inputs(
    shape: Shape, kind: torch.dtype, mode: str, device: str, generator: torch.Generator | None
) -> tuple[torch.Tensor, ...]:
    """Q, K, V, and dO for a backward pass: random normal, or ones without a generator."""
    import torch

    of_q = (shape.batch, shape.heads, shape.queries, shape.head_dim)
    of_k = (shape.batch, shape.kv_heads, shape.keys, shape.head_dim)
    sizes = (of_q, of_k, of_k, of_q) if mode == "backward" else (of_q, of_k, of_k)
    made = [torch.ones(size, dtype=kind, device=device) for size in sizes]
    if generator:
        for x in made:
            x.normal_(generator=generator)
    return tuple(made)


# --------------------------------------------------------------------------------------------------------------------------
# what is not worth starting


def _refuse_hopeless(ctx: Context, shape: Shape, kind: torch.dtype, mode: str) -> None:
    """Raises `Skip` if one call would take far longer than the budget, by ever larger parts of it; or if torch refuses."""
    from kernels import attention_live, budget

    def start(piece: Shape) -> Call:
        live = attention_live.Torch(piece, mode, _inputs(piece, kind, mode, ctx.device, None))
        attention_live.attempt(live)
        return live.run

    whole = shape.batch * shape.heads * shape.pairs
    parts = ((piece.heads * piece.pairs / whole, functools.partial(start, piece)) for piece in pieces(shape))
    budget.refuse_hopeless(ctx, parts)


def pieces(shape: Shape) -> Iterator[Shape]:
    """`FIRST` queries or as many as there are, four times as many, and so on to all: first of more heads, then more of each.

    All see all keys, and whole groups of heads stay together.
    """
    from kernels.attended import Shape

    rows, some = shape.batch * shape.heads * shape.queries, FIRST
    while True:
        groups = max(1, min(shape.batch * shape.kv_heads, some // (min(_EACH, shape.queries) * shape.group)))
        heads = groups * shape.group
        queries = max(1, min(shape.queries, some // heads))
        yield Shape(1, heads, groups, queries, shape.keys, shape.head_dim, causal=False)
        if heads * queries >= rows or some >= rows:
            return
        some *= 4
