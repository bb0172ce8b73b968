"""Suspects of a fleet measured again, fresh, on their hosts and as they were: what to plan, and what came of each.  Pure.

Launches that confirm bear a mark (`Record.confirms`) and lie in a run of their own; `reduce.joined` puts them to what they are to
confirm, and `blame` judges the suspects by them alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from clustergauge import columns, hosts
from clustergauge.blamed import Fleet, Reason
from clustergauge.columns import Unit
from clustergauge.loading import LoadedRun
from clustergauge.model import Planned, Run, Scalar
from clustergauge.reduce import Part
from clustergauge.retry import CONFIRMING

KINDS = ("slow", "intermittent")
"""Reasons that fresh launches confirm or clear."""
KEPT = ("launcher", "version", "probes", "topology", "device", "remote", "remote_root")
"""Settings of a run that measuring again takes over."""


@dataclass(frozen=True)
class Suspect:
    """A case in which a machine is slow and was not measured again.  ``device``: empty for most devices of the machine."""

    machine_id: str
    host: str
    case: str
    device: str
    ratio: float
    kind: str


@dataclass(frozen=True)
class Outcome:
    """What came of a suspect.  ``ratio``: by the fresh launches, where they confirm it.  ``why``: it could not be measured."""

    suspect: Suspect
    word: Literal["confirmed", "cleared", "could not be measured"]
    ratio: float | None = None
    why: str = ""


def suspects(fleet: Fleet) -> list[Suspect]:
    """Whatever fresh launches on a machine alone could confirm or clear, worst machines first."""
    return [
        Suspect(node.machine_id, node.host, reason.case, reason.device, reason.ratio or 0.0, reason.kind)
        for node in fleet.nodes
        for reason in node.reasons
        if reason.kind in KINDS and not reason.confirmed and not hosts.spans(reason.device)
    ]


def by_run(found: Sequence[Suspect], part: Part) -> dict[str, list[Suspect]]:
    """The suspects by the folder of the run that measured them."""
    runs: dict[str, list[Suspect]] = {}
    units = part.units.of_cases((suspect.machine_id, suspect.case) for suspect in found)
    for suspect in found:
        own = [u for u in units[suspect.machine_id, suspect.case] if suspect.device in ("", u.device) and not u.confirms]
        runs.setdefault(part.folders[suspect.machine_id][max(unit.run for unit in own)], []).append(suspect)
    return runs


def planned(loaded: LoadedRun, found: Iterable[Suspect]) -> list[Planned]:
    """The launches that confirm, each for the nodes where its case is suspect alone; all else as the run had planned it."""
    plans = {(p.case, p.device): p for p in loaded.run.planned if p.nodes == 1 and not p.skip}
    names = {machine.machine_id: machine.node for machine in loaded.machines.values()}
    wanted: dict[tuple[str, str], dict[str, None]] = {}
    for suspect in found:
        for case, device in plans:
            if case == suspect.case and suspect.device in ("", device):
                wanted.setdefault((case, device), {})[names[suspect.machine_id]] = None
    return [
        replace(plans[key], hosts=hosts.compress(nodes), launch=launch, confirms=True)
        for key, nodes in wanted.items()
        for launch in range(CONFIRMING)
    ]


def run_of(source: Run, run_id: str, started: str, command: Sequence[str], todo: Sequence[Planned], names: Sequence[str]) -> Run:
    """The run that measures suspects of ``source`` again, on the nodes ``names``."""
    settings: dict[str, Scalar] = {name: source.settings[name] for name in KEPT if name in source.settings}
    settings |= {"hosts": hosts.compress(names), "confirms": source.run_id}
    return Run(
        run_id=run_id,
        started=started,
        command=list(command),
        suite=source.suite,
        code=source.code,
        planned=list(todo),
        settings=settings,
    )


def outcomes(found: Sequence[Suspect], part: Part, fleet: Fleet, runs: Iterable[LoadedRun]) -> list[Outcome]:
    """What became of the suspects.  ``part``, ``fleet``: with the fresh launches of ``runs`` in them."""
    whys: dict[str, str] = {}
    for loaded in runs:
        whys |= loaded.run.left_out
    nodes = {node.machine_id: node for node in fleet.nodes}
    units = columns.confirmed(part.units).of_cases((suspect.machine_id, suspect.case) for suspect in found)
    return [_outcome(one, units[one.machine_id, one.case], part, nodes[one.machine_id].reasons, whys) for one in found]


def _outcome(
    suspect: Suspect, of_case: Iterable[Unit], part: Part, reasons: Iterable[Reason], whys: Mapping[str, str]
) -> Outcome:
    units = [unit for unit in of_case if suspect.device in ("", unit.device)]
    if trouble := next((unit.trouble for unit in units if unit.trouble), ""):
        return Outcome(suspect, "could not be measured", why=trouble)
    if not any(math.isfinite(unit.y) and math.isfinite(unit.fresh) for unit in units):
        machine = part.machines[suspect.machine_id]
        why = whys.get(machine.node) or whys.get(machine.host) or "too few fresh launches"
        return Outcome(suspect, "could not be measured", why=why)
    for reason in reasons:
        alike = suspect.device == reason.device or "" in (suspect.device, reason.device)
        if reason.confirmed and reason.case == suspect.case and reason.kind in KINDS and alike:
            return Outcome(suspect, "confirmed", reason.ratio)
    return Outcome(suspect, "cleared")
