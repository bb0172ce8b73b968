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
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import msgspec

from clustergauge import accept, between, folder, groups, hosts, loading, metrics, topology
from clustergauge.between import Joint
from clustergauge.errors import UsageError
from clustergauge.groups import Failed
from clustergauge.loading import LoadedRun
from clustergauge.model import Data, Machine, Record, Workload
from clustergauge.presence import Launch, launch_of

TAIL_SAMPLES = 10
"""The fewest samples whose 90th percentile says something."""
CHUNK = 16
"""Runs that one process reads at a time."""
APART = 32
"""Below this many runs nothing is gained by other processes."""


class Unit(Data, frozen=True, array_like=True, gc=False):
    """One case on one device of one machine: all launches of a run together.

    ``y``, ``tail``: ln of the median time (s) and of its 90th percentile, ``None`` where all launches are fresh; ``fresh``,
    ``fresh_tail``: the mean of both over fresh launches.  ``digest``: of the output, where all launches agree on one; ``-`` where
    they do not.  ``trouble``: wrong or error, in words.
    """

    case: str
    device: str
    machine_id: str
    y: float | None = None
    tail: float | None = None
    fresh: float | None = None
    digest: str = ""
    trouble: str = ""
    work: int = 0
    """Index into the works of its `Part`."""
    fresh_tail: float | None = None


class Work(Data, frozen=True, array_like=True):
    """What a unit did: devices are compared only where this is equal."""

    workload: Workload
    ranks: int


class Part(Data, frozen=True):
    """What some runs come to.  ``unreached``: planned for a machine and without a record, by machine.

    ``folders``: of the run that measured a machine, by machine.  ``unreadable``: folders that could not be read, and why.
    ``spanned``: in how many launches over nodes that have a number each machine was; ``failed``: what such cases say of one;
    ``cut``: why it was not in all that were planned with it (lost, or kept out).  ``joint``: what such cases say of nobody alone.
    ``fell``: the links that trained down while a case ran, in words, by machine; ``unusable``: why its GPUs could not be used.
    """

    machines: dict[str, Machine]
    units: list[Unit]
    works: list[Work]
    unreached: dict[str, int]
    left_out: dict[str, str]
    """Nodes that a run could not measure, and why."""
    notes: list[str]
    folders: dict[str, str]
    unreadable: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    spanned: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    failed: dict[str, list[Failed]] = msgspec.field(default_factory=dict[str, list[Failed]])
    cut: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    joint: list[Joint] = msgspec.field(default_factory=list[Joint])
    fell: dict[str, list[str]] = msgspec.field(default_factory=dict[str, list[str]])
    unusable: dict[str, str] = msgspec.field(default_factory=dict[str, str])


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
            return joined(msgspec.json.decode(raw, type=Part) for raw in pool.map(_chunk, chunks))
    except BrokenProcessPool:  # nothing in it ends a process; who does is the kernel, for memory
        raise MemoryError from None


def _chunk(paths: list[str]) -> bytes:
    return msgspec.json.encode(joined(_part(Path(p)) for p in paths))


def _part(path: Path) -> Part:
    """One folder, reduced, whatever is in it."""
    try:
        return part_of(loading.load(path))
    except (UsageError, MemoryError) as error:
        return Part({}, [], [], {}, {}, [], {}, {folder.located(path): str(error) or "out of memory"})


def joined(parts: Iterable[Part]) -> Part:
    """Parts as one; equal works become one, and a machine that several runs describe is as the last says.

    Fresh launches that a run of their own made (``fleet --confirm``) go to what they are to confirm, the last such run's alone.
    """
    machines: dict[str, Machine] = {}
    units: list[Unit] = []
    works: dict[Work, int] = {}
    unreached: dict[str, int] = {}
    left_out: dict[str, str] = {}
    notes: list[str] = []
    folders: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    spanned: Counter[str] = Counter()
    failed: dict[str, list[Failed]] = {}
    cut: dict[str, str] = {}
    joint: list[Joint] = []
    fell: dict[str, list[str]] = {}
    unusable: dict[str, str] = {}
    for part in parts:
        machines = part.machines | machines if _only_fresh(part) else machines | part.machines
        folders |= part.folders
        moved = [works.setdefault(work, len(works)) for work in part.works]
        if moved == list(range(len(moved))):
            units += part.units
        else:
            units += [msgspec.structs.replace(u, work=moved[u.work]) for u in part.units]
        for machine, count in part.unreached.items():
            unreached[machine] = unreached.get(machine, 0) + count
        left_out |= part.left_out
        notes += part.notes
        unreadable |= part.unreadable
        spanned.update(part.spanned)
        cut |= part.cut
        joint += part.joint
        for machine, found in part.failed.items():
            failed.setdefault(machine, []).extend(found)
        for machine, words in part.fell.items():
            fell.setdefault(machine, []).extend(words)
        unusable = {m: why for m, why in unusable.items() if m not in part.machines} | part.unusable
    units = _with_fresh(units)
    return Part(
        machines,
        units,
        list(works),
        unreached,
        left_out,
        notes,
        folders,
        unreadable,
        dict(spanned),
        failed,
        cut,
        joint,
        fell,
        unusable,
    )


def _only_fresh(part: Part) -> bool:
    return bool(part.units) and not part.folders


def _with_fresh(units: list[Unit]) -> list[Unit]:
    """Units that hold fresh launches alone put into those of the same case, device and machine."""
    alone = {(u.case, u.device, u.machine_id): u for u in units if u.y is None and not u.trouble and u.fresh is not None}
    if not alone:
        return units
    found: list[Unit] = []
    for unit in units:
        key = unit.case, unit.device, unit.machine_id
        fresh = alone.get(key)
        if unit.y is None or fresh is None or fresh.work != unit.work:
            found.append(unit)
            continue
        digest = unit.digest if fresh.digest in ("", unit.digest) else "-"
        found.append(msgspec.structs.replace(unit, fresh=fresh.fresh, fresh_tail=fresh.fresh_tail, digest=digest))
    return found


def part_of(loaded: LoadedRun) -> Part:
    """One run, reduced.  The times of ranks on several hosts are nobody's own: of those is kept who was there, and who failed."""
    own: dict[tuple[str, str, str], list[Record]] = {}
    together: list[Record] = []
    spanning = {device for device in {r.device for r in loaded.records} if hosts.spans(device)}
    for record in loaded.records:
        if record.device in spanning or (len(record.placement) > 1 and len({place.host for place in record.placement}) > 1):
            together.append(record)
        elif record.status in ("ok", "wrong", "error"):
            own.setdefault((record.machine_id, record.case, record.device), []).append(record)
    works: dict[Work, int] = {}
    units = [_unit(key, records, works) for key, records in own.items()]
    notes = [f"{loaded.run.run_id}: {note}" for note in loaded.notes]
    first = {r.machine_id for r in loaded.records if not r.confirms}
    folders = {machine: str(loaded.path) for machine in loaded.machines if machine in first}
    there = _there(loaded, together)
    return Part(
        machines=loaded.machines,
        units=units,
        works=list(works),
        unreached=_unreached(loaded),
        left_out=dict(loaded.run.left_out),
        notes=notes,
        folders=folders,
        spanned=dict(Counter(machine_id for _, machine_id in there)),
        failed=_failed(loaded),
        cut=_cut(loaded, there),
        joint=between.joint(loaded, together),
        fell=between.fell(loaded),
        unusable=between.unusable(loaded),
    )


def _there(loaded: LoadedRun, together: Iterable[Record]) -> set[tuple[Launch, str]]:
    """The launches over nodes that have a number, with each machine that was in them."""
    by_host = {machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    return {
        (launch_of(record), by_host[place.host])
        for record in together
        if record.status == "ok"
        for place in record.placement
        if place.host in by_host
    }


def _failed(loaded: LoadedRun) -> dict[str, list[Failed]]:
    """What pairs and groups say of single machines; the loss of one node is no fault of the others."""
    by_host = {machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    told = [r for r in loaded.records if not hosts.tells_of_lost(r.reason, loaded.run.left_out)]
    found: dict[str, list[Failed]] = {}
    for one in groups.failed(told, loaded.machines.values(), topology.of_run(loaded.run)):
        if one.host in by_host:
            found.setdefault(by_host[one.host], []).append(one)
    return found


def _cut(loaded: LoadedRun, there: set[tuple[Launch, str]]) -> dict[str, str]:
    """Machines that were lost or kept out, if they were to be in more over nodes than they were, and why."""
    out = {m: why for m, machine in loaded.machines.items() if (why := loaded.run.left_out.get(machine.node or machine.host))}
    if not out:
        return {}
    names = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    found: dict[str, str] = {}
    for plan in loaded.run.planned:
        if plan.nodes > 1 and not plan.skip and not plan.confirms:
            members = (names.get(name, "") for name in hosts.expand(plan.hosts))
            found |= {m: out[m] for m in members if m in out and (launch_of(plan), m) not in there}
    return found


def _unit(key: tuple[str, str, str], records: list[Record], works: dict[Work, int]) -> Unit:
    machine_id, case, device = key
    if trouble := _trouble(records):
        return Unit(case, device, machine_id, trouble=trouble)
    ordinary, fresh = [r for r in records if not r.confirms], [r for r in records if r.confirms]
    first = ordinary[0] if ordinary else fresh[0]
    assert first.workload
    work = works.setdefault(Work(first.workload, first.ranks), len(works))
    y, tail = _places(ordinary)
    fresh_y, fresh_tail = _places(fresh) if len(fresh) > 1 else (None, None)
    digests = {r.measurement.digest for r in records if r.measurement and r.measurement.digest}
    digest = digests.pop() if len(digests) == 1 else "-" if digests else ""
    return Unit(case, device, machine_id, y, tail, fresh_y, digest, "", work, fresh_tail)


def _places(records: Sequence[Record]) -> tuple[float | None, float | None]:
    """Means over launches: ln of the median, and of the 90th percentile of those with samples enough."""
    taken = [sorted(metrics.samples(r)) for r in records]
    return _mean([_ln(s, 0.5) for s in taken]), _mean([_ln(s, 0.9) for s in taken if len(s) >= TAIL_SAMPLES])


def _trouble(records: Sequence[Record]) -> str:
    """Why these launches have no number to believe: wrong, an error, or invalid."""
    bad = next((r for r in records if r.status != "ok"), None)
    if bad:
        return f"{bad.status}: {bad.reason[:200]}"
    if any(r.counters.health or r.counters.device_bytes for r in records):  # else nothing says so, and judging takes long
        return next((f"invalid: {v.reason}" for v in accept.judge(records) if v.verdict == "invalid"), "")
    return ""


def _ln(values: Sequence[float], quantile: float) -> float:
    """ln of a quantile of sorted samples, interpolated between neighbours; of few samples faster than an array."""
    place = quantile * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return math.log(values[low] + (values[high] - values[low]) * (place - low))


def _mean(values: Sequence[float]) -> float | None:
    if len(values) == 1:
        return values[0]
    return math.fsum(values) / len(values) if values else None


def _unreached(loaded: LoadedRun) -> dict[str, int]:
    """How many planned cases have no record at all, by machine: of each node they were planned for, or of the only machine.

    Launches that were to confirm are no part of it: without them a suspect stays one.
    """
    recorded = {(r.machine_id, r.case, r.device, r.launch) for r in loaded.records}
    by_host = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    alone = list(loaded.machines) if len(loaded.machines) == 1 else []
    named: dict[str, list[str]] = {}
    missing: Counter[str] = Counter()
    for plan in loaded.run.planned:
        if plan.skip or plan.nodes > 1 or plan.confirms:
            continue
        if plan.hosts not in named:  # the same few lists again and again
            named[plan.hosts] = [by_host[h] for h in hosts.expand(plan.hosts) if h in by_host] if plan.hosts else alone
        missing.update(m for m in named[plan.hosts] if (m, plan.case, plan.device, plan.launch) not in recorded)
    return dict(missing)
