"""Storage probes beside fio, in turn on one disk: the same pattern, the same size, direct I/O on both sides.

    .venv/bin/python -m tools.beside_fio TARGET [PAIRS [SECONDS]]

What ``--cross-check`` does of a case, for a table of patterns, and what it leaves out: after the ratio of our rate to fio's (a
flush being one operation; median over PAIRS, 9 and no fewer for a figure to be told, the smallest and the largest) the same of
fio to itself, which says what the disk's own unrest makes of a ratio.  Our writes end every sample with a sync, fio's the job.
Needs fio; files are made in TARGET and removed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from clustergauge.clocks import WallClock
from clustergauge.cross_check import Turns
from clustergauge.probe import Context, Work
from clustergauge.world import Serial
from storage_io import fio, flush, random_io, sequential

PAIRS, SECONDS = 9, 1.0
SIZE = 256 << 20
JOURNAL = 16 << 20


def patterns() -> Iterator[tuple[str, Callable[[Context], Work]]]:
    """Random and sequential transfers, and a flush."""
    for op in ("read", "write"):
        for depth in (1, 32, 64):
            yield f"random {op} 4KiB, {depth}", lambda ctx, o=op, d=depth: random_io.prepare(ctx, o, 4096, d, SIZE)
        for depth in (1, 8):
            yield f"sequential {op} 1MiB, {depth}", lambda ctx, o=op, d=depth: sequential.prepare(ctx, o, d, SIZE)
    yield "flush 4KiB", lambda ctx: flush.prepare(ctx, JOURNAL)


def beside(make: Callable[[Context], Work], target: Path, pairs: int, seconds: float) -> tuple[list[float], list[float]]:
    """Ratios of our rate to fio's, and of fio's to its own a moment later; who is first alternates."""
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
    return us, [one / other for one, other in zip(turns.peer_s, again, strict=False)]


def main() -> int:
    """Print a line for each pattern."""
    if len(sys.argv) < 2 or not fio.installed():
        sys.stderr.write("fio is not installed\n" if len(sys.argv) > 1 else f"{__doc__}\n")
        return 2
    target, pairs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else SECONDS
    for name, make in patterns():
        us, same = beside(make, target, pairs, seconds)
        texts = [f"{median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in (us, same)]
        sys.stdout.write(f"{name:26} {texts[0]}   fio to itself {texts[1]}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
