"""A writer that works beside a case, in a process of its own, as fast as it can: whole passes over a file, stamped anew each.

``python -m storage_io.beside``: started by `Writer`, and ended with its worker in the ways that `crew` says.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys

from storage_io.batch import Batch
from storage_io.crew import Crew, belongs_to, say, start_python
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.lanes import Lanes
from storage_io.pattern import BASE_BYTES, STAMP_EVERY, Pattern, aligned

PIECE_BYTES = 1 << 20
PIECES = BASE_BYTES // PIECE_BYTES
DEPTH = 4
SPOT_CHECKS = 4
FILE_NUMBER = 1


class Writer(Crew):
    """Writes the file, laid out as number `FILE_NUMBER` of the pattern, between `start` and `stop`; a multiple of 16 MiB long.

    ``pid``: for what the kernel counts of it.  Raises ``RuntimeError`` where it doesn't start.
    """

    who = "the writer beside"

    def __init__(self, file: DataFile, pattern: Pattern, seed: int) -> None:
        import numpy as np

        self._file = file
        self._pattern = pattern
        self._batch = Batch(PIECES, PIECE_BYTES)
        self._choose = np.random.default_rng(seed)
        self._at_start = 0
        self._done = [1, 0]
        pattern.fill(self._batch.content, FILE_NUMBER, 0)
        super().__init__([self._start])
        (self.pid,) = self.pids

    def written(self) -> int:
        """Bytes written since the writer began, all its turns together; to be asked at any moment."""
        return int(self._batch.latencies.sum())

    def start(self) -> None:
        """Returns when it is writing at full speed: 16 MiB are done."""
        self._at_start = self.written()
        self._all(["start"])

    def stop(self) -> int:
        """Returns when all is on the device: the bytes written since `start`.  Raises `StorageError` where a write failed."""
        (done,) = self._all(["stop"])
        self._done = [int(word) for word in done.split()]
        return self.written() - self._at_start

    def verify(self) -> None:
        """Read some of what was written back from the device, after `stop`.  Raises `Wrong` where it is not that."""
        passes, pieces = self._done  # pieces of this pass, the others hold the one before
        if not self._file.direct:
            self._file.drop()
        words = aligned(PIECE_BYTES)
        for piece in self._choose.choice(self._file.size // PIECE_BYTES, SPOT_CHECKS, replace=False).tolist():
            self._file.read_at(piece * PIECE_BYTES, words.data.cast("B"))
            sample = passes if piece < pieces else passes - 1
            self._pattern.verify(words, self._file.path, FILE_NUMBER, sample, piece * PIECE_BYTES)

    def close(self) -> None:
        """Kill the process and wait until it is gone."""
        super().close()
        self._batch.close()

    def _start(self) -> subprocess.Popen[str]:
        descriptors = self._file.descriptor, self._batch.descriptor
        return start_python("storage_io.beside", (*descriptors, self._file.size, os.getpid()), descriptors)

    def _met(self, word: str, rest: str) -> Exception | None:
        if word != "failed":
            return None
        number, text = rest.split(" ", 1)
        return StorageError(f"cannot write {self._file.path}", OSError(int(number), text))


# --------------------------------------------------------------------------------------------------------------------------
# the writer's side


class _Passes:
    """``_pass``: the number of the pass that is being made, also the sample of its stamps; ``_piece``: the next of it."""

    def __init__(self, descriptor: int, batch: Batch, size: int) -> None:
        self._descriptor = descriptor
        self._batch = batch
        self._pieces = size // PIECE_BYTES
        self._pass = 1
        self._piece = 0
        self._lanes = Lanes([self._write] * DEPTH)

    def go_on(self) -> None:
        """The next 16 MiB."""
        import numpy as np

        rows = self._batch.content.reshape(-1, STAMP_EVERY // 8)
        first = self._piece * (PIECE_BYTES // STAMP_EVERY)
        rows[:, 2], rows[:, 3] = np.arange(first, first + len(rows)), self._pass
        self._lanes.run([(slot, (self._piece + slot) * PIECE_BYTES) for slot in range(PIECES)])
        self._piece += PIECES
        if self._piece == self._pieces:
            self._pass, self._piece = self._pass + 1, 0

    def settle(self) -> str:
        """Sync; which pass, and how many of its pieces are done."""
        os.fdatasync(self._descriptor)
        return f"{self._pass} {self._piece}"

    def _write(self, slot: int, offset: int) -> None:
        view, done = self._batch.view(slot), 0
        while done < len(view):
            step = os.pwritev(self._descriptor, (view[done:],), offset + done)
            if step == 0:
                raise OSError(5, "the file takes no more")
            done += step
        self._batch.latencies[slot] += PIECE_BYTES  # each slot has one writer at a time


def main() -> int:
    """``python -m storage_io.beside FILE MEMORY SIZE PARENT`` (all numbers): write between ``start`` and ``stop``."""
    parser = argparse.ArgumentParser()
    for name in ("file", "memory", "size", "parent"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    if not belongs_to(given.parent):
        return 1
    passes = _Passes(given.file, Batch(PIECES, PIECE_BYTES, given.memory), given.size)
    say("ok")
    while command := sys.stdin.readline():
        try:
            if command.strip() == "stop":
                say(f"ok {passes.settle()}")
                continue
            passes.go_on()
            say("ok")
            while not select.select([sys.stdin], [], [], 0)[0]:
                passes.go_on()
        except OSError as error:
            say(f"failed {error.errno} {error.strerror}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
