"""What was decided on a run when it ended, kept beside its records; and all of it decided anew from them, offline, anywhere.

``verdicts.json`` (`model.Judgement`, a verdict a line) with the user's files that it was decided by, as they were read:
``acceptance.toml`` and ``ceilings.toml``.  `recall`: by what a report judges the run again.  `verify` holds what was decided
against what the records say.  What it cannot see: a folder that somebody changed and decided anew, with checksums to match, is
sound in itself; a copy of its fingerprint elsewhere tells it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from clustergauge import (
    __version__,
    blame,
    code,
    criteria,
    exits,
    folder,
    loading,
    store,
    sums,
    topology,
    valid,
    verdicts,
)
from clustergauge.blamed import Fleet
from clustergauge.catalogue import Catalogue
from clustergauge.criteria import Acceptance
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from clustergauge.model import Baseline, Judgement, Run, Verdict
from clustergauge.units import counted
from clustergauge.verdicts import Asked

OK, CHANGED, CONTRADICTED, UNSURE = 0, 2, 3, 4
"""Exit codes of `verify`; `Checked` says which means what."""
CLOSE = 1e-9
"""Relative: how far another processor's arithmetic may carry a number."""
FIRST_LINE = 2
"""Where the verdicts begin in their file."""

_Key = tuple[str, str, str, str, str, int]


@dataclass
class Checked:
    """What verifying found, in lines for a person.

    ``code``: 0 all that was decided follows from the records · 2 a file is not as it was written · 3 a verdict does not follow ·
    4 verdicts differ, but other code decided them.
    """

    code: int = OK
    said: list[str] = field(default_factory=list[str])


# --------------------------------------------------------------------------------------------------------------------------
# kept


def exit_code_of(loaded: LoadedRun, found: Iterable[Verdict], fleet: Fleet | None) -> int:
    """What the results of a run come to, for every command that judges it: the worst of its cases and of its nodes.

    ``fleet``: its nodes held against each other (`blame.of_run`), if there are several.
    """
    device = str(loaded.run.settings.get("device", ""))
    of_cases = exits.exit_code(loaded.records, found, loaded.run.planned, device, loaded.machines.values())
    return exits.worst([of_cases, blame.exit_code(fleet)] if fleet else [of_cases])


def keep(
    loaded: LoadedRun, asked: Asked, found: Sequence[Verdict], exit_code: int, lists: Mapping[str, bytes] | None = None
) -> None:
    """Write what was decided into the folder of a run that has ended.  Raises `StoreError` and `UsageError`.

    ``lists``: of its nodes, by file name (some of `folder.JUDGED`).
    """
    baseline, parts = asked.baseline, asked.catalogue
    judgement = Judgement(
        run_id=loaded.run.run_id,
        version=__version__,
        code=code.digest(),
        exit_code=exit_code,
        accept=asked.name,
        ceilings=parts.path if parts else "",
        baseline=Baseline(run_id=baseline.run.run_id, facts=sums.facts(baseline.path)) if baseline else None,
        verdicts=list(found),
    )
    files = {folder.VERDICTS: _text(judgement)}
    if asked.text:
        files[folder.ACCEPTANCE] = asked.text.encode()
    if parts:
        files[folder.CEILINGS] = parts.content
    store.keep(loaded.path, files | dict(lists or {}))


def _text(judgement: Judgement) -> bytes:
    """One JSON document with a verdict a line, from line `FIRST_LINE` on."""
    head = msgspec.json.encode(replace(judgement, verdicts=[])).removesuffix(b"]}")
    return head + b"\n" + b",\n".join(map(msgspec.json.encode, judgement.verdicts)) + b"\n]}\n"


@dataclass(frozen=True)
class Recalled:
    """What a run is held against when it is shown again.

    ``notes``: what of it is not as it was when the run ended, in words.  ``owed``: what of it is missing, so that nothing passes.
    """

    asked: Asked
    notes: tuple[str, ...] = ()
    owed: tuple[str, ...] = ()


def recall(loaded: LoadedRun, results: Path, given: Asked) -> Recalled:
    """What the run was held against when it ended, as its folder keeps it, but for what is ``given`` now.

    ``results``: where its baseline may lie, if not beside it.  Raises `UsageError` for kept files that are no such files, and for
    a baseline that is this run itself.
    """
    if given.baseline and given.baseline.run.run_id == loaded.run.run_id:
        raise UsageError(f"--baseline {loaded.run.run_id}: that is this run itself, which reaches all of itself: name another")
    judgement = loading.judgement(loaded.path, loaded.run.run_id)
    if judgement is None:
        return _without(loaded, given, _why_none(loaded.run))
    if odd := sums.unsummed(loaded.path):
        words = f"{folder.located(loaded.path / odd[0])}: has no checksum in {folder.SUMS}"
        return _without(loaded, given, f"{words}: what was decided when the run ended is left aside", told=True)
    asked, notes, owed = given, list[str](), list[str]()
    if not given.name:
        text, acceptance = _acceptance(loaded, judgement)
        asked = dataclasses.replace(asked, acceptance=acceptance, name=judgement.accept, text=text)
    elif given.text != _text_of(loaded, judgement):
        notes.append(f"judged by {given.name}; when the run ended: by {judgement.accept or 'no criteria'}")
    if not given.catalogue:
        asked = dataclasses.replace(asked, catalogue=_catalogue(loaded, judgement))
    own, other = given.baseline, judgement.baseline
    if own is None:
        try:
            asked = dataclasses.replace(asked, baseline=_baseline(judgement, [loaded.path.parent, results], None))
        except UsageError as error:
            owed.append(f"judged without its baseline: {error}")
    elif other is None or (own.run.run_id, sums.facts(own.path)) != (other.run_id, other.facts):
        notes.append(f"baseline: {own.run.run_id}; when the run ended: {other.run_id if other else 'none'}")
    return Recalled(asked, tuple(notes), tuple(owed))


def missing(loaded: LoadedRun, asked: Asked) -> list[str]:
    """The flags that the run was begun with and ``asked`` has nothing of: held against less it passes more."""
    there = {"--accept": asked.name, "--baseline": asked.baseline, "--ceilings": asked.catalogue}
    said = {word.partition("=")[0] for word in loaded.run.command}
    return [flag for flag, kept in there.items() if flag in said and not kept]


def _without(loaded: LoadedRun, given: Asked, why: str, told: bool = False) -> Recalled:
    """For a run of which nothing is kept, ``why``: what is ``given`` alone, which is not all if it was begun with more.

    ``told``: the reader must know why, whatever it was begun with.
    """
    owed = list[str]()
    if lacking := missing(loaded, given):
        because = "" if told else f" ({why})"
        owed.append(f"begun with {' and '.join(lacking)}, of which nothing is kept{because}: judged without; say it again")
    return Recalled(given, (why,) if told else (), tuple(owed))


# --------------------------------------------------------------------------------------------------------------------------
# decided anew


def verify(path: Path, results: Path, baseline: Path | None = None) -> Checked:
    """Checks all checksums of a run, then decides everything anew from its records and compares.

    ``baseline``: the run it was held against, where it lies neither beside this one nor under ``results``.  Raises `UsageError`
    if it is no run folder, or the baseline is not to be had.
    """
    checked = Checked(said=store.verify(path))
    checked.said += [f"{folder.located(path / name)}: has no checksum in {folder.SUMS}" for name in sums.unsummed(path)]
    if checked.said:
        checked.code = CHANGED
        return checked
    loaded = store.load(path)
    checked.said += [f"{folder.located(path)}: intact ({counted(len(loaded.records), 'record')})", *loaded.notes]
    judgement = loading.judgement(path, loaded.run.run_id)
    if judgement is None:
        checked.said.append(f"no verdicts were kept ({_why_none(loaded.run)}): there is nothing to hold the records against")
        return checked
    asked = _asked(loaded, judgement, _baseline(judgement, [path.parent, results], baseline))
    loaded = dataclasses.replace(loaded, catalogue=asked.catalogue)
    found = verdicts.judge(loaded.records, loaded.run.planned, loaded.machines, asked)
    exit_code = exit_code_of(loaded, found, blame.of_run(loaded, asked.topology))
    told = list(_differences(path / folder.VERDICTS, judgement, found, exit_code))
    decided = f"decided by ClusterGauge {judgement.version}, code {judgement.code}"
    if not told:
        whole = "its only verdict" if len(found) == 1 else f"all {len(found)} verdicts"
        checked.said.append(f"{whole} and exit code {exit_code} follow from the records ({decided})")
        checked.said += _fingerprint(path)
        return checked
    same = (judgement.version, judgement.code) == (__version__, code.digest())
    checked.code = CONTRADICTED if same else UNSURE
    checked.said += told
    if same:
        differ = counted(len(told), "finding does", "findings do")
        checked.said.append(f"{differ} not follow from the records, {decided}, which is this one: the folder was altered")
    else:
        differ = counted(len(told), "finding differs", "findings differ")
        checked.said.append(
            f"{differ}, {decided}; this is {__version__}, code {code.digest()}: formulas were mended "
            "since, or something was altered: verify of that version tells which"
        )
    return checked


def _why_none(run: Run) -> str:
    return "an earlier version measured it, or it was stopped before it was judged" if run.finished else "it has not ended"


def _fingerprint(path: Path) -> Iterator[str]:
    """One number that stands for all of the folder but its logs."""
    if folder.ended_well(path):
        digest = hashlib.sha256(folder.content_of(path / folder.SUMS)).hexdigest()
        yield f"fingerprint {digest}: note it elsewhere; nothing here is signed, and who can write here can write all of it anew"


def _baseline(judgement: Judgement, beside: Sequence[Path], named: Path | None) -> LoadedRun | None:
    """The run that this one was held against, as it was then."""
    wanted = judgement.baseline
    if wanted is None:
        return None
    paths = [named] if named else [folder_ / wanted.run_id for folder_ in beside]
    path = next((p for p in paths if (p / folder.RUN).is_file()), None)
    if path is None:
        raise UsageError(f"this run was held against {wanted.run_id}, which is not beside it: name it with --baseline RUN")
    loaded = store.load(path)
    if (loaded.run.run_id, sums.facts(path)) != (wanted.run_id, wanted.facts):
        raise UsageError(f"{folder.located(path)}: not the baseline {wanted.run_id} as it was: its records or machines differ")
    return loaded


def _asked(loaded: LoadedRun, judgement: Judgement, baseline: LoadedRun | None) -> Asked:
    """What the run was held against, from the files in its folder."""
    acceptance = _acceptance(loaded, judgement)[1]
    return Asked(acceptance, baseline, _catalogue(loaded, judgement), topology.of_run(loaded.run))


def _acceptance(loaded: LoadedRun, judgement: Judgement) -> tuple[str, Acceptance]:
    """The criteria that are kept, as they stand and parsed."""
    text = _text_of(loaded, judgement)
    try:
        return text, criteria.parse(text, folder.located(loaded.path / folder.ACCEPTANCE)) if text else criteria.NOTHING
    except UsageError as error:
        raise UsageError(valid.printable(str(error))) from None


def _text_of(loaded: LoadedRun, judgement: Judgement) -> str:
    if not judgement.accept:
        return ""
    return folder.content_of(_kept(loaded, folder.ACCEPTANCE)).decode(errors="replace")


def _catalogue(loaded: LoadedRun, judgement: Judgement) -> Catalogue | None:
    if not judgement.ceilings:
        return None
    _kept(loaded, folder.CEILINGS)
    return loaded.catalogue


def _kept(loaded: LoadedRun, name: str) -> Path:
    if not (loaded.path / name).is_file():
        raise UsageError(f"{folder.located(loaded.path / name)}: missing, though the verdicts came from it")
    return loaded.path / name


def _differences(file: Path, judgement: Judgement, found: Iterable[Verdict], exit_code: int) -> Iterator[str]:
    """What was decided otherwise, or not at all: with the line, and both values."""
    now = dict(_keyed(found))
    for number, (key, kept) in enumerate(_keyed(judgement.verdicts), FIRST_LINE):
        other = now.pop(key, None)
        if other is None:
            yield f"{folder.located(file, number)}: {_place(kept)}: says {_words(kept)}, the records say nothing of it"
        elif not _same(kept, other):
            yield f"{folder.located(file, number)}: {_place(kept)}: says {_words(kept)}, the records say {_words(other)}"
    for left in now.values():
        yield f"{folder.located(file)}: {_place(left)}: says nothing, the records say {_words(left)}"
    if judgement.exit_code != exit_code:
        yield f"{folder.located(file, 1)}: says exit code {judgement.exit_code}, the records say {exit_code}"


def _keyed(found: Iterable[Verdict]) -> Iterator[tuple[_Key, Verdict]]:
    """What each verdict is about; several about the same are told apart by their order."""
    count: dict[tuple[str, ...], int] = {}
    for verdict in found:
        key = (verdict.case, verdict.device, verdict.machine_id, verdict.metric, verdict.source)
        count[key] = count.get(key, -1) + 1
        yield (*key, count[key]), verdict


def _same(a: Verdict, b: Verdict) -> bool:
    for name in a.__struct_fields__:
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, float) and isinstance(other, float):
            if not math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE if name == "margin" else 0.0):
                return False
        elif one != other and not (isinstance(one, str) and valid.printable(one) == valid.printable(other)):
            return False
    return True


def _place(verdict: Verdict) -> str:
    return " on ".join(filter(None, (verdict.case, verdict.device))) + (f" of {verdict.machine_id}" if verdict.machine_id else "")


def _words(verdict: Verdict) -> str:
    told: list[str] = [verdict.verdict]
    if verdict.value is not None:
        told.append(f"{verdict.value:.10g} {verdict.unit}")
    if verdict.bound is not None:
        told.append(f"bound {verdict.bound:.10g}")
    told += [repr(text) for text in (verdict.reason, verdict.remark) if text]
    return ", ".join(told)
