"""What each operation sends and must receive, rank by rank, for any number of ranks: pure, so that it is tested for many.

A buffer is a row of blocks of equal length.  For operations that deal out or collect (``split``), S of nccl-tests is what a rank
holds of all ranks together: n blocks.  For the others it is one block.  Definitions: nccl-tests, ``src/*.cu``
(``…GetCollByteCount``) and ``doc/PERFORMANCE.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from collectives import exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = 0
"""Who sends to all, or receives from all, in the operations that have such a rank."""
_ALIGNMENT = 16
"""Bytes: where a block is as long, nccl-tests makes it a whole multiple."""


@dataclass(frozen=True)
class Block:
    """One block of a buffer.  ``data``: what only moves, of the given key.  ``part``: what rank ``key`` adds to the block of that
    ``index`` of the sum.  ``sum``: that block of the sum."""

    kind: Literal["data", "part", "sum"]
    key: int = 0
    index: int = 0

    def bits(self, dtype: str, ranks: int, length: int) -> NDArray[Any]:
        """Its elements as bits, until they repeat: the first `exact.PERIOD` of ``length``."""
        import numpy as np

        if self.kind == "data":
            return _data(dtype, self.key, min(length, exact.PERIOD))
        whole = _total(dtype, ranks) if self.kind == "sum" else _part(dtype, self.key, ranks)
        return whole[(self.index * length + np.arange(min(length, exact.PERIOD))) % exact.PERIOD]


@functools.lru_cache(maxsize=64)
def _data(dtype: str, key: int, length: int) -> NDArray[Any]:
    return exact.encode(exact.payload(dtype, key, length), dtype)


@functools.lru_cache(maxsize=4)
def _part(dtype: str, rank: int, ranks: int) -> NDArray[Any]:
    return exact.encode(exact.contribution(dtype, rank, ranks, exact.PERIOD), dtype)


@functools.lru_cache(maxsize=4)
def _total(dtype: str, ranks: int) -> NDArray[Any]:
    return exact.encode(exact.total(dtype, ranks, exact.PERIOD), dtype)


Blocks = Callable[[int, int], Sequence[Block]]
"""The blocks of a buffer for (rank, ranks); none where the rank has no such buffer."""


@dataclass(frozen=True)
class Operation:
    """``split``: S is all blocks together.  ``sums``: adds up, rather than only moves.  ``shared_at``: the blocks of a buffer
    that is used in place at which input and output begin, for (rank, ranks).  ``again``: a second run in place gives the same."""

    name: str
    split: bool
    sums: bool
    sends: Blocks
    receives: Blocks
    shared_at: Callable[[int, int], tuple[int, int]]
    again: bool = True

    def length(self, size: int, ranks: int, dtype: str) -> int:
        """Elements of a block for a message of ``size`` bytes; 0 if it does not reach for one element a block."""
        item = exact.FORMATS[dtype].bytes
        count = size // item // (ranks if self.split else 1)
        return count & ~(_ALIGNMENT // item - 1) or count if self.split else count

    def message_bytes(self, length: int, ranks: int, dtype: str) -> int:
        """S of nccl-tests for blocks of that length."""
        return length * exact.FORMATS[dtype].bytes * (ranks if self.split else 1)


def _one(kind: Literal["data", "part", "sum"], at_root_only: bool = False) -> Blocks:
    """One block: the rank's own, or the sum."""

    def blocks(rank: int, _ranks: int) -> Sequence[Block]:
        key = 0 if kind == "sum" else rank
        return () if at_root_only and rank != ROOT else (Block(kind, key),)

    return blocks


def _all(key: Callable[[int, int, int], int], at_root_only: bool = False) -> Blocks:
    """A block of data for each rank; ``key`` of (rank, other, ranks)."""

    def blocks(rank: int, ranks: int) -> Sequence[Block]:
        if at_root_only and rank != ROOT:
            return ()
        return tuple(Block("data", key(rank, other, ranks)) for other in range(ranks))

    return blocks


def _from(_rank: int, other: int, _ranks: int) -> int:
    return other


def _of_root(_rank: int, _ranks: int) -> Sequence[Block]:
    return (Block("data", ROOT),)


def _at_first(_rank: int, _ranks: int) -> tuple[int, int]:
    return 0, 0  # the root's own block, too: it is rank 0


_ALL = (
    Operation("all_reduce", False, True, _one("part"), _one("sum"), _at_first, again=False),
    Operation("all_gather", True, False, _one("data"), _all(_from), lambda rank, _: (rank, 0)),
    Operation(
        "reduce_scatter",
        True,
        True,
        lambda rank, ranks: tuple(Block("part", rank, index) for index in range(ranks)),
        lambda rank, _: (Block("sum", 0, rank),),
        lambda rank, _: (0, rank),
        again=False,
    ),
    Operation("broadcast", False, False, _one("data", at_root_only=True), _of_root, _at_first),
    Operation("reduce", False, True, _one("part"), _one("sum", at_root_only=True), _at_first, again=False),
    Operation(
        "all_to_all",
        True,
        False,
        _all(lambda rank, other, ranks: rank * ranks + other),
        _all(lambda rank, other, ranks: other * ranks + rank),
        _at_first,
        again=False,
    ),
    Operation("gather", True, False, _one("data"), _all(_from, at_root_only=True), _at_first),
    Operation("scatter", True, False, _all(_from, at_root_only=True), _one("data"), _at_first),
)
OPERATIONS = {operation.name: operation for operation in _ALL}


def patterns(blocks: Sequence[Block], dtype: str, ranks: int, length: int) -> Iterator[NDArray[Any]]:
    """The bits of blocks, one after the other; made when asked for, for many ranks' do not fit in memory."""
    return (block.bits(dtype, ranks, length) for block in blocks)


def write(out: Any, blocks: Sequence[Block], dtype: str, ranks: int, length: int, convert: Callable[[Any], Any]) -> None:
    """Fill ``out`` (bits, of all blocks) with them; ``convert`` makes a pattern what ``out`` takes."""
    for start, pattern in zip(range(0, len(out), length), patterns(blocks, dtype, ranks, length), strict=True):
        exact.fill(out[start : start + length], convert(pattern))
