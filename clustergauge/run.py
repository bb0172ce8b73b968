"""One run: takes planned cases through the supervisor, one after the other, each record on disk before the next case starts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from clustergauge.model import Counters, Machine, Place, Planned, Record, Run
from clustergauge.store import RunFolder
from clustergauge.supervise import CaseResult, Supervisor

CUDA_CACHE_BYTES = 256 << 20
"""Last-level cache assumed for accelerators: the largest known (MI300X, 256 MB Infinity Cache)."""
CPU_CACHE_BYTES = 64 << 20
"""Last-level cache assumed for a processor that does not tell."""


class Watcher(Protocol):
    """What wants to know how the run goes (a progress display)."""

    def case(self, planned: Planned) -> None:
        """A case starts."""
        ...

    def done(self, record: Record) -> None:
        """A case ended and its record is on disk."""
        ...


@dataclass
class Progress:
    """What `carry_out` did; filled while it goes, so that an interruption leaves what is known."""

    case_seconds: float = 0.0
    measured: int = 0
    not_reached: list[Planned] = field(default_factory=list[Planned])


def now_text() -> str:
    """The time as records write it: UTC, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seed_of(case: str) -> int:
    """The same inputs for the same case on every machine, so that digests can be compared."""
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:4], "big") >> 1


def carry_out(
    folder: RunFolder,
    run: Run,
    todo: Sequence[Planned],
    supervisor: Supervisor,
    machine: Machine,
    watcher: Watcher,
    progress: Progress,
    stop_at: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure ``todo`` in order; no case starts after ``stop_at`` (of ``clock``).  ``progress`` tells how far it came."""
    for index, planned in enumerate(todo):
        if stop_at is not None and clock() >= stop_at and not planned.skip:
            progress.not_reached.extend(p for p in todo[index:] if not p.skip)
            skipped = [p for p in todo[index:] if p.skip]
            for late in skipped:
                folder.append(_skipped(run, machine, late))
            return
        if planned.skip:
            record = _skipped(run, machine, planned)
            folder.append(record)
            watcher.done(record)
            continue
        watcher.case(planned)
        started, began = now_text(), clock()
        result = supervisor.run(planned, seed_of(planned.case), _cache_bytes(planned, machine))
        progress.case_seconds += clock() - began
        record = _record(run, machine, planned, started, result)
        if result.log:
            name = folder.write_log(f"{planned.case}-{planned.launch}", result.log)
            record = msgspec.structs.replace(record, settings=record.settings | {"log": name})
        folder.append(record)
        progress.measured += 1
        watcher.done(record)


def _cache_bytes(planned: Planned, machine: Machine) -> int:
    return CUDA_CACHE_BYTES if planned.device.startswith("cuda") else machine.cpu.llc_bytes or CPU_CACHE_BYTES


def _record(run: Run, machine: Machine, planned: Planned, started: str, result: CaseResult) -> Record:
    outcome = result.outcome
    settings = dict(outcome.settings)
    if result.library:
        settings["library"] = result.library
    return Record(
        run_id=run.run_id,
        case=planned.case,
        probe=planned.probe,
        params=planned.params,
        launch=planned.launch,
        machine_id=machine.machine_id,
        device=planned.device,
        ranks=planned.ranks,
        placement=list(result.where) or [Place(rank=0, host=machine.host, device=planned.device)],
        status=outcome.status,
        reason=outcome.reason,
        started=started,
        workload=outcome.workload,
        measurement=outcome.measurement,
        counters=Counters(device_bytes=outcome.device_bytes, health=result.facts.health),
        settings=settings,
        telemetry=result.facts.telemetry,
    )


def _skipped(run: Run, machine: Machine, planned: Planned) -> Record:
    return Record(
        run_id=run.run_id,
        case=planned.case,
        probe=planned.probe,
        params=planned.params,
        launch=planned.launch,
        machine_id=machine.machine_id,
        device=planned.device,
        ranks=planned.ranks,
        status="skipped",
        reason=planned.skip,
        started=now_text(),
    )
