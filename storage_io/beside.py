"""A writer that works beside a case, in a process of its own, as fast as it can: whole passes over a file, stamped anew each.

``python -m storage_io.beside``: started by `Writer`, and ended with its worker in the ways that `helpers` says.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import subprocess
import sys

from clustergauge import processes
from storage_io.batch import Batch
from storage_io.crew import END_S, start_python
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.lanes import Lanes
from storage_io.pattern import BASE_BYTES, STAMP_EVERY, Pattern, aligned

PIECE_BYTES = 1 << 20
PIECES = BASE_BYTES // PIECE_BYTES
DEPTH = 4
SPOT_CHECKS = 4
FILE_NUMBER = 1


class Writer:
    """Writes the file, laid out as number `FILE_NUMBER` of the pattern, between `start` and `stop`; a multiple of 16 MiB long.

    ``pid``: for what the kernel counts of it.  Raises ``RuntimeError`` where it doesn't start.
    """

    def __init__(self, file: DataFile, pattern: Pattern, seed: int) -> None:
        import numpy as np

        self._file = file
        self._pattern = pattern
        self._batch = Batch(PIECES, PIECE_BYTES)
        self._choose = np.random.default_rng(seed)
        self._at_start = 0
        self._done = [1, 0]
        self._process: subprocess.Popen[str] | None = None
        try:
            pattern.fill(self._batch.content, FILE_NUMBER, 0)
            numbers = [file.descriptor, self._batch.descriptor, file.size, os.getpid()]
            descriptors = (file.descriptor, self._batch.descriptor)
            self._process = start_python("storage_io.beside", numbers, descriptors)
            self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process that writes."""
        assert self._process
        return self._process.pid

    def written(self) -> int:
        """Bytes written since the writer began, all its turns together; to be asked at any moment."""
        return int(self._batch.latencies.sum())

    def start(self) -> None:
        """Returns when it is writing at full speed: 16 MiB are done."""
        self._at_start = self.written()
        self._tell("start")

    def stop(self) -> int:
        """Returns when all is on the device: the bytes written since `start`.  Raises `StorageError` where a write failed."""
        self._done = [int(word) for word in self._tell("stop").split()]
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
        process, self._process = self._process, None
        if process:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe
                    pipe.close()
        self._batch.close()

    def _tell(self, command: str) -> str:
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer will be missing, and says more
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process
        assert self._process.stdout
        word, _, rest = self._process.stdout.readline().rstrip("\n").partition(" ")
        if word == "ok":
            return rest
        if word == "failed":
            number, text = rest.split(" ", 1)
            raise StorageError(f"cannot write {self._file.path}", OSError(int(number), text))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        ended = self._process.returncode
        how = "does not answer" if ended is None else processes.how_it_ended(-ended if ended < 0 else ended << 8)
        raise RuntimeError(f"the writer beside {how if ended is None or ended >= 0 else f'was {how}'}")


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
    processes.die_with_parent()
    if os.getppid() != given.parent:  # it died before the kernel knew whom to tell
        return 1
    passes = _Passes(given.file, Batch(PIECES, PIECE_BYTES, given.memory), given.size)
    _say("ok")
    while command := sys.stdin.readline():
        try:
            if command.strip() == "stop":
                _say(f"ok {passes.settle()}")
                continue
            passes.go_on()
            _say("ok")
            while not select.select([sys.stdin], [], [], 0)[0]:
                passes.go_on()
        except OSError as error:
            _say(f"failed {error.errno} {' '.join((error.strerror or '').split())}")
            return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
