"""All verdicts of a run: its cases against criteria, ceilings, a baseline and peers, its machines against what is expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clustergauge import accept, ceilings, differ, inventory
from clustergauge.ceilings import Ceiling
from clustergauge.criteria import NOTHING, Acceptance
from clustergauge.loading import LoadedRun
from clustergauge.model import Criterion, Machine, Metric, Planned, Record, Verdict

BASELINE_FRACTION = 0.95
"""What a case must reach of a baseline run where nothing else is asked."""


def judge(
    records: Sequence[Record],
    planned: Sequence[Planned],
    machines: Mapping[str, Machine],
    acceptance: Acceptance = NOTHING,
    baseline: LoadedRun | None = None,
) -> list[Verdict]:
    """Verdicts on every case and criterion (`accept.judge`) and on the machines (`inventory.judge`).

    ``baseline``: a run to be as good as: what a criterion says ``of_baseline``, and otherwise `BASELINE_FRACTION` of it for every
    case that both measured.
    """

    def ceiling(record: Record, metric: Metric) -> Ceiling | None:
        return ceilings.ceiling(record, machines[record.machine_id], metric)

    criteria = list(acceptance.criteria)
    if baseline and not any(c.of_baseline for c in criteria):
        source = f"baseline {baseline.run.run_id}"
        criteria.append(Criterion(case="*", of_baseline=BASELINE_FRACTION, required=False, source=source))
    standards = accept.Standards(
        ceiling,
        baseline.records if baseline else (),
        {m.machine_id: why for m in machines.values() if (why := _barred(m, baseline))},
        {m.machine_id: m.peer_class for m in machines.values()},
        tuple(machines.values()),
    )
    inventories = inventory.judge(machines.values(), acceptance.expect, acceptance.source)
    return [*accept.judge(records, criteria, standards, planned), *inventories, *inventory.trained_down(machines.values())]


def _barred(machine: Machine, baseline: LoadedRun | None) -> str:
    """Why a baseline can't serve for this machine; empty where one of its machines differs in nothing that matters."""
    if baseline is None or not baseline.machines:
        return ""
    found = [[d for d in differ.of_machines(other, machine) if d.bars] for other in baseline.machines.values()]
    least = min(found, key=len)
    return f"{least[0].kind} {least[0].name}: {least[0].a} there, {least[0].b} here" if least else ""
