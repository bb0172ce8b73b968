"""Reads a run folder back without trusting it: every problem is one line that names file and line.

A folder may come from another machine, from a newer version, from a disk that was full, or from somebody who means harm.
Nothing in it is followed (symbolic links), waited for (pipes), believed (checksums, types, sense) or passed on to a terminal
as it stands.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from clustergauge import catalogue, folder, hosts, sums, valid
from clustergauge.catalogue import Catalogue
from clustergauge.errors import UsageError
from clustergauge.model import SCHEMA, Data, Judgement, Machine, Planned, Record, Run, Scalar

_ESCAPE = re.compile(rb"\\[^\"\\/]")
"""Escapes of JSON that may stand for an unprintable character."""
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})", re.ASCII)

MOST_PROBLEMS = 20
MOST_KEPT_BYTES = 4 << 20
"""A longer list of planned cases is not kept in case the next run has the same."""
D = TypeVar("D", Run, Machine, Record, Judgement)
Tail = Literal["refuse", "live", "cut"]


class _Version(msgspec.Struct):
    schema: str


class _Heading(Data, frozen=True, kw_only=True):
    """A `Run` with its planned cases left as they stand: the same fields, in the same order."""

    schema: str = SCHEMA
    run_id: str
    started: str
    finished: str = ""
    interrupted: bool = False
    command: list[str]
    suite: str
    code: str
    planned: msgspec.Raw
    settings: dict[str, Scalar] = msgspec.field(default_factory=dict[str, Scalar])
    left_out: dict[str, str] = msgspec.field(default_factory=dict[str, str])


_version_decoder = msgspec.json.Decoder(_Version)
_heading_decoder = msgspec.json.Decoder(_Heading)
_planned_decoder = msgspec.json.Decoder(list[Planned])
_run_decoder = msgspec.json.Decoder(Run)
_machine_decoder = msgspec.json.Decoder(Machine)
_record_decoder = msgspec.json.Decoder(Record)
_judgement_decoder = msgspec.json.Decoder(Judgement)


@dataclass(frozen=True)
class LoadedRun:
    """A run as its folder tells it.

    ``notes``: what a reader should know (interrupted, still being written), one line each.  ``catalogue``: the ceilings that its
    numbers are held against, if not ours alone.
    """

    run: Run
    machines: dict[str, Machine]
    records: list[Record]
    path: Path
    notes: list[str]
    catalogue: Catalogue | None = None


@dataclass(frozen=True)
class Ends:
    """How many whole records and bytes ``records.jsonl`` holds; ``torn``: what lies beyond them, in words (empty: nothing)."""

    records: int
    bytes: int
    torn: str = ""


def load(path: Path) -> LoadedRun:
    """Read a run folder.  Raises `UsageError` with one line for whatever is not as it was written.

    A last checksum without a record is an interruption and only noted.  A run that is still being written is read as far as it
    is whole.
    """
    writer = folder.writer_of(path)
    return read(path, "refuse" if writer is None else "live", writer)[0]


def read(path: Path, tail: Tail, writer: int | None = None) -> tuple[LoadedRun, Ends]:
    """`load`, and where the records end.

    ``tail``: a last line that was cut short is refused; or left out because process ``writer`` is busy with it (``live``); or
    left out to be ``cut`` off, if the run did not end.
    """
    try:
        with _no_collection():
            folder.check_folder(path)
            changed = sums.changed(path) if tail != "live" else {}
            by_line = {name: changed.pop(name, "") for name in (folder.RECORDS, folder.CHECKSUMS)}
            _refuse(changed)
            run, planned = _run(path / folder.RUN)
            found = sorted(map(_machine, folder.machine_files(path)), key=lambda machine: hosts.order(machine.host))
            machines = {machine.machine_id: machine for machine in found}
            torn = "refuse" if tail == "cut" and folder.ended_well(path) else tail
            records, ends = _records(path, run.run_id, planned, machines, torn)
            _refuse(by_line)  # a line that is not as it was is better told, and has been
            known = _ceilings(path)
    except OSError as error:
        raise folder.failed(path, error) from None
    notes: list[str] = []
    if writer is not None and writer != os.getpid():
        notes.append(f"still being written by {folder.process(writer)}")
    if ends.torn:
        notes.append(f"interrupted while writing: {ends.torn}")
    if run.finished and tail != "live" and not (path / folder.SUMS).exists():
        notes.append(f"the run ended but {folder.SUMS} is missing: {folder.RUN} and {folder.MACHINES}/ are unchecked")
    return LoadedRun(run, machines, records, path, notes, known), ends


def verify(path: Path) -> list[str]:
    """Check every checksum of a run folder; returns the problems, each naming file and line (none: intact).

    After the first 20 problems of the records the rest are counted.  Raises `UsageError` if it is no run folder.
    """
    folder.check_folder(path)
    live = folder.writer_of(path) is not None
    problems: list[str] = []
    more = 0
    try:
        for line in folder.lines(path, live):
            if line.state in ("broken", "cut short"):
                if len(problems) < MOST_PROBLEMS:
                    problems.append(line.problem)
                else:
                    more += 1
        if more:
            problems.append(f"{folder.located(path / folder.RECORDS)}: and {more} more lines")
        problems += [] if live else sums.changed(path).values()
        if not live and not (path / folder.SUMS).exists() and _run(path / folder.RUN)[0].finished:
            problems.append(f"{folder.located(path / folder.SUMS)}: missing, though the run ended")
    except UsageError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(str(folder.failed(path, error)))
    return problems


def judgement(path: Path, run_id: str) -> Judgement | None:
    """What was decided on the run when it ended; ``None`` where nothing was kept of that.  Raises `UsageError`."""
    file = path / folder.VERDICTS
    if not os.path.lexists(file):
        return None
    return _document(folder.content_of(file), _judgement_decoder, lambda j: valid.check_judgement(j, run_id), file)


def _ceilings(path: Path) -> Catalogue | None:
    """The ceilings of the user's that a run was judged by when it ended, if its folder keeps any; none that have no checksum."""
    file = path / folder.CEILINGS
    if not os.path.lexists(file) or folder.CEILINGS in sums.unsummed(path):
        return None
    folder.content_of(file)  # of reasonable size
    try:
        return catalogue.load(file)
    except UsageError as error:
        raise UsageError(valid.printable(str(error))) from None


# --------------------------------------------------------------------------------------------------------------------------
# documents


def _records(
    path: Path, run_id: str, planned: Mapping[valid.Key, Planned], machines: Collection[str], tail: Tail
) -> tuple[list[Record], Ends]:
    if tail != "live" and (found := _whole_records(path, run_id, planned, machines)):
        return found
    records: list[Record] = []
    seen: dict[tuple[valid.Key, str], int] = {}
    end = 0
    file = path / folder.RECORDS
    check = functools.partial(valid.check_record, run_id=run_id, planned=planned, machines=machines)
    for line in folder.lines(path, tail == "live"):
        if line.state == "unwritten" or (line.state == "cut short" and tail == "cut"):
            return records, Ends(len(records), end, line.problem)
        if line.problem:
            raise UsageError(line.problem)
        record = _document(line.raw, _record_decoder, check, file, line.number)
        first = seen.setdefault((valid.key_of(record), record.machine_id), line.number)
        if first != line.number:
            words = f"{valid.shown(record.case, 300)} on {record.device}, launch {record.launch}, is on line {first} too"
            raise UsageError(f"{folder.located(file, line.number)}: {words}")
        records.append(record)
        end += len(line.raw)
    return records, Ends(len(records), end)


def _whole_records(
    path: Path, run_id: str, planned: Mapping[valid.Key, Planned], machines: Collection[str]
) -> tuple[list[Record], Ends] | None:
    """As `_records`, of a file in which nothing is to be said of any line; ``None`` for all that is not so, or might not be.

    The records of a fleet are nearly all so.
    """
    lines = folder.whole(path)
    if not lines or max(map(len, lines)) > valid.TEXT_LENGTH or not _are_clean(lines):
        return None
    decode, check = _record_decoder.decode, valid.check_record
    records: list[Record] = []
    try:
        for raw in lines:
            record = decode(raw)
            check(record, run_id, planned, machines)
            records.append(record)
    except ValueError:
        return None
    if any(r.schema != SCHEMA for r in records):
        return None
    if len({(r.case, r.device, r.launch, r.machine_id) for r in records}) < len(records):
        return None
    return records, Ends(len(records), sum(map(len, lines)))


def _run(file: Path) -> tuple[Run, Mapping[valid.Key, Planned]]:
    raw = folder.content_of(file)
    if known := _of_known_plan(raw):
        return known
    planned: dict[valid.Key, Planned] = {}
    run = _document(raw, _run_decoder, lambda run: planned.update(valid.check_run(run)), file)
    return run, planned


def _of_known_plan(raw: bytes) -> tuple[Run, Mapping[valid.Key, Planned]] | None:
    """As `_run`; ``None`` for all that is not as it should be, or might not be.

    The nodes of a fleet have planned the same, and parsing and checking that is a quarter of reading a run: equal lists of
    planned cases, byte for byte, are looked at once.
    """
    if len(raw) > MOST_KEPT_BYTES or not _is_clean(raw):
        return None
    try:
        heading = _heading_decoder.decode(raw)
        if heading.schema != SCHEMA:
            return None
        cases, index = _plan(bytes(heading.planned))
        fields: dict[str, Any] = msgspec.structs.asdict(heading)
        fields["planned"] = list(cases)
        run = Run(**fields)
        valid.check_heading(run)
    except (ValueError, RecursionError):  # what is left as it stands may be nested however deep
        return None
    return run, index


@functools.lru_cache(4)
def _plan(raw: bytes) -> tuple[tuple[Planned, ...], Mapping[valid.Key, Planned]]:
    planned = _planned_decoder.decode(raw)
    return tuple(planned), valid.check_planned(planned)


def _machine(file: Path) -> Machine:
    machine = _document(folder.content_of(file), _machine_decoder, valid.check_machine, file)
    if machine.machine_id != file.stem:
        raise UsageError(f"{folder.located(file)}: describes another machine, {valid.shown(machine.machine_id)}")
    return machine


def _document(raw: bytes, decoder: msgspec.json.Decoder[D], check: Callable[[D], object], file: Path, line: int = 0) -> D:
    """Parse strictly, check, clean.  Every problem is a `UsageError`; it says so where a newer version may be the reason."""
    try:
        document = decoder.decode(raw)
    except ValueError as error:
        newer = _newer(_schema_of(raw), file, line)
        raise UsageError(f"{folder.located(file, line)}: {valid.printable(str(error)[:300])}{newer}") from None
    if document.schema != SCHEMA:
        _newer(document.schema, file, line)
    try:
        check(document)
        return document if _is_clean(raw) else valid.clean(document)
    except ValueError as error:
        raise UsageError(f"{folder.located(file, line)}: {error}") from None


def _is_clean(raw: bytes) -> bool:
    """Whether JSON text surely holds nothing for `valid.clean` to do; spares a walk through all its strings.

    Control characters that are not escaped are no JSON: whoever decodes the text refuses them.
    """
    escaped = b"\\" in raw
    if escaped and (len(raw) > valid.TEXT_LENGTH or _ESCAPE.search(raw)):
        return False
    if _has_long_text(raw):
        return False
    if raw.isascii():  # the most usual, and the fastest to see
        return b"\x7f" not in raw
    return raw.replace(b"\n", b"").decode(errors="replace").isprintable()


def _has_long_text(raw: bytes) -> bool:
    """Whether more than `valid.TEXT_LENGTH` bytes stand between two quotes.  Looks at few of the quotes: a tenth of the time."""
    start = 0
    while len(raw) - start > valid.TEXT_LENGTH:
        quote = raw.rfind(b'"', start, start + valid.TEXT_LENGTH + 1)
        if quote < 0:
            return True
        start = quote + 1
    return False


def _are_clean(lines: Sequence[bytes]) -> bool:
    """The same of lines that are no longer than `valid.TEXT_LENGTH`: most hold no sign but plain ones, which is seen at once."""
    text = b"".join(lines)
    return (text.isascii() and b"\\" not in text and b"\x7f" not in text) or all(map(_is_clean, lines))


def _schema_of(raw: bytes) -> str:
    try:
        return _version_decoder.decode(raw).schema
    except (ValueError, RecursionError):  # here unknown fields are skipped, however deep
        return SCHEMA


def _newer(schema: str, file: Path, line: int) -> str:
    """Words to add for a newer minor version, empty for our own or an older one.  Raises `UsageError` for another major."""
    match = _VERSION.fullmatch(schema)
    if not match:
        raise UsageError(f"{folder.located(file, line)}: schema {valid.shown(schema)} is not a version")
    (major, minor), ours = (int(match[1]), int(match[2])), tuple(map(int, SCHEMA.split(".")))
    if major > ours[0]:
        raise UsageError(
            f"{folder.located(file, line)}: written by a newer ClusterGauge (schema {schema}); this one reads {ours[0]}.x"
        )
    if major < ours[0]:
        raise UsageError(f"{folder.located(file, line)}: schema {schema} is unknown; this ClusterGauge reads {ours[0]}.x")
    return f" (written by a newer ClusterGauge, schema {schema}; this one knows {SCHEMA})" if minor > ours[1] else ""


@contextlib.contextmanager
def _no_collection() -> Generator[None]:
    """Records hold no cycles, and looking for them again and again takes a third of the time of reading many."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refuse(problems: Mapping[str, str]) -> None:
    for problem in filter(None, problems.values()):
        raise UsageError(problem)
