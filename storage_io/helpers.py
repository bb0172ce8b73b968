"""Transfers of a batch by this process, or by helpers side by side: one interpreter submits about 200 000 a second and no more.

Helpers (a `Crew`) are started and made ready outside the timed region; a run is one line to each and one back from each.  They
have the file and the memory of the batch by descriptor, and write nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import subprocess
import sys

from storage_io.batch import READ, Batch
from storage_io.crew import Crew, belongs_to, say, serve, start_python
from storage_io.datafile import DataFile
from storage_io.engines import Aio, Engine, Threads, TransferError
from storage_io.errors import StorageError

PER_HELPER = 16
"""Transfers in flight that one helper is worth starting for."""
LARGE = 64 << 10
PER_HELPER_LARGE = 64
"""The same of blocks of `LARGE` bytes and more: 200 000 a second are 13 GB/s, and large blocks lie better in one process."""
_GO, _LOAD, _FINISH = "go", "load", "finish"


class Alone:
    """``depth`` transfers in flight by this process: one by the thread that asks, more by Linux AIO or by threads (`_engine`), or
    by an engine that is given."""

    def __init__(self, file: DataFile, batch: Batch, depth: int, engine: Engine | None = None) -> None:
        self.pids: list[int] = []
        self._file = file
        self._batch = batch
        self._engine = engine or _engine(file.descriptor, batch, depth, direct=file.direct)
        self.name = f"{self._engine.name}, {'1 thread' if depth == 1 else f'1 process × {depth}'}"

    def load(self, count: int) -> None:
        """Make the first ``count`` transfers of the batch ready, untimed."""
        self._engine.load(0, count)

    def run(self) -> None:
        """Do them.  Raises `StorageError`."""
        try:
            self._engine.run()
        except TransferError as error:
            raise _failed(self._file, self._batch, error.index, error.cause) from error

    def finish(self) -> None:
        """Write the latencies into the batch, untimed."""
        self._engine.finish()

    def close(self) -> None:
        """End what was started."""
        self._engine.close()


class Helpers(Crew):
    """``depth`` transfers in flight, shared between so many ``helpers``, processes.  Same steps as `Alone`.

    ``batch``: in shared memory.  Raises `StorageError` or ``RuntimeError`` where helpers don't start.
    """

    def __init__(self, file: DataFile, batch: Batch, depth: int, helpers: int) -> None:
        self._file = file
        self._batch = batch
        shares = share(depth, helpers)
        super().__init__([functools.partial(_start, file, batch, part) for part in shares])
        self.name = f"{' and '.join(sorted(set(self.said)))}, {helpers} processes × {shares[0]}"

    def load(self, count: int) -> None:
        """See `Alone`."""
        ends = [count * n // len(self._helpers) for n in range(len(self._helpers) + 1)]
        self._all([f"{_LOAD} {first} {last}" for first, last in itertools.pairwise(ends)])

    def run(self) -> None:
        """See `Alone`."""
        self._all([_GO] * len(self._helpers))

    def finish(self) -> None:
        """See `Alone`."""
        self._all([_FINISH] * len(self._helpers))

    def _met(self, word: str, rest: str) -> Exception | None:
        if word != "failed":
            return None
        index, number, text = rest.split(" ", 2)
        return _failed(self._file, self._batch, int(index), OSError(int(number), text))


def helpers_for(depth: int, block: int, processors: int) -> int:
    """How many helpers serve so many transfers in flight, each of ``block`` bytes; 1: this process can do it `Alone`."""
    return max(1, min(processors, depth // (PER_HELPER if block < LARGE else PER_HELPER_LARGE)))


def share(depth: int, helpers: int) -> list[int]:
    """The depth of each helper; together exactly ``depth``."""
    return [depth // helpers + (n < depth % helpers) for n in range(helpers)]


def _failed(file: DataFile, batch: Batch, index: int, cause: OSError) -> StorageError:
    verb = "read" if batch.kinds[index] == READ else "write"
    return StorageError(f"cannot {verb} {file.path} at byte {batch.offsets[index]}", cause)


def _start(file: DataFile, batch: Batch, depth: int) -> subprocess.Popen[str]:
    numbers = [file.descriptor, batch.descriptor, batch.most, batch.block, depth, int(file.direct), os.getpid()]
    return start_python("storage_io.helpers", numbers, (file.descriptor, batch.descriptor))


# --------------------------------------------------------------------------------------------------------------------------
# the helper's side


def main() -> int:
    """``python -m storage_io.helpers FILE MEMORY MOST BLOCK DEPTH DIRECT PARENT`` (all numbers): serve commands from stdin."""
    parser = argparse.ArgumentParser()
    for name in ("file", "memory", "most", "block", "depth", "direct", "parent"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    if not belongs_to(given.parent):
        return 1
    batch = Batch(given.most, given.block, given.memory)
    engine = _engine(given.file, batch, given.depth, direct=bool(given.direct))
    say(f"ok {engine.name}")
    serve({_LOAD: engine.load, _GO: engine.run, _FINISH: engine.finish}, _words)
    return 0


def _words(error: Exception) -> str:
    return f"failed {error.index} {error.cause.errno} {error.cause.strerror}" if isinstance(error, TransferError) else ""


def _engine(descriptor: int, batch: Batch, depth: int, *, direct: bool) -> Engine:
    """AIO, or threads for one at a time, where there is no AIO, or nothing that it could do (buffered, it submits and waits)."""
    if direct and depth > 1:
        with contextlib.suppress(OSError):
            return Aio(descriptor, batch, depth)
    return Threads(descriptor, batch, depth)


if __name__ == "__main__":
    sys.exit(main())
