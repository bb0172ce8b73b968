"""C = A · Bᵀ in Triton for Hopper and Blackwell: the copy engine (TMA) moves tiles, and programs stay for many of them.

An architecture and dtype have a few configurations, of which a case chooses (`clustergauge.tuning`).
"""

# ruff: noqa: N803  (capitals are what the field writes for sizes and compile-time constants)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from kernels.gate.entry import Entry


@triton.jit
def matmul_kernel(
    a_src,
    b_src,
    c_dst,
    a_scale_ptr,
    b_scale_ptr,
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTE: tl.constexpr,
    WS: tl.constexpr,
):
    """C (M×N) = A (M×K) · B (N×K) transposed, through descriptors in blocks of BM×BK, BN×BK and BM×(BN/PARTS).
    ``a_scale``, ``b_scale``: a factor of A and one of B, or None.

    Every program computes each tile whose number is its own plus a multiple of their count, and the loads of the next tile start
    while this one is stored.  Tiles are walked as in `kernels.triton.matmul`.  Past the edges, loads give zero and nothing is
    stored.  ``PARTS``: a tile is stored in 1 or 2 parts; fewer bytes of shared memory hold one.  ``PROMOTE``: as in
    `kernels.triton.matmul`.  ``WS``: warps of their own load, multiply and store (Blackwell).
    """
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    scale = 1.0
    if a_scale_ptr is not None:
        scale = tl.load(a_scale_ptr) * tl.load(b_scale_ptr)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True, warp_specialize=WS):
        first = tile // (GROUP * tiles_n) * GROUP
        rows = min(tiles_m - first, GROUP)
        row = (first + tile % (GROUP * tiles_n) % rows) * BM
        column = tile % (GROUP * tiles_n) // rows * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(tl.cdiv(K, BK)):
            at = a_src.load([row, k * BK])
            bt = b_src.load([column, k * BK])
            if PROMOTE:  # by Hopper's wgmma alone, and every BK: with 0 (never imprecise) it would multiply in fp16
                acc = tl.dot(at, tl.trans(bt), acc, max_num_imprecise_acc=BK)
            else:  # Hopper's default is to promote never
                acc = tl.dot(at, tl.trans(bt), acc, input_precision=PRECISION)
        if PARTS == 1:
            c_dst.store([row, column], (acc * scale).to(c_dst.dtype))
        else:
            left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
            c_dst.store([row, column], (left * scale).to(c_dst.dtype))
            c_dst.store([row, column + BN // 2], (right * scale).to(c_dst.dtype))


@dataclass(frozen=True)
class Config:
    """Tile of the output (bm × bn), step along K (bk), and how a program is run.

    ``parts``, ``ws`` and ``promote`` as in `matmul_kernel`.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    parts: int
    ws: bool = False
    group: int = 8
    promote: bool = False

    def __str__(self) -> str:
        tile = f"{self.bm}x{self.bn}x{self.bk}, {self.warps} warps, {self.stages} stages, groups of {self.group}"
        stored = f", stored in {self.parts} parts" if self.parts > 1 else ""
        promoted = f", sums promoted every {self.bk}" if self.promote else ""
        return f"{tile}, persistent by TMA{stored}{', warp-specialised' if self.ws else ''}{promoted}"


_HOPPER = {
    "fp16": Config(128, 256, 64, 8, 3, 1),
    "bf16": Config(128, 256, 64, 8, 3, 1),
    "tf32": Config(128, 256, 32, 8, 3, 2),
    "fp8": Config(128, 128, 128, 8, 4, 1, promote=True),
    "fp8_fast": Config(128, 256, 128, 8, 4, 2),
}
_BLACKWELL = {
    "fp16": Config(128, 256, 64, 8, 4, 2, ws=True),
    "bf16": Config(128, 256, 64, 8, 4, 2, ws=True),
    "tf32": Config(128, 256, 32, 8, 3, 2, ws=True),
    "fp8": Config(128, 256, 128, 8, 4, 2, ws=True),
    "fp8_fast": Config(128, 256, 128, 8, 4, 2, ws=True),
}
CONFIGS: dict[str, dict[str, Config]] = {"sm_9": _HOPPER, "sm_10": _BLACKWELL}
"""By architecture (major version of the capability) and dtype; all compile without spilling registers (`gate_entries`).

fp8 and fp8_fast as in `kernels.triton.matmul`; Hopper's fp8 with promoted sums holds two tiles of them, and 128×256 spills.
Descriptors on architectures without a copy engine would become narrow loads; consumer Blackwell has one, but not the memory for
these tiles.
"""
_HOPPER_HALVES = (Config(128, 256, 64, 8, 4, 2), Config(256, 128, 64, 8, 3, 1), Config(128, 128, 64, 8, 4, 1))
_BLACKWELL_HALVES = (Config(128, 128, 64, 8, 4, 1, ws=True),)
OTHERS: dict[str, dict[str, tuple[Config, ...]]] = {
    "sm_9": {
        "fp16": _HOPPER_HALVES,
        "bf16": _HOPPER_HALVES,
        "tf32": (Config(128, 128, 32, 8, 4, 1),),
        "fp8_fast": (Config(256, 128, 128, 8, 4, 2), Config(128, 128, 128, 8, 4, 1)),
    },
    "sm_10": {
        "fp16": _BLACKWELL_HALVES,
        "bf16": _BLACKWELL_HALVES,
        "tf32": (Config(128, 128, 32, 8, 4, 1, ws=True),),
        "fp8": (Config(128, 128, 128, 8, 4, 1, ws=True),),
        "fp8_fast": (Config(128, 128, 128, 8, 4, 1, ws=True),),
    },
}
"""What may be faster: a launch tries them (`candidates`).  They compile as well."""
ITEMSIZE = {"fp16": (2, 2), "bf16": (2, 2), "tf32": (4, 4), "fp8": (1, 2), "fp8_fast": (1, 2)}
"""Bytes of an element of the operands, and of the output."""
ALIGNED = 16
"""Every row must start at a multiple of so many bytes (CUDA Driver API, cuTensorMapEncodeTiled, globalStrides)."""
INTERPRETED_PROGRAMS = 4


def configuration(arch: str, dtype: str, n: int, k: int) -> Config | None:
    """None where pointers must do: no copy engine, a dtype without a configuration, or rows that start anywhere."""
    config = CONFIGS.get(arch[:-1], {}).get(dtype)
    if config is None:
        return None
    operand, output = ITEMSIZE[dtype]
    return None if k * operand % ALIGNED or n * output % ALIGNED else config


def candidates(arch: str, dtype: str, n: int, k: int) -> tuple[Config, ...]:
    """`configuration` and what may be faster; nothing where pointers must do."""
    config = configuration(arch, dtype, n, k)
    return (config, *OTHERS[arch[:-1]].get(dtype, ())) if config else ()


def call(
    config: Config,
    dtype: str,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Callable[[], object]:
    """A callable that computes c = a·bᵀ; a (m×k), b (n×k), c (m×n), all row-major without gaps, every row `ALIGNED`.

    ``scales`` as in `kernels.triton.matmul.call`.  One program for each multiprocessor, `INTERPRETED_PROGRAMS` in the
    interpreter.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    (m, k), n = a.shape, b.shape[0]
    units = torch.cuda.get_device_properties(a.device).multi_processor_count if a.is_cuda else INTERPRETED_PROGRAMS
    launch = matmul_kernel[(min(units, triton.cdiv(m, config.bm) * triton.cdiv(n, config.bn)),)]
    blocks = (config.bm, config.bk), (config.bn, config.bk), (config.bm, config.bn // config.parts)
    tiles = [TensorDescriptor(x, list(x.shape), [x.shape[1], 1], list(block)) for x, block in zip((a, b, c), blocks, strict=True)]
    fixed = constants(config, dtype)
    factors = scales or (None, None)
    return lambda: launch(*tiles, *factors, m, n, k, num_warps=config.warps, num_stages=config.stages, **fixed)


def constants(config: Config, dtype: str) -> dict[str, Any]:
    """The compile-time arguments of `matmul_kernel`."""
    return {
        "BM": config.bm,
        "BN": config.bn,
        "BK": config.bk,
        "GROUP": config.group,
        "PARTS": config.parts,
        "PRECISION": "tf32" if dtype == "tf32" else "ieee",
        "PROMOTE": config.promote,
        "WS": config.ws,
    }


def gate_entries() -> list[Entry]:
    """For the code gate: every configuration, with edges that tiles divide and with the raggedest that the copies allow."""
    from kernels.gate.entry import named
    from kernels.gate.targets import TARGETS

    found: list[Entry] = []
    for target in TARGETS:
        for dtype, (operand, output) in ITEMSIZE.items():
            for variant, m, n, k in (
                (dtype, 8192, 8192, 8192),
                (f"{dtype}, ragged", 8191, 8192 + ALIGNED // output, 8192 + ALIGNED // operand),
            ):
                for number, config in enumerate(candidates(target.replace("sm", "sm_"), dtype, n, k), 1):
                    found.append(_entry(target, dtype, named(variant, number), config, (m, n, k)))
    return found


def _entry(target: str, dtype: str, variant: str, config: Config, shape: tuple[int, int, int]) -> Entry:
    from kernels.gate.entry import SCALE, Descriptor, Entry, Expects

    kind, scale = dtype.removesuffix("_fast"), SCALE if dtype.startswith("fp8") else None
    operand, output = {"tf32": ("fp32", "fp32"), "fp8": ("fp8", "bf16")}.get(kind, (kind, kind))
    m, n, k = shape
    return Entry(
        kernel="matmul_tma",
        variant=variant,
        function=matmul_kernel,
        arguments={
            "a_src": Descriptor(operand, (config.bm, config.bk), (m, k)),
            "b_src": Descriptor(operand, (config.bn, config.bk), (n, k)),
            "c_dst": Descriptor(output, (config.bm, config.bn // config.parts), (m, n)),
            "a_scale_ptr": scale,
            "b_scale_ptr": scale,
            "M": m,
            "N": n,
            "K": k,
        },
        constants=constants(config, dtype),
        warps=config.warps,
        stages=config.stages,
        targets=(target,),
        expects=Expects(kind, wide=frozenset({"loads", "stores"}), bulk=True, scalars=2 * SCALE.bytes if scale else 0),
        config=str(config),
    )
