"""``compare``: two runs, many side by side, or this tree against a revision."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from clustergauge import flags
from clustergauge.errors import UsageError
from verbs.asked import suite_path
from verbs.said import BROKEN, OK, ROOT, UNSURE, alone, heed_signals, say


def do_compare(options: argparse.Namespace) -> int:
    """Two runs: what changed.  More: a column each.  Or this tree against a revision."""
    from clustergauge import compare, store
    from reports import comparison, side_by_side

    output = Path(options.output).absolute()
    if options.against is not None:
        return _against(options, output)
    if given := [flag for flag, value in _flags_of_against(options) if value]:
        raise UsageError(f"compare {given[0]} goes with --against REV: two runs are compared as they were measured")
    if len(options.runs) < 2:
        raise UsageError("compare needs two runs or more: compare A B")
    runs = [store.load(store.find_run(run, output)) for run in options.runs]
    if len({loaded.run.run_id for loaded in runs}) < len(runs):  # a copy, or a link to it, is no other run
        raise UsageError("compare: the same run is named twice")
    if len(runs) > 2:
        return OK if side_by_side.show(runs, options.format) else UNSURE
    report = compare.compare(*runs, anyway=options.anyway)
    comparison.show(report, options.format)
    return compare.exit_code(report)


def _against(options: argparse.Namespace, output: Path) -> int:
    """Measure this tree and another revision in turn; what they come to is printed, and kept beside their runs."""
    from clustergauge import against, compare, machine, revision, side, store
    from reports import comparison

    alone()
    if options.runs:
        raise UsageError("compare --against REV measures both sides itself: leave out the runs")
    launches = options.launches or against.LAUNCHES
    if launches < against.FEWEST:
        raise UsageError(f"--launches {launches}: fewer than {against.FEWEST} of both sides show nothing beyond doubt")
    rules = against.Rules(launches, flags.threshold(options.threshold) or against.THRESHOLD)
    limit, here = flags.duration("--max-time", options.max_time), revision.at_hand(ROOT)
    heed_signals()
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
            bench = side.bench(a, b, suite_path(options.suite).absolute(), chosen, kept, together)
            say(f"{a}\n{b}\nruns: {kept}")
            _make(kept)
            over = (lambda: time.monotonic() - began >= limit) if limit else (lambda: False)
            report = against.conduct(list(bench.cases), bench.launch, rules, over, say)
    except side.Unable as error:
        say(f"run_suite.py: {error}")
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
