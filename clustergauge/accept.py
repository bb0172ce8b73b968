"""From records and criteria to verdicts and the exit code.  Pure: judged anew whenever a run is read.

A verdict comes from the interval, with the spread between launches in it (`stats.judging_interval`), never from the point:
*pass* if all of it is on the right side of the bound, *FAIL* if none of it is, *inconclusive* otherwise.  What was asked for and
has no number is *not measured*, never a pass.  A number that cannot be true is *invalid*, whatever is asked of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from clustergauge import hosts, links, metrics, presence
from clustergauge.believed import Limits, contradiction, deciding, is_cut
from clustergauge.bounds import Asked, absolute, fraction
from clustergauge.criteria import kind_of
from clustergauge.globs import matches
from clustergauge.model import GPUS_UNUSABLE, Criterion, Machine, Metric, Planned, Record, Verdict
from clustergauge.presence import Launch, launch_of
from clustergauge.reached import Baseline, Devices, Group, Peers, grouped, kind_of_device
from clustergauge.units import counted, format_rate

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf

OK, FAILED, BROKEN, UNKNOWN = 0, 1, 3, 4
"""Exit codes of results; `exit_code` chooses."""
LEAST_PEERS = 3
"""Fewer others say nothing of what is usual."""


# --------------------------------------------------------------------------------------------------------------------------
# verdicts


@dataclass(frozen=True)
class Standards:
    """What verdicts lean on beside the criteria.

    ``ceiling``, ``machines``: see `Limits`.  ``baseline``: the records of a run to be as good as; ``baseline_limits``: what its
    own numbers are held against, for one that cannot be true is no baseline; ``barred``: why it cannot serve, by machine of this
    run.  ``classes``: the peer class of every machine.
    """

    ceiling: CeilingOf | None = None
    baseline: Sequence[Record] = ()
    baseline_limits: Limits = field(default_factory=Limits)
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
    groups = grouped(records)
    launches = _launches(planned, standards.machines)
    left = {key for key in _left(planned, standards.machines) if all(r.status == "skipped" for r in groups.get(key, ()))}
    limits = Limits(standards.ceiling, standards.machines)
    judges = _Judges(
        criteria,
        standards,
        limits,
        presence.partly(records, planned, standards.machines),
        Peers(Devices(groups, limits), standards.classes),
        Baseline(Devices(grouped(standards.baseline), standards.baseline_limits)),
    )
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
        verdicts += _not_measured(
            Verdict(case=case, device=device, verdict="not measured", reason=reason), judges.asked(case, device)
        )
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
    seen to be good.  So are GPUs that are there and were not measured (`gpus_unmeasured`).  Of a run over nodes it is not the
    whole: see `judgement.exit_code_of`.
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
class _Judges:
    """Criteria, and what they are held against."""

    criteria: Sequence[Criterion]
    standards: Standards
    limits: Limits
    partly: Mapping[Launch, str]
    """Over which nodes a launch was, where not over all that it was to span (`presence`)."""
    peers: Peers
    baseline: Baseline
    _asked: dict[tuple[str, str], list[Criterion]] = field(default_factory=dict[tuple[str, str], list[Criterion]])

    def asked(self, case: str, device: str) -> list[Criterion]:
        """The criteria on this case on such a device: the same for many devices of many nodes."""
        key = case, kind_of_device(device)
        if key not in self._asked:
            self._asked[key] = [c for c in self.criteria if applies(c, case, device)]
        return self._asked[key]

    def of(self, group: list[Record], launches: int) -> Iterator[Verdict]:
        """The verdicts of one case on one device of one machine.

        ``launches``: how many were planned of the kind that decides, 0 where that is not known.
        """
        first = group[0]
        verdict = Verdict(case=first.case, device=first.device, machine_id=first.machine_id, verdict="not measured")
        if fell := dict.fromkeys(words for r in group for words in links.fell(r.counters.health)):
            yield replace(verdict, verdict="FAIL", reason=f"a link trained down meanwhile: {', '.join(fell)}")
        asked = self.asked(first.case, first.device)
        bad = next((r for r in group if r.status in ("wrong", "error")), None)
        measured = [r for r in deciding(group) if r.status == "ok"]
        if bad or not measured:
            bad = bad or first
            yield from _not_measured(replace(verdict, reason=f"{bad.status}: {bad.reason}"), asked)
            return
        found = metrics.derive(measured)
        lie, doubt = contradiction(measured, found, self.limits)
        if lie:
            yield replace(verdict, verdict="invalid", reason=lie)
            return
        apart = metrics.disagreement(measured)
        cut = next((r.reason for r in measured if is_cut(r)), None)
        over = next((words for r in measured if (words := self.partly.get(launch_of(r)))), "")
        answered = False
        for criterion in asked:
            judged = self._verdict(replace(verdict, reason=doubt), criterion, measured, found)
            if judged.verdict == "not measured" and not criterion.required:
                continue
            answered = True
            if judged.verdict == "pass" and over:
                # there is a number, and not of what was asked; measuring again brings nobody back
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
        elif found and (not asked or (cut is not None and not answered)):
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
        asked = self._bounds(criterion, metric, measured)
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

    def _bounds(self, c: Criterion, metric: Metric, measured: list[Record]) -> Asked | str:
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
        number = self.baseline.number(record, metric.name)
        if isinstance(number, str):
            return number
        remark = f"{c.of_baseline:.0%} of the baseline's {format_rate(number.value, metric.unit)}"
        return fraction(c.of_baseline, number.value, metric, remark, number.width)

    def _of_peers(self, c: Criterion, metric: Metric, record: Record) -> Asked | str:
        """Against the median of all others of its class: devices of this kind, machines with the same parts, as many ranks."""
        count, middle = self.peers.others(record, metric.name)
        if count < LEAST_PEERS:
            return f"{counted(count, 'peer')} in this run, {LEAST_PEERS} are needed to be held against"
        remark = f"{c.of_peers:.0%} of the {format_rate(middle, metric.unit)} of {count} peers"
        return fraction(c.of_peers, middle, metric, remark)


def _confirmed(judged: Verdict, before: list[Record]) -> Verdict:
    """A verdict on fresh launches, with what was found before them."""
    metric = next((m for m in metrics.derive(before) if m.name == judged.metric), None)
    if metric is None:
        return judged
    words = f"measured again: {format_rate(metric.value, metric.unit)} before"
    return replace(judged, remark="; ".join(filter(None, (judged.remark, words))))


def _not_measured(verdict: Verdict, asked: Iterable[Criterion]) -> Iterator[Verdict]:
    """The verdict for each criterion on the case that required a number."""
    for c in asked:
        if c.required:
            yield replace(verdict, metric=c.metric, source=c.source)
