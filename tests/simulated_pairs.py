"""Sweeps of made-up fleets with planted faults: what `clustergauge.pairs` must find, and must not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clustergauge.pairs import Endpoint

BASE = 1e9


@dataclass
class Fleet:
    """``tx``, ``rx``: what is left of an endpoint's bandwidth; ``links``: of a pair's; ``uplinks_out``/``_in``/``leaves``: of a
    leaf's cross pairs sent, received, and of all pairs that touch it.

    ``noise``: standard deviation of ln(bandwidth) of one pass of a pair; ``fixed``: of a pair in all passes; ``own``: of an
    endpoint.  ``outliers``: share of the values that a burst of something else lowers to 20 … 80 %.
    """

    n: int
    per_leaf: int = 0
    per_host: int = 1
    tx: dict[int, float] = field(default_factory=dict)
    rx: dict[int, float] = field(default_factory=dict)
    links: dict[tuple[int, int], float] = field(default_factory=dict)
    uplinks_out: dict[int, float] = field(default_factory=dict)
    uplinks_in: dict[int, float] = field(default_factory=dict)
    leaves: dict[int, float] = field(default_factory=dict)
    noise: float = 0.02
    fixed: float = 0.005
    own: float = 0.005
    outliers: float = 0.03
    across: float = 0.85
    inside: float = 8.0

    def endpoints(self):
        leaf = [f"leaf-{i // self.per_leaf}" if self.per_leaf else "" for i in range(self.n)]
        return [Endpoint(f"n{i}", f"host-{i // self.per_host}", leaf[i]) for i in range(self.n)]

    def sweep(self, seed: int, passes: int = 5):
        """Passes × N × N."""
        rng = np.random.default_rng(seed)
        n, index = self.n, np.arange(self.n)
        leaf = index // self.per_leaf if self.per_leaf else index * 0
        host = index // self.per_host
        factor = lambda values, keys: np.array([values.get(int(k), 1.0) for k in keys])  # noqa: E731
        b = np.full((n, n), BASE)
        cross = leaf[:, None] != leaf[None, :]
        b[cross] *= self.across
        b *= np.minimum(factor(self.tx, index)[:, None], factor(self.rx, index)[None, :])
        up = np.minimum(factor(self.uplinks_out, leaf)[:, None], factor(self.uplinks_in, leaf)[None, :])
        b = np.where(cross, b * up, b)
        b *= np.minimum(factor(self.leaves, leaf)[:, None], factor(self.leaves, leaf)[None, :])
        for (i, j), share in self.links.items():
            b[i, j] *= share
        b = np.where(host[:, None] == host[None, :], b * self.inside, b)
        b *= np.exp(rng.normal(0, self.own, (n, 1)) + rng.normal(0, self.own, (1, n)) + rng.normal(0, self.fixed, (n, n)))
        sweep = b * np.exp(rng.normal(0, self.noise, (passes, n, n)))
        sweep *= np.where(rng.random(sweep.shape) < self.outliers, rng.uniform(0.2, 0.8, sweep.shape), 1.0)
        sweep[:, index, index] = np.nan
        return sweep
