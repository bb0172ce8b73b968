#!/usr/bin/env python3
"""ClusterGauge: one command measures what this machine reaches and says what is bad.

The command line; the only file that knows every room.  It imports no device library: cases run in workers of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from clustergauge import __version__
from clustergauge.errors import UsageError

if TYPE_CHECKING:
    from clustergauge.ceilings import Ceiling

    from clustergauge.model import Criterion, Machine, Metric, Planned, Record, Run
    from clustergauge.plan import Wish
    from clustergauge.store import LoadedRun

ROOT = Path(__file__).resolve().parent
VERBS = ("run", "list", "report", "verify", "selftest", "schema")
FOLDERS = ("kernels", "collectives", "storage_io")
OK, FAILED, USAGE, BROKEN, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 4, 130

EPILOG = """\
examples:
  run_suite.py                          the quick suite on what this machine has
  run_suite.py -k 'matmul/*' --set shape=4096
  run_suite.py --suite full --target /scratch --max-time 30m
  run_suite.py run --resume latest      measure only what is missing
  run_suite.py list                     what would run here, and what not and why

exit codes: 0 all well · 1 a criterion failed · 2 wrong usage or input · 3 wrong, error or invalid result
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
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ClusterGauge {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    run = verbs.add_parser(
        "run", help="measure (the default)", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _selection_flags(run)
    run.add_argument("--launches", type=_count, default=1, metavar="N", help="fresh process sets for every case (default 1)")
    run.add_argument("--max-time", metavar="TIME", help="start no case after this time: 90s, 10m, 1h")
    run.add_argument("--resume", metavar="RUN", help="go on with a run: measure only what is missing")
    run.add_argument("--rerun-failed", metavar="RUN", help="a new run of the cases that were wrong or errors in RUN")
    run.add_argument("--accept", metavar="FILE", help="hold the results against the criteria of FILE")
    run.add_argument("--dry-run", action="store_true", help="show what would run and how long, measure nothing")
    run.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders go (default: results)")
    run.add_argument("--format", choices=("text", "json"), default="text", help="what to print on stdout")

    listing = verbs.add_parser("list", help="what would run here, and what would be skipped and why")
    _selection_flags(listing)
    listing.add_argument("-o", "--output", default="results", metavar="DIR", help=argparse.SUPPRESS)

    report = verbs.add_parser("report", help="show a run again, from its records")
    report.add_argument("run", metavar="RUN", help="run folder, run id (or its start), or 'latest'")
    report.add_argument("--accept", metavar="FILE", help="hold the results against the criteria of FILE")
    report.add_argument("--format", choices=("text", "json"), default="text")
    report.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")

    verify = verbs.add_parser("verify", help="check the checksums of a run")
    verify.add_argument("run", metavar="RUN")
    verify.add_argument("-o", "--output", default="results", metavar="DIR", help="where run folders are (default: results)")

    selftest = verbs.add_parser("selftest", help="the gauge gauges itself: bias, overhead, smallest change it can show")
    selftest.add_argument("--short", action="store_true", help="fewer launches (for CI)")
    selftest.add_argument("--format", choices=("text", "json"), default="text")

    verbs.add_parser("schema", help="JSON Schema of a record")
    return parser


def _selection_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-k",
        action="append",
        default=[],
        metavar="GLOB",
        dest="globs",
        help="only cases whose id matches (* crosses /; a word matches anywhere)",
    )
    parser.add_argument("--suite", default="quick", metavar="NAME|FILE", help="suite name or TOML file (default: quick)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="AXIS=VALUE[,VALUE]", dest="values", help="replace the values of an axis"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--ranks", type=_count, metavar="N", help="ranks of collective cases (default: all cores or GPUs)")
    parser.add_argument(
        "--launcher",
        default="",
        metavar="CMD",
        help="command that starts MPI ranks, e.g. 'mpiexec -n {ranks}' (default: the one installed beside)",
    )
    parser.add_argument("--target", metavar="DIR", help="folder for storage cases (default: where run folders go)")
    parser.add_argument(
        "--probes", action="append", default=[], metavar="MODULE", help="also load the probes of this Python module"
    )


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in (*VERBS, "-h", "--help", "--version"):
        words.insert(0, "run")
    try:
        options = make_parser().parse_args(words)
        command = {
            "run": do_run,
            "list": do_list,
            "report": do_report,
            "verify": do_verify,
            "selftest": do_selftest,
            "schema": do_schema,
        }
        code = command[options.verb](options)
        sys.stdout.flush()
    except UsageError as error:
        _say(f"run_suite.py: {error}")
        return USAGE
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    return code


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------------------------------
# verbs


def do_run(options: argparse.Namespace) -> int:
    """Measure, keep, judge, report."""
    from clustergauge import accept, store
    from clustergauge.model import Run
    from clustergauge.run import now_text

    output = Path(options.output).absolute()
    criteria = _criteria(options.accept)
    stop_after = _duration(options.max_time)
    signal.signal(signal.SIGTERM, _terminate)
    if options.resume:
        folder = store.reopen(store.find_run(options.resume, output))
        loaded = store.load(folder.path)
        if folder.repaired:
            _say(f"repaired: {folder.repaired}")
        run = loaded.run
        done = {(r.case, r.device, r.launch) for r in loaded.records}
        todo = [p for p in run.planned if (p.case, p.device, p.launch) not in done]
        launcher, python_path = str(run.settings.get("launcher", "")), _python_path()
        return _measure(folder, run, todo, loaded.machines, launcher, python_path, options, criteria, stop_after)
    planned = _failed_cases(options, output) if options.rerun_failed else _planned(options, output)[0]
    if criteria:
        for glob in accept.unmatched(criteria, [p.case for p in planned]):
            raise UsageError(f"{options.accept}: criterion {glob!r} matches no case of this run")
    if options.dry_run:
        return _show_plan(planned)
    run = Run(
        run_id=store.new_run_id(),
        started=now_text(),
        command=["run_suite.py", *sys.argv[1:]],
        suite=str(options.suite),
        code=_code(),
        planned=planned,
        settings={"launcher": options.launcher, "version": __version__},
    )
    folder = store.RunFolder.create(output, run)
    return _measure(folder, run, planned, {}, options.launcher, _python_path(), options, criteria, stop_after)


def do_list(options: argparse.Namespace) -> int:
    """What would run here."""
    return _show_plan(_planned(options, Path(options.output).absolute())[0])


def do_report(options: argparse.Namespace) -> int:
    """Show a run again."""
    from clustergauge import store

    loaded = store.load(store.find_run(options.run, Path(options.output).absolute()))
    return _report(loaded, _criteria(options.accept), options.format)


def do_verify(options: argparse.Namespace) -> int:
    """Checksums of a run."""
    from clustergauge import store

    path = store.find_run(options.run, Path(options.output).absolute())
    problems = store.verify(path)
    for problem in problems:
        print(problem)
    if problems:
        return USAGE
    loaded = store.load(path)
    print(f"{path}: intact ({len(loaded.records)} records)")
    return OK


def do_selftest(options: argparse.Namespace) -> int:
    """The gauge gauges itself."""
    from clustergauge import selftest
    from reports import selfcheck

    result = selftest.run(short=options.short, say=_say)
    selfcheck.show(result, options.format)
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
    folder: object,
    run: Run,
    todo: list[Planned],
    machines: dict[str, Machine],
    launcher: str,
    python_path: list[str],
    options: argparse.Namespace,
    criteria: list[Criterion],
    stop_after: float | None,
) -> int:
    """Take the cases through a supervisor; whatever happens, what was measured is kept and reported."""
    import msgspec

    from clustergauge import preflight, store
    from clustergauge.run import Progress, carry_out, now_text
    from clustergauge.supervise import Died, Supervisor
    from reports import progress as display

    assert isinstance(folder, store.RunFolder)
    supervisor = Supervisor(launcher, python_path)
    came, interrupted, began = Progress(), False, time.monotonic()
    run = msgspec.structs.replace(run, finished="", interrupted=False)
    watcher = display.Progress()
    try:
        machine = supervisor.start()
        findings = preflight.findings(machine, _target(options, folder.path.parent), Path(str(supervisor.scratch)))
        machine = msgspec.structs.replace(machine, findings=findings)
        _same_code_and_machine(run, machine, machines)
        folder.write_machine(machine)
        watcher.start(len(todo), _predict(todo))
        stop_at = time.monotonic() + stop_after if stop_after else None
        carry_out(folder, run, todo, supervisor, machine, watcher, came, stop_at)
    except KeyboardInterrupt:
        interrupted = True
    except Died as died:
        watcher.stop()
        _say(f"run_suite.py: {died}")
        return BROKEN
    finally:
        watcher.stop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave workers behind
        if interrupted:
            _say("interrupted: ending the workers, keeping what was measured")
        supervisor.close()
        for note in supervisor.notes:
            _say(note)
        settings = dict(run.settings)
        settings |= {"seconds": round(time.monotonic() - began, 3), "case_seconds": round(came.case_seconds, 3)}
        run = msgspec.structs.replace(
            run, finished=now_text(), interrupted=interrupted or bool(came.not_reached), settings=settings
        )
        folder.finish(run)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came.not_reached:
        _say(f"{len(came.not_reached)} cases not reached in the time given; run_suite.py run --resume {run.run_id} goes on")
    code = _report(store.load(folder.path), criteria, options.format)
    return INTERRUPTED if interrupted else code


def _report(loaded: LoadedRun, criteria: list[Criterion], form: str) -> int:
    """Judge and show; the exit code of the results."""
    from clustergauge import accept, ceilings

    def ceiling(record: Record, metric: Metric) -> Ceiling | None:
        return ceilings.ceiling(record, loaded.machines[record.machine_id], metric)

    verdicts = accept.judge(loaded.records, criteria, ceiling)
    if form == "json":
        from reports import document

        sys.stdout.buffer.write(document.document(loaded, verdicts))
    else:
        from reports import terminal

        terminal.show(loaded, verdicts)
    return accept.exit_code(loaded.records, verdicts, loaded.run.interrupted and not loaded.run.finished)


def _planned(options: argparse.Namespace, output: Path) -> tuple[list[Planned], Machine]:
    """The cases the flags ask for, on this machine."""
    from clustergauge import machine, plan

    sys.path.extend(_python_path())
    probes = plan.load_probes([*_own_probe_modules(), *options.probes])
    here = machine.describe()
    return plan.plan(plan.load_suite(_suite_path(options.suite)), probes, here, _wish(options, output)), here


def _wish(options: argparse.Namespace, output: Path) -> Wish:
    from clustergauge.plan import Wish

    values: dict[str, list[str]] = {}
    for text in options.values:
        axis, equals, given = text.partition("=")
        if not equals or not axis or not given:
            raise UsageError(f"--set {text}: write AXIS=VALUE, for example --set size=1GiB")
        values[axis] = given.split(",")
    return Wish(options.globs, options.device, values, _target(options, output), getattr(options, "launches", 1), options.ranks)


def _target(options: argparse.Namespace, output: Path) -> Path:
    if not options.target:
        return output
    target = Path(options.target).absolute()
    if not target.is_dir():
        raise UsageError(f"--target {options.target}: not a folder")
    if not os.access(target, os.W_OK | os.X_OK):
        raise UsageError(f"--target {options.target}: not writable")
    return target


def _failed_cases(options: argparse.Namespace, output: Path) -> list[Planned]:
    from clustergauge import store

    loaded = store.load(store.find_run(options.rerun_failed, output))
    failed = {(r.case, r.device, r.launch) for r in loaded.records if r.status in ("wrong", "error")}
    if not failed:
        raise UsageError(f"no case of {loaded.run.run_id} was wrong or an error")
    return [p for p in loaded.run.planned if (p.case, p.device, p.launch) in failed]


def _same_code_and_machine(run: Run, machine: Machine, machines: dict[str, Machine]) -> None:
    """A resumed run must go on with the code and on the machine it began with."""
    if not machines:
        return
    if run.code != _code():
        raise UsageError(f"run {run.run_id} was measured by other code ({run.code}, now {_code()}): start a new run")
    if machine.machine_id not in machines:
        raise UsageError(
            f"run {run.run_id} was measured on {', '.join(m.host for m in machines.values())}, this is {machine.host}"
        )


def _show_plan(planned: list[Planned]) -> int:
    from reports import listing

    listing.show(planned)
    return OK


def _predict(todo: Sequence[Planned]) -> float:
    """Seconds the cases will take: their budgets, what checking adds, and a start of workers for each group."""
    running = [p for p in todo if not p.skip]
    pools = {(p.world, p.interpret, p.ranks, p.device, p.launch) for p in running}
    return sum(1.3 * p.budget_s + 0.3 for p in running) + 3.0 * len(pools)


def _own_probe_modules() -> list[str]:
    import importlib

    return [name for folder in FOLDERS for name in importlib.import_module(folder).PROBES]


def _python_path() -> list[str]:
    """The caller's folder, for `--probes`."""
    return [str(Path.cwd())]


def _suite_path(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    path = ROOT / "suites" / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in (ROOT / "suites").glob("*.toml")))
        raise UsageError(f"unknown suite {name!r} (there are {known}; or name a .toml file)")
    return path


def _criteria(path: str | None) -> list[Criterion]:
    if not path:
        return []
    from clustergauge import accept

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    return accept.parse_criteria(text, path)


def _duration(text: str | None) -> float | None:
    from clustergauge.units import parse_duration

    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise UsageError(f"--max-time: {error}") from None


def _code() -> str:
    from clustergauge import code

    return code.digest()


def _terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM is treated like Ctrl-C: what was measured is kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
