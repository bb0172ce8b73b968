"""Attention on inputs whose result is known to the bit: each query weighs one key 1, or two keys ½, or all that it sees alike.

* Codes.  The four digits (radix D/4) of a key's place, each one-hot in a quarter of its D columns, make the key.  A query that
  bears weight on the digits of one key, and on the one digit in which a second key differs, scores both alike and all others
  lower by more than 200 in base 2, which leaves no trace in any dtype.  Of a causal attention every second query weighs its
  own window of keys by a ramp instead: the last key that it sees wins, by 2¹⁶ over the one before, and would lose to the first
  that it must not see.
* Values are ±1 and ±2, so that the output (vₐ + v_b)/2 is exact.  A fused kernel may subtract a maximum that it had rounded:
  scores stay below 2¹² in base 2, which makes weights off by at most 2⁻¹³, less than the dtypes can show.
* Gradients: dS is ±¼(dPₐ − dP_b), an exact quarter where dO is −1, 0, 1.  dQ and dK bear a factor 1/√D that kernels apply
  where they like, so these are held to be the right whole number of units, not the right bits.
* Counts.  Queries of zero see all keys alike: the output times the number of keys is the sum of their values, ±1, whose running
  sums stay small: a key read twice, or not at all, makes another whole number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from clustergauge.probe import Wrong
from kernels.attended import UNIT, Shape, Tensors, check_finite

WEIGHT = 2048.0
"""Of a digit, with keys of one."""
STEP = 128.0
"""Of the ramp: 2¹⁶ (D = 128) or 2²³ (D = 64) from key to key."""
DIGITS = 4
BALANCED = 30
"""Keys after which the sum of values is zero again: no multiple of a kernel's tile."""


def most_keys(head_dim: int) -> int:
    """How many keys have codes of their own: (D/4)⁴."""
    return (head_dim // DIGITS) ** DIGITS


def check_exact(shape: Shape, t: Tensors, run: Callable[[], Tensors], seed: int) -> None:
    """Overwrite the inputs with codes, run, and compare every element.  Raises `Wrong` naming the first that differs.

    ``run``: poisons the outputs, computes them from the inputs as they are now, and returns them.
    """
    generator = torch.Generator(t.q.device).manual_seed(seed)
    with torch.no_grad():
        first, second = _fill(shape, t, generator)
    got = run()
    for name, made in zip(("output", "dQ", "dK", "dV"), (got.o, *got.grads), strict=False):
        check_finite(made, f"codes: {name}")
    with torch.no_grad():
        for batch in range(shape.batch):
            for row in range(shape.kv_heads):
                _compare_group(shape, got, first, second, batch, row)


def check_counts(shape: Shape, t: Tensors, run: Callable[[], Tensors], seed: int) -> None:
    """Overwrite queries with zeros and values with ±1, run, and hold every element to be the right whole number.

    Raises `Wrong`.
    """
    generator = torch.Generator(t.q.device).manual_seed(seed)
    t.q.zero_()
    blocks = -(-shape.keys // BALANCED)
    for batch in range(shape.batch):
        for row in range(shape.kv_heads):
            draw = torch.rand((blocks, BALANCED, shape.head_dim), generator=generator, device=t.q.device)
            signs = (draw.argsort(1) < BALANCED // 2) * 2 - 1
            t.v[batch, row] = signs.reshape(-1, shape.head_dim)[: shape.keys].to(t.v.dtype)
    got = run().o
    check_finite(got, "counts: output")
    last = torch.arange(shape.queries, device=t.q.device) + (shape.keys - shape.queries)
    if not shape.causal:
        last = torch.full_like(last, shape.keys - 1)
    sums = t.v.double().cumsum(2)[:, :, last].repeat_interleave(shape.group, 1)
    found = got.double() * (last + 1)[:, None]
    _refuse((found - sums).abs() >= 0.5, "counts: the sum of the values", found, sums)


def _code(place: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Half a window on, so that windows end inside the tiles of kernels; and all digits are used from the start."""
    return (place + head_dim // DIGITS // 2) % most_keys(head_dim)


def _digits(code: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Columns (…×4) of the digits, lowest first."""
    radix = head_dim // DIGITS
    powers = torch.tensor([radix**f for f in range(DIGITS)], device=code.device)
    return code[..., None] // powers % radix + radix * torch.arange(DIGITS, device=code.device)


def _fill(shape: Shape, t: Tensors, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite the inputs; returns the two keys (batch × heads × queries) that each query weighs alike (they may be one)."""
    d, device = shape.head_dim, t.q.device
    radix = d // DIGITS
    keys = torch.arange(shape.keys, device=device)
    t.k.copy_(torch.zeros((shape.keys, d), device=device).scatter_(1, _digits(_code(keys, d), d), 1.0))
    size = (shape.batch, shape.heads, shape.queries)

    def draw(*more: int) -> torch.Tensor:
        return torch.rand((*size, *more), generator=generator, device=device)

    place = torch.arange(shape.queries, device=device)
    last = place + (shape.keys - shape.queries) if shape.causal else torch.full_like(place, shape.keys - 1)
    first = torch.minimum((draw() * (last + 1)).long(), last)
    code = _code(first, d)
    power = radix ** (draw() * DIGITS).long().clamp(max=DIGITS - 1)
    old = code // power % radix
    changed = code + ((draw() * radix).long() % radix - old) * power
    second = (changed - radix // 2) % most_keys(d)
    second = torch.where(second <= last, second, first)
    q = torch.zeros((*size, d), device=device)
    q.scatter_(3, _digits(_code(first, d), d), WEIGHT).scatter_(3, _digits(_code(second, d), d), WEIGHT)
    if shape.causal:
        ramp = torch.zeros((shape.queries, d), device=device)
        ramp.scatter_(1, _digits(_code(last, d), d), 48.0 * d)
        ramp[:, :radix] = STEP * torch.arange(radix, device=device)
        even = place % 2 == 0
        q = torch.where(even[:, None], ramp, q)
        first, second = torch.where(even, last, first), torch.where(even, last, second)
    t.q.copy_(q)
    sign = torch.randint(0, 2, t.v.shape, generator=generator, device=device) * 2 - 1
    t.v.copy_(sign * torch.randint(1, 3, t.v.shape, generator=generator, device=device))
    if t.do is not None:
        chance = torch.rand(t.do.shape, generator=generator, device=device)
        t.do.copy_((chance < 1 / 16).float() - (chance > 15 / 16).float())
    return first, second


def _compare_group(shape: Shape, got: Tensors, first: torch.Tensor, second: torch.Tensor, batch: int, row: int) -> None:
    heads = slice(row * shape.group, (row + 1) * shape.group)
    q, k, v = (x.double() for x in (got.q[batch, heads], got.k[batch, row], got.v[batch, row]))
    one, two = first[batch, heads], second[batch, heads]
    expected = (v[one] + v[two]) / 2
    where = f", batch {batch}, head {row}"
    output = got.o[batch, heads].double()
    _refuse(output != expected, f"codes: output{where} (of K)", output, expected)
    if got.do is None:
        return
    do, scale, d = got.do[batch, heads].double(), shape.head_dim**-0.5, shape.head_dim
    ds = (do * (v[one] - v[two])).sum(-1, keepdim=True) / 4
    dq = ds * (k[one] - k[two]) * 4
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for place, sign in ((one, 4 / WEIGHT), (two, -4 / WEIGHT)):
        dk.index_add_(0, place.flatten(), (sign * ds * q).reshape(-1, d))
        dv.index_add_(0, place.flatten(), do.reshape(-1, d))
    for name, grad, unit, wanted in (
        ("dQ", got.grads[0][batch, heads], scale / 4, dq),
        ("dK", got.grads[1][batch, row], scale * WEIGHT / 4, dk),
        ("dV", got.grads[2][batch, row], 0.5, dv),
    ):
        found = grad.double() / unit
        # a quarter of a unit, and what rounding large numbers adds
        allowed = 0.25 + 4 * UNIT[grad.dtype] * wanted.abs()
        _refuse((found - wanted).abs() > allowed, f"codes: {name}{where} (of K)", found, wanted)


def _refuse(differs: torch.Tensor, what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if bool(differs.any()):
        place = torch.unravel_index(differs.flatten().to(torch.uint8).argmax(), differs.shape)
        raise Wrong(
            f"{what}, element [{', '.join(str(int(p)) for p in place)}]: expected {float(expected[place]):.9g}, got "
            f"{float(found[place]):.9g} ({int(differs.sum())} of {differs.numel()} elements differ)"
        )
