"""Storage probes beside fio, in turn on one disk: the same pattern, the same size, direct I/O on both sides.

    .venv/bin/python -m tools.beside_fio TARGET [PAIRS [SECONDS [GLOB]]]

What ``--cross-check`` does of a case, for a table of patterns, and what it leaves out: checkpoints without a library (a save
makes a new file on both sides) and small files (by fio: threads that open, read and close one after the other).  After the ratio
of our rate to fio's (a flush being one operation; median over PAIRS, 9 and no fewer for a figure to be told, the smallest and the
largest) stands that of fio to itself, which says what the disk's own unrest makes of a ratio.  Our writes end every sample with a
sync, fio's the job; fio has memory that it uses again, and so have we for sequential transfers and reads of small files and large
blocks; of other random transfers and of checkpoints ours is as large as what a sample moves.  fio's memory lies on huge pages,
and so does ours, but for many small blocks at a time: that is shared by processes, and most kernels keep such on small pages.
GLOB chooses patterns as ``-k`` does cases.  Needs fio; files are made in TARGET and removed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from clustergauge.probe import Context, Peer, Work
from storage_io import checkpoint, fio, flush, random_io, sequential, small_files
from storage_io.formats import RAW_BYTES, RAW_DEPTH
from tools.beside import Make, main

SIZE = 256 << 20
JOURNAL = 16 << 20
SHARD = 512 << 20
SMALL = 128 << 10
THREADS = 8


def patterns() -> Iterator[tuple[str, Make]]:
    """Random and sequential transfers, a flush, a loader's reads of shards and of small files, and checkpoints."""
    for op in ("read", "write"):
        for depth in (1, 32, 64):
            yield f"random {op} 4KiB, {depth}", lambda ctx, o=op, d=depth: random_io.prepare(ctx, o, 4096, d, SIZE)
        for depth in (1, 8):
            yield f"sequential {op} 1MiB, {depth}", lambda ctx, o=op, d=depth: sequential.prepare(ctx, o, d, SIZE)
    yield "flush 4KiB", lambda ctx: flush.prepare(ctx, JOURNAL)
    yield "shards 128KiB, 8", lambda ctx: random_io.prepare(ctx, "read", SMALL, THREADS, SIZE)
    yield "small files 128KiB, 8", small
    for op in ("save", "restore"):
        yield f"checkpoint {op} raw", lambda ctx, o=op: shard(ctx, o)


def shard(ctx: Context, op: str) -> Work:
    """A checkpoint without a library; beside it the same bytes in one file, as many pieces in flight.  Both write a new file."""
    work = checkpoint.prepare(ctx, "llama3-8b", "raw", op, SHARD)
    size = work.workload.bytes_read + work.workload.bytes_written
    whole = size // RAW_BYTES * RAW_BYTES
    path = ctx.scratch / "shard"
    if op == "restore":
        pattern = fio.Pattern("read", RAW_BYTES, RAW_DEPTH, whole)
        work.peer = Peer(fio.version(), lambda seconds: size / fio.run(pattern, path, seconds))
        return work
    timed = ("--overwrite=", "--time_based=", "--runtime=")
    words = [w for w in fio.Pattern("write", RAW_BYTES, RAW_DEPTH, whole, "end").words(path, 1) if not w.startswith(timed)]

    def theirs(seconds: float) -> float:
        path.unlink(missing_ok=True)
        return size / told(words, seconds)

    work.peer = Peer(fio.version(), theirs)
    return work


def told(words: list[str], seconds: float) -> float:
    """Bytes a second as fio tells them, run with these words.  Raises ``OSError`` where it fails."""
    command = [fio.installed(), *words]
    done = subprocess.run(command, capture_output=True, timeout=seconds + fio.GRACE_S, env=fio.environment(), check=False)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip()[:200])
    return fio.bytes_per_second(done.stdout)


def small(ctx: Context) -> Work:
    """Small files read whole; beside it as many threads of fio, each on files of its own."""
    work = small_files.prepare(ctx, "read", THREADS, SMALL)
    each = small_files.TOTAL_BYTES // SMALL // THREADS
    given = {
        "name": "beside",
        "directory": ctx.scratch,
        "rw": "read",
        "bs": SMALL,
        "filesize": SMALL,
        "nrfiles": each,
        "size": each * SMALL,
        "openfiles": 1,
        "file_service_type": "random",
        "numjobs": THREADS,
        "ioengine": "psync",
        "direct": 1,
        "iomem_align": fio.MEMORY_ALIGN,
        "time_based": 1,
        "output-format": "json",
    }
    words = ["--thread", "--group_reporting", *(f"--{name}={value}" for name, value in given.items())]

    def theirs(seconds: float) -> float:
        return SMALL / told([*words, f"--runtime={max(1, round(seconds))}"], seconds)

    work.peer = Peer(fio.version(), theirs)
    return work


if __name__ == "__main__":
    sys.exit(main(str(__doc__), patterns(), "" if fio.installed() else "fio is not installed"))
