"""Random reads while a writer works beside at full speed: what a loader has left while a checkpoint is being written.

The reads, and all that is said of them in `random_io`, are those of its *read*; the writer (`beside`) overwrites another file in
1 MiB blocks, begins before the timed region and ends after it.  Both rates are in the record: IOPS and latency of the reads, and
the bytes that the writer wrote meanwhile (series ``beside_bytes``, one value a sample).  Writes are synced when the writer stops,
untimed, and some are read back and verified.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from clustergauge.closing import closing
from clustergauge.probe import Context, Needs, Room, Work, probe
from clustergauge.units import parse_size
from storage_io.beside import FILE_NUMBER, Writer
from storage_io.datafile import DataFile
from storage_io.layout import lay_out
from storage_io.mounts import tell
from storage_io.pattern import BASE_BYTES, Pattern
from storage_io.random_io import SIZES, moves, refused, require, workload
from storage_io.scattered import Scattered
from storage_io.workspace import Workspace

WRITTEN_BYTES = 256 << 20
"""Of the file that is overwritten, at most."""


def needs(block: str, depth: int, size: int) -> Needs:
    """A folder."""
    reads = moves("read", block, depth, size)
    moved = replace(reads, before=reads.before + min(size, WRITTEN_BYTES))
    return Needs(target=True, moves=moved, room=room(size), refused=refused(size, parse_size(block), depth))


def room(size: int) -> Room:
    """Both files."""
    return Room(size + written(size), 2)


def written(size: int) -> int:
    """Bytes of the file that is overwritten."""
    return min(WRITTEN_BYTES, size) // BASE_BYTES * BASE_BYTES


@probe("under_write", needs=needs, block=("4KiB", "1MiB"), depth=(1, 8, 32), size=SIZES)
def under_write(ctx: Context, block: str, depth: int, size: int) -> Work:
    """Read blocks in random order, ``depth`` in flight, while another file is written.  size: bytes of the file that is read."""
    return prepare(ctx, parse_size(block), depth, size)


def prepare(ctx: Context, block: int, depth: int, size: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare`` and errors: as `random_io.prepare`."""
    target = require(ctx, size, block, depth)
    need, files = room(size).of()
    with contextlib.ExitStack() as stack:
        workspace = stack.enter_context(closing(Workspace(target, need, files, spare=spare)))
        tell(ctx, workspace.path)
        pattern = Pattern()
        other = stack.enter_context(contextlib.closing(DataFile(workspace.file(1), written(size))))
        lay_out(ctx, other, pattern, FILE_NUMBER)
        file = stack.enter_context(contextlib.closing(DataFile(workspace.file(0), size)))
        lay_out(ctx, file, pattern, reads=True)
        reads = stack.enter_context(contextlib.closing(Scattered(ctx, file, pattern, "read", block, depth)))
        reads.calibrate()
        writer = stack.enter_context(contextlib.closing(Writer(other, pattern, ctx.seed)))
        both = _Both(ctx, reads, writer)
        ctx.set("beside", f"writes of 1 MiB, {'direct' if other.direct else 'buffered'}, 1 process × 4 threads")
        close = stack.pop_all().close
    return Work(
        run=both.run,
        reset=both.reset,
        note=both.note,
        check=both.check,
        close=close,
        workload=workload("read", block),
        max_iterations=1,
        steps=reads.steps,
    )


class _Both:
    """Reads with a writer beside them."""

    def __init__(self, ctx: Context, reads: Scattered, writer: Writer) -> None:
        self._ctx = ctx
        self._reads = reads
        self._writer = writer
        self._meanwhile = 0
        self._writing = False
        reads.pids.append(writer.pid)

    def run(self) -> None:
        """The reads.  Asking the writer how far it is takes some microseconds on either side of them."""
        before = self._writer.written()
        self._reads.run()
        self._meanwhile = self._writer.written() - before

    def reset(self) -> None:
        """Make the reads ready, then let the writer loose."""
        self._stop()
        self._reads.reset()
        self._writing = True
        self._writer.start()

    def note(self) -> None:
        """What the writer wrote during the sample, and the latencies of the reads."""
        self._stop()
        self._ctx.add("beside_bytes", "B", float(self._meanwhile))
        self._reads.note()
        self._writer.verify()  # after the device's bytes were settled: what it reads is not of the sample

    def check(self) -> None:
        """All reads of the last sample; the writes were looked at after it."""
        self._stop()
        self._reads.check()

    def _stop(self) -> None:
        if self._writing:
            self._writing = False
            self._reads.beside = self._writer.stop()
