"""``report``, ``accept`` and ``verify``: what is made of a run that was measured before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from verbs.asked import check_baseline, given_by, leaves_in
from verbs.said import OK, say

if TYPE_CHECKING:
    from clustergauge.store import LoadedRun


def do_report(options: argparse.Namespace) -> int:
    """Show a run again."""
    from clustergauge import store

    output = Path(options.output).absolute()
    loaded = store.load(store.find_run(options.run, output))
    if topology := leaves_in(options.topology, [machine.host for machine in loaded.machines.values()]):
        loaded.run.settings["topology"] = topology
    return show_again(loaded, options, output, options.redact)


def show_again(loaded: LoadedRun, options: argparse.Namespace, output: Path, redact: bool = False) -> int:
    """Judge a run by what it was judged by when it ended, but for what the flags say, and show it."""
    from clustergauge import judgement
    from reports import outcome

    recalled = judgement.recall(loaded, output, given_by(options, output))
    check_baseline(options.accept, recalled.asked)
    return outcome.show(loaded, recalled.asked, options.format, say, redact, notes=recalled.notes, owed=recalled.owed)


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
            say(f"note: {remark}")
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
