"""Random reads and writes of small blocks with a fixed number in flight: operations a second, and how long each took.

The file is laid out and written once before timing.  A sample is some thousands of transfers to blocks in random order, no block
twice, so that each can be verified; it begins with an empty queue and ends when the last transfer has ended and, where there were
writes, with one ``fdatasync``.  Latency is from submitting a transfer to reaping it, as the record's series ``latency`` has it;
the times of the record are those of one transfer on average (of ten, 7 reads and 3 writes, where both go on): 1 / IOPS.

Every read of every sample is verified whole, untimed; of the writes of a sample some are read back from the device, chosen anew,
and all of the last one.  Where only large blocks are read, they go into memory that is read into again and again (`slots`): what
it holds is verified, and all blocks are read once more for the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Skip, Work, probe
from clustergauge.units import format_size, parse_size
from storage_io import fio, memory
from storage_io.datafile import DataFile
from storage_io.helpers import LARGE
from storage_io.layout import READ_TO_PROVE, lay_out
from storage_io.mounts import tell
from storage_io.pattern import BASE_BYTES, STAMP_EVERY, Pattern, unstamped
from storage_io.scattered import AGAIN_BYTES, BUFFER_BYTES, LEAST, MIX, MIX_READS, SAMPLES, Scattered
from storage_io.workspace import Workspace, target_of

RW: Mapping[str, Literal["randread", "randwrite", "randrw"]] = {"read": "randread", "write": "randwrite", "mixed": "randrw"}
"""How fio calls the operations."""
SIZES = (256 << 20, 1 << 30, 4 << 30, 16 << 30)


def moves(op: str, block: str, depth: int, size: int) -> Moves:
    """What a case moves: the file, and samples that are cut to the budget, down to their least."""
    again = op == "read" and parse_size(block) >= LARGE
    times = 2 if again or op != "read" else 1
    least, most = max(LEAST, depth) * parse_size(block), min(size, AGAIN_BYTES if again else BUFFER_BYTES)
    return Moves(before=size + READ_TO_PROVE, sample=times * least, share=times / SAMPLES, most=times * most)


def needs(op: str, block: str, depth: int, size: int) -> Needs:
    """A folder."""
    room = fio.room(size, writes=op != "read")
    words = refused(size, parse_size(block), depth)
    return Needs(target=True, moves=moves(op, block, depth, size), room=room, refused=words, peer=True)


def refused(size: int, block: int = STAMP_EVERY, depth: int = 1) -> str:
    """Why so many such blocks in flight of such a file have no meaning, in words; empty where they have one."""
    if words := unstamped(block):
        return words
    if size < BASE_BYTES:
        return f"{format_size(size)} is less than {format_size(BASE_BYTES)}; take a larger --set size=…"
    if size % block:
        return f"{format_size(size)} is not a whole number of blocks of {format_size(block)}"
    if depth * block > (most := min(BUFFER_BYTES, size)):
        return f"{depth} blocks of {format_size(block)} at a time are more than {format_size(most)}; take a smaller --set depth=…"
    return ""


@probe(
    "random",
    needs=needs,
    op=("read", "write", "mixed"),
    block=("4KiB", "64KiB"),
    depth=(1, 8, 32, 64, 256),
    size=SIZES,
)
def random(ctx: Context, op: str, block: str, depth: int, size: int) -> Work:
    """Read or write blocks in random order (mixed: 70 % reads), ``depth`` in flight.  size: bytes of the file."""
    return prepare(ctx, op, parse_size(block), depth, size)


def prepare(ctx: Context, op: str, block: int, depth: int, size: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare``: as for `sequential.prepare`.

    Raises `Skip` where the size has no meaning, memory, space or time are short, or the system is not Linux; `StorageError` where
    the target can't be written to.
    """
    target = require(ctx, size, block, depth)
    with contextlib.ExitStack() as stack:
        need, files = fio.room(size, writes=op != "read").of(peer=ctx.cross_check)
        workspace = stack.enter_context(closing(Workspace(target, need, files, spare=spare)))
        tell(ctx, workspace.path)
        file = stack.enter_context(contextlib.closing(DataFile(workspace.file(0), size)))
        pattern = Pattern()
        lay_out(ctx, file, pattern, reads=True)
        scattered = stack.enter_context(contextlib.closing(Scattered(ctx, file, pattern, op, block, depth)))
        scattered.calibrate()
        work = workload(op, block)
        asked = fio.Pattern(RW[op], block, depth, size, "end" if op != "read" else "", 100 * MIX_READS // MIX)
        peer = fio.peer(ctx, workspace, file, asked, work.bytes_read + work.bytes_written)
        close = stack.pop_all().close
    return Work(
        run=scattered.run,
        reset=scattered.reset,
        note=scattered.note,
        check=scattered.check,
        close=close,
        workload=work,
        max_iterations=1,
        steps=scattered.steps,
        peer=peer,
    )


def require(ctx: Context, size: int, block: int, depth: int = 1) -> Path:
    """The target.  Raises `Skip` where such a file can't be measured at all, or so many blocks can't be in flight."""
    target = target_of(ctx)
    if words := refused(size, block, depth):
        raise Skip(words)
    need = BUFFER_BYTES + depth * block
    memory.require(need, f"{need >> 20} MiB of buffers need")
    return target


def workload(op: str, block: int) -> Workload:
    """The work of one step: one transfer, or ten of a mix."""
    if op == "mixed":
        reads, writes = MIX_READS, MIX - MIX_READS
    else:
        reads, writes = (1, 0) if op == "read" else (0, 1)
    return Workload(ios=reads + writes, bytes_read=reads * block, bytes_written=writes * block, bound="storage")
