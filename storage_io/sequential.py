"""Sequential write and read of one whole file, with direct I/O where the file system has it.

The file is laid out and written once before timing, so a timed write overwrites allocated blocks: the device's rate, without
the file system's allocation.  The timed region is the transfers of blocks (of 1 MiB, or what the case says) by ``depth`` lanes
and, for a write, the ``fdatasync`` that ends it.

Each lane has memory of its own that it uses again and again, as other tools do (`slots`): one block that it reads into, or 1 MiB
and at least a block that it writes from; what programs get that keep what they read, and write what lies somewhere, is
`checkpoint`'s to say.  What is written is other data in every 4 KiB: just before a block goes, inside the time, the numbers of
its 4 KiB are put into them (for 1 MiB that took 1 to 3 µs of 300; fio, unless told otherwise, puts more into each block, inside
its time as well).

Dropping pages and verifying happen outside the timed region.  After every read what lanes hold is verified, and then
all blocks are read once more and verified; of every write some blocks, chosen anew, are read back from the device, and all of the
last one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Sequence
from dataclasses import replace

from clustergauge.closing import closing
from clustergauge.model import Scalar, Workload
from clustergauge.probe import Context, Moves, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_size, parse_size
from storage_io import cold, fio, memory
from storage_io.datafile import DataFile
from storage_io.evidence import DeviceBytes
from storage_io.lanes import Lanes
from storage_io.layout import READ_TO_PROVE, lay_out, pieces, words_of
from storage_io.mounts import tell
from storage_io.pattern import BASE_BYTES, STAMP_EVERY, Pattern, aligned, forget, stamped, unstamped
from storage_io.slots import Slot, Slots
from storage_io.workspace import Workspace, target_of

BLOCK_BYTES = 1 << 20
LANE_BYTES = 1 << 20
"""Memory that a lane writes from, at least: file systems compress less at once (ZFS up to 1 MiB unless told otherwise)."""
SPOT_CHECKS = 8
"""Blocks of a write that are read back after every sample."""

Place = tuple[int, int]
"""Offset in the file, and bytes."""


SIZES = (64 << 20, 256 << 20, 1 << 30, 4 << 30)


def moves(op: str, size: int, block: int = BLOCK_BYTES) -> Moves:
    """What a case moves: the file is written once; of writes some blocks are read back after each, and all at the end."""
    if op == "read":
        return Moves(before=size + min(READ_TO_PROVE, size), sample=size)
    return Moves(before=size, sample=size + min(SPOT_CHECKS * block, size), after=size)


def needs(op: str, depth: int, size: int, block: str = "1MiB") -> Needs:
    """A folder."""
    of_file = moves(op, size, parse_size(block))
    if op == "read":
        of_file = replace(of_file, sample=2 * size)  # to be verified all is read once more
    room = fio.room(size, writes=op == "write")
    return Needs(target=True, moves=of_file, room=room, refused=refused(size, parse_size(block), depth), peer=True)


def refused(size: int, block: int, depth: int) -> str:
    """Why so many such blocks at a time of such a file have no meaning, in words; empty where they have one."""
    if words := unstamped(size) or unstamped(block):
        return words
    if block > size:
        return f"{format_size(size)} is less than a block of {format_size(block)}; take a larger --set size=…"
    if depth > -(-size // block):
        return f"{depth} blocks of {format_size(block)} at a time are more than {format_size(size)}; take a smaller --set depth=…"
    return ""


@probe("sequential", needs=needs, op=("write", "read"), depth=(1, 8, 32), size=SIZES)
def sequential(ctx: Context, op: str, depth: int, size: int) -> Work:
    """Write or read a whole file in 1 MiB blocks, ``depth`` at a time.  size: bytes of the file."""
    return prepare(ctx, op, depth, size)


@probe(
    "sequential_blocks",
    needs=needs,
    op=("write", "read"),
    block=("4KiB", "64KiB", "256KiB", "4MiB", "16MiB"),
    depth=(1, 8, 32),
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
    if words := refused(size, block, depth):
        raise Skip(words)
    buffer = depth * lane_bytes(op, block)
    back = blocks_back(depth, block, size) * block
    memory.require(buffer + back, f"a buffer of {format_size(buffer)}, and {format_size(back)} to verify it, need")
    with contextlib.ExitStack() as stack:
        need, files = fio.room(size, writes=op == "write").of(peer=ctx.cross_check)
        workspace = stack.enter_context(closing(Workspace(target, need, files, spare=spare)))
        tell(ctx, workspace.path)
        file = stack.enter_context(contextlib.closing(DataFile(workspace.file(0), size)))
        made = _Writes(ctx, file, depth, block) if op == "write" else _Reads(ctx, file, depth, block)
        transfer = stack.enter_context(contextlib.closing(made))
        transfer.lay_out()
        for name, value in _settings(file, depth, block).items():
            ctx.set(name, value)
        pattern = fio.Pattern("write" if op == "write" else "read", block, depth, size, "end" if op == "write" else "")
        peer = fio.peer(ctx, workspace, file, pattern, size)
        close = stack.pop_all().close
    return Work(
        run=transfer.run,
        reset=transfer.reset,
        check=transfer.check,
        close=close,
        workload=Workload(bytes_read=size if op == "read" else 0, bytes_written=size if op == "write" else 0, bound="storage"),
        max_iterations=1,
        peer=peer,
    )


class _Writes:
    """Writes of the whole file, with other data in every 4 KiB.

    ``_blocks``: place and length of each, where it begins in a lane's memory, and the numbers of its 4 KiB.  ``_sample``: the one
    whose data the file holds (0: as laid out).
    """

    def __init__(self, ctx: Context, file: DataFile, depth: int, block: int) -> None:
        import numpy as np

        self._ctx = ctx
        self._file = file
        period = lane_bytes("write", block)
        self._pattern = Pattern(period=period)
        self._slots = Slots[Place](depth, period)
        self._back = _Back(file, self._pattern, depth, block)
        numbers = np.arange(file.size // STAMP_EVERY, dtype=np.uint64).data
        self._blocks = [
            (offset, length, offset % period, numbers[offset // STAMP_EVERY : (offset + length) // STAMP_EVERY])
            for offset, length in self._back.places
        ]
        self._choose = np.random.default_rng(ctx.seed)
        self._device = DeviceBytes(ctx.device_bytes)
        self._sample = 0
        self._lanes = Lanes([functools.partial(self._write, slot.bytes, stamped(slot.words)) for slot in self._slots.each])

    # -- the timed region

    def run(self) -> None:
        """All blocks, and the sync that takes them to the device."""
        self._lanes.run(self._blocks)
        self._file.sync()

    def _write(self, whole: memoryview, stamps: memoryview, offset: int, length: int, start: int, numbers: memoryview) -> None:
        stamps[start // STAMP_EVERY : (start + length) // STAMP_EVERY] = numbers
        self._file.write_at(offset, whole[start : start + length])

    # -- outside of it

    def lay_out(self) -> None:
        """Make the file, written whole and on the device, and find out whether direct I/O is what it says."""
        with _on_huge_pages(self._ctx, self._slots.nbytes):
            for slot in self._slots.each:
                self._pattern.fill(slot.words, 0, 0)
        lay_out(self._ctx, self._file, self._pattern)

    def reset(self) -> None:
        """Verify some of what the last run left behind, then make ready what the next one writes."""
        self._settle()
        places = self._back.places
        chosen = self._choose.choice(len(places), min(SPOT_CHECKS, len(places)), replace=False)
        self._verify([places[int(n)] for n in sorted(chosen)])
        self._sample += 1
        for slot in self._slots.each:
            self._pattern.restamp(slot.words, self._sample)
        _drop(self._ctx, self._file)
        if self._file.counted:
            self._device.mark()

    def check(self) -> None:
        """The whole of the last run, bit for bit."""
        self._settle()
        self._verify(self._back.places)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()
        self._back.close()

    def _verify(self, places: Sequence[Place]) -> None:
        _drop(self._ctx, self._file)
        self._back.verify(places, self._sample)

    def _settle(self) -> None:
        self._device.settle(0, self._file.size)


class _Reads:
    """Reads of the whole file, each lane's into the same memory.  ``_asked``: there is a run to verify."""

    def __init__(self, ctx: Context, file: DataFile, depth: int, block: int) -> None:
        self._ctx = ctx
        self._file = file
        self._pattern = Pattern()
        self._slots = Slots[Place](depth, block)
        self._back = _Back(file, self._pattern, depth, block)
        self._device = DeviceBytes(ctx.device_bytes)
        self._asked = False
        self._lanes = Lanes([functools.partial(self._read, slot) for slot in self._slots.each])

    # -- the timed region

    def run(self) -> None:
        """All blocks."""
        self._lanes.run(self._back.places)

    # -- outside of it

    def lay_out(self) -> None:
        """Make the file, written whole and on the device, and find out whether direct I/O is what it says."""
        with _on_huge_pages(self._ctx, self._slots.nbytes):
            self._slots.poison()
        lay_out(self._ctx, self._file, self._pattern, reads=True)

    def reset(self) -> None:
        """Verify the last run, then make memory and caches ready for the next."""
        self.check()
        self._slots.poison()
        _drop(self._ctx, self._file)
        self._asked = True
        if self._file.counted:
            self._device.mark()

    def check(self) -> None:
        """What the lanes hold of the last run, and then the whole file, read once more, bit for bit."""
        if not self._asked:
            return
        size = self._file.size
        self._device.settle(size, 0)
        held = self._slots.held()
        if not held:
            raise Wrong(f"nothing of {self._file.path} was read")
        for words, (offset, length) in held:
            self._pattern.verify(words[: length // 8], self._file.path, 0, 0, offset)
        _drop(self._ctx, self._file)
        self._back.verify(self._back.places, 0)
        self._asked = False

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()
        self._back.close()

    def _read(self, slot: Slot[Place], offset: int, length: int) -> None:
        self._file.read_at(offset, slot.bytes[:length])
        slot.last = offset, length


class _Back:
    """The file read back, untimed, into memory of its own, as many blocks at a time as the case has, and verified.

    ``places``: all of its blocks.
    """

    def __init__(self, file: DataFile, pattern: Pattern, depth: int, block: int) -> None:
        self.places: list[Place] = [(offset, min(block, file.size - offset)) for offset in range(0, file.size, block)]
        self._file = file
        self._pattern = pattern
        self._words = aligned(blocks_back(depth, block, file.size) * block)
        self._memory = pieces(self._words, block)
        self._lanes = Lanes([file.read_at] * depth)

    def verify(self, places: Sequence[Place], sample: int) -> None:
        """Raise `Wrong` unless there is what that sample wrote."""
        for first in range(0, len(places), len(self._memory)):
            forget(self._words)
            some = places[first : first + len(self._memory)]
            blocks = [(offset, view[:length]) for (offset, length), (_, view) in zip(some, self._memory, strict=False)]
            self._lanes.run(blocks)
            for offset, view in blocks:
                self._pattern.verify(words_of(view), self._file.path, 0, sample, offset)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()


def lane_bytes(op: str, block: int) -> int:
    """Memory of a lane: a block, or so many that what is written is not the same again within `LANE_BYTES`."""
    return block if op == "read" else -(-LANE_BYTES // block) * block


def blocks_back(depth: int, block: int, size: int) -> int:
    """Blocks that are read back at once."""
    return min(-(-size // block), max(depth, BASE_BYTES // block))


def _drop(ctx: Context, file: DataFile) -> None:
    """Nothing of a buffered file is cached when it is read next; a record says what the kernel would not drop."""
    if not file.direct:
        cold.say_left(ctx, file.drop())


@contextlib.contextmanager
def _on_huge_pages(ctx: Context, size: int) -> Generator[None]:
    """Record which share of the memory lies on huge pages that is touched here for the first time."""
    before = memory.huge_pages()
    yield
    after = memory.huge_pages()
    if before is not None and after is not None:
        ctx.set("buffer_on_huge_pages", round(min(1.0, max(0, after - before) / size), 2))


def _settings(file: DataFile, depth: int, block: int) -> dict[str, Scalar]:
    """What the record says of the way the bytes went."""
    total = memory.meminfo("MemTotal")
    return {
        "engine": f"pwritev/preadv, {depth} thread{'s' if depth > 1 else ''}",
        "block_bytes": block,
        **file.settings(),
        **({"file_to_memory": round(file.size / total, 4)} if total else {}),
    }
