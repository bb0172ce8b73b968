"""Sequential write and read of one whole file, with direct I/O where the file system has it.

The file is laid out and written once before timing, so a timed write overwrites allocated blocks: the device's rate, without
the file system's allocation.  The timed region is the transfers of blocks (of 1 MiB, or what the case says) by ``depth`` lanes
and, for a write, the ``fdatasync`` that ends it.  Every block has memory of its own, as in a program that loads or saves a file;
a tool that reuses one small buffer keeps it in the processor's cache, and is faster where a processor moves the data (virtual
disks).

Stamping, dropping pages and verifying happen outside the timed region: every read is verified whole; of every write some
blocks, chosen anew, are read back from the device, and all of the last one.
"""

from __future__ import annotations

import contextlib

from clustergauge.budget import seconds
from clustergauge.model import Scalar, Workload
from clustergauge.probe import Context, Moves, Needs, Skip, Work, probe
from clustergauge.units import format_size, parse_size
from storage_io import cold, fio, memory
from storage_io.datafile import DataFile
from storage_io.evidence import DeviceBytes
from storage_io.lanes import Lanes
from storage_io.layout import pieces, require_patience
from storage_io.mounts import describe
from storage_io.pattern import BASE_BYTES, POISON, STAMP_EVERY, Pattern, aligned
from storage_io.workspace import Workspace, target_of

BLOCK_BYTES = 1 << 20
SPOT_CHECKS = 8
"""Blocks of a write that are read back after every sample."""

Block = tuple[int, memoryview]
"""Offset in the file, and the part of the buffer that belongs there."""


SIZES = (64 << 20, 256 << 20, 1 << 30, 4 << 30)


def moves(op: str, size: int, block: int = BLOCK_BYTES) -> Moves:
    """What a case moves: the file is written once; of writes some blocks are read back after each, and all at the end."""
    few = min(SPOT_CHECKS * block, size)
    return Moves(before=size, sample=size + few, after=size) if op == "write" else Moves(before=size + few, sample=size)


def needs(op: str, depth: int, size: int, block: str = "1MiB") -> Needs:  # noqa: ARG001 (an axis)
    """A folder."""
    return Needs(target=True, moves=moves(op, size, parse_size(block)), room=fio.room(size, writes=op == "write"))


@probe("sequential", needs=needs, op=("write", "read"), depth=(1, 8), size=SIZES)
def sequential(ctx: Context, op: str, depth: int, size: int) -> Work:
    """Write or read a whole file in 1 MiB blocks, ``depth`` at a time.  size: bytes of the file."""
    return prepare(ctx, op, depth, size)


@probe(
    "sequential_blocks",
    needs=needs,
    op=("write", "read"),
    block=("4KiB", "64KiB", "256KiB", "4MiB", "16MiB"),
    depth=(1, 8),
    size=SIZES,
)
def sequential_blocks(ctx: Context, op: str, block: str, depth: int, size: int) -> Work:
    """The same in blocks of another size.  size: bytes of the file."""
    return prepare(ctx, op, depth, size, block=parse_size(block))


def prepare(ctx: Context, op: str, depth: int, size: int, spare: int | None = None, block: int = BLOCK_BYTES) -> Work:
    """The work of the probe.  ``spare``: bytes to leave free on the file system, instead of what `Workspace` asks for.

    Raises `Skip` where the size has no meaning, memory, space or time are short, or the system is not Linux; `StorageError` where
    the target can't be written to.
    """
    target = target_of(ctx)
    if size < STAMP_EVERY or size % STAMP_EVERY:
        raise Skip(f"{format_size(size)} is not a whole number of 4 KiB blocks")
    memory.require(size, f"a buffer of {format_size(size)} needs")
    with contextlib.ExitStack() as stack:
        need, files = fio.room(size, writes=op == "write").of(peer=ctx.cross_check)
        workspace = stack.enter_context(contextlib.closing(Workspace(target, need, files, spare=spare)))
        file = stack.enter_context(contextlib.closing(DataFile(workspace.file(0), size)))
        transfer = _Transfer(ctx, file, depth, block, writes=op == "write")
        stack.callback(transfer.lanes.close)
        transfer.lay_out()
        for name, value in (describe(workspace.path) | _settings(file, depth, block)).items():
            ctx.set(name, value)
        pattern = fio.Pattern("write" if op == "write" else "read", min(block, size), depth, size, "end" if op == "write" else "")
        peer = fio.peer(ctx, workspace, file, pattern, size)
        close = stack.pop_all().close
    return Work(
        run=transfer.run,
        reset=transfer.reset,
        check=transfer.check,
        close=close,
        workload=Workload(
            bytes_read=0 if transfer.writes else size, bytes_written=size if transfer.writes else 0, bound="storage"
        ),
        max_iterations=1,
        peer=peer,
    )


class _Transfer:
    """The file, the buffer it is written from or read into, and the lanes between them.

    ``_sample``: the one whose data the file holds (0: as laid out).  ``_asked``: there is a run to verify.
    """

    def __init__(self, ctx: Context, file: DataFile, depth: int, block: int, *, writes: bool) -> None:
        import numpy as np

        self.writes = writes
        self.run = self.write if writes else self.read
        self._ctx = ctx
        self._file = file
        self._pattern = Pattern()
        self._content = aligned(file.size)
        self._blocks = pieces(self._content, block)
        self._scratch = aligned(min(block, file.size))
        self._choose = np.random.default_rng(ctx.seed)
        self._device = DeviceBytes(ctx.device_bytes)
        self._sample = 0
        self._asked = False
        self.lanes = Lanes(depth, file.write_at if writes else file.read_at)

    # -- the timed region

    def write(self) -> None:
        """All blocks, and the sync that takes them to the device."""
        self.lanes.run(self._blocks)
        self._file.sync()

    def read(self) -> None:
        """All blocks."""
        self.lanes.run(self._blocks)

    # -- outside of it

    def lay_out(self) -> None:
        """Make the file, written whole and on the device, and find out whether direct I/O is what it says."""
        file = self._file
        before = memory.huge_pages()
        self._pattern.fill(self._content, 0, 0)
        after = memory.huge_pages()
        if before is not None and after is not None:
            self._ctx.set("buffer_on_huge_pages", round(min(1.0, max(0, after - before) / file.size), 2))
        file.allocate()
        file.prove_writes(self._write_once, file.size)
        if not self.writes:
            few = self._blocks[:SPOT_CHECKS]
            file.prove(lambda: self._read_back(few), sum(len(view) for _, view in few), 0)

    def reset(self) -> None:
        """Verify what the last run left behind, then make the buffer and the caches ready for the next."""
        self._settle()
        if self.writes:
            self._verify_written(self._spots())
            self._sample += 1
            self._pattern.restamp(self._content, self._sample)
        else:
            if self._asked:
                self._verify_read()
            self._content.fill(POISON)
        self._drop()
        self._asked = True
        if self._file.counted:
            self._device.mark()

    def check(self) -> None:
        """The whole of the last run, bit for bit; a write is read back from the device."""
        self._settle()
        if self.writes:
            self._verify_written(self._blocks)
        else:
            self._verify_read()

    def _write_once(self) -> None:
        """All blocks.  Raises `Skip` where that would take too long, once a part of them tells."""
        spent, done, many = 0.0, 0, max(1, BASE_BYTES // len(self._blocks[0][1]))
        for first in range(0, len(self._blocks), many):
            some = self._blocks[first : first + many]
            spent += seconds(lambda some=some: self._write_some(some))
            done += sum(len(view) for _, view in some)
            require_patience(self._ctx, self._file.size, spent * self._file.size / done)

    def _write_some(self, blocks: list[Block]) -> None:
        for block in blocks:
            self._file.write_at(*block)
        self._file.sync()

    def _verify_read(self) -> None:
        self._pattern.verify(self._content, self._file.path, 0, self._sample)

    def _verify_written(self, blocks: list[Block]) -> None:
        self._drop()
        self._read_back(blocks)

    def _read_back(self, blocks: list[Block]) -> None:
        """Read blocks one after the other into a buffer of their own and verify each."""
        for offset, view in blocks:
            words = self._scratch[: len(view) // 8]
            self._file.read_at(offset, words.data.cast("B"))
            self._pattern.verify(words, self._file.path, 0, self._sample, offset)

    def _spots(self) -> list[Block]:
        chosen = self._choose.choice(len(self._blocks), min(SPOT_CHECKS, len(self._blocks)), replace=False)
        return [self._blocks[n] for n in sorted(chosen)]

    def _drop(self) -> None:
        """Nothing of the file is cached when a buffered run begins; a record says what the kernel would not drop."""
        if not self._file.direct:
            cold.say_left(self._ctx, self._file.drop())

    def _settle(self) -> None:
        size = self._file.size
        self._device.settle(0 if self.writes else size, size if self.writes else 0)


def _settings(file: DataFile, depth: int, block: int) -> dict[str, Scalar]:
    """What the record says of the way the bytes went."""
    total = memory.meminfo("MemTotal")
    return {
        "engine": f"pwritev/preadv, {depth} thread{'s' if depth > 1 else ''}",
        "block_bytes": block,
        **file.settings(),
        **({"file_to_memory": round(file.size / total, 4)} if total else {}),
    }
