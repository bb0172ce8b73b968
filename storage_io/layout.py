"""A file written whole before it is measured: every byte stamped, on the device, and direct I/O proven or given up.

What would take much longer than the case is meant to last is refused while it is begun, so that a slow disk costs little.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge.budget import seconds, stopwatch
from clustergauge.probe import Context, Skip
from clustergauge.units import format_size
from storage_io.datafile import DataFile
from storage_io.lanes import Lanes
from storage_io.pattern import BASE_BYTES, Pattern, aligned

if TYPE_CHECKING:
    from storage_io.pattern import Words

PIECE_BYTES = 1 << 20
DEPTH = 4
READ_TO_PROVE = 8 << 20
"""Bytes read to see whether direct reads are what they say."""
FEW = 16
"""Of many small things so many are made before they are taken to the device."""
TO_GUESS = 0.1
"""Of the patience, spent before it is guessed how long all of them take: the first are often late."""
PATIENCE_S, PATIENCE = 10.0, 4.0
"""Laying out may take so many seconds, or so many times the budget of the case if that is more."""


def patience(ctx: Context) -> float:
    """Seconds that may go by before anything is measured."""
    return max(PATIENCE_S, PATIENCE * ctx.budget_s)


def require_patience(ctx: Context, size: int, whole_s: float) -> None:
    """Raise `Skip` where laying out a file of ``size`` bytes would take longer than `patience`."""
    if whole_s > patience(ctx):
        words = f"writing {format_size(size)} to begin with would take {whole_s:.0f} s"
        raise Skip(f"{words} (at most {patience(ctx):.0f} s; take a smaller --set size=…)")


def lay_out(ctx: Context, file: DataFile, pattern: Pattern, number: int = 0, reads: bool = False) -> None:
    """Write the file as number ``number`` of the pattern, sample 0.  ``reads``: direct reads are proven, too.

    Raises `Skip` where it would take longer than `patience`, `StorageError` where it can't be done.
    """
    content = aligned(min(BASE_BYTES, file.size))
    lanes = Lanes([file.write_at] * DEPTH)

    def write(start: int) -> None:
        part = content[: (file.size - start) // 8]
        pattern.fill(part, number, 0, start)
        lanes.run([(start + offset, view) for offset, view in pieces(part)])
        file.sync()

    try:
        file.allocate()
        file.prove_writes(lambda: write(0), len(content) * 8)
        spent = 0.0
        for start in range(BASE_BYTES, file.size, BASE_BYTES):
            spent += seconds(lambda start=start: write(start))
            require_patience(ctx, file.size, spent * file.size / start)
    finally:
        lanes.close()
    if reads:
        few = pieces(content[: READ_TO_PROVE // 8])
        file.prove(lambda: _read(file, few), sum(len(view) for _, view in few), 0)
    if not file.direct:
        file.drop()


def make_all(
    count: int,
    most_s: float,
    make: Callable[[int], object],
    words: str,
    sync: Callable[[], object] = lambda: None,
    every: int = sys.maxsize,
    remedy: str = "",
    enough: int = 0,
) -> int:
    """``make(1)`` to ``make(count)``: many small things, one at a time, and after each a look at how long they have taken.

    ``sync`` takes them to the device: when there are `FEW`, when they have doubled or are ``every`` more, and at the end.  Then
    it is guessed how long all will take, once there is something to guess by (`TO_GUESS`).  ``enough``: so many will do, and no
    more are made than half of the time allows, where all would take too long; 0: all are needed.  How many were made.

    Raises `Skip` where what is needed takes, or would take, more than ``most_s`` seconds: ``words`` (what is made), the whole
    time, that of ``enough``, and the ``remedy``.
    """
    elapsed, due = stopwatch(), min(FEW, every)
    for done in range(1, count + 1):
        make(done)
        if synced := done in (due, count):
            sync()
            due += min(due, every)
        spent = elapsed()
        whole = spent * count / done
        if 0 < enough <= done:
            if whole > most_s and spent > most_s / 2:
                if not synced:
                    sync()
                return done
            continue
        needed = spent * (enough or count) / done
        if spent > most_s or (synced and spent > TO_GUESS * most_s and needed > most_s):
            some = f", {enough} of them {needed:.0f} s" if enough else ""
            raise Skip(f"{words} would take {whole:.0f} s{some} (at most {most_s:.0f} s{remedy})")
    return count


def trial(path: Path, size: int) -> tuple[DataFile, float]:
    """A file that was written and is gone again; it knows whether there is direct I/O.  And the seconds that writing it took."""
    content = aligned(size)
    Pattern().fill(content, 0, 0)
    with contextlib.closing(DataFile(path, size)) as file:

        def write() -> None:
            file.write_at(0, content.data.cast("B"))
            file.sync()

        file.allocate()
        took = seconds(lambda: file.prove_writes(write, size))
    path.unlink()
    return file, took


def pieces(content: Words, piece: int = PIECE_BYTES) -> list[tuple[int, memoryview]]:
    """A buffer in pieces, each with its place in it; the last may be shorter."""
    whole = content.data.cast("B")
    return [(offset, whole[offset : offset + piece]) for offset in range(0, len(whole), piece)]


def _read(file: DataFile, few: list[tuple[int, memoryview]]) -> None:
    for offset, view in few:
        file.read_at(offset, view)


def words_of(view: memoryview) -> Words:
    """The same memory in 64-bit words."""
    import numpy as np

    return np.frombuffer(view, np.uint64)
