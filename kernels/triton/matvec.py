"""int8 matrix times int8 vector in Triton, as in decoding at batch 1: sums in int32, scaled on the way out."""

# ruff: noqa: N803  (capitals are what the field writes for sizes and compile-time constants)
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from kernels.gate.entry import Entry

ROWS = 4
"""Rows of the matrix a program takes: small, so that even short outputs fill the device."""
BLOCK = 1024
"""Columns it takes at a time: with 4 warps, two 16-byte loads a thread and step."""
WARPS = 4


@triton.jit
def matvec_kernel(
    weight_ptr, vector_ptr, scale_ptr, out_ptr, N, K, ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN_K: tl.constexpr
):
    """out[n] = scale[n] · Σₖ weight[n, k] · vector[k]; the sum in int32, exact; one rounding to float32, one of the product.

    Plain multiply-adds, no tensor cores: the matrix passes once, straight to registers, and its bytes are what takes the time.
    ``EVEN_K``: K is a multiple of BLOCK, which spares the masks.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = weight_ptr + tl.minimum(row, N - 1).to(tl.int64)[:, None] * K + column[None, :]
    total = tl.zeros((ROWS, BLOCK), dtype=tl.int32)
    for step in range(0, K, BLOCK):
        if EVEN_K:
            weight = tl.load(at)
            vector = tl.load(vector_ptr + step + column)
        else:
            inside = column < K - step
            weight = tl.load(at, mask=inside[None, :], other=0)
            vector = tl.load(vector_ptr + step + column, mask=inside, other=0)
        total += weight.to(tl.int32) * vector.to(tl.int32)[None, :]
        at += BLOCK
    scale = tl.load(scale_ptr + row, mask=row < N, other=0.0)
    out = tl.sum(total, axis=1).to(tl.float32) * scale
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=row < N)


def call(weight: torch.Tensor, vector: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    """A callable for one set of buffers: weight (n×k, int8, row-major), vector (k, int8), scale (n, float32), out (n)."""
    n, k = weight.shape
    launch = matvec_kernel[(triton.cdiv(n, ROWS),)]
    even = k % BLOCK == 0
    return lambda: launch(weight, vector, scale, out, n, k, ROWS=ROWS, BLOCK=BLOCK, EVEN_K=even, num_warps=WARPS)


def gate_entries() -> list[Entry]:
    """For the code gate: both types of the output, and each way K is specialised, on every target."""
    from kernels.gate.entry import Entry, Pointer
    from kernels.gate.targets import TARGETS

    weight, scale = Pointer("int8"), Pointer("fp32")
    return [
        Entry(
            kernel="matvec",
            variant=variant,
            function=matvec_kernel,
            arguments={"weight_ptr": weight, "vector_ptr": weight, "scale_ptr": scale, "out_ptr": Pointer(out), "N": n, "K": k},
            constants={"ROWS": ROWS, "BLOCK": BLOCK, "EVEN_K": k % BLOCK == 0},
            warps=WARPS,
            stages=None,
            targets=tuple(TARGETS),
            config=f"{ROWS}x{BLOCK}, {WARPS} warps",
        )
        for variant, out, n, k in (
            ("bf16", "bf16", 14336, 4096),
            ("fp32", "fp32", 14336, 4096),
            ("bf16, K masked", "bf16", 14336, 4112),
            ("bf16, K ragged", "bf16", 130, 1023),
        )
    ]
