"""The STREAM kernels in Triton, and a reduction that reads every element once; float64 throughout."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Elements a program handles at a time: with 4 warps, four 16-byte accesses a thread and array."""
WARPS = 4
READERS_PER_UNIT = 8
"""Programs of the read kernel for each multiprocessor, so that enough loads are in flight."""


@triton.jit
def stream_kernel(out_ptr, b_ptr, c_ptr, scalar, n, OP: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """One block of one STREAM operation: out = scalar | b | scalar·b | b + c | b + scalar·c, as ``OP`` says.

    ``EVEN``: n is a multiple of BLOCK, which spares the mask (a mask costs the wide accesses).
    """
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = None if EVEN else offset < n
    if OP == "write":
        value = tl.zeros((BLOCK,), out_ptr.dtype.element_ty) + scalar
    else:
        value = tl.load(b_ptr + offset, mask=mask)
    if OP == "scale":
        value = scalar * value
    if OP == "add":
        value += tl.load(c_ptr + offset, mask=mask)
    if OP == "triad":
        value += scalar * tl.load(c_ptr + offset, mask=mask)
    tl.store(out_ptr + offset, value, mask=mask)


@triton.jit
def read_kernel(b_ptr, partial_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Each program sums every gridth block; ``partial_ptr`` has one sum for each program."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), b_ptr.dtype.element_ty)
    for block in range(program, tl.cdiv(n, BLOCK), tl.num_programs(0)):
        offset = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(b_ptr + offset) if EVEN else tl.load(b_ptr + offset, mask=offset < n, other=0.0)
    tl.store(partial_ptr + program, tl.sum(total, axis=0))
