"""Fits and scales under `pairs`: rows, columns and what is left of a matrix of logarithms, robustly.  Pure.

All matrices are N × N from row to column; "not a number" where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_ENDPOINT = 0.03
"""The loss of an endpoint (a fraction) that is worth a word, however sure."""
LEAST_SCALE = 0.001
ROUNDS = 8

_MAD, _MEDIAN = 1.4826, 1.2533
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]


class Fit(NamedTuple):
    """``t``, ``r``: by endpoint; ``e``: N × N.  Not a number where nothing was measured."""

    t: Array
    r: Array
    e: Array


class Score(NamedTuple):
    """One side of every endpoint: how far from its peers (``u``, a logarithm), its standard error, and its cut (below 0).

    ``scale``: on which the cut would rest if one more of them stood out.
    """

    u: Array
    error: Array
    cut: Array
    scale: Array


def fit_of(y: Array) -> Fit:
    """Rows and columns of ``y`` by upper medians, begun at upper quartiles; one with a single value keeps 0: it cannot tell."""
    enough = [np.isfinite(y).sum(axis) >= 2 for axis in (1, 0)]
    t, r = (np.where(few, upper(y if a else y.T, 0.75), 0.0) for few, a in zip(enough, (True, False), strict=True))
    for _ in range(ROUNDS):
        t = t + np.where(enough[0], _zero(upper(y - t[:, None] - r[None, :], 0.5)), 0.0)
        r = r + np.where(enough[1], _zero(upper((y - t[:, None] - r[None, :]).T, 0.5)), 0.0)
    e = y - t[:, None] - r[None, :]
    return Fit(np.where(enough[0], t, np.nan), np.where(enough[1], r, np.nan), e)


def score_of(own: Array, partners: NDArray[np.int64], pair_scale: float) -> Score:
    """How far each endpoint lies from the upper median of all, and the cut below which it is slow."""
    judged = np.isfinite(own)
    if not judged.any():
        nothing = np.full(len(own), np.nan)
        return Score(nothing, nothing, nothing, nothing)
    u = own - upper(own[None, :], 0.5)[0]
    error = np.where(judged, _MEDIAN * pair_scale / np.sqrt(np.maximum(partners, 1)), np.nan)
    far = np.sort(np.abs(u[judged]))
    middle = (len(far) - 1) // 2
    scale, with_one_more = (
        np.maximum(np.maximum(error, _MAD * far[min(rank, len(far) - 1)]), LEAST_SCALE) for rank in (middle, middle + 1)
    )
    cut = -np.maximum(-math.log1p(-LEAST_ENDPOINT), k_of(len(far)) * scale)
    return Score(u, error, cut, with_one_more)


def slow(score: Score, again: Array) -> Mask:
    """Who is below the cut, in the median over passes and in the upper quartile."""
    return (score.u < score.cut) & (again - upper(again[None, :], 0.5)[0] < score.cut)


def pair_scale(fit: Fit, noise: float) -> float:
    """Standard deviation of one pair: of what the fit leaves (it took some freedom), or of its passes, the larger."""
    left = fit.e[np.isfinite(fit.e)]
    free = len(left) - int(np.isfinite(fit.t).sum()) - int(np.isfinite(fit.r).sum()) + 1
    spread = _MAD * float(np.median(np.abs(left))) * math.sqrt(len(left) / free) if free > 0 else 0.0
    return max(spread, noise, LEAST_SCALE)


def pass_noise(logs: Array) -> float:
    """Standard error of the median over passes of a pair, typical of all pairs; 0 with a single pass."""
    passes = len(logs)
    if passes < 2:
        return 0.0
    spread = np.abs(logs - nanmedian(logs))
    spread = spread[np.isfinite(spread)]
    if not len(spread):
        return 0.0
    few = math.sqrt(passes / (passes - 1))
    return _MAD * float(np.median(spread)) * few * _MEDIAN / math.sqrt(passes)


def group_spread(y: Array, members: Sequence[Mask], blocks: Array) -> float:
    """Standard error of the median of a block: endpoints differ, and a block has as many as its group."""
    parts: list[float] = []
    for g, rows in enumerate(members):
        for h, columns in enumerate(members):
            own = nanmedian(np.moveaxis(y[np.ix_(rows, columns)], 1, 0)) - blocks[g, h]
            own = own[np.isfinite(own)]
            if len(own) > 1:
                parts.append(_MEDIAN * _MAD * float(np.median(np.abs(own))) / math.sqrt(len(own)))
    return float(np.median(parts)) if parts else LEAST_SCALE


def k_of(count: int) -> float:
    """Scales below the peers at which one of so many is slow: false alarms of a whole fleet stay rare, small or large."""
    return 4.0 + 24.0 / count


def upper(rows: Array, quantile: float) -> Array:
    """Of each row the quantile of what was measured, rounded up to one of its values; not a number for an empty row."""
    ordered = np.sort(rows, axis=1)  # what is not a number comes last
    count = np.isfinite(rows).sum(1)
    index = np.minimum(np.ceil(quantile * (count - 1) - 1e-9).astype(int), rows.shape[1] - 1)
    return np.where(count > 0, ordered[np.arange(len(rows)), np.maximum(index, 0)], np.nan)


def nanmedian(values: Array) -> Array:
    """Median over the first axis of what was measured, without a word about what was not."""
    count = np.isfinite(values).sum(0)
    ordered = np.sort(values, axis=0)
    low, high = np.maximum((count - 1) // 2, 0), np.minimum(count // 2, len(values) - 1)
    picked = [np.take_along_axis(ordered, index[None], 0)[0] for index in (low, high)]
    return np.where(count > 0, (picked[0] + picked[1]) / 2, np.nan)


def over_passes(logs: Array, quantile: float) -> Array:
    """Of each pair a quantile of its passes, rounded up to one of them."""
    passes, rows, columns = logs.shape
    return upper(logs.reshape(passes, -1).T, quantile).reshape(rows, columns)


def median_of(block: Array) -> float:
    """Median of what was measured in a block."""
    known = block[np.isfinite(block)]
    return float(np.median(known)) if len(known) else math.nan


def _zero(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def codes_of(names: Sequence[str]) -> NDArray[np.int64]:
    """Equal numbers for equal names; what has none is like all others that have none."""
    return np.unique(np.array(names), return_inverse=True)[1]
