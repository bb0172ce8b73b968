"""Which of many devices that should perform alike do not.  Pure; numpy arrays of one case at a time.

After simulations of fleets of 8 to 4096 nodes with planted defects.  With ``y = ln(time)`` of a device (median over its samples):

* ``u = y − median(y)`` over the group; minus the effect of its slot (GPU 7 of every node may sit in warmer air) and of its rack,
  each the median of ``u`` over it, where there are enough of them; ``r`` is what is left.
* ``s = max(MAD(r), 0.1 %)``, ``k(N) = 4 + 24/N``.  *suspect*: ``r > max(3 %, k·s)``.
* *confirmed*: the mean of two fresh launches or more fails the same cut; if it does not, the device is cleared.
* *rack*: its effect is above the median rack's by ``max(2 %, k·max(MAD of racks, 1.25·s/√nodes in it))``.
* the same on the 90th percentile of the time finds what is slow now and then, and fresh launches confirm or clear it by theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_GROUP = 4
"""Fewer devices cannot tell which of them is slow."""
WEAK_GROUP = 8
"""A smaller group is held to be weak evidence."""
LEAST_RACK = 6
LEAST_SLOT = 8
LEAST_SLOWDOWN = 0.03
LEAST_RACK_SLOWDOWN = 0.02
LEAST_SPREAD = 0.001
FRESH = 2
"""Launches that confirm."""
_MAD = 1.4826
_POWER = 1.4

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """One case on devices that should be alike: a row a device.

    ``y``: ln of the median time.  ``tail``: ln of its 90th percentile, not a number where samples are too few.  ``fresh``,
    ``fresh_tail``: the mean of both over fresh launches, not a number without them.  ``rack``, ``slot``: numbers, −1 if unknown.
    """

    y: Array
    tail: Array
    fresh: Array
    fresh_tail: Array
    rack: Index
    slot: Index


@dataclass(frozen=True)
class Slow:
    """A device that is slower than its peers.  ``row``: in the group.  ``ratio``: its speed over what is usual, below 1.

    ``confirmed``: fresh launches agree.  ``kind``: *slow* always, or *intermittent* (in the tail of its samples alone).
    """

    row: int
    ratio: float
    confirmed: bool
    kind: str


@dataclass(frozen=True)
class SlowRack:
    """A rack whose devices are slower together."""

    rack: int
    ratio: float
    devices: int


@dataclass(frozen=True)
class Found:
    """What a group shows.  ``smallest``: the slowdown (relative) that it would have found about 17 times in 20."""

    slow: list[Slow]
    racks: list[SlowRack]
    cleared: list[int]
    smallest: float | None
    weak: bool


def judge(group: Group) -> Found:
    """Who is slow in a group."""
    count = len(group.y)
    if count < LEAST_GROUP:
        return Found([], [], [], None, True)
    r, racks = _rest(group.y, group)
    s, cut = _cut(r)
    suspects = np.flatnonzero(r > cut)
    slow: list[Slow] = []
    cleared: list[int] = []
    for row in suspects.tolist():
        _hold(row, float(r[row]), float(group.fresh[row] - (group.y[row] - r[row])), cut, "slow", slow, cleared)
    _intermittent(group, set(suspects.tolist()), slow, cleared)
    return Found(slow, _slow_racks(group, racks, s), cleared, _smallest(cut, s, count), count < WEAK_GROUP)


def _hold(row: int, first: float, again: float, cut: float, kind: str, slow: list[Slow], cleared: list[int]) -> None:
    """A suspect goes to the slow, confirmed or not, or to the cleared; ``again``: what fresh launches say, if there were any."""
    if math.isnan(again):
        slow.append(Slow(row, math.exp(-first), False, kind))
    elif again > cut:
        slow.append(Slow(row, math.exp(-again), True, kind))
    else:
        cleared.append(row)


def _smallest(cut: float, s: float, count: int) -> float:
    """The slowdown that mostly lands above the cut, with the noise of the device and of the cut itself.

    In simulated groups of 16 to 512, confirmed by fresh launches, it is found .86 of the time; of 8, .71.

    The variance of a spread estimated by MAD is 1.36 s²/N (Rousseeuw and Croux, "Alternatives to the median absolute deviation",
    JASA 88, 1993).
    """
    k = 4 + 24 / count
    return math.expm1(cut + _POWER * s * math.sqrt(1 + 1.36 * k**2 / count))


def _cut(r: Array) -> tuple[float, float]:
    """The spread of the healthy, and what lies above is suspect."""
    mad = _MAD * float(np.median(np.abs(r - np.median(r))))
    s = max(mad, LEAST_SPREAD)
    return s, max(-math.log1p(-LEAST_SLOWDOWN), (4 + 24 / len(r)) * s)


def _rest(y: Array, group: Group) -> tuple[Array, dict[int, float]]:
    """What is left of each device once group, slot and rack are taken out; and the effect of each rack."""
    u = y - np.median(y)
    u = u - _effect(u, group.slot, LEAST_SLOT)[0]
    rack, effects = _effect(u, group.rack, LEAST_RACK)
    return u - rack, effects


def _effect(u: Array, labels: Index, least: int) -> tuple[Array, dict[int, float]]:
    """For each row the median over its label, 0 where too few share it; and by label."""
    effect = np.zeros_like(u)
    found: dict[int, float] = {}
    names, sizes = np.unique(labels[labels >= 0], return_counts=True)
    if len(names) < 2:
        return effect, found
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]  # so no label asks all rows
    for name, rows in zip(names.tolist(), np.split(order, np.cumsum(sizes)[:-1]), strict=True):
        if len(rows) >= least:
            found[name] = float(np.median(u[rows]))
            effect[rows] = found[name]
    return effect, found


def _slow_racks(group: Group, effects: dict[int, float], s: float) -> list[SlowRack]:
    if len(effects) < 3:
        return []  # of two, either may be the usual one
    values = np.asarray(list(effects.values()))
    middle = float(np.median(values))
    spread = _MAD * float(np.median(np.abs(values - middle)))
    k = 4 + 24 / len(values)
    found: list[SlowRack] = []
    sizes = np.bincount(group.rack[group.rack >= 0])
    for rack, effect in effects.items():
        devices = int(sizes[rack])
        cut = max(-math.log1p(-LEAST_RACK_SLOWDOWN), k * max(spread, 1.25 * s / math.sqrt(devices)))
        if effect - middle > cut:
            found.append(SlowRack(rack, math.exp(middle - effect), devices))
    return found


def _intermittent(group: Group, known: set[int], slow: list[Slow], cleared: list[int]) -> None:
    """Devices that the median does not accuse and the tail of their samples does."""
    rows = np.flatnonzero(~np.isnan(group.tail))
    if len(rows) < LEAST_GROUP:
        return
    tail, again = group.tail[rows], group.fresh_tail[rows]
    part = Group(tail, tail, again, again, group.rack[rows], group.slot[rows])
    r, _ = _rest(tail, part)
    cut = _cut(r)[1]
    for n in np.flatnonzero(r > cut).tolist():
        if (row := int(rows[n])) not in known:
            _hold(row, float(r[n]), float(again[n] - (tail[n] - r[n])), cut, "intermittent", slow, cleared)


def minority(digests: Sequence[str] | Sequence[int], torn: str | int = "-") -> list[int]:
    """Rows whose digest (empty or 0: none) is not what most have; none where no digest has more than half of three votes or more.

    Deterministic work on identical devices gives identical bits, whoever is right (a vote of two decides nothing).  ``torn``: the
    digest of devices whose own launches disagree; it is nobody's result, and where most have it, the work is not deterministic.
    """
    if len(set(digests)) < 2:
        return []
    voters = [n for n, digest in enumerate(digests) if digest]
    if len(voters) < 3:
        return []
    votes: dict[str | int, int] = {}
    for n in voters:
        votes[digests[n]] = votes.get(digests[n], 0) + 1
    best = max(votes, key=lambda d: votes[d])
    return [n for n in voters if digests[n] != best] if best != torn and 2 * votes[best] > len(voters) else []
