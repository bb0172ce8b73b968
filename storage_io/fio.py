"""fio doing what a storage case does, to hold ours against: the same pattern, block, depth and size, direct on both sides.

Reads are of the very file of the case; writes go to one of their own in the same run folder.  Its memory is asked to lie on huge
pages, as ours does: a disk that takes few segments at a time moves less than half as much to and from scattered pages.  Of what
fio prints only whole numbers of one job that did not fail are believed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from clustergauge.probe import Context, Peer, Room
from storage_io.datafile import DataFile
from storage_io.workspace import Workspace

GRACE_S = 60.0
"""Beyond its running time: for making its file."""
FILE_NUMBER = 1
"""Of the file that it writes to."""
MEMORY_ALIGN = 2 << 20
"""Bytes, to which its buffers are aligned: a huge page."""


@dataclass(frozen=True)
class Pattern:
    """What fio is asked for.  ``sync``: once at the end, or after each write."""

    rw: Literal["read", "write", "randread", "randwrite", "randrw"]
    block: int
    depth: int
    size: int
    sync: Literal["", "end", "each"] = ""
    reads_percent: int = 0

    def words(self, file: Path, seconds: float) -> list[str]:
        """Arguments of fio."""
        given: dict[str, object] = {
            "name": "beside",
            "filename": str(file).replace(":", "\\:"),  # which parts names otherwise
            "size": self.size,
            "rw": self.rw,
            "bs": self.block,
            "ioengine": "psync" if self.depth == 1 else "libaio",
            "iodepth": self.depth,
            "direct": 1,
            "iomem_align": MEMORY_ALIGN,
            "time_based": 1,
            "runtime": max(1, round(seconds)),
            "norandommap": 1,
            "randrepeat": 0,
            "output-format": "json",
        }
        if self.rw == "randrw":
            given["rwmixread"] = self.reads_percent
        if self.rw not in ("read", "randread"):
            given["overwrite"] = 1  # of a file that is laid out, as ours is
        given |= {"end": {"end_fsync": 1}, "each": {"fdatasync": 1}, "": {}}[self.sync]
        return [f"--{name}={value}" for name, value in given.items()]


Count = Annotated[int, msgspec.Meta(ge=0)]


class _Way(msgspec.Struct):
    io_bytes: Count
    runtime: Count
    """Milliseconds."""


class _Job(msgspec.Struct):
    error: int
    read: _Way
    write: _Way


class _Output(msgspec.Struct):
    jobs: Annotated[list[_Job], msgspec.Meta(min_length=1, max_length=1)]


def installed() -> str:
    """The path of fio; empty where there is none."""
    return shutil.which("fio") or ""


def bytes_per_second(printed: bytes) -> float:
    """Of both ways together.  Raises ``ValueError`` where it isn't the output of one whole job."""
    start = printed.find(b"{\n")  # warnings come before it
    if start < 0:
        raise ValueError("no result in what it printed")
    (job,) = msgspec.json.decode(printed[start:], type=_Output).jobs
    if job.error:
        raise ValueError(f"its job ended with error {job.error}")
    moved, took = job.read.io_bytes + job.write.io_bytes, max(job.read.runtime, job.write.runtime)
    if not moved or not took:
        raise ValueError("it moved nothing")
    return 1000 * moved / took


def environment() -> dict[str, str]:
    """For fio: what it allocates is to be on huge pages.  glibc 2.35 or newer hears it, others pass it over."""
    tunables = [os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb=1"]
    return os.environ | {"GLIBC_TUNABLES": ":".join(filter(None, tunables))}


def run(pattern: Pattern, file: Path, seconds: float) -> float:
    """Bytes a second as fio tells them.  Raises ``OSError`` in one line where it fails."""
    words = [installed() or "fio", *pattern.words(file, seconds)]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds + GRACE_S, check=False, env=environment()
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"no end after {seconds + GRACE_S:.0f} s") from None
    said = (done.stderr.decode(errors="replace").split("\n", 1)[0] or "no word of why")[:200]
    if done.returncode:
        raise OSError(f"exit code {done.returncode}: {said}")
    try:
        return bytes_per_second(done.stdout)
    except ValueError as error:  # msgspec's are such
        raise OSError(f"{error}") from None


def version() -> str:
    """``fio-3.33``; ``fio`` where it does not say."""
    try:
        done = subprocess.run([installed() or "fio", "--version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "fio"
    said = done.stdout.decode(errors="replace").strip()
    return said if re.fullmatch(r"fio-[\w.-]{1,40}", said, re.ASCII) else "fio"


def peer(ctx: Context, workspace: Workspace, file: DataFile, pattern: Pattern, step_bytes: int) -> Peer | None:
    """fio as the peer of a case whose step moves ``step_bytes``; ``None`` where none is asked for or there is none, which the
    record says."""
    if not ctx.cross_check:
        return None
    if not installed():
        ctx.set("cross_check", "fio is not installed")
        return None
    if not file.direct:
        ctx.set("cross_check", "not held against fio without direct I/O: their caches would be compared")
        return None
    path = file.path if pattern.rw in ("read", "randread") else workspace.file(FILE_NUMBER)
    return Peer(version(), lambda seconds: step_bytes / run(pattern, path, seconds))


def room(size: int, *, writes: bool) -> Room:
    """What a case takes that has a file of this size; a peer writes to one of its own."""
    return Room(size, 1, beside=size if writes else 0)
