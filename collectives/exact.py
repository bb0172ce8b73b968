"""Inputs of collectives whose outcome is known bit for bit, and the comparison.

Sums: every rank contributes integers.  The sum of their magnitudes over all ranks stays within the integers that the dtype holds
exactly, so every partial sum is exact too: in any order, along any tree or ring, for any number of ranks.  bf16 holds integers
to 256 only; there an element is non-zero on at most 128 ranks, and the next element on the next 128.  Data that only moves
(`payload`) is never zero and has the whole range.

Values depend on rank and element through a hash, so a rank that is missing, counted twice or given another rank's place, and
data that moved by some elements, change the sum.  The pattern repeats after `PERIOD` elements, a prime: no chunk of a
collective is a multiple of it.  What a message of a few elements can show is limited by their number: 8 B of bf16 are four
elements, which 512 ranks reach.

Values live in integer arrays that hold the bits of the dtype (``int16``, ``int32``, ``int64``): bf16 needs no library, and bits
are what is compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clustergauge.probe import Wrong

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERIOD = 16381
"""Elements after which the pattern repeats: the largest prime below 2¹⁴."""
_LARGEST = 2**30
"""No value is larger, so that the hash fits 64-bit arithmetic."""


@dataclass(frozen=True)
class Format:
    """A dtype: its size, the numpy and torch names of the integer that holds its bits, and a ``limit`` such that every integer
    in ±limit is exact in it (2 to the number of significand bits; of an integer, its largest value)."""

    bytes: int
    bits: str
    limit: int


FORMATS = {
    "fp64": Format(8, "int64", 2**53),
    "fp32": Format(4, "int32", 2**24),
    "fp16": Format(2, "int16", 2**11),
    "bf16": Format(2, "int16", 2**8),
    "int32": Format(4, "int32", 2**31 - 1),
}
_FLOATS = {"fp64": "float64", "fp32": "float32", "fp16": "float16"}


def contribution(dtype: str, rank: int, ranks: int, length: int) -> NDArray[np.int64]:
    """What ``rank`` of ``ranks`` adds: the first ``length`` (at most `PERIOD`) elements, whole numbers."""
    import numpy as np

    limit = FORMATS[dtype].limit
    active = min(ranks, limit // 2)
    value = _hashed(rank, min(limit // active, _LARGEST), length)
    if active < ranks:
        value[(rank - np.arange(length) * active) % ranks >= active] = 0
    return value


def payload(dtype: str, key: int, length: int) -> NDArray[np.int64]:
    """Data that only moves: the first ``length`` (at most `PERIOD`) elements of what ``key`` names, whole numbers but zero."""
    return _hashed(key, min(FORMATS[dtype].limit, _LARGEST), length)


def _hashed(key: int, largest: int, length: int) -> NDArray[np.int64]:
    """Whole numbers in ±``largest``, never zero, by key (below 2³²) and element."""
    import numpy as np

    element = np.arange(length, dtype=np.uint32)
    x = element * np.uint32(0x9E3779B1) + np.uint32((key + 1) * 0x85EBCA77 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    value = ((x.astype(np.uint64) * np.uint64(2 * largest)) >> np.uint64(32)).astype(np.int64) - largest
    value += value >= 0  # −largest … −1, 1 … largest
    return value


def total(dtype: str, ranks: int, length: int) -> NDArray[np.int64]:
    """The sum of all contributions."""
    import numpy as np

    result = np.zeros(length, np.int64)
    for rank in range(ranks):
        result += contribution(dtype, rank, ranks, length)
    return result


def encode(values: NDArray[np.int64], dtype: str) -> NDArray[Any]:
    """The bits of whole numbers (exact in ``dtype``) as signed integers of its size."""
    import numpy as np

    if dtype == "bf16":  # the upper half of fp32; the lower is zero for what bf16 holds exactly
        return (values.astype(np.float32).view(np.int32) >> 16).astype(np.int16)
    return values.astype(_FLOATS.get(dtype, dtype)).view(FORMATS[dtype].bits)


def decode(bits: int, dtype: str) -> float:
    """The number that these bits (a signed integer) mean."""
    import numpy as np

    if dtype == "bf16":
        return float(np.int32(bits << 16).view(np.float32))
    return np.array(bits, FORMATS[dtype].bits).view(_FLOATS.get(dtype, dtype)).item()


def fill(out: Any, pattern: Any) -> None:
    """Repeat ``pattern`` until ``out`` is full.  Both one-dimensional, numpy arrays or torch tensors on one device."""
    whole = len(out) // len(pattern) * len(pattern)
    out[:whole].reshape(-1, len(pattern))[:] = pattern
    out[whole:] = pattern[: len(out) - whole]


def compare(got: Any, pattern: Any, dtype: str, rank: int) -> None:
    """`compare_blocks` of a single block."""
    compare_blocks(got, len(got), [pattern], dtype, rank)


def compare_blocks(got: Any, length: int, patterns: Iterable[Any], dtype: str, rank: int) -> None:
    """Raise `Wrong` unless each block of ``length`` elements of ``got`` is its pattern repeated, bit for bit.

    Names the first wrong element with its rank, expected and got.  All are one-dimensional arrays of bits: numpy arrays, or
    torch tensors on one device.
    """
    wrong, first = 0, ""
    for start, pattern in zip(range(0, len(got), length), patterns, strict=True):
        differing, element, expected, found = _differences(got[start : start + length], pattern)
        if differing and not wrong:
            values = f"expected {decode(expected, dtype)!r}, got {decode(found, dtype)!r}"
            first = f"element {start + element} of {len(got)} on rank {rank}: {values}"
        wrong += differing
    if wrong:
        raise Wrong(f"{first} (elements wrong: {wrong})")


def _differences(got: Any, pattern: Any) -> tuple[int, int, int, int]:
    """How many elements of ``got`` differ from ``pattern`` repeated; the first of them, what it must be and what it is."""
    import numpy as np

    period = len(pattern)
    step = max(1, 2**22 // period) * period  # compared in parts: comparing needs memory too
    wrong, first, expected, found = 0, 0, 0, 0
    for start in range(0, len(got), step):
        part = got[start : start + step]
        whole = len(part) // period * period
        body, tail = part[:whole].reshape(-1, period) == pattern, part[whole:] == pattern[: len(part) - whole]
        if bool(body.all()) and bool(tail.all()):
            continue
        mine, want = _on_host(part), np.resize(_on_host(pattern), len(part))
        differ = np.flatnonzero(mine != want)
        if not wrong:
            at = int(differ[0])
            first, expected, found = start + at, int(want[at]), int(mine[at])
        wrong += len(differ)
    return wrong, first, expected, found


def _on_host(array: Any) -> NDArray[Any]:
    """A numpy array of a numpy array or a torch tensor."""
    return array.cpu().numpy() if hasattr(array, "cpu") else array
