"""Checkpoints of two ranks with a planted fault on the last, for which everything else is real: files, fsync, ranks."""

from __future__ import annotations

import contextlib
import os
import time
from unittest import mock

from clustergauge.probe import Context, Needs, Skip, Work, probe
from storage_io import checkpoint
from storage_io.models import Model

FAULTS = ("none", "short", "full", "slow", "flip", "refuses")
SLOW_S = 0.15
TINY = Model(layers=2, hidden=64, ffn=160, kv=32, vocabulary=512, tensor=1, fsdp=1)


NEEDS = Needs(world="torch", ranks=2, target=True)


@probe("checkpoints", needs=NEEDS, format=("torch", "raw"), op=("save", "restore"), fault=FAULTS)
def checkpoints(ctx: Context, format: str, op: str, fault: str) -> Work:  # noqa: A002
    """A checkpoint of a tiny model."""
    last = ctx.world.rank == ctx.world.size - 1
    refused = mock.patch.object(checkpoint, "_proof", side_effect=Skip("this rank's disk is not there"))
    with refused if fault == "refuses" and last else contextlib.nullcontext():
        work = checkpoint.prepare(ctx, "tiny", format, op, 4 << 20, spare=0, model=TINY)
    done = work.run.__self__
    if last and fault != "none":
        real = done._format.save if op == "save" else done._format.restore

        def planted(path):
            if fault == "full":
                raise checkpoint.StorageError(f"cannot save {path}", OSError(28, "No space left on device"))
            if fault == "slow":
                time.sleep(SLOW_S)
            if fault == "flip":
                with path.open("r+b") as file:
                    file.seek(path.stat().st_size // 2)
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 1]))
            real(path)
            if fault == "short":
                os.truncate(path, path.stat().st_size // 2)

        setattr(done._format, op, planted)
    return work
