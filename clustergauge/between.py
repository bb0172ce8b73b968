"""What is wrong in a run beside the times of its nodes' own cases: cases over several nodes, whoever is to blame, links that
trained down, GPUs that were not measured.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clustergauge import believed, exits, groups, hosts, links, presence, sweeps, topology, unmeasured, verdicts
from clustergauge.blamed import Joint
from clustergauge.groups import Failed
from clustergauge.loading import LoadedRun
from clustergauge.model import Record
from clustergauge.presence import Launch, Since, case_of, launch_of
from clustergauge.verdicts import Asked


def there(loaded: LoadedRun, together: Iterable[Record]) -> set[tuple[Launch, str]]:
    """The launches over nodes that have a number, with each machine that was in them."""
    by_host = {machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    return {
        (launch_of(record), by_host[place.host])
        for record in together
        if record.status == "ok"
        for place in record.placement
        if place.host in by_host
    }


def newest(loaded: LoadedRun, present: Iterable[tuple[Launch, str]]) -> dict[str, dict[str, str]]:
    """When the run began, for each machine and each case over nodes, or of pairs of its own, in which it has a number.

    ``present``: as `there` says.
    """
    own = ((launch_of(record), record.machine_id) for record in loaded.records if sweeps.is_sweep(record))
    found: dict[str, dict[str, str]] = {}
    for (case, device, *_), machine_id in (*present, *own):
        found.setdefault(machine_id, {})[case_of(case, device)] = loaded.run.started
    return found


def failed(loaded: LoadedRun) -> list[tuple[Since, Failed]]:
    """What pairs and groups say of single machines; the loss of one node is no fault of the others."""
    telling = [r for r in loaded.records if hosts.spans(r.device) or sweeps.is_sweep(r)]
    told = [r for r in telling if not hosts.tells_of_lost(r.reason, loaded.run.left_out)]
    by_host = {machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    return [
        (Since(loaded.run.started, [by_host[one.host]], [case_of(one.case, one.device)]), one)
        for one in groups.failed(told, loaded.machines.values(), topology.of_run(loaded.run))
        if one.host in by_host
    ]


def cut(loaded: LoadedRun, present: set[tuple[Launch, str]]) -> list[tuple[Since, str]]:
    """Machines that were lost or kept out, if they were to be in more over nodes than they were, and why."""
    out = {m: why for m, machine in loaded.machines.items() if (why := loaded.run.left_out.get(machine.node or machine.host))}
    if not out:
        return []
    names = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    found: dict[str, dict[str, None]] = {}
    for plan in loaded.run.planned:
        if plan.nodes > 1 and not plan.skip and not plan.confirms:
            for machine_id in (names.get(name, "") for name in hosts.expand(plan.hosts)):
                if machine_id in out and (launch_of(plan), machine_id) not in present:
                    found.setdefault(machine_id, {})[case_of(plan.case, plan.device)] = None
    return [(Since(loaded.run.started, [machine_id], list(cases)), out[machine_id]) for machine_id, cases in found.items()]


def joint(loaded: LoadedRun, together: Sequence[Record]) -> list[tuple[Since, Joint]]:
    """What is wrong, failed or owed among the cases over nodes, each once, as `exits.exit_code` counts it, with the machines for
    which they were planned.

    ``together``: the records of the run that are over several hosts.
    """
    names = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    members = {(p.case, p.device): p.hosts for p in loaded.run.planned if p.nodes > 1}
    found: list[tuple[Since, Joint]] = []
    for one in _joint(loaded, together):
        own = hosts.expand(members[one.case, one.device]) if members.get((one.case, one.device)) else names
        since = Since(loaded.run.started, [names[name] for name in own if name in names], [case_of(one.case, one.device)])
        found.append((since, one))
    return found


def _joint(loaded: LoadedRun, together: Sequence[Record]) -> list[Joint]:
    planned = [p for p in loaded.run.planned if p.nodes > 1 and not p.skip]
    if not planned and not together:
        return []
    judged = verdicts.judge(together, planned, loaded.machines, Asked(topology=topology.of_run(loaded.run)))
    recorded = {launch_of(record) for record in together}
    partly = presence.partly(together, planned, loaded.machines.values())
    found = [Joint(r.case, r.device, r.status, r.reason) for r in together if r.status in ("wrong", "error")]
    found += [Joint(v.case, v.device, v.verdict, v.reason) for v in judged if v.device and exits.code_of([v.verdict])]
    found += [Joint(case, device, "not measured", f"over {words}") for (case, device, *_), words in partly.items()]
    found += [Joint(p.case, p.device, "not measured", "it has no record") for p in planned if launch_of(p) not in recorded]
    found += [Joint(r.case, r.device, "not measured", r.reason) for r in together if r.status == "ok" and believed.is_cut(r)]
    return list(dict.fromkeys(found))


def fell(loaded: LoadedRun) -> dict[str, list[str]]:
    """The links that trained down while a case ran, each once, by machine; over nodes the node's name stands before (`team`)."""
    names = {machine.node or machine.host: machine_id for machine_id, machine in loaded.machines.items()}
    found: dict[str, dict[str, None]] = {}
    for record in loaded.records:
        for words in links.fell(record.counters.health) if record.counters.health else ():
            node, _, own = words.partition("/") if hosts.spans(record.device) else ("", "", words)
            found.setdefault(names.get(node, record.machine_id), {})[own] = None
    return {machine_id: list(words) for machine_id, words in found.items()}


def gpus(loaded: LoadedRun) -> dict[str, str]:
    """Why the GPUs of each machine were not measured, empty where they were; without those of which the run says nothing
    (`unmeasured.of_gpus`).  Asked for on GPUs, and all of it skipped, is not measured on any machine (`unmeasured.idle`)."""
    planned, device = loaded.run.planned, str(loaded.run.settings.get("device", ""))
    told = unmeasured.of_gpus(loaded.records, planned, loaded.machines.values(), device)
    found = {machine_id: "; ".join(words) for machine_id, words in told.items()}
    if device and unmeasured.idle(loaded.records, planned, device):
        found |= {machine_id: f"nothing was measured on {device}" for machine_id in loaded.machines if not found.get(machine_id)}
    return found
