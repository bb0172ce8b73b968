"""``SHA256SUMS`` of a run folder: what it covers, and which line of a file is not as it was.

Format of ``sha256sum --check``.  Behind the checksums stands, as a comment for each file but the records (which have a checksum a
line, `folder.CHECKSUMS`), the CRC-32 of each of its lines: no protection, it only finds the line that changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from functools import lru_cache
from pathlib import Path

from clustergauge import folder, valid

_ENTRY = re.compile(r"([0-9a-f]{64})  (\S{1,200})\n")
_MARKS = re.compile(r"# (\S{1,200})((?: [0-9a-f ]*)?)\n")
_BLOCK = b"},\n"
"""How a planned case ends in `folder.RUN`."""
_SHORT = 4096
"""Bytes of a block whose marks may be needed again."""
_BY_LINE = (folder.RECORDS, folder.CHECKSUMS)


def text(path: Path) -> bytes:
    """`folder.SUMS` for the files as they are now.  Raises `UsageError` and ``OSError``."""
    names = [*_always(path), *judged(path)]
    entries = [f"{folder.digest(path / name)}  {name}\n" for name in names]
    marks = [f"# {name}{_marks(folder.content_of(path / name))}\n" for name in names if name not in _BY_LINE]
    return "".join([*entries, *marks]).encode()


def facts(path: Path) -> str:
    """One SHA-256 over the records and the machines of a run, whatever was decided on them and whenever it ended."""
    names = [*(f"{folder.MACHINES}/{file.name}" for file in folder.machine_files(path)), folder.RECORDS]
    return hashlib.sha256("".join(f"{folder.digest(path / name)}  {name}\n" for name in names).encode()).hexdigest()


def judged(path: Path) -> list[str]:
    """Which of `folder.JUDGED` are there."""
    return [name for name in folder.JUDGED if os.path.lexists(path / name)]


def changed(path: Path) -> dict[str, str]:
    """Holds the files against `folder.SUMS`: problems by file name.  None if there is no such file (yet)."""
    if not folder.ended_well(path):
        return {}
    problems: dict[str, str] = {}
    needed = _always(path)
    known = {*needed, *folder.JUDGED}
    sums: dict[str, tuple[int, str]] = {}
    marks: dict[str, tuple[int, str]] = {}
    where = folder.located(path / folder.SUMS)
    content = folder.content_of(path / folder.SUMS).decode(errors="replace")
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if (entry := _ENTRY.fullmatch(line)) and entry[2] in known - sums.keys():
            sums[entry[2]] = number, entry[1]
        elif (mark := _MARKS.fullmatch(line)) and mark[1] in known - marks.keys() - {*_BY_LINE}:
            marks[mark[1]] = number, mark[2]
        else:
            words = f"line {number}: not the checksum of a file of this run: {valid.shown(line.rstrip())}"
            problems.setdefault(folder.SUMS, f"{where} {words}")
    for name, (number, checksum) in sums.items():
        if not os.path.lexists(path / name):
            problems[name] = f"{folder.located(path / name)}: missing, though {folder.SUMS} line {number} has its checksum"
            continue
        marked, before = marks.get(name, (0, ""))
        if marked:  # such files are small: read once for both
            content = folder.content_of(path / name)
            at, digest = _first_changed(before, _marks(content)), hashlib.sha256(content).hexdigest()
        else:
            at, digest = 0, folder.digest(path / name)
        if digest != checksum:
            problems[name] = f"{folder.located(path / name, at)}: does not match its checksum ({folder.SUMS} line {number})"
        elif at:
            problems.setdefault(folder.SUMS, f"{where} line {marked}: not what {name} holds in its line {at}")
    return problems | {name: f"{where}: has no checksum of {name}" for name in sorted({*needed} - sums.keys())}


def unsummed(path: Path) -> list[str]:
    """Files of a judgement that `folder.SUMS` does not cover: put there later, or writing them was interrupted."""
    if not folder.ended_well(path):
        return []
    entries = map(_ENTRY.fullmatch, folder.content_of(path / folder.SUMS).decode(errors="replace").splitlines(keepends=True))
    covered = {entry[2] for entry in entries if entry}
    return [name for name in judged(path) if name not in covered]


def _always(path: Path) -> list[str]:
    """What every run has that ended."""
    return [folder.RUN, *(f"{folder.MACHINES}/{file.name}" for file in folder.machine_files(path)), *_BY_LINE]


def _marks(content: bytes) -> str:
    """The marks of all lines, a blank before each."""
    *blocks, rest = content.split(_BLOCK)
    of_blocks = [_known(block) if len(block) < _SHORT else _of_lines(block + _BLOCK) for block in blocks]
    return "".join([*of_blocks, _of_lines(rest)])


@lru_cache(4096)
def _known(block: bytes) -> str:
    """The runs of a fleet have planned the same cases, and marking their lines took a tenth of reading it."""
    return _of_lines(block + _BLOCK)


def _of_lines(content: bytes) -> str:
    return "".join([f" {zlib.crc32(line):08x}" for line in content.splitlines(keepends=True)])


def _first_changed(before: str, now: str) -> int:
    """The first line (from 1) whose mark is not as before, one more than there are where the end is missing; 0 where all are."""
    if before == now:
        return 0
    then, those = before.split(), now.split()
    same = zip(then, those, strict=False)
    return next((n for n, (a, b) in enumerate(same, 1) if a != b), min(len(then), len(those)) + 1)
