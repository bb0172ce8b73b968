"""Many small files: written anew, or read cold, as an unpacked data set is.  Files a second (as IO/s) and bytes a second.

A sample is some hundreds of files, by ``depth`` threads.  *write*: each is created, written whole and closed, and one ``syncfs``
ends the sample inside the time.  *read*: each is opened, read whole and closed, in random order out of a larger population, with
direct I/O where the file system has it; else the pages of all of them are dropped before.  Inodes and names stay in the kernel's
caches: only root could empty those, for everybody.  Every file read is verified whole; of the files written some are read back
after every sample, and all of the last one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

from clustergauge.budget import seconds
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Room, Skip, Work, probe
from clustergauge.units import format_size
from storage_io import cold
from storage_io.errors import StorageError
from storage_io.evidence import DeviceBytes
from storage_io.lanes import Lanes
from storage_io.layout import patience, trial
from storage_io.mounts import describe
from storage_io.pattern import POISON, STAMP_EVERY, Pattern, aligned
from storage_io.random_io import require
from storage_io.workspace import Workspace

if TYPE_CHECKING:
    from storage_io.pattern import Words

TOTAL_BYTES = 64 << 20
"""Of the population, and of the buffers of one sample at most."""
PROBE_BYTES = 16 << 20
"""Of the file that shows whether there is direct I/O."""
LEAST = 16
SAMPLES = 15
SPOT_CHECKS = 16
PIECE = 16


def needs(op: str, size: int, **_axes: object) -> Needs:
    """A folder."""
    least = LEAST * size * (1 if op == "read" else 2)
    moves = Moves(before=PROBE_BYTES + TOTAL_BYTES + 3 * least, sample=least, names=TOTAL_BYTES // max(1, size))
    return Needs(target=True, moves=moves, room=room(size))


def room(size: int, total: int = TOTAL_BYTES) -> Room:
    """All files, and the one that shows whether there is direct I/O."""
    return Room(max(total, PROBE_BYTES), total // max(1, size) + 1)


@probe("small_files", needs=needs, op=("write", "read"), depth=(1, 8), size=(16 << 10, 64 << 10, 128 << 10))
def small_files(ctx: Context, op: str, depth: int, size: int) -> Work:
    """Write or read whole small files, ``depth`` at a time.  size: bytes of each."""
    return prepare(ctx, op, depth, size)


def prepare(ctx: Context, op: str, depth: int, size: int, total: int = TOTAL_BYTES, spare: int | None = None) -> Work:
    """The work of the probe.  ``total``: bytes of all files.  ``spare`` and errors: as `random_io.prepare`."""
    target = require(ctx, PROBE_BYTES, STAMP_EVERY)
    if size < STAMP_EVERY or size % STAMP_EVERY or size * LEAST > total:
        raise Skip(f"{format_size(size)} is not a whole number of 4 KiB blocks, or above {format_size(total // LEAST)}")
    with contextlib.ExitStack() as stack:
        space = Workspace(target, *room(size, total).of(), spare=spare)
        workspace = stack.enter_context(contextlib.closing(space))
        files = _Files(ctx, workspace, op, depth, size, total // size)
        stack.callback(files.close)
        for name, value in (describe(workspace.path) | files.settings).items():
            ctx.set(name, value)
        files.populate()
        files.calibrate()
        close = stack.pop_all().close
    read, written = (size, 0) if op == "read" else (0, size)
    return Work(
        run=files.run,
        reset=files.reset,
        check=files.check,
        close=close,
        workload=Workload(ios=1, bytes_read=read, bytes_written=written, bound="storage"),
        max_iterations=1,
        steps=files.count,
    )


class _Files:
    """Files ``data-1`` … of a run folder, and a buffer for each file of a sample.

    ``_chosen``: the numbers of the files of the sample.  ``_sample``: the one whose data they hold.
    """

    def __init__(self, ctx: Context, workspace: Workspace, op: str, depth: int, size: int, most: int) -> None:
        import numpy as np

        self.writes = op == "write"
        self._ctx = ctx
        self._workspace = workspace
        self._size = size
        self._most = most
        self._pattern = Pattern()
        self._device = DeviceBytes(ctx.device_bytes)
        self._choose = np.random.default_rng(ctx.seed)
        self._content = aligned(size * most)
        self._back = aligned(size)
        self._sample = 0
        self._asked = False
        self._chosen: list[int] = []
        self._todo: list[tuple[str, memoryview]] = []
        self.count = min(LEAST, most)
        file, _ = trial(workspace.file(0), PROBE_BYTES)
        self._direct = os.O_DIRECT if file.direct else 0
        self._counted = file.counted
        self.settings = file.settings()
        self.settings["engine"] = f"open, {'pwritev' if self.writes else 'preadv'}, close, {depth} thread{'s' * (depth > 1)}"
        self._folder = os.open(workspace.path, os.O_RDONLY | os.O_DIRECTORY)
        self._lanes = Lanes(depth, self._write if self.writes else self._read)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()
        os.close(self._folder)

    def populate(self) -> None:
        """The files that will be read; each on the device.  Raises `Skip` where that would take too long."""
        if self.writes:
            return
        spent = 0.0
        for first in range(1, self._most + 1, PIECE):
            last = min(first + PIECE, self._most + 1)
            spent += seconds(lambda first=first, last=last: [self._make(n) for n in range(first, last)])
            whole = spent * self._most / (last - 1)
            if whole > patience(self._ctx):
                words = f"writing {self._most} files to begin with would take {whole:.0f} s"
                raise Skip(f"{words} (at most {patience(self._ctx):.0f} s)")
        self._sync()

    def calibrate(self) -> None:
        """Find how many files take a sample's share of the budget."""
        share = self._ctx.budget_s / SAMPLES
        for _ in range(3):
            self.reset()
            took = seconds(self.run)
            wanted = max(self.count, min(self._most, int(self.count * share / took)))
            self.check()
            near, self.count = wanted < 2 * self.count, wanted
            if near:
                break
        self._ctx.device_bytes.clear()
        self._ctx.set("files_per_sample", self.count)

    # -- the timed region

    def run(self) -> None:
        """All files of the sample, and the sync that takes written ones to the device."""
        self._lanes.run(self._todo)
        if self.writes:
            self._sync()

    def _write(self, path: str, view: memoryview) -> None:
        self._transfer("write", path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, view)

    def _read(self, path: str, view: memoryview) -> None:
        self._transfer("read", path, os.O_RDONLY, view)

    def _transfer(self, verb: str, path: str, flags: int, view: memoryview) -> None:
        call = os.preadv if verb == "read" else os.pwritev
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | self._direct, 0o600)
            try:
                done = call(descriptor, (view,), 0)
                while done < len(view):
                    step = call(descriptor, (view[done:],), done)
                    if step == 0:
                        raise OSError(5, f"the file {'ends' if verb == 'read' else 'takes no more'} at byte {done}")
                    done += step
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"cannot {verb} {path}", error) from error

    # -- outside of it

    def reset(self) -> None:
        """Verify the last sample, and make the next one ready."""
        self._settle()
        if self._asked:
            self._verify(SPOT_CHECKS if self.writes else 0)
        if self.writes:
            for number in self._chosen:
                os.unlink(self._path(number))  # noqa: PTH108
        self._chosen = [int(n) + 1 for n in self._choose.permutation(self._most)[: self.count]]
        self._todo = [(self._path(number), self._words(place).data.cast("B")) for place, number in enumerate(self._chosen)]
        if self.writes:
            self._sample += 1
            for place, number in enumerate(self._chosen):
                self._pattern.fill(self._words(place), number, self._sample)
        else:
            self._content[: self.count * self._size // 8] = POISON
            self._drop()
        self._asked = True
        if self._counted:
            self._device.mark()

    def check(self) -> None:
        """All files of the last sample; what was written is read back from the device."""
        self._settle()
        if self._asked:
            self._verify(0)

    def _verify(self, some: int) -> None:
        """``some``: so many chosen anew, 0 for all."""
        places = range(len(self._chosen))
        if some:
            places = sorted(int(n) for n in self._choose.choice(len(places), min(some, len(places)), replace=False))
        if self.writes:
            self._drop()
        for place in places:
            number = self._chosen[place]
            words = self._words(place)
            if self.writes:
                words = self._back
                words.fill(POISON)
                self._read(self._path(number), words.data.cast("B"))
            self._pattern.verify(words, self._workspace.file(number), number, self._sample)

    def _make(self, number: int) -> None:
        self._pattern.fill(self._back, number, 0)
        self._write(self._path(number), self._back.data.cast("B"))

    def _path(self, number: int) -> str:
        return f"{self._workspace.path}/data-{number}"

    def _words(self, place: int) -> Words:
        words = self._size // 8
        return self._content[place * words : (place + 1) * words]

    def _drop(self) -> None:
        """No page of the sample's files is cached, where reads could be answered by one."""
        if self._direct:
            return
        cold.say_left(self._ctx, sum(cold.drop(self._workspace.file(number)) for number in self._chosen))

    def _sync(self) -> None:
        """syncfs(2): everything written to this file system is on its device."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(self._folder):
            number = ctypes.get_errno()
            raise StorageError(f"cannot sync {self._workspace.path}", OSError(number, os.strerror(number)))

    def _settle(self) -> None:
        asked = self.count * self._size
        self._device.settle(0 if self.writes else asked, asked if self.writes else 0)
