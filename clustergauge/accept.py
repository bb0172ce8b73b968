"""From records and criteria to verdicts.  Pure: judged anew whenever a run is read.

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
from clustergauge.model import Criterion, Machine, Metric, Planned, Record, Verdict
from clustergauge.presence import Launch, launch_of
from clustergauge.reached import Baseline, Devices, Group, Peers, grouped, kind_of_device
from clustergauge.units import counted, format_rate

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf

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
