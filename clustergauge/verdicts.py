"""All verdicts of a run: its cases against criteria, ceilings, a baseline and peers, its machines against what is expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clustergauge import accept, ceilings, differ, groups, inventory, sweeps
from clustergauge.catalogue import Catalogue
from clustergauge.criteria import NOTHING, Acceptance
from clustergauge.loading import LoadedRun
from clustergauge.model import Criterion, Machine, Planned, Record, Verdict
from clustergauge.topology import Topology

BASELINE_FRACTION = 0.95
"""What a case must reach of a baseline run where nothing else is asked."""


@dataclass(frozen=True)
class Asked:
    """What the results of a run are held against.

    ``baseline``: a run to be as good as: what a criterion says ``of_baseline``, and otherwise `BASELINE_FRACTION` of it for every
    case that both measured.  ``catalogue``: of ceilings, if not ours.  ``topology``: which leaf switch each host hangs on.
    ``name``, ``text``: of the acceptance file, as it was named and as it was read.
    """

    acceptance: Acceptance = NOTHING
    baseline: LoadedRun | None = None
    catalogue: Catalogue | None = None
    topology: Topology | None = None
    name: str = ""
    text: str = ""


def judge(
    records: Sequence[Record], planned: Sequence[Planned], machines: Mapping[str, Machine], asked: Asked | None = None
) -> list[Verdict]:
    """Verdicts on cases and criteria (`accept.judge`), slow pairs (`sweeps`), slow groups (`groups`), machines (`inventory`)."""
    asked = asked or Asked()
    acceptance, baseline = asked.acceptance, asked.baseline
    criteria = list(acceptance.criteria)
    if baseline and not any(c.of_baseline for c in criteria):
        source = f"baseline {baseline.run.run_id}"
        criteria.append(Criterion(case="*", of_baseline=BASELINE_FRACTION, required=False, source=source))
    standards = accept.Standards(
        ceilings.of_machines(machines, asked.catalogue),
        baseline.records if baseline else (),
        {m.machine_id: why for m in machines.values() if (why := _barred(m, baseline))},
        {m.machine_id: m.peer_class for m in machines.values()},
        tuple(machines.values()),
    )
    inventories = inventory.judge(machines.values(), acceptance.expect, acceptance.source)
    slow = sweeps.verdicts(sweeps.findings(records, asked.topology, machines.values()))
    down = inventory.trained_down(machines.values())
    return [*accept.judge(records, criteria, standards, planned), *slow, *groups.verdicts(records), *inventories, *down]


def _barred(machine: Machine, baseline: LoadedRun | None) -> str:
    """Why a baseline can't serve for this machine; empty where one of its machines differs in nothing that matters."""
    if baseline is None or not baseline.machines:
        return ""
    found = [[d for d in differ.of_machines(other, machine) if d.bars] for other in baseline.machines.values()]
    least = min(found, key=len)
    return f"{least[0].kind} {least[0].name}: {least[0].a} there, {least[0].b} here" if least else ""
