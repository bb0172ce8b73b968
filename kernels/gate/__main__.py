"""The command: compile, compare, print.  Exit codes: 0 all agree, 3 one does not, 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clustergauge.errors import UsageError
from kernels.gate import golden, rules, table
from kernels.gate.facts import Facts
from kernels.gate.golden import Golden
from kernels.gate.table import Report, Row
from kernels.gate.targets import TARGETS
from kernels.gate.worker import Answer, Job, compile_all, load_entries

FORMATS: dict[str, Callable[[Report], str]] = {"text": table.text, "markdown": table.markdown, "json": table.as_json}
ENTRIES = "kernels.gate.entries"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    given = _parser().parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # or kernels would be functions of numpy, with nothing to compile
    try:
        report = gate(
            given.entries,
            targets=_chosen("target", given.target, list(TARGETS)),
            kernels=given.kernel,
            folder=given.golden,
            update=given.update,
            workers=given.jobs,
        )
    except UsageError as error:
        sys.stderr.write(f"kernels.gate: {error}\n")
        return 2
    try:
        sys.stdout.write(FORMATS[given.format](report))
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of it has nowhere to go
        if not isinstance(error, BrokenPipeError):  # `| head` has seen enough
            sys.stderr.write(f"kernels.gate: cannot write to stdout: {error.strerror or error}\n")
            return 3
    return 3 if report.failures else 0


def gate(module: str, targets: Sequence[str], kernels: Sequence[str], folder: Path, *, update: bool, workers: int) -> Report:
    """Compile what a module declares for the targets and hold it against rules and golden facts.

    ``kernels``: only these, all if empty.  ``update``: keep what passes the rules as golden first.
    """
    from kernels.gate.compile import triton_version
    from kernels.gate.entries import undeclared

    if not update and not folder.is_dir():
        raise UsageError(f"no folder of golden facts {folder} (--update makes one)")
    version = triton_version()
    declared = load_entries(module)
    wanted = _chosen("kernel", kernels, sorted({entry.kernel for entry in declared}))
    picked = [(entry, name) for name in targets for entry in declared if entry.kernel in wanted and name in entry.targets]
    if not picked:
        raise UsageError(f"nothing to compile: no entry of {', '.join(wanted) or module} for {', '.join(targets)}")
    picked.sort(key=lambda pair: wanted.index(pair[0].kernel))  # by kernel, then target
    kept = golden.load(version, folder)
    answers = compile_all(module, [Job(entry.id, name) for entry, name in picked], workers, _progress(len(picked)))

    broken = [
        [answer.error] if answer.facts is None else rules.problems(entry, TARGETS[name], answer.facts)
        for (entry, name), answer in zip(picked, answers, strict=True)
    ]
    notes: list[str] = []
    if update:
        fresh = {
            (entry.id, name): answer.facts
            for (entry, name), answer, bad in zip(picked, answers, broken, strict=True)
            if answer.facts and not bad and TARGETS[name].golden
        }
        kept = _merged(version, kept, fresh, kernels, targets)
        notes.append(f"kept {len(fresh)} as golden in {golden.save(kept, folder)}")
    if kept is None:
        others = ", ".join(golden.versions(folder)) or "none"
        notes.append(f"no golden facts for triton {version} (there are: {others}): only the rules apply")
    rows = [
        Row(entry.id, name, entry.config, answer.facts, *_judged(kept, entry.id, name, answer, bad))
        for (entry, name), answer, bad in zip(picked, answers, broken, strict=True)
    ]
    problems = _stale(kept, {(entry.id, name) for entry, name in picked}, kernels, targets)
    if not kernels and module == ENTRIES:
        problems += [f"{name}: a kernel without an entry in {ENTRIES}" for name in undeclared(declared)]
    return Report(version, tuple(rows), tuple(problems), tuple(notes))


def _judged(kept: Golden | None, entry: str, target: str, answer: Answer, bad: list[str]) -> tuple[tuple[str, ...], bool]:
    """The problems of a row, and whether it was compared."""
    if kept is None or answer.facts is None or not TARGETS[target].golden:
        return tuple(bad), False
    then = kept.facts.get(entry, {}).get(target)
    if then is None:
        return tuple(bad) or ("not among the golden facts: look at it and keep it with --update",), False
    return (*bad, *golden.differences(answer.facts, then)), True


def _stale(kept: Golden | None, compiled: set[tuple[str, str]], kernels: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Golden facts of what is shipped no longer, among the kernels (all if empty) and targets asked for."""
    return [
        f"{entry}, {name}: golden, but no longer compiled (drop it with --update)"
        for entry, by_target in (kept.facts if kept else {}).items()
        for name in by_target
        if (entry, name) not in compiled and _asked(entry, name, kernels, targets)
    ]


def _asked(entry: str, target: str, kernels: Sequence[str], targets: Sequence[str]) -> bool:
    return target in targets and (not kernels or entry.partition(" ")[0] in kernels)


def _merged(
    version: str, kept: Golden | None, fresh: dict[tuple[str, str], Facts], kernels: Sequence[str], targets: Sequence[str]
) -> Golden:
    """What was kept of other kernels and targets, and what is fresh of these."""
    found = {
        (entry, name): facts
        for entry, by_target in (kept.facts if kept else {}).items()
        for name, facts in by_target.items()
        if not _asked(entry, name, kernels, targets)
    } | fresh
    merged: golden.Kept = {}
    for entry, name in sorted(found, key=lambda pair: (pair[0], list(TARGETS).index(pair[1]))):
        merged.setdefault(entry, {})[name] = found[entry, name]
    return Golden(version, merged)


def _chosen(what: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """All that is known if nothing is given.  Raises `UsageError` for what is not known."""
    for name in given:
        if name not in known:
            raise UsageError(f"no {what} {name!r}: there are {', '.join(known)}")
    return [name for name in known if not given or name in given]


def _progress(total: int) -> Callable[[int], None]:
    def show(done: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\rcompiled {done} of {total}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return show


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gate", description="Compile every Triton kernel × configuration for every target, without a GPU."
    )
    parser.add_argument(
        "--target", action="extend", nargs="+", default=[], metavar="NAME", help=f"only these: {', '.join(TARGETS)}"
    )
    parser.add_argument("--kernel", action="extend", nargs="+", default=[], metavar="NAME", help="only these kernels")
    parser.add_argument("--update", action="store_true", help="keep what passes the rules as golden facts")
    parser.add_argument("--jobs", type=_count, default=2, metavar="N", help="compile in N processes (default: 2)")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    parser.add_argument("--entries", default=ENTRIES, metavar="MODULE", help="module with a function entries() (default: ours)")
    parser.add_argument("--golden", type=Path, default=golden.FOLDER, metavar="DIR", help="folder of the golden files")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"not a number of processes: {text!r} (1 to 256)")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
