"""Shapes of matrix products C (M×N) = A (M×K) · B (N×K)ᵀ: how they are written, and names for those of language models.

A name is a projection of a model at 4096 tokens (prefill, training), ``llama3-8b-qkv``, or at ``-m1`` to ``-m64`` of them
(decode: as many sequences as that, one token each).  A name never changes its meaning, so it is part of a case's id as it was
written; M×N×K is a setting of the record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from clustergauge.errors import UsageError

Shape = tuple[int, int, int]
"""M, N, K."""

LONGEST = 1 << 20
TOKENS = 4096
"""M where a name has none of its own."""
DECODE = (1, 8, 16, 32, 64)
"""M of small batches."""


def _projections(hidden: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """N and K of a layer's products as inference engines run them: q, k and v in one, gate and up in one (vLLM, SGLang)."""
    head = hidden // heads
    return {
        "qkv": ((heads + 2 * kv_heads) * head, hidden),
        "o": (hidden, hidden),
        "gate_up": (2 * intermediate, hidden),
        "down": (hidden, intermediate),
    }


WEIGHTS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    # config.json of meta-llama/Meta-Llama-3-8B: hidden_size, num_attention_heads, num_key_value_heads, intermediate_size
    "llama3-8b": _projections(4096, 32, 8, 14336),
    # config.json of meta-llama/Meta-Llama-3-70B
    "llama3-70b": _projections(8192, 64, 8, 28672),
}
"""N and K of every projection, by model ("The Llama 3 Herd of Models", table 3, has the same figures)."""


def _named() -> dict[str, Shape]:
    named: dict[str, Shape] = {}
    for model, weights in WEIGHTS.items():
        for projection, (n, k) in weights.items():
            named[f"{model}-{projection}"] = (TOKENS, n, k)
            named |= {f"{model}-{projection}-m{m}": (m, n, k) for m in DECODE}
    return named


NAMED: Mapping[str, Shape] = _named()
"""Every name there is."""

SEARCHED: Mapping[str, tuple[str, ...]] = {
    "cpu": (
        "256", "384", "512", "768", "1024", "768x3072x768", "1536", "2048", "1024x8192x1024", "1024x1024x8192", "3072", "4096",
        "6144", "8192",
    ),
    "cuda": (
        "2048", "3072", "4096", "2048x8192x4096", "5120", "4096x8192x4096", "6144", "4096x4096x16384", "8192x8192x4096",
        "4096x16384x8192", "8192", "8192x4096x16384", "10240", "8192x8192x16384", "8192x16384x8192", "12288", "16384x8192x16384",
        "16384",
    ),
}  # fmt: skip
"""What the search for the best rate looks at, smaller products first: squares, and products longer along one or two edges.

Which is best depends on how evenly the multiprocessors share the tiles, on caches and on power (mamf-finder of
stas00/ml-engineering tries a grid of all three edges)."""


def parse_shape(text: str) -> Shape:
    """``2048`` is square, ``200x136x96`` is M×N×K, or one of `NAMED`.  Raises `UsageError` with an example."""
    if text in NAMED:
        return NAMED[text]
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}x[1-9]\d{0,6})?", text, re.ASCII):
        raise UsageError(
            f"not a shape: {text!r} (write 2048, or MxNxK: 200x136x96, or a name: {_example(text)}; kernels/shapes.py has all)"
        )
    edges = [int(edge) for edge in text.split("x")]
    if max(edges) > LONGEST:
        raise UsageError(f"shape {text}: no edge may be longer than {LONGEST}")
    return (edges[0], edges[-2], edges[-1]) if len(edges) == 3 else (edges[0],) * 3


def format_shape(shape: Shape) -> str:
    """``200x136x96``, always with all edges."""
    return "x".join(map(str, shape))


def _example(text: str) -> str:
    """The name that was probably meant."""
    import difflib

    return next(iter(difflib.get_close_matches(text[:100], NAMED, 1)), "llama3-8b-qkv-m16")
