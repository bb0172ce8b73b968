"""What a matrix product must be: error bounds from the dtype, and checks by rows, of the whole, and bit for bit.

Shapes: ``a`` (m×k), ``b`` (n×k), ``c`` (m×n) with c = a·bᵀ; ``c`` has the dtype of ``a``, int32 for int8.  References are
computed in float64, in pieces of at most `PIECE` elements.  For normal data (mean 0, variance 1):

* Element bound.  With unit roundoff u of the sums and v of the output, the computed sum of k products is off by more than
  t = λ·√k·u·Σ|aᵢbᵢ| with probability ≤ 2k·exp(−λ²/2), for any order of summation (Higham & Mary, "A New Approach to
  Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41 (2019)); storing it adds v·(|c| + t).  λ = 8: below 1e-9.
* Typical error.  Rounding the partial sums, whose variance grows to k, gives a root mean square below k·u; storing adds v·√(k/3).
* Freivalds.  For x with random signs, c·x and a·(bᵀ·x) differ by a sum of n errors with random signs: above λ·√n·(typical
  error) with probability ≤ 2·exp(−λ²/2) (Hoeffding).  Every element of ``c`` enters.  Integers have no error: both bounds are 0.

u is 2⁻²⁴ for fp32; tensor cores sum in fp32 but truncate (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS
2021), for which 2⁻²² stands: two bits for truncation and alignment.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from clustergauge.probe import Wrong

LAMBDA = 8.0
PIECE = 1 << 23
ROWS = 8
"""Rows that are compared element by element."""


@dataclass(frozen=True)
class Precision:
    """``sums``, ``output``: unit roundoffs (0: exact).  ``least``: absolute rounding error of the smallest outputs."""

    sums: float
    output: float
    least: float = 0.0

    def typical(self, k: int) -> float:
        """Root mean square error of an element, at most."""
        return math.hypot(self.sums * k, self.output * math.sqrt(k / 3)) + self.least

    def bound(self, k: int, value: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        """Largest error of each element, given its ``value`` and its ``magnitude`` Σ|aᵢbᵢ|."""
        of_sum = LAMBDA * math.sqrt(k) * self.sums * magnitude
        return of_sum + self.output * (value.abs() + of_sum) + self.least


PRECISION = {
    "fp32": Precision(2.0**-24, 2.0**-24),
    "tf32": Precision(2.0**-22, 2.0**-24),
    "fp16": Precision(2.0**-22, 2.0**-11, least=2.0**-25),
    "bf16": Precision(2.0**-22, 2.0**-8),
    "int8": Precision(0.0, 0.0),
}
"""By dtype of the operands (tf32: fp32 data that already is representable in tf32, so that the products are exact)."""


def fill(tensor: torch.Tensor, dtype: str, generator: torch.Generator) -> None:
    """Random data of the case: normal, rounded to the dtype; uniform over all values for int8."""
    if dtype == "int8":
        tensor.random_(-128, 128, generator=generator)
        return
    tensor.normal_(generator=generator)
    if dtype == "tf32":
        tensor.view(torch.int32).bitwise_and_(-(1 << 13))  # 23 mantissa bits to 10


def fill_ternary(tensor: torch.Tensor, k: int, generator: torch.Generator) -> None:
    """Values of {−1, 0, 1}, sparse enough that sums of k products stay within about ±256: exact in every dtype we have."""
    share = min(2 / 3, 40 / math.sqrt(k))
    draw = torch.rand(tensor.shape, generator=generator, device=tensor.device)
    tensor.copy_((draw < share / 2).to(torch.int8) - (draw > 1 - share / 2).to(torch.int8))


def poison(outputs: torch.Tensor) -> None:
    """Put an impossible value (NaN; the lowest int32) into every 16×16 block of the outputs (…×m×n).

    One element in 256 shows a tile that was not written, at a fraction of the cost of filling.  (GPU kernels write no smaller
    tiles; smaller holes are found by `check_exact`, where all old values are wrong ones.)
    """
    outputs[..., ::16, ::16].fill_(math.nan if outputs.is_floating_point() else torch.iinfo(outputs.dtype).min)


def check_rows(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, precision: Precision, rows: list[int]) -> None:
    """Compare rows of ``c`` with float64, element by element.  Raises `Wrong` naming the worst element."""
    left = a[rows].double()
    for piece in _pieces(b.shape[0], b.shape[1]):
        right = b[piece].double()
        expected = left @ right.T
        got = c[rows, piece].double()
        allowed = precision.bound(b.shape[1], expected, left.abs() @ right.abs().T)
        excess = ((got - expected).abs() - allowed).nan_to_num(nan=math.inf)
        if bool((excess > 0).any()):
            row, column = divmod(int(excess.argmax()), excess.shape[1])
            raise Wrong(
                f"row {rows[row]}, column {piece.start + column}: expected {float(expected[row, column]):.9g} "
                f"± {float(allowed[row, column]):.2g}, got {float(got[row, column]):.9g}"
            )


def check_whole(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, precision: Precision, generator: torch.Generator) -> None:
    """Freivalds' check: c·x against a·(bᵀ·x) for a random x.  Raises `Wrong` naming an element of the worst row."""
    (n, k), exact = b.shape, precision.output == 0
    # Integers: the larger x, the rarer a miss (1 in 2·most + 1), while all sums stay below 2^53, exact in float64.
    most = max(1, min(1000, (1 << 53) // (n * k << 14))) if exact else 1
    x = torch.randint(-most, most + 1, (n,), generator=generator, device=b.device).double()
    if not exact:
        x = torch.where(x > 0, 1.0, -1.0).double()
    z = torch.zeros(k, dtype=torch.float64, device=b.device)
    for piece in _pieces(n, k):
        z += x[piece] @ b[piece].double()
    allowed = LAMBDA * math.sqrt(n) * precision.typical(k)
    for piece in _pieces(a.shape[0], max(n, k)):
        expected, got = a[piece].double() @ z, c[piece].double() @ x
        excess = ((got - expected).abs() - allowed).nan_to_num(nan=math.inf)
        if bool((excess > 0).any()):
            worst = int(excess.argmax())
            row = piece.start + worst
            check_rows(a, b, c, precision, [row])
            raise Wrong(
                f"row {row}: its elements, summed with random signs, give {float(got[worst]):.9g}, "
                f"expected {float(expected[worst]):.9g} ± {allowed:.2g}"
            )


def check_exact(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, run: Callable[[], object], generator: torch.Generator) -> None:
    """Overwrite the operands with small integers, run, and compare every element exactly.  Raises `Wrong` naming the first.

    Sums of k < 2^24 products of {−1, 0, 1} are exact in float32 in any order, so float32 is reference enough, except for
    the float32 kernel itself, which is held against float64.
    """
    k = a.shape[1]
    fill_ternary(a, k, generator)
    fill_ternary(b, k, generator)
    poison(c)
    run()
    wide = torch.float64 if a.dtype == torch.float32 else torch.float32
    expected = torch.mm(a.to(wide), b.to(wide).T).to(c.dtype)
    if not torch.equal(c, expected):
        differs = c != expected  # NaN differs from everything
        row, column = divmod(int(differs.flatten().to(torch.uint8).argmax()), c.shape[1])
        raise Wrong(
            f"small integers: row {row}, column {column}: expected {float(expected[row, column]):.9g}, "
            f"got {float(c[row, column]):.9g} ({int(differs.sum())} of {c.numel()} elements differ)"
        )


def digest(c: torch.Tensor) -> str:
    """BLAKE2b, 16 bytes in hexadecimal, of the sums of the rows and of the columns of ``c`` (m×n), its bits read as integers.

    Summed where the data is, so that little leaves the device; one element that changes always changes two sums.
    """
    bits = c.view(torch.int16 if c.itemsize == 2 else torch.int32)
    sums = torch.cat([bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)])
    return hashlib.blake2b(sums.cpu().numpy().data, digest_size=16).hexdigest()


def _pieces(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` that hold at most `PIECE` elements of the given width, and at least one row."""
    step = max(1, PIECE // width)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
