"""A run judged and shown: the one place where the verdicts, the words and the exit code of a run come together."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from clustergauge import accept, blame, ceilings, judgement, presence, store, sweeps, topology, verdicts
from clustergauge.catalogue import remembered
from clustergauge.model import PairFindings, Run, Scalar, Verdict
from reports import fleet as nodes

if TYPE_CHECKING:
    from clustergauge.accept import CeilingOf
    from clustergauge.blame import Fleet
    from clustergauge.catalogue import Catalogue
    from clustergauge.loading import LoadedRun
    from clustergauge.verdicts import Asked


def show(
    loaded: LoadedRun,
    asked: Asked,
    form: str,
    say: Callable[[str], None],
    redact: bool = False,
    keep: bool = False,
    notes: Sequence[str] = (),
) -> int:
    """Judge a run and print it on stdout; the exit code of the results.

    ``say``: where remarks go that are no part of the document.  ``keep``: what was decided goes into the run folder.

    ``notes``: what a reader should know of what the run is held against.
    """
    asked = dataclasses.replace(asked, topology=topology.of_run(loaded.run))
    there = loaded.machines.values()
    found = verdicts.judge(loaded.records, loaded.run.planned, loaded.machines, asked)
    pairs = sweeps.findings(loaded.records, asked.topology, there)
    unplaced = topology.notes(asked.topology, [machine.host for machine in there])
    held = [*_held_against(loaded.run, asked.catalogue), *unplaced, *notes]
    planned, device = loaded.run.planned, str(loaded.run.settings.get("device", ""))
    idle, unused = accept.idle(loaded.records, planned, device), accept.gpus_unmeasured(loaded.records, planned, there, device)
    fleet = blame.of_run(loaded, asked.topology)
    code = judgement.exit_code_of(loaded, found, fleet)
    if keep:
        try:
            judgement.keep(loaded, asked, found, code, nodes.lists_of(fleet) if fleet else None)
        except store.StoreError as error:
            say(f"run_suite.py: {error}")
            code = accept.BROKEN
    if redact:
        from reports.redact import redacted

        loaded = dataclasses.replace(loaded, notes=[*loaded.notes, *held])
        loaded, found, pairs = redacted(loaded, found, pairs)
        held, fleet = [], blame.of_run(loaded)
    ceiling = ceilings.of_machines(loaded.machines, asked.catalogue)
    if form in ("text", "html"):
        loaded, held = dataclasses.replace(loaded, notes=[*loaded.notes, *held]), []
    if form == "text":
        from reports import terminal

        terminal.show(loaded, found, ceiling, pairs)
        if fleet:
            sys.stdout.write("\n")
            nodes.show(fleet, "text")
    else:
        for note in held:
            say(note)
        sys.stdout.buffer.write(_document(loaded, found, pairs, ceiling, asked.baseline, form, fleet))
    if idle:
        say(f"run_suite.py: nothing was measured{f' on {device}' if device else ''}: see what was skipped, and why")
    for words in [*unused, *presence.unjudged(loaded.records, loaded.run.planned)]:
        say(f"run_suite.py: {words}")
    return code


def _document(
    loaded: LoadedRun,
    found: Sequence[Verdict],
    pairs: Sequence[PairFindings],
    ceiling: CeilingOf,
    baseline: LoadedRun | None,
    form: str,
    fleet: Fleet | None,
) -> bytes:
    """The run in a format for other programs, or as a page."""
    from reports.rows import rows_of

    if form == "json":
        from reports import document

        return document.document(loaded, found, pairs)
    rows = rows_of(loaded, found, ceiling)
    if form == "html":
        from clustergauge import gauged
        from reports import page

        gauges = gauged.find(loaded.path.parent, loaded.machines)
        return page.html_of(loaded, rows, pairs, ceiling, baseline, gauges, fleet).encode(errors="replace")
    from reports import export

    return export.WRITERS[form](loaded, rows).encode(errors="replace")


def _held_against(run: Run, catalogue: Catalogue | None) -> list[str]:
    """Which ceilings the verdicts come from, and which they came from when the run was made, if not from ours alone.

    A run folder may come from anywhere: it never chooses which file is read.
    """
    now, then = remembered(catalogue), run.settings
    if not now and not then.get("ceilings"):
        return []
    same = now.get("ceilings_sha256") == then.get("ceilings_sha256")
    return [f"ceilings: {_source(now)}{'' if same else f'; when the run was made: {_source(then)}'}"]


def _source(settings: Mapping[str, Scalar]) -> str:
    path, digest = settings.get("ceilings"), settings.get("ceilings_sha256")
    return f"{path} (SHA-256 {str(digest)[:12]}…)" if path else "ours alone"
