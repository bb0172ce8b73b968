"""``fleet``: who is bad among many; suspects measured again."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from verbs.asked import leaves_in
from verbs.cases import check_trust, way_to
from verbs.nodes import fleet_of
from verbs.said import BROKEN, INTERRUPTED, OK, alone, heed_signals, say

if TYPE_CHECKING:
    from clustergauge.confirm import Suspect
    from clustergauge.store import LoadedRun


def do_fleet(options: argparse.Namespace) -> int:
    """Who is bad among many."""
    from clustergauge import blame, confirm, folder, hosts, reduce, topology
    from reports import fleet as page

    output = Path(options.output).absolute()
    paths = list(dict.fromkeys(path for word in options.runs for path in folder.find_runs(word, output)))
    expected = hosts.expand(options.expect) if options.expect else []
    if options.lists:
        _make(options.lists)  # before hours of confirming
    text, part = leaves_in(options.topology), reduce.read(paths)
    if not text and len(part.topologies) == 1:
        text = part.topologies[0]
    elif not text and part.topologies:
        say("the runs remember several topologies, of which none is taken: name one with --topology")
    leaves = topology.of_text(text) if text else None
    rack_of = topology.racks(leaves)
    known = {machine.host for machine in part.machines.values()}
    if leaves and options.topology:
        topology.check_fits(leaves, options.topology, sorted(known))
    part.notes.extend(topology.notes(leaves, sorted(known)))
    missing = [host for host in expected if host not in known]
    found, told, stopped = blame.judge(part, rack_of, missing), [], OK
    if options.confirm:
        again, new, stopped = _confirm(options, output, confirm.by_run(confirm.suspects(found), part))
        if new:
            part = reduce.joined([part, reduce.read([run.path for run in new])])
            found = blame.judge(part, rack_of, missing)
            told = confirm.outcomes(again, part, found, new)
    page.show(found, options.format, told, part)
    if options.lists:
        for path in page.write_lists(found, Path(options.lists)):
            say(f"written: {path}")
    return stopped or blame.exit_code(found, held=True)


def _make(lists: str) -> None:
    try:
        Path(lists).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file in its way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UsageError(f"--lists {lists}: no folder can be made there: {why}") from None


def _confirm(
    options: argparse.Namespace, output: Path, wanted: Mapping[str, Sequence[Suspect]]
) -> tuple[list[Suspect], list[LoadedRun], int]:
    """Measure suspects again where we can reach them, and say how where not: who was, in which runs, and what ended it early."""
    from clustergauge import store
    from reports.again import confirming

    alone()
    if not wanted:
        say("nobody is suspect: there is nothing to confirm")
    again: list[Suspect] = []
    new: list[LoadedRun] = []
    for path, suspects in wanted.items():
        loaded = store.load(Path(path))
        if loaded.run.settings.get("hosts"):
            run, code = _measure_suspects(options, output, loaded, suspects)
            new.append(run)
            again += suspects
            if code:
                return again, new, code
        else:
            say(f"on {suspects[0].host}: {confirming(loaded.run, [suspect.case for suspect in suspects])}")
    if len(new) < len(wanted):
        say("and then fleet again, with the new runs beside these")
    return again, new, OK


def _measure_suspects(
    options: argparse.Namespace, output: Path, loaded: LoadedRun, suspects: Sequence[Suspect]
) -> tuple[LoadedRun, int]:
    """A run that measures the suspects of another again, on their nodes; hosts and commands are those of this command line."""
    from clustergauge import code, confirm, fleet as nodes, hosts, launch, remote, store
    from clustergauge.run import now_text
    from reports.progress import Progress

    run, way = loaded.run, remote.way(options.remote, options.launcher)
    if run.code != code.digest():
        raise UsageError(f"run {run.run_id} was measured by other code ({run.code}, now {code.digest()}): measure it all again")
    names = hosts.wanted(options.hosts, options.hostfile, remote.is_srun(way), os.environ)
    todo = confirm.planned(loaded, suspects)
    check_trust(run, todo, options, output, way_to(names, way, launch.Install.at(options.remote_root).root))
    wanted = {name for planned in todo for name in hosts.expand(planned.hosts)}
    chosen = hosts.compress(name for name in names if name in wanted)
    heed_signals()
    with fleet_of(argparse.Namespace(**vars(options) | {"hosts": chosen, "hostfile": ""})) as fleet:
        assert fleet
        run = confirm.run_of(run, store.new_run_id(), now_text(), ["run_suite.py", *sys.argv[1:]], todo, fleet.desk.names)
        folder = store.RunFolder.create(output, run)
        came = nodes.conduct(folder, run, fleet, Progress())
    for note in [*came.notes, *([f"run_suite.py: {came.problem}"] if came.problem else [])]:
        say(note)
    say(f"measured again: {folder.path}")
    return store.load(folder.path), INTERRUPTED if came.interrupted else BROKEN if came.problem else OK
