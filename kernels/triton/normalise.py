"""Softmax and RMSNorm of rows in Triton: whole rows in registers, or in steps where they are too long for that."""

# ruff: noqa: N803  (capitals are what the field writes for compile-time constants)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from kernels.gate.entry import Argument, Entry

LONGEST = 16384
"""Columns that a program holds in registers: 32 a thread with 16 warps of 32."""
STEP = 4096
"""Columns a program takes at a time where rows are longer."""
TILE = 2048
"""Elements a program has at least, so that short rows share one."""
LOWEST = tl.constexpr(-3.0e38)
"""Below every maximum, and finite: −∞ − (−∞) is no number, and blocks that hold nothing but −∞ are legal."""
GATED = (("fp32", (1000, 4096, LONGEST, 131072)), ("bf16", (4096, 131071)), ("fp16", (8192,)))
"""Types and columns that the code gate compiles: rows that share a program, that fill 8 and 16 warps, the longest that is held,
and steps; where columns are no multiple of 16, rows start anywhere and accesses are narrow."""


@triton.jit
def softmax_kernel(x_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Softmax of ROWS rows that each fit BLOCK columns: read once, written once.

    Past the last row it is computed again and not stored.  The quotient is taken once a row, rounded correctly.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * columns + column[None, :]
    inside = column[None, :] < columns
    x = tl.load(x_ptr + at, mask=inside, other=float("-inf")).to(tl.float32)
    peak = tl.maximum(tl.max(x, axis=1), LOWEST)
    power = tl.exp(x - peak[:, None])
    inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), tl.sum(power, axis=1))
    out = power * inverse[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside & (row < rows)[:, None])


@triton.jit
def softmax_long_kernel(x_ptr, out_ptr, columns, STEP: tl.constexpr):
    """Softmax of one row in steps: the first pass finds maximum and sum together, the second writes.

    The row is read twice, the second time from the cache where it fits.
    """
    start = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, STEP)
    peak = tl.full((1,), LOWEST, tl.float32)
    total = tl.zeros((1,), tl.float32)
    for step in range(0, columns, STEP):
        x = tl.load(x_ptr + start + step + column, mask=column < columns - step, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(x, axis=0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(x - higher), axis=0)
        peak = higher
    inverse = tl.div_rn(tl.full((1,), 1.0, tl.float32), total)
    for step in range(0, columns, STEP):
        inside = column < columns - step
        x = tl.load(x_ptr + start + step + column, mask=inside, other=0.0).to(tl.float32)
        out = tl.exp(x - peak) * inverse
        tl.store(out_ptr + start + step + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rmsnorm_kernel(x_ptr, weight_ptr, out_ptr, rows, columns, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """x · weight / √(mean of x² + eps) of ROWS rows that each fit BLOCK columns; square root and quotient rounded correctly."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * columns + column[None, :]
    inside = column[None, :] < columns
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(x * x, axis=1), tl.zeros((ROWS,), tl.float32) + columns)
    scale = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), tl.sqrt_rn(mean + eps))
    out = x * scale[:, None] * weight[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside & (row < rows)[:, None])


@triton.jit
def rmsnorm_long_kernel(x_ptr, weight_ptr, out_ptr, columns, eps, STEP: tl.constexpr):
    """The same of one row in steps; read twice, the second time from the cache where it fits."""
    start = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, STEP)
    squares = tl.zeros((STEP,), tl.float32)
    for step in range(0, columns, STEP):
        x = tl.load(x_ptr + start + step + column, mask=column < columns - step, other=0.0).to(tl.float32)
        squares += x * x
    total = tl.zeros((1,), tl.float32) + tl.sum(squares, axis=0)
    mean = tl.div_rn(total, tl.zeros((1,), tl.float32) + columns)
    scale = tl.div_rn(tl.full((1,), 1.0, tl.float32), tl.sqrt_rn(mean + eps))
    for step in range(0, columns, STEP):
        inside = column < columns - step
        x = tl.load(x_ptr + start + step + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + step + column, mask=inside, other=0.0).to(tl.float32)
        out = x * scale * weight
        tl.store(out_ptr + start + step + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Config:
    """Rows a program takes, columns it holds, warps; ``whole``: whether a row fits."""

    rows: int
    block: int
    warps: int
    whole: bool

    def __str__(self) -> str:
        held = f"{self.rows}x{self.block}, whole rows" if self.whole else f"steps of {self.block}, two passes"
        return f"{held}, {self.warps} warps"


def configuration(columns: int) -> Config:
    """What rows of that many columns get, on every architecture: sixteen elements a thread up to 16 warps."""
    if columns > LONGEST:
        return Config(1, STEP, 8, whole=False)
    block = max(16, triton.next_power_of_2(columns))
    rows = max(1, TILE // block)
    return Config(rows, block, max(4, min(16, rows * block // 512)), whole=True)


def call(op: str, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> Callable[[], object]:
    """A callable that runs ``op`` over the rows of ``x`` (rows × columns, row-major without gaps) into ``out``.

    ``weight``: one for each column, of the dtype of ``x``; softmax does not read it.
    """
    rows, columns = x.shape
    config = configuration(columns)
    extra = (eps,) if op == "rmsnorm" else ()
    if config.whole:
        kernel = {"softmax": softmax_kernel, "rmsnorm": rmsnorm_kernel}[op]
        launch = kernel[(triton.cdiv(rows, config.rows),)]
        tensors = (x, weight, out) if op == "rmsnorm" else (x, out)
        return lambda: launch(*tensors, rows, columns, *extra, ROWS=config.rows, BLOCK=config.block, num_warps=config.warps)
    kernel = {"softmax": softmax_long_kernel, "rmsnorm": rmsnorm_long_kernel}[op]
    launch = kernel[(rows,)]
    tensors = (x, weight, out) if op == "rmsnorm" else (x, out)
    return lambda: launch(*tensors, columns, *extra, STEP=config.block, num_warps=config.warps)


def gate_entries() -> list[Entry]:
    """For the code gate: both operations on rows as in `GATED`, on every target."""
    return [_entry(op, dtype, n) for op in ("softmax", "rmsnorm") for dtype, lengths in GATED for n in lengths]


def _entry(op: str, dtype: str, columns: int) -> Entry:
    from kernels.gate.entry import Entry, Expects, Pointer
    from kernels.gate.targets import TARGETS

    config = configuration(columns)
    kernels = {"softmax": (softmax_kernel, softmax_long_kernel), "rmsnorm": (rmsnorm_kernel, rmsnorm_long_kernel)}
    array = Pointer(dtype)
    arguments: dict[str, Argument] = {"x_ptr": array, "out_ptr": array, "columns": columns}
    arguments |= {"weight_ptr": array, "eps": 1e-6} if op == "rmsnorm" else {}
    arguments |= {"rows": 8192} if config.whole else {}
    return Entry(
        kernel=op,
        variant=f"{dtype} {columns}",
        function=kernels[op][not config.whole],
        arguments=arguments,
        constants={"ROWS": config.rows, "BLOCK": config.block} if config.whole else {"STEP": config.block},
        warps=config.warps,
        stages=None,
        targets=tuple(TARGETS),
        expects=Expects(wide=frozenset({"loads", "stores"} if columns % 16 == 0 else ())),
        config=str(config),
    )
