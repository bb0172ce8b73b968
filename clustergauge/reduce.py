"""Many runs reduced to what a fleet is judged by: a few numbers for each case on each device, on all cores.

Reading is by far the most of the work (every record is parsed, checked and hashed), so parts of the list of runs are read by
processes of their own, and only the reduced part of a run is kept.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from clustergauge import believed, between, columns, folder, glance, hosts, loading, readings
from clustergauge.blamed import Joint
from clustergauge.columns import Unit, Units, Work
from clustergauge.errors import UsageError
from clustergauge.groups import Failed
from clustergauge.loading import LoadedRun
from clustergauge.model import Data, Machine, Record
from clustergauge.presence import Since

TAIL_SAMPLES = 10
"""The fewest samples whose 90th percentile says something."""
CHUNK = 16
"""Runs that one process reads at a time."""
APART = 32
"""Below this many runs nothing is gained by other processes."""
MOST_TOLD = 20
"""Notes on what a newer run outdid."""
BEFORE = "in a run before its newest,"

Key = tuple[str, str, str]
"""Machine, case, device."""


class Part(Data, frozen=True):
    """What some runs come to.

    ``folders``: by machine, of the runs that measured it and did more than confirm, by when they began.  ``unreadable``: folders
    that could not be read, and why.
    ``spanned``: the machines that were in a case over nodes that has a number; ``failed``: what such cases say of one, and pairs
    within one; ``cut``: why one was not in all that were planned with it (lost, or kept out); ``joint``: what such cases say of
    nobody alone.  ``newest``: when the last run began in which a machine has a number in such a case, by machine and case.
    ``fell``: the links that trained down while a case ran, by machine, each when its run began and in words (a later run finds
    them so at its start).  ``gpus``: when the newest run began that says something of its GPUs, and what (`between.gpus`).
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
        return part_of(loading.load(path))
    except (UsageError, MemoryError) as error:
        return Part({}, columns.of(()), {}, [], {}, {folder.located(path): str(error) or "out of memory"})


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
    units, outdone = columns.joined([part.units for part in parts])
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
    return Part(machines, units, left_out, notes, folders, unreadable, spans, newest, failed, cut, joint, fell, gpus, topologies)


def _outdone(units: Iterable[Unit], machines: Mapping[str, Machine], over: Iterable[str]) -> list[str]:
    """What was wrong in a run and is not in a newer one, which counts: told none the less.  ``over``: of cases over nodes."""
    own = (f"{machines[u.machine].host}: {BEFORE} {u.case} on {u.device}: {u.trouble}" for u in units if u.trouble)
    wrong = dict.fromkeys([*own, *over])
    told = list(wrong)[:MOST_TOLD]
    return told + ([f"… and {len(wrong) - len(told)} more of runs before the newest"] if len(wrong) > len(told) else [])


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
    own: dict[Key, list[_Launch]] = {}
    for record, middle, tail in zip(alone, *_middles_and_tails(alone), strict=True):
        own.setdefault((record.machine_id, record.case, record.device), []).append(_Launch(record, middle, tail))
    began, missing = loaded.run.started, _missing(loaded)
    names, lie = {m: machine.node for m, machine in loaded.machines.items()}, _lie(loaded)
    units = [_unit(key, launches, began, missing.pop(key, 0), names.get(key[0], ""), lie) for key, launches in own.items()]
    units += [Unit(case, device, machine, began, missing=count) for (machine, case, device), count in missing.items()]
    notes = [f"{loaded.run.run_id}: {note}" for note in loaded.notes]
    first = {r.machine_id for r in loaded.records if not r.confirms}
    there = between.there(loaded, together)
    return Part(
        machines=loaded.machines,
        units=columns.of(units),
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
        topologies=[str(text)] if (text := loaded.run.settings.get("topology")) else [],
    )


class _Launch(NamedTuple):
    """``middle``, ``tail``: ln of the median and of the 90th percentile of its samples, not a number where there are too few."""

    record: Record
    middle: float
    tail: float


Lie = Callable[[Sequence[_Launch]], str]
"""Why measured launches have no number to believe, in words; empty where they have one."""


def _unit(key: Key, launches: list[_Launch], began: str, missing: int, node: str, lie: Lie) -> Unit:
    """``node``: what the user called the machine."""
    machine, case, device = key
    records = [launch.record for launch in launches]
    ordinary = [launch for launch in launches if not launch.record.confirms]
    if trouble := _trouble(launches, node, lie):
        return Unit(case, device, machine, began, trouble=trouble, missing=missing, confirms=not ordinary)
    first = (ordinary or launches)[0].record
    assert first.workload
    y, tail = _means(ordinary)
    fresh_y = fresh_tail = math.nan
    if len(ordinary) < len(launches) - 1:  # one launch does not confirm
        fresh_y, fresh_tail = _means([launch for launch in launches if launch.record.confirms])
    digests = {r.measurement.digest for r in records if r.measurement and r.measurement.digest}
    digest = digests.pop() if len(digests) == 1 else "-" if digests else ""
    work = Work(first.workload, first.ranks)
    return Unit(case, device, machine, began, work, y, tail, fresh_y, fresh_tail, digest, "", missing, not ordinary)


def _middles_and_tails(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """The numbers of a `_Launch` for each record.  Those with as many samples are one table: one at a time it takes a fifth of
    reading a fleet."""
    of_count: dict[int, list[int]] = {}
    taken = [readings.samples(record) for record in records]
    for place, samples in enumerate(taken):
        of_count.setdefault(len(samples), []).append(place)
    middles, tails = np.full(len(records), math.nan), np.full(len(records), math.nan)
    for count, places in of_count.items():
        if count:
            table = np.sort(np.array([taken[place] for place in places]), axis=1)
            middles[places] = _ln(table, 0.5)
            if count >= TAIL_SAMPLES:
                tails[places] = _ln(table, 0.9)
    return middles.tolist(), tails.tolist()


def _ln(table: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """ln of a quantile of each line of sorted samples, interpolated between neighbours."""
    place = quantile * (table.shape[1] - 1)
    low = int(place)
    below, above = table[:, low], table[:, min(low + 1, table.shape[1] - 1)]
    return np.log(below + (above - below) * (place - low))


def _means(launches: Sequence[_Launch]) -> tuple[float, float]:
    """Over launches; of the tails, over those that have one."""
    if len(launches) == 1:
        return launches[0].middle, launches[0].tail
    tails = [launch.tail for launch in launches if not math.isnan(launch.tail)]
    return _mean([launch.middle for launch in launches]), _mean(tails)


def _trouble(launches: Sequence[_Launch], node: str, lie: Lie) -> str:
    """Why these launches have no number to believe: wrong, an error, or invalid; and lost, where they went with the node."""
    lost = ""
    for record, *_ in launches:
        if record.status == "error" and hosts.went_with(record.reason, node):
            lost = f"{columns.LOST}{record.reason[:200]}"
        elif record.status != "ok":
            return f"{record.status}: {record.reason[:200]}"
    return lie([launch for launch in launches if launch.record.status == "ok"] if lost else launches) or lost


def _lie(loaded: LoadedRun) -> Lie:
    """What tells why measured launches of one case on one machine have no number to believe (`believed.number`)."""
    limits, look = believed.limits_of(loaded.machines, loaded.catalogue), glance.of(loaded.catalogue)

    def lie(launches: Sequence[_Launch]) -> str:
        for record, middle, _ in launches:
            if look.doubts(record, loaded.machines.get(record.machine_id), middle):
                return believed.number([launch.record for launch in launches], limits)[0]
        return ""

    return lie


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _missing(loaded: LoadedRun) -> dict[Key, int]:
    """How many planned launches have no record at all: of each node they were planned for, or of the only machine.

    Launches that were to confirm are no part of it: without them a suspect stays one.
    """
    recorded = {(r.machine_id, r.case, r.device, r.launch) for r in loaded.records}
    by_host = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    alone = list(loaded.machines) if len(loaded.machines) == 1 else []
    named: dict[str, list[str]] = {}
    missing: Counter[Key] = Counter()
    for plan in loaded.run.planned:
        if plan.skip or plan.nodes > 1 or plan.confirms:
            continue
        if plan.hosts not in named:  # the same few lists again and again
            named[plan.hosts] = [by_host[h] for h in hosts.expand(plan.hosts) if h in by_host] if plan.hosts else alone
        for machine in named[plan.hosts]:
            if (machine, plan.case, plan.device, plan.launch) not in recorded:
                missing[machine, plan.case, plan.device] += 1
    return missing
