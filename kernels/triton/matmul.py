"""C = A · Bᵀ in Triton: the pointer kernel, and what launches it or that of `matmul_tma`."""

# ruff: noqa: N803  (capitals are what the field writes for sizes and compile-time constants)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.triton import matmul_tma
from kernels.triton.matmul_tiles import Config


@triton.jit
def matmul_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    a_scale_ptr,
    b_scale_ptr,
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROMOTE: tl.constexpr,
    FEW: tl.constexpr,
):
    """C (M×N) = A (M×K) · B (N×K) transposed; all row-major, so K is contiguous in both operands.  ``a_scale``, ``b_scale``: a
    factor of A and one of B, or None.

    One program computes one BM×BN tile.  Tiles are walked in groups of GROUP rows of tiles, which keeps the operands in the L2
    cache.  ``ACC``: type of the sums.  ``EVEN_K``: K is a multiple of BK, which spares the mask of the K loop.  ``PROMOTE``: the
    tensor core sums BK products by itself (fp8: in fewer bits than fp32 has), and those sums are added in ``ACC``.  ``FEW``: all
    rows of A are in one tile, and past the last nothing is read, since reading B is what takes the time.
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BM)
    per_group = GROUP * tl.cdiv(N, BN)
    first = pid // per_group * GROUP
    rows = min(tiles_m - first, GROUP)
    tile_m = first + pid % per_group % rows
    tile_n = pid % per_group // rows
    # Only the start of a tile needs 64 bits.  Past the edge the last row is read again: those sums are never stored.
    rm = tl.minimum(tl.arange(0, BM), M - 1 - tile_m * BM)
    rn = tl.minimum(tl.arange(0, BN), N - 1 - tile_n * BN)
    rk = tl.arange(0, BK)
    a = a_ptr + (tile_m * BM).to(tl.int64) * K + rm[:, None] * K + rk[None, :]
    b = b_ptr + (tile_n * BN).to(tl.int64) * K + rn[None, :] * K + rk[:, None]
    acc = tl.zeros((BM, BN), dtype=ACC)
    inside = (tl.arange(0, BM) < M)[:, None]
    for k in range(tl.cdiv(K, BK)):
        if EVEN_K:
            at = tl.load(a, mask=inside, other=0.0) if FEW else tl.load(a)
            bt = tl.load(b)
        else:
            within = rk[None, :] < K - k * BK
            at = tl.load(a, mask=inside & within if FEW else within, other=0.0)
            bt = tl.load(b, mask=rk[:, None] < K - k * BK, other=0.0)
        if PROMOTE:  # the last argument keeps the compiler from making the sum a part of the product again
            acc += tl.dot(at, bt, out_dtype=ACC, max_num_imprecise_acc=BK)
        else:
            acc = tl.dot(at, bt, acc, input_precision=PRECISION, out_dtype=ACC)
        a += BK
        b += BK
    if a_scale_ptr is not None:
        acc *= tl.load(a_scale_ptr) * tl.load(b_scale_ptr)
    cm = tl.arange(0, BM)[:, None]
    cn = tile_n * BN + tl.arange(0, BN)[None, :]
    c = c_ptr + (tile_m * BM).to(tl.int64) * N + cm * N + cn
    tl.store(c, acc.to(c_ptr.dtype.element_ty), mask=(tile_m * BM + cm < M) & (cn < N))


def architecture(device: str) -> str:
    """``sm_90`` or ``gfx942`` of a torch device."""
    properties = torch.cuda.get_device_properties(torch.device(device))
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def constants(config: Config, dtype: str, k: int) -> dict[str, Any]:
    """The compile-time arguments of `matmul_kernel`."""
    return {
        "BM": config.bm,
        "BN": config.bn,
        "BK": config.bk,
        "GROUP": config.group,
        "ACC": tl.int32 if dtype == "int8" else tl.float32,
        "PRECISION": "tf32" if dtype == "tf32" else "ieee",
        "EVEN_K": k % config.bk == 0,
        "PROMOTE": config.promote,
        "FEW": config.few,
    }


def call(
    config: Config | matmul_tma.Config,
    dtype: str,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Callable[[], object]:
    """A callable that computes c = a·bᵀ; a (m×k), b (n×k), c (m×n), all row-major without gaps.

    fp8: ``c`` is multiplied by both ``scales`` (float32 on the device, read when it runs).
    """
    if isinstance(config, matmul_tma.Config):
        return matmul_tma.call(config, dtype, a, b, c, scales)
    (m, k), n = a.shape, b.shape[0]
    launch = matmul_kernel[(triton.cdiv(m, config.bm) * triton.cdiv(n, config.bn),)]
    fixed = constants(config, dtype, k)
    factors = scales or (None, None)
    return lambda: launch(a, b, c, *factors, m, n, k, num_warps=config.warps, num_stages=config.stages, **fixed)
