"""Transfers of a batch by this process, or by helpers side by side: one interpreter submits about 200 000 a second and no more.

Helpers are started and made ready outside the timed region; a run is one line to each and one back from each.  They are the
worker's: the kernel kills them when the thread that started them is gone (``PR_SET_PDEATHSIG``), they leave when their input
ends, and `Helpers.close` kills them.  They have the file and the memory of the batch by descriptor, and write nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence

from clustergauge import code, processes
from storage_io.batch import READ, Batch
from storage_io.datafile import DataFile
from storage_io.engines import Aio, Engine, Threads, TransferError
from storage_io.errors import StorageError

PER_HELPER = 16
"""Transfers in flight that one helper is worth starting for."""
LARGE = 64 << 10
PER_HELPER_LARGE = 64
"""The same of blocks of `LARGE` bytes and more: 200 000 a second are 13 GB/s, and large blocks lie better in one process."""
END_S = 10.0
"""How long the end of a killed helper is waited for: it may hang in the kernel."""
_GO, _LOAD, _FINISH = "go", "load", "finish"


class Alone:
    """``depth`` transfers in flight by this process: one by the thread that asks, more by Linux AIO or by threads (`_engine`)."""

    def __init__(self, file: DataFile, batch: Batch, depth: int) -> None:
        self.pids: list[int] = []
        self._file = file
        self._batch = batch
        self._engine = _engine(file.descriptor, batch, depth, direct=file.direct)
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


class Helpers:
    """``depth`` transfers in flight, shared between so many ``helpers``, processes.  Same steps as `Alone`.

    ``batch``: in shared memory.  ``pids``: for what the kernel counts of them.  Raises `StorageError` or ``RuntimeError`` where
    helpers don't start.
    """

    def __init__(self, file: DataFile, batch: Batch, depth: int, helpers: int) -> None:
        self._file = file
        self._batch = batch
        self._helpers: list[subprocess.Popen[str]] = []
        shares = share(depth, helpers)
        try:
            self._helpers += [_start(file, batch, part) for part in shares]
            engines = sorted({self._answer(helper) for helper in self._helpers})
        except BaseException:
            self.close()
            raise
        self.pids = [helper.pid for helper in self._helpers]
        self.name = f"{' and '.join(engines)}, {helpers} processes × {shares[0]}"

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

    def close(self) -> None:
        """Kill the helpers, whatever they do, and wait until they are gone."""
        for helper in self._helpers:
            helper.kill()
        for helper in self._helpers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(END_S)
            for pipe in (helper.stdin, helper.stdout):
                if pipe:
                    with contextlib.suppress(OSError):  # what it was to be told and did not read
                        pipe.close()
        self._helpers = []

    def _all(self, commands: Sequence[str]) -> None:
        """Tell each helper its command, then wait for the answers of all."""
        for helper, command in zip(self._helpers, commands, strict=True):
            assert helper.stdin
            with contextlib.suppress(BrokenPipeError):  # its answer will be missing, and says more
                helper.stdin.write(command + "\n")
                helper.stdin.flush()
        for helper in self._helpers:
            self._answer(helper)

    def _answer(self, helper: subprocess.Popen[str]) -> str:
        """What a helper says after ``ok``.  Raises `StorageError` for what it could not do."""
        assert helper.stdout
        word, _, rest = helper.stdout.readline().rstrip("\n").partition(" ")
        if word == "ok":
            return rest
        if word == "failed":
            index, number, text = rest.split(" ", 2)
            raise _failed(self._file, self._batch, int(index), OSError(int(number), text))
        with contextlib.suppress(subprocess.TimeoutExpired):
            helper.wait(END_S)
        ended = helper.returncode
        how = "does not answer" if ended is None else processes.how_it_ended(-ended if ended < 0 else ended << 8)
        raise RuntimeError(f"a helper process {how if ended is None or ended >= 0 else f'was {how}'}")


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


def start_python(module: str, numbers: Sequence[int], descriptors: Sequence[int]) -> subprocess.Popen[str]:
    """A module of ours as a process that is spoken to by lines; ``descriptors``: what it inherits under the same numbers."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=tuple(descriptors),
        env=os.environ | {"PYTHONPATH": code.python_path(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


# --------------------------------------------------------------------------------------------------------------------------
# the helper's side


def main() -> int:
    """``python -m storage_io.helpers FILE MEMORY MOST BLOCK DEPTH DIRECT PARENT`` (all numbers): serve commands from stdin."""
    parser = argparse.ArgumentParser()
    for name in ("file", "memory", "most", "block", "depth", "direct", "parent"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    processes.die_with_parent()
    if os.getppid() != given.parent:  # it died before the kernel knew whom to tell
        return 1
    batch = Batch(given.most, given.block, given.memory)
    engine = _engine(given.file, batch, given.depth, direct=bool(given.direct))
    _say(f"ok {engine.name}")
    for line in sys.stdin:
        command, *numbers = line.split()
        try:
            if command == _GO:
                engine.run()
            elif command == _LOAD:
                engine.load(int(numbers[0]), int(numbers[1]))
            else:
                engine.finish()
        except TransferError as error:
            _say(f"failed {error.index} {error.cause.errno} {' '.join((error.cause.strerror or '').split())}")
            continue
        _say("ok")
    return 0


def _engine(descriptor: int, batch: Batch, depth: int, *, direct: bool) -> Engine:
    """AIO, or threads for one at a time, where there is no AIO, or nothing that it could do (buffered, it submits and waits)."""
    if direct and depth > 1:
        with contextlib.suppress(OSError):
            return Aio(descriptor, batch, depth)
    return Threads(descriptor, batch, depth)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
