"""What it takes until a small write is safe: 4 KiB written and ``fdatasync``, as a journal or a database does after every entry.

A sample is one write with its sync, so the record's median time is the median latency and ``time_p99`` its 99th percentile.  The
file is laid out before timing: blocks are overwritten in order, and no metadata has to be changed.  Every block is read back from
the device and verified before the next is written, untimed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Work, probe
from storage_io import fio
from storage_io.datafile import DataFile
from storage_io.evidence import DeviceBytes
from storage_io.layout import lay_out
from storage_io.mounts import describe
from storage_io.pattern import STAMP_EVERY, Pattern, aligned
from storage_io.random_io import require
from storage_io.workspace import Workspace


@probe("flush", needs=lambda size: Needs(target=True, moves=Moves(before=size)), size=(16 << 20,))
def flush(ctx: Context, size: int) -> Work:
    """Write 4 KiB and wait until they are on the device.  size: bytes of the file that is overwritten, block by block."""
    return prepare(ctx, size)


def prepare(ctx: Context, size: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare`` and errors: as `random_io.prepare`."""
    target = require(ctx, size, STAMP_EVERY)
    with contextlib.ExitStack() as stack:
        need, files = fio.room(ctx, size, writes=True)
        workspace = stack.enter_context(contextlib.closing(Workspace(target, need, files, spare=spare)))
        file = stack.enter_context(contextlib.closing(DataFile(workspace.file(0), size)))
        pattern = Pattern()
        lay_out(ctx, file, pattern)
        entries = _Entries(file, pattern, DeviceBytes(ctx.device_bytes))
        for name, value in (describe(workspace.path) | file.settings() | {"engine": "pwritev and fdatasync, 1 thread"}).items():
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
    """The file as a journal: ``_entry`` is the number of the block to be written now, and the sample that writes it."""

    def __init__(self, file: DataFile, pattern: Pattern, device: DeviceBytes) -> None:
        self._file = file
        self._pattern = pattern
        self._device = device
        self._words = aligned(STAMP_EVERY)
        self._back = aligned(STAMP_EVERY)
        self._entry = 0
        self.run: Callable[[], None] = self.write

    def write(self) -> None:
        """The timed region: one block, and its sync."""
        self._file.write_at(self._offset, self._words.data.cast("B"))
        self._file.sync()

    def reset(self) -> None:
        """Verify the last block, and make the next one."""
        if self._entry:
            self.check()
        self._entry += 1
        rows, samples = self._numbers()
        self._pattern.fill_rows(self._words, rows, 0, samples)
        if self._file.counted:
            self._device.mark()

    def check(self) -> None:
        """The last block, read back from the device."""
        self._device.settle(0, STAMP_EVERY)
        if not self._file.direct:
            self._file.drop()
        self._back.fill(0)
        self._file.read_at(self._offset, self._back.data.cast("B"))
        rows, samples = self._numbers()
        self._pattern.verify_rows(self._back, rows, self._file.path, 0, samples)

    @property
    def _offset(self) -> int:
        return self._entry * STAMP_EVERY % self._file.size

    def _numbers(self):
        import numpy as np

        return np.array([self._offset // STAMP_EVERY]), np.array([self._entry])
