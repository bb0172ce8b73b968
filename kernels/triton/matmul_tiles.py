"""Products in Triton: the tiles each architecture gets, for many rows of the output and for few.

Configurations compile without spilling registers (`kernels.gate.entries`); where there are several a case chooses
(`clustergauge.tuning`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clustergauge.probe import Skip
from kernels.shapes import LONGEST
from kernels.triton import matmul_tma


@dataclass(frozen=True)
class Config:
    """Tile of the output (bm × bn), step along K (bk), and how a program is run.

    ``promote``, ``few``: as in `kernels.triton.matmul.matmul_kernel`.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8
    promote: bool = False
    few: bool = False

    def __str__(self) -> str:
        promoted = f", sums promoted every {self.bk}" if self.promote else ""
        walked = f"up to {self.bm} rows" if self.few else f"groups of {self.group}"
        return f"{self.bm}x{self.bn}x{self.bk}, {self.warps} warps, {self.stages} stages, {walked}{promoted}"


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


ITEMSIZE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "fp8_fast": 1, "int8": 1}
"""Bytes of an element of the operands."""


@dataclass(frozen=True)
class Strip:
    """What rows and dtype leave open of a `Config` for few rows: columns of the output, and bytes of a row that a step loads."""

    columns: int
    step: int
    stages: int
    warps: int = 4


FEW: dict[int, tuple[Strip, ...]] = {
    16: (Strip(32, 256, 5), Strip(64, 128, 6)),
    32: (Strip(32, 128, 6), Strip(64, 128, 5)),
    64: (Strip(64, 128, 5), Strip(128, 128, 4)),
}
"""By the rows they are for, at most.

So few rows have so little to compute that reading B is what takes the time (decoding: B is the weights).  Narrow strips make
programs enough for all multiprocessors, and long steps and many stages keep bytes on their way; wider ones read A less often.
"""
MOST_FEW = max(FEW)
PROMOTED = 128
"""Products of fp8 that are summed in one piece at most."""
_FEW_FP32 = {16: (Strip(32, 128, 4),), 32: (Strip(64, 64, 4),), 64: (Strip(64, 64, 4),)}
"""Without tensor cores operands wait in registers for their turn: longer steps spill them."""


def few_rows(arch: str, dtype: str, rows: int) -> tuple[Config, ...]:
    """The configurations for so few ``rows`` of the output, where N and K are multiples of 16; none for more than `MOST_FEW`.

    Instructions of warp groups and of tensor memory take 64 rows, and Hopper and Blackwell multiply fp8 by no other.
    """
    usual = CONFIGS.get(_family(arch), {}).get(dtype)
    if usual is None or rows > MOST_FEW:
        return ()
    most = next(most for most in FEW if rows <= most)
    if dtype.startswith("fp8") and arch.startswith(("sm_9", "sm_10")):
        most = MOST_FEW
    found: list[Config] = []
    for strip in (_FEW_FP32 if dtype == "fp32" else FEW)[most]:
        length, stages, warps = strip.step, strip.stages, strip.warps
        by_warps = (arch.startswith("sm_12") and dtype != "fp32") or (arch.startswith("sm_10") and dtype == "int8")
        if by_warps and (most, strip.columns) == (64, 64):
            warps = 8  # with four, registers spill
        if arch.startswith("gfx"):  # 16 bytes of A for each of 256 threads
            length, stages = max(length, 4096 // most), min(stages, usual.stages)
        step = length // ITEMSIZE[dtype]
        step = min(step, PROMOTED) if usual.promote else step
        found.append(Config(most, strip.columns, step, warps, stages, promote=usual.promote, few=True))
    return tuple(found[:1] if arch == "interpreter" else found)


def _family(arch: str) -> str:
    return arch if arch in CONFIGS or not arch.startswith("sm_") else arch[:-1]


def configuration(arch: str, dtype: str, n: int, k: int) -> Config:
    """The configuration for an architecture, columns of the output and length of the sums.  Raises `Skip` if there is none.

    Where K (N) is no multiple of 16, rows of the operands (the output) start anywhere, loads (stores) are narrow, and large tiles
    would spill registers.
    """
    config = CONFIGS.get(_family(arch), {}).get(dtype)
    if config is None:
        raise Skip(f"the Triton matmul has no configuration for {dtype} on {arch}")
    return replace(_SMALL, promote=config.promote) if n % 16 or k % 16 else config


def candidates(arch: str, dtype: str, n: int, k: int, rows: int = LONGEST) -> tuple[Config | matmul_tma.Config, ...]:
    """What may run a product, the one to be had without trying first: where the output has few ``rows`` strips of it
    (`few_rows`), else tiles moved by the copy engine where there is one and it can (`matmul_tma`), else by pointers.

    Raises `Skip` if there is none of them.
    """
    large = n % 16 == 0 and k % 16 == 0
    if large and (strips := few_rows(arch, dtype, rows)):
        return strips
    if by_copies := matmul_tma.candidates(arch, dtype, n, k):
        return by_copies
    config = configuration(arch, dtype, n, k)
    return config, *(OTHERS.get(arch if arch in OTHERS else arch[:-1], {}).get(dtype, ()) if large else ())


def chosen(arch: str, dtype: str, n: int, k: int, rows: int = LONGEST) -> Config | matmul_tma.Config:
    """The first of the `candidates`."""
    return candidates(arch, dtype, n, k, rows)[0]
