"""STREAM's operations as a native program runs them: vector loads, non-temporal stores, huge pages, pinned threads.

torch stores through the caches, so that every line it writes is fetched first, from ordinary pages: it can leave half of a
memory's bandwidth unseen.  Here llvmlite compiles one page of LLVM's language (`code`), in about 50 ms and with no compiler
on the machine; the threads live in compiled code and never wait for Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clustergauge.placement import cores
from kernels.native import code

Values = np.ndarray[Any, np.dtype[np.float64]]

HUGE = 2 << 20
"""Bytes of a huge page (x86-64, and Arm with pages of 4 KiB); where it is another size, still an alignment."""


@functools.cache
def available() -> str:
    """Empty if this backend works here, else the reason, in one line."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return "native kernels need 64-bit Linux"
    if importlib.util.find_spec("llvmlite") is None:
        return "native kernels need llvmlite 0.45 or newer"
    try:
        importlib.import_module("llvmlite.binding")
    except Exception as error:  # noqa: BLE001 (a broken installation raises what it likes)
        return f"llvmlite is here and cannot be imported: {_line(error)}"
    try:
        code.address("worker")
    except Exception as error:  # noqa: BLE001 (whatever LLVM or its binding raises, the reason is the answer)
        return f"llvmlite makes no code for this processor: {_line(error)}"
    return ""


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def processors() -> list[int]:
    """One processor of each physical core that this process may use: a core's hardware threads share its way to memory."""
    return [min(core) for core in cores(os.sched_getaffinity(0))]


def team(most: int | None = None) -> Team:
    """This process's threads on its `processors`, the first ``most`` of them if given: started once, asleep between calls.

    Raises what `Team` raises.
    """
    return _team(os.getpid(), tuple(processors()[:most]))


@functools.cache
def _team(pid: int, on: tuple[int, ...]) -> Team:  # noqa: ARG001 (threads do not survive a fork)
    return Team(on)


class Team:
    """Threads, each pinned to a processor, that run one operation at a time together, and the memory they run it on.

    Thread i has the i-th equal part of every array and touches it first: where a machine has several memory nodes, each
    page settles beside the thread that uses it.
    """

    def __init__(self, on: Sequence[int]) -> None:
        """``on``: the processors.  Raises ``RuntimeError`` if a thread cannot be pinned to one; ask `available` first."""
        if not on:
            raise ValueError("a team needs a processor")
        self.processors = tuple(on)
        self._memory = _aligned_lines(len(on) + 2 * code.MASK // code.LINE)
        self._address = self._memory.ctypes.data
        before = self._address + self._memory.size - code.MASK
        here = before - code.MASK
        self._memory[:40].view(np.int64)[:] = [0, len(on), 0, here, before]
        self._memory[here - self._address + on[0] // 8] = 1 << on[0] % 8
        self._start = _function("start", ctypes.c_void_p)
        self._failed: list[str] = []
        prepare, worker = _function("prepare", ctypes.c_int64), _function("worker", ctypes.c_int64)
        self._threads: list[threading.Thread] = []
        for place in range(1, len(on)):
            prepare(self._address, place)
            self._threads.append(threading.Thread(target=self._live, args=(worker, place), name=f"native-{place}", daemon=True))
        allowed = os.sched_getaffinity(0)
        self._pin(0)  # to see whether it works: every call does it, and undoes it
        os.sched_setaffinity(0, allowed)
        for thread in self._threads:
            thread.start()
        self._runner("idle", [np.empty(0)] * 3, 0.0)()  # returns when all have come
        if self._failed:
            self.close()
            raise RuntimeError(f"cannot pin a thread to {self._failed[0]}")

    def array(self, count: int) -> Values:
        """``count`` zeros in a private mapping of their own, on huge pages where the kernel grants them.

        Shared mappings, and what malloc returns, get none by default.  The memory is given back with the last view of it.
        """
        size = max(1, count) * code.ITEM
        mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel built without huge pages: ordinary ones serve
            mapping.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(mapping, np.uint8)
        start = -whole.ctypes.data % HUGE
        values: Values = whole[start : start + count * code.ITEM].view(np.float64)
        self.call("write", values, [], 0.0)()
        return values

    def call(self, op: str, out: Values, sources: Sequence[Values], scalar: float) -> Callable[[], object]:
        """What runs an operation of `code.OPS` over whole arrays: a = s, a = b, a = s·b, a = b + c, a = b + s·c.

        ``read`` leaves one sum for each thread in ``out``, which together are the sum of the source.  It keeps the arrays
        alive, allocates nothing, and is for one caller at a time.  Raises ``ValueError`` where the number of sources or the
        lengths do not fit, or an array is not contiguous float64 at a multiple of 64 bytes.
        """
        if len(sources) != len(code.OPS[op]):
            raise ValueError(f"{op} reads {len(code.OPS[op])} arrays, got {len(sources)}")
        arrays = [out, *sources]
        for values in arrays:
            if values.dtype != np.float64 or values.ndim != 1 or not values.flags.c_contiguous:
                raise ValueError(f"{op} needs contiguous float64, got {values.dtype} of shape {values.shape}")
        for values in sources if op == "read" else arrays:
            if values.ctypes.data % code.LINE:
                raise ValueError(f"{op} needs arrays that begin at a multiple of {code.LINE} bytes")
        lengths = [values.size for values in arrays]
        if lengths[0] != (len(self.processors) if op == "read" else lengths[-1]) or len(set(lengths[1:])) > 1:
            raise ValueError(f"{op}: lengths {lengths} do not fit")
        return self._runner(op, arrays, scalar)

    def close(self) -> None:
        """End the threads.  Nothing that `call` returned may run afterwards."""
        if self._threads:
            self._start(self._address, None)
            for thread in self._threads:
                thread.join()
            self._threads.clear()

    def _runner(self, op: str, arrays: Sequence[Values], scalar: float) -> Callable[[], object]:
        blocks, beyond = divmod(arrays[-1].size, code.PER_BLOCK)
        return self.job(op, arrays, blocks, beyond, scalar)

    def job(
        self, name: str, arrays: Sequence[np.ndarray[Any, Any]], blocks: int, beyond: int = 0, scalar: float = 0.0
    ) -> Callable[[], object]:
        """What has all threads run compiled code, each on its equal share of the blocks.

        ``arrays``: up to three, kept alive, whose addresses the code gets as a, b, c (the first again where there are fewer).
        Checks nothing: what fits the code is known to those who call it.
        """
        a, b, c = (values.ctypes.data for values in [*arrays, *arrays[:1] * 2][:3])
        job = np.array([code.address(name), a, b, c, blocks, beyond, 0], np.int64)
        job[6:].view(np.float64)[0] = scalar
        start, team, address = self._start, self._address, job.ctypes.data

        def run(_kept_alive: object = (self, job, arrays)) -> None:
            start(team, address)

        return run

    def _live(self, worker: Callable[[int, int], object], place: int) -> None:
        """The life of a thread, all of it outside Python once it is pinned."""
        self._pin(place)
        worker(self._address, place)

    def _pin(self, place: int) -> None:
        try:
            os.sched_setaffinity(0, {self.processors[place]})
        except OSError as error:
            self._failed.append(f"processor {self.processors[place]}: {error.strerror}")


def _function(name: str, *more: type) -> Callable[..., object]:
    """Compiled code that takes a team and perhaps more.  Python's lock is released while it runs."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, *more)(code.address(name))


def _aligned_lines(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Zeroed memory of ``count`` cache lines, none of them shared with anything else."""
    whole = np.zeros((count + 1) * code.LINE, np.uint8)
    start = -whole.ctypes.data % code.LINE
    return whole[start : start + count * code.LINE]
