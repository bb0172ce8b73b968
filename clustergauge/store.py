"""Writes the run folder ``results/<run-id>/``: each record is on disk before the next case starts.

``run.json`` (`Run`), ``machines/<machine_id>.json`` (`Machine`), ``records.jsonl`` (one `Record` a line, only ever appended),
``records.sha256`` (the checksum of every line, written before it), ``logs/``, and once the run has ended ``SHA256SUMS`` and
what was decided on it (`keep`).
Reading is in `loading`, the files in `folder`; what both ask of a document in `valid`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path

import msgspec

from clustergauge import folder, sums, valid
from clustergauge.errors import UsageError
from clustergauge.folder import find_run, new_run_id
from clustergauge.loading import Ends, LoadedRun, load, read, verify
from clustergauge.model import Machine, Record, Run

__all__ = ["LoadedRun", "RunFolder", "StoreError", "find_run", "load", "new_run_id", "reopen", "verify"]

_TEMPORARY = ".tmp"


class StoreError(RuntimeError):
    """The disk did not take it (full, quota, broken); the text names file and cause.  What was written before is intact."""


class RunFolder:
    """A run folder open for writing, by this process alone.  Made by `create` or `reopen`; ends with `finish` or `close`.

    ``path``: where it is.  ``repaired``: what `reopen` cut off, in words, empty if nothing.
    """

    def __init__(self, path: Path, run: Run, lock: int, loaded: LoadedRun | None = None, ends: Ends | None = None) -> None:
        """Use `RunFolder.create` or `reopen`.  ``lock``: its descriptor, ours from here on; the rest: what is there."""
        self.path = path
        self.repaired = ends.torn if ends else ""
        self._run_id = run.run_id
        self._planned = valid.check_run(run)
        self._machines = set(loaded.machines) if loaded else set[str]()
        # what has a record, and the size of the file with it: one assignment makes a record count, or an interrupt comes first
        self._taken: dict[tuple[valid.Key, str], int] = {}
        if loaded and ends:
            self._taken = dict.fromkeys(((valid.key_of(r), r.machine_id) for r in loaded.records), ends.bytes)
        self._torn = bool(self.repaired)
        self._open = [lock]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            for name in (folder.RECORDS, folder.CHECKSUMS):
                self._open.append(os.open(path / name, flags, 0o644))
            self._cut_back()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, parent: Path, run: Run) -> RunFolder:
        """Make the folder of a new run under ``parent`` (which is made too).

        Raises `UsageError` if it exists, cannot be made there, or the run is not sound (a case planned twice, say).
        """
        try:
            run = valid.clean(run)
            valid.check_run(run)
        except valid.Invalid as error:
            raise UsageError(f"cannot begin this run: {error}") from None
        path = parent / run.run_id
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o755)
        except (FileExistsError, NotADirectoryError) as error:
            file = next((p for p in (parent, *parent.parents) if p.exists() and not p.is_dir()), None)
            why = f"{file} is a file, no folder" if file else _why(error)
            raise UsageError(f"cannot make run folder {folder.located(path)}: {why}") from None
        except OSError as error:
            raise UsageError(f"cannot make run folder {folder.located(path)}: {_why(error)}") from None
        made: RunFolder | None = None
        try:
            for name in (folder.MACHINES, folder.LOGS):
                (path / name).mkdir(mode=0o755)
            made = cls(path, run, folder.lock(path))
            made.update(run)  # last: without run.json it is no run folder
            _sync_folder(parent)
        except (OSError, StoreError) as error:
            shutil.rmtree(path, ignore_errors=True)
            if made:
                made.close()
            where = folder.located(path)
            raise UsageError(f"cannot make run folder {where}: {_why(error).removeprefix(f'{where}: ')}") from None
        return made

    def append(self, record: Record) -> None:
        """Put the record on disk; it is there when this returns.

        Raises `ValueError`, with nothing written, for a record that is not sound or not of this run (see `valid.check_record`).
        Raises `StoreError` if the disk does not take it: what was written of it is cut off again, the folder stays readable.
        """
        record, line = self._line_of(record)
        checksum = hashlib.sha256(line).hexdigest().encode() + b"\n"
        key = (valid.key_of(record), record.machine_id)
        _, records, checksums = self._files()
        with self._whole(f"the record of {record.case} is not kept, the {len(self._taken)} before it are"):
            self._cut_back()
            self._torn = True
            _write(checksums, checksum)
            _write(records, line)
            self._taken[key] = self._end() + len(line)
            self._torn = False

    def write_machine(self, machine: Machine) -> None:
        """Describe a machine, before its first record.  Raises `ValueError` if it is not sound, and `StoreError`."""
        machine = valid.clean(machine)
        valid.check_machine(machine)
        self._replace(f"{folder.MACHINES}/{machine.machine_id}.json", _text(machine))
        self._machines.add(machine.machine_id)

    def write_log(self, name: str, text: str) -> str:
        """Keep a text under ``logs/``; returns its path in the folder.  Characters that could steer a terminal are replaced."""
        stem = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("._")[:120]
        mark = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]  # two names may look alike once sanitised
        file = f"{folder.LOGS}/{stem}-{mark}.log"
        lines = [valid.printable(line.expandtabs()) for line in text.splitlines()]
        self._replace(file, "\n".join([*lines, ""]).encode())
        return file

    def write_file(self, name: str, content: bytes) -> str:
        """Keep bytes that a library left, as they stand, under ``logs/``; returns their path.  Nobody parses them."""
        stem = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("._")[:120]
        file = f"{folder.LOGS}/{stem}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}.bin"
        self._replace(file, content)
        return file

    def update(self, run: Run) -> None:
        """Replace ``run.json`` in one step.  Raises `ValueError` if it is not this run or leaves out a case that has a record."""
        self._files()
        run = valid.clean(run)
        planned = valid.check_run(run)
        if run.run_id != self._run_id:
            raise ValueError(f"run {run.run_id} cannot be written to the folder of {self._run_id}")
        for (case, device, launch), _ in self._taken:
            if (case, device, launch) not in planned:
                raise ValueError(f"the run no longer plans {case} on {device}, launch {launch}, which has a record")
        with self._whole(f"{folder.RUN} stays as it was"):
            for name in (folder.SUMS, *folder.JUDGED):  # from here on they would be wrong
                (self.path / name).unlink(missing_ok=True)
        self._replace(folder.RUN, _text(run))
        self._planned = planned

    def finish(self, run: Run) -> None:
        """`update`, write ``SHA256SUMS`` and `close`: the run has ended, finished or interrupted."""
        try:
            with self._whole("the torn end of the records stays"):
                self._cut_back()
            self.update(run)
            with self._whole(f"{folder.SUMS} is not written"):
                content = sums.text(self.path)
            self._replace(folder.SUMS, content)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the folder without ending the run (it can be reopened).  May be called twice."""
        while self._open:
            with contextlib.suppress(OSError):
                os.close(self._open.pop())  # the lock last

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the steps

    def _files(self) -> tuple[int, int, int]:
        if not self._open:
            raise ValueError(f"{folder.located(self.path)} is closed")
        lock, records, checksums = self._open
        return lock, records, checksums

    def _line_of(self, record: Record) -> tuple[Record, bytes]:
        """The record cleaned, and the bytes it is written as; raises `Invalid` unless they will be read back as the same."""
        record = valid.clean(record)
        valid.check_record(record, self._run_id, self._planned, self._machines)
        if (valid.key_of(record), record.machine_id) in self._taken:
            raise valid.Invalid(f"{record.case} on {record.device}, launch {record.launch}, already has a record")
        line = msgspec.json.encode(record) + b"\n"
        if len(line) > folder.LINE_BYTES:
            raise valid.Invalid(f"the record of {record.case} is longer than {folder.LINE_BYTES >> 20} MiB")
        if msgspec.json.decode(line, type=Record) != record:
            raise valid.Invalid(f"the record of {record.case} would not be read back as it is")
        return record, line

    def _end(self) -> int:
        """Bytes of the whole records."""
        return next(reversed(self._taken.values()), 0)

    def _cut_back(self) -> None:
        """Cut off what lies beyond the whole records."""
        if self._torn:
            _, records, checksums = self._files()
            for file, size in ((records, self._end()), (checksums, len(self._taken) * folder.CHECKSUM_BYTES)):
                os.ftruncate(file, size)
                os.fsync(file)
            self._torn = False

    @contextlib.contextmanager
    def _whole(self, otherwise: str) -> Generator[None]:
        """Whatever goes wrong inside, an interrupt too, leaves no torn line behind; errors of the disk become `StoreError`."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):  # then the next append, finish or reopen tries again
                self._cut_back()
            if isinstance(error, OSError):
                raise StoreError(f"{folder.located(self.path)}: {_why(error)}: {otherwise}") from error
            raise

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file of the folder so that it is there whole or not at all."""
        self._files()
        with self._whole(f"{name} is not written"):
            _put(self.path, name, content)


def reopen(path: Path) -> RunFolder:
    """Open the folder of a run that was interrupted, to go on with it.

    A last record that was cut short, or whose checksum alone was written, is cut off (``repaired`` says so).  Raises `UsageError`
    if anything else is not intact, if another process is writing to the folder, or if it cannot be written.
    """
    folder.check_folder(path)
    try:
        lock = folder.lock(path)
        try:
            loaded, ends = read(path, "cut")
            (path / folder.LOGS).mkdir(mode=0o755, exist_ok=True)
        except BaseException:
            os.close(lock)
            raise
        opened = RunFolder(path, loaded.run, lock, loaded, ends)
        try:
            opened.update(msgspec.structs.replace(loaded.run, finished="", interrupted=False))  # it goes on
        except BaseException:
            opened.close()
            raise
    except StoreError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise folder.failed(path, error) from None
    return opened


def keep(path: Path, files: Mapping[str, bytes]) -> None:
    """Put what was decided on a run that has ended (some of `folder.JUDGED`) beside it, and into its checksums.

    Interrupted, it leaves files without a checksum, which `judgement.verify` tells.  Raises `StoreError`, and `UsageError` if
    another process is writing to the folder.
    """
    try:
        lock = folder.lock(path)
        try:
            for name, content in files.items():
                _put(path, name, content)
            _put(path, folder.SUMS, sums.text(path))
        finally:
            os.close(lock)
    except OSError as error:
        raise StoreError(f"{folder.located(path)}: {_why(error)}: the verdicts are not kept, the records are") from error


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _text(document: Run | Machine) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _put(path: Path, name: str, content: bytes) -> None:
    """A file of the folder, whole or not at all."""
    temporary, target = path / _TEMPORARY, path / name
    try:
        temporary.unlink(missing_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write(file, content)
        finally:
            os.close(file)
        temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(file: int, content: bytes) -> None:
    """All of it, on disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)


def _sync_folder(path: Path) -> None:
    """Names made in the folder survive a loss of power, where the file system can promise that."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
