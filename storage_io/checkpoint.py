"""Checkpoints: every rank saves its shard of a model to a file of its own, or restores it; seconds of the slowest rank.

*save*: a new file, written and closed by the format's library, and fsync of file and folder inside the time.  *restore*: the file
read back, out of the page cache before, into tensors that are there.  Tensors lie in the host's memory: what a GPU takes to give
them away is `transfer`'s to say.  `models` says which tensors a rank has.  Of these the first are taken that fit ``size``, halved
until target, memory and patience suffice; the settings ``shard`` and ``shard_fraction`` say how much of the real one that is.

The series ``framework`` tells the library's seconds from the device's, which are the rest.  Of a save: until the library's call
returned and the syncs began, on the slowest rank; the kernel may have begun to write meanwhile, and makes the library wait once
too much is unwritten.  Of a restore: the same once more, untimed, while the file is still cached.  The format *raw* has no
library: its time is what the device takes.

Every restored tensor is compared bit for bit, after each sample.  Of what was saved some tensors are read back from the device
after each sample, and all of the last one.  Ranks that end a sample apart are in the series ``rank_seconds``, sample by sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from clustergauge.budget import seconds
from clustergauge.clocks import read_ns
from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Room, Skip, Work, Wrong, probe
from clustergauge.units import format_rate, format_size
from storage_io import cold, memory
from storage_io.datafile import ENOUGH, DataFile
from storage_io.errors import StorageError
from storage_io.evidence import DeviceBytes, process_io
from storage_io.formats import Format, Raw, Safetensors, Shard, Torch
from storage_io.layout import trial
from storage_io.models import MODELS, Model, first_of
from storage_io.mounts import tell
from storage_io.pattern import Pattern
from storage_io.ranks import add_up, least, together
from storage_io.workspace import Workspace, require_space, target_of

FORMATS = ("torch", "safetensors", "raw")
SIZES = (64 << 20, 256 << 20, 1 << 30, 4 << 30, 16 << 30)
LEAST_BYTES = 1 << 20
"""A shard is not cut below this."""
COPIES = 3
"""Of the shard in memory: the tensors, what they must be or what the library reads into, and a file."""
PROBE_BYTES = 16 << 20
"""Of the file that shows whether there is direct I/O, and how fast the target is."""
PATIENCE = 2.0
"""Times the budget that one sample may take, by that file."""
SPOT_CHECKS = 2
"""Tensors of a save that are read back after every sample."""


def needs(format: str, op: str, ranks: str, size: int, **_axes: object) -> Needs:  # noqa: A002 (the name of the axis)
    """One process, or the ranks of torch.distributed."""
    if op == "save":
        moves = Moves(before=PROBE_BYTES, sample=size, after=size, patience=PATIENCE)
    else:
        moves = Moves(before=PROBE_BYTES + size, sample=size, patience=PATIENCE)
    modules = {"torch": ("torch",), "safetensors": ("torch", "safetensors"), "raw": ()}[format]
    least = room(list(halved(size))[-1])
    if ranks == "one":
        return Needs(target=True, modules=modules, moves=moves, room=least)
    return Needs(target=True, world="torch", ranks=2, modules=modules or ("torch",), moves=moves, room=least)


def room(size: int) -> Room:
    """A shard's file, which some libraries rename, or the one that shows whether there is direct I/O."""
    return Room(max(size, PROBE_BYTES), 2)


def halved(size: int) -> Iterator[int]:
    """The sizes that are tried, from the one that is asked for down to the least."""
    yield size
    while size // 2 >= LEAST_BYTES:
        size //= 2
        yield size


@probe("checkpoint", needs=needs, model=tuple(MODELS), format=FORMATS, op=("save", "restore"), ranks=("one", "all"), size=SIZES)
def checkpoint(ctx: Context, model: str, format: str, op: str, ranks: str, size: int) -> Work:  # noqa: A002, ARG001
    """Save or restore each rank's shard of a model.  size: bytes of a rank's tensors, at most."""
    return prepare(ctx, model, format, op, size)


def prepare(ctx: Context, name: str, kind: str, op: str, size: int, spare: int | None = None, model: Model | None = None) -> Work:
    """The work of the probe.  ``spare``: bytes to leave free, instead of what `Workspace` asks for; ``model``: instead of the one
    of this name.

    For all ranks together.  Raises `Skip` where even the least does not fit or the system is not Linux; `StorageError` where the
    target can't be written to.
    """
    world = ctx.world
    model = model or MODELS[name]
    fitting = least(world, together(world, lambda: _fitting(ctx, size, spare)))
    with contextlib.ExitStack() as stack:
        assert ctx.target
        target = ctx.target

        def make() -> Workspace:
            space = Workspace(target, *room(fitting).of(world.size), spare=spare)
            return stack.enter_context(closing(space))

        workspace = together(world, make)
        tell(ctx, workspace.path)
        proof, took = together(world, lambda: _proof(workspace))
        limit = least(world, _in_time(fitting, took, ctx.budget_s))
        whole = model.shard()
        parts = first_of(whole, limit)
        if not parts:
            raise Skip(f"no tensor of {name} fits {format_size(limit)}")
        shard = Shard(parts)
        format_ = _format(kind, shard, "" if proof.direct else proof.reason)
        stack.callback(format_.close)
        done = _Checkpoint(ctx, workspace, format_, shard, op == "save", counted=proof.counted)
        together(world, done.lay_out)
        for setting, value in proof.settings().items():
            ctx.set(setting, value)
        if not format_.direct:
            ctx.set("direct", False)
            ctx.set("direct_reason", proof.reason if kind == "raw" else f"{kind} goes through the page cache")
        of = sum(part.bytes for part in whole)
        ctx.set("engine", format_.engine)
        ctx.set(
            "shard",
            f"{len(parts)} of {len(whole)} tensors, {format_rate(shard.bytes / of, '1')} of one of {name}'s {model.ranks} shards",
        )
        ctx.set("shard_bytes", shard.bytes)
        ctx.set("shard_fraction", shard.bytes / of)
        if limit < size:
            ctx.set("cut_to", limit)
        close = stack.pop_all().close
    total = shard.bytes * world.size
    return Work(
        run=done.run,
        reset=done.reset,
        note=done.note,
        check=done.check,
        close=close,
        workload=Workload(bytes_read=0 if done.saves else total, bytes_written=total if done.saves else 0, bound="storage"),
        max_iterations=1,
        sync=True,
    )


def _format(kind: str, shard: Shard, refused: str) -> Format:
    return Raw(shard, refused) if kind == "raw" else Torch(shard) if kind == "torch" else Safetensors(shard)


def _fitting(ctx: Context, size: int, spare: int | None) -> int:
    """``size``, halved until the files and copies in memory of all ranks fit."""
    target = target_of(ctx)
    *larger, last = halved(size)
    for fitting in larger:
        with contextlib.suppress(Skip):
            _require(ctx, target, fitting, spare)
            return fitting
    _require(ctx, target, last, spare)
    return last


def _require(ctx: Context, target: Path, size: int, spare: int | None) -> None:
    ranks, here = ctx.world.size, ctx.world.local_size
    try:
        require_space(target, *room(size).of(ranks), spare)
    except OSError as error:
        raise StorageError(f"cannot write to {target}", error) from error
    words = f"{COPIES} copies of {format_size(size)} for each of {here} rank{'s' * (here > 1)}"
    memory.require(COPIES * size * here, f"{words} need")


def _in_time(size: int, took: float, budget_s: float) -> int:
    """``size``, halved until it takes no longer than our patience, where `PROBE_BYTES` took so many seconds."""
    while size * took > PATIENCE * budget_s * PROBE_BYTES and size // 2 >= LEAST_BYTES:
        size //= 2
    return size


def _proof(workspace: Workspace) -> tuple[DataFile, float]:
    return trial(workspace.file(0), PROBE_BYTES)


class _Checkpoint:
    """One rank's shard and its file.

    ``_asked``: a run has not been looked at.  ``_failed``: what it met, told to all ranks after it.  ``_called``: when the
    library was done.  ``_ranks_s``: on rank 0, the seconds of every rank.
    """

    def __init__(self, ctx: Context, workspace: Workspace, format_: Format, shard: Shard, saves: bool, *, counted: bool) -> None:
        import numpy as np

        self.saves = saves
        self._ctx = ctx
        self._world = ctx.world
        self._format = format_
        self._shard = shard
        self._pattern = Pattern()
        self._due = shard if saves else Shard(shard.parts)
        self._path = workspace.file(0)
        self._folder = workspace.path
        self._choose = np.random.default_rng(ctx.seed)
        self._counted = counted
        self._totals: dict[str, int] = {}
        self._device = DeviceBytes(self._totals)
        self._sample = 0
        self._asked = False
        self._failed: StorageError | None = None
        self._called = 0
        self._took_s = self._framework_s = 0.0
        self._ranks_s: list[float] = []
        self._slowest_framework_s = 0.0

    # -- the timed region

    def run(self) -> None:
        """Save or restore.  The clock is read for this rank's own time, and where the library is done."""
        began = read_ns()
        try:
            if self.saves:
                self._save()
            else:
                self._format.restore(self._path)
        except StorageError as error:
            self._failed = error
        self._took_s = (read_ns() - began) * 1e-9
        self._framework_s = (self._called - began) * 1e-9

    def _save(self) -> None:
        self._format.save(self._path)
        self._called = read_ns()
        cold.sync(self._path)
        cold.sync(self._folder)

    # -- outside of it

    def lay_out(self) -> None:
        """Make the data; and for restores the file, on the device."""
        self._due.fill(self._pattern)
        if not self.saves:
            self._shard.content[:] = self._due.content
            self._save()

    def reset(self) -> None:
        """Look at the last run and make the next one ready."""
        self._settle()
        together(self._world, self._ready)
        self._asked = True
        if self._counted:
            self._device.mark()

    def note(self) -> None:
        """What the sample that has ended has to say: each rank's time, and the framework's part of it."""
        self._settle()
        if self._world.size > 1:
            self._ctx.add("rank_seconds", "s", *self._ranks_s)
        if isinstance(self._format, Raw):
            return
        took = [self._slowest_framework_s]
        if not self.saves:
            took = self._world.gather(together(self._world, self._once_more))
        if took and None not in took:
            self._ctx.add("framework", "s", max(took))

    def check(self) -> None:
        """All tensors of the last save, read back from the device; those of a restore were looked at after it."""
        self._settle()
        if self.saves:
            self._read_back([part.name for part in self._shard.parts])

    def _ready(self) -> None:
        if self.saves:
            if self._path.exists():
                self._path.unlink()
                cold.sync(self._folder)
            self._sample += 1
            self._pattern.restamp(self._shard.content, self._sample)
        else:
            self._shard.poison()
            self._drop()

    def _settle(self) -> None:
        """Look at the last run, on all ranks together; once."""
        if not self._asked:
            return
        self._asked = False
        together(self._world, self._look)
        everybody = self._world.gather([self._took_s, self._framework_s, self._totals])
        if everybody:
            self._ranks_s = [took for took, *_ in everybody]
            self._slowest_framework_s = max(everybody, key=lambda said: said[0])[1]
            self._ctx.device_bytes.clear()
            self._ctx.device_bytes.update(add_up(totals for *_, totals in everybody))

    def _look(self) -> None:
        size = self._shard.bytes
        self._device.settle(0 if self.saves else size, size if self.saves else 0)
        failed, self._failed = self._failed, None
        if failed:
            raise failed
        if not self.saves:
            for name, got in self._shard.views().items():
                self._due.verify(name, got, self._path)
            return
        if (there := self._path.stat().st_size) < size:
            raise Wrong(f"{self._path} holds {there} bytes, its tensors have {size}")
        parts = self._shard.parts
        chosen = self._choose.choice(len(parts), min(SPOT_CHECKS, len(parts)), replace=False)
        self._read_back([parts[n].name for n in sorted(chosen)])

    def _read_back(self, names: Sequence[str]) -> None:
        self._drop()
        try:
            for name, got in self._format.read(self._path, names).items():
                self._due.verify(name, got, self._path)
        except StorageError as error:
            raise Wrong(f"what was saved cannot be restored: {error}") from error

    def _drop(self) -> None:
        cold.say_left(self._ctx, cold.drop(self._path))

    def _once_more(self) -> float | None:
        """Seconds of the same restore while the file is cached; ``None`` if the device had to be asked all the same."""
        before = process_io()
        took = seconds(lambda: self._format.restore(self._path))
        after = process_io()
        cached = before is None or after is None or after[0] - before[0] <= (1 - ENOUGH) * self._shard.bytes
        return took if cached else None
