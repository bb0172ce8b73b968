"""An acceptance file from a good run: every case's headline as its reference, and what its machine is.  Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from clustergauge import metrics, readings, stats
from clustergauge.believed import Limits, deciding, limits_of, number
from clustergauge.criteria import Acceptance, Expect
from clustergauge.loading import LoadedRun
from clustergauge.model import Criterion, Machine, Metric, Record
from clustergauge.reached import kind_of_device
from clustergauge.units import format_rate, parse_rate
from clustergauge.valid import printable

TOLERANCE = 0.05
"""What a case may fall short of its reference, at least."""
WIDTHS = 2.0
"""Half-widths of its interval that the tolerance holds, at least: one narrower than that would be inconclusive for ever."""
WIDE = 0.2
"""A tolerance from which a case asks for little."""
OWN_SPREAD = 3
"""Launches that show their own spread (`stats.run_spread`)."""
NAMED = 8
"""Cases that a remark names."""


def acceptance_of(loaded: LoadedRun) -> Acceptance:
    """References for all cases with a number; of several devices of one kind their median, with room for how they differ."""
    limits = limits_of(loaded.machines, loaded.catalogue)
    criteria = [c for key, devices in _groups(loaded).items() if (c := _criterion(loaded, limits, *key, devices.values()))]
    machines = list(loaded.machines.values())
    return Acceptance(criteria=criteria, expect=_expect(machines[0]) if machines else None, title=f"as run {loaded.run.run_id}")


def remarks(loaded: LoadedRun, acceptance: Acceptance) -> list[str]:
    """What such a file does not ask for, or hardly, because of the run that it was made from; a line each, fit to print."""
    asked = {(c.case, c.device): c for c in acceptance.criteria}
    broken: list[str] = []
    restless: list[str] = []
    wide: list[str] = []
    loose: list[str] = []
    single: list[str] = []
    few, limits = bool(asked), limits_of(loaded.machines, loaded.catalogue)
    for (case, kind), devices in _groups(loaded).items():
        chosen = [deciding(records) for records in devices.values()]
        statuses = {record.status for records in chosen for record in records}
        if (criterion := asked.get((case, kind))) is None:
            troubles = [number(records, limits)[0] for records in devices.values()]
            if statuses & {"wrong", "error"} or any(trouble.startswith("invalid") for trouble in troubles):
                broken.append(case)
            elif "ok" in statuses:
                (restless if all(_width(records) is not None for records in chosen) else single).append(case)
            continue
        room = max(abs(criterion.lower or 0.0), criterion.upper or 0.0)
        if room >= WIDE:
            wide.append(f"{case} ({room:.0%} worse)")
        if any((head := metrics.headline(records)) and head.low is None for records in chosen):
            loose.append(case)
        few = few and all(len(records) < OWN_SPREAD for records in chosen)
    told = {
        "not asked for, wrong, an error or invalid in this run": broken,
        "not asked for, too restless in this run to say anything": restless,
        "not asked for, a single sample does not tell how far others would lie from it": single,
        "lets through what is far worse, for this run was restless": wide,
        "from too few samples for an interval, with room for how far these lie apart": loose,
    }
    found = [f"{what}: {_some(cases)}" for what, cases in told.items() if cases]
    assumed = f"how far fresh launches lie apart is assumed ({100 * stats.RUN_SPREAD:g} %): no case has {OWN_SPREAD} launches"
    return [*found, assumed] if few else found


def _some(cases: list[str]) -> str:
    more = len(cases) - NAMED
    return printable(", ".join(cases[:NAMED])) + (f", … +{more}" if more > 0 else "")


def _groups(loaded: LoadedRun) -> dict[tuple[str, str], dict[tuple[str, str], list[Record]]]:
    """Records by case and kind of device; within, by device."""
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Record]]] = {}
    for record in loaded.records:
        kind = kind_of_device(record.device)
        groups.setdefault((record.case, kind), {}).setdefault((record.machine_id, record.device), []).append(record)
    return groups


def _criterion(loaded: LoadedRun, limits: Limits, case: str, kind: str, devices: Iterable[list[Record]]) -> Criterion | None:
    heads: list[Metric] = []
    widths: list[float | None] = []
    for records in devices:
        if head := number(records, limits)[1]:
            heads.append(head)
            widths.append(_width(deciding(records)))
    if not heads or any(h.name != heads[0].name or h.unit != heads[0].unit for h in heads):
        return None
    middle = stats.median([h.value for h in heads])
    unit = format_rate(middle, heads[0].unit).partition(" ")[2]
    reference = float(f"{middle / parse_rate(1.0, unit)[0]:.4g}")
    spread = max(abs(h.value / middle - 1) for h in heads)
    known = [width for width in widths if width is not None]
    if len(known) < len(widths):
        return None
    room = math.ceil(round(100 * max(TOLERANCE, WIDTHS * max(known), spread), 6)) / 100
    source = f"run {loaded.run.run_id} of {loaded.run.started}, {', '.join(m.host for m in loaded.machines.values())[:200]}"
    if room >= 1:
        return None  # so restless a case says nothing
    lower, upper = (-room, None) if heads[0].better == "higher" else (None, room)
    return Criterion(
        case=case,
        device=kind,  # pyright: ignore[reportArgumentType]
        metric=heads[0].name,
        reference=reference,
        unit=unit,
        lower=lower,
        upper=upper,
        source=source,
    )


def _width(records: list[Record]) -> float | None:
    """How unsure a number is (relative): half of its interval; where samples are too few for one, half of how far they lie apart.

    ``None`` of a single sample, of which nothing is known.
    """
    head = metrics.headline(records)
    if head and (half := metrics.half_width(head)) is not None:
        return half
    times = sorted(seconds for record in records for seconds in readings.samples(record))
    return (times[-1] - times[0]) / 2 / stats.median(times) if len(times) > 1 else None


def _expect(machine: Machine) -> Expect:
    gpus = machine.gpus
    names = {gpu.name for gpu in gpus}
    ecc, mig = ({getattr(gpu, name) for gpu in gpus} for name in ("ecc", "mig"))
    return Expect(
        gpus=len(gpus) or None,
        gpu=names.pop() if len(names) == 1 else "",
        ecc=ecc.pop() if len(ecc) == 1 else None,
        mig=mig.pop() if len(mig) == 1 else None,
        cores=machine.cpu.cores,
        memory=f"{int(0.95 * machine.memory_bytes) >> 30}GiB" if machine.memory_bytes >> 30 > 1 else "",
    )
