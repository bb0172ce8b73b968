"""What normalised rows must be: bounds for random data, and rows whose result has no rounding.

What an output may be off, with unit roundoff u = 2⁻²⁴ of the float32 sums, v of the stored dtype and n columns (relative errors):

* softmax, for an element d below its row's maximum: the difference and the reduction of its argument round by u each, which
  exp turns into 2·u·d; exp is good to E = 20 ulp = 40·u, the worst of those used here (``exp_u20`` of torch's CPU kernels;
  2 ulp in CUDA); the sum inherits the mean of that over the row, rescalings of the kernel in steps (one exp for each 4096
  columns), and λ·√n·u of its own (Higham & Mary, SIAM J. Sci. Comput. 41 (2019), λ = 8: exceeded below 1e-9 of the time);
  quotient and product: 4·u.
* RMSNorm: the mean of squares is off by λ·√n·u and 8·u for squares, quotient and eps, half of which passes the root; reciprocal
  root, 2 ulp, and products: 8·u.
* Storing adds v, twice for RMSNorm (torch's GPU kernels of some versions round before they multiply by the weight), and at most
  the smallest number there is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from clustergauge.probe import Wrong

PERIOD = 61
"""Rows after which inputs repeat: prime, so that programs, threads and sets of rows never agree with it."""
_CHUNK = 1 << 24
_LAMBDA = 8.0
_U = 2.0**-24
_EXP = 40 * _U
_STORED = {"fp32": (2.0**-24, 2.0**-126), "bf16": (2.0**-8, 2.0**-126), "fp16": (2.0**-11, 2.0**-24)}
"""Unit roundoff, and an absolute error that covers numbers below the normal ones, flushed or not."""


def period(rows: int, columns: int) -> int:
    """How many different rows there are: `PERIOD`, or fewer where rows are few or so long that they would not fit."""
    return min(rows, PERIOD, max(3, _CHUNK // 2 // columns))


def repeat(base: torch.Tensor, arrays: torch.Tensor) -> None:
    """Fill the rows of each array (arrays × rows × columns) with those of ``base``, over and over."""
    many, rows = len(base), arrays.shape[1]
    for start in range(0, rows, many):
        arrays[:, start : start + many] = base[: rows - start]


def poison(out: torch.Tensor) -> None:
    """NaN in every row: in each 256th column and the last.  All of it would cost as much as the operation itself."""
    out[..., ::256].fill_(math.nan)
    out[..., -1].fill_(math.nan)


def _against(out: torch.Tensor, many: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of ``out`` in pieces (pieces × up to ``many`` × columns), each with the number of its first row."""
    rows, columns = out.shape
    whole = rows // many * many
    pieces = out[:whole].view(-1, many, columns).split(max(1, _CHUNK // (many * columns)))
    yield from zip(itertools.accumulate((len(p) * many for p in pieces), initial=0), pieces, strict=False)
    if whole < rows:
        yield whole, out[whole:].unsqueeze(0)


@dataclass(frozen=True)
class Bounds:
    """Between which float32 values each element of a period of rows must lie."""

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, op: str, base: torch.Tensor, weight: torch.Tensor, dtype: str, eps: float) -> Bounds:
        """From inputs (rows × columns) in float64; the errors allowed are those at the head of this module."""
        x, columns = base.double(), base.shape[1]
        roundoff, least = _STORED[dtype]
        of_sum = _LAMBDA * math.sqrt(columns) * _U
        if op == "softmax":
            below = x.amax(1, keepdim=True) - x
            value = torch.softmax(x, 1)
            mean = (value * below).sum(1, keepdim=True)
            error = 2 * _U * (below + mean) + _EXP * (2 + columns / 4096) + of_sum + 4 * _U
        else:
            value = x * weight.double() / (x.square().mean(1, keepdim=True) + eps).sqrt()
            error, roundoff = (of_sum + 8 * _U) / 2 + 8 * _U, 2 * roundoff
        allowed = value.abs() * (error + roundoff * (1 + error)) + least
        below_all, above_all = (torch.tensor(sign * math.inf, device=x.device) for sign in (-1, 1))
        low, high = (value - allowed).float(), (value + allowed).float()
        return cls(low.nextafter(below_all), high.nextafter(above_all))

    def check(self, out: torch.Tensor) -> None:
        """Compare all of the output.  Raises `Wrong` naming the first element that is off."""
        many = len(self.low)
        for first, piece in _against(out, many):
            low, high = self.low[: piece.shape[1]], self.high[: piece.shape[1]]
            got = piece.float()
            good = (got >= low) & (got <= high)
            if not bool(good.all()):
                row, column = divmod(int((~good).flatten().byte().argmax()), piece.shape[2])
                lowest, highest = (float(edge[row % many, column]) for edge in (low, high))
                middle, half = (lowest + highest) / 2, (highest - lowest) / 2
                value = float(got.view(-1, piece.shape[2])[row, column])
                raise Wrong(f"row {first + row}, column {column}: expected {middle:.9g} ± {half:.2g}, got {value:.9g}")


def exact_rows(op: str, base: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows like ``base``, weights, and the output that has no rounding anywhere.

    Softmax: 2^i elements of a row, at random places, share one value and the others are −∞: 2^−i there and 0 elsewhere.
    RMSNorm: ±2^i with weights 2^j: ±2^j (the mean of squares, 2^2i, is so large that adding eps changes nothing).
    """
    rows, columns = base.shape
    draw = torch.rand(base.shape, generator=generator, device=base.device)
    number = torch.arange(rows, device=base.device)[:, None]
    if op == "softmax":
        most = min(14, columns.bit_length() - 1)  # 2^-14 is the smallest normal number of fp16
        power = most - number % (most + 1)
        chosen = draw.argsort(1).argsort(1) < torch.exp2(power)
        x = torch.where(chosen, number % 7 - 3.0, -math.inf)
        return x.to(base.dtype), torch.ones_like(base[0]), torch.where(chosen, torch.exp2(-power.double()), 0.0).to(base.dtype)
    sign = torch.where(draw < 0.5, -1.0, 1.0)
    weight = torch.exp2(torch.randint(-2, 3, (columns,), generator=generator, device=base.device).float())
    return (sign * torch.exp2(10.0 + number % 5)).to(base.dtype), weight.to(base.dtype), (sign * weight).to(base.dtype)


def check_exact(out: torch.Tensor, expected: torch.Tensor, *, slack: bool) -> None:
    """Compare every element exactly with rows that repeat.  Raises `Wrong` naming the first that differs.

    ``slack``: the reciprocal root need not be rounded correctly (2 ulp in CUDA), nor the mean before it: a row may be off by one
    factor within 8·u of 1, the same for all its elements, bit for bit (all else is multiplied by powers of two).
    """
    for first, piece in _against(out, len(expected)):
        right = expected[: piece.shape[1]].expand_as(piece)
        if slack:
            factor = piece[..., :1] / right[..., :1]
            right = right * factor.where((factor - 1).abs() <= 8 * _U, 1.0)
        if not bool((piece == right).all()):
            row, column = divmod(int((piece != right).flatten().byte().argmax()), piece.shape[2])
            want, got = (float(t.reshape(-1, piece.shape[2])[row, column]) for t in (right, piece))
            raise Wrong(f"exact rows: row {first + row}, column {column}: expected {want:.9g}, got {got:.9g}")
