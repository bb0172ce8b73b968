"""The command line: verbs and flags, and what the texts of flags mean.  It knows no probe and carries nothing out."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

from clustergauge import __version__
from clustergauge.errors import UsageError
from clustergauge.units import parse_duration

VERBS = ("run", "list", "report", "compare", "fleet", "accept", "verify", "selftest", "schema")

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


class _Store(argparse.Action):
    """Keeps a value that is one: of a flag, an empty text is a script's variable that nobody set, and no wish to do without."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option_string: str | None = None
    ) -> None:
        if option_string and values == "":
            parser.error(f"argument {option_string}: nothing is given (a variable that is not set?); to do without, leave it out")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2.  Flags are written out: part of one is more often a slip than meant."""

    def __init__(self, **options: Any) -> None:
        """``options``: as argparse has them."""
        super().__init__(allow_abbrev=False, **options)
        self.register("action", None, _Store)

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
    run.add_argument(
        "--turns", metavar="DIR", help="measure by turns with another run that names this folder, a stretch of samples each"
    )
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

    report = verbs.add_parser("report", help="show a run again, from its records and judged as it was")
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
        "--launches", type=count, metavar="N", help="of both sides, and as many again of what looks changed (default 6)"
    )
    compare.add_argument("--threshold", metavar="PERCENT", help="what slows down by less is not slower (default 2.5%%)")
    compare.add_argument("--max-time", metavar="TIME", help="start no launch after this time: 90s, 10m, 1h")

    fleet = verbs.add_parser("fleet", help="who is bad among many machines: held against their peers")
    fleet.add_argument("runs", nargs="+", metavar="RUN", help="run folders, ids, or folders that hold many runs")
    fleet.add_argument("--topology", metavar="FILE", help="which rack each host stands in (default: what the runs remember)")
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
    parser.add_argument("--ranks", type=count, metavar="N", help="ranks of collective cases (default: all cores or GPUs)")


def _effort_flags(parser: argparse.ArgumentParser) -> None:
    """How much of each case."""
    parser.add_argument("--launches", type=count, default=1, metavar="N", help="fresh process sets for every case (default 1)")
    parser.add_argument("--duration", metavar="TIME", help="measure each case for so long (burn-in), not as the suite says")
    parser.add_argument(
        "--cross-check", action="store_true", help="hold storage cases against fio doing the same, by turns (20 s more for each)"
    )


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


def count(text: str) -> int:
    """A whole number of something, as a parser's ``type``."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 100000, not {text!r}")
    return int(text)


# --------------------------------------------------------------------------------------------------------------------------
# what their texts mean


def duration(flag: str, text: str | None) -> float | None:
    """``90s``, ``10m`` in seconds.  Raises `UsageError` naming the flag."""
    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def threshold(text: str | None) -> float | None:
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
