"""All ranks at once with a planted fault on the last, for which everything else is real: files, disk, ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from unittest import mock

from clustergauge.probe import Context, Needs, Skip, Work, probe
from storage_io import parallel, shared
from storage_io.errors import StorageError

FAULTS = ("none", "slow", "full", "dies", "refuses", "lazy", "flip", "missing", "cached", "apart", "unmounted")
SLOW_S = 0.15
APART = "apart"
"""A folder of the target that the last rank takes for the target, where it is to be on a file system of its own."""
SIZE = 2 << 20
BLOCK = 1 << 20

NEEDS = Needs(world="torch", ranks=2, target=True, shared=True)


@probe("parallel_ranks", needs=NEEDS, layout=shared.LAYOUTS, op=("write", "read"), fault=FAULTS)
def parallel_ranks(ctx: Context, layout: str, op: str, fault: str) -> Work:
    """Small files, or a small one."""
    planted = fault if ctx.world.rank == ctx.world.size - 1 else "none"
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(parallel, "TRIAL_BYTES", 1 << 20))
        if planted == "refuses":
            stack.enter_context(mock.patch.object(parallel, "trial", side_effect=Skip("this rank's disk is not there")))
        if fault == "cached":
            stack.enter_context(mock.patch.object(parallel, "trial", _buffered(parallel.trial)))
        if planted in ("apart", "unmounted"):
            assert ctx.target
            ctx.target = ctx.target / APART
        if fault == "unmounted" and planted == "none":
            stack.enter_context(mock.patch.object(shared, "_kind", return_value="nfs4"))
        work = parallel.prepare(ctx, layout, op, BLOCK, 2, SIZE, spare=0)
    _plant(planted, work.run.__self__)
    return work


def _buffered(real):
    def trial(path, size):
        file, took = real(path, size)
        file.direct, file.reason = False, "planted"
        return file, took

    return trial


def _plant(fault, done):
    lanes, ready = done.lanes.run, done._ready

    def run(items):
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full":
            raise StorageError(f"cannot write {done._file.path}", OSError(28, "No space left on device"))
        if fault != "lazy":
            lanes(items)
        if fault == "flip":
            items[-1][1][-5] ^= 4  # what was read, or is written once more
            if done.writes:
                lanes(items[-1:])

    def prepared():
        if fault == "missing":
            (done._folder.path / f"data-{done._folder.number(done._of)}").unlink(missing_ok=True)
        ready()
        if fault == "cached":
            done._file.path.read_bytes()

    done.lanes.run, done._ready = run, prepared
