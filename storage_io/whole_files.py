"""Small files transferred whole, so many at a time: by threads of this process, or read by helpers side by side.

A file takes three system calls, and after each the thread needs the interpreter again: threads of one process wait for each other
(on a busy machine eight of them read 5 000 files a second where those of two processes, and threads in C, read 9 000; writes
gained nothing).  Each process has the files of its share and buffers of its own for them, one for each file of a sample, on huge
pages, and verifies what it read.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge.probe import Wrong
from storage_io.crew import Crew, belongs_to, say, start_python
from storage_io.errors import StorageError
from storage_io.helpers import share
from storage_io.lanes import Lanes
from storage_io.pattern import POISON, Pattern, aligned
from storage_io.workspace import data_file

if TYPE_CHECKING:
    from storage_io.pattern import Words

PER_HELPER = 2
"""Files at a time that one helper is worth starting for."""
_LOAD, _GO, _VERIFY = "load", "go", "verify"


class Share:
    """The files of one process, in the run folder.  ``most``: files of a sample at most.  ``direct``: ``O_DIRECT``, or 0."""

    def __init__(self, folder: Path, size: int, most: int, depth: int, direct: int, pattern: Pattern, *, writes: bool) -> None:
        self.pids: list[int] = []
        self._folder = folder
        self._size = size
        self._writes = writes
        self._flags = os.O_NOFOLLOW | direct | (os.O_CREAT | os.O_EXCL | os.O_WRONLY if writes else os.O_RDONLY)
        self._call = os.pwritev if writes else os.preadv
        self._pattern = pattern
        self._content = aligned(size * most)
        self._sample = 0
        self._numbers: Sequence[int] = []
        self._todo: list[tuple[bytes, tuple[memoryview]]] = []
        self._lanes = Lanes(depth, self._transfer)

    def load(self, sample: int, numbers: Sequence[int]) -> None:
        """Make the files of a sample ready: stamped as they are to be written, or poisoned."""
        self._sample, self._numbers = sample, numbers
        self._todo = [(_path(self._folder, n), (self._words(place).data.cast("B"),)) for place, n in enumerate(numbers)]
        if self._writes:
            for place, number in enumerate(numbers):
                self._pattern.fill(self._words(place), number, sample)
        else:
            self._content[: len(numbers) * self._size // 8] = POISON

    def run(self) -> None:
        """Transfer them.  Raises `StorageError`."""
        self._lanes.run(self._todo)

    def verify(self) -> None:
        """All that was read.  Raises `Wrong`."""
        for place, number in enumerate(self._numbers):
            self._pattern.verify(self._words(place), os.fsdecode(_path(self._folder, number)), number, self._sample)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()

    def _words(self, place: int) -> Words:
        words = self._size // 8
        return self._content[place * words : (place + 1) * words]

    def _transfer(self, path: bytes, views: tuple[memoryview]) -> None:
        try:
            descriptor = os.open(path, self._flags, 0o600)
            try:
                if (done := self._call(descriptor, views, 0)) != self._size:
                    self._rest(descriptor, views[0], done)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"cannot {'write' if self._writes else 'read'} {os.fsdecode(path)}", error) from error

    def _rest(self, descriptor: int, view: memoryview, done: int) -> None:
        """What a call left undone."""
        while done < self._size:
            step = self._call(descriptor, (view[done:],), done)
            if step == 0:
                raise OSError(5, f"the file {'takes no more' if self._writes else 'ends'} at byte {done}")
            done += step


class Shares(Crew):
    """Reads by so many ``helpers``, each with its part of ``depth`` and of the files.

    ``seed``: of the pattern, which all processes have in common.  Raises ``RuntimeError`` where they don't start.
    """

    def __init__(self, folder: Path, size: int, most: int, depth: int, direct: int, seed: int, helpers: int) -> None:
        each = -(-most // helpers)

        def start(part: int) -> subprocess.Popen[str]:
            return start_python("storage_io.whole_files", (size, each, part, direct, seed, os.getpid(), folder))

        super().__init__([functools.partial(start, part) for part in share(depth, helpers)])

    def load(self, sample: int, numbers: Sequence[int]) -> None:
        """See `Share`."""
        count = len(self.pids)
        self._all([" ".join(map(str, (_LOAD, sample, *numbers[part::count]))) for part in range(count)])

    def run(self) -> None:
        """See `Share`."""
        self._all([_GO] * len(self.pids))

    def verify(self) -> None:
        """See `Share`."""
        self._all([_VERIFY] * len(self.pids))

    def _met(self, word: str, rest: str) -> Exception | None:
        return StorageError.quoted(rest) if word == "failed" else Wrong(rest) if word == "wrong" else None


def helpers_for(depth: int, processors: int) -> int:
    """How many helpers serve so many files at a time; 1: this process can do it alone."""
    return max(1, min(processors, depth // PER_HELPER))


def _path(folder: Path, number: int) -> bytes:
    """As system calls take it."""
    return os.fsencode(data_file(folder, number))


# --------------------------------------------------------------------------------------------------------------------------
# the helper's side


def main() -> int:
    """``python -m storage_io.whole_files SIZE MOST DEPTH DIRECT SEED PARENT FOLDER``: serve commands from stdin."""
    *numbers, folder = sys.argv[1:]
    size, most, depth, direct, seed, parent = map(int, numbers)
    if not belongs_to(parent):
        return 1
    own = Share(Path(folder), size, most, depth, direct, Pattern(seed), writes=False)
    say("ok")
    for line in sys.stdin:
        command, *words = line.split()
        try:
            if command == _GO:
                own.run()
            elif command == _VERIFY:
                own.verify()
            else:
                own.load(int(words[0]), [int(word) for word in words[1:]])
        except (StorageError, Wrong) as error:
            say(f"{'wrong' if isinstance(error, Wrong) else 'failed'} {error}")
        else:
            say("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
