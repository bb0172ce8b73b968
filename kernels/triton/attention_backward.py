"""Attention backward in Triton: delta, then dK and dV by keys and dQ by queries.  No atomics: bits repeat."""

# ruff: noqa: N803, SIM108  (capitals are what the field writes for sizes; the compiler drops the branch not taken)
from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton.attention_forward import load_tile, store_tile, visible


@triton.jit
def delta_kernel(o_ptr, do_ptr, delta_ptr, rows, D: tl.constexpr, BM: tl.constexpr):
    """delta = Σ O·dO of each row, float32: what the softmax's own derivative subtracts."""
    start = tl.program_id(0) * BM
    row = start + tl.arange(0, BM)
    o = load_tile(o_ptr, 0, tl.cast(start, tl.int64), rows, BM, D, False, True).to(tl.float32)
    do = load_tile(do_ptr, 0, tl.cast(start, tl.int64), rows, BM, D, False, True).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(o * do, 1), mask=row < rows)


@triton.jit
def backward_keys_kernel(
    q_src,
    k_src,
    v_src,
    do_src,
    lse_ptr,
    delta_ptr,
    dk_dst,
    dv_dst,
    scale,
    sm_scale,
    M,
    N,
    G,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN_M: tl.constexpr,
    TMA: tl.constexpr,
):
    """dK and dV of one tile of BN keys of one head, summed over the G query heads that share it.  Scores are held transposed.

    ``scale``: 1/√D · log₂e, ``sm_scale``: 1/√D, ``lse`` as the forward kernel left it.  ``EVEN_M``: M is a multiple of BM.
    """
    tile = tl.program_id(0)
    row = tl.program_id(1)
    keys = tile * BN + tl.arange(0, BN)
    k = load_tile(k_src, row, tile * BN, N, BN, D, TMA, True)
    v = load_tile(v_src, row, tile * BN, N, BN, D, TMA, True)
    dk = tl.zeros((BN, D), tl.float32)
    dv = tl.zeros((BN, D), tl.float32)
    first = 0
    if CAUSAL:  # before it no query sees a key of the tile
        first = max(tile * BN - (N - M), 0) // BM * BM
    steps = tl.cdiv(M - first, BM)
    for step in range(G * steps):  # one loop over heads and queries: the sums stay where they are from first to last
        head = row * G + step // steps
        start = first + step % steps * BM
        rows = tl.cast(head, tl.int64) * M + start + tl.arange(0, BM)
        queries = start + tl.arange(0, BM)
        q = load_tile(q_src, head, start, M, BM, D, TMA, not EVEN_M)
        if EVEN_M:
            lse = tl.load(lse_ptr + rows)
        else:
            lse = tl.load(lse_ptr + rows, mask=queries < M, other=float("inf"))
        p = tl.math.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        if CAUSAL:
            p = tl.where(keys[:, None] <= queries[None, :] + (N - M), p, 0.0)
        do = load_tile(do_src, head, start, M, BM, D, TMA, not EVEN_M)
        dv = tl.dot(p.to(do.dtype), do, dv)
        if EVEN_M:
            delta = tl.load(delta_ptr + rows)
        else:
            delta = tl.load(delta_ptr + rows, mask=queries < M, other=0.0)
        ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    store_tile(dv, dv_dst, row, tile * BN, N, BN, D, TMA)
    store_tile(dk * sm_scale, dk_dst, row, tile * BN, N, BN, D, TMA)


@triton.jit
def _query_steps(
    dq,
    q,
    do,
    lse,
    delta,
    k_src,
    v_src,
    row,
    scale,
    last,
    low,
    high,
    N,
    D: tl.constexpr,
    BN: tl.constexpr,
    MASK: tl.constexpr,
    TMA: tl.constexpr,
):
    """Adds what the keys [low, high) give to dQ of a tile of queries."""
    for start in range(low, high, BN):
        k = load_tile(k_src, row, start, N, BN, D, TMA, MASK)
        v = load_tile(v_src, row, start, N, BN, D, TMA, MASK)
        p = tl.math.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None])
        if MASK:
            keys = start + tl.arange(0, BN)
            p = tl.where(keys[None, :] <= last[:, None], p, 0.0)
        ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    return dq


@triton.jit
def backward_queries_kernel(
    q_src,
    k_src,
    v_src,
    do_src,
    lse_ptr,
    delta_ptr,
    dq_dst,
    scale,
    sm_scale,
    M,
    N,
    G,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CAUSAL: tl.constexpr,
    TMA: tl.constexpr,
):
    """dQ of one tile of BM queries of one head.  Arguments as `backward_keys_kernel`."""
    tile = tl.program_id(0)
    if CAUSAL:  # the longest tiles first
        tile = tl.num_programs(0) - 1 - tile
    head = tl.program_id(1)
    row = head // G
    queries = tile * BM + tl.arange(0, BM)
    q = load_tile(q_src, head, tile * BM, M, BM, D, TMA, True)
    do = load_tile(do_src, head, tile * BM, M, BM, D, TMA, True)
    rows = tl.cast(head, tl.int64) * M + queries
    lse = tl.load(lse_ptr + rows, mask=queries < M, other=float("inf"))
    delta = tl.load(delta_ptr + rows, mask=queries < M, other=0.0)
    last, full, end = visible(tile, M, N, BM, BN, CAUSAL)
    dq = tl.zeros((BM, D), tl.float32)
    dq = _query_steps(dq, q, do, lse, delta, k_src, v_src, row, scale, last, 0, full, N, D, BN, False, TMA)
    dq = _query_steps(dq, q, do, lse, delta, k_src, v_src, row, scale, last, full, end, N, D, BN, True, TMA)
    store_tile(dq * sm_scale, dq_dst, head, tile * BM, M, BM, D, TMA)
