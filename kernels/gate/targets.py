"""What is compiled for, what each target's multiprocessor holds, and which tensor-core instruction a dtype gets there."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU architecture.

    ``arch``: as the compiler names it, compute capability × 10 or gfx name.  ``lanes``: threads of a warp.  ``shared_bytes``:
    most shared memory (LDS) of a block.  ``thread_registers``: most registers of a thread.  ``register_file``: 32-bit registers
    that the warps of one block share, of all lanes; ``pools``: parts that the file and the warps are dealt into (the SIMDs of a
    compute unit).  ``tmem_columns``: tensor memory, 0 where there is none.  ``golden``: whether its facts are kept.
    """

    name: str
    backend: str
    arch: int | str
    lanes: int
    shared_bytes: int
    thread_registers: int
    register_file: int = 65536
    pools: int = 1
    tmem_columns: int = 0
    golden: bool = False


MOST_THREADS = 1024
"""Threads of a block, on every target (CUDA C++ Programming Guide, compute capabilities; HIP hardware implementation)."""
REGISTER_STEP = 8
"""Registers of a thread are dealt in eights on all targets (256 a warp on NVIDIA, 8 a lane from gfx90a on)."""


def _nvidia(arch: int, shared_kib: int, *, tmem: int = 0, golden: bool = False) -> Target:
    return Target(f"sm{arch}", "cuda", arch, 32, shared_kib << 10, 255, tmem_columns=tmem, golden=golden)


def _amd(arch: str, shared_kib: int, *, golden: bool = False) -> Target:
    """CDNA: four SIMDs in a compute unit, each with 512 registers (VGPR and AGPR together) for each of its 64 lanes."""
    return Target(arch, "hip", arch, 64, shared_kib << 10, 512, register_file=4 * 512 * 64, pools=4, golden=golden)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _nvidia(80, 163, golden=True),
        _nvidia(89, 99),
        _nvidia(90, 227, golden=True),
        _nvidia(100, 227, tmem=512, golden=True),
        _nvidia(120, 99),
        _amd("gfx942", 64, golden=True),
        _amd("gfx950", 160),
    )
}
"""By name.  Limits: CUDA C++ Programming Guide, technical specifications per compute capability (shared memory of a block,
registers of a thread and a block); PTX ISA, tensor memory (512 columns); AMD CDNA 3 and CDNA 4 ISA guides (LDS of 64 and 160 KiB,
registers)."""

_WARP = {
    "fp16": r"HMMA(?!.*(BF16|TF32))",
    "bf16": r"HMMA.*\.BF16",
    "tf32": r"HMMA.*\.TF32",
    "int8": r"IMMA",
    "fp8": r"QMMA",
}
"""``mma.sync``: one warp multiplies out of registers."""
_GROUP = {
    "fp16": r"HGMMA(?!.*(BF16|TF32))",
    "bf16": r"HGMMA.*\.BF16",
    "tf32": r"HGMMA.*\.TF32",
    "int8": r"IGMMA",
    "fp8": r"QGMMA",
}
"""``wgmma``: four warps multiply out of shared memory."""
_TENSOR_MEMORY = {
    "fp16": r"UTCHMMA.*kind::f16",
    "bf16": r"UTCHMMA.*kind::f16",
    "tf32": r"UTCHMMA.*kind::tf32",
    "int8": r"UTCIMMA|IMMA",  # triton 3.7 multiplies int8 warp by warp here, 3.9 in tensor memory
    "fp8": r"UTCQMMA",
}
"""``tcgen05``: one thread starts a product that ends in tensor memory; SASS does not tell the kinds apart, PTX does."""
_AMD = {
    "fp16": r"v_mfma_f32_\w+_f16",
    "bf16": r"v_mfma_f32_\w+_bf16",
    "tf32": r"v_mfma_f32_\w+_xf32",
    "int8": r"v_mfma_i32_\w+_i8",
    "fp8": r"v_mfma_f32_\w+_(fp8_fp8|f8f6f4)",
}


def tensor_instruction(target: Target, dtype: str, *, narrow: bool = False) -> re.Pattern[str]:
    """What one of a kernel's tensor-core instructions (as `kernels.gate.facts` names them) must match.

    ``dtype``: of the operands: fp16, bf16, tf32, int8, fp8.  ``narrow``: the tiles have too few rows for the instructions of
    warp groups and tensor memory, so ``mma.sync`` is right there too.  Where the hardware cannot multiply fp8 (sm80), or not
    the e4m3 of OCP (gfx942), operands are widened to fp16.  Raises ``KeyError`` for another dtype.
    """
    if dtype == "fp8" and target.name in {"sm80", "gfx942"}:
        dtype = "fp16"
    table = _AMD if target.backend == "hip" else {90: _GROUP, 100: _TENSOR_MEMORY}.get(int(target.arch), _WARP)
    best = table[dtype]
    return re.compile(f"{best}|{_WARP[dtype]}" if narrow and target.backend == "cuda" else best)
