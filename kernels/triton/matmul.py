"""C = A · Bᵀ in Triton: one pointer kernel, and the configuration each architecture gets."""

# ruff: noqa: N803  (capitals are what the field writes for sizes and compile-time constants)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from clustergauge.probe import Skip
from kernels.triton import matmul_tma


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
):
    """C (M×N) = A (M×K) · B (N×K) transposed; all row-major, so K is contiguous in both operands.  ``a_scale``, ``b_scale``: a
    factor of A and one of B, or None.

    One program computes one BM×BN tile.  Tiles are walked in groups of GROUP rows of tiles, which keeps the operands in the L2
    cache.  ``ACC``: type of the sums.  ``EVEN_K``: K is a multiple of BK, which spares the mask of the K loop.  ``PROMOTE``: the
    tensor core sums BK products by itself (fp8: in fewer bits than fp32 has), and those sums are added in ``ACC``.
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
    for k in range(tl.cdiv(K, BK)):
        if EVEN_K:
            at = tl.load(a)
            bt = tl.load(b)
        else:
            at = tl.load(a, mask=rk[None, :] < K - k * BK, other=0.0)
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


@dataclass(frozen=True)
class Config:
    """Tile of the output (bm × bn), step along K (bk), and how a program is run; ``promote`` as in `matmul_kernel`."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8
    promote: bool = False

    def __str__(self) -> str:
        promoted = f", sums promoted every {self.bk}" if self.promote else ""
        return f"{self.bm}x{self.bn}x{self.bk}, {self.warps} warps, {self.stages} stages, groups of {self.group}{promoted}"


_SMALL = Config(64, 64, 32, 4, 2)
_AMPERE = {
    "fp16": Config(128, 256, 64, 8, 3),
    "bf16": Config(128, 256, 64, 8, 3),
    "tf32": Config(128, 256, 32, 8, 3),
    "int8": Config(128, 128, 128, 8, 3),
    "fp32": Config(128, 128, 16, 8, 3),
}
"""Fits 99 KiB of shared memory, so Ada and consumer Blackwell too.  int8 in tiles of 128×256 spills."""
_ADA = {"fp8": Config(128, 128, 128, 8, 3, promote=True), "fp8_fast": Config(128, 256, 128, 8, 3)}
"""fp8 with promoted sums holds two tiles of sums: 128×256 spills."""
_CONSUMER_BLACKWELL = {"fp8": _ADA["fp8_fast"], "fp8_fast": _ADA["fp8_fast"]}
_BY_POINTERS = {"int8": Config(128, 256, 128, 8, 3), "fp32": Config(128, 128, 16, 8, 3)}
"""What `matmul_tma` has not.  What it has comes here when rows start anywhere, and small."""
_HOPPER = dict.fromkeys(matmul_tma.ITEMSIZE, _SMALL) | {"fp8": replace(_SMALL, promote=True)} | _BY_POINTERS
_BLACKWELL = dict.fromkeys(matmul_tma.ITEMSIZE, _SMALL) | _BY_POINTERS
_CDNA3 = {
    "fp16": Config(128, 256, 64, 8, 2),
    "bf16": Config(128, 256, 64, 8, 2),
    "tf32": Config(128, 256, 32, 8, 2),
    "int8": Config(128, 128, 128, 8, 2),
    "fp32": Config(128, 128, 16, 8, 2),
}
"""Three stages do not fit the 64 KiB of local memory.  Its e4m3 is another format (fnuz) than the OCP's that `fp8` means."""
_CDNA4 = dict.fromkeys(("fp8", "fp8_fast"), Config(128, 256, 128, 8, 2)) | {k: v for k, v in _CDNA3.items() if k != "tf32"}
DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp8_fast", "int8")
CONFIGS: dict[str, dict[str, Config]] = {
    "interpreter": dict.fromkeys(DTYPES, _SMALL) | {"fp8": replace(_SMALL, promote=True)},
    "sm_8": _AMPERE,
    "sm_89": _AMPERE | _ADA,
    "sm_9": _HOPPER,
    "sm_10": _BLACKWELL,
    "sm_12": _AMPERE | _CONSUMER_BLACKWELL,
    "gfx942": _CDNA3,
    "gfx950": _CDNA4,
}
"""By architecture (for NVIDIA the capability, or its major version) and dtype, where N and K are multiples of 16; all compile
without spilling registers (`kernels.gate`).

fp8 is e4m3 (OCP) with bfloat16 output and two scales.  The tensor cores of Ada and Hopper add its products with fewer bits than
fp32 has: ``fp8`` promotes sums to fp32 every 64 or 128 products, as cuBLAS does "periodically" without fast accumulation, and
``fp8_fast`` never.  On other devices that flag of cuBLAS has no effect either (cuBLAS documentation,
CUBLASLT_MATMUL_DESC_FAST_ACCUM), and both run the same kernel.
"""
_WARP_TILES = {
    "fp16": (Config(128, 128, 32, 4, 4),),
    "bf16": (Config(128, 128, 32, 4, 4),),
    "tf32": (Config(128, 128, 32, 8, 3),),
    "int8": (Config(128, 128, 64, 8, 4),),
    "fp32": (Config(128, 64, 16, 4, 3),),
}
_A100 = _WARP_TILES | dict.fromkeys(("fp16", "bf16"), (Config(128, 128, 32, 4, 4), Config(128, 256, 32, 8, 4)))
_SQUARE = {"int8": (Config(128, 128, 128, 8, 4),), "fp32": _WARP_TILES["fp32"]}
_TALL = dict.fromkeys(("fp16", "bf16"), (Config(256, 128, 64, 8, 2),))
OTHERS: dict[str, dict[str, tuple[Config, ...]]] = {
    "sm_8": _WARP_TILES,
    "sm_80": _A100,
    "sm_9": _SQUARE,
    "sm_10": _SQUARE,
    "sm_12": _WARP_TILES,
    "gfx942": _TALL,
    "gfx950": _TALL,
}
"""What may be faster than `CONFIGS`, by architecture and dtype: a launch tries them (`candidates`).  They compile as well."""


def architecture(device: str) -> str:
    """``sm_90`` or ``gfx942`` of a torch device."""
    properties = torch.cuda.get_device_properties(torch.device(device))
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def configuration(arch: str, dtype: str, n: int, k: int) -> Config:
    """The configuration for an architecture, columns of the output and length of the sums.  Raises `Skip` if there is none.

    Where K (N) is no multiple of 16, rows of the operands (the output) start anywhere, loads (stores) are narrow, and large tiles
    would spill registers.
    """
    family = arch if arch in CONFIGS or not arch.startswith("sm_") else arch[:-1]
    config = CONFIGS.get(family, {}).get(dtype)
    if config is None:
        raise Skip(f"the Triton matmul has no configuration for {dtype} on {arch}")
    return replace(_SMALL, promote=config.promote) if n % 16 or k % 16 else config


def candidates(arch: str, dtype: str, n: int, k: int) -> tuple[Config | matmul_tma.Config, ...]:
    """What may run a product, the one to be had without trying first: tiles moved by the copy engine where there is one and it
    can (`matmul_tma`), else by pointers.

    Raises `Skip` if there is neither.
    """
    if by_copies := matmul_tma.candidates(arch, dtype, n, k):
        return by_copies
    config = configuration(arch, dtype, n, k)
    large = n % 16 == 0 and k % 16 == 0
    return config, *(OTHERS.get(arch if arch in OTHERS else arch[:-1], {}).get(dtype, ()) if large else ())


def chosen(arch: str, dtype: str, n: int, k: int) -> Config | matmul_tma.Config:
    """The first of the `candidates`."""
    return candidates(arch, dtype, n, k)[0]


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
