"""A run judged and shown: the one place where the verdicts, the words and the exit code of a run come together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clustergauge import (
    blame,
    ceilings,
    compare,
    exits,
    gauged,
    judgement,
    presence,
    store,
    sweeps,
    topology,
    unmeasured,
    verdicts,
)
from clustergauge.catalogue import remembered
from clustergauge.model import PairFindings, Run, Scalar, Verdict
from reports import fleet as nodes
from reports.redact import Names
from reports.rows import of_nodes, of_run, rows_of

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf
    from clustergauge.blamed import Fleet
    from clustergauge.catalogue import Catalogue
    from clustergauge.compare import Before
    from clustergauge.gauged import Gauged
    from clustergauge.loading import LoadedRun
    from clustergauge.verdicts import Asked


@dataclass(frozen=True)
class _Shown:
    """What is shown of a run.  ``before``, ``gauges``: on a page alone.  ``unsaid``: what was owed and not measured, in words."""

    loaded: LoadedRun
    verdicts: list[Verdict]
    pairs: list[PairFindings]
    fleet: Fleet | None
    before: Before | None
    gauges: list[Gauged]
    unsaid: list[str]

    def redacted(self) -> _Shown:
        """The same without the names of what it ran on: as it was judged by those."""
        names = Names(self.loaded, self.verdicts)
        before = self.before
        if before:
            told = [replace(d, a=names.text(d.a), b=names.text(d.b)) for d in before.differences]
            before = replace(before, differences=told)
        return _Shown(
            names.run(self.loaded),
            [names.document(verdict) for verdict in self.verdicts],
            [names.document(finding) for finding in self.pairs],
            names.document(self.fleet) if self.fleet else None,
            before,
            [names.document(one) for one in self.gauges],
            [names.text(words) for words in self.unsaid],
        )


def show(
    loaded: LoadedRun,
    asked: Asked,
    form: str,
    say: Callable[[str], None],
    redact: bool = False,
    keep: bool = False,
    notes: Sequence[str] = (),
    owed: Sequence[str] = (),
) -> int:
    """Judge a run and print it on stdout; the exit code of the results.

    ``say``: where remarks go that are no part of the document.  ``keep``: what was decided goes into the run folder.
    ``notes``: what a reader should know of what the run is held against.  ``owed``: what of it is missing: no run passes then.
    """
    asked, loaded = replace(asked, topology=topology.of_run(loaded.run)), replace(loaded, catalogue=asked.catalogue)
    planned, device, there = loaded.run.planned, str(loaded.run.settings.get("device", "")), loaded.machines.values()
    found = verdicts.judge(loaded.records, planned, loaded.machines, asked)
    fleet = blame.of_run(loaded, asked.topology)
    code = exits.worst([judgement.exit_code_of(loaded, found, fleet), exits.UNKNOWN if owed else exits.OK])
    if keep:
        try:
            judgement.keep(loaded, asked, found, code, nodes.lists_of(fleet) if fleet else None)
        except store.StoreError as error:
            say(f"run_suite.py: {error}")
            code = exits.BROKEN
    page = form == "html"
    unsaid = unmeasured.gpus(loaded.records, planned, there, device) + presence.unjudged(loaded.records, planned) + list(owed)
    if unmeasured.idle(loaded.records, planned, device):
        unsaid.insert(0, f"nothing was measured{f' on {device}' if device else ''}: see what was skipped, and why")
    unplaced = topology.notes(asked.topology, [machine.host for machine in there])
    held = [*_held_against(loaded.run, asked.catalogue), *unplaced, *notes, *(unsaid if page else ())]  # a page is read by itself
    if page or form == "text" or redact:
        loaded, held = replace(loaded, notes=[*loaded.notes, *held]), []
    shown = _Shown(
        loaded,
        found,
        sweeps.findings(loaded.records, asked.topology, there),
        fleet,
        compare.before(asked.baseline, loaded) if page and asked.baseline else None,
        gauged.find(loaded.path.parent, loaded.machines) if page else [],
        unsaid,
    )
    shown = shown.redacted() if redact else shown
    _print(shown, form, ceilings.of_machines(shown.loaded.machines, shown.loaded.catalogue), code)
    for words in [*held, *(f"run_suite.py: {words}" for words in shown.unsaid)]:
        say(words)
    return code


def _print(shown: _Shown, form: str, ceiling: CeilingOf, code: int) -> None:
    """The run on stdout: for a person, as a page, or in a format for other programs."""
    loaded, found, pairs, fleet = shown.loaded, shown.verdicts, shown.pairs, shown.fleet
    if form == "text":
        from reports import terminal

        terminal.show(loaded, found, ceiling, pairs)
        if fleet:
            sys.stdout.write("\n")
            nodes.show(fleet, "text")
        return
    if form == "json":
        from reports import document

        content = document.document(loaded, found, pairs, fleet)
    elif form == "html":
        from reports import page

        rows = rows_of(loaded, found, ceiling)
        text = page.html_of(loaded, rows, pairs, ceiling, shown.before, shown.gauges, fleet, code)
        content = text.encode(errors="replace")
    else:
        from reports import export

        rows = rows_of(loaded, found, ceiling)
        rows += [*(of_nodes(fleet) if fleet else ()), *of_run(rows, shown.unsaid)]
        content = export.WRITERS[form](loaded, rows).encode(errors="replace")
    sys.stdout.buffer.write(content)


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
