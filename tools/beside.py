"""What tools share that put storage cases beside another program: turns on one disk, and a line for each case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from clustergauge.clocks import WallClock
from clustergauge.cross_check import Turns
from clustergauge.globs import matches
from clustergauge.probe import Context, Skip, Work
from clustergauge.world import Serial

PAIRS, SECONDS = 9, 1.0
Make = Callable[[Context], Work]
"""A case with its peer, on the target of the context; files of the peer's own go into its scratch folder, which is there too."""


def beside(make: Make, target: Path, pairs: int, seconds: float) -> tuple[str, list[float], list[float]]:
    """The peer's name, ratios of our rate to its, and of its to its own a moment later; who is first alternates."""
    with TemporaryDirectory(dir=target) as folder:
        context = Context(
            world=Serial(), device="cpu", seed=1, scratch=Path(folder), budget_s=seconds, target=target, cross_check=True
        )
        work = make(context)
        assert work.close
        try:
            if not work.peer:
                sys.exit(f"{context.settings['cross_check']}")
            turns = Turns(work, WallClock(), work.peer, seconds)
            turns.take(pairs)
            again = [work.peer.seconds(seconds) for _ in range(pairs)]
        finally:
            work.close()
    us = [theirs / ours for ours, theirs in zip(turns.own_s, turns.peer_s, strict=True)]
    return work.peer.name, us, [one / other for one, other in zip(turns.peer_s, again, strict=False)]


def main(usage: str, cases: Iterable[tuple[str, Make]], missing: str) -> int:
    """A line for each case that is meant, by the arguments TARGET [PAIRS [SECONDS [GLOB]]].  ``missing``: what the tool lacks
    here."""
    if len(sys.argv) < 2 or missing:
        sys.stderr.write(f"{missing}\n" if len(sys.argv) > 1 else f"{usage}\n")
        return 2
    target, pairs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else SECONDS
    glob = sys.argv[4] if len(sys.argv) > 4 else "*"
    chosen = [(name, make) for name, make in cases if matches(glob, name)]
    if not chosen:
        sys.stderr.write(f"no case is called {glob!r}\n")
        return 2
    for name, make in chosen:
        try:
            peer, us, same = beside(make, target, pairs, seconds)
        except Skip as why:
            sys.stdout.write(f"{name:26} skipped: {why}\n")
        else:
            texts = [f"{median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in (us, same)]
            sys.stdout.write(f"{name:26} {texts[0]}   {peer} to itself {texts[1]}\n")
        sys.stdout.flush()
    return 0
