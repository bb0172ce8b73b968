"""Bits that a product keeps: of its sums, in fp8, and of its operands, where they may be rounded to tf32.

How fp8 sums is found out by sums that fp32 holds exactly and the short accumulators of tensor cores do not.

Shapes as in `products`.  Planted, in every row of A and of B alike: L = 2¹⁶ in the first place of the sum, −L in the last, and in
the middle terms t = 2⁻⁵, a power of two of them, at least K/4 places away from both; zeros elsewhere.  Partial sums, in whatever
order, are multiples of 2⁻⁵ below 2¹⁷, so 22 bits, and what is left without L is a power of two: fp32 and the output are exact.

The tensor cores of Ada and Hopper cut what they add to 13 bits behind the point of the largest summand (`products`): a term, and
the sum of up to 128 of them, is less than that behind L, and is lost where a sum stays in one accumulator from beginning to end
(fast accumulation).  Where partial sums are moved to fp32 every so often (CUTLASS: 4 instructions, 128 places), all terms are
kept, if that happens within K/4 places.  Where several accumulators share a sum, some are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels import products

if TYPE_CHECKING:
    import torch

FINE = 1 + 2.0**-12
"""A number of 12 bits behind the point, where tf32 has 10: rounded or cut to it, 1."""
LARGE = 2.0**8
"""Its square is L; both operands hold it."""
SMALL = 2.0**-3, 2.0**-2
"""In A and in B: their product is t."""
LEAST_K = 2048
"""Below it the terms are not clear of L by four times the places between two moves that are known."""


def kept(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, run: Callable[[], object], scale: float) -> float | None:
    """The share of the planted terms in that element of the output which lost most, or NaN; 1 means that fp32 sums.

    ``None`` where sums are too short to tell.  Overwrites the operands.  ``run``: computes c = scale·a·bᵀ.
    """
    k = a.shape[1]
    if k < LEAST_K:
        return None
    count = 1 << (k // 2).bit_length() - 1
    middle = slice((k - count) // 2, (k + count) // 2)
    for operand, small, last in ((a, SMALL[0], LARGE), (b, SMALL[1], -LARGE)):
        operand.zero_()
        operand[:, 0] = LARGE
        operand[:, middle] = small
        operand[:, -1] = last
    products.poison(c)
    run()
    shares = c.double() / (count * SMALL[0] * SMALL[1] * scale)
    return float(shares.flatten()[(shares - 1).abs().argmax()])


def keeps_fp32(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, run: Callable[[], object]) -> bool:
    """Whether a product of fp32 operands keeps bits that tf32 has not: computed in fp32, or in several products that emulate it.

    Overwrites the operands: one term of each sum is not zero, so that nothing else rounds.  ``run``: computes c = a·bᵀ.
    """
    for operand, value in ((a, FINE), (b, 1.0)):
        operand.zero_()
        operand[:, 0] = value
    products.poison(c)
    run()
    return bool((c == FINE).all())
