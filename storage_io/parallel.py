"""Every rank at once on one file system, as jobs load it: a file each, or one file in which each has a region.

The rate is the bytes of all ranks over the time of the slowest, with direct I/O where every node has it.  Files are laid out
whole before timing, as `sequential` does, and opened anew, untimed, before every sample: a file system of many clients shows a
file as it is when it is opened.  The timed region is the transfers of blocks by ``depth`` lanes and, for a write, the
``fdatasync`` that ends it; ranks meet before it, and each one's own seconds are in the series ``rank_seconds``, sample by sample
(in one file without direct I/O, a sync may wait for blocks of the others).

No rank reads what it wrote: reads are of another rank's bytes, of another node where there is one, out of the page cache before;
so is what is read back of writes, some blocks after every sample and all of the last one.  Every read is verified whole.  What
servers hold in their caches can't be seen from here; ``file_to_memory`` is what the ranks of a node transfer over its memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from clustergauge.budget import seconds
from clustergauge.clocks import read_ns
from clustergauge.closing import closing
from clustergauge.model import Scalar, Workload
from clustergauge.probe import Context, Needs, Room, Skip, Work, Wrong, probe
from clustergauge.units import format_size, parse_size
from storage_io import cold, memory
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.evidence import DeviceBytes
from storage_io.lanes import Lanes
from storage_io.layout import pieces, require_patience, trial
from storage_io.mounts import tell
from storage_io.pattern import BASE_BYTES, POISON, Pattern, aligned
from storage_io.ranks import add_up, partners, together
from storage_io.sequential import SPOT_CHECKS, moves, refused, too_small
from storage_io.shared import LAYOUTS, Agreed, SharedFolder, agree
from storage_io.workspace import Workspace, target_of

TRIAL_BYTES = 16 << 20
"""Of each rank's file that shows whether there is direct I/O."""

Block = tuple[int, memoryview]
"""Offset in the file, and the part of the buffer that belongs there."""


def needs(op: str, block: str, depth: int, size: int, **_axes: object) -> Needs:
    """Ranks of torch.distributed and a folder, one for all nodes where there are several."""
    of_rank = moves(op, size, parse_size(block))
    of_rank = replace(of_rank, before=of_rank.before + TRIAL_BYTES)
    words = refused(size, parse_size(block)) or too_small(size, parse_size(block), depth)
    return Needs(
        target=True, shared=True, world="torch", ranks=2, modules=("torch",), moves=of_rank, room=room(size), refused=words
    )


def room(size: int) -> Room:
    """A rank's file or region; and, before that, its file of a trial."""
    return Room(max(size, TRIAL_BYTES), 1)


@probe(
    "parallel",
    needs=needs,
    layout=LAYOUTS,
    op=("write", "read"),
    block=("1MiB", "64KiB", "256KiB", "4MiB", "16MiB"),
    depth=(1, 8, 32),
    size=(64 << 20, 256 << 20, 1 << 30, 4 << 30),
)
def parallel(ctx: Context, layout: str, op: str, block: str, depth: int, size: int) -> Work:
    """Write or read by all ranks at once, ``depth`` blocks at a time.  size: bytes of a rank."""
    return prepare(ctx, layout, op, parse_size(block), depth, size)


def prepare(ctx: Context, layout: str, op: str, block: int, depth: int, size: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare``: bytes to leave free on the file system, instead of what `Workspace` asks for.

    For all ranks together.  Raises `Skip` where the size has no meaning, memory, space or time are short, nodes share no target
    or the system is not Linux; `StorageError` where the target can't be written to.
    """
    world = ctx.world
    together(world, lambda: _require(ctx, size, block, spare))
    agreed = agree(world, together(world, lambda: _proof(ctx, spare)))
    assert ctx.target
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(closing(SharedFolder(world, ctx.target, layout, size, agreed, spare)))
        tell(ctx, folder.path)
        done = together(world, lambda: _Transfer(ctx, folder, agreed, block, depth, writes=op == "write"))
        stack.callback(done.close)
        done.lay_out()
        for name, value in done.settings(block, depth).items():
            ctx.set(name, value)
        close = stack.pop_all().close
    total = size * world.size
    return Work(
        run=done.run,
        reset=done.reset,
        note=done.note,
        check=done.check,
        close=close,
        workload=Workload(bytes_read=0 if done.writes else total, bytes_written=total if done.writes else 0, bound="storage"),
        max_iterations=1,
        sync=True,
    )


def _require(ctx: Context, size: int, block: int, spare: int | None) -> None:
    """Raise `Skip` where the case can't be had, before any rank writes."""
    target = target_of(ctx)
    if words := refused(size, block):
        raise Skip(words)
    here = ctx.world.local_size
    memory.require(size * here, f"{here} buffer{'s' * (here > 1)} of {format_size(size)} need")
    Workspace(target, *room(size).of(ctx.world.size), spare=spare).close()


def _proof(ctx: Context, spare: int | None) -> DataFile:
    """A file of this rank's own, written and gone: what it knows."""
    with closing(Workspace(target_of(ctx), TRIAL_BYTES, spare=spare)) as own:
        return trial(own.file(0), TRIAL_BYTES)[0]


class _Transfer:
    """One rank's bytes, those of the rank it reads, its buffer, and the lanes between them.

    ``_sample``: the one whose data the files hold (0: as laid out).  ``_file``: open from `reset` until the run was looked at.
    ``_failed``: what the run met, told to all ranks after it.  ``_ranks_s``: on rank 0, the seconds of every rank.
    """

    def __init__(self, ctx: Context, folder: SharedFolder, agreed: Agreed, block: int, depth: int, *, writes: bool) -> None:
        import numpy as np

        world = ctx.world
        self.writes = writes
        self._ctx = ctx
        self._world = world
        self._folder = folder
        self._agreed = agreed
        self._hosts = agreed.hosts
        self._pattern = Pattern(agreed.seed)
        self._of = partners(self._hosts)[world.rank]
        self._content = aligned(folder.size)
        self._blocks = self._placed(pieces(self._content, block), world.rank if writes else self._of)
        self._others = self._placed(pieces(self._content, block), self._of)
        self._scratch = aligned(min(block, folder.size))
        self._choose = np.random.default_rng(ctx.seed)
        self._totals: dict[str, int] = {}
        self._device = DeviceBytes(self._totals)
        self._file: DataFile | None = None
        self._sample = 0
        self._cached = 0
        self._failed: StorageError | None = None
        self._took_s = 0.0
        self._ranks_s: list[float] = []
        self.lanes = Lanes([self._transfer] * depth)

    # -- the timed region

    def run(self) -> None:
        """All blocks and, of a write, the sync that takes them to the device.  The clock is read for this rank's own time."""
        began = read_ns()
        try:
            self.lanes.run(self._blocks)
            if self.writes and self._file:
                self._file.sync()
        except StorageError as error:
            self._failed = error
        self._took_s = (read_ns() - began) * 1e-9

    def _transfer(self, offset: int, view: memoryview) -> None:
        assert self._file
        (self._file.write_at if self.writes else self._file.read_at)(offset, view)

    # -- outside of it

    def lay_out(self) -> None:
        """Write all files whole, each rank its own part, on all ranks together."""
        together(self._world, self._allocate)
        together(self._world, self._write_once)

    def settings(self, block: int, depth: int) -> dict[str, Scalar]:
        """What the record says of the work."""
        of_node, total = self._folder.size * self._world.local_size, memory.meminfo("MemTotal")
        own = sum(self._hosts[rank] == self._hosts[of] for rank, of in enumerate(partners(self._hosts)))
        return {
            "engine": f"pwritev/preadv, {depth} thread{'s' if depth > 1 else ''} a rank",
            "block_bytes": block,
            "direct": self._agreed.direct,
            "direct_reason": self._agreed.reason,
            "device_counters": self._agreed.counted,
            "nodes": len(set(self._hosts)),
            "read_on_own_node": own,
            **({"file_to_memory": round(of_node / total, 4)} if total else {}),
        }

    def reset(self) -> None:
        """Look at the last run and make the next one ready."""
        self._settle()
        together(self._world, self._ready)
        if self._agreed.counted:
            self._device.mark()

    def note(self) -> None:
        """Each rank's own time in the sample that has ended."""
        self._settle()
        self._ctx.add("rank_seconds", "s", *self._ranks_s)

    def check(self) -> None:
        """All of the last write, read back by another rank; a read was looked at whole, after it."""
        self._settle()
        if self.writes:
            self._read_back(self._others)

    def close(self) -> None:
        """End the lanes and close the file."""
        self.lanes.close()
        if self._file:
            self._file.close()

    def _placed(self, blocks: list[Block], rank: int) -> list[Block]:
        """Blocks of the buffer, with their offsets in the file in which the rank has its bytes."""
        start = self._folder.start(rank)
        return [(start + offset, view) for offset, view in blocks]

    def _allocate(self) -> None:
        """A file of its own each rank allocates by itself, a common one rank 0."""
        rank = self._world.rank
        if rank == self._folder.number(rank):
            with contextlib.closing(self._folder.open(rank)) as file:
                file.allocate()

    def _write_once(self) -> None:
        rank, size = self._world.rank, self._folder.size
        self._pattern.fill(self._content, self._folder.number(rank), 0, self._folder.start(rank))
        spent = 0.0
        with contextlib.closing(self._folder.open(rank)) as file:
            for start in range(0, size, BASE_BYTES):
                some = self._placed(pieces(self._content[start // 8 : (start + BASE_BYTES) // 8]), rank)
                spent += seconds(lambda some=some, start=start: _write(file, some, start))
                require_patience(self._ctx, size, spent * size / min(size, start + BASE_BYTES))

    def _ready(self) -> None:
        """The buffer as it must be; the file open and, where reads go through the page cache, out of it."""
        if self.writes:
            self._sample += 1
            self._pattern.restamp(self._content, self._sample)
        else:
            self._content.fill(POISON)
        self._file = self._folder.open(self._world.rank if self.writes else self._of)
        if not self._file.direct:
            self._cached = max(self._cached, self._file.drop() or 0)

    def _settle(self) -> None:
        """Look at the last run, on all ranks together; once."""
        if not self._file:
            return
        together(self._world, self._look)
        if self.writes:
            together(self._world, lambda: self._read_back(self._spots()))
        everybody = self._world.gather([self._took_s, self._totals, self._cached])
        if everybody:
            self._ranks_s = [took for took, *_ in everybody]
            self._ctx.device_bytes.clear()
            self._ctx.device_bytes.update(add_up(totals for _, totals, _ in everybody))
            cold.say_left(self._ctx, max(left for *_, left in everybody))

    def _look(self) -> None:
        size = self._folder.size
        self._device.settle(0 if self.writes else size, size if self.writes else 0)
        file, self._file = self._file, None
        if file:
            file.close()
        failed, self._failed = self._failed, None
        if failed:
            raise failed
        if not self.writes and file:
            self._verify(self._content.data.cast("B"), file, self._folder.start(self._of))

    def _read_back(self, blocks: list[Block]) -> None:
        """Read blocks of the other rank one after the other into a buffer of their own and verify each."""
        try:
            with contextlib.closing(self._folder.open(self._of)) as file:
                if not file.direct:
                    file.drop()
                for offset, view in blocks:
                    got = self._scratch.data.cast("B")[: len(view)]
                    file.read_at(offset, got)
                    self._verify(got, file, offset)
        except StorageError as error:
            raise Wrong(f"what rank {self._of}{self._on(self._of)} wrote cannot be read back: {error}") from error

    def _verify(self, got: memoryview, file: DataFile, offset: int) -> None:
        import numpy as np

        try:
            self._pattern.verify(np.frombuffer(got, np.uint64), file.path, self._folder.number(self._of), self._sample, offset)
        except Wrong as wrong:
            raise Wrong(f"{wrong}; written by rank {self._of}{self._on(self._of)}") from None

    def _on(self, rank: int) -> str:
        return f" on {self._hosts[rank]}"

    def _spots(self) -> list[Block]:
        chosen = self._choose.choice(len(self._others), min(SPOT_CHECKS, len(self._others)), replace=False)
        return [self._others[n] for n in sorted(chosen)]


def _write(file: DataFile, blocks: list[Block], start: int) -> None:
    for offset, view in blocks:
        file.write_at(start + offset, view)
    file.sync()
