#!/usr/bin/env python3
"""ClusterGauge: one command measures what this machine reaches and says what is bad.

The command line; the only file that knows every room.  It imports no device library: cases run in workers of their own.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` can say what became of the run

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120 (python -P and -I leave it out)

from clustergauge import __version__, flags
from clustergauge.errors import UsageError
from clustergauge.flags import VERBS, make_parser

if TYPE_CHECKING:
    from clustergauge.confirm import Suspect
    from clustergauge.fleet import Fleet
    from clustergauge.model import Machine, Planned, Record, Run
    from clustergauge.plan import Wish
    from clustergauge.store import LoadedRun, RunFolder
    from clustergauge.verdicts import Asked

ROOT = Path(__file__).resolve().parent
SWEEP = [sys.executable, "-P", "-m", "storage_io.workspace"]
REACH = [sys.executable, "-P", "-m", "storage_io.object_space", "check"]
FOLDERS = ("kernels", "collectives", "storage_io")
OK, USAGE, BROKEN, UNSURE, INTERRUPTED = 0, 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
            words.insert(0, "run")
        elif words[0] not in (*VERBS, "-h", "--help", "--version"):
            raise UsageError(f"unknown verb {words[0]!r} (there are {', '.join(VERBS)}; flags go after it)")
        options = make_parser().parse_args(words)
        command = {
            "run": do_run,
            "list": do_list,
            "report": do_report,
            "compare": do_compare,
            "fleet": do_fleet,
            "accept": do_accept,
            "verify": do_verify,
            "selftest": do_selftest,
            "schema": do_schema,
        }
        code = command[options.verb](options)
        sys.stdout.flush()
    except UsageError as error:
        _say(f"run_suite.py: {error}")
        return USAGE
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        where = error.filename or ("cannot write to stdout" if _stdout_fails() else "")
        _say(f"run_suite.py: {f'{where}: ' if where else ''}{error.strerror or error}")
        return BROKEN
    except MemoryError:
        _say("run_suite.py: out of memory (is there a limit? ulimit -v)")
        return BROKEN
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    return code


def _stdout_fails() -> bool:
    """Whether not even a line's end can be written to stdout; then it leads nowhere from now on."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _open_closed() -> None:
    """Streams that were closed for us (``>&-``) lead nowhere; otherwise our own files would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123,SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123,SIM115


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------------------------------
# verbs


def do_run(options: argparse.Namespace) -> int:
    """Measure, keep, judge, report."""
    from clustergauge import hosts, retry

    output = Path(options.output).absolute()
    asked = _asked(options, output)
    flags.duration("--max-time", options.max_time)
    if options.confirming:
        options.launches = max(options.launches, retry.CONFIRMING)
    if options.turns:
        _take_turns(options)
    if not options.resume:
        _topology(options.topology, _names(options) or [hosts.own()])
    _heed_signals()
    with _fleet(options) as fleet:
        if options.resume:
            return _resume(options, output, asked, fleet)
        return _run(options, output, asked, fleet)


def _run(options: argparse.Namespace, output: Path, asked: Asked, fleet: Fleet | None) -> int:
    """A new run."""
    import msgspec

    from clustergauge import catalogue, code, criteria, hosts, store
    from clustergauge.model import Run
    from clustergauge.run import now_text

    topology = _topology(options.topology, fleet.desk.names if fleet else [hosts.own()])
    planned = _failed_cases(options, output, fleet) if options.rerun_failed else _planned(options, output, fleet)
    planned = [msgspec.structs.replace(p, confirms=True) for p in planned] if options.confirming else planned
    for glob in criteria.unmatched(asked.acceptance.criteria, [p.case for p in planned]):
        raise UsageError(f"{options.accept}: criterion {glob!r} matches no case of this run")
    if options.dry_run:
        return _show_plan(planned, options.format)
    if not fleet:
        _reach_objects(planned)
    if options.cross_check and not fleet:
        from storage_io import fio

        if not fio.installed():
            _say("fio is not installed: storage cases are not cross-checked")
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
        | _way(fleet),
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
    _trust(run, run.planned, options, output, _way(fleet))
    done = {(r.case, r.device, r.launch) for r in loaded.records}
    todo = [p for p in run.planned if (p.case, p.device, p.launch) not in done]
    if options.dry_run:
        return _show_plan(todo, options.format)
    if not todo and run.finished and not fleet:
        _say(f"nothing is missing in {run.run_id}")
        return _show_again(loaded, options, output)
    folder = store.reopen(path)
    if folder.repaired:
        _say(f"repaired: {folder.repaired}")
    settings = run.settings | catalogue.remembered(asked.catalogue)
    run = msgspec.structs.replace(run, finished="", interrupted=False, left_out={}, settings=settings)
    return _measure(folder, run, todo, options, asked, loaded, fleet)


def do_list(options: argparse.Namespace) -> int:
    """What would run here."""
    with _fleet(options) as fleet:
        return _show_plan(_planned(options, Path(options.output).absolute(), fleet), options.format)


def do_report(options: argparse.Namespace) -> int:
    """Show a run again."""
    from clustergauge import store

    output = Path(options.output).absolute()
    loaded = store.load(store.find_run(options.run, output))
    if topology := _topology(options.topology, [machine.host for machine in loaded.machines.values()]):
        loaded.run.settings["topology"] = topology
    return _show_again(loaded, options, output, options.redact)


def _show_again(loaded: LoadedRun, options: argparse.Namespace, output: Path, redact: bool = False) -> int:
    """Judge a run by what it was judged by when it ended, but for what the flags say, and show it."""
    from clustergauge import judgement
    from reports import outcome

    recalled = judgement.recall(loaded, output, _given(options, output))
    _needs_no_baseline(options.accept, recalled.asked)
    code = outcome.show(loaded, recalled.asked, options.format, _say, redact, notes=recalled.notes)
    return code or (OK if recalled.whole else UNSURE)


def do_compare(options: argparse.Namespace) -> int:
    """Two runs: what changed.  More: a column each.  Or this tree against a revision."""
    from clustergauge import compare, store
    from reports import comparison

    output = Path(options.output).absolute()
    if options.against is not None:
        return _against(options, output)
    if given := [flag for flag, value in _flags_of_against(options) if value]:
        raise UsageError(f"compare {given[0]} goes with --against REV: two runs are compared as they were measured")
    if len(options.runs) < 2:
        raise UsageError("compare needs two runs or more: compare A B")
    paths = [store.find_run(run, output) for run in options.runs]
    if len(set(paths)) < len(paths):
        raise UsageError("compare: the same run is named twice")
    runs = [store.load(path) for path in paths]
    if len(runs) > 2:
        comparison.show_many(runs, options.format)
        return OK
    report = compare.compare(*runs, anyway=options.anyway)
    comparison.show(report, options.format)
    return compare.exit_code(report)


def _against(options: argparse.Namespace, output: Path) -> int:
    """Measure this tree and another revision in turn; what they come to is printed, and kept beside their runs."""
    from clustergauge import against, compare, machine, revision, side, store
    from reports import comparison

    if options.runs:
        raise UsageError("compare --against REV measures both sides itself: leave out the runs")
    launches = options.launches or against.LAUNCHES
    if launches < against.FEWEST:
        raise UsageError(f"--launches {launches}: fewer than {against.FEWEST} of both sides show nothing beyond doubt")
    rules = against.Rules(launches, flags.threshold(options.threshold) or against.THRESHOLD)
    limit, here = flags.duration("--max-time", options.max_time), revision.at_hand(ROOT)
    _heed_signals()
    words = [word for flag, value in _flags_of_sides(options) if value for word in (flag, str(value))]
    words += [word for module in options.probes for word in ("--probes", module)]
    chosen = [word for glob in options.globs for word in ("-k", glob)] + [w for v in options.values for w in ("--set", v)]
    kept = output / f"against-{store.new_run_id()}"
    began = time.monotonic()
    try:
        with revision.checked_out(here, options.against) as there:
            a = side.Side("A", there, here.place_of(Path.cwd(), there), tuple(words), kept / "a")
            b = side.Side("B", here, Path.cwd(), tuple(words), kept / "b")
            together = not any(gpu.compute_mode.startswith("exclusive") for gpu in machine.describe_apart().gpus)
            bench = side.bench(a, b, _suite_path(options.suite).absolute(), chosen, kept, together)
            _say(f"{a}\n{b}\nruns: {kept}")
            _make(kept)
            over = (lambda: time.monotonic() - began >= limit) if limit else (lambda: False)
            report = against.conduct(list(bench.cases), bench.launch, rules, over, _say)
    except side.Unable as error:
        _say(f"run_suite.py: {error}")
        return BROKEN
    report = dataclasses.replace(report, run_a=there.name, run_b=here.name, only_a=bench.gone, only_b=bench.new)
    comparison.keep(report, kept)
    comparison.show(report, options.format)
    return compare.exit_code(report)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot make {path}: {error.strerror}") from None


def _flags_of_sides(options: argparse.Namespace) -> list[tuple[str, object]]:
    """Flags that both sides of `_against` are called with, beside ``--probes``."""
    from clustergauge import object_url

    targets = [("--target", target if object_url.is_url(target) else Path(target).absolute()) for target in options.targets]
    device = options.device if options.device != "auto" else ""
    return [("--device", device), ("--ranks", options.ranks), ("--launcher", options.launcher), *targets]


def _flags_of_against(options: argparse.Namespace) -> list[tuple[str, object]]:
    """Flags of ``compare`` that have a meaning with ``--against`` alone."""
    own = [("-k", options.globs), ("--set", options.values), ("--probes", options.probes), ("--launches", options.launches)]
    own += [("--threshold", options.threshold), ("--max-time", options.max_time), ("--suite", options.suite != "ci")]
    return [*own, *_flags_of_sides(options)]


def do_fleet(options: argparse.Namespace) -> int:
    """Who is bad among many."""
    from clustergauge import blame, confirm, folder, hosts, reduce, topology
    from reports import fleet as page

    output = Path(options.output).absolute()
    paths = list(dict.fromkeys(path for word in options.runs for path in folder.find_runs(word, output)))
    expected = hosts.expand(options.expect) if options.expect else []
    leaves = topology.of_text(text) if (text := _topology(options.topology)) else None
    rack_of = topology.racks(leaves)
    part = reduce.read(paths)
    known = {machine.host for machine in part.machines.values()}
    missing = [host for host in expected if host not in known]
    if leaves:
        topology.check_fits(leaves, options.topology, sorted(known))
        part.notes.extend(topology.notes(leaves, sorted(known)))
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
            _say(f"written: {path}")
    return stopped or blame.exit_code(found, held=True)


def _confirm(
    options: argparse.Namespace, output: Path, wanted: Mapping[str, Sequence[Suspect]]
) -> tuple[list[Suspect], list[LoadedRun], int]:
    """Measure suspects again where we can reach them, and say how where not: who was, in which runs, and what ended it early."""
    from clustergauge import store
    from reports.again import confirming

    if not wanted:
        _say("nobody is suspect: there is nothing to confirm")
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
            _say(f"on {suspects[0].host}: {confirming(loaded.run, [suspect.case for suspect in suspects])}")
    if len(new) < len(wanted):
        _say("and then fleet again, with the new runs beside these")
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
    _trust(run, todo, options, output, _way_of(names, way, launch.Install.at(options.remote_root).root))
    wanted = {name for planned in todo for name in hosts.expand(planned.hosts)}
    chosen = hosts.compress(name for name in names if name in wanted)
    _heed_signals()
    with _fleet(argparse.Namespace(**vars(options) | {"hosts": chosen, "hostfile": ""})) as fleet:
        assert fleet
        run = confirm.run_of(run, store.new_run_id(), now_text(), ["run_suite.py", *sys.argv[1:]], todo, fleet.desk.names)
        folder = store.RunFolder.create(output, run)
        came = nodes.conduct(folder, run, fleet, Progress())
    for note in [*came.notes, *([f"run_suite.py: {came.problem}"] if came.problem else [])]:
        _say(note)
    _say(f"measured again: {folder.path}")
    return store.load(folder.path), INTERRUPTED if came.interrupted else BROKEN if came.problem else OK


def _heed_signals() -> None:
    """SIGTERM and a lost terminal are treated like Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _terminate)


def do_accept(options: argparse.Namespace) -> int:
    """An acceptance file from a good run."""
    from clustergauge import criteria, draft, store

    loaded = store.load(store.find_run(options.run, Path(options.output).absolute()))
    acceptance = draft.acceptance_of(loaded)
    if not acceptance.criteria:
        raise UsageError(f"run {loaded.run.run_id} has no case with a number")
    lines = [
        "What a good run reached, for others to be held against: edit what you know better.",
        f"From run {loaded.run.run_id}.",
    ]
    if remarks := draft.remarks(loaded, acceptance):
        remarks.append("better: the same from a run on an idle machine, with --launches 5")
        lines += remarks
        for remark in remarks:
            _say(f"note: {remark}")
    print(criteria.to_toml(acceptance, lines), end="")
    return OK


def do_verify(options: argparse.Namespace) -> int:
    """Checksums of a run, and everything that was decided on it, decided anew."""
    from clustergauge import judgement, store

    output = Path(options.output).absolute()
    baseline = store.find_run(options.baseline, output) if options.baseline else None
    checked = judgement.verify(store.find_run(options.run, output), output, baseline)
    print(*checked.said, sep="\n")
    return checked.code


def do_selftest(options: argparse.Namespace) -> int:
    """The gauge gauges itself."""
    from clustergauge import code, gauged, machine, selftest
    from clustergauge.run import now_text
    from reports import selfcheck

    result = selftest.run(short=options.short, say=_say)
    selfcheck.show(result, options.format)
    here = machine.describe_apart().machine_id
    gauged.keep(gauged.of(result, here, code.digest(), now_text()), Path(options.output).absolute())
    return OK if result.passed else BROKEN


def do_schema(_options: argparse.Namespace) -> int:
    """JSON Schema of a record."""
    import json

    from clustergauge import schema

    print(json.dumps(schema.record_schema(), indent=2))
    return OK


# --------------------------------------------------------------------------------------------------------------------------
# their steps


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
        means = Means(options.launcher, tuple(_python_path(options)))
        supervisor = Supervisor(means, sweep=SWEEP, pins=Pins(before))
        came = conduct(folder, run, todo, supervisor, Progress(), longest, machines, again_here if judged else None)
    for note in came.notes:
        _say(note)
    if came.interrupted:
        left = fleet or len(came.records) < sum(not p.skip for p in todo)  # a burn-in that was cut short has its record
        _say(f"interrupted: what was measured is kept{f'; run_suite.py run --resume {run.run_id} goes on' if left else ''}")
    if came.not_reached:
        _say(f"{len(came.not_reached)} cases not reached in the time given; run_suite.py run --resume {run.run_id} goes on")
    if came.problem:
        _say(f"run_suite.py: {came.problem}")
    try:
        code = outcome.show(store.load(folder.path), asked, options.format, _say, keep=True)
    except KeyboardInterrupt:
        _say(f"interrupted: the run is kept in {folder.path}")
        return INTERRUPTED
    return INTERRUPTED if came.interrupted else BROKEN if came.problem else code


@contextlib.contextmanager
def _fleet(options: argparse.Namespace) -> Generator[Fleet | None]:
    """The nodes that the flags name, with their agents, and the end of these; ``None`` for this machine alone."""
    from clustergauge import fleet, launch, remote, spread, supervise, targets

    way, names = remote.way(options.remote, options.launcher), _names(options)
    spread.check_launcher(options.launcher, len(names))
    if not names:
        yield None
        return
    desk = remote.Desk(names, way, options.address, launch.Install.at(options.remote_root))

    def supervise_one(name: str) -> supervise.Supervisor:
        sweep = [desk.install.python, *SWEEP[1:]]
        means = desk.means(options.launcher, _python_path(options))
        return supervise.Supervisor(means, sweep=sweep, make=lambda: remote.RemoteNode(desk, name), desk=desk)

    nodes = fleet.Fleet(desk, supervise_one)
    try:
        nodes.assemble(targets.fitting(_targets(options, None), objects=False))
        for name, why in (nodes.left_out | nodes.apart).items():
            _say(f"{name}: {'left out' if name in nodes.left_out else 'measured alone only'}: {why}")
        yield nodes
    finally:
        nodes.close()


def _names(options: argparse.Namespace) -> list[str]:
    """The nodes that the flags name; empty for this machine alone."""
    from clustergauge import hosts, remote

    way = remote.way(options.remote, options.launcher)
    return hosts.wanted(options.hosts, options.hostfile, remote.is_srun(way), os.environ)


def _way(fleet: Fleet | None) -> dict[str, str]:
    """Which nodes and how they are reached, for the settings of a run."""
    return _way_of(fleet.desk.names, fleet.desk.remote, fleet.desk.install.root) if fleet else {}


def _way_of(names: Sequence[str], remote: str, root: Path) -> dict[str, str]:
    from clustergauge import hosts

    found = {"hosts": hosts.compress(names), "remote": remote} if names else {}
    return found | ({"remote_root": str(root)} if names and root != ROOT else {})


def _planned(options: argparse.Namespace, output: Path, fleet: Fleet | None) -> list[Planned]:
    """The cases the flags ask for, on this machine or on the nodes."""
    from clustergauge import machine, plan, plan_nodes

    sys.path.extend(_python_path(options))
    probes = plan.load_probes([*_own_probe_modules(), *options.probes])
    suite, wish = plan.load_suite(_suite_path(options.suite)), _wish(options, None if fleet else output)
    if fleet:
        fleet.meet(wish.targets)
        return plan_nodes.plan_nodes(suite, probes, fleet.machines, fleet.desk.names, wish, shared=fleet.shared)
    return plan.plan(suite, probes, machine.describe_apart(), wish)


def _wish(options: argparse.Namespace, output: Path | None) -> Wish:
    from clustergauge.plan import Wish

    values: dict[str, list[str]] = {}
    for text in options.values:
        axis, equals, given = text.partition("=")
        if not equals or not axis or not given:
            raise UsageError(f"--set {text}: write AXIS=VALUE, for example --set size=1GiB")
        values.setdefault(axis, []).extend(given.split(","))
    if "" in options.globs:
        raise UsageError("-k: an empty glob chooses nothing; leave it out to choose everything")
    return Wish(
        options.globs,
        options.device,
        values,
        _targets(options, output),
        options.launches,
        options.ranks,
        flags.duration("--duration", options.duration),
        options.cross_check,
    )


def _targets(options: argparse.Namespace, output: Path | None) -> tuple[str, ...]:
    """The folders and object stores of storage cases; of nodes, which have folders of their own (no ``output``), those named."""
    from clustergauge import targets

    if not options.targets:
        return (str(output),) if output else ()
    return targets.parse(options.targets, local=output is not None)


def _reach_objects(planned: Sequence[Planned]) -> None:
    """Ask an object store that cases need, once and in a process that may hang: what is wrong with it is said before all else."""
    from clustergauge import object_url, reach

    target = next((p.target for p in planned if not p.skip and object_url.is_url(p.target)), "")
    if target and (problem := reach.problem(REACH, target)):
        raise UsageError(f"--target {target}: {problem}")


def _failed_cases(options: argparse.Namespace, output: Path, fleet: Fleet | None) -> list[Planned]:
    from clustergauge import store

    if options.globs or options.values or options.suite != "quick" or options.launches > 1 or options.cross_check:
        raise UsageError("--rerun-failed takes its cases from the run: leave out -k, --suite, --set, --launches, --cross-check")
    loaded = store.load(store.find_run(options.rerun_failed, output))
    failed = {(r.case, r.device, r.launch) for r in loaded.records if r.status in ("wrong", "error")}
    if not failed:
        raise UsageError(f"no case of {loaded.run.run_id} was wrong or an error")
    planned = [p for p in loaded.run.planned if (p.case, p.device, p.launch) in failed]
    _trust(loaded.run, planned, options, output, _way(fleet))
    return planned


def _trust(run: Run, planned: Sequence[Planned], options: argparse.Namespace, output: Path, way: Mapping[str, str]) -> None:
    """See `trust`: nothing that a run folder says is done unless this command line says it too."""
    from clustergauge import trust

    sys.path.extend(_python_path(options))
    targets = _targets(options, None if way else output)
    said = trust.Said(options.launcher, way, targets, bool(options.targets), _own_probe_modules(), options.probes)
    trust.check(run, planned, said)


def _show_plan(planned: list[Planned], form: str) -> int:
    from reports import listing

    listing.show(planned, form)
    return OK


def _own_probe_modules() -> list[str]:
    import importlib

    return [name for folder in FOLDERS for name in importlib.import_module(folder).PROBES]


def _python_path(options: argparse.Namespace) -> list[str]:
    """The caller's folder, where `--probes` wants something of it: nothing else there may stand in for a library."""
    return [str(Path.cwd())] if options.probes else []


def _suite_path(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    path = ROOT / "suites" / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in (ROOT / "suites").glob("*.toml")))
        raise UsageError(f"unknown suite {name!r} (there are {known}; or name a .toml file)")
    return path


def _asked(options: argparse.Namespace, output: Path) -> Asked:
    """What the flags hold the results against, all of it at hand."""
    asked = _given(options, output)
    _needs_no_baseline(options.accept, asked)
    return asked


def _needs_no_baseline(accept: str, asked: Asked) -> None:
    """Raises `UsageError` for the user's file of criteria that asks for a baseline where there is none."""
    if accept and asked.baseline is None and any(c.of_baseline for c in asked.acceptance.criteria):
        raise UsageError(f"{accept} asks for a share of a baseline: name one with --baseline RUN")


def _given(options: argparse.Namespace, output: Path) -> Asked:
    from clustergauge import catalogue, criteria, store
    from clustergauge.verdicts import Asked

    parts = catalogue.load(Path(options.ceilings)) if options.ceilings else None
    baseline = store.load(store.find_run(options.baseline, output)) if options.baseline else None
    if not options.accept:
        return Asked(criteria.NOTHING, baseline, parts)
    path = _accept_path(options.accept)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {options.accept}: {getattr(error, 'strerror', None) or error}") from None
    acceptance = criteria.parse(text, options.accept)
    return Asked(acceptance, baseline, parts, name=options.accept, text=text)


def _topology(path: str | None, hosts: Sequence[str] = ()) -> str:
    """The leaves of a topology file as a run remembers them; empty without one.  ``hosts``: some of which it must place."""
    if not path:
        return ""
    from clustergauge import topology

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    found = topology.parse(text, path)
    topology.check_fits(found, path, hosts)
    return found.text()


def _accept_path(name: str) -> Path:
    """A file, or the name of one that comes along."""
    own = ROOT / "suites" / "machines"
    if name.endswith(".toml") or "/" in name or Path(name).exists():
        return Path(name)
    if not (own / f"{name}.toml").exists():
        known = ", ".join(sorted(p.stem for p in own.glob("*.toml")))
        raise UsageError(f"--accept {name}: no such file, and no machine of that name (there are {known or 'none'})")
    return own / f"{name}.toml"


def _terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and a lost terminal are treated like Ctrl-C: what was measured is kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
