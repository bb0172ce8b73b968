"""What is wrong in a run beside the times of its nodes' own cases: cases over several nodes, whoever is to blame, links that
trained down, GPUs that were not measured.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from clustergauge import accept, hosts, links, presence, topology, verdicts
from clustergauge.loading import LoadedRun
from clustergauge.model import Data, Record
from clustergauge.presence import launch_of
from clustergauge.verdicts import Asked


class Joint(Data, frozen=True, array_like=True):
    """A case over nodes that did not come to what it was to.  ``word``: its status, or the verdict on it."""

    case: str
    device: str
    word: str
    reason: str


def joint(loaded: LoadedRun, together: Sequence[Record]) -> list[Joint]:
    """What is wrong, failed or owed among the cases over nodes, each once, as `accept.exit_code` counts it.

    ``together``: the records of the run that are over several hosts.
    """
    planned = [p for p in loaded.run.planned if p.nodes > 1 and not p.skip]
    if not planned and not together:
        return []
    judged = verdicts.judge(together, planned, loaded.machines, Asked(topology=topology.of_run(loaded.run)))
    recorded = {launch_of(record) for record in together}
    partly = presence.partly(together, planned, loaded.machines.values())
    found = [Joint(r.case, r.device, r.status, r.reason) for r in together if r.status in ("wrong", "error")]
    found += [Joint(v.case, v.device, v.verdict, v.reason) for v in judged if v.device and accept.code_of([v.verdict])]
    found += [Joint(case, device, "not measured", f"over {words}") for (case, device, *_), words in partly.items()]
    found += [Joint(p.case, p.device, "not measured", "it has no record") for p in planned if launch_of(p) not in recorded]
    found += [Joint(r.case, r.device, "not measured", r.reason) for r in together if r.status == "ok" and accept.is_cut(r)]
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
    (`accept.of_gpus`).  Asked for on GPUs, and all of it skipped, is not measured on any machine (`accept.idle`)."""
    planned, device = loaded.run.planned, str(loaded.run.settings.get("device", ""))
    told = accept.of_gpus(loaded.records, planned, loaded.machines.values(), device)
    found = {machine_id: "; ".join(words) for machine_id, words in told.items()}
    if device and accept.idle(loaded.records, planned, device):
        found |= {machine_id: f"nothing was measured on {device}" for machine_id in loaded.machines if not found.get(machine_id)}
    return found
