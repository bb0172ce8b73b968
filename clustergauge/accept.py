"""From records and criteria to verdicts and the exit code.  Pure: judged anew whenever a run is read.

A verdict comes from the interval, with the spread between launches in it (`stats.judging_interval`), never from the point:
*pass* if all of it is on the right side of the bound, *FAIL* if none of it is, *inconclusive* otherwise.  What was asked for and
has no number is *not measured*, never a pass.  A number that cannot be true is *invalid*, whatever is asked of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from clustergauge import hosts, links, metrics, path, presence, searched, stats
from clustergauge.bounds import Asked, absolute, fraction
from clustergauge.criteria import kind_of
from clustergauge.globs import matches
from clustergauge.model import GPUS_UNUSABLE, Criterion, Machine, Metric, Planned, Record, Verdict
from clustergauge.presence import Launch, launch_of
from clustergauge.units import format_rate

if TYPE_CHECKING:
    from clustergauge.ceilings import Ceiling

    CeilingOf = Callable[[Record, Metric], Ceiling | None]

OK, FAILED, BROKEN, UNKNOWN = 0, 1, 3, 4
"""Exit codes of results; `exit_code` chooses."""
LEAST_DEVICE_FRACTION = 0.95
"""Below it a cache answered in the device's place."""
LEAST_PEERS = 3
"""Fewer others say nothing of what is usual."""
REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "9p", "virtiofs", "afs", "pvfs", "wekafs", "s3")
"""File systems and stores (by the start of their type) whose device is not ours: the kernel's counters prove nothing there."""

FAULTS = (
    "ecc_uncorrected",
    "retired_pages_double_bit",
    "remapped_rows_uncorrected",
    "remap_failed",
    "uncorrected",
    "machine_checks",
    "aer_dev_fatal",
)
"""Health counters (last word of their names, beside every ``xid_…``): if one moves during a case, its numbers mean nothing."""

Group = tuple[str, str, str]
"""Machine, case, device: the launches of one group are judged together."""


# --------------------------------------------------------------------------------------------------------------------------
# verdicts


@dataclass(frozen=True)
class Standards:
    """What verdicts lean on beside the criteria.

    ``ceiling``: what physics allows a metric (``None`` where unknown).  ``baseline``: the records of a run to be as good as;
    ``barred``: why it cannot serve, by machine of this run.  ``classes``: the peer class of every machine.  ``machines``: those
    of the run, whose links say what path a case was meant to take.
    """

    ceiling: CeilingOf | None = None
    baseline: Sequence[Record] = ()
    barred: Mapping[str, str] = field(default_factory=dict[str, str])
    classes: Mapping[str, str] = field(default_factory=dict[str, str])
    machines: Sequence[Machine] = ()


def judge(
    records: Sequence[Record],
    criteria: Sequence[Criterion] = (),
    standards: Standards | None = None,
    planned: Sequence[Planned] = (),
) -> list[Verdict]:
    """One verdict for each case that was measured and each criterion on it, in the order of the records.

    ``planned``: what should have been measured: a case of it that a criterion requires and that has no record is *not measured*,
    and one with fewer launches, or over fewer nodes, than planned never passes.  Nodes that leave a case to others (`plan_nodes`)
    have no verdict on it: a criterion asks those others.
    """
    standards = standards or Standards()
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault((record.machine_id, record.case, record.device), []).append(record)
    launches = _launches(planned, standards.machines)
    left = {key for key in _left(planned, standards.machines) if all(r.status == "skipped" for r in groups.get(key, ()))}
    judges = _Judges(criteria, standards, groups, presence.partly(records, planned, standards.machines))
    verdicts = [
        verdict
        for (machine_id, case, device), group in groups.items()
        if (machine_id, case, device) not in left
        for verdict in judges.of(group, launches(machine_id, case, device, any(r.confirms for r in group)))
    ]
    recorded = {(case, device) for _, case, device in groups.keys() - left}
    missing: dict[tuple[str, str], list[Planned]] = {}
    for p in planned:
        if (p.case, p.device) not in recorded:
            missing.setdefault((p.case, p.device), []).append(p)
    for (case, device), plans in missing.items():
        skipped = all(p.skip for p in plans)
        reason = f"skipped: {plans[0].skip}" if skipped else "the run did not get to it"
        verdicts += _not_measured(Verdict(case=case, device=device, verdict="not measured", reason=reason), criteria)
    everything = [*recorded, *missing]
    verdicts += [
        Verdict(case=c.case, metric=c.metric, verdict="not measured", reason="no case of this run matches", source=c.source)
        for c in criteria
        if c.required and not any(applies(c, *key) for key in everything)
    ]
    return verdicts


def _launches(planned: Iterable[Planned], machines: Iterable[Machine]) -> Callable[[str, str, str, bool], int]:
    """How many launches a machine was to make of a case on a device, fresh ones (``confirms``) apart.

    What nodes measure alone each owes as often as it was planned for itself: some measure a case again, others need not.
    """
    names = {machine.machine_id: machine.node for machine in machines}
    counts = Counter[tuple[str, str, bool, str]]()
    for case, device, confirms, _, where in {
        (p.case, p.device, p.confirms, p.launch, p.hosts if p.nodes == 1 else "") for p in planned if not p.skip
    }:
        counts.update((case, device, confirms, name) for name in (hosts.expand(where) if where else [""]))

    def count(machine_id: str, case: str, device: str, confirms: bool) -> int:
        return max(counts[case, device, confirms, name] for name in {"", names.get(machine_id, "")})

    return count


def _left(planned: Iterable[Planned], machines: Iterable[Machine]) -> set[Group]:
    """What machines leave to others with which they share a storage target."""
    ids = {machine.node: machine.machine_id for machine in machines}
    left = [p for p in planned if p.skip and p.in_turn]
    members = {p.hosts: hosts.expand(p.hosts) for p in left}
    return {(ids[name], p.case, p.device) for p in left for name in members[p.hosts] if name in ids}


def applies(criterion: Criterion, case: str, device: str) -> bool:
    """Whether a criterion is about this case on this device."""
    return criterion.device in ("", kind_of_device(device)) and matches(criterion.case, case)


def kind_of_device(device: str) -> str:
    """``cpu`` or ``cuda`` of one machine, ``cpu:nodes`` over all, ``cpu:groups`` over some: what is alike can be compared."""
    kind = device.partition(":")[0]
    return f"{kind}:groups" if hosts.is_group(device) else device if hosts.spans(device) else kind


def deciding(records: Sequence[Record]) -> list[Record]:
    """Of the launches of one case those that its verdict and its numbers come from: the fresh ones, where there are such."""
    fresh = [record for record in records if record.confirms]
    return fresh or list(records)


def idle(records: Iterable[Record], planned: Iterable[Planned], device: str = "") -> bool:
    """Whether every case that was planned was skipped, when planned or when it was to run; with a ``device`` that was asked for
    (``cuda``), every case on such."""
    asked = [p for p in planned if p.device.startswith(device)]
    came = [r for r in records if r.device.startswith(device)]
    answered = {(r.case, r.device) for r in came}
    return (
        bool(asked) and all(p.skip or (p.case, p.device) in answered for p in asked) and all(r.status == "skipped" for r in came)
    )


def gpus_unmeasured(
    records: Iterable[Record], planned: Iterable[Planned], machines: Iterable[Machine], device: str = ""
) -> list[str]:
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
    records, planned = list(records), list(planned)
    on_gpus = [r for r in records if r.device.startswith("cuda")]
    tried = {r.machine_id for r in on_gpus if r.status != "skipped"}
    spanned = {place.host for r in on_gpus if r.status != "skipped" for place in r.placement if hosts.spans(r.device)}
    named = {where: set(hosts.expand(where)) for where in {p.hosts for p in planned} if where}  # the same few for many machines
    found: dict[str, list[str]] = {}
    for machine in machines:
        why = [f"{f.detail}; {f.remedy}" for f in machine.findings if f.name == GPUS_UNUSABLE]
        if not machine.gpus or machine.machine_id in tried or machine.host in spanned:
            found[machine.machine_id] = why
            continue
        own = [p for p in planned if not p.hosts or not machine.node or machine.node in named[p.hosts]]
        late = [r.reason for r in on_gpus if r.machine_id == machine.machine_id and r.reason]
        reasons = [p.instead or p.skip for p in own if p.instead or (p.device.startswith("cuda") and p.skip)] or late
        if reasons:
            count = f"{len(machine.gpus)} GPUs are" if len(machine.gpus) > 1 else "a GPU is"
            why.append(f"{count} here and not measured: {Counter(reasons).most_common(1)[0][0]}")
        if why:
            found[machine.machine_id] = why
    return found


def exit_code(
    records: Sequence[Record],
    verdicts: Iterable[Verdict],
    planned: Sequence[Planned] = (),
    device: str = "",
    machines: Iterable[Machine] = (),
) -> int:
    """The worst that happened: 3 wrong, error, invalid · 1 FAIL · 4 not measured, inconclusive · 0.

    Not measured is what was planned and has no record, or one that was cut short (`is_cut`) or was over fewer nodes than it was
    to be, what nodes left to a case over all of them that has no number (`presence`), and a run that is `idle`: nothing in it was
    seen to be good.  So are GPUs that are there and were not
    measured (`gpus_unmeasured`).  Of a run over nodes it is not the whole: see `judgement.exit_code_of`.
    """
    machines = list(machines)
    outcomes: set[str] = {v.verdict for v in verdicts}
    statuses: set[str] = {r.status for r in records}
    recorded = Counter((r.case, r.device, r.launch) for r in records)
    wanted = Counter[tuple[str, str, int]]()
    for p in planned:
        if not p.skip:
            wanted[p.case, p.device, p.launch] += len(hosts.expand(p.hosts)) if p.hosts and p.nodes == 1 else 1
    if any(recorded[key] < count for key, count in wanted.items()):
        outcomes.add("not measured")
    if idle(records, planned, device) or any(r.status == "ok" and is_cut(r) for r in records):
        outcomes.add("not measured")
    missing = presence.absent(records, planned, machines) or presence.unjudged(records, planned)
    if missing or gpus_unmeasured(records, planned, machines, device):
        outcomes.add("not measured")
    return code_of(outcomes | statuses)


def code_of(words: Iterable[str]) -> int:
    """The exit code of what cases came to: of verdicts and of statuses the worst."""
    found = set(words)
    if found & {"wrong", "error", "invalid"}:
        return BROKEN
    if "FAIL" in found:
        return FAILED
    return UNKNOWN if found & {"not measured", "inconclusive"} else OK


def worst(codes: Iterable[int]) -> int:
    """The exit code that says the worst of several."""
    return min(codes, key=(BROKEN, FAILED, UNKNOWN, OK).index, default=OK)


@dataclass(frozen=True)
class _Peer:
    """What one device reached in a case.  ``alike``: its kind, its class and its ranks, equal among peers."""

    machine_id: str
    device: str
    alike: tuple[str, str | None, int]
    values: Mapping[str, float]


@dataclass(frozen=True)
class _Judges:
    """Criteria, and what they are held against."""

    criteria: Sequence[Criterion]
    standards: Standards
    groups: Mapping[Group, list[Record]]
    partly: Mapping[Launch, str]
    """Over which nodes a launch was, where not over all that it was to span (`presence`)."""
    peers: dict[str, list[_Peer]] = field(default_factory=dict[str, list[_Peer]])
    """By case, once one of its devices was held against the others: all of them will be."""

    def of(self, group: list[Record], launches: int) -> Iterator[Verdict]:
        """The verdicts of one case on one device of one machine.

        ``launches``: how many were planned of the kind that decides, 0 where that is not known.
        """
        first = group[0]
        verdict = Verdict(case=first.case, device=first.device, machine_id=first.machine_id, verdict="not measured")
        if fell := dict.fromkeys(words for r in group for words in links.fell(r.counters.health)):
            yield replace(verdict, verdict="FAIL", reason=f"a link trained down meanwhile: {', '.join(fell)}")
        bad = next((r for r in group if r.status in ("wrong", "error")), None)
        measured = [r for r in deciding(group) if r.status == "ok"]
        if bad or not measured:
            bad = bad or first
            yield from _not_measured(replace(verdict, reason=f"{bad.status}: {bad.reason}"), self.criteria)
            return
        found = metrics.derive(measured)
        lie, doubt = _contradiction(measured, found, self.standards)
        if lie:
            yield replace(verdict, verdict="invalid", reason=lie)
            return
        asked = [c for c in self.criteria if applies(c, first.case, first.device)]
        apart = metrics.disagreement(measured)
        cut = next((r.reason for r in measured if is_cut(r)), None)
        over = next((words for r in measured if (words := self.partly.get(launch_of(r)))), "")
        for criterion in asked:
            judged = self._verdict(replace(verdict, reason=doubt), criterion, measured, found)
            if judged.verdict == "not measured" and not criterion.required:
                continue
            if (
                judged.verdict == "pass" and over
            ):  # there is a number, and not of what was asked; measuring again brings nobody back
                judged = replace(judged, verdict="not measured", reason=f"over {over}")
            if judged.verdict == "pass" and cut is not None:
                judged = replace(judged, verdict="inconclusive", reason=cut)
            if judged.verdict == "pass" and len(measured) < launches:
                few = f"only {len(measured)} of {launches} launches were measured"
                judged = replace(judged, verdict="inconclusive", reason=few)
            if measured[0].confirms:
                judged = _confirmed(judged, [r for r in group if not r.confirms and r.status == "ok"])
            yield judged
        if not asked and apart and {m.name for m in found} <= {"device_fraction"}:
            yield replace(verdict, reason=f"nothing in common: {apart}")
        elif not asked and found:
            told = replace(verdict, metric=found[0].name, unit=found[0].unit, value=found[0].value)
            word = "unreferenced" if cut is None else "inconclusive"  # a burn-in must last as long as it was to
            yield replace(told, verdict=word, reason=doubt if cut is None else cut)

    def _verdict(self, verdict: Verdict, criterion: Criterion, measured: list[Record], found: Sequence[Metric]) -> Verdict:
        """One criterion on one measured case; ``verdict`` names the case, and what is doubtful about it."""
        metric = next((m for m in found if criterion.metric in ("", m.name)), None)
        verdict = replace(verdict, metric=criterion.metric or (metric.name if metric else ""), source=criterion.source)
        if metric is None:
            apart = metrics.disagreement(measured)
            return replace(verdict, reason=f"this case has no {criterion.metric or 'metric'}{apart and f': {apart}'}")
        asked = self._asked(criterion, metric, measured)
        if isinstance(asked, str):
            return replace(verdict, reason=asked)
        if asked.unit != metric.unit:
            return replace(verdict, reason=f"this case has no {criterion.metric} in {asked.unit}")
        bound, at_least = asked.bound_for(metric.value)
        outcome, reason = asked.side_of(metric)
        return replace(
            verdict,
            verdict=outcome,
            reason=reason or verdict.reason,
            remark=asked.remark,
            value=metric.value,
            unit=metric.unit,
            bound=bound,
            margin=(metric.value / bound - 1) * (1 if at_least else -1),
        )

    def _asked(self, c: Criterion, metric: Metric, measured: list[Record]) -> Asked | str:
        """The bounds of a criterion for this metric; in words why there are none."""
        match kind_of(c):
            case "floor":
                return Asked(*absolute(c.floor, c.unit), None)
            case "limit":
                limit, unit = absolute(c.limit, c.unit)
                return Asked(None, unit, limit)
            case "reference":
                value, unit = absolute(c.reference, c.unit)
                low, high = (None if part is None else value * (1 + part) for part in (c.lower, c.upper))
                return Asked(low or None, unit, high)
            case "of_ceiling":
                limit = self.standards.ceiling(measured[0], metric) if self.standards.ceiling else None
                if limit is None or limit.unit != metric.unit:
                    return "no ceiling is known for it"
                remark = f"{c.of_ceiling:.0%} of {'' if limit.firm else 'an estimated '}{format_rate(limit.value, limit.unit)}"
                return fraction(c.of_ceiling, limit.value, metric, remark)
            case "of_baseline":
                return self._of_baseline(c, metric, measured[0])
            case _:
                return self._of_peers(c, metric, measured[0])

    def _of_baseline(self, c: Criterion, metric: Metric, record: Record) -> Asked | str:
        if barred := self.standards.barred.get(record.machine_id):
            return f"the baseline cannot serve: {barred}"
        kind = kind_of_device(record.device)
        there = [r for r in self.standards.baseline if r.case == record.case and r.status == "ok"]
        same = [r for r in there if r.ranks == record.ranks]
        if there and not same:
            return f"the baseline measured it on {there[0].ranks} ranks, here are {record.ranks}"
        own = [r for r in same if r.machine_id == record.machine_id and r.device == record.device]
        groups: dict[Group, list[Record]] = {}
        for r in own or [r for r in same if kind_of_device(r.device) == kind]:
            groups.setdefault((r.machine_id, r.case, r.device), []).append(r)
        values = [m for group in groups.values() for m in metrics.derive(deciding(group)) if m.name == metric.name]
        if not values:
            return "the baseline has no number for it"
        middle = stats.median([m.value for m in values])
        widths = [(m.high - m.low) / 2 / m.value for m in values if m.low is not None and m.high is not None and m.value > 0]
        if not widths:
            return "the baseline has too few samples for an interval"
        remark = f"{c.of_baseline:.0%} of the baseline's {format_rate(middle, metric.unit)}"
        return fraction(c.of_baseline, middle, metric, remark, stats.median(widths) / math.sqrt(len(widths)))

    def _of_peers(self, c: Criterion, metric: Metric, record: Record) -> Asked | str:
        """Against the median of all others of its class: devices of this kind, machines with the same parts, as many ranks."""
        kind, classes = kind_of_device(record.device), self.standards.classes
        alike = (kind, classes.get(record.machine_id), record.ranks)
        own = (record.machine_id, record.device)
        values = [
            peer.values[metric.name]
            for peer in self._peers(record.case)
            if peer.alike == alike and (peer.machine_id, peer.device) != own and metric.name in peer.values
        ]
        if len(values) < LEAST_PEERS:
            return f"{len(values)} peers in this run, {LEAST_PEERS} are needed to be held against"
        middle = stats.median(values)
        remark = f"{c.of_peers:.0%} of the {format_rate(middle, metric.unit)} of {len(values)} peers"
        return fraction(c.of_peers, middle, metric, remark)

    def _peers(self, case: str) -> list[_Peer]:
        """All devices that measured a case well, each with its numbers."""
        if case not in self.peers:
            self.peers[case] = [
                _Peer(
                    machine_id,
                    device,
                    (kind_of_device(device), self.standards.classes.get(machine_id), group[0].ranks),
                    {m.name: m.value for m in metrics.derive(deciding(group))},
                )
                for (machine_id, of, device), group in self.groups.items()
                if of == case and all(r.status == "ok" for r in group)
            ]
        return self.peers[case]


def _confirmed(judged: Verdict, before: list[Record]) -> Verdict:
    """A verdict on fresh launches, with what was found before them."""
    metric = next((m for m in metrics.derive(before) if m.name == judged.metric), None)
    if metric is None:
        return judged
    words = f"measured again: {format_rate(metric.value, metric.unit)} before"
    return replace(judged, remark="; ".join(filter(None, (judged.remark, words))))


def _not_measured(verdict: Verdict, criteria: Iterable[Criterion]) -> Iterator[Verdict]:
    """The verdict for each criterion that required a number."""
    for c in criteria:
        if c.required and applies(c, verdict.case, verdict.device):
            yield replace(verdict, metric=c.metric, source=c.source)


def _contradiction(records: list[Record], found: Sequence[Metric], standards: Standards) -> tuple[str, str]:
    """Why the numbers cannot be true, and why they are hard to believe (above an estimated limit); empty where nothing is."""
    doubt = ""
    if faults := sorted({f"{name} {change}" for r in records for name, change in r.counters.health.items() if _is_fault(name)}):
        return f"the hardware failed meanwhile: {', '.join(faults)}", ""
    for record in records:
        proof = path.proof(record, standards.machines)
        if proof and proof.state == "contradicted":
            return f"another path: meant for {proof.path}, but {proof.reason}", ""
    if less := searched.refuted(records, found):
        return less, ""
    for metric in found:
        if metric.name == "device_fraction" and metric.value < LEAST_DEVICE_FRACTION and not is_remote(records[0]):
            return f"cached: the device moved {metric.value:.0%} of the bytes", ""
        limit = standards.ceiling(records[0], metric) if standards.ceiling else None
        if limit and surely_above(metric, limit.value):
            words = f"above the {'' if limit.firm else 'estimated '}ceiling of {format_rate(limit.value, limit.unit)}"
            if limit.firm:
                return f"{words} ({limit.source})", ""
            doubt = words
    return "", doubt


def is_bad(record: Record) -> bool:
    """Whether a record speaks against its machine: wrong, an error, or hardware that failed meanwhile."""
    return record.status in ("wrong", "error") or any(map(_is_fault, record.counters.health))


def is_cut(record: Record) -> bool:
    """Whether work that was to run for its whole budget was cut short: what it holds is measured, and less than was asked."""
    return record.measurement is not None and record.measurement.stop_reason == "interrupted"


def _is_fault(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in FAULTS or last.startswith("xid_")


def surely_above(metric: Metric, limit: float) -> bool:
    """Whether all of the interval lies above; the number alone decides where there is none."""
    return (metric.value if metric.low is None else metric.low) > limit


def is_remote(record: Record) -> bool:
    """Whether a storage case ran on a file system whose device is not this machine's."""
    return str(record.settings.get("fs_type", "")).startswith(REMOTE)
