"""``run`` and ``list``: measure, keep, judge, report; or say what would be measured."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge import __version__, flags
from clustergauge.errors import UsageError
from clustergauge.units import counted
from verbs.asked import asked_of, check_baseline, given_by, leaves_in
from verbs.cases import check_trust, failed_cases, planned_for, probes_of, python_path, reach_objects, show_plan, way_of
from verbs.judging import show_again
from verbs.nodes import SWEEP, fleet_of, names_in
from verbs.said import BROKEN, INTERRUPTED, alone, heed_signals, say

if TYPE_CHECKING:
    from clustergauge.fleet import Fleet
    from clustergauge.model import Machine, Planned, Record, Run
    from clustergauge.store import LoadedRun, RunFolder
    from clustergauge.verdicts import Asked


def do_run(options: argparse.Namespace) -> int:
    """Measure, keep, judge, report."""
    from clustergauge import hosts, retry

    alone()
    output = Path(options.output).absolute()
    asked = given_by(options, output) if options.resume else asked_of(options, output)
    flags.duration("--max-time", options.max_time)
    if options.confirming:
        options.launches = max(options.launches, retry.CONFIRMING)
    if options.turns:
        _take_turns(options)
    if not options.resume:
        leaves_in(options.topology, names_in(options) or [hosts.own()])
    heed_signals()
    with fleet_of(options) as fleet:
        if options.resume:
            return _resume(options, output, asked, fleet)
        return _run(options, output, asked, fleet)


def do_list(options: argparse.Namespace) -> int:
    """What would run here."""
    with fleet_of(options) as fleet:
        return show_plan(planned_for(options, Path(options.output).absolute(), fleet), options, fleet)


def _run(options: argparse.Namespace, output: Path, asked: Asked, fleet: Fleet | None) -> int:
    """A new run."""
    import msgspec

    from clustergauge import catalogue, code, criteria, hosts, store
    from clustergauge.model import Run
    from clustergauge.run import now_text
    from storage_io import room

    topology = leaves_in(options.topology, fleet.desk.names if fleet else [hosts.own()])
    planned = failed_cases(options, output, fleet) if options.rerun_failed else planned_for(options, output, fleet)
    planned = [msgspec.structs.replace(p, confirms=True) for p in planned] if options.confirming else planned
    criteria.check_fits(asked.acceptance.criteria, {p.case for p in planned}, asked.text, asked.name)
    if options.dry_run:
        return show_plan(planned, options, fleet)
    planned = room.promised(planned, probes_of(options), fleet.free() if fleet else None)
    if not fleet:
        reach_objects(planned)
    if options.cross_check and not fleet:
        from storage_io import fio

        if not fio.installed():
            say("fio is not installed: storage cases are not cross-checked")
    run = Run(
        run_id=store.new_run_id(),
        started=now_text(),
        command=["run_suite.py", *sys.argv[1:]],
        suite=str(options.suite),
        code=code.digest(),
        planned=planned,
        settings={"launcher": options.launcher, "version": __version__, "probes": code.digest_of(options.probes)}
        | ({"topology": topology} if topology else {})
        | ({"device": options.device} if options.device != "auto" else {})
        | catalogue.remembered(asked.catalogue)
        | way_of(fleet),
    )
    return _measure(store.RunFolder.create(output, run), run, planned, options, asked, fleet=fleet)


def _take_turns(options: argparse.Namespace) -> None:
    """Have the workers of this run take turns with those of another."""
    from clustergauge import turnstile

    if options.hosts or options.hostfile:
        raise UsageError("--turns is for this machine alone: leave out --hosts")
    if not os.access(options.turns, os.W_OK | os.X_OK) or not Path(options.turns).is_dir():
        raise UsageError(f"--turns {options.turns}: no folder that can be written to")
    os.environ[turnstile.VARIABLE] = str(Path(options.turns).absolute())


def _resume(options: argparse.Namespace, output: Path, asked: Asked, fleet: Fleet | None) -> int:
    """Go on with a run: on the same machines, with the same code, only what has no record yet."""
    import msgspec

    from clustergauge import catalogue, code, loading, machine, store

    chosen = (options.globs, options.values, options.rerun_failed, options.ranks, options.launches > 1, options.cross_check)
    if any(chosen) or options.suite != "quick" or options.device != "auto":
        raise UsageError("--resume takes its cases from the run: leave out -k, --suite, --set, --device, …")
    if options.topology:
        raise UsageError("--resume takes the topology from the run: leave out --topology, and give it to report if it is another")
    path = store.find_run(options.resume, output)
    loaded, _ = loading.read(path, "cut")  # nothing is changed before we know that we may go on
    run, here = loaded.run, None if fleet else machine.describe_apart()
    if run.code != code.digest():
        raise UsageError(f"run {run.run_id} was measured by other code ({run.code}, now {code.digest()}): start a new run")
    if here and loaded.machines and here.machine_id not in loaded.machines:
        raise UsageError(
            f"run {run.run_id} was measured on {', '.join(m.host for m in loaded.machines.values())}, this is {here.host}"
        )
    check_trust(run, run.planned, options, output, way_of(fleet))
    done = {(r.case, r.device, r.launch) for r in loaded.records}
    todo = [p for p in run.planned if (p.case, p.device, p.launch) not in done]
    if options.dry_run:
        return show_plan(todo, options, fleet)
    if not todo and run.finished and not fleet:
        say(f"nothing is missing in {run.run_id}")
        return show_again(loaded, options, output)
    settings = run.settings | catalogue.remembered(asked.catalogue)
    asked = _asked_before(loaded, output, asked)
    folder = store.reopen(path)
    if folder.repaired:
        say(f"repaired: {folder.repaired}")
    run = msgspec.structs.replace(run, finished="", interrupted=False, left_out={}, settings=settings)
    return _measure(folder, run, todo, options, asked, loaded, fleet)


def _asked_before(loaded: LoadedRun, output: Path, given: Asked) -> Asked:
    """What a run that goes on is held against: what it was begun with, but for what is ``given`` now.

    Raises `UsageError` where that is not to be had, for a run that is held against less passes more.
    """
    from clustergauge import judgement

    recalled = judgement.recall(loaded, output, given)
    asked = recalled.asked
    if missing := judgement.missing(loaded, asked):
        raise UsageError(
            f"run {loaded.run.run_id} was begun with {' and '.join(missing)}, of which nothing is kept: say it again"
        )
    check_baseline(given.name, asked)
    for note in (*recalled.notes, *recalled.owed):
        say(note)
    return asked


def _measure(
    folder: RunFolder,
    run: Run,
    todo: list[Planned],
    options: argparse.Namespace,
    asked: Asked,
    earlier: LoadedRun | None = None,
    fleet: Fleet | None = None,
) -> int:
    """Take the cases through a supervisor, or one a node; whatever happens, what was measured is kept and reported."""
    from clustergauge import fleet as nodes, groups, hosts, retry, store, sweeps, topology, verdicts
    from clustergauge.launch import Means
    from clustergauge.pins import Pins
    from clustergauge.run import conduct
    from clustergauge.supervise import Supervisor
    from reports import outcome
    from reports.again import resuming
    from reports.progress import Progress

    before = earlier.records if earlier else []
    asked = dataclasses.replace(asked, topology=topology.of_run(run))
    machines = earlier.machines if earlier else None
    longest = flags.duration("--max-time", options.max_time)

    def again(planned: Sequence[Planned], there: Mapping[str, Machine], records: Sequence[Record]) -> list[Planned]:
        names = {machine.machine_id: machine.node for machine in there.values()} if fleet else None
        return retry.again(planned, records, verdicts.judge(records, planned, there, asked), names)

    def again_here(planned: Sequence[Planned], there: Mapping[str, Machine], records: Sequence[Record]) -> list[Planned]:
        return again(planned, there, [*before, *records])

    judged = bool(
        asked.acceptance.criteria or asked.baseline or any(p.probe == sweeps.PROBE or hosts.is_group(p.device) for p in todo)
    )
    if fleet:

        def unfit(there: Mapping[str, Machine], records: Sequence[Record]) -> dict[str, str]:
            return groups.unfit(records, there, asked.topology)

        came = nodes.conduct(folder, run, fleet, Progress(), before, longest, machines, again if judged else None, unfit)
    else:
        means = Means(options.launcher, tuple(python_path(options)))
        supervisor = Supervisor(means, sweep=SWEEP, pins=Pins(before))
        came = conduct(folder, run, todo, supervisor, Progress(), longest, machines, again_here if judged else None)
    for note in came.notes:
        say(note)
    if came.interrupted:
        left = fleet or len(came.records) < sum(not p.skip for p in todo)  # a burn-in that was cut short has its record
        say(f"interrupted: what was measured is kept{f'; {resuming(run)} goes on' if left else ''}")
    if came.not_reached:
        missed = counted(len(came.not_reached), "case")
        say(f"{missed} not reached in the time given; {resuming(run)} goes on")
    if came.problem:
        say(f"run_suite.py: {came.problem}")
    try:
        code = outcome.show(store.load(folder.path), asked, options.format, say, keep=True)
    except KeyboardInterrupt:
        say(f"interrupted: the run is kept in {folder.path}")
        return INTERRUPTED
    return INTERRUPTED if came.interrupted else BROKEN if came.problem else code
