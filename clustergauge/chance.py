"""What chance alone does: exact tests of two small groups by their ranks, or of pairs, and Student's t.

Small enough to count all ways to deal the values to the two sides, or their signs, and to do without scipy, which is slow to
import.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""For 1 to 10 degrees of freedom (NIST/SEMATECH handbook, 1.3.6.7.2)."""


def mann_whitney(left: Array, right: Array) -> float:
    """Exact two-sided p of the Mann-Whitney test, ties at their mean rank.  At most some hundred values together."""
    everything = np.concatenate([left, right])
    _, place, counts = np.unique(everything, return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(counts) - counts + 1)[place]  # twice the mean rank: a whole number
    chances = _rank_sums(doubled, len(left))
    middle = len(left) * (len(everything) + 1)  # twice the expected rank sum
    far = abs(int(doubled[: len(left)].sum()) - middle)
    return min(1.0, float(chances[np.abs(np.arange(len(chances)) - middle) >= far].sum()))


def depth(count: int, other: int, alpha: float) -> int:
    """Which sorted difference between two groups, counted from each end, bounds an interval that holds at least ``1 − alpha``.

    3 for five against five and .05: the 3rd and the 23rd.  0 where not even the outermost do.
    """
    chances = _rank_sums(np.arange(1, count + other + 1), count)
    tail = np.cumsum(chances[count * (count + 1) // 2 :])  # of U = 0, 1, …
    return int(np.searchsorted(tail, alpha / 2, side="right"))


def signed_ranks(differences: Array) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test, ties at their mean rank; zeros say nothing.  Of at most some hundred."""
    known = differences[differences != 0]
    if not len(known):
        return 1.0
    _, place, counts = np.unique(np.abs(known), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(counts) - counts + 1)[place]
    chances = _signed_sums(doubled)
    middle = len(chances) - 1  # twice the expected sum of those above 0, as all together are twice that
    far = abs(2 * int(doubled[known > 0].sum()) - middle)
    return min(1.0, float(chances[np.abs(2 * np.arange(len(chances)) - middle) >= far].sum()))


def depth_of_pairs(count: int, alpha: float) -> int:
    """Which sorted mean of two of ``count`` differences, counted from each end, bounds an interval that holds ``1 − alpha``.

    Each with itself and every other, ``count·(count + 1)/2`` of them.  1 for six and .05: the outermost; 0 below six.
    """
    tail = np.cumsum(_signed_sums(np.arange(1, count + 1)))
    return int(np.searchsorted(tail, alpha / 2, side="right"))


def student_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t, to a thousandth; beyond the table its expansion (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _signed_sums(ranks: NDArray[np.intp]) -> Array:
    """Probability of each sum of those ranks that chance takes, each or not."""
    ways = np.zeros(int(ranks.sum()) + 1)
    ways[0] = 1
    for rank in ranks.tolist():
        ways[rank:] += ways[: len(ways) - rank].copy()
    return ways / ways.sum()


def _rank_sums(ranks: NDArray[np.intp], take: int) -> Array:
    """Probability of each sum of ``take`` of the ranks, all choices equally likely."""
    ways = np.zeros((take + 1, int(ranks.sum()) + 1))
    ways[0, 0] = 1
    for rank in ranks.tolist():
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    return ways[take] / ways[take].sum()
