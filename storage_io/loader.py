"""A data loader as training has one: shuffled samples, read by worker processes, in batches, between steps of computing.

A sample of the measurement is an epoch over some batches, chosen anew and in random order out of a larger data set, through
torch's ``DataLoader``, whose workers are there beforehand.  A step waits for its batch and then sleeps as long as ``compute``
says, as MLPerf Storage does: the sleep is the declared computing time, and part of the definition.  *shards*: files of 512
samples, read at their places; *files*: each sample is a file.

Samples a second are of all steps.  AU, accelerator utilisation, is the declared computing over the time it all took, the first
step left out (series ``later_steps``, the seconds of the others).  MLPerf Storage asks for 90 %, in 500 steps and more, on a data
set of five times the memory of all hosts.  Here an epoch has eight steps and more for each worker, so that what they all read
during the first one counts for an eighth at most; and the pages of what it reads are dropped before it: the kernel's counters of
all workers prove that it came from the device.  The setting ``file_to_memory`` says how large the data set is.

After its epoch every sample is verified whole, where memory held all batches; else those of as many as it held, chosen anew.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clustergauge import processes
from clustergauge.budget import seconds
from clustergauge.clocks import read_ns
from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Room, Skip, Work, Wrong, probe
from clustergauge.units import format_size
from storage_io import cold, memory
from storage_io.dataset import SAMPLE_BYTES, SHARD_SAMPLES, DataSet
from storage_io.errors import StorageError
from storage_io.evidence import DeviceBytes
from storage_io.layout import patience, trial
from storage_io.mounts import tell
from storage_io.workspace import Workspace, target_of

BATCH = 64
PREFETCH = 2
"""Batches that each worker is ahead, as ``DataLoader`` has it unless told otherwise."""
COMPUTE_MS = (0, 36, 100)
"""36: MLPerf Storage's ResNet-50 on an H100 computes 400 samples in 224 ms."""
SAMPLES = 8
STEPS, STEPS_OF_WORKER = 4, 8
"""The fewest steps of an epoch, and how many more for each worker."""
HELD_BYTES = 256 << 20
"""Of the batches of an epoch that are kept until they are verified, at most."""
LEAST_HELD = 4
PROBE_BYTES = 16 << 20
SHARED = Path("/dev/shm")  # noqa: S108 (where the kernel keeps what workers hand over)
END_S = 5.0


def needs(layout: str, workers: int, compute: int, size: int) -> Needs:
    """torch and a folder."""
    steps, files = least_steps(workers), size // SAMPLE_BYTES if layout == "files" else 0
    epoch, pause = min(size, steps * BATCH * SAMPLE_BYTES), steps * compute / 1000
    moves = Moves(before=PROBE_BYTES + size, sample=epoch, names=files, share=1 / SAMPLES, most=size, pause=pause)
    return Needs(target=True, modules=("torch",), moves=moves, room=room(layout, size), refused=refused(workers, size))


def refused(workers: int, size: int) -> str:
    """Why a data set of such a size has no meaning, in words; empty where it has one."""
    count, steps = size // SAMPLE_BYTES, least_steps(workers)
    if count >= steps * BATCH:
        return ""
    words = f"{format_size(size)} are {count} samples of {format_size(SAMPLE_BYTES)}, too few for {steps} batches of {BATCH}"
    return f"{words}; take a larger --set size=…"


def least_steps(workers: int) -> int:
    """The fewest steps of an epoch."""
    return STEPS + STEPS_OF_WORKER * workers


def room(layout: str, size: int) -> Room:
    """The data set, and the file that shows whether there is direct I/O."""
    count = size // SAMPLE_BYTES
    files = count if layout == "files" else -(-count // SHARD_SAMPLES)
    return Room(max(count * SAMPLE_BYTES, PROBE_BYTES), files + 1)


@probe(
    "loader",
    needs=needs,
    layout=("shards", "files"),
    workers=(0, 1, 2, 4, 8, 16, 32),
    compute=COMPUTE_MS,
    size=(256 << 20, 1 << 30, 4 << 30, 16 << 30),
)
def loader(ctx: Context, layout: str, workers: int, compute: int, size: int) -> Work:
    """Load shuffled batches by worker processes.  compute: declared milliseconds of a step.  size: bytes of the data set."""
    return prepare(ctx, layout, workers, compute, size)


def prepare(ctx: Context, layout: str, workers: int, compute: int, size: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare``: bytes to leave free, instead of what `Workspace` asks for.

    Raises `Skip` where the size has no meaning, memory, space or time are short, or the system is not Linux; `StorageError` where
    the target can't be written to.
    """
    target = target_of(ctx)
    count = size // SAMPLE_BYTES
    if words := refused(workers, size):
        raise Skip(words)
    steps = least_steps(workers)
    held = _held(workers)
    with contextlib.ExitStack() as stack:
        space = Workspace(target, *room(layout, size).of(), spare=spare)
        workspace = stack.enter_context(closing(space))
        tell(ctx, workspace.path)
        proof, _ = trial(workspace.file(0), PROBE_BYTES)
        data = DataSet(workspace, 1 if layout == "files" else SHARD_SAMPLES, count)
        data.write(patience(ctx))
        epochs = stack.enter_context(contextlib.closing(_Epochs(ctx, data, workers, compute / 1000, steps, held, proof.counted)))
        epochs.calibrate()
        epochs.describe()
        close = stack.pop_all().close
    return Work(
        run=epochs.run,
        reset=epochs.reset,
        note=epochs.note,
        check=epochs.check,
        close=close,
        workload=Workload(samples=BATCH, bytes_read=BATCH * SAMPLE_BYTES, bound="storage"),
        max_iterations=1,
        steps=epochs.steps,
    )


def _held(workers: int) -> int:
    """How many batches can be kept of an epoch: beside those that are on their way, where workers hand them over."""
    batch, ahead = BATCH * SAMPLE_BYTES, workers * PREFETCH + 1
    available = memory.available()
    room = [("memory", available - memory.SPARE)] if available is not None else []
    if workers:
        stat = os.statvfs(SHARED)
        room.append((str(SHARED), stat.f_bavail * stat.f_frsize))
    most = HELD_BYTES // batch
    for where, free in room:
        if free < (LEAST_HELD + ahead) * batch:
            words = f"{LEAST_HELD + ahead} batches of {format_size(batch)} do not fit {where}"
            raise Skip(f"{words}, which has {max(0, free) >> 20} MiB free")
        most = min(most, free // batch - ahead)
    return most


class _Shuffled:
    """The batches of the next epoch, as ``DataLoader`` asks for them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Epochs:
    """Epochs over the data set.  ``steps``: of each, known after `calibrate`; ``least``, ``most_held``: steps, batches kept.

    ``_keep``: of which steps batches are kept; ``_held``: those of the last epoch.  ``_later_s``: the seconds of all its steps
    but the first.
    """

    def __init__(
        self, ctx: Context, data: DataSet, workers: int, compute_s: float, least: int, most_held: int, counted: bool
    ) -> None:
        import numpy as np
        import torch
        from torch.utils.data import DataLoader

        self.steps = self._least = least
        self._ctx = ctx
        self._data = data
        self._compute_s = compute_s
        self._most_held = most_held
        self._counted = counted
        self._choose = np.random.default_rng(ctx.seed)
        self._order = _Shuffled()
        several = {"prefetch_factor": PREFETCH, "persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
        load: Any = DataLoader  # whose data set may be of any class that has a length and items
        self._loader: Any = load(data, batch_sampler=self._order, num_workers=workers, worker_init_fn=_begin, **several)
        self._engine = f"torch {torch.__version__} DataLoader, {workers} worker{'s' * (workers != 1)}"
        self._pids: list[int] = []
        self._device = DeviceBytes(ctx.device_bytes, self._pids)
        self._keep: set[int] = set()
        self._held: list[Any] = []
        self._later_s = 0.0
        self._asked = False

    # -- the timed region

    def run(self) -> None:
        """An epoch: wait for a batch, compute, and the next.  The clock is read after the first step and the last."""
        held: list[Any] = []
        compute_s, keep, first, failed = self._compute_s, self._keep, 0, ""
        try:
            for step, batch in enumerate(self._loader):
                if compute_s:
                    time.sleep(compute_s)
                if step in keep:
                    held.append(batch)
                first = first or read_ns()
        except (OSError, RuntimeError, EOFError) as error:
            failed = _last_words(error)
        if failed:  # raised without the error that it tells, which would keep the loader, and so its workers, alive
            raise StorageError.quoted(failed)
        self._later_s = (read_ns() - first) * 1e-9
        self._held = held

    # -- outside of it

    def calibrate(self) -> None:
        """Start the workers, and find how many steps take a sample's share of the budget."""
        share = self._ctx.budget_s / SAMPLES
        for _ in range(3):
            self.reset()
            took = seconds(self.run)
            if not self._pids:
                self._pids += [child.pid for child in multiprocessing.active_children() if child.pid]
            wanted = max(self._least, min(len(self._data) // BATCH, int(self.steps * share / took)))
            self.check()
            near, self.steps = wanted < 2 * self.steps, wanted
            if near:
                break
        self._ctx.device_bytes.clear()

    def describe(self) -> None:
        """Settings of the record."""
        total, size = memory.meminfo("MemTotal"), len(self._data) * SAMPLE_BYTES
        said = {
            "engine": self._engine,
            "direct": False,
            "direct_reason": "samples are read through the page cache, which is emptied before each epoch",
            "device_counters": self._counted,
            "compute_s": self._compute_s,
            "batch": BATCH,
            "sample_bytes": SAMPLE_BYTES,
            "files": len(self._data.files),
            "verified_batches": min(self.steps, self._most_held),
            **({"file_to_memory": round(size / total, 4)} if total else {}),
        }
        for name, value in said.items():
            self._ctx.set(name, value)

    def reset(self) -> None:
        """Verify the last epoch, choose the next, and drop its pages."""
        self._settle()
        chosen = self._choose.permutation(len(self._data))[: self.steps * BATCH].tolist()
        self._order.batches = [chosen[first : first + BATCH] for first in range(0, len(chosen), BATCH)]
        keep = self._choose.choice(self.steps, min(self.steps, self._most_held), replace=False)
        self._keep = set(keep.tolist())
        cold.say_left(self._ctx, self._data.drop(chosen))
        self._asked = True
        if self._counted:
            self._device.mark()

    def note(self) -> None:
        """The seconds of the later steps."""
        self._settle()
        self._ctx.add("later_steps", "s", self._later_s)

    def check(self) -> None:
        """Every sample of the last epoch, unless it has been verified."""
        self._settle()

    def close(self) -> None:
        """End the workers."""
        self._held = []
        self._loader = None  # its own end waits for them
        for child in multiprocessing.active_children():
            if child.pid in self._pids:
                child.kill()
                child.join(END_S)
        self._data.close()

    def _settle(self) -> None:
        if not self._asked:
            return
        self._asked = False
        self._device.settle(self.steps * BATCH * SAMPLE_BYTES, 0)
        held, self._held = self._held, []
        kept = sorted(self._keep)
        if len(held) != len(kept):
            raise Wrong(f"of {len(kept)} batches {len(held)} came")
        for step, batch in zip(kept, held, strict=True):
            self._data.verify(self._order.batches[step], batch)


def _begin(_worker: int) -> None:
    """In a worker: it ends with its parent, and by the usual signals."""
    processes.die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _last_words(error: Exception) -> str:
    """What a worker met, out of the stack that ``DataLoader`` puts around it; or why a batch did not come, each being a file."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    none_free = isinstance(error, OSError) and error.errno == errno.EMFILE
    if none_free or str(error).startswith("Too many open files"):  # as torch puts it
        return f"a batch did not come from its worker: at most {most} files may be open at once; raise it (ulimit -n)"
    if isinstance(error, EOFError):  # its worker is gone, or cannot open what is to be a batch
        return f"a batch did not come from its worker, where at most {most} files may be open at once (ulimit -n)"
    line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return line.removeprefix(f"{StorageError.__module__}.{StorageError.__qualname__}: ")
