"""Run B against run A, case by case: changed, same, inconclusive or incomparable.  Pure: from the records of both.

The launch is the unit (`stats.compare_launches`).  What was not measured well on both sides, with the same work and on machines
that differ in nothing that matters (`differ`), is incomparable, and says why; so is what both runs set out to measure and one of
them skipped, lost or did on another device: it never reads as unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from clustergauge import believed, differ, exits, metrics, readings, stats
from clustergauge.believed import Limits
from clustergauge.differ import Difference
from clustergauge.loading import LoadedRun
from clustergauge.model import Machine, Metric, Record, Scalar
from clustergauge.reached import Group, grouped

Word = Literal["changed", "same", "not slower", "inconclusive", "incomparable", "broken"]
"""*broken*: wrong, an error or invalid in B, and a number in A.  *not slower*: whether faster is not known (`against` alone)."""
DELTA = 0.01
"""A change below this (relative) is none."""


@dataclass(frozen=True)
class Pair:
    """One case on one device, in A and in B.

    ``shift``: of the time, +0.05 where B takes 5 % longer, with its interval.  ``a``, ``b``: the headline metric on each side.
    ``launches``: that count, of each.  ``why``: of a pair that is not compared, or what else a reader should know.
    """

    case: str
    device: str
    params: dict[str, Scalar]
    hosts: tuple[str, str]
    word: Word
    a: Metric | None = None
    b: Metric | None = None
    launches: tuple[int, int] = (0, 0)
    shift: stats.Comparison | None = None
    why: str = ""

    @property
    def slower(self) -> bool:
        """B needs longer, beyond doubt."""
        return self.word == "changed" and self.shift is not None and self.shift.shift > 0


@dataclass(frozen=True)
class Report:
    """Two runs, compared.  ``differences``: between their machines, each once.  ``pairs``: the largest slowdown last.

    ``only_a``, ``only_b``: cases that the other run never set out to measure; what it planned and has no number for is a pair,
    *incomparable*.  ``anyway``: compared in spite of differences that forbid it.
    ``paired``: launch by launch, as they were measured together.
    ``notes``: what else a reader should know.
    """

    run_a: str
    run_b: str
    differences: list[Difference]
    pairs: list[Pair]
    only_a: list[str] = field(default_factory=list[str])
    only_b: list[str] = field(default_factory=list[str])
    anyway: bool = False
    paired: bool = False
    notes: list[str] = field(default_factory=list[str])

    def having(self, word: Word) -> list[Pair]:
        """The pairs of this word."""
        return [pair for pair in self.pairs if pair.word == word]


def compare(a: LoadedRun, b: LoadedRun, anyway: bool = False, delta: float = DELTA, paired: bool = False) -> Report:
    """B against A.

    Machines are matched by identity, else by host name; where both runs have one machine they are matched whatever they are (and
    then differ).  ``anyway``: compare in spite of differences between machines, drivers, libraries, clocks or settings.
    ``paired``: launches of the same number were measured together.
    """
    one, two = _side("A", a), _side("B", b)
    apart = _apart(a.machines, b.machines)
    there, back = dict(apart.keys()), {other: own for own, other in apart}
    barred = {own: "" if anyway else _barred(found) for (own, _), found in apart.items()}
    pairs: list[Pair] = []
    only: dict[str, list[str]] = {"A": [], "B": []}
    seen: set[Group] = set()
    for (machine, case, device), records in one.groups.items():
        group = (there.get(machine, ""), case, device)
        if group in two.groups:
            seen.add(group)
            pairs.append(_pair(one, two, records, two.groups[group], barred[machine], anyway, delta, paired))
        elif why := two.lacks(*group):
            pairs.append(_unpaired(one, two, records, group[0], why))
        else:
            only["A"].append(case)
    for (machine, case, device), records in two.groups.items():
        if (machine, case, device) in seen:
            continue
        before = back.get(machine, "")
        if before and device in one.planned.get(case, {}):
            pairs.append(_unpaired(two, one, records, before, one.lacks(before, case, device)))
        else:
            only["B"].append(case)
    return Report(
        run_a=a.run.run_id,
        run_b=b.run.run_id,
        differences=_each_once(a, b, apart),
        pairs=sorted(pairs, key=effect),
        only_a=list(dict.fromkeys(only["A"])),
        only_b=list(dict.fromkeys(only["B"])),
        anyway=anyway,
        paired=paired,
    )


@dataclass(frozen=True)
class Before:
    """What stands between a run and an earlier one, ``run_id``: each difference once.  ``machines``: how many were held against
    one of that run; of none nothing is known."""

    run_id: str
    differences: list[Difference]
    machines: int


def before(a: LoadedRun, b: LoadedRun) -> Before:
    """What is not the same on the machines of run ``b`` as it was in ``a``, and whether other code measured."""
    apart = _apart(a.machines, b.machines)
    return Before(a.run.run_id, _each_once(a, b, apart), len(apart))


def _each_once(a: LoadedRun, b: LoadedRun, apart: Mapping[tuple[str, str], list[Difference]]) -> list[Difference]:
    found = list(dict.fromkeys(d for differences in apart.values() for d in differences))
    if a.run.code != b.run.code:
        found.append(Difference("code", "suite", a.run.code[:12], b.run.code[:12], bars=False))
    return found


def exit_code(report: Report) -> int:
    """The worst that was found: 3 broken in B · 1 slower · 4 inconclusive, incomparable or nothing compared · 0."""
    if report.having("broken"):
        return exits.BROKEN
    if any(pair.slower for pair in report.pairs):
        return exits.FAILED
    unsure = report.having("inconclusive") or report.having("incomparable") or not report.pairs
    return exits.UNKNOWN if unsure else exits.OK


def _apart(a: dict[str, Machine], b: dict[str, Machine]) -> dict[tuple[str, str], list[Difference]]:
    """What differs between the machines of A and those of B that they are compared with, by pair."""
    return {(one, two): differ.of_machines(a[one], b[two]) for one, two in _matched(a, b)}


def _matched(a: dict[str, Machine], b: dict[str, Machine]) -> list[tuple[str, str]]:
    """Machines of A with those of B that they are compared with: none of B with two of A."""
    if len(a) == len(b) == 1:
        return [(next(iter(a)), next(iter(b)))]
    hosts = {machine.host: machine_id for machine_id, machine in b.items() if machine_id not in a}
    pairs = [(m, m if m in b else hosts.pop(machine.host, "")) for m, machine in a.items()]
    return [(one, two) for one, two in pairs if two]


@dataclass(frozen=True)
class _Side:
    """One of the runs, called ``name``.

    ``groups``: what was to be timed.  ``untimed``: a record of what was not, which says why.  ``planned``: the devices that each
    case was planned on, and why it was to be skipped there.
    """

    name: str
    loaded: LoadedRun
    groups: dict[Group, list[Record]]
    untimed: dict[Group, Record]
    planned: dict[str, dict[str, str]]
    limits: Limits

    def host(self, machine: str) -> str:
        """What to call a machine; empty where there is none."""
        return self.loaded.machines[machine].host if machine else ""

    def lacks(self, machine: str, case: str, device: str) -> str:
        """Why it has nothing to hold against a case of the other run; empty where it never set out to measure that.

        ``machine``: of this run, the one that is compared with the other's; empty where there is none.
        """
        devices = self.planned.get(case)
        if devices is None:
            return ""
        if not machine:
            return f"in {self.name}: this machine is not there"
        if record := self.untimed.get((machine, case, device)):
            return f"in {self.name}: {record.status}{record.reason and f': {record.reason}'}"
        if device not in devices:
            return f"in {self.name}: only on {', '.join(devices)}"
        return f"in {self.name}: " + (f"skipped: {devices[device]}" if devices[device] else "it has no record")


def _side(name: str, loaded: LoadedRun) -> _Side:
    timed = [r for r in loaded.records if r.status not in ("skipped", "verified")]
    untimed = {(r.machine_id, r.case, r.device): r for r in loaded.records if r.status in ("skipped", "verified")}
    planned: dict[str, dict[str, str]] = {}
    for plan in loaded.run.planned:
        devices = planned.setdefault(plan.case, {})
        devices[plan.device] = plan.skip and devices.get(plan.device, plan.skip)  # skipped by all nodes, or not at all
    return _Side(name, loaded, grouped(timed), untimed, planned, believed.limits_of(loaded.machines, loaded.catalogue))


def _unpaired(own: _Side, other: _Side, records: list[Record], machine: str, why: str) -> Pair:
    """A case that both runs set out to measure and one alone did.  ``machine``: of the other run.  ``why``: it did not."""
    first = records[0]
    trouble, found = believed.number(records, own.limits)
    ends = own.host(first.machine_id), other.host(machine)
    launches = 0 if trouble else len(believed.deciding(records))
    pair = Pair(first.case, first.device, first.params, ends, "incomparable", found, launches=(launches, 0), why=why)
    if trouble:
        pair = replace(pair, why=f"in {own.name}: {trouble}; {why}")
    if own.name == "A":
        return pair
    word: Word = "broken" if trouble else "incomparable"
    return replace(pair, hosts=(ends[1], ends[0]), word=word, a=None, b=found, launches=(0, launches))


def _pair(
    a: _Side, b: _Side, left: list[Record], right: list[Record], barred: str, anyway: bool, delta: float, paired: bool
) -> Pair:
    """One case on both sides."""
    first = left[0]
    hosts = (a.host(first.machine_id), b.host(right[0].machine_id))
    (one, number_a), (two, number_b) = believed.number(left, a.limits), believed.number(right, b.limits)
    left, right = believed.deciding(left), believed.deciding(right)

    def pair(word: Word, why: str, shift: stats.Comparison | None = None, met: int | None = None) -> Pair:
        launches = (0 if one else len(left), 0 if two else len(right)) if met is None else (met, met)
        return Pair(first.case, first.device, first.params, hosts, word, number_a, number_b, launches, shift, why)

    if two:
        return pair("broken", f"in both: {two}" if one else two)
    if one:
        return pair("incomparable", f"in A: {one}")
    differences = differ.of_records(left, right)
    work = [d for d in differences if d.kind == "work"]
    bars = work if anyway else [d for d in differences if d.bars]
    if barred or bars:
        return pair("incomparable", "; ".join(filter(None, (barred, _barred(bars)))))
    if apart := metrics.disagreement([*left, *right]):
        return pair("incomparable", apart)
    told = _told(d for d in differences if d.kind != "work")
    if not paired:
        shift = stats.compare_launches([readings.samples(r) for r in left], [readings.samples(r) for r in right], delta)
        return pair(shift.word, told, shift)
    there = {record.launch: readings.by_turn(record) for record in right}
    both = [stats.difference(readings.by_turn(r), there[r.launch]) for r in left if r.launch in there]
    known = [difference for difference in both if difference is not None]
    if not known:
        return pair("incomparable", "no launch was measured on both sides, turn beside turn")
    if len(known) < len(both):
        lost = f"{len(both) - len(known)} of {len(both)} launches were not measured turn beside turn: a longer budget_s helps"
        told = "; ".join(filter(None, (told, lost)))
    shift = stats.compare_pairs(known, delta)
    return pair(shift.word, told, shift, len(known))


def _barred(differences: Iterable[Difference]) -> str:
    return _told(d for d in differences if d.bars)


def _told(differences: Iterable[Difference]) -> str:
    """Differences in words, the first few."""
    told = [f"{d.kind} {d.name}: {d.a} against {d.b}" for d in differences]
    return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")


def effect(pair: Pair) -> tuple[int, float]:
    """What is not compared first, then the largest speedup, … the largest slowdown, what is broken last."""
    order = {"incomparable": 0, "broken": 2}.get(pair.word, 1)
    return order, pair.shift.shift if pair.shift else 0.0
