"""What a matrix product must be: error bounds from the dtype, and checks by rows, of the whole, and bit for bit.

Shapes: ``a`` (m×k), ``b`` (n×k), ``c`` (m×n) with c = scale·a·bᵀ; ``c`` has the dtype of ``a``, int32 for int8, bfloat16 for
fp8.  ``scale`` is the product of the two scales that turn fp8 operands back into what was quantised, a power of two, so that
multiplying by it rounds nothing; 1 for all others.  The operands of the reference are the quantised ones.  Work is 2·m·n·k
operations in every dtype.  References are computed in float64, in pieces of at most `PIECE` elements (those of fp64: see below).
For normal data (mean 0, variance 1):

* Element bound.  With unit roundoff u of the sums and v of the output, the computed sum of k products is off by more than
  t = λ·√k·u·Σ|aᵢbᵢ| with probability ≤ 2k·exp(−λ²/2), for any order of summation (Higham & Mary, "A New Approach to
  Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41 (2019)); storing it adds v·(|c| + t).  λ = 8: below 1e-9.
* Typical error.  Rounding the partial sums, whose variance grows to k, gives a root mean square below k·u; storing adds v·√(k/3).
* Freivalds.  For x with random signs, c·x and a·(bᵀ·x) differ by a sum of n errors with random signs: above λ·√n·(typical
  error) with probability ≤ 2·exp(−λ²/2) (Hoeffding).  Every element of ``c`` enters.  Integers have no error: both bounds are 0.

u is 2⁻²⁴ for fp32; tensor cores sum in fp32 but truncate (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS
2021), for which 2⁻²² stands: two bits for truncation and alignment.

fp64: u = 2⁻⁵³.  Rows are compared with a reference without error: operands are cut into pieces so short that float64 sums their
products exactly, in any order (`exact_product`; Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix
multiplication", Numer. Algorithms 59 (2012)).  Only the last additions round, by less than v·|c|, as if the output were stored.
In Freivalds' check float64 must do: its own errors, root mean squares below u·n·√k (bᵀ·x), u·k·√n (a·z) and u·n·√k (c·x), are
added to the typical error, in every dtype; they matter in fp64 alone.

fp8: the tensor cores of Ada and Hopper keep about 14 bits when they add, and truncate (DeepSeek-V3 Technical Report, section
3.3.2; SageAttention2 found 13 behind the point): u = 2⁻¹³.  Without fast accumulation sums are promoted to fp32 now and then, but
the interval is not documented, so this u serves both.  The element bound would then exceed the values themselves; λ·(typical
error) takes its place, whose u·k is 2.4 times the root mean square of rounding sums that grow to √k.  It leaves room for
truncation, which shrinks the sum at each of the k/32 steps by half an ulp, while k is below 2¹⁶: beyond that `matmul` refuses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from clustergauge.probe import Wrong

LAMBDA = 8.0
E4M3_MOST = 448.0
"""The largest value of fp8 e4m3 (OCP 8-bit floating point specification)."""
PIECE = 1 << 23
DIGITS = {2: ".9g", 4: ".9g", 8: ".17g"}
"""How outputs are written in messages, by their bytes."""
ROWS = 8
"""Rows that are compared element by element."""


@dataclass(frozen=True)
class Precision:
    """``sums``, ``output``: unit roundoffs (0: exact).  ``least``: absolute rounding error of the smallest outputs.

    ``coarse``: sums are so short of bits that the element bound is λ times the typical error.
    """

    sums: float
    output: float
    least: float = 0.0
    coarse: bool = False

    def typical(self, k: int) -> float:
        """Root mean square error of an element, at most."""
        return math.hypot(self.sums * k, self.output * math.sqrt(k / 3)) + self.least

    def bound(self, k: int, value: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        """Largest error of each element, given its ``value`` and its ``magnitude`` Σ|aᵢbᵢ|."""
        of_sum = LAMBDA * self.sums * (torch.full_like(magnitude, k) if self.coarse else math.sqrt(k) * magnitude)
        return of_sum + self.output * (value.abs() + of_sum) + self.least


PRECISION = {
    "fp64": Precision(2.0**-53, 2.0**-53),
    "fp32": Precision(2.0**-24, 2.0**-24),
    "tf32": Precision(2.0**-22, 2.0**-24),
    "fp16": Precision(2.0**-22, 2.0**-11, least=2.0**-25),
    "bf16": Precision(2.0**-22, 2.0**-8),
    "fp8": Precision(2.0**-13, 2.0**-8, coarse=True),
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


def quantise(tensor: torch.Tensor, generator: torch.Generator) -> float:
    """Normal data in fp8 e4m3, with one scale for the tensor; returns what turns it back, a power of two."""
    values = torch.empty(tensor.shape, device=tensor.device).normal_(generator=generator)
    scale = 2.0 ** math.ceil(math.log2(float(values.abs().max()) / E4M3_MOST))
    tensor.copy_(values.div_(scale))
    return scale


def fill_ternary(tensor: torch.Tensor, k: int, generator: torch.Generator) -> None:
    """Values of {−1, 0, 1}, sparse enough that sums of k products stay within about ±256: exact in every dtype we have."""
    share = min(2 / 3, 40 / math.sqrt(k))
    draw = torch.rand(tensor.shape, generator=generator, device=tensor.device)
    tensor.copy_(((draw < share / 2).to(torch.int8) - (draw > 1 - share / 2).to(torch.int8)).float())


def poison(outputs: torch.Tensor) -> None:
    """Put an impossible value (NaN; the lowest int32) into every 16×16 block of the outputs (…×m×n).

    One element in 256 shows a tile that was not written, at a fraction of the cost of filling.  (GPU kernels write no smaller
    tiles; smaller holes are found by `check_exact`, where all old values are wrong ones.)
    """
    outputs[..., ::16, ::16].fill_(math.nan if outputs.is_floating_point() else torch.iinfo(outputs.dtype).min)


def check_rows(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, precision: Precision, rows: list[int], scale: float = 1.0
) -> None:
    """Compare rows of ``c`` with the reference, element by element.  Raises `Wrong` naming the worst element."""
    left = torch.stack([_double(a[row]) for row in rows]) * scale
    for piece in _pieces(b.shape[0], b.shape[1]):
        right = _double(b[piece])
        expected = exact_product(left, right) if a.dtype == torch.float64 else left @ right.T
        got = torch.stack([_double(c[row, piece]) for row in rows])
        allowed = precision.bound(b.shape[1], expected, left.abs() @ right.abs().T)
        excess = ((got - expected).abs() - allowed).nan_to_num(nan=math.inf)
        if bool((excess > 0).any()):
            row, column = divmod(int(excess.argmax()), excess.shape[1])
            raise Wrong(
                f"row {rows[row]}, column {piece.start + column}: expected {float(expected[row, column]):{DIGITS[c.itemsize]}} "
                f"± {float(allowed[row, column]):.2g}, got {float(got[row, column]):{DIGITS[c.itemsize]}}"
            )


def check_whole(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, precision: Precision, generator: torch.Generator, scale: float = 1.0
) -> None:
    """Freivalds' check: c·x against a·(bᵀ·x) for a random x.  Raises `Wrong` naming an element of the worst row."""
    (n, k), exact = b.shape, precision.output == 0
    # Integers: the larger x, the rarer a miss (1 in 2·most + 1), while all sums stay below 2^53, exact in float64.
    most = max(1, min(1000, (1 << 53) // (n * k << 14))) if exact else 1
    x = torch.randint(-most, most + 1, (n,), generator=generator, device=b.device).double()
    if not exact:
        x = torch.where(x > 0, 1.0, -1.0).double()
    z = torch.zeros(k, dtype=torch.float64, device=b.device)
    for piece in _pieces(n, k):
        z += x[piece] @ _double(b[piece])
    z *= scale
    own = 0.0 if exact else 2.0**-53 * (2 * n * math.sqrt(k) + k * math.sqrt(n))
    allowed = LAMBDA * (math.sqrt(n) * precision.typical(k) + own)
    for piece in _pieces(a.shape[0], max(n, k)):
        expected, got = _double(a[piece]) @ z, _double(c[piece]) @ x
        excess = ((got - expected).abs() - allowed).nan_to_num(nan=math.inf)
        if bool((excess > 0).any()):
            worst = int(excess.argmax())
            row = piece.start + worst
            check_rows(a, b, c, precision, [row], scale)
            raise Wrong(
                f"row {row}: its elements, summed with random signs, give {float(got[worst]):{DIGITS[c.itemsize]}}, "
                f"expected {float(expected[worst]):{DIGITS[c.itemsize]}} ± {allowed:.2g}"
            )


def check_exact(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    run: Callable[[], object],
    generator: torch.Generator,
    scale: float = 1.0,
) -> None:
    """Overwrite the operands with small integers, run, and compare every element exactly.  Raises `Wrong` naming the first.

    Sums of k < 2^24 products of {−1, 0, 1} are exact in float32 in any order, so float32 is reference enough, except for
    the float32 kernel itself, which is held against float64.  For float64 each row of the operands is multiplied by an integer,
    so large that sums still fit 53 bits: the float32 sums of the small ones, multiplied by both, are the exact reference.
    """
    k = a.shape[1]
    fill_ternary(a, k, generator)
    fill_ternary(b, k, generator)
    poison(c)
    wide = torch.float64 if a.dtype == torch.float32 else torch.float32
    expected = torch.mm(a.to(wide), b.to(wide).T)
    if a.dtype == torch.float64:
        expected = expected.double()
        for operand, product in ((a, expected), (b, expected.T)):
            most = 1 << (53 - k.bit_length()) // 2
            factors = torch.randint(1, most + 1, (len(operand), 1), generator=generator, device=a.device).double()
            operand.mul_(factors)
            product.mul_(factors)
    run()
    expected = (expected * scale).to(c.dtype) if scale != 1 else expected.to(c.dtype)
    if not torch.equal(c, expected):
        differs = c != expected  # NaN differs from everything
        row, column = divmod(int(differs.flatten().to(torch.uint8).argmax()), c.shape[1])
        raise Wrong(
            f"small integers: row {row}, column {column}: expected {float(expected[row, column]):{DIGITS[c.itemsize]}}, "
            f"got {float(c[row, column]):{DIGITS[c.itemsize]}} ({int(differs.sum())} of {c.numel()} elements differ)"
        )


def exact_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a·bᵀ of float64 matrices, each element rounded by less than its own last place and a trifle of Σ|aᵢbᵢ| (2⁻⁶⁰ and less).

    Both are cut into slices of multiples of a power of two, of as many bits that k products of two slices are summed exactly.
    """
    bits = (53 - (a.shape[1]).bit_length()) // 2
    left = list(_slices(a, bits))
    parts: dict[int, list[torch.Tensor]] = {}
    for j, right in enumerate(_slices(b, bits)):
        for i, sliced in enumerate(left):
            parts.setdefault(i + j, []).append(sliced @ right.T)
    total = torch.zeros((a.shape[0], b.shape[0]), dtype=torch.float64, device=a.device)
    for order in sorted(parts, reverse=True):  # the smallest first
        for part in parts[order]:
            total += part
    return total


def _slices(matrix: torch.Tensor, bits: int) -> Iterator[torch.Tensor]:
    """Matrices that sum to ``matrix`` exactly, the largest first: integers of at most ``bits`` bits times a power of two each."""
    rest, most = matrix, float(matrix.abs().max())
    if not math.isfinite(most):  # operands were overwritten: nothing is left to be exact about
        yield matrix
        return
    unit = 2.0 ** math.frexp(most)[1]
    while bool(rest.any()):
        unit *= 2.0**-bits
        piece = (rest / unit).round() * unit
        yield piece
        rest = rest - piece


def _double(tensor: torch.Tensor) -> torch.Tensor:
    """As float64; types of one byte by way of float32, which every device converts them to."""
    return (tensor.float() if tensor.itemsize == 1 else tensor).double()


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
