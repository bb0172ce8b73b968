"""What attention must be: references in float64, error bounds from the dtype, and checks of outputs and gradients.

Shapes: ``q``, ``o``, ``do``, ``dq`` (batch × heads × queries × D); ``k``, ``v``, ``dk``, ``dv`` (batch × kv heads × keys × D).
O = softmax(Q·Kᵀ/√D)·V.  G = heads / kv heads query heads in a row share one head of K and V.  Causal: query i sees the keys
up to i + keys − queries.

Bounds, for data of zero mean.  u is the unit roundoff of the dtype, w the softmax's weights, and every fused kernel rounds the
weights (and dS) to the dtype before it multiplies them, sums in fp32 and rounds once more in the end.  Rounding errors are
independent and of mean zero, so that a sum of terms tⱼ with relative errors up to η is off by more than λ·η·√Σtⱼ² with a
probability ≤ 2·exp(−λ²/2) (Hoeffding); λ = 8: below 1e-13.  With e, the error of a score (fp32 on tensor cores, which
truncate: unit roundoff 2⁻²², as in `kernels.products`), η = u + e:

* O: λ·η·√Σ(wⱼvⱼ)² + u·|O|;  dV the same with w·dO.
* delta = Σ O·dO comes from the rounded O, and is off by λ·ε, ε = √Σ((u·|O| + √Σ(wⱼηvⱼ)²)·dO)², the same for all of a row.
* dS = w·(dP − delta) is off by 2η·|dS| + w·(e of dP), which dQ = dS·K/√D and dK = dSᵀ·Q/√D sum as above; and by w·λ·ε.
* dK and dV may be rounded once for each of the G heads, and then again.  torch's CPU kernel keeps their sums in the dtype between
  blocks (seen: four roundings, whatever the length): for `PARTIALS` roundings of sums as large as their final spread, squares
  of errors count 1 + `PARTIALS` times.
* The smallest fp16 numbers have an absolute error, 2⁻²⁵, in weights (at most 1), dS and outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from clustergauge.probe import Wrong

LAMBDA = 8.0
SUMS = 2.0**-22
"""Unit roundoff of fp32 sums on tensor cores."""
ROWS = 8
"""Queries of each head that are always compared."""
PARTIALS = 3
PIECE = 1 << 22
"""Most scores that a reference holds at a time."""
WHOLE = {"cpu": 1 << 32, "cuda": 1 << 37}
"""Multiply-adds to spend on comparing whole heads: all heads where that is enough, at least one where it is not."""
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LEAST = {torch.bfloat16: 0.0, torch.float16: 2.0**-25}


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention; ``causal`` needs queries ≤ keys."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool

    @property
    def group(self) -> int:
        """Query heads that share a head of K and V."""
        return self.heads // self.kv_heads

    @property
    def pairs(self) -> int:
        """(query, visible key) pairs of one head: Σᵢ (i + 1 + keys − queries) if causal, else queries × keys."""
        rectangle = self.queries * self.keys
        return rectangle - self.queries * (self.queries - 1) // 2 if self.causal else rectangle

    @property
    def flops(self) -> int:
        """Of a forward pass: 4·D for each visible pair (Q·Kᵀ and P·V, a multiply-add is two), softmax not counted."""
        return 4 * self.head_dim * self.pairs * self.batch * self.heads

    def sees(self, rows: torch.Tensor) -> torch.Tensor:
        """Which keys (columns) the given queries (rows) see."""
        keys = torch.arange(self.keys, device=rows.device)
        last = rows + (self.keys - self.queries) if self.causal else torch.full_like(rows, self.keys)
        return keys <= last[:, None]


class Tensors(NamedTuple):
    """Inputs and outputs of one set; ``grads``: dQ, dK, dV, or nothing for a forward pass."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    do: torch.Tensor | None = None
    grads: tuple[torch.Tensor, ...] = ()


class _Rows(NamedTuple):
    """References of some queries of one head, and what their errors depend on."""

    weights: torch.Tensor
    eta: torch.Tensor
    o: torch.Tensor
    spread: torch.Tensor
    """√Σ(wⱼvⱼ)² of each output."""
    allowed: torch.Tensor


def _reference(
    shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, unit: float, least: float
) -> _Rows:
    scale = shape.head_dim**-0.5
    scores = (q @ k.T * scale).masked_fill_(~shape.sees(rows), -math.inf)
    weights = torch.softmax(scores, 1)
    # |q|·|k| bounds Σ|qᵢkᵢ| (Cauchy-Schwarz), and needs no product of matrices.
    size = q.norm(dim=1)[:, None] * k.norm(dim=1)[None, :]
    eta = unit + LAMBDA * math.sqrt(shape.head_dim) * SUMS * scale * size
    o = weights @ v
    spread = ((weights * eta + least).square() @ v.square()).sqrt()
    return _Rows(weights, eta, o, spread, LAMBDA * spread + unit * (o.abs() + LAMBDA * spread) + least)


def check_rows(shape: Shape, t: Tensors, seed: int) -> None:
    """Compare outputs with float64: `ROWS` queries of every head, and all of as many heads as `WHOLE` allows; all are finite.

    Raises `Wrong` naming batch, head, query, column.
    """
    check_finite(t.o, "output")
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(shape.queries, (ROWS,), generator=generator).tolist()
    some = torch.tensor(sorted({0, shape.queries - 1, *picks}), device=t.q.device)
    everything = torch.arange(shape.queries, device=t.q.device)
    whole = _chosen(shape, 4 * shape.head_dim * shape.queries * shape.keys, shape.heads, t.q.device.type, generator)
    for batch in range(shape.batch):
        for row in range(shape.kv_heads):
            k, v = t.k[batch, row].double(), t.v[batch, row].double()
            for head in range(row * shape.group, (row + 1) * shape.group):
                wanted = everything if batch * shape.heads + head in whole else some
                for rows in wanted.split(max(1, PIECE // shape.keys)):
                    q = t.q[batch, head, rows]
                    expected = _reference(shape, q.double(), k, v, rows, UNIT[q.dtype], LEAST[q.dtype])
                    _compare("output", t.o[batch, head, rows], expected.o, expected.allowed, batch, head, rows)


def check_gradients(shape: Shape, t: Tensors, seed: int) -> None:
    """Compare gradients with float64, whole groups of heads, as many as `WHOLE` allows; the rest by what must add up.

    The weights of a query add up to 1, so that Σⱼ dVⱼ = Σᵢ dOᵢ in every column; and ⟨dQ, Q⟩ = ⟨dK, K⟩ = Σ dS·S.
    Raises `Wrong`.
    """
    for name, grad in zip(("dQ", "dK", "dV"), t.grads, strict=True):
        check_finite(grad, name)
    _check_sums(shape, t)
    generator = torch.Generator().manual_seed(seed)
    cost = 12 * shape.head_dim * shape.queries * shape.keys * shape.group
    for chosen in sorted(_chosen(shape, cost, shape.kv_heads, t.q.device.type, generator)):
        _check_group(shape, t, *divmod(chosen, shape.kv_heads))


def _check_group(shape: Shape, t: Tensors, batch: int, row: int) -> None:
    """All gradients of one head of K and V and of the query heads that share it."""
    assert t.do is not None
    unit, least, scale = UNIT[t.q.dtype], LEAST[t.q.dtype], shape.head_dim**-0.5
    k, v = t.k[batch, row].double(), t.v[batch, row].double()
    sums = [torch.zeros_like(k) for _ in range(6)]  # dK, dV, their squared errors, and what rounding each head adds
    dk, dv, dk_error, dv_error, dk_rounding, dv_rounding = sums
    everything = torch.arange(shape.queries, device=t.q.device)
    for head in range(row * shape.group, (row + 1) * shape.group):
        of_head = torch.zeros_like(k), torch.zeros_like(v)
        for rows in everything.split(max(1, PIECE // shape.keys)):
            q, do = t.q[batch, head, rows].double(), t.do[batch, head, rows].double()
            r = _reference(shape, q, k, v, rows, unit, least)
            _compare("output", t.o[batch, head, rows], r.o, r.allowed, batch, head, rows)
            dp, delta = do @ v.T, (do * r.o).sum(1, keepdim=True)
            ds = r.weights * (dp - delta)
            of_dp = LAMBDA * math.sqrt(shape.head_dim) * SUMS * do.norm(dim=1)[:, None] * v.norm(dim=1)[None, :]
            error = 2 * r.eta * ds.abs() + r.weights * of_dp + least
            of_delta = ((unit * r.o.abs() + r.spread) * do).norm(dim=1, keepdim=True)
            dq = scale * (ds @ k)
            allowed = LAMBDA * scale * ((error.square() @ k.square()).sqrt() + of_delta * (r.weights @ k).abs())
            _compare("dQ", t.grads[0][batch, head, rows], dq, allowed * (1 + unit) + unit * dq.abs() + least, batch, head, rows)
            of_head[0].add_(scale * (ds.T @ q))
            of_head[1].add_(r.weights.T @ do)
            dk_error += scale**2 * ((error.square() + (r.weights * of_delta).square()).T @ q.square())
            dv_error += (r.weights * r.eta + least).square().T @ do.square()
        dk += of_head[0]
        dv += of_head[1]
        dk_rounding += of_head[0].abs()
        dv_rounding += of_head[1].abs()
    keys = torch.arange(shape.keys, device=t.q.device)
    for name, got, expected, squares, rounding in (
        ("dK", t.grads[1], dk, dk_error, dk_rounding),
        ("dV", t.grads[2], dv, dv_error, dv_rounding),
    ):
        error = LAMBDA * ((1 + PARTIALS) * squares).sqrt()
        allowed = error + unit * (rounding + expected.abs() + 2 * error) + (shape.group + 1) * least
        _compare(name, got[batch, row], expected, allowed, batch, row, keys)


def _check_sums(shape: Shape, t: Tensors) -> None:
    """What the gradients of all heads must add up to.

    Errors: a weight's is at most u of it, so that those of Σⱼ dVⱼ are at most u·√Σᵢ|dOᵢ|² for weights and u·√Σⱼ dVⱼ² for
    outputs (1 + G times); λ covers both.  For ⟨dQ, Q⟩ and ⟨dK, K⟩ the same with the products' squares; with what is left of dO·V
    minus its mean, two sums in fp32, where a query sees one key alone and both are equal; and with what the smallest numbers of
    the dtype are off in dQ, dK (1 + G times) and dV.
    """
    assert t.do is not None
    unit, least = UNIT[t.q.dtype] + 2.0**-12, LEAST[t.q.dtype]
    size = (shape.batch, shape.kv_heads, shape.group * shape.queries, shape.head_dim)
    for batch in range(shape.batch):
        for row in range(shape.kv_heads):
            q, do, dq = (x.reshape(size)[batch, row].double() for x in (t.q, t.do, t.grads[0]))
            k, v, dk, dv = (x[batch, row].double() for x in (t.k, t.v, *t.grads[1:]))
            expected, got = do.sum(0), dv.sum(0)
            allowed = LAMBDA * unit * (do.square().sum(0).sqrt() + (1 + shape.group) * dv.square().sum(0).sqrt())
            allowed += LAMBDA * least * (1 + shape.group) * math.sqrt(shape.keys)
            worst = int(((got - expected).abs() / allowed).nan_to_num(nan=math.inf).argmax())
            if not float((got - expected).abs()[worst]) <= float(allowed[worst]):
                raise Wrong(
                    f"dV, batch {batch}, head {row}, column {worst}: the sum over keys is {float(got[worst]):.9g}, that of dO "
                    f"{float(expected[worst]):.9g} ± {float(allowed[worst]):.2g}"
                )
            left, right = dq * q, dk * k
            margin = 8 * LAMBDA * unit * (1 + shape.group) * float(left.square().sum().sqrt() + right.square().sum().sqrt())
            longest = float((do.norm(dim=1) * q.norm(dim=1)).norm() * v.norm(dim=1).max() * k.norm(dim=1).max())
            margin += SUMS * longest / math.sqrt(shape.head_dim)
            margin += LAMBDA * least * (1 + shape.group) * float(q.square().sum().sqrt() + k.square().sum().sqrt())
            if not abs(float(left.sum() - right.sum())) <= margin:
                raise Wrong(
                    f"batch {batch}, head {row}: the sum of dQ·Q is {float(left.sum()):.9g}, that of dK·K "
                    f"{float(right.sum()):.9g}, and they must agree to ± {margin:.2g}"
                )


def check_finite(values: torch.Tensor, name: str) -> None:
    """Raises `Wrong` naming an element that is not a finite number (poison that was not overwritten is none)."""
    flat = values.reshape(-1, values.shape[-1])
    bad = ~torch.isfinite(flat)
    if bool(bad.any()):
        row, column = divmod(int(bad.flatten().to(torch.uint8).argmax()), flat.shape[1])
        head, place = divmod(row, values.shape[2])
        raise Wrong(
            f"{name}, batch {head // values.shape[1]}, head {head % values.shape[1]}, row {place}, column {column}: "
            f"got {float(flat[row, column])!r} ({int(bad.sum())} of {values.numel()} elements are not finite)"
        )


def poison(outputs: Sequence[torch.Tensor]) -> None:
    """NaN everywhere."""
    for output in outputs:
        output.fill_(math.nan)


def digest(outputs: Sequence[torch.Tensor]) -> str:
    """BLAKE2b, 16 bytes in hexadecimal, of the sums of rows and of columns of each head's bits, read as integers.

    Summed where the data is, so that little leaves the device; one element that changes always changes two sums.
    """
    told = hashlib.blake2b(digest_size=16)
    for output in outputs:
        bits = output.view(torch.int16)
        for dim in (-1, -2):
            told.update(bits.sum(dim, dtype=torch.int64).contiguous().cpu().numpy().data)
    return told.hexdigest()


def _chosen(shape: Shape, cost: int, heads: int, device: str, generator: torch.Generator) -> set[int]:
    """Which of batch × heads are compared whole: as many as `WHOLE` allows, at least one."""
    order = torch.randperm(shape.batch * heads, generator=generator).tolist()
    return set(order[: max(1, WHOLE[device] // cost)])


def _compare(
    name: str, got: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor, batch: int, head: int, rows: torch.Tensor
) -> None:
    excess = ((got.double() - expected).abs() - allowed).nan_to_num(nan=math.inf)
    if bool((excess > 0).any()):
        row, column = divmod(int(excess.argmax()), excess.shape[1])
        raise Wrong(
            f"{name}, batch {batch}, head {head}, row {int(rows[row])}, column {column}: expected "
            f"{float(expected[row, column]):.9g} ± {float(allowed[row, column]):.2g}, got {float(got[row, column]):.9g}"
        )
