"""What was to be measured and was not, though no case failed: whole runs, and GPUs that are there.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from clustergauge import hosts
from clustergauge.model import GPUS_UNUSABLE, Machine, Planned, Record


def idle(records: Iterable[Record], planned: Iterable[Planned], device: str = "") -> bool:
    """Whether every case that was planned was skipped, when planned or when it was to run; with a ``device`` that was asked for
    (``cuda``), every case on such."""
    asked = [p for p in planned if p.device.startswith(device)]
    came = [r for r in records if r.device.startswith(device)]
    answered = {(r.case, r.device) for r in came}
    return (
        bool(asked) and all(p.skip or (p.case, p.device) in answered for p in asked) and all(r.status == "skipped" for r in came)
    )


def gpus(records: Iterable[Record], planned: Iterable[Planned], machines: Iterable[Machine], device: str = "") -> list[str]:
    """Of each machine none of whose GPUs was measured though cases were meant for them: that, and why, in words."""
    machines = list(machines)
    told = of_gpus(records, planned, machines, device)
    return [f"{machine.host}: {words}" for machine in machines for words in told.get(machine.machine_id, ())]


def of_gpus(
    records: Iterable[Record], planned: Iterable[Planned], machines: Iterable[Machine], device: str = ""
) -> dict[str, list[str]]:
    """What a run says of the GPUs of each machine, by its id: why they were not measured; nothing where they were, or are none.

    Of machines on which none was meant to be measured it says nothing, and they are left out: where the processor was asked for
    (``device``), and where all asked for has its place there (storage, MPI).  Where ``CUDA_VISIBLE_DEVICES`` hides GPUs, there
    are none: `preflight` says so.
    """
    if device == "cpu":
        return {}
    on_gpus = [r for r in records if r.device.startswith("cuda")]
    tried = {r.machine_id for r in on_gpus if r.status != "skipped"}
    spanned = {place.host for r in on_gpus if r.status != "skipped" for place in r.placement if hosts.spans(r.device)}
    late: dict[str, list[str]] = {}
    for record in on_gpus:
        if record.reason:
            late.setdefault(record.machine_id, []).append(record.reason)
    reasons_of: dict[str, list[str]] = {}  # by the nodes that a case was planned for: the same few for many machines
    for p in planned:
        if reason := p.instead or (p.skip if p.device.startswith("cuda") else ""):
            reasons_of.setdefault(p.hosts, []).append(reason)
    named = {where: set(hosts.expand(where)) for where in reasons_of if where}
    found: dict[str, list[str]] = {}
    for machine in machines:
        why = [f"{f.detail}; {f.remedy}" for f in machine.findings if f.name == GPUS_UNUSABLE]
        if not machine.gpus or machine.machine_id in tried or machine.host in spanned:
            found[machine.machine_id] = why
            continue
        meant = (told for where, told in reasons_of.items() if not where or not machine.node or machine.node in named[where])
        if reasons := [reason for told in meant for reason in told] or late.get(machine.machine_id):
            count = f"{len(machine.gpus)} GPUs are" if len(machine.gpus) > 1 else "a GPU is"
            why.append(f"{count} here and not measured: {Counter(reasons).most_common(1)[0][0]}")
        if why:
            found[machine.machine_id] = why
    return found
