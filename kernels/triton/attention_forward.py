"""Attention forward in Triton, with tiles moved by pointers (cp.async) or by tensor descriptors (TMA)."""

# ruff: noqa: N803  (capitals are what the field writes for sizes and compile-time constants)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(source, head, start, length, ROWS: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, CLAMP: tl.constexpr):
    """ROWS×D elements of heads×length×D from row ``start`` of a head.

    ``source``: a pointer, or with ``TMA`` a descriptor in blocks of 1×ROWS×D.  Rows past the end of the head are zero with
    ``TMA``, the last row again with ``CLAMP``, and must not be asked for otherwise.  (Masks would cost AMD its wide loads.)
    """
    if TMA:
        tile = source.load([head, start, 0]).reshape(ROWS, D)
    else:
        rows = start + tl.arange(0, ROWS)
        if CLAMP:
            rows = tl.minimum(rows, length - 1)
        at = tl.cast(head, tl.int64) * length * D + rows[:, None] * D + tl.arange(0, D)[None, :]
        tile = tl.load(source + at)
    return tile


@triton.jit
def store_tile(value, target, head, start, length, ROWS: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):
    """The inverse of `load_tile`, rounded to the target's type; nothing is written past the end of the head."""
    if TMA:
        target.store([head, start, 0], value.to(target.dtype).reshape(1, ROWS, D))
    else:
        rows = start + tl.arange(0, ROWS)[:, None]
        tile = target + tl.cast(head, tl.int64) * length * D + rows * D + tl.arange(0, D)[None, :]
        tl.store(tile, value.to(target.dtype.element_ty), mask=rows < length)


@triton.jit
def visible(tile, M, N, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr):
    """The last key that each query of a tile sees, and: keys [0, full) are seen by all of them, [full, end) by some.

    Causal: query i sees the keys up to i + N − M, so that the last query sees all (M ≤ N).  ``full`` is a multiple of BN.
    """
    last = tl.zeros((BM,), tl.int32) + (N - 1)
    full = N
    end = N
    if CAUSAL:
        last = tl.minimum(tile * BM + tl.arange(0, BM) + (N - M), N - 1)
        full = min(tile * BM + N - M + 1, N)
        end = min((tile + 1) * BM + N - M, N)
    return last, full // BN * BN, end


@triton.jit
def _steps(
    q,
    k_src,
    v_src,
    row,
    scale,
    peak,
    total,
    acc,
    last,
    low,
    high,
    N,
    D: tl.constexpr,
    BN: tl.constexpr,
    MASK: tl.constexpr,
    TMA: tl.constexpr,
    WS: tl.constexpr,
):
    """The online softmax in base 2 over the keys [low, high): the highest score so far, the sum, and the weighted values."""
    for start in tl.range(low, high, BN, warp_specialize=WS):
        k = load_tile(k_src, row, start, N, BN, D, TMA, MASK)
        s = tl.dot(q, tl.trans(k))
        if MASK:
            keys = start + tl.arange(0, BN)
            s = tl.where(keys[None, :] <= last[:, None], s, -float("inf"))
        higher = tl.maximum(peak, tl.max(s, 1) * scale)
        p = tl.math.exp2(s * scale - higher[:, None])
        shrink = tl.math.exp2(peak - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        v = load_tile(v_src, row, start, N, BN, D, TMA, MASK)
        acc = tl.dot(p.to(v.dtype), v, acc)
        peak = higher
    return peak, total, acc


@triton.jit
def forward_kernel(
    q_src,
    k_src,
    v_src,
    o_dst,
    lse_ptr,
    scale,
    M,
    N,
    G,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
    WS: tl.constexpr,
):
    """O (heads×M×D) = softmax(Q·Kᵀ)·V for one tile of BM queries of one head; G query heads share one head of K and V (…×N×D).

    ``scale``: 1/√D · log₂e.  ``lse``: log₂ of the sum of exp2 of each row's scaled scores, float32 (heads×M).
    ``WS``: warps of their own load, multiply and take exponents (Blackwell, with ``TMA``).
    """
    tile = tl.program_id(0)
    if CAUSAL:  # the longest tiles first
        tile = tl.num_programs(0) - 1 - tile
    head = tl.program_id(1)
    row = head // G
    q = load_tile(q_src, head, tile * BM, M, BM, D, TMA, True)
    peak = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    last, full, end = visible(tile, M, N, BM, BN, CAUSAL)
    if CAUSAL and WS:  # two specialised loops would spill registers: one, masked throughout
        full = 0
    else:
        peak, total, acc = _steps(q, k_src, v_src, row, scale, peak, total, acc, last, 0, full, N, D, BN, False, TMA, WS)
    peak, total, acc = _steps(q, k_src, v_src, row, scale, peak, total, acc, last, full, end, N, D, BN, True, TMA, WS)
    queries = tile * BM + tl.arange(0, BM)
    tl.store(lse_ptr + tl.cast(head, tl.int64) * M + queries, peak + tl.math.log2(total), mask=queries < M)
    store_tile(acc / total[:, None], o_dst, head, tile * BM, M, BM, D, TMA)
