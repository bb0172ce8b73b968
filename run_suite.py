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
import math
import os
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120 (python -P and -I leave it out)

from clustergauge import __version__
from clustergauge.errors import UsageError

if TYPE_CHECKING:
    from clustergauge.catalogue import Catalogue
    from clustergauge.confirm import Suspect
    from clustergauge.fleet import Fleet
    from clustergauge.model import Machine, Planned, Record, Run, Scalar
    from clustergauge.plan import Wish
    from clustergauge.store import LoadedRun, RunFolder
    from clustergauge.verdicts import Asked

ROOT = Path(__file__).resolve().parent
VERBS = ("run", "list", "report", "compare", "fleet", "accept", "verify", "selftest", "schema")
SWEEP = [sys.executable, "-P", "-m", "storage_io.workspace"]
REACH = [sys.executable, "-P", "-m", "storage_io.object_space", "check"]
FOLDERS = ("kernels", "collectives", "storage_io")
OK, USAGE, BROKEN, INTERRUPTED = 0, 2, 3, 130

EPILOG = """\
examples:
  run_suite.py                          the quick suite on what this machine has
  run_suite.py -k 'matmul/*' --set shape=4096
  run_suite.py --target /scratch --max-time 10m
  run_suite.py run --resume latest      measure only what is missing
  run_suite.py --hosts 'node[01-04]'    these nodes: each alone, all at once; then all together
  run_suite.py list                     what would run here, and what not and why
  run_suite.py compare --against main   is this tree slower than that revision?

exit codes: 0 all well · 1 a criterion failed, or slower · 2 wrong usage or input · 3 wrong, error or invalid result
            4 required but not measured or inconclusive · 130 interrupted (what was measured is kept)
"""


class Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """What was wrong, and where to look."""
        raise UsageError(f"{message} (see: {self.prog} --help)")


def make_parser() -> Parser:
    """All verbs and flags."""
    parser = Parser(
        prog="run_suite.py",
        description="Measures what this machine reaches and says what is bad.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ClusterGauge {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    run = verbs.add_parser(
        "run", help="measure (the default)", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _case_flags(run, "quick")
    _effort_flags(run)
    _ground_flags(run)
    _node_flags(run)
    run.add_argument("--confirming", action="store_true", help="fresh launches that confirm or clear what fleet suspects")
    run.add_argument("--max-time", metavar="TIME", help="start no case after this time, cut a burn-in short: 90s, 10m, 1h")
    run.add_argument("--resume", metavar="RUN", help="go on with a run: measure only what is missing")
    run.add_argument("--rerun-failed", metavar="RUN", help="a new run of the cases that were wrong or errors in RUN")
    _acceptance_flags(run)
    run.add_argument("--topology", metavar="FILE", help="which leaf switch each host hangs on (TOML), to name a bad one")
    run.add_argument("--dry-run", action="store_true", help="show what would run and how long, measure nothing")
    run.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders go (default: results)")
    run.add_argument("--format", choices=("text", "json"), default="text", help="what to print on stdout")

    listing = verbs.add_parser("list", help="what would run here, and what would be skipped and why")
    _case_flags(listing, "quick")
    _effort_flags(listing)
    _ground_flags(listing)
    _node_flags(listing)
    listing.add_argument("--format", choices=("text", "json"), default="text", help="what to print on stdout")
    listing.add_argument("-o", "--output", default="results", metavar="DIR", help=argparse.SUPPRESS)

    report = verbs.add_parser("report", help="show a run again, from its records")
    report.add_argument("run", metavar="RUN", help="run folder, run id (or its start), or 'latest'")
    _acceptance_flags(report)
    report.add_argument("--topology", metavar="FILE", help="leaf switches of the hosts, instead of those the run remembers")
    formats = ("text", "json", "html", "md", "csv", "junit", "prom", "pytest-benchmark")
    report.add_argument("--format", choices=formats, default="text", help="of what is printed (default: text)")
    report.add_argument("--redact", action="store_true", help="replace names of hosts and users, addresses, serials and UUIDs")
    report.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")

    compare = verbs.add_parser("compare", help="two runs case by case, or many side by side; or this tree against a git revision")
    compare.add_argument(
        "runs", nargs="*", metavar="RUN", help="A and B (what changed in B), or more: run folders, ids, 'latest'"
    )
    compare.add_argument(
        "--anyway", action="store_true", help="compare runs that differ in parts, drivers, libraries or settings"
    )
    compare.add_argument("--format", choices=("text", "md", "html", "json"), default="text")
    compare.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")
    compare.add_argument(
        "--against", metavar="REV", help="measure this tree, as it is, against that git revision (docs/ci.md); with it:"
    )
    _case_flags(compare, "ci")
    _ground_flags(compare)
    compare.add_argument(
        "--launches", type=_count, metavar="N", help="of each side, and as many again of what looks changed (default 6)"
    )
    compare.add_argument("--threshold", metavar="PERCENT", help="what slows down by less is not slower (default 2.5%%)")
    compare.add_argument("--max-time", metavar="TIME", help="start no launch after this time: 90s, 10m, 1h")

    fleet = verbs.add_parser("fleet", help="who is bad among many machines: held against their peers")
    fleet.add_argument("runs", nargs="+", metavar="RUN", help="run folders, ids, or folders that hold many runs")
    fleet.add_argument("--topology", metavar="FILE", help="which rack each host stands in")
    fleet.add_argument("--expect", default="", metavar="HOSTS", help="hosts that should be there: node[01-64]")
    fleet.add_argument("--confirm", action="store_true", help="measure the suspects again, fresh, on their hosts (of --hosts)")
    _ground_flags(fleet)
    _node_flags(fleet)
    fleet.add_argument("--lists", metavar="DIR", help="write nodes.json and lists of bad, suspect and unmeasured hosts there")
    fleet.add_argument("--format", choices=("text", "html", "json"), default="text")
    fleet.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")

    drafting = verbs.add_parser("accept", help="accept init RUN: an acceptance file from a good run, on stdout")
    drafting.add_argument("what", choices=("init",))
    drafting.add_argument("run", metavar="RUN", help="run folder, run id (or its start), or 'latest'")
    drafting.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")

    verify = verbs.add_parser("verify", help="check the checksums of a run, and decide anew what was decided on it")
    verify.add_argument("run", metavar="RUN")
    verify.add_argument("--baseline", metavar="RUN", help="the run it was held against, where that lies elsewhere")
    verify.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")

    selftest = verbs.add_parser("selftest", help="the gauge gauges itself: bias, overhead, smallest change it can show")
    selftest.add_argument("--short", action="store_true", help="fewer launches (for CI)")
    selftest.add_argument("--format", choices=("text", "json"), default="text")
    selftest.add_argument(
        "-o", "--output", default="results", metavar="DIR", help="where the figures are kept, for reports (default: results)"
    )

    verbs.add_parser("schema", help="JSON Schema of a record")
    return parser


def _acceptance_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accept", metavar="FILE", help="hold the results against the criteria of FILE (or of a known machine)")
    parser.add_argument("--baseline", metavar="RUN", help="hold the results against those of an earlier run")
    parser.add_argument("--ceilings", metavar="FILE", help="limits of parts to lay over ours (form: clustergauge/ceilings.toml)")


def _case_flags(parser: argparse.ArgumentParser, suite: str) -> None:
    """Which cases."""
    parser.add_argument(
        "-k",
        action="append",
        default=[],
        metavar="GLOB",
        dest="globs",
        help="only cases whose id matches (* crosses /; a word matches anywhere)",
    )
    parser.add_argument("--suite", default=suite, metavar="NAME|FILE", help=f"suite name or TOML file (default: {suite})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="AXIS=VALUE[,VALUE]", dest="values", help="replace the values of an axis"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--ranks", type=_count, metavar="N", help="ranks of collective cases (default: all cores or GPUs)")


def _effort_flags(parser: argparse.ArgumentParser) -> None:
    """How much of each case."""
    parser.add_argument("--launches", type=_count, default=1, metavar="N", help="fresh process sets for every case (default 1)")
    parser.add_argument("--duration", metavar="TIME", help="measure each case for so long (burn-in), not as the suite says")


def _ground_flags(parser: argparse.ArgumentParser) -> None:
    """What cases stand on: the command that starts ranks, folders, probes of others."""
    parser.add_argument(
        "--launcher",
        default="",
        metavar="CMD",
        help="command that starts MPI ranks, e.g. 'mpiexec -n {ranks}'; over nodes with {hosts}, or srun (default: the one "
        "installed beside)",
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="DIR|s3://BUCKET/PREFIX",
        dest="targets",
        help="folder for storage cases (default: where run folders go), or an object store (keys and endpoint: AWS_…, ~/.aws); "
        "given again, each has every case",
    )
    parser.add_argument(
        "--probes", action="append", default=[], metavar="MODULE", help="also load the probes of this Python module"
    )


def _node_flags(parser: argparse.ArgumentParser) -> None:
    """Which nodes, and how they are reached."""
    parser.add_argument("--hosts", default="", metavar="LIST", help="measure these nodes: a,b or node[01-64]")
    parser.add_argument("--hostfile", default="", metavar="FILE", help="the same, one host a line")
    parser.add_argument(
        "--remote",
        default="",
        metavar="CMD",
        help="command that reaches a node (default: 'ssh -o BatchMode=yes {host}'; or srun)",
    )
    parser.add_argument("--remote-root", default="", metavar="DIR", help="this checkout on the nodes (default: the same path)")
    parser.add_argument(
        "--address", default="", metavar="HOST", help="this machine as the nodes reach it (default: by the route)"
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 100000, not {text!r}")
    return int(text)


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
        _say(f"run_suite.py: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        return BROKEN
    except MemoryError:
        _say("run_suite.py: out of memory (is there a limit? ulimit -v)")
        return BROKEN
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    return code


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
    from clustergauge import retry

    output = Path(options.output).absolute()
    asked = _asked(options, output)
    _duration("--max-time", options.max_time)
    if options.confirming:
        options.launches = max(options.launches, retry.CONFIRMING)
    _heed_signals()
    with _fleet(options) as fleet:
        if options.resume:
            return _resume(options, output, asked, fleet)
        return _run(options, output, asked, fleet)


def _run(options: argparse.Namespace, output: Path, asked: Asked, fleet: Fleet | None) -> int:
    """A new run."""
    import msgspec

    from clustergauge import code, criteria, store
    from clustergauge.model import Run
    from clustergauge.run import now_text

    topology = _topology(options.topology)
    planned = _failed_cases(options, output, fleet) if options.rerun_failed else _planned(options, output, fleet)
    planned = [msgspec.structs.replace(p, confirms=True) for p in planned] if options.confirming else planned
    for glob in criteria.unmatched(asked.acceptance.criteria, [p.case for p in planned]):
        raise UsageError(f"{options.accept}: criterion {glob!r} matches no case of this run")
    if options.dry_run:
        return _show_plan(planned, options.format)
    if not fleet:
        _reach_objects(planned)
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
        | _remembered(asked.catalogue)
        | _way(fleet),
    )
    return _measure(store.RunFolder.create(output, run), run, planned, options, asked, fleet=fleet)


def _resume(options: argparse.Namespace, output: Path, asked: Asked, fleet: Fleet | None) -> int:
    """Go on with a run: on the same machines, with the same code, only what has no record yet."""
    import msgspec

    from clustergauge import code, loading, machine, store

    chosen = (options.globs, options.values, options.rerun_failed, options.ranks, options.launches > 1)
    if any(chosen) or options.suite != "quick" or options.device != "auto":
        raise UsageError("--resume takes its cases from the run: leave out -k, --suite, --set, --device, --ranks, --launches")
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
        return _report(loaded, asked, options.format)
    folder = store.reopen(path)
    if folder.repaired:
        _say(f"repaired: {folder.repaired}")
    settings = run.settings | _remembered(asked.catalogue)
    run = msgspec.structs.replace(run, finished="", interrupted=False, left_out={}, settings=settings)
    return _measure(folder, run, todo, options, asked, loaded, fleet)


def do_list(options: argparse.Namespace) -> int:
    """What would run here."""
    with _fleet(options) as fleet:
        return _show_plan(_planned(options, Path(options.output).absolute(), fleet), options.format)


def do_report(options: argparse.Namespace) -> int:
    """Show a run again."""
    from clustergauge import store

    topology = _topology(options.topology)
    loaded = store.load(store.find_run(options.run, Path(options.output).absolute()))
    if topology:
        loaded.run.settings["topology"] = topology
    return _report(loaded, _asked(options, Path(options.output).absolute()), options.format, options.redact)


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
    from clustergauge import against, compare, revision, side, store
    from reports import comparison

    if options.runs:
        raise UsageError("compare --against REV measures both sides itself: leave out the runs")
    launches = options.launches or against.LAUNCHES
    if launches < against.FEWEST:
        raise UsageError(f"--launches {launches}: fewer than {against.FEWEST} of each side show nothing beyond doubt")
    rules = against.Rules(launches, _threshold(options.threshold) or against.THRESHOLD)
    limit, here = _duration("--max-time", options.max_time), revision.at_hand(ROOT)
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
            bench = side.bench(a, b, _suite_path(options.suite).absolute(), chosen, kept)
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
    rack_of = topology.racks(topology.of_text(_topology(options.topology)) if options.topology else None)
    part = reduce.read(paths)
    missing = [host for host in expected if host not in {m.host for m in part.machines.values()}]
    found, told, stopped = blame.judge(part, rack_of, missing), [], OK
    if options.confirm:
        again, new, stopped = _confirm(options, output, confirm.by_run(confirm.suspects(found), part.folders))
        if new:
            part = reduce.joined([part, reduce.read([run.path for run in new])])
            found = blame.judge(part, rack_of, missing)
            told = confirm.outcomes(again, part, found, new)
    page.show(found, options.format, told, part)
    if options.lists:
        for path in page.write_lists(found, Path(options.lists)):
            _say(f"written: {path}")
    return stopped or blame.exit_code(found)


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
    from clustergauge.pins import Pins
    from clustergauge.run import conduct
    from clustergauge.supervise import Supervisor
    from reports.progress import Progress

    before = earlier.records if earlier else []
    asked = dataclasses.replace(asked, topology=topology.of_run(run))
    machines = earlier.machines if earlier else None
    longest = _duration("--max-time", options.max_time)

    def again(planned: Sequence[Planned], there: Mapping[str, Machine], records: Sequence[Record]) -> list[Planned]:
        names = {machine.machine_id: machine.node for machine in there.values()} if fleet else None
        return retry.again(planned, records, verdicts.judge(records, planned, there, asked), names)

    def again_here(planned: Sequence[Planned], machine: Machine, records: Sequence[Record]) -> list[Planned]:
        return again(planned, {machine.machine_id: machine}, [*before, *records])

    judged = bool(
        asked.acceptance.criteria or asked.baseline or any(p.probe == sweeps.PROBE or hosts.is_group(p.device) for p in todo)
    )
    if fleet:

        def unfit(there: Mapping[str, Machine], records: Sequence[Record]) -> dict[str, str]:
            return groups.unfit(records, there, asked.topology)

        came = nodes.conduct(folder, run, fleet, Progress(), before, longest, machines, again if judged else None, unfit)
    else:
        supervisor = Supervisor(options.launcher, _python_path(options), sweep=SWEEP, pins=Pins(before))
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
        code = _report(store.load(folder.path), asked, options.format, keep=True)
    except KeyboardInterrupt:
        _say(f"interrupted: the run is kept in {folder.path}")
        return INTERRUPTED
    return INTERRUPTED if came.interrupted else BROKEN if came.problem else code


def _report(loaded: LoadedRun, asked: Asked, form: str, redact: bool = False, keep: bool = False) -> int:
    """Judge and show; the exit code of the results.  ``keep``: what was decided goes into the run folder."""
    from clustergauge import accept, blame, ceilings, judgement, store, sweeps, topology, verdicts
    from reports import fleet as nodes

    asked = dataclasses.replace(asked, topology=topology.of_run(loaded.run))
    found = verdicts.judge(loaded.records, loaded.run.planned, loaded.machines, asked)
    pairs = sweeps.findings(loaded.records, asked.topology, loaded.machines.values())
    held = _held_against(loaded.run, asked.catalogue)
    planned, device = loaded.run.planned, str(loaded.run.settings.get("device", ""))
    there = loaded.machines.values()
    idle, unused = accept.idle(loaded.records, planned, device), accept.gpus_unmeasured(loaded.records, planned, there, device)
    code = accept.exit_code(loaded.records, found, planned, device, there)
    fleet = blame.of_run(loaded, asked.topology)
    if keep:
        try:
            judgement.keep(loaded, asked, found, code, nodes.lists_of(fleet) if fleet else None)
        except store.StoreError as error:
            _say(f"run_suite.py: {error}")
            code = BROKEN
    if redact:
        from reports.redact import redacted

        loaded = dataclasses.replace(loaded, notes=[*loaded.notes, *held])
        loaded, found, pairs = redacted(loaded, found, pairs)
        held, fleet = [], blame.of_run(loaded)
    if form == "json":
        from reports import document

        for note in held:
            _say(note)
        sys.stdout.buffer.write(document.document(loaded, found, pairs))
    elif form != "text":
        from clustergauge import gauged
        from reports import export, page
        from reports.rows import rows_of

        for note in held:
            _say(note)
        ceiling = ceilings.of_machines(loaded.machines, asked.catalogue)
        rows = rows_of(loaded, found, ceiling)
        if form == "html":
            gauges = gauged.find(loaded.path.parent, loaded.machines)
            text = page.html_of(loaded, rows, pairs, ceiling, asked.baseline, gauges)
        else:
            text = export.WRITERS[form](loaded, rows)
        sys.stdout.buffer.write(text.encode(errors="replace"))
    else:
        from reports import terminal

        loaded = dataclasses.replace(loaded, notes=[*loaded.notes, *held])
        terminal.show(loaded, found, ceilings.of_machines(loaded.machines, asked.catalogue), pairs)
        if fleet:
            print()
            nodes.show(fleet, "text")
    if fleet and blame.exit_code(fleet) == BROKEN:  # bits that differ from what most nodes computed
        code = BROKEN
    if idle:
        _say(f"run_suite.py: nothing was measured{f' on {device}' if device else ''}: see what was skipped, and why")
    for words in unused:
        _say(f"run_suite.py: {words}")
    return code


def _remembered(catalogue: Catalogue | None) -> dict[str, Scalar]:
    """What a run keeps of the ceilings it was held against."""
    return {"ceilings": catalogue.path, "ceilings_sha256": catalogue.sha256} if catalogue else {}


def _held_against(run: Run, catalogue: Catalogue | None) -> list[str]:
    """Which ceilings the verdicts come from, and which they came from when the run was made, if not from ours alone.

    A run folder may come from anywhere: it never chooses which file is read.
    """
    now, then = _remembered(catalogue), run.settings
    if not now and not then.get("ceilings"):
        return []
    same = now.get("ceilings_sha256") == then.get("ceilings_sha256")
    return [f"ceilings: {_source(now)}{'' if same else f'; when the run was made: {_source(then)}'}"]


def _source(settings: Mapping[str, Scalar]) -> str:
    path, digest = settings.get("ceilings"), settings.get("ceilings_sha256")
    return f"{path} (SHA-256 {str(digest)[:12]}…)" if path else "ours alone"


@contextlib.contextmanager
def _fleet(options: argparse.Namespace) -> Generator[Fleet | None]:
    """The nodes that the flags name, with their agents, and the end of these; ``None`` for this machine alone."""
    from clustergauge import fleet, hosts, launch, remote, supervise, targets

    way = remote.way(options.remote, options.launcher)
    names = hosts.wanted(options.hosts, options.hostfile, remote.is_srun(way), os.environ)
    if not names:
        yield None
        return
    desk = remote.Desk(names, way, options.address, launch.Install.at(options.remote_root))

    def supervise_one(name: str) -> supervise.Supervisor:
        sweep = [desk.install.python, *SWEEP[1:]]
        path = _python_path(options)
        return supervise.Supervisor(options.launcher, path, sweep=sweep, make=lambda: remote.RemoteNode(desk, name), desk=desk)

    nodes = fleet.Fleet(desk, supervise_one)
    try:
        nodes.assemble(targets.fitting(_targets(options, None), objects=False))
        for name, why in (nodes.left_out | nodes.apart).items():
            _say(f"{name}: {'left out' if name in nodes.left_out else 'measured alone only'}: {why}")
        yield nodes
    finally:
        nodes.close()


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
        return plan_nodes.plan_nodes(suite, probes, fleet.machines, fleet.desk.names, wish)
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
        _duration("--duration", options.duration),
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

    if options.globs or options.values or options.suite != "quick" or options.launches > 1:
        raise UsageError("--rerun-failed takes its cases from the run: leave out -k, --suite, --set, --launches")
    loaded = store.load(store.find_run(options.rerun_failed, output))
    failed = {(r.case, r.device, r.launch) for r in loaded.records if r.status in ("wrong", "error")}
    if not failed:
        raise UsageError(f"no case of {loaded.run.run_id} was wrong or an error")
    planned = [p for p in loaded.run.planned if (p.case, p.device, p.launch) in failed]
    _trust(loaded.run, planned, options, output, _way(fleet))
    return planned


def _trust(run: Run, planned: Sequence[Planned], options: argparse.Namespace, output: Path, way: Mapping[str, str]) -> None:
    """A run folder may come from anywhere: it never chooses what is executed, imported or written to.  This command line does."""
    from clustergauge import code, launch

    sys.path.extend(_python_path(options))
    launcher = str(run.settings.get("launcher", ""))
    if launcher != options.launcher:
        raise UsageError(f"that run used --launcher {launcher!r}: say so again, if you mean it")
    for name in ("hosts", "remote", "remote_root"):
        if run.settings.get(name, "") != way.get(name, ""):
            said = f"that run used --{name.replace('_', '-')} {run.settings.get(name, '')!r}"
            raise UsageError(f"{said}, not {way.get(name, '')!r}: say it again, if you mean it")
    targets = _targets(options, None if way else output)
    known = {*_own_probe_modules(), *options.probes}
    wrote = {p.target for p in run.planned}
    if options.targets and (unused := [target for target in targets if target not in wrote]):
        raise UsageError(f"--target {unused[0]}: that run did not write to it")
    for p in planned:
        if p.module not in known:
            raise UsageError(f"that run used probes of {p.module!r}: say --probes {p.module} again, if you mean it")
        if odd := [name for name, value in p.env.items() if not launch.is_choice(name, value)]:
            raise UsageError(f"that run set {odd[0]!r} in the environment of its workers: start a new run")
        if p.target and p.target not in targets:
            raise UsageError(f"that run wrote to {p.target!r}: say --target again, if you mean it")
    if run.settings.get("probes", "") != code.digest_of(options.probes):
        raise UsageError("that run used other probes, or other code of them, than --probes names now: start a new run")


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
    if baseline is None and any(c.of_baseline for c in acceptance.criteria):
        raise UsageError(f"{options.accept} asks for a share of a baseline: name one with --baseline RUN")
    return Asked(acceptance, baseline, parts, name=options.accept, text=text)


def _topology(path: str | None) -> str:
    """The leaves of a topology file as a run remembers them; empty without one."""
    if not path:
        return ""
    from clustergauge import topology

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return topology.parse(text, path).text()


def _accept_path(name: str) -> Path:
    """A file, or the name of one that comes along."""
    own = ROOT / "suites" / "machines"
    if name.endswith(".toml") or "/" in name or Path(name).exists():
        return Path(name)
    if not (own / f"{name}.toml").exists():
        known = ", ".join(sorted(p.stem for p in own.glob("*.toml")))
        raise UsageError(f"--accept {name}: no such file, and no machine of that name (there are {known or 'none'})")
    return own / f"{name}.toml"


def _duration(flag: str, text: str | None) -> float | None:
    from clustergauge.units import parse_duration

    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def _threshold(text: str | None) -> float | None:
    """``2.5%`` as a fraction."""
    if not text:
        return None
    number = text.removesuffix("%").strip()
    try:
        value = float(number) / 100
    except ValueError:
        value = math.nan
    if not text.endswith("%") or not 0 < value <= 1:
        raise UsageError(f"--threshold {text}: write a percentage of up to 100%, for example 3%")
    return value


def _terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and a lost terminal are treated like Ctrl-C: what was measured is kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
