"""Many small files: written anew, or read cold, as an unpacked data set is.  Files a second (as IO/s) and bytes a second.

A sample is some hundreds of files, ``depth`` at a time (`whole_files`).  *write*: each is created, written whole and closed, and
one ``syncfs`` ends the sample inside the time.  *read*: each is opened, read whole and closed, in random order, with direct I/O
where the file system has it, and then all of them again until the sample is long enough that its beginning and end, when fewer
are on their way, count for little; else once, and the pages of all of them are dropped before.  Inodes and names stay
in the kernel's caches: only root could empty those, for everybody.  After a *read* what memory holds is verified, and then all
files are read once more and verified; all files written must be there whole after every sample, and some are read back then, all
of the last one.  Where making them takes long there are fewer files to read; the setting ``cut_to`` says how many bytes then.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from pathlib import Path

from clustergauge.budget import seconds
from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Room, Skip, Work, Wrong, probe
from clustergauge.units import format_size
from storage_io import cold
from storage_io.errors import StorageError
from storage_io.evidence import DeviceBytes
from storage_io.layout import make_all, patience, trial
from storage_io.mounts import tell
from storage_io.pattern import STAMP_EVERY, Pattern, unstamped
from storage_io.random_io import require
from storage_io.whole_files import Back, Reads, Writes
from storage_io.workspace import Workspace

TOTAL_BYTES = 64 << 20
"""Of the population, and of the buffers of one sample at most."""
PROBE_BYTES = 16 << 20
"""Of the file that shows whether there is direct I/O."""
LEAST = 16
"""Files of a sample, however slow the disk; and no fewer than at a time."""
SAMPLES = 8
TIMES = 16
"""A file is read so often in a sample at most."""
SPOT_CHECKS = 16


def needs(op: str, depth: int, size: int) -> Needs:
    """A folder."""
    least, most = 2 * max(LEAST, depth) * size, (1 + (TIMES if op == "read" else 1)) * TOTAL_BYTES
    names, made = TOTAL_BYTES // max(1, size), TOTAL_BYTES if op == "read" else 0
    moves = Moves(before=PROBE_BYTES + made, sample=least, names=names, share=2 / SAMPLES, most=most)
    return Needs(target=True, moves=moves, room=room(size), refused=refused(depth, size))


def refused(depth: int, size: int, total: int = TOTAL_BYTES) -> str:
    """Why so many files of such a size at a time have no meaning, in words; empty where they have one."""
    least = max(LEAST, depth)
    if words := unstamped(size):
        return words
    if least * size > total:
        return f"{least} files of {format_size(size)} are more than {format_size(total)}; take a smaller --set size=…"
    return ""


def room(size: int, total: int = TOTAL_BYTES) -> Room:
    """All files, and the one that shows whether there is direct I/O."""
    return Room(max(total, PROBE_BYTES), total // max(1, size) + 1)


@probe("small_files", needs=needs, op=("write", "read"), depth=(1, 8, 32), size=(16 << 10, 64 << 10, 128 << 10))
def small_files(ctx: Context, op: str, depth: int, size: int) -> Work:
    """Write or read whole small files, ``depth`` at a time.  size: bytes of each."""
    return prepare(ctx, op, depth, size)


def prepare(ctx: Context, op: str, depth: int, size: int, total: int = TOTAL_BYTES, spare: int | None = None) -> Work:
    """The work of the probe.  ``total``: bytes of all files.  ``spare`` and errors: as `random_io.prepare`."""
    target = require(ctx, PROBE_BYTES, STAMP_EVERY)
    if words := refused(depth, size, total):
        raise Skip(words)
    with contextlib.ExitStack() as stack:
        space = Workspace(target, *room(size, total).of(), spare=spare)
        workspace = stack.enter_context(closing(space))
        tell(ctx, workspace.path)
        files = _Files(ctx, workspace, op, depth, size, total // size)
        stack.callback(files.close)
        for name, value in files.settings.items():
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
    """Files ``data-1`` … of a run folder, and what transfers those of a sample.

    ``_chosen``: their numbers.  ``_sample``: the one whose data they hold.
    """

    def __init__(self, ctx: Context, workspace: Workspace, op: str, depth: int, size: int, most: int) -> None:
        import numpy as np

        self.writes = op == "write"
        self._ctx = ctx
        self._workspace = workspace
        self._size = size
        self._most = most
        self._choose = np.random.default_rng(ctx.seed)
        self._sample = 0
        self._asked = False
        self._chosen: list[int] = []
        self.count = max(LEAST, depth)
        file, _ = trial(workspace.file(0), PROBE_BYTES)
        self._direct = os.O_DIRECT if file.direct else 0
        self._counted = file.counted
        pattern = Pattern()
        self._syncfs = ctypes.CDLL(None, use_errno=True).syncfs
        self._maker = Writes(workspace.path, size, 1, 1, self._direct, pattern)
        with contextlib.ExitStack() as stack:
            self._folder = os.open(workspace.path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, self._folder)
            self._files = (
                Writes(workspace.path, size, most, depth, self._direct, pattern)
                if self.writes
                else Reads(workspace.path, size, depth, self._direct, pattern)
            )
            stack.callback(self._files.close)
            self._back = Back(workspace.path, size, depth, self._direct, pattern)
            stack.callback(self._back.close)
            self.close = stack.pop_all().close
        self._device = DeviceBytes(ctx.device_bytes)
        engine = f"open, {self._files.how}, {depth} thread{'s' * (depth > 1)}"
        self.settings = file.settings() | {"engine": engine}

    def populate(self) -> None:
        """The files that will be read; each on the device.  Raises `Skip` where that would take too long."""
        if self.writes:
            return
        words = f"writing {self._most} files to begin with"
        made = make_all(self._most, patience(self._ctx), self._make, words, self._sync, enough=self.count)
        if made < self._most:
            self._most = made
            self._ctx.set("cut_to", made * self._size)

    def calibrate(self) -> None:
        """Find how many files take a sample's share of the budget.  The first look is late now and then, and so is not alone."""
        share = self._ctx.budget_s / SAMPLES
        most = self._most if self.writes or not self._direct else self._most * TIMES
        first = self._trial()
        for _ in range(3):
            took, first = min(first, self._trial()), math.inf
            wanted = max(self.count, min(most, int(self.count * share / took)))
            near, self.count = wanted < 2 * self.count, wanted
            if near:
                break
        self._ctx.device_bytes.clear()
        self._ctx.set("files_per_sample", self.count)

    def _trial(self) -> float:
        """Seconds of a sample that does not count."""
        self.reset()
        took = seconds(self.run)
        self.check()
        return took

    # -- the timed region

    def run(self) -> None:
        """All files of the sample, and the sync that takes written ones to the device."""
        self._files.run()
        if self.writes:
            self._sync()

    # -- outside of it

    def reset(self) -> None:
        """Verify the last sample, and make the next one ready."""
        self._settle()
        if self._asked:
            self._verify(SPOT_CHECKS)
        if self.writes:
            for number in self._chosen:
                self._remove(self._workspace.file(number))
        times = -(-self.count // self._most)
        numbers = [int(n) + 1 for _ in range(times) for n in self._choose.permutation(self._most)]
        self._chosen = numbers[: self.count]
        self._sample += self.writes
        self._files.load(self._sample, self._chosen)
        if not self.writes:
            self._drop()
        self._asked = True
        if self._counted:
            self._device.mark()

    def check(self) -> None:
        """All files of the last sample; what was written is read back from the device."""
        self._settle()
        if self._asked:
            self._verify(0)
        self._asked = False

    def _verify(self, some: int) -> None:
        """What memory holds of those read, and all of them, read once more; of those written so many, chosen anew, or all (0)."""
        if isinstance(self._files, Writes):
            for number in self._chosen:
                self._require_whole(self._workspace.file(number))
        else:
            self._files.verify()
        self._drop()
        numbers = list(dict.fromkeys(self._chosen))
        if some and self.writes:
            numbers = [numbers[int(n)] for n in sorted(self._choose.choice(len(numbers), min(some, len(numbers)), replace=False))]
        self._back.verify(numbers, self._sample)

    def _require_whole(self, path: Path) -> None:
        """A file that is shorter than what was written, or not there, has lost it."""
        try:
            there = path.stat().st_size
        except FileNotFoundError:
            raise Wrong(f"{path} is not there, {self._size} bytes were written") from None
        except OSError as error:
            raise StorageError(f"cannot read {path}", error) from error
        if there != self._size:
            raise Wrong(f"{path} holds {there} bytes, {self._size} were written")

    def _remove(self, path: Path) -> None:
        try:
            path.unlink()
        except OSError as error:
            raise StorageError(f"cannot remove {path}", error) from error

    def _make(self, number: int) -> None:
        self._maker.load(0, [number])
        self._maker.run()

    def _drop(self) -> None:
        """No page of the sample's files is cached, where reads could be answered by one."""
        if self._direct:
            return
        cold.say_left(self._ctx, sum(cold.drop(self._workspace.file(number)) for number in self._chosen))

    def _sync(self) -> None:
        """syncfs(2): everything written to this file system is on its device."""
        if self._syncfs(self._folder):
            number = ctypes.get_errno()
            raise StorageError(f"cannot sync {self._workspace.path}", OSError(number, os.strerror(number)))

    def _settle(self) -> None:
        asked = self.count * self._size
        self._device.settle(0 if self.writes else asked, asked if self.writes else 0)
