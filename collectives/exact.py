"""Inputs of a sum over ranks whose result is exact in the dtype, so that it can be compared bit for bit.

Every rank contributes integers.  The sum of their magnitudes over all ranks stays within the integers that the dtype holds
exactly, so every partial sum is exact too: in any order, along any tree or ring, for any number of ranks.  bf16 holds integers
to 256 only; there an element is non-zero on at most 128 ranks, and the next element on the next 128.

Values depend on rank and element through a hash, so a rank that is missing, counted twice or given another rank's place, and
data that moved by some elements, change the sum.  The pattern repeats after `PERIOD` elements, a prime: no chunk of a
collective is a multiple of it.  What a message of a few elements can show is limited by their number: 8 B of bf16 are four
elements, which 512 ranks reach.

Values live in integer arrays that hold the bits of the dtype (``int16``, ``int32``, ``int64``): bf16 needs no library, and bits
are what is compared.
"""

from __future__ import annotations

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
    """A dtype: its size, the numpy and torch names of the integer that holds its bits, and the largest ``limit`` such that
    every integer in ±limit is exact in it (2 to the number of significand bits)."""

    bytes: int
    bits: str
    limit: int


FORMATS = {
    "fp64": Format(8, "int64", 2**53),
    "fp32": Format(4, "int32", 2**24),
    "fp16": Format(2, "int16", 2**11),
    "bf16": Format(2, "int16", 2**8),
}


def contribution(dtype: str, rank: int, ranks: int, length: int) -> NDArray[np.int64]:
    """What ``rank`` of ``ranks`` adds: the first ``length`` (at most `PERIOD`) elements, whole numbers."""
    import numpy as np

    limit = FORMATS[dtype].limit
    active = min(ranks, limit // 2)
    largest = min(limit // active, _LARGEST)
    element = np.arange(length, dtype=np.uint32)
    x = element * np.uint32(0x9E3779B1) + np.uint32((rank + 1) * 0x85EBCA77 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    value = ((x.astype(np.uint64) * np.uint64(2 * largest)) >> np.uint64(32)).astype(np.int64) - largest
    value += value >= 0  # −largest … −1, 1 … largest: never zero
    if active < ranks:
        value[(rank - element.astype(np.int64) * active) % ranks >= active] = 0
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
    floats = {"fp64": np.float64, "fp32": np.float32, "fp16": np.float16}[dtype]
    return values.astype(floats).view(FORMATS[dtype].bits)


def decode(bits: int, dtype: str) -> float:
    """The number that these bits (a signed integer) mean."""
    import numpy as np

    if dtype == "bf16":
        return float(np.int32(bits << 16).view(np.float32))
    floats = {"fp64": np.float64, "fp32": np.float32, "fp16": np.float16}[dtype]
    return float(np.array(bits, FORMATS[dtype].bits).view(floats))


def fill(out: Any, pattern: Any) -> None:
    """Repeat ``pattern`` until ``out`` is full.  Both one-dimensional, numpy arrays or torch tensors on one device."""
    whole = len(out) // len(pattern) * len(pattern)
    out[:whole].reshape(-1, len(pattern))[:] = pattern
    out[whole:] = pattern[: len(out) - whole]


def compare(got: Any, pattern: Any, dtype: str, rank: int) -> None:
    """Raise `Wrong` unless ``got`` is ``pattern`` repeated, bit for bit; names the first wrong element, rank, expected and got.

    Both are one-dimensional arrays of bits: numpy arrays, or torch tensors on one device.
    """
    import numpy as np

    period = len(pattern)
    step = max(1, 2**22 // period) * period  # compared in parts: comparing needs memory too
    wrong, message = 0, ""
    for start in range(0, len(got), step):
        part = got[start : start + step]
        whole = len(part) // period * period
        body, tail = part[:whole].reshape(-1, period) == pattern, part[whole:] == pattern[: len(part) - whole]
        if bool(body.all()) and bool(tail.all()):
            continue
        mine, want = _on_host(part), np.resize(_on_host(pattern), len(part))
        differ = np.flatnonzero(mine != want)
        wrong += len(differ)
        if not message:
            first = int(differ[0])
            message = (
                f"element {start + first} of {len(got)} on rank {rank}: expected {decode(int(want[first]), dtype)!r}, "
                f"got {decode(int(mine[first]), dtype)!r}"
            )
    if wrong:
        raise Wrong(f"{message} (elements wrong: {wrong})")


def _on_host(array: Any) -> NDArray[Any]:
    """A numpy array of a numpy array or a torch tensor."""
    return array.cpu().numpy() if hasattr(array, "cpu") else array
