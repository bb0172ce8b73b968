"""One run: takes planned cases through the supervisor, one after the other, each record on disk before the next case starts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from clustergauge import path, so_far
from clustergauge.conversation import Died
from clustergauge.forecast import predict
from clustergauge.model import Counters, Finding, Machine, Place, Planned, Record, Run, Scalar
from clustergauge.object_url import is_url
from clustergauge.plan import cache_bytes
from clustergauge.processes import undisturbed
from clustergauge.store import RunFolder, StoreError
from clustergauge.supervise import CaseResult, Supervisor
from clustergauge.valid import Invalid


class Keeper(Protocol):
    """Where records and logs go: a `RunFolder`, or what stands before it where several nodes share one."""

    def append(self, record: Record) -> object:
        """Put the record on disk."""
        ...

    def write_log(self, name: str, text: str) -> str:
        """Keep a text; its path in the folder."""
        ...

    def write_file(self, name: str, content: bytes) -> str:
        """Keep bytes; their path in the folder."""
        ...


class Watcher(Protocol):
    """What wants to know how the run goes (a progress display)."""

    def start(self, total: int, seconds: float) -> None:
        """So many cases begin, expected to take so long."""
        ...

    def case(self, planned: Planned) -> None:
        """A case starts."""
        ...

    def done(self, record: Record) -> None:
        """A case ended and its record is on disk."""
        ...

    def stop(self) -> None:
        """No more cases."""
        ...


@dataclass
class Progress:
    """What a run did; filled while it goes, so that an interruption leaves what is known.

    ``records``: of the cases that ran.
    ``not_reached``: cases for which the time did not suffice.  ``interrupted``: by Ctrl-C or SIGTERM.  ``problem``: why the run
    could not go on.  ``notes``: what a person should hear at its end.
    """

    case_seconds: float = 0.0
    records: list[Record] = field(default_factory=list[Record])
    not_reached: list[Planned] = field(default_factory=list[Planned])
    interrupted: bool = False
    problem: str = ""
    notes: list[str] = field(default_factory=list[str])


Again = Callable[[Sequence[Planned], Mapping[str, Machine], Sequence[Record]], list[Planned]]
"""From all that was planned, the machines by id and the records so far to what else is to be measured."""


def now_text() -> str:
    """The time as records write it: UTC, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seed_of(case: str) -> int:
    """The same inputs for the same case on every machine, so that digests can be compared."""
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:4], "big") >> 1


def conduct(
    folder: RunFolder,
    run: Run,
    todo: Sequence[Planned],
    supervisor: Supervisor,
    watcher: Watcher,
    stop_after_s: float | None = None,
    earlier: Mapping[str, Machine] | None = None,
    again: Again | None = None,
) -> Progress:
    """Measure ``todo``, from the start of the supervisor to the end of the last process; what was measured is kept in any case.

    ``stop_after_s``: no case starts later than that.  ``earlier``: the machines that a resumed run has described; what was found
    then stays found.  ``again``: what else to measure, asked when everything is, until it names nothing more or the time is over.
    Once this returns the folder is finished and closed.
    """
    came, began = Progress(), time.monotonic()
    try:
        folders = [p.target for p in todo if p.target and not is_url(p.target)]
        machine = supervisor.start(list(dict.fromkeys(folders)) or [str(folder.path)])
        if earlier and machine.machine_id in earlier:
            findings = worst_findings(earlier[machine.machine_id].findings, machine.findings)
            machine = msgspec.structs.replace(machine, findings=findings)
        folder.write_machine(machine)
        watcher.start(sum(not p.skip for p in todo), predict(todo))
        stop_at = began + stop_after_s if stop_after_s else None
        carry_out(folder, run, todo, supervisor, machine, watcher, came, stop_at)
        while again and not came.not_reached and not (stop_at and time.monotonic() >= stop_at):
            if not (more := again(run.planned, {machine.machine_id: machine}, came.records)):
                break
            run = msgspec.structs.replace(run, planned=[*run.planned, *more])
            folder.update(run)
            watcher.start(len(more), predict(more))
            carry_out(folder, run, more, supervisor, machine, watcher, came, stop_at)
    except KeyboardInterrupt:
        came.interrupted = True
    except (Died, StoreError) as error:
        came.problem = str(error)
    finally:
        with closing(folder, run, came, watcher, began):
            supervisor.close()
            came.notes += supervisor.notes
    return came


@dataclass
class End:
    """What is known at the end of a run only.  ``left_out``: nodes that were kept out of something, and why."""

    left_out: dict[str, str] = field(default_factory=dict[str, str])


@contextlib.contextmanager
def closing(folder: RunFolder, run: Run, came: Progress, watcher: Watcher, began: float) -> Generator[End]:
    """Inside, processes are ended, undisturbed: a second Ctrl-C must not leave workers behind.  Then the folder is finished."""
    with undisturbed():
        watcher.stop()
        end = End()
        yield end
        spent = {"seconds": round(time.monotonic() - began, 3), "case_seconds": round(came.case_seconds, 3)}
        run = msgspec.structs.replace(
            run,
            finished=now_text(),
            interrupted=came.interrupted or bool(came.not_reached or came.problem),
            settings=_added(run.settings, spent),
            left_out=run.left_out | end.left_out,
        )
        try:
            folder.finish(run)
        except StoreError as error:
            came.problem = came.problem or str(error)


def carry_out(
    folder: Keeper,
    run: Run,
    todo: Sequence[Planned],
    supervisor: Supervisor,
    machine: Machine,
    watcher: Watcher,
    progress: Progress,
    stop_at: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Measure ``todo`` in order; no case starts after ``stop_at`` (of ``clock``).  ``progress`` tells how far it came.

    ``stopped``: whether to end without a record of the case in hand; but what a burn-in had measured until then is kept.
    """
    for index, planned in enumerate(todo):
        if stopped():
            return
        if stop_at is not None and clock() >= stop_at and not planned.skip:
            progress.not_reached.extend(p for p in todo[index:] if not p.skip)
            _skip_all(folder, run, machine, todo[index:])
            return
        if planned.skip:
            folder.append(skipped_record(run, machine, planned))
            continue
        supervisor.pins.begin(planned, machine)
        if stopped():
            return
        watcher.case(planned)
        started, began = now_text(), clock()
        try:
            result = supervisor.run(planned, seed_of(planned.case), cache_bytes(planned.device, machine), stop_at)
        except KeyboardInterrupt:
            with undisturbed():
                progress.case_seconds += clock() - began
                if result := supervisor.interrupted(planned):
                    _note(folder, _record(run, machine, planned, started, result), result, progress, watcher)
                _skip_all(folder, run, machine, todo[index + 1 :])
            raise
        finally:
            supervisor.pins.end(planned, machine)
        progress.case_seconds += result.seconds
        if stopped():
            if result.so_far and so_far.stands(result.so_far):
                cut = dataclasses.replace(
                    result, outcome=so_far.cut_short(result.so_far, "interrupted", planned.budget_s), log=""
                )
                _note(folder, _record(run, machine, planned, started, cut), cut, progress, watcher)
            return
        _note(folder, _record(run, machine, planned, started, result), result, progress, watcher)


def _note(folder: Keeper, record: Record, result: CaseResult, progress: Progress, watcher: Watcher) -> None:
    """Put on disk what came of a case: its log, what libraries wrote, its record."""
    if result.log:
        name = folder.write_log(f"{record.case}-{record.launch}", result.log)
        record = msgspec.structs.replace(record, settings=record.settings | {"log": name})
    for file, content in result.files.items():
        folder.write_file(f"{record.case}-{record.launch}-{file}", content)
    kept = _keep(folder, record)
    progress.records.append(kept)
    watcher.done(kept)


def worst_findings(before: Sequence[Finding], now: Sequence[Finding]) -> list[Finding]:
    """What was found in both parts of a run: of each check the worse."""
    worst: dict[str, Finding] = {}
    for finding in (*before, *now):
        known = worst.setdefault(finding.name, finding)
        if (finding.state == "warning", finding.fails) > (known.state == "warning", known.fails):
            worst[finding.name] = finding
    return list(worst.values())


def _keep(folder: Keeper, record: Record) -> Record:
    """Put the record on disk; a case that returned what no record can hold becomes an error, and the run goes on."""
    try:
        folder.append(record)
    except Invalid as error:
        record = msgspec.structs.replace(
            record,
            status="error",
            reason=f"the case returned what no record can hold: {error}",
            workload=None,
            measurement=None,
            counters=Counters(),
            settings={},
            telemetry={},
        )
        folder.append(record)
    return record


def _added(before: dict[str, Scalar], spent: dict[str, float]) -> dict[str, Scalar]:
    """Settings of a run with the seconds of this part of it (it may have been resumed) added."""
    return before | {name: round(_seconds(before.get(name)) + value, 3) for name, value in spent.items()}


def _seconds(value: Scalar) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _record(run: Run, machine: Machine, planned: Planned, started: str, result: CaseResult) -> Record:
    outcome = result.outcome
    settings = dict(outcome.settings)
    settings |= {f"env.{name}": value[:1000] for name, value in result.environment.items()}
    if result.library:
        settings["library"] = result.library
    return Record(
        run_id=run.run_id,
        case=planned.case,
        probe=planned.probe,
        params=planned.params,
        launch=planned.launch,
        confirms=planned.confirms,
        machine_id=machine.machine_id,
        device=planned.device,
        ranks=planned.ranks,
        placement=list(result.where) or [Place(rank=0, host=machine.host, device=planned.device)],
        status=outcome.status,
        reason=outcome.reason,
        started=started,
        workload=outcome.workload,
        measurement=outcome.measurement,
        counters=Counters(path=_path(planned, result), device_bytes=outcome.device_bytes, health=result.facts.health),
        settings=settings,
        telemetry=result.facts.telemetry,
    )


def _path(planned: Planned, result: CaseResult) -> dict[str, Scalar]:
    """What moved during a case that is asked for proof of its path; empty for others."""
    work = result.outcome.workload
    if planned.ranks < 2 or not work or not work.collective or work.message_bytes < path.LEAST_BYTES:
        return {}
    return {**result.facts.path, "runs": result.outcome.runs}


def _skip_all(folder: Keeper, run: Run, machine: Machine, rest: Sequence[Planned]) -> None:
    """Those of the ``rest`` that are skipped have a record however the run ends: there is nothing to go on with."""
    for planned in rest:
        if planned.skip:
            folder.append(skipped_record(run, machine, planned))


def skipped_record(run: Run, machine: Machine, planned: Planned) -> Record:
    """A case that was skipped when it was planned, and why."""
    return msgspec.structs.replace(error_record(run, machine, planned, planned.skip), status="skipped")


def error_record(run: Run, machine: Machine, planned: Planned, reason: str) -> Record:
    """A case that never began, and why."""
    return Record(
        run_id=run.run_id,
        case=planned.case,
        probe=planned.probe,
        params=planned.params,
        launch=planned.launch,
        confirms=planned.confirms,
        machine_id=machine.machine_id,
        device=planned.device,
        ranks=planned.ranks,
        status="error",
        reason=reason,
        started=now_text(),
    )
