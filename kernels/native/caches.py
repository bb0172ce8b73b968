"""Reads that stay in a cache, and pointers that are followed, as jobs of a team."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.native import Team, code

Ints = np.ndarray[Any, np.dtype[np.int32]]
Longs = np.ndarray[Any, np.dtype[np.int64]]

BLOCK = 256
"""Bytes that one turn of the reading loop takes."""
UNROLL = 16
"""Loads in one turn of the chase."""


def passes(team: Team, data: Ints, sums: Ints, times: int) -> Callable[[], object]:
    """What reads all of ``data`` (int32) ``times`` over, each thread its own equal part.

    ``sums``: int32, one for each thread, which together are ``times`` × the sum of ``data``, modulo 2³².  Raises ``ValueError``
    unless ``data`` begins at a multiple of 64 bytes and is as many whole blocks for each thread.
    """
    threads = len(team.processors)
    if data.nbytes % (BLOCK * threads) or data.ctypes.data % code.LINE or sums.size != threads or times < 1:
        raise ValueError(f"{data.nbytes} bytes, {sums.size} sums and {times} passes do not fit {threads} threads")
    return team.job("passes", [sums, data, np.array([times], np.int64)], data.nbytes // BLOCK)


def chase(team: Team, memory: Longs, cell: Longs, steps: int) -> Callable[[], object]:
    """What follows ``steps`` addresses in ``memory``, each from the load before, on a team of one.

    ``cell``: the address to go on from, and how many steps were taken; both are brought up to date.  Raises ``ValueError`` for
    steps that are not whole turns, and for several threads.
    """
    if steps < UNROLL or steps % UNROLL or len(team.processors) != 1:
        raise ValueError(f"{steps} steps on {len(team.processors)} threads: multiples of {UNROLL} on one it must be")
    return team.job("chase", [cell, memory, np.array([steps // UNROLL], np.int64)], 1)
