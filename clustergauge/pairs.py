"""Who is slow, out of the bandwidths of ordered pairs: an endpoint and its direction, a link, or a leaf switch.  Pure.

Model: ``ln B(i→j) = c(class) + t(i) + r(j) + e(i, j)``: what endpoint i gives when sending, what j takes when receiving, and what
is left to the link between them.  Pairs inside a host and pairs across hosts are looked at apart, each with classes of their own
(same leaf or across, same rail or across; inside a host what is between two GPUs, see `wiring`); a pair with an end in no known
leaf may be of any of them.  The fit starts from upper quartiles and goes on by upper medians: an endpoint is slow only if nearly
all of its pairs are, so blame does not spill over to those who met a slow one.  With three endpoints these are maxima, and still
tell; with two nothing can.

Cuts, after simulations of clean and degraded fleets: an endpoint below ``−max(3 %, k·s)`` with ``k(N) = 4 + 24/N``, a link
below ``−max(5 %, max(6, k)·s)`` if neither of its ends is accused.  ``s`` is the spread of the healthy, by MAD, and no less than
what the noise of single pairs makes of it.  Judged are medians over passes, and the upper quartile of the passes (in large fleets
the best) must lie below the same cut, too: what something else disturbed in some passes is not slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from clustergauge.model import Suspect
from clustergauge.pair_fit import (
    LEAST_ENDPOINT,
    LEAST_SCALE,
    Array,
    Codes,
    Fit,
    Mask,
    Score,
    codes_of,
    fit_of,
    group_spread,
    k_of,
    median_of,
    nanmedian,
    over_passes,
    pair_scale,
    pass_noise,
    score_of,
    slow,
    upper,
)

THRESHOLD = 0.8
"""Of the bandwidth of its peers: what lies surely below fails."""
LEAST_LINK = 0.05
"""The loss of a link (a fraction) that is worth a word, however sure."""
LINK_SCALES = 6.0
FEW = 16
"""With more endpoints there are so many pairs that chance disturbs most passes of one: then all passes must agree.  With so few,
pairs with a bad one are a large part of what is known of the others."""
ACROSS = "to and from other hosts"
"""What is said of an endpoint that is slow there, where pairs inside hosts were measured too."""
LEAST_LEFT = 3
"""The fewest endpoints among which one can be cleared: of two, neither is the usual one."""
LEAF_ENDPOINTS = 3
"""The fewest measured endpoints that can speak for a leaf or a host."""


@dataclass(frozen=True)
class Endpoint:
    """One end of pairs: a NIC, a GPU, or a host.  ``leaf`` and ``rail`` are empty where unknown."""

    name: str
    host: str
    leaf: str = ""
    rail: str = ""


@dataclass
class Analysis:
    """What a sweep says.  ``smallest_degradation``: see `model.PairFindings`."""

    suspects: list[Suspect] = field(default_factory=list[Suspect])
    smallest_degradation: float | None = None
    notes: list[str] = field(default_factory=list[str])


def analyse(
    endpoints: Sequence[Endpoint], bandwidth: Array, threshold: float = THRESHOLD, wires: Codes | None = None
) -> Analysis:
    """Name what is slow.

    ``bandwidth``: passes × N × N, B/s from row to column, not a number where a pair was not measured in a pass.
    ``threshold``: see `Suspect.confirmed`.  ``wires``: N × N, equal numbers for pairs over links of one kind (`wiring`).
    """
    found = Analysis()
    logs = np.log(np.where(bandwidth > 0, bandwidth, np.nan))
    logs[:, range(len(endpoints)), range(len(endpoints))] = np.nan
    y, best = nanmedian(logs), over_passes(logs, 1.0)
    better = over_passes(logs, 0.75) if len(endpoints) <= FEW else best
    noise = pass_noise(logs)
    hosts = np.array([e.host for e in endpoints])
    inside = hosts[:, None] == hosts[None, :]
    layers = [within for within in (True, False) if np.isfinite(y[inside == within]).any()]
    for within in layers:
        values = [np.where(inside == within, v, np.nan) for v in (y, better)]
        references = [class_reference(endpoints, v, wires) for v in values]
        values = [v - reference for v, reference in zip(values, references, strict=True)]
        layer = _Layer(endpoints, values, best - y, noise, threshold, within, found)
        layer.scope = "" if len(layers) == 1 else "inside its host" if within else ACROSS
        layer.look()
    silent = [e.name for i, e in enumerate(endpoints) if not np.isfinite(y[i]).any() or not np.isfinite(y[:, i]).any()]
    if silent:
        found.notes.append(f"no pair of {', '.join(silent[:8])}{' …' if len(silent) > 8 else ''} was measured in both directions")
    found.suspects.sort(key=lambda s: (not s.confirmed, s.ratio))
    return found


class _Judged(NamedTuple):
    """A fit of all pairs (of their median passes, and of good ones), and what it says of all as senders and as receivers."""

    fit: Fit
    again: Fit
    scale: float
    scores: tuple[Score, Score]
    slow: tuple[Mask, Mask]


class _Layer:
    """The pairs inside hosts, or those across them."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        values: Sequence[Array],
        above: Array,
        noise: float,
        threshold: float,
        within: bool,
        found: Analysis,
    ) -> None:
        self.endpoints, self.noise, self.threshold, self.within, self.found = endpoints, noise, threshold, within, found
        self.scope = ""
        self.y, self.better = values
        """Against the class of each pair."""
        self.above = above
        """How far the best pass of a pair lies above its median."""

    def look(self) -> None:
        """Groups first (leaves, or hosts), then endpoints, then links."""
        self._groups()
        ends = np.isfinite(self.y).any(0) | np.isfinite(self.y).any(1)
        if ends.sum() == 2:
            self._two(*np.flatnonzero(ends).tolist())
            return
        found = self._judged(self.y, self.better)
        bad = self._cleared(found) if len(self.endpoints) <= FEW else found.slow
        for i in np.flatnonzero(bad[0] | bad[1]).tolist():
            self._endpoint(i, *found.scores, bool(bad[0][i]), bool(bad[1][i]))
        self._links(found.fit, found.again, found.scale, *bad)
        self._smallest(*found.scores)

    # -- endpoints and links

    def _judged(self, y: Array, better: Array) -> _Judged:
        fit, again = fit_of(y), fit_of(better)
        scale = pair_scale(fit, self.noise)
        sends, receives = (score_of(own, np.isfinite(y).sum(axis), scale) for own, axis in ((fit.t, 1), (fit.r, 0)))
        return _Judged(fit, again, scale, (sends, receives), (slow(sends, again.t), slow(receives, again.r)))

    def _cleared(self, first: _Judged) -> tuple[Mask, Mask]:
        """Of few endpoints: who is slow beside a worse one must be so without the pairs of that one, or is cleared.

        Of the three pairs of a sender one with a bad receiver is a third of what is known of it, and says little of the sender.
        Where too few pairs are left to tell, the suspicion stays; what lies below the threshold is never cleared so.
        """
        still = first.slow[0].copy(), first.slow[1].copy()
        y, better = self.y.copy(), self.better.copy()
        accused = [(first.scores[side].u[i], side, i) for side in (0, 1) for i in np.flatnonzero(first.slow[side]).tolist()]
        for place, (_, side, i) in enumerate(sorted(accused)):
            if place:  # not the worst
                now = self._judged(y, better)
                u = now.scores[side].u
                enough = np.isfinite(u).sum() >= LEAST_LEFT
                if enough and u[i] > math.log(self.threshold) and not now.slow[side][i]:
                    still[side][i] = False
                    continue
            for values in (y, better):
                (values.T if side else values)[i] = np.nan
        return still

    def _endpoint(self, i: int, sends: Score, receives: Score, tx: bool, rx: bool) -> None:
        worse = sends if tx and (not rx or sends.u[i] <= receives.u[i]) else receives
        half = k_of(len(worse.u)) * worse.error[i]
        direction = "both" if tx and rx else "sends" if tx else "receives"
        self._suspect("endpoint", self.endpoints[i].name, worse.u[i], half, direction, self.scope)

    def _links(self, fit: Fit, again: Fit, scale: float, bad_tx: Mask, bad_rx: Mask) -> None:
        k = max(LINK_SCALES, k_of(len(fit.t)))
        cut = -max(-math.log1p(-LEAST_LINK), k * scale)
        accused = bad_tx[:, None] | bad_rx[None, :]
        for i, j in np.argwhere((fit.e < cut) & (again.e < cut) & ~accused).tolist():
            sole = [self.endpoints[n].name for n, axis in ((i, 1), (j, 0)) if np.isfinite(self.y).sum(axis)[n] < 2]
            note = f"{' and '.join(sole)} has no other measured pair: the endpoint or the link" if sole else ""
            where = f"{self.endpoints[i].name} → {self.endpoints[j].name}"
            self._suspect("link", where, fit.e[i, j], k * scale, note=note, above=self.above[i, j])

    def _two(self, i: int, j: int) -> None:
        """Two endpoints: one direction may be slower than the other, and that is all there is to say."""
        self.found.notes.append(
            f"with two endpoints it cannot be told which is slow: {self.endpoints[i].name}, {self.endpoints[j].name}"
        )
        for a, b in ((i, j), (j, i)):
            difference = self.y[a, b] - self.y[b, a]
            half = k_of(2) * math.sqrt(2) * max(self.noise, LEAST_SCALE)
            if difference < -max(-math.log1p(-LEAST_LINK), half):
                where = f"{self.endpoints[a].name} → {self.endpoints[b].name}"
                self._suspect("link", where, difference, half, note="against the other direction: sender, receiver or link")

    def _smallest(self, sends: Score, receives: Score) -> None:
        """The loss that lies two scales beyond the cut there would be, for the worst seen of the endpoints that can be judged."""
        scales = np.concatenate([sends.scale, receives.scale])
        if np.isfinite(scales).any():
            scale = float(np.nanmax(scales))
            loss = -math.expm1(-max(-math.log1p(-LEAST_ENDPOINT), k_of(len(sends.u)) * scale) - 2 * scale)
            self.found.smallest_degradation = max(loss, self.found.smallest_degradation or 0.0)

    # -- leaves and hosts

    def _groups(self) -> None:
        names = [e.host if self.within else e.leaf for e in self.endpoints]
        count = np.isfinite(self.y).any(1) & np.isfinite(self.y).any(0)
        groups = {n: np.array([m == n for m in names]) & count for n in dict.fromkeys(names) if n}
        groups = {n: members for n, members in groups.items() if members.sum() >= LEAF_ENDPOINTS}
        if len(groups) < 2:
            return
        members = list(groups.values())
        blocks = np.array([[median_of(self.y[np.ix_(a, b)]) for b in members] for a in members])
        spread = group_spread(self.y, members, blocks)
        inner = self._insides(members, np.diagonal(blocks).copy(), spread)
        if self.within or len(groups) == 2:
            for g in inner:
                self._inside(list(groups)[g], *inner[g])
            if not self.within:
                self.found.notes.append(f"with two leaves it cannot be told whose uplinks are slow: {', '.join(groups)}")
            return
        np.fill_diagonal(blocks, np.nan)
        fit = fit_of(blocks)
        scores = [score_of(own, np.full(len(members), len(members) - 1), spread) for own in (fit.t, fit.r)]
        bad = [score.u < score.cut for score in scores]
        for g, name in enumerate(groups):
            for score, low, out in zip(scores, bad, (True, False), strict=True):
                if low[g]:
                    others = ~members[g]
                    rows, columns = (members[g], others) if out else (others, members[g])
                    for values in (self.y, self.better):
                        values[np.ix_(rows, columns)] -= score.u[g]  # a class of their own: what is left is the endpoints'
            if bad[0][g] or bad[1][g]:
                tx = bool(bad[0][g] and (not bad[1][g] or scores[0].u[g] <= scores[1].u[g]))
                score = scores[0 if tx else 1]
                direction = "both" if bad[0][g] and bad[1][g] else "sends" if tx else "receives"
                note = "inside it, too" if g in inner else "its uplinks: pairs inside it are normal"
                self._suspect("leaf", name, score.u[g], k_of(len(groups)) * score.error[g], direction, note)
            elif g in inner:
                self._inside(name, *inner[g])

    def _insides(self, members: list[Mask], own: Array, spread: float) -> dict[int, tuple[float, float]]:
        """The groups that are slow inside against the others, with by how much and how surely; taken out of their pairs."""
        u = own - upper(own[None, :], 0.5)[0]
        half = k_of(len(members)) * max(spread, LEAST_SCALE)
        low = np.flatnonzero(u < -max(-math.log1p(-LEAST_ENDPOINT), half)).tolist()
        for g in low:
            for values in (self.y, self.better):
                values[np.ix_(members[g], members[g])] -= u[g]
        return {g: (float(u[g]), half) for g in low}

    def _inside(self, name: str, u: float, half: float) -> None:
        self._suspect("node" if self.within else "leaf", name, u, half, note="pairs inside it")

    def _suspect(
        self,
        kind: Literal["endpoint", "link", "leaf", "node"],
        where: str,
        u: float,
        half: float,
        direction: Literal["", "sends", "receives", "both"] = "",
        note: str = "",
        above: float = 0.0,
    ) -> None:
        high = math.exp(u + max(half, above))
        self.found.suspects.append(
            Suspect(
                kind=kind,
                where=where,
                direction=direction,
                ratio=math.exp(u),
                low=math.exp(u - half),
                high=high,
                confirmed=high < self.threshold,
                note=note,
            )
        )


def class_reference(endpoints: Sequence[Endpoint], y: Array, wires: Codes | None = None) -> Array:
    """N × N: the upper quartile of ``y`` in the class of each pair; not a number in a class without any.

    A pair with an end in no known leaf is as it should be anywhere between the classes that it may be of: there its reference is
    what it reached itself.  Where none is known that crosses leaves, its like are one of these.  ``wires``: see `analyse`.
    """
    reference = np.full_like(y, np.nan)
    codes = (codes_of([e.host for e in endpoints]), codes_of([e.leaf for e in endpoints]), codes_of([e.rail for e in endpoints]))
    host, leaf, rail = (code[:, None] == code[None, :] for code in codes)
    placed = np.array([bool(e.leaf) for e in endpoints])
    placed = placed[:, None] & placed[None, :]
    sure = host * 1 + (2 * wires if wires is not None else 0)
    kind = sure * 4 + leaf * 2 + rail * 1
    for number in np.unique(kind[placed]):
        members = (kind == number) & placed
        if np.isfinite(y[members]).any():
            reference[members] = np.nanquantile(y[members], 0.75)
    for number in np.unique(sure[~placed]):
        members, like = (sure == number) & ~placed, (sure == number) & placed & np.isfinite(reference)
        if not np.isfinite(y[members]).any():
            continue
        among = np.unique(reference[like]).tolist()
        if not among or not (host | ~leaf)[like].any():
            among.append(float(np.nanquantile(y[members], 0.75)))
        reference[members] = np.clip(y[members], min(among), max(among))
    return reference
