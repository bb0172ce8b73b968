"""Attention of one new token over a cache of keys and values in Triton: split over the cache, then combined."""

# ruff: noqa: N803  (capitals are what the field writes for sizes and compile-time constants)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    part_ptr,
    lse_ptr,
    scale,
    N,
    G,
    per_split,
    D: tl.constexpr,
    BG: tl.constexpr,
    BN: tl.constexpr,
):
    """One split of the cache for the G query heads that share a head of K and V (heads×N×D), so that it is read once.

    BG ≥ G rows fill the tensor core's tile.  Split s sees the keys from s·per_split on (a multiple of BN).  ``part``: its
    normalised output in float32 (heads of K × splits × G × D); ``lse``: log₂ of its sum (… × G), −∞ for a split without keys.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    low = split * per_split
    high = min(low + per_split, N)
    group = tl.arange(0, BG)
    columns = tl.arange(0, D)
    q = tl.load(q_ptr + (row * G + group[:, None]) * D + columns[None, :], mask=group[:, None] < G, other=0.0)
    peak = tl.full((BG,), -float("inf"), tl.float32)
    total = tl.zeros((BG,), tl.float32)
    acc = tl.zeros((BG, D), tl.float32)
    at = tl.arange(0, BN)[:, None] * D + columns[None, :]
    k_base = k_ptr + row * N * D
    v_base = v_ptr + row * N * D
    for start in range(low, high, BN):
        keys = start + tl.arange(0, BN)
        offset = tl.cast(start, tl.int64) * D
        k = tl.load(k_base + offset + at, mask=keys[:, None] < high, other=0.0)
        s = tl.where(keys[None, :] < high, tl.dot(q, tl.trans(k)), -float("inf"))
        higher = tl.maximum(peak, tl.max(s, 1) * scale)
        p = tl.math.exp2(s * scale - higher[:, None])
        shrink = tl.math.exp2(peak - higher)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_base + offset + at, mask=keys[:, None] < high, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        peak = higher
    out = (row * tl.num_programs(1) + split) * G + group
    seen = tl.where(total > 0, total, 1.0)
    tl.store(lse_ptr + out, peak + tl.math.log2(seen), mask=group < G)
    tl.store(part_ptr + out[:, None] * D + columns[None, :], acc / seen[:, None], mask=group[:, None] < G)


@triton.jit
def combine_kernel(part_ptr, lse_ptr, o_ptr, G, SPLITS: tl.constexpr, D: tl.constexpr):
    """One query head: the outputs of the splits, weighted by their share of the whole sum."""
    row = tl.program_id(0).to(tl.int64)
    member = tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    columns = tl.arange(0, D)
    at = (row * SPLITS + splits) * G + member
    lse = tl.load(lse_ptr + at)
    weight = tl.math.exp2(lse - tl.max(lse, 0))
    part = tl.load(part_ptr + at[:, None] * D + columns[None, :])
    out = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(o_ptr + (row * G + member) * D + columns, out.to(o_ptr.dtype.element_ty))
