"""Many runs reduced to what a fleet is judged by: a few numbers for each case on each device, on all cores.

Reading is by far the most of the work (every record is parsed, checked and hashed), so parts of the list of runs are read by
processes of their own, and only the reduced part of a run is kept.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import msgspec

from clustergauge import between, columns, folder, hosts, launches, loading
from clustergauge.blamed import Joint
from clustergauge.columns import Unit, Units
from clustergauge.errors import UsageError
from clustergauge.groups import Failed
from clustergauge.loading import LoadedRun
from clustergauge.model import Data, Machine, Record
from clustergauge.presence import Since

CHUNK = 16
"""Runs that one process reads at a time."""
APART = 32
"""Below this many runs nothing is gained by other processes."""
MOST_TOLD = 20
"""Notes on what a newer run outdid."""
ALL_GPUS = "cuda:all"
"""The device of a case on all GPUs of a machine."""
BEFORE = "in a run before its newest,"


class Part(Data, frozen=True):
    """What some runs come to.

    ``folders``: by machine, of the runs that measured it and did more than confirm, by when they began.  ``unreadable``: folders
    that could not be read, and why.
    ``spanned``: the machines that were in a case over nodes that has a number; ``failed``: what such cases say of one, and pairs
    within one; ``cut``: why one was not in all that were planned with it (lost, or kept out); ``joint``: what such cases say of
    nobody alone.  ``newest``: when the last run began in which a machine has a number in such a case, by machine and case.
    ``fell``: the links that trained down while a case ran, by machine, each when its run began and in words (a later run finds
    them so at its start).  ``gpus``: when the newest run began that says something of its GPUs, and what (`between.gpus`).
    ``uuids``: of the GPUs of each machine by when the run began and by device; of all of them together under ``cuda:all``.
    ``topologies``: what runs remember of the leaves that hosts hang on, each once.
    """

    machines: dict[str, Machine]
    units: Units
    left_out: dict[str, str]
    """Nodes that a run could not measure, and why."""
    notes: list[str]
    folders: dict[str, dict[str, str]]
    unreadable: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    spanned: list[str] = msgspec.field(default_factory=list[str])
    newest: dict[str, dict[str, str]] = msgspec.field(default_factory=dict[str, dict[str, str]])
    failed: list[tuple[Since, Failed]] = msgspec.field(default_factory=list[tuple[Since, Failed]])
    cut: list[tuple[Since, str]] = msgspec.field(default_factory=list[tuple[Since, str]])
    joint: list[tuple[Since, Joint]] = msgspec.field(default_factory=list[tuple[Since, Joint]])
    fell: dict[str, list[tuple[str, str]]] = msgspec.field(default_factory=dict[str, list[tuple[str, str]]])
    gpus: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict[str, tuple[str, str]])
    uuids: dict[str, dict[str, dict[str, str]]] = msgspec.field(default_factory=dict[str, dict[str, dict[str, str]]])
    topologies: list[str] = msgspec.field(default_factory=list[str])


def read(paths: Sequence[Path]) -> Part:
    """All runs, reduced.  A folder that is not sound costs itself alone; raises `UsageError` where not one is sound."""
    part = _read(paths)
    if paths and len(part.unreadable) == len(paths):
        count = len(paths) - 1
        more = f" (and {count} more run{'s' * (count > 1)} that cannot be read)" if count else ""
        raise UsageError(next(iter(part.unreadable.values())) + more)
    return part


def _read(paths: Sequence[Path]) -> Part:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if len(paths) < APART or cores < 2:
        return joined(map(_part, paths))
    chunks = [[str(p) for p in paths[n : n + CHUNK]] for n in range(0, len(paths), CHUNK)]
    sys.stdout.flush()
    try:
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=gc.disable) as pool:
            return joined(msgspec.msgpack.decode(raw, type=Part) for raw in pool.map(_chunk, chunks))
    except BrokenProcessPool:  # nothing in it ends a process; who does is the kernel, for memory
        raise MemoryError from None


def _chunk(paths: list[str]) -> bytes:
    return msgspec.msgpack.encode(joined(_part(Path(p)) for p in paths))


def _part(path: Path) -> Part:
    """One folder, reduced, whatever is in it."""
    try:
        loaded = loading.load(path)
        part = part_of(loaded)
    except (UsageError, MemoryError) as error:
        return Part({}, columns.of(()), {}, [], {}, {folder.located(path): str(error) or "out of memory"})
    if own := loaded.catalogue:  # the same words for all that keep it
        part.notes.append(f"runs that keep ceilings of their user's (SHA-256 {own.sha256[:12]}…) are held against those")
    return part


def joined(parts: Iterable[Part]) -> Part:
    """Parts as one.  Where several runs measured a machine, the newest counts: in each case (`columns.joined`; over nodes:
    `presence.Since`), and what it is.

    Fresh launches that a run of their own made (``fleet --confirm``) go to what they are to confirm, the last such run's alone.
    """
    parts = list(parts)
    machines: dict[str, Machine] = {}
    left_out: dict[str, str] = {}
    notes: list[str] = []
    folders: dict[str, dict[str, str]] = {}
    unreadable: dict[str, str] = {}
    spanned: dict[str, None] = {}
    newest: dict[str, dict[str, str]] = {}
    failed: list[tuple[Since, Failed]] = []
    cut: list[tuple[Since, str]] = []
    joint: list[tuple[Since, Joint]] = []
    fell: dict[str, list[tuple[str, str]]] = {}
    gpus: dict[str, tuple[str, str]] = {}
    uuids: dict[str, dict[str, dict[str, str]]] = {}
    topologies = list(dict.fromkeys(text for part in parts for text in part.topologies))
    for part in parts:
        for machine_id, machine in part.machines.items():
            own = part.folders.get(machine_id, {})
            if machine_id not in machines or max(own, default="") >= max(folders.get(machine_id, ()), default=""):
                machines[machine_id] = machine
            folders.setdefault(machine_id, {}).update(own)
        left_out |= part.left_out
        notes += part.notes
        unreadable |= part.unreadable
        failed += part.failed
        cut += part.cut
        joint += part.joint
        spanned |= dict.fromkeys(part.spanned)
        for machine_id, cases in part.newest.items():
            mine = newest.setdefault(machine_id, {})
            mine |= {case: max(began, mine.get(case, "")) for case, began in cases.items()}
        for machine_id, words in part.fell.items():
            fell.setdefault(machine_id, []).extend(words)
        gpus |= {m: said for m, said in part.gpus.items() if m not in gpus or said[0] >= gpus[m][0]}
        for machine_id, by_run in part.uuids.items():
            uuids.setdefault(machine_id, {}).update(by_run)
    gone = [one for machine_id, by_run in uuids.items() if len(by_run) > 1 for one in _gone(machine_id, by_run)]
    units, outdone = columns.joined([part.units for part in parts], gone)
    notes = list(dict.fromkeys([*notes, *_replaced(gone, machines)]))
    old = [(since, one) for since, one in failed if since.outdone(newest)]
    over = [f"{machines[since.machines[0]].host}: {BEFORE} {one.case} on {one.device}: {one.reason}" for since, one in old]
    gone = [one for since, one in joint if since.outdone(newest)]
    over += [f"{BEFORE} {one.case} on {one.device}: {one.word}: {one.reason}" for one in gone]
    notes += _outdone(outdone, machines, over)
    failed = [(since, one) for since, one in failed if not since.outdone(newest)]
    joint = [(since, one) for since, one in joint if not since.outdone(newest)]
    cut = [(since, why) for since, why in cut if not since.outdone(newest)]
    folders = {machine_id: of_machine for machine_id, of_machine in folders.items() if of_machine}
    fell = {m: [one for one in told if one[0] >= max(folders.get(m, ()), default="")] for m, told in fell.items()}
    spans = list(spanned)
    return Part(
        machines, units, left_out, notes, folders, unreadable, spans, newest, failed, cut, joint, fell, gpus, uuids, topologies
    )


def _outdone(units: Iterable[Unit], machines: Mapping[str, Machine], over: Iterable[str]) -> list[str]:
    """What was wrong in a run and is not in a newer one, which counts: told none the less.  ``over``: of cases over nodes."""
    own = (f"{machines[u.machine].host}: {BEFORE} {u.case} on {u.device}: {u.trouble}" for u in units if u.trouble)
    wrong = dict.fromkeys([*own, *over])
    told = list(wrong)[:MOST_TOLD]
    return told + ([f"… and {len(wrong) - len(told)} more of runs before the newest"] if len(wrong) > len(told) else [])


def _gone(machine_id: str, by_run: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """The devices (machine, device, run) that are not those of the newest run any more, though they have their numbers."""
    now = by_run[max(by_run)]
    return [
        (machine_id, device, began)
        for began, then in by_run.items()
        for device, uuid in then.items()
        if device in now and now[device] != uuid
    ]


def _replaced(gone: Iterable[tuple[str, str, str]], machines: Mapping[str, Machine]) -> list[str]:
    """That they were, each once."""
    found = dict.fromkeys((machine_id, device) for machine_id, device, _ in gone if device != ALL_GPUS)
    told = [f"{machines[m].host}: {device} is another GPU than before: what that one did is left aside" for m, device in found]
    return told[:MOST_TOLD] + ([f"… and {len(told) - MOST_TOLD} more GPUs that were replaced"] if len(told) > MOST_TOLD else [])


def _uuids(machine: Machine) -> dict[str, str]:
    """Of its GPUs by device, where all are known."""
    found = {f"cuda:{gpu.index}": gpu.uuid for gpu in machine.gpus if gpu.uuid}
    return found | {ALL_GPUS: " ".join(found.values())} if found and len(found) == len(machine.gpus) else {}


def part_of(loaded: LoadedRun) -> Part:
    """One run, reduced.  The times of ranks on several hosts are nobody's own: of those is kept who was there, and who failed."""
    alone: list[Record] = []
    together: list[Record] = []
    spanning = {device for device in {r.device for r in loaded.records} if hosts.spans(device)}
    for record in loaded.records:
        if record.device in spanning or (len(record.placement) > 1 and len({place.host for place in record.placement}) > 1):
            together.append(record)
        elif record.status in ("ok", "wrong", "error"):
            alone.append(record)
    notes = [f"{loaded.run.run_id}: {note}" for note in loaded.notes]
    began, first = loaded.run.started, {r.machine_id for r in loaded.records if not r.confirms}
    there = between.there(loaded, together)
    return Part(
        machines=loaded.machines,
        units=columns.of(launches.units(loaded, alone)),
        left_out=dict(loaded.run.left_out),
        notes=notes,
        folders={machine: {began: str(loaded.path)} for machine in loaded.machines if machine in first},
        spanned=sorted({machine_id for _, machine_id in there}),
        newest=between.newest(loaded, there),
        failed=between.failed(loaded),
        cut=between.cut(loaded, there),
        joint=between.joint(loaded, together),
        fell={machine_id: [(began, words) for words in told] for machine_id, told in between.fell(loaded).items()},
        gpus={machine_id: (began, why) for machine_id, why in between.gpus(loaded).items()},
        uuids={m: {began: uuids} for m, machine in loaded.machines.items() if (uuids := _uuids(machine))},
        topologies=[str(text)] if (text := loaded.run.settings.get("topology")) else [],
    )
