"""The files of a run folder: their names, their checksums, who writes them.  What they say is the business of `loading`.

`CHECKSUMS` and `RECORDS` go line by line: line i of the first is the SHA-256 of line i of the second (with its newline) and is on
disk before it, so a last checksum without a record means that writing was interrupted.  `SUMS`, written when a run ends (`sums`),
covers all files but the logs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

from clustergauge import valid
from clustergauge.errors import UsageError

RUN, RECORDS, CHECKSUMS, MACHINES, LOGS = "run.json", "records.jsonl", "records.sha256", "machines", "logs"
SUMS, LOCK = "SHA256SUMS", ".lock"
VERDICTS, ACCEPTANCE, CEILINGS = "verdicts.json", "acceptance.toml", "ceilings.toml"
NODES, BAD, SUSPECT, UNMEASURED = "nodes.json", "bad.txt", "suspect.txt", "unmeasured.txt"
JUDGED = (VERDICTS, ACCEPTANCE, CEILINGS, NODES, BAD, SUSPECT, UNMEASURED)
"""What was decided when the run ended (`judgement`), the user's files that it was decided by, which of its nodes are bad."""
LINE_BYTES = 64 << 20
"""Longest line or document that is read."""
MOST_LINES = 10_000_000
CHECKSUM_BYTES = 65
"""64 hexadecimal digits and a newline."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What flock says on file systems without locks (Lustre mounted without them, some NFS)."""

_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-z]{4}", re.ASCII)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_CHECKSUM = re.compile(rb"[0-9a-f]{64}\n")
_PART_OF_CHECKSUM = re.compile(rb"[0-9a-f]{1,64}\n?")


class Line(NamedTuple):
    """A line of `RECORDS`, with its newline, held against its checksum.

    ``broken``: not what was written.  ``cut short``: the last one, without its newline.  ``unwritten``: a last checksum whose
    record was never written.  ``problem`` says it in words.
    """

    number: int
    raw: bytes
    state: Literal["whole", "broken", "cut short", "unwritten"] = "whole"
    problem: str = ""


def new_run_id() -> str:
    """``YYYYMMDD-HHMMSS-xxxx`` in UTC: sorts by time; four random characters tell apart runs of one second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{''.join(secrets.choice(_DIGITS) for _ in range(4))}"


def find_run(text: str, results: Path) -> Path:
    """The run folder meant by a path, a run id under ``results``, the unique start of one, or ``latest``.

    Raises `UsageError` with the candidates if there is none or more than one.
    """
    runs = _runs(results)
    meant: list[Path] = []
    if text == "latest":
        meant = sorted((run for run in runs if _RUN_ID.fullmatch(run.name)), key=_time_of, reverse=True)[:1]
    elif text:
        meant = (
            [run for run in runs if run.name == text] or _if_folder(text) or [run for run in runs if run.name.startswith(text)]
        )
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UsageError(f"{valid.shown(text)} could be {_listed(meant)}")
    if "/" in text:  # no id holds one: a path was meant, wherever results are
        raise UsageError(f"no run folder {valid.shown(text)}" + ("" if text.startswith("/") else f" in {located(Path.cwd())}"))
    raise UsageError(f"no run {valid.shown(text)} in {located(results)} ({_listed(runs)})")


def find_runs(text: str, results: Path) -> list[Path]:
    """All runs in a folder that holds run folders (one a node, say), or the run that `find_run` finds."""
    inside: list[Path] = []
    if text and os.path.isdir(text) and not os.path.isfile(Path(text) / RUN):  # noqa: PTH112,PTH113 (never raise)
        try:
            inside = [entry for entry in Path(text).iterdir() if _may_be_run(entry)]
        except OSError as error:
            raise failed(Path(text), error) from None
    return sorted(inside) or [find_run(text, results)]


def _may_be_run(path: Path) -> bool:
    """Whether it is a run folder, or what is left of one: of a fleet nobody is passed over because a file of his is gone."""
    try:
        return not {RUN, RECORDS}.isdisjoint(os.listdir(path))  # noqa: PTH208 (Path objects of thousands are slow)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # whoever reads it says why
        return True


def _runs(results: Path) -> list[Path]:
    try:
        return sorted((entry for entry in results.iterdir() if os.path.isfile(entry / RUN)), reverse=True)  # noqa: PTH113 (never raises)
    except OSError:
        return []


def _time_of(run: Path) -> tuple[str, float]:
    """The second in its id; among runs of one second, when ``run.json`` was last written."""
    try:
        return run.name[:15], (run / RUN).stat().st_mtime
    except OSError:
        return run.name[:15], 0.0


def _if_folder(text: str) -> list[Path]:
    try:
        return [Path(text)] if Path(text).is_dir() else []
    except (OSError, ValueError):
        return []


def _listed(runs: list[Path], most: int = 5) -> str:
    names = [valid.printable(run.name) for run in runs[:most]]
    return ", ".join([*names, *([f"and {len(runs) - most} more"] if len(runs) > most else [])]) or "it holds no run"


def writer_of(path: Path) -> int | None:
    """The process that is writing to the folder: its id, 0 where that is unknown, ``None`` if there is none."""
    try:
        lock = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(lock, 20)
        return int(text) if text.isdigit() else 0
    except OSError:
        return None
    finally:
        os.close(lock)
    return None


def lock(path: Path, tries: int = 10) -> int:
    """Become the only writer: a descriptor that holds the lock until it is closed, or this process ends in whatever way.

    Raises `UsageError` if another process is the writer.  Readers who ask `writer_of` are waited out.
    """
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        for left in reversed(range(tries)):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise UsageError(f"{located(path)} is being written by {process(writer_of(path) or 0)}") from None
                time.sleep(0.02)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        with contextlib.suppress(OSError):  # a full disk: then nobody learns our number
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def process(pid: int) -> str:
    """A process as `writer_of` tells it, in words."""
    return f"pid {pid}" if pid else "another process"


def check_folder(path: Path) -> None:
    """Raises `UsageError` unless this is a run folder, with no symbolic link in it."""
    try:
        if not path.is_dir():
            raise UsageError(f"no run folder {located(path)}")
        if not os.path.lexists(path / RUN):
            raise UsageError(f"{located(path)} is not a run folder: it has no {RUN}")
        for folder in (path, path / MACHINES, path / LOGS):
            if folder.name == LOGS and not os.path.lexists(folder):
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise UsageError(f"{located(Path(entry.path))}: a symbolic link has no place in a run folder")
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise failed(path, error) from None


def open_plain(path: Path) -> BufferedReader:
    """A regular file, for reading.  Raises `UsageError` for whatever else stands there: a link, a pipe, a device, nothing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise failed(path, error) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"{located(path)}: not a regular file")
    return os.fdopen(handle, "rb")


def digest(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lines(path: Path, live: bool = False) -> Iterator[Line]:
    """The lines of `RECORDS` beside those of `CHECKSUMS`.  ``live``: end where a writer may just be at work.

    Raises `UsageError` for a missing file and for sizes beyond reason.
    """
    where, where_sum = located(path / RECORDS), located(path / CHECKSUMS)
    with open_plain(path / CHECKSUMS) as sums, open_plain(path / RECORDS) as records:
        for number in range(1, MOST_LINES + 2):
            checksum = sums.readline(CHECKSUM_BYTES)  # read before its record, as it is written before it
            raw = records.readline(LINE_BYTES + 1)
            if not checksum and not raw:
                return
            if len(raw) > LINE_BYTES:
                raise UsageError(f"{where} line {number}: longer than {LINE_BYTES >> 20} MiB")
            if number > MOST_LINES:
                raise UsageError(f"{where} line {number}: more than {MOST_LINES} lines")
            ended = raw.endswith(b"\n")
            if ended and hashlib.sha256(raw).hexdigest().encode() + b"\n" == checksum:
                yield Line(number, raw)
            elif ended and _CHECKSUM.fullmatch(checksum):
                told = f"{where} line {number}: does not match its checksum ({CHECKSUMS} line {number})"
                yield Line(number, raw, "broken", told)
            elif live:
                return
            elif ended and not checksum:
                yield Line(number, raw, "broken", f"{where} line {number}: has no checksum in {CHECKSUMS}")
            elif ended:
                yield Line(number, raw, "broken", f"{where_sum} line {number}: not a SHA-256")
            elif sums.read(1) or not _PART_OF_CHECKSUM.fullmatch(checksum or b"0"):
                yield Line(number, raw, "broken", f"{where_sum} line {number}: what follows has no record in {RECORDS}")
                return
            elif raw:
                told = "cut short (run_suite.py run --resume cuts it off and goes on)"
                if ended_well(path):
                    told = "cut short after the run had ended: take the folder again from where it was measured"
                yield Line(number, raw, "cut short", f"{where} line {number}: {told}")
                return
            else:
                yield Line(number, raw, "unwritten", f"{where_sum} line {number}: has no record in {RECORDS}")
                return


def whole(path: Path) -> list[bytes] | None:
    """All lines of `RECORDS`, where each is as its checksum says; ``None`` where something is to be said of one (`lines` does),
    and for files that are too long to be held.

    A third of the time that `lines` takes, which is half of reading a fleet.
    """
    with open_plain(path / CHECKSUMS) as sums, open_plain(path / RECORDS) as records:
        told, content = _start_of(sums), _start_of(records)
    found = io.BytesIO(content).readlines()
    if max(len(told), len(content)) > LINE_BYTES or not content.endswith(b"\n") or len(found) > MOST_LINES:
        return None
    checksums = "\n".join([hashlib.sha256(line).hexdigest() for line in found])
    return found if told == f"{checksums}\n".encode() else None


def _start_of(file: BufferedReader) -> bytes:
    """All of a file that is no longer than `LINE_BYTES`; of others more than that."""
    return file.read(min(LINE_BYTES, os.fstat(file.fileno()).st_size) + 1)  # read() takes the memory it is told


def ended_well(path: Path) -> bool:
    """Whether the run ended in good order, with its files summed up: what is torn now was not torn by an interruption."""
    return os.path.lexists(path / SUMS)


def machine_files(path: Path) -> list[Path]:
    """The machine descriptions of a run folder, by name.  Raises `UsageError` for a file that is none."""
    files = sorted(file for file in (path / MACHINES).iterdir() if not file.name.startswith("."))
    for file in files:
        if file.suffix != ".json" or not valid.is_file_name(file.stem):
            raise UsageError(f"{located(file)}: not a machine description (machines/<machine_id>.json)")
    return files


def content_of(path: Path) -> bytes:
    """A regular file of reasonable size.  Raises `UsageError`."""
    with open_plain(path) as file:
        content = _start_of(file)
    if len(content) > LINE_BYTES:
        raise UsageError(f"{located(path)}: longer than {LINE_BYTES >> 20} MiB")
    return content


def located(path: Path, line: int = 0) -> str:
    """A place in a file as errors name it."""
    return f"{valid.printable(str(path))}{f' line {line}' if line else ''}"


def failed(path: Path, error: Exception) -> UsageError:
    """An error of the operating system as the user's: which file, and why."""
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return UsageError(f"{located(path)}: a symbolic link has no place in a run folder")
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else path
        return UsageError(f"{located(named)}: {error.strerror or error}")
    return UsageError(f"{located(path)}: {error}")
