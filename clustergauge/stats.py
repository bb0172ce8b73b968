"""From raw samples to intervals and words: how sure a number is, and whether two differ.

Every rule was chosen by simulation with autocorrelated noise, and the tests hold them to it.  After Hoefler and Belli,
"Scientific benchmarking of parallel computing systems", SC'15: medians with nonparametric intervals, and the launch (a fresh
process), not the sample, as the unit of a comparison.  Times are seconds; everything relative is a fraction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clustergauge import chance

TARGET = 0.01
"""Half-width (relative) at which measuring stops."""

LEAST_SAMPLES, FEWEST_SAMPLES = 6, 3
"""The fewest samples that give an interval; the fewest where so many take more than `OVER_BUDGET` budgets."""
OVER_BUDGET = 3
TICKS_PER_SAMPLE = 100
"""A sample shorter than this many ticks of its clock is not a sample."""

FEWEST = 6
"""Samples that can give an interval, where each says something new."""

RUN_SPREAD = 0.005
"""Spread between launches (relative standard deviation) assumed where none was measured."""

NEIGHBOURS = 3
"""Of two launches that took turns, the fewest turns beside each other that say something."""

ALPHA = 0.05
_Z = 1.959964  # two-sided 95 % of the normal distribution
_Z_POWER = 1.281552  # one-sided 90 %
_MEDIAN = 1.2533  # the standard error of a median over that of a mean: √(π/2)
_MAD = 1.4826  # makes the median absolute deviation a standard deviation where the noise is normal
_WINSOR = 3.0
_RHO_MOST = 0.98
_CLEAR = 4.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % interval; ``low`` and ``high`` are ``None`` where the samples are too few to say."""

    median: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the width over the median; ``None`` where there is no interval, or nothing to be relative to."""
        if self.low is None or self.high is None or self.median <= 0:
            return None
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Comparison:
    """B against A.  ``shift``, ``low``, ``high``: relative, +0.05 where B takes 5 % longer.

    ``weak``: too few launches for the exact test (one a side, or up to three); the word then leans on an assumed spread
    between launches.  ``p``: of the exact test (Mann-Whitney; of pairs, signed ranks), ``None`` with one launch on a side.
    """

    shift: float
    low: float
    high: float
    word: Literal["changed", "same", "inconclusive"]
    weak: bool
    p: float | None


# --------------------------------------------------------------------------------------------------------------------------
# one case, one launch


def median(values: Sequence[float]) -> float:
    """The middle value.  Raises ``ValueError`` if there is none."""
    return _quantile(values, 0.5)


def _quantile(values: Sequence[float], quantile: float) -> float:
    if not len(values):
        raise ValueError("no values, no median")
    array = np.asarray(values, np.float64)
    return float(np.median(array) if quantile == 0.5 else np.quantile(array, quantile))


def looks() -> Iterator[int]:
    """Numbers of samples at which to ask whether it is enough: 20, 26, 34, … (× 1.3, rounded up) without end.

    Asking after every sample makes the interval lie: at CV 1 % and ρ .6 it covers .85 instead of .95.
    """
    count = 20
    while True:
        yield count
        count = -(-count * 13 // 10)


def warmup_cut(samples: Sequence[float]) -> int:
    """How many samples at the start are warm-up, by MSER: the cut that makes the standard error of the rest smallest.

    At most half of the samples (White, "An effective truncation heuristic for bias reduction in simulation output",
    Simulation 69, 1997), and none unless the medians of both parts differ by 4 standard errors: of mere noise MSER cuts a tenth,
    and the interval of what is left covers .88 instead of .95 (CV 1 %, ρ .6).  Enough for an interval always remains.
    """
    count = len(samples)
    most = min(count // 2, count - FEWEST)
    if most < 1:
        return 0
    raw = np.asarray(samples, np.float64)
    values = _winsorised(raw)  # or one late outlier would drag the cut to itself
    left = np.arange(count, 0, -1, dtype=np.float64)
    sums, squares = np.cumsum(values[::-1])[::-1], np.cumsum(values[::-1] ** 2)[::-1]
    cut = int(np.argmin((np.maximum(squares - sums**2 / left, 0.0) / left**2)[: most + 1]))
    if not cut:
        return 0
    start, rest = raw[:cut], raw[cut:]
    error = scale(rest) * math.sqrt(_tau(rest) * (1 / cut + 1 / (count - cut)))
    return cut if abs(float(np.median(start) - np.median(rest))) > _CLEAR * error else 0


def autocorrelation(samples: Sequence[float] | Array) -> float:
    """ρ: how much of a sample's deviation the next one repeats, 0 to 0.98.

    Lag-1 autocorrelation of the samples winsorised at 3 MAD, plus ``(1 + 3ρ) / n`` against its bias in short series (Kendall,
    "Note on bias in the estimation of autocorrelation", Biometrika 41, 1954).  Below two samples nothing is known: 0.98.
    """
    count = len(samples)
    if count < 2:
        return _RHO_MOST
    values = _winsorised(np.asarray(samples, np.float64))
    deviations = values - values.mean()
    variance = float(deviations @ deviations)
    rho = float(deviations[:-1] @ deviations[1:]) / variance if variance > 0 else 0.0
    return min(max(rho + (1 + 3 * rho) / count, 0.0), _RHO_MOST)


def median_interval(samples: Sequence[float]) -> Interval:
    """The median and its 95 % interval by ranks ``n/2 ∓ 0.98·√(n·τ)``, with ``τ = (1 + ρ) / (1 − ρ)``.

    Ranks are rounded outwards; no interval where they fall outside the samples.  Raises ``ValueError`` without samples.
    """
    return quantile_interval(samples, 0.5)


def quantile_interval(samples: Sequence[float], quantile: float) -> Interval:
    """Any quantile ``q`` (as ``median``) with its interval by ranks ``n·q ∓ 1.96·√(n·τ·q·(1 − q))``, as `median_interval`."""
    count, middle = len(samples), _quantile(samples, quantile)
    around = _Z * math.sqrt(count * _tau(samples) * quantile * (1 - quantile))
    below, above = count * quantile - around, count * (1 - quantile) - around  # samples outside the interval
    if below < 0 or above < 0:
        return Interval(middle, None, None)
    low, high = max(int(below) - 1, 0), count - 1 - max(int(above) - 1, 0)
    parts = np.partition(np.asarray(samples, np.float64), (low, high))
    return Interval(middle, float(parts[low]), float(parts[high]))


def converged(samples: Sequence[float], target: float) -> bool:
    """Whether the half-width is at most ``target`` (relative) and n ≥ 10·τ.  To be asked at `looks` only."""
    if not len(samples):
        return False
    width = median_interval(samples).half_width
    return width is not None and width <= target and len(samples) >= 10 * _tau(samples)


def _tau(samples: Sequence[float] | Array) -> float:
    """How many samples are worth one independent sample."""
    rho = autocorrelation(samples)
    return (1 + rho) / (1 - rho)


def scale(values: Array) -> float:
    """Standard deviation by MAD, or plain where half of the values are equal."""
    return _MAD * float(np.median(np.abs(values - np.median(values)))) or float(np.std(values))


def _winsorised(values: Array) -> Array:
    """Deviations from the median in MAD, those beyond 3 pulled in to there; plain ones where half of the values are equal."""
    centred = values - np.median(values)
    unit = _MAD * float(np.median(np.abs(centred)))
    return np.clip(centred / unit, -_WINSOR, _WINSOR) if unit > 0 else centred


# --------------------------------------------------------------------------------------------------------------------------
# several launches


def run_spread(launch_medians: Sequence[float]) -> float | None:
    """σ_run: standard deviation of ln(median) over launches; ``None`` below three launches or with a median of 0."""
    if len(launch_medians) < 3 or min(launch_medians) <= 0:
        return None
    return float(np.std(np.log(np.asarray(launch_medians, np.float64)), ddof=1))


def judging_interval(launches: Sequence[Sequence[float]], spread: float | None = None, quantile: float = 0.5) -> Interval:
    """The interval for holding one run against a limit: ``√(within² + (k·σ_run)²)`` around the median of launch medians.

    The interval inside one launch is too narrow: launches differ more than samples.  ``σ_run`` is the run's own where it has
    three launches or more (then ``k = t/√launches``), else ``spread`` from recorded runs, else `RUN_SPREAD` (``k =
    1.96/√launches``).  ``within`` shrinks with √launches.  Without an interval inside each launch there is none, unless the
    launches are enough to speak for themselves.  ``quantile``: of something else than medians.  Raises ``ValueError`` without
    launches.
    """
    inside = [quantile_interval(samples, quantile) for samples in launches]
    middle, count = median([i.median for i in inside]), len(inside)
    if middle <= 0:
        return Interval(middle, None, None)
    own = run_spread([i.median for i in inside])
    if own is None:
        between = _Z * (RUN_SPREAD if spread is None else spread) / math.sqrt(count)
    else:
        between = chance.student_t(count - 1) * own / math.sqrt(count)
    downs, ups = [_log_ratio(i.median, i.low) for i in inside], [_log_ratio(i.high, i.median) for i in inside]
    if own is not None and None in (*downs, *ups):
        downs, ups = [0.0], [0.0]
    down, up = _root_sum(downs), _root_sum(ups)
    if down is None or up is None:
        return Interval(middle, None, None)
    low, high = middle * (1 + _relative(-math.hypot(down, between))), middle * (1 + _relative(math.hypot(up, between)))
    return Interval(middle, low, high) if low > 0 and math.isfinite(high) else Interval(middle, None, None)


def compare_launches(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], delta: float = 0.01, spread: float | None = None
) -> Comparison:
    """Whether B differs from A, launch against launch.  ``a``, ``b``: the samples of each launch, warm-up removed.

    Δ is the median of all differences of ln(launch median) (Hodges-Lehmann); its interval, the innermost sorted differences
    that hold at least 95 % by the exact null distribution (the 3rd and 23rd of 25).  *changed*: exact Mann-Whitney p < .05
    and \\|Δ\\| ≥ ``delta``.  *same*: the interval inside ±``delta``.  Otherwise *inconclusive*, never *same*.

    Where so few launches can't reach p < .05, the interval is as wide as the differences and as ``Δ ± 1.96·SE``, with
    ``SE² = Σ (within² + σ_run²) / launches`` over both sides, and *changed* means that it leaves out 0; such a word is weak.
    ``spread``: σ_run from recorded runs, for that case.  Raises ``ValueError`` without samples or with a time of 0.
    """
    left, right = _log_medians(a), _log_medians(b)
    differences = np.sort(np.subtract.outer(right, left), axis=None)
    middle = float(np.median(differences))
    p = chance.mann_whitney(left, right) if min(len(a), len(b)) > 1 else None
    depth = chance.depth(len(a), len(b), ALPHA)
    if depth:
        low, high = float(differences[depth - 1]), float(differences[-depth])
        differs = p is not None and p < ALPHA
    else:
        error = _Z * math.sqrt(_variance(a, left, spread) + _variance(b, right, spread))
        low, high = min(float(differences[0]), middle - error), max(float(differences[-1]), middle + error)
        differs = low > 0 or high < 0
    return _comparison(middle, low, high, differs, delta, not depth, p)


def difference(a: Mapping[float, Sequence[float]], b: Mapping[float, Sequence[float]]) -> float | None:
    """By how much longer B took (the logarithm) in a launch of each, by the samples of their turns and when these began.

    The median over neighbours, a turn of A and one of B with none between, of the difference between their medians: what lasts
    longer than a turn is in both, and what drifts is in as many with either sign.  ``None`` where fewer than `NEIGHBOURS` turns
    (of few, all) lay beside each other.  Raises ``ValueError`` without samples or with a time of 0.
    """
    turns = sorted([(began, -1, samples) for began, samples in a.items()] + [(began, 1, samples) for began, samples in b.items()])
    logs = _log_medians([samples for _, _, samples in turns]).tolist()
    steps = [
        side * (log - before)
        for (_, side, _), log, (_, other, _), before in zip(turns[1:], logs[1:], turns, logs, strict=False)
        if side != other
    ]
    return median(steps) if len(steps) >= min(NEIGHBOURS, len(a), len(b)) else None


def compare_pairs(differences: Sequence[float], delta: float = 0.01) -> Comparison:
    """Whether B differs from A by launches that were measured together: the `difference` of each such pair.

    Δ is the median of the means of any two of them (Hodges-Lehmann), each with itself too; its interval, the innermost sorted
    means that hold at least 95 % by the exact null distribution of signed ranks (of six pairs, all).  Below six pairs, weak: its
    interval is then all there is.  Raises ``ValueError`` without differences.
    """
    if not differences:
        raise ValueError("a comparison needs at least one pair of launches")
    each = np.asarray(differences, np.float64)
    one, other = np.triu_indices(len(each))
    means = np.sort((each[one] + each[other]) / 2)
    depth = chance.depth_of_pairs(len(each), ALPHA)
    low, high = float(means[max(depth, 1) - 1]), float(means[-max(depth, 1)])
    p = chance.signed_ranks(each)
    return _comparison(float(np.median(means)), low, high, p < ALPHA, delta, not depth, p)


def _comparison(middle: float, low: float, high: float, differs: bool, delta: float, weak: bool, p: float | None) -> Comparison:
    edge = math.log1p(delta)  # in logarithms, so that B against A says of −Δ what A against B says of Δ
    word = "changed" if differs and abs(middle) >= edge else "same" if -edge <= low and high <= edge else "inconclusive"
    return Comparison(_relative(middle), _relative(low), _relative(high), word, weak, p)


def smallest_change(launches: Sequence[Sequence[float]], delta: float = 0.01) -> float:
    """The smallest relative change that as many launches a side as given can show, about nine times in ten, in noise as here.

    Both halves of *changed* must hold: the test, and an estimate beyond ``delta``.  Simulated tests found it .8 to .97 of the
    time.  Below three launches the spread between them is assumed.  Raises as `compare_launches`.
    """
    count = len(launches)
    error = math.sqrt(2 * _variance(launches, _log_medians(launches), None) / 0.955)  # 0.955: efficiency of ranks
    critical = _Z if count < 3 else chance.student_t(count - 1)
    return _relative(max((critical + _Z_POWER) * error, math.log1p(delta) + _Z_POWER * error))


def _relative(logarithm: float) -> float:
    """The change that a difference of logarithms is; finite however wild the samples."""
    return math.expm1(min(logarithm, 700.0))


def _log_ratio(above: float | None, below: float | None) -> float | None:
    return math.log(above / below) if above is not None and below is not None and below > 0 else None


def _root_sum(widths: Sequence[float | None]) -> float | None:
    """Width of a mean from the widths of its parts; ``None`` if one is unknown."""
    known = [w for w in widths if w is not None]
    return math.hypot(*known) / len(known) if len(known) == len(widths) else None


def _log_medians(launches: Sequence[Sequence[float]]) -> Array:
    middles = [median(samples) for samples in launches]
    if not middles or min(middles) <= 0:
        raise ValueError("a comparison needs at least one launch a side, and times above 0")
    return np.log(np.asarray(middles, np.float64))


def _variance(launches: Sequence[Sequence[float]], logs: Array, spread: float | None) -> float:
    """Squared standard error of ln(median) over these launches: inside them, and between them."""
    inside = float(np.mean([standard_error(samples) ** 2 for samples in launches]))
    own = run_spread([math.exp(y) for y in logs.tolist()])
    if own is not None:  # what launches show of their spread holds what samples add to it
        return max(own**2, inside) / len(launches)
    return (inside + (RUN_SPREAD if spread is None else spread) ** 2) / len(launches)


def standard_error(samples: Sequence[float]) -> float:
    """Relative standard error of the median of one launch: ``1.2533·s·√(τ/n)``, with ``s`` by MAD."""
    return _MEDIAN * scale(np.asarray(samples, np.float64)) / median(samples) * math.sqrt(_tau(samples) / len(samples))
