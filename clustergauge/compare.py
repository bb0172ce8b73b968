"""Run B against run A, case by case: changed, same, inconclusive or incomparable.  Pure: from the records of both.

The launch is the unit (`stats.compare_launches`).  What was not measured well on both sides, with the same work and on machines
that differ in nothing that matters (`differ`), is incomparable, and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clustergauge import accept, ceilings, differ, metrics, stats
from clustergauge.ceilings import Ceiling
from clustergauge.differ import Difference
from clustergauge.loading import LoadedRun
from clustergauge.model import Machine, Metric, Record, Scalar

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

    ``only_a``, ``only_b``: cases that the other run did not plan.  ``anyway``: compared in spite of differences that forbid it.
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


Group = tuple[str, str, str]
"""Machine, case, device."""


def compare(a: LoadedRun, b: LoadedRun, anyway: bool = False, delta: float = DELTA, paired: bool = False) -> Report:
    """B against A.

    Machines are matched by identity, else by host name; where both runs have one machine they are matched whatever they are (and
    then differ).  ``anyway``: compare in spite of differences between machines, drivers, libraries, clocks or settings.
    ``paired``: launches of the same number were measured together.
    """
    apart = _apart(a.machines, b.machines)
    left, right = _groups(a.records), _groups(b.records)
    pairs: list[Pair] = []
    partners = dict(list(apart))
    barred = {one: "" if anyway else _barred(found) for (one, _), found in apart.items()}
    seen: set[Group] = set()
    for (machine_id, case, device), records in left.items():
        key = (partners.get(machine_id, ""), case, device)
        if key in right:
            seen.add(key)
            if pair := _pair(a, b, records, right[key], barred[machine_id], anyway, delta, paired):
                pairs.append(pair)
    return Report(
        run_a=a.run.run_id,
        run_b=b.run.run_id,
        differences=_each_once(a, b, apart),
        pairs=sorted(pairs, key=effect),
        only_a=_cases(g for g in left if (partners.get(g[0], ""), g[1], g[2]) not in right),
        only_b=_cases(g for g in right if g not in seen),
        anyway=anyway,
        paired=paired,
    )


def between(a: LoadedRun, b: LoadedRun) -> list[Difference]:
    """What is not the same on the machines of two runs, each once, and whether other code measured."""
    return _each_once(a, b, _apart(a.machines, b.machines))


def _each_once(a: LoadedRun, b: LoadedRun, apart: Mapping[tuple[str, str], list[Difference]]) -> list[Difference]:
    found = list(dict.fromkeys(d for differences in apart.values() for d in differences))
    if a.run.code != b.run.code:
        found.append(Difference("code", "suite", a.run.code[:12], b.run.code[:12], bars=False))
    return found


def exit_code(report: Report) -> int:
    """The worst that was found: 3 broken in B · 1 slower · 4 inconclusive, incomparable or nothing compared · 0."""
    if report.having("broken"):
        return accept.BROKEN
    if any(pair.slower for pair in report.pairs):
        return accept.FAILED
    unsure = report.having("inconclusive") or report.having("incomparable") or not report.pairs
    return accept.UNKNOWN if unsure else accept.OK


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


def to_be_timed(record: Record) -> bool:
    """Whether the case should have come to a number."""
    return record.status not in ("skipped", "verified")


def _groups(records: Iterable[Record]) -> dict[Group, list[Record]]:
    groups: dict[Group, list[Record]] = {}
    for record in records:
        if to_be_timed(record):
            groups.setdefault((record.machine_id, record.case, record.device), []).append(record)
    return groups


def _cases(groups: Iterable[Group]) -> list[str]:
    return list(dict.fromkeys(case for _, case, _ in groups))


def _pair(
    a: LoadedRun, b: LoadedRun, left: list[Record], right: list[Record], barred: str, anyway: bool, delta: float, paired: bool
) -> Pair | None:
    """One case on both sides; ``None`` where neither has a number and so nothing changed."""
    first, second = left[0], right[0]
    hosts = (a.machines[first.machine_id].host, b.machines[second.machine_id].host)
    one, two = _trouble(a, left), _trouble(b, right)

    def pair(word: Word, why: str, shift: stats.Comparison | None = None, launches: tuple[int, int] | None = None) -> Pair:
        number_a, number_b = None if one else metrics.headline(left), None if two else metrics.headline(right)
        launches = launches or (0 if one else len(left), 0 if two else len(right))
        return Pair(first.case, first.device, first.params, hosts, word, number_a, number_b, launches, shift, why)

    if one and two:
        return pair("broken", f"in both: {two}")
    if two:
        return pair("broken", two)
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
        shift = stats.compare_launches([metrics.samples(r) for r in left], [metrics.samples(r) for r in right], delta)
        return pair(shift.word, told, shift)
    there = {record.launch: metrics.by_turn(record) for record in right}
    both = [stats.difference(metrics.by_turn(r), there[r.launch]) for r in left if r.launch in there]
    known = [difference for difference in both if difference is not None]
    if not known:
        return pair("incomparable", "no launch was measured on both sides, turn beside turn")
    if len(known) < len(both):
        lost = f"{len(both) - len(known)} of {len(both)} launches were not measured turn beside turn: a longer budget_s helps"
        told = "; ".join(filter(None, (told, lost)))
    shift = stats.compare_pairs(known, delta)
    return pair(shift.word, told, shift, (len(known), len(known)))


def _trouble(loaded: LoadedRun, records: Sequence[Record]) -> str:
    """Why these launches have no number that can be believed; empty where they have."""
    for record in records:
        if record.status != "ok":
            return f"{record.status}: {record.reason}"
        if not metrics.samples(record):
            return "no samples"

    def ceiling(record: Record, metric: Metric) -> Ceiling | None:
        return ceilings.ceiling(record, loaded.machines[record.machine_id], metric)

    verdicts = accept.judge(records, (), accept.Standards(ceiling))
    return next((f"invalid: {v.reason}" for v in verdicts if v.verdict == "invalid"), "")


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
