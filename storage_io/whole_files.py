"""Small files transferred whole, so many at a time, by threads.

What is written has memory of its own; reads go into one buffer for each thread again and again (`slots`), and where there can be
compiled code it does them (`whole_reads`; writes gain nothing).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clustergauge.probe import Wrong
from storage_io import whole_reads
from storage_io.errors import StorageError
from storage_io.lanes import Lanes
from storage_io.pattern import Pattern, aligned
from storage_io.slots import Slot, Slots
from storage_io.workspace import data_file


class Writes:
    """New files in the run folder, of ``size`` bytes each, ``depth`` at a time.

    ``most``: files of a sample at most.  ``direct``: ``O_DIRECT``, or 0.  ``how``: system calls after the first, in words.
    """

    how = "pwritev, close"

    def __init__(self, folder: Path, size: int, most: int, depth: int, direct: int, pattern: Pattern) -> None:
        self._folder = folder
        self._flags = os.O_NOFOLLOW | direct | os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self._pattern = pattern
        self._content = aligned(size * most).reshape(most, -1)
        self._todo: list[tuple[bytes, memoryview]] = []
        self._lanes = Lanes([self._write] * depth)

    def load(self, sample: int, numbers: Sequence[int]) -> None:
        """Make the data of a sample's files."""
        for words, number in zip(self._content, numbers, strict=False):
            self._pattern.fill(words, number, sample)
        self._todo = [(_path(self._folder, n), words.data.cast("B")) for n, words in zip(numbers, self._content, strict=False)]

    def run(self) -> None:
        """Write them.  Raises `StorageError`."""
        self._lanes.run(self._todo)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()

    def _write(self, path: bytes, view: memoryview) -> None:
        _transfer("write", os.pwritev, path, self._flags, view)


class Reads:
    """Files of the run folder, by number, ``depth`` at a time.

    ``direct``: ``O_DIRECT``, or 0.  ``how``: system calls after the first, in words.
    """

    def __init__(self, folder: Path, size: int, depth: int, direct: int, pattern: Pattern) -> None:
        self._folder = folder
        self._flags = os.O_NOFOLLOW | os.O_CLOEXEC | direct | os.O_RDONLY
        self._pattern = pattern
        self._sample = 0
        self._todo: list[tuple[bytes, int]] = []
        self._slots = Slots[int](depth, size)
        self._files = whole_reads.files(size, self._flags)
        self.how = "pread, close, from compiled code" if self._files else "preadv, close"
        read = self._read_all if self._files else self._read
        self._lanes = Lanes([functools.partial(read, slot) for slot in self._slots.each])

    def load(self, sample: int, numbers: Sequence[int]) -> None:
        """Make ready for files that such a sample wrote."""
        self._sample = sample
        self._todo = [(_path(self._folder, number), number) for number in numbers]
        self._slots.poison()
        if self._files:
            self._files.load([path for path, _ in self._todo])

    def run(self) -> None:
        """Read them.  Raises `StorageError`."""
        if not self._files:
            self._lanes.run(self._todo)
            return
        self._files.start()
        self._lanes.run([()] * len(self._slots.each))

    def verify(self) -> None:
        """That as many files were read as there are, and the last ones, one a lane.  Raises `Wrong`."""
        if (count := sum(slot.count for slot in self._slots.each)) != len(self._todo):
            raise Wrong(f"{count} files of {self._folder} were read, not {len(self._todo)}")
        for words, number in self._slots.held():
            self._pattern.verify(words, os.fsdecode(_path(self._folder, number)), number, self._sample)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()

    def _read(self, slot: Slot[int], path: bytes, number: int) -> None:
        _transfer("read", os.preadv, path, self._flags, slot.bytes)
        slot.last = number
        slot.count += 1

    def _read_all(self, slot: Slot[int]) -> None:
        """Files, until none is left.  One that came in part is read again, by Python, which knows how to go on."""
        files, into = self._files, slot.address
        assert files
        try:
            while True:
                which, reason, last, whole = files.take(into)
                if whole:
                    slot.last = self._todo[last][1]
                    slot.count += whole
                if which == whole_reads.NONE_LEFT:
                    return
                if which >= 0:
                    if reason not in (0, errno.EINTR):
                        raise _failed("read", self._todo[which][0], OSError(reason, os.strerror(reason)))
                    self._read(slot, *self._todo[which])
        finally:
            files.stop()


class Back:
    """Files read back, untimed, as many at a time as the case has, each into memory of its own, and verified."""

    def __init__(self, folder: Path, size: int, depth: int, direct: int, pattern: Pattern) -> None:
        self._folder = folder
        self._flags = os.O_NOFOLLOW | direct | os.O_RDONLY
        self._pattern = pattern
        self._slots = Slots[int](depth, size)
        self._lanes = Lanes([self._read] * depth)

    def verify(self, numbers: Sequence[int], sample: int) -> None:
        """Raise `Wrong` unless they hold what that sample wrote, `StorageError` where they can't be read."""
        depth = len(self._slots.each)
        for first in range(0, len(numbers), depth):
            some = list(zip(self._slots.each, numbers[first : first + depth], strict=False))
            self._slots.poison()
            self._lanes.run(some)
            for slot, number in some:
                self._pattern.verify(slot.words, os.fsdecode(_path(self._folder, number)), number, sample)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()

    def _read(self, slot: Slot[int], number: int) -> None:
        _transfer("read", os.preadv, _path(self._folder, number), self._flags, slot.bytes)


def _transfer(verb: str, call: Callable[..., int], path: bytes, flags: int, view: memoryview) -> None:
    """Open a file, transfer all of it, close it.  Raises `StorageError`."""
    try:
        descriptor = os.open(path, flags, 0o600)
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
        raise _failed(verb, path, error) from error


def _failed(verb: str, path: bytes, cause: OSError) -> StorageError:
    return StorageError(f"cannot {verb} {os.fsdecode(path)}", cause)


def _path(folder: Path, number: int) -> bytes:
    """As system calls take it."""
    return os.fsencode(data_file(folder, number))
