"""What it takes until a small write is safe: 4 KiB written and ``fdatasync``, as a journal or a database does after every entry.

A sample is one write with its sync, so the record's median time is the median latency and ``time_p99`` its 99th percentile.  The
file is laid out before timing: blocks are overwritten in order, and no metadata has to be changed.  Every block is read back from
the device and verified, untimed, some at once: after a pause a write takes longer (by a third on a virtual disk), and a journal
that is busy makes none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Work, probe
from storage_io import fio
from storage_io.datafile import DataFile
from storage_io.evidence import DeviceBytes
from storage_io.layout import lay_out
from storage_io.mounts import tell
from storage_io.pattern import STAMP_EVERY, Pattern, aligned
from storage_io.random_io import refused, require
from storage_io.workspace import Workspace

AT_ONCE = 64
"""Entries that follow each other without a pause."""


def needs(size: int) -> Needs:
    """A folder."""
    return Needs(target=True, moves=Moves(before=size), room=fio.room(size, writes=True), refused=refused(size), peer=True)


@probe("flush", needs=needs, size=(16 << 20,))
def flush(ctx: Context, size: int) -> Work:
    """Write 4 KiB and wait until they are on the device.  size: bytes of the file that is overwritten, block by block."""
    return prepare(ctx, size)


def prepare(ctx: Context, size: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare`` and errors: as `random_io.prepare`."""
    target = require(ctx, size, STAMP_EVERY)
    with contextlib.ExitStack() as stack:
        need, files = fio.room(size, writes=True).of(peer=ctx.cross_check)
        workspace = stack.enter_context(closing(Workspace(target, need, files, spare=spare)))
        tell(ctx, workspace.path)
        file = stack.enter_context(contextlib.closing(DataFile(workspace.file(0), size)))
        pattern = Pattern()
        lay_out(ctx, file, pattern)
        entries = _Entries(file, pattern, DeviceBytes(ctx.device_bytes))
        for name, value in (file.settings() | {"engine": "pwritev and fdatasync, 1 thread"}).items():
            ctx.set(name, value)
        peer = fio.peer(ctx, workspace, file, fio.Pattern("write", STAMP_EVERY, 1, size, "each"), STAMP_EVERY)
        close = stack.pop_all().close
    return Work(
        run=entries.run,
        reset=entries.reset,
        check=entries.check,
        close=close,
        workload=Workload(bytes_written=STAMP_EVERY, bound="latency"),
        whole_budget=True,
        max_iterations=1,
        peer=peer,
    )


class _Entries:
    """The file as a journal of entries 0, 1, 2 …, which are made ready, and verified, some at once.

    ``_first``: number of the first of those made ready; ``_ready``: how many they are; ``_at``: which of them is written now.
    """

    def __init__(self, file: DataFile, pattern: Pattern, device: DeviceBytes) -> None:
        self._file = file
        self._pattern = pattern
        self._device = device
        self._words = aligned(AT_ONCE * STAMP_EVERY)
        self._back = aligned(AT_ONCE * STAMP_EVERY)
        self._bytes = self._words.data.cast("B")
        self._first = self._ready = self._at = 0
        self._place, self._block = 0, self._bytes[:STAMP_EVERY]
        self.run: Callable[[], None] = self.write

    def write(self) -> None:
        """The timed region: one block, and its sync."""
        self._file.write_at(self._place, self._block)
        self._file.sync()

    def reset(self) -> None:
        """On to the next entry; after the last that is ready verify them all, and make as many again."""
        if self._at + 1 < self._ready:
            self._at += 1
        else:
            self.check()
            self._make_ready()
        at = self._at * STAMP_EVERY
        self._place, self._block = self._offset + at, self._bytes[at : at + STAMP_EVERY]

    def _make_ready(self) -> None:
        self._first += self._ready
        left = (self._file.size - self._offset) // STAMP_EVERY
        self._ready, self._at = min(AT_ONCE, left), 0
        rows, samples = self._numbers()
        self._pattern.fill_rows(self._words[: len(rows) * STAMP_EVERY // 8], rows, 0, samples)
        if self._file.counted:
            self._device.mark()

    def check(self) -> None:
        """What was written of the entries made ready, read back from the device; those not written are not to come."""
        if not self._ready:
            return
        self._ready = self._at + 1
        self._device.settle(0, self._ready * STAMP_EVERY)
        if not self._file.direct:
            self._file.drop()
        rows, samples = self._numbers()
        back = self._back[: len(rows) * STAMP_EVERY // 8]
        back.fill(0)
        self._file.read_at(self._offset, back.data.cast("B"))
        self._pattern.verify_rows(back, rows, self._file.path, 0, samples)

    @property
    def _offset(self) -> int:
        return self._first * STAMP_EVERY % self._file.size

    def _numbers(self):
        """Of the entries made ready: their blocks in the file, and their numbers from 1 on."""
        import numpy as np

        entries = np.arange(self._ready)
        return entries + self._offset // STAMP_EVERY, entries + self._first + 1
