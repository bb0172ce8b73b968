"""A case held against another program that does the same work: by turns, so that both meet the same machine.

Comes after everything else of the case.  What is kept are the seconds of one step in every turn, series ``own_s`` and ``peer_s``;
the ratio of their rates is the metric ``over_peer``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clustergauge.clocks import Clock
    from clustergauge.probe import Peer, Work

PAIRS = 9
"""Turns of each; with fewer a disk that others share makes any ratio."""
TURN_S = 1.0
ALLOWED_S = 90.0
"""What a case may take longer for it; where a turn takes longer than it should, there are fewer."""


class Turns:
    """The turns of a case and of its peer."""

    def __init__(self, work: Work, clock: Clock, peer: Peer, turn_s: float = TURN_S) -> None:
        self._work = work
        self._clock = clock
        self._peer = peer
        self._turn_s = turn_s
        self.own_s: list[float] = []
        self.peer_s: list[float] = []

    def take(self, pairs: int = PAIRS, *, between: Callable[[], None] = lambda: None) -> None:
        """Who begins alternates; first one turn of the peer that does not count, for it makes its files in it.

        ``between``: called before each pair of turns.  Raises ``OSError`` where the peer fails.
        """
        began = self._clock.now()
        self._peer.seconds(self._turn_s)
        for pair in range(pairs):
            first, second = (self._theirs, self._ours) if pair % 2 else (self._ours, self._theirs)
            between()
            first()
            second()
            if (self._clock.now() - began) * (pair + 2) / (pair + 1) > ALLOWED_S:
                return

    def _ours(self) -> None:
        spent, steps = 0.0, 0
        while spent < self._turn_s:
            if self._work.reset:
                self._work.reset()
            spent += self._clock.time(self._work.runs)
            steps += self._work.steps * len(self._work.runs)
        self.own_s.append(spent / steps)

    def _theirs(self) -> None:
        self.peer_s.append(self._peer.seconds(self._turn_s))
