"""All verdicts of a run: its cases against criteria, ceilings, a baseline and peers, its machines against what is expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustergauge import accept, ceilings, differ, groups, inventory, sweeps
from clustergauge.believed import Limits, limits_of
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
        ceiling=ceilings.of_machines(machines, asked.catalogue),
        baseline=baseline.records if baseline else (),
        baseline_limits=limits_of(baseline.machines, asked.catalogue) if baseline else Limits(),
        barred=_barred(machines.values(), baseline),
        classes={m.machine_id: m.peer_class for m in machines.values()},
        machines=tuple(machines.values()),
    )
    inventories = inventory.judge(machines.values(), acceptance.expect, acceptance.source)
    slow = sweeps.verdicts(sweeps.findings(records, asked.topology, machines.values()))
    down = inventory.trained_down(machines.values())
    return [*accept.judge(records, criteria, standards, planned), *slow, *groups.verdicts(records), *inventories, *down]


def _barred(machines: Iterable[Machine], baseline: LoadedRun | None) -> dict[str, str]:
    """Why a baseline can't serve, by machine; without those that differ in nothing that matters from one of its machines.

    The machines of a fleet are of few kinds: each kind is held against each once.
    """
    there = {repr(differ.traits(machine)): machine for machine in baseline.machines.values()} if baseline else {}
    known: dict[str, str] = {}
    found: dict[str, str] = {}
    for machine in machines if there else ():
        kind = repr(differ.traits(machine))
        if kind not in known:
            known[kind] = "" if kind in there else _nearest(machine, there.values())
        if known[kind]:
            found[machine.machine_id] = known[kind]
    return found


def _nearest(machine: Machine, others: Iterable[Machine]) -> str:
    """What stands between a machine and the one of others that differs least; empty where nothing does."""
    least = min(([d for d in differ.of_machines(other, machine) if d.bars] for other in others), key=len)
    return f"{least[0].kind} {least[0].name}: {least[0].a} there, {least[0].b} here" if least else ""
