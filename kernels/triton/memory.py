"""The STREAM kernels in Triton, and a reduction that reads every element once; float64 throughout."""

# ruff: noqa: N803  (capitals are what the field writes for compile-time constants)
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
def stream_kernel(out_ptr, b_ptr, c_ptr, scalar, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one STREAM operation: out = scalar | b | scalar·b | b + c | b + scalar·c, as ``OP`` says.

    Accesses are 16 bytes wide where n is a multiple of 16; otherwise the mask splits them.
    """
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    if OP == "write":  # noqa: SIM108 (the compiler drops the branch not taken)
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
def read_kernel(b_ptr, partial_ptr, n, BLOCK: tl.constexpr):
    """Each of P programs sums every P-th block; ``partial_ptr`` has one sum for each program."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), b_ptr.dtype.element_ty)
    for block in range(program, tl.cdiv(n, BLOCK), tl.num_programs(0)):
        offset = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(b_ptr + offset, mask=offset < n, other=0.0)
    tl.store(partial_ptr + program, tl.sum(total, axis=0))


def readers(n: int, device: str) -> int:
    """How many programs, and so partial sums, the read kernel gets for n elements on a torch device."""
    blocks = triton.cdiv(n, BLOCK)
    if not device.startswith("cuda"):
        return min(blocks, 4)
    return min(blocks, READERS_PER_UNIT * torch.cuda.get_device_properties(torch.device(device)).multi_processor_count)


def call(op: str, out: torch.Tensor, b: torch.Tensor, c: torch.Tensor, scalar: float) -> Callable[[], object]:
    """A callable that runs ``op``.  ``b``, ``c``: float64 of n elements (those that ``op`` does not read may be ``out``).

    ``out``: n elements, or for ``read`` the partial sums, as many as `readers` says.
    """
    n = b.numel()
    if op == "read":
        read = read_kernel[(out.numel(),)]
        return lambda: read(b, out, n, BLOCK=BLOCK, num_warps=WARPS)
    stream = stream_kernel[(triton.cdiv(n, BLOCK),)]
    return lambda: stream(out, b, c, scalar, n, OP=op, BLOCK=BLOCK, num_warps=WARPS)
