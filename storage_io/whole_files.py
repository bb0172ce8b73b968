"""Small files transferred whole, so many at a time: by threads of this process, or read by helpers side by side.

A file takes three system calls, and after each the thread needs the interpreter again: threads of one process wait for each other
(on a busy machine eight of them read 5 000 files a second where those of two processes, and threads in C, read 9 000; writes
gained nothing).  Each process has the files of its share.  What is written has memory of its own; reads go into one buffer for
each thread again and again (`slots`).
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clustergauge.probe import Wrong
from storage_io.crew import Crew, belongs_to, say, serve, start_python
from storage_io.errors import StorageError
from storage_io.helpers import share
from storage_io.lanes import Lanes
from storage_io.pattern import Pattern, aligned
from storage_io.slots import Slot, Slots
from storage_io.workspace import data_file

PER_HELPER = 2
"""Files at a time that one helper is worth starting for."""
_LOAD, _GO, _VERIFY = "load", "go", "verify"


class Writes:
    """New files in the run folder, of ``size`` bytes each, ``depth`` at a time.

    ``most``: files of a sample at most.  ``direct``: ``O_DIRECT``, or 0.
    """

    def __init__(self, folder: Path, size: int, most: int, depth: int, direct: int, pattern: Pattern) -> None:
        self.pids: list[int] = []
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
    """Files of the run folder, by number, ``depth`` at a time.  ``direct``: ``O_DIRECT``, or 0."""

    def __init__(self, folder: Path, size: int, depth: int, direct: int, pattern: Pattern) -> None:
        self.pids: list[int] = []
        self._folder = folder
        self._flags = os.O_NOFOLLOW | direct | os.O_RDONLY
        self._pattern = pattern
        self._sample = 0
        self._todo: list[tuple[bytes, int]] = []
        self._slots = Slots[int](depth, size)
        self._lanes = Lanes([functools.partial(self._read, slot) for slot in self._slots.each])

    def load(self, sample: int, numbers: Sequence[int]) -> None:
        """Make ready for files that such a sample wrote."""
        self._sample = sample
        self._todo = [(_path(self._folder, number), number) for number in numbers]
        self._slots.poison()

    def run(self) -> None:
        """Read them.  Raises `StorageError`."""
        self._lanes.run(self._todo)

    def verify(self) -> None:
        """The files that were read last, one a lane.  Raises `Wrong`."""
        held = self._slots.held()
        if self._todo and not held:
            raise Wrong(f"none of {len(self._todo)} files of {self._folder} was read")
        for words, number in held:
            self._pattern.verify(words, os.fsdecode(_path(self._folder, number)), number, self._sample)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()

    def _read(self, slot: Slot[int], path: bytes, number: int) -> None:
        _transfer("read", os.preadv, path, self._flags, slot.bytes)
        slot.last = number


class Shares(Crew):
    """`Reads` by so many ``helpers``, each with its part of ``depth`` and of the files.

    ``seed``: of the pattern, which all processes have in common.  Raises ``RuntimeError`` where they don't start.
    """

    def __init__(self, folder: Path, size: int, depth: int, direct: int, seed: int, helpers: int) -> None:
        def start(part: int) -> subprocess.Popen[str]:
            return start_python("storage_io.whole_files", (size, part, direct, seed, os.getpid(), folder))

        super().__init__([functools.partial(start, part) for part in share(depth, helpers)])

    def load(self, sample: int, numbers: Sequence[int]) -> None:
        """See `Reads`."""
        count = len(self.pids)
        self._all([" ".join(map(str, (_LOAD, sample, *numbers[part::count]))) for part in range(count)])

    def run(self) -> None:
        """See `Reads`."""
        self._all([_GO] * len(self.pids))

    def verify(self) -> None:
        """See `Reads`."""
        self._all([_VERIFY] * len(self.pids))

    def _met(self, word: str, rest: str) -> Exception | None:
        return StorageError.quoted(rest) if word == "failed" else Wrong(rest) if word == "wrong" else None


def helpers_for(depth: int, processors: int) -> int:
    """How many helpers serve so many files at a time; 1: this process can do it alone."""
    return max(1, min(processors, depth // PER_HELPER))


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
        raise StorageError(f"cannot {verb} {os.fsdecode(path)}", error) from error


def _path(folder: Path, number: int) -> bytes:
    """As system calls take it."""
    return os.fsencode(data_file(folder, number))


# --------------------------------------------------------------------------------------------------------------------------
# the helper's side


def main() -> int:
    """``python -m storage_io.whole_files SIZE DEPTH DIRECT SEED PARENT FOLDER``: serve commands from stdin."""
    *numbers, folder = sys.argv[1:]
    size, depth, direct, seed, parent = map(int, numbers)
    if not belongs_to(parent):
        return 1
    own = Reads(Path(folder), size, depth, direct, Pattern(seed))

    def load(sample: int, *chosen: int) -> None:
        own.load(sample, chosen)

    say("ok")
    serve({_LOAD: load, _GO: own.run, _VERIFY: own.verify}, _words)
    return 0


def _words(error: Exception) -> str:
    if isinstance(error, Wrong):
        return f"wrong {error}"
    return f"failed {error}" if isinstance(error, StorageError) else ""


if __name__ == "__main__":
    sys.exit(main())
