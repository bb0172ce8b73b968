"""Storage probes beside fio, in turn on one disk: the same pattern, the same size, direct I/O on both sides.

    .venv/bin/python -m tools.beside_fio TARGET [PAIRS [SECONDS]]

For each pattern the ratio of our rate to fio's, a flush being one operation: median over PAIRS (9, and no fewer for a figure to
be told), the smallest and the largest; then the same of fio to itself, which says what the disk's own unrest makes of a ratio.
Our writes end every sample with a sync, fio's the whole job.  Needs fio; files are made in TARGET and removed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from clustergauge.clocks import WallClock
from clustergauge.probe import Context, Work
from clustergauge.world import Serial
from storage_io import flush, random_io, sequential

PAIRS, SECONDS = 9, 1.0
SIZE = 256 << 20
JOURNAL = 16 << 20


class Pattern(NamedTuple):
    """``make``: our work; ``fio``: the arguments that ask fio for the same; ``way``: the part of its result."""

    name: str
    make: Callable[[Context], Work]
    fio: tuple[str, ...]
    way: str
    size: int = SIZE


def patterns() -> Iterator[Pattern]:
    """Random and sequential transfers, and a flush."""
    for op in ("read", "write"):
        for depth in (1, 32, 64):
            engine = ("--ioengine=psync",) if depth == 1 else ("--ioengine=libaio", f"--iodepth={depth}")
            synced = ("--end_fsync=1",) * (op == "write")
            fio = (f"--rw=rand{op}", "--bs=4k", "--norandommap", "--randrepeat=0", *engine, *synced)
            yield Pattern(
                f"random {op} 4KiB, {depth}", lambda ctx, o=op, d=depth: random_io.prepare(ctx, o, 4096, d, SIZE), fio, op
            )
        for depth in (1, 8):
            fio = (f"--rw={op}", "--bs=1m", "--ioengine=libaio", f"--iodepth={depth}", *(("--end_fsync=1",) * (op == "write")))
            yield Pattern(
                f"sequential {op} 1MiB, {depth}", lambda ctx, o=op, d=depth: sequential.prepare(ctx, o, d, SIZE), fio, op
            )
    fio = ("--rw=write", "--bs=4k", "--ioengine=psync", "--fdatasync=1")
    yield Pattern("flush 4KiB", lambda ctx: flush.prepare(ctx, JOURNAL), fio, "write", JOURNAL)


def ours(work: Work, seconds: float) -> float:
    """Bytes a second over about so many seconds of runs."""
    clock, spent, done = WallClock(), 0.0, 0
    while spent < seconds:
        if work.reset:
            work.reset()
        spent += clock.time(work.runs)
        done += work.steps * (work.workload.bytes_read + work.workload.bytes_written)
    return done / spent


def theirs(pattern: Pattern, file: Path, seconds: float) -> float:
    """Bytes a second as fio tells them."""
    asked = [
        "--name=beside",
        f"--filename={file}",
        f"--size={pattern.size}",
        "--direct=1",
        "--time_based",
        "--output-format=json",
    ]
    command = ["fio", *asked, f"--runtime={max(1, round(seconds))}", *pattern.fio]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job: Any = json.loads(done.stdout)["jobs"][0]
    return float(job[pattern.way]["bw_bytes"])


def beside(pattern: Pattern, target: Path, pairs: int, seconds: float) -> tuple[list[float], list[float]]:
    """Ratios of us to fio, and of fio to fio; who is first alternates."""
    with TemporaryDirectory(dir=target) as folder:
        file = Path(folder) / "fio"
        context = Context(world=Serial(), device="cpu", seed=1, scratch=Path(folder), target=target, budget_s=seconds)
        work = pattern.make(context)
        with contextlib.closing(_Closing(work)):
            ours(work, 0.1)
            theirs(pattern, file, seconds)
            us: list[float] = []
            same: list[float] = []
            for pair in range(pairs):
                turns = [lambda: ours(work, seconds), lambda: theirs(pattern, file, seconds)]
                rates = [turn() for turn in (turns if pair % 2 else turns[::-1])]
                our, fio = rates if pair % 2 else rates[::-1]
                us.append(our / fio)
                same.append(theirs(pattern, file, seconds) / fio)
            return us, same


class _Closing:
    def __init__(self, work: Work) -> None:
        self.close = work.close or (lambda: None)


def main() -> int:
    """Print a line for each pattern."""
    if len(sys.argv) < 2 or not shutil.which("fio"):
        sys.stderr.write("fio is not installed\n" if len(sys.argv) > 1 else f"{__doc__}\n")
        return 2
    target, pairs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else SECONDS
    for pattern in patterns():
        us, same = beside(pattern, target, pairs, seconds)
        texts = [f"{median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in (us, same)]
        sys.stdout.write(f"{pattern.name:26} {texts[0]}   fio to itself {texts[1]}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
