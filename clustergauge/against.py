"""A tree against another one, as a gate: who got slower, for certain, by more than a threshold.  Decides; others measure.

Both are launched at once and measure by turns (`turnstile`), so that what disturbs the machine meets both and cancels; where
that cannot be, one after the other, A B B A.  A case is *slower* where the whole interval of its shift (`stats.compare_pairs`:
a launch of both is the unit) lies beyond the threshold, and *same* or *not slower* where none of it does.  What these first
launches do not settle, and all that looks changed, is launched afresh and judged on the new launches alone, in rounds until it
is settled: of many cases some look slower by chance.

Six launches, and up to five rounds of six at 2.5 %, were chosen by simulation (1000 to 2000 cases each; differences between the
sides of a launch that spread by 0.5 to 3 %, with one in twenty off by 10 % or without): of equal cases none was called slower up
to 2 %, .001 at 3 %.  5 % more time was found always up to 2 % (.999 with such outliers), .98 at 3 % (.97); the rest was
inconclusive, as were .005 (.03) of the equal cases at 3 %.  Exactly at the threshold .07 are called slower: five looks at 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from clustergauge import compare, stats
from clustergauge.compare import Pair, Report, Word
from clustergauge.loading import LoadedRun
from clustergauge.model import Machine, Record
from clustergauge.side import LETTERS, Letter
from clustergauge.units import counted

LAUNCHES = 6
THRESHOLD = 0.025
ROUNDS = 5
FEWEST = 6
"""Launches a side below which no exact test can say anything at 5 %."""

Launch = Callable[[Letter, Sequence[str]], Mapping[Letter, LoadedRun]]
"""Measures cases once on each side, in fresh processes, and together as far as can be; the side that is named goes first."""


@dataclass(frozen=True)
class Rules:
    """``launches``: of each side, in the first look and in every round after it.  ``threshold``: slower by less is not slower."""

    launches: int = LAUNCHES
    threshold: float = THRESHOLD
    rounds: int = ROUNDS


def conduct(
    cases: Sequence[str],
    launch: Launch,
    rules: Rules,
    over: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure and judge ``cases``.  ``over``: whether the time is; then no launch starts, and what is undecided stays so."""
    if not cases:
        return Report("", "", [], [])
    first = _Launches([], [])
    first.measure(cases, launch, rules.launches, over, say)
    report = first.judged(rules)
    found = {_key(pair): pair for pair in report.pairs}
    left = [key for key, pair in found.items() if pair.word in ("changed", "inconclusive")]
    fresh = _Launches([], [])
    for _ in range(rules.rounds):
        chosen = list(dict.fromkeys(found[key].case for key in left))
        if not chosen or over():
            break
        fresh.measure(chosen, launch, rules.launches, over, say, "afresh, ")
        again = {_key(pair): pair for pair in fresh.judged(rules).pairs}
        for key in left:
            found[key] = _afresh(next(p for p in report.pairs if _key(p) == key), again.get(key))
        left = [key for key in left if found[key].word == "inconclusive"]
    if not fresh.b:
        found |= {key: _afresh(found[key], None) for key in left}
    pairs = sorted(found.values(), key=compare.effect)
    return replace(report, pairs=pairs, notes=_notes(cases, first, pairs, rules, over()))


def word_of(shift: stats.Comparison, threshold: float) -> Word:
    """What the interval of a shift says: *changed* where it lies beyond the threshold, on whichever side."""
    up, down = threshold, -threshold / (1 + threshold)  # as far apart, in logarithms
    if shift.weak or shift.low <= up < shift.high:
        return "inconclusive"
    if shift.low > up or shift.high < down:
        return "changed"
    return "same" if shift.low >= down else "not slower"


def order(count: int) -> Iterator[Letter]:
    """Which side goes first, launch by launch."""
    return (LETTERS[number % 2] for number in range(count))


@dataclass
class _Launches:
    """Launches of both sides, each a run."""

    a: list[LoadedRun]
    b: list[LoadedRun]

    def measure(
        self,
        cases: Sequence[str],
        launch: Launch,
        count: int,
        over: Callable[[], bool],
        say: Callable[[str], None],
        how: str = "",
    ) -> None:
        """So many more of each side, unless the time is over."""
        for number, first in enumerate(order(count), 1):
            if over():
                return
            say(f"{how}launch {number} of {count} of both: {counted(len(cases), 'case')}")
            launched = launch(first, cases)
            self.a.append(launched["A"])
            self.b.append(launched["B"])

    def judged(self, rules: Rules) -> Report:
        """All launches so far, compared: each side as one run, whose launches they are."""
        if not self.a or not self.b:
            return Report("", "", [], [])
        report = compare.compare(_one(self.a), _one(self.b), anyway=True, delta=rules.threshold, paired=True)
        pairs = [replace(p, word=word_of(p.shift, rules.threshold)) if p.shift else p for p in report.pairs]
        return replace(report, pairs=pairs, anyway=False)


def _one(runs: Sequence[LoadedRun]) -> LoadedRun:
    """Runs of one launch as one run of many."""
    machines: dict[str, Machine] = {}
    records: list[Record] = []
    for number, loaded in enumerate(runs):
        machines = loaded.machines | machines
        records += [msgspec.structs.replace(record, launch=number) for record in loaded.records]
    return replace(runs[0], machines=machines, records=records, path=Path())


Key = tuple[str, str, tuple[str, str]]


def _key(pair: Pair) -> Key:
    return pair.case, pair.device, pair.hosts


def _afresh(before: Pair, now: Pair | None) -> Pair:
    """The pair by its fresh launches alone."""
    if now is None:
        return replace(before, word="inconclusive", why="no fresh launches told whether this is so")
    first = f"{before.shift.shift:+.1%}".replace("%", " %") if before.shift else "–"
    told = f"afresh; the first {before.launches[0]}+{before.launches[1]} launches said {first}"
    return replace(now, why="; ".join(filter(None, (now.why, told))))


def _notes(cases: Sequence[str], first: _Launches, pairs: Sequence[Pair], rules: Rules, over: bool) -> list[str]:
    percent = f"{100 * rules.threshold:.3g} %"
    notes = [
        f"slower: by more than {percent} beyond doubt (95 %); what looked changed was launched afresh and judged on that alone"
    ]
    if over and len(first.b) < rules.launches:
        notes.append(f"the time was over after {len(first.b)} of the first {rules.launches} launches of both: more --max-time")
    elif unsure := [pair.shift for pair in pairs if pair.word == "inconclusive" and pair.shift]:
        widest = max((shift.high - shift.low) / 2 for shift in unsure)
        remedy = "more --max-time" if over else f"more --launches, a quieter machine, or a --threshold above {percent}"
        notes.append(f"inconclusive: launches differ too much here to tell (up to ± {100 * widest:.2g} %): {remedy}")
    if first.b and (untimed := [case for case in cases if case not in {pair.case for pair in pairs}]):
        some = ", ".join(untimed[:3]) + (f" and {len(untimed) - 3} more" if len(untimed) > 3 else "")
        notes.append(f"skipped, or checked only: {some}")
    if first.b and len({(loaded.run.code, loaded.run.settings.get("probes")) for loaded in (first.a[0], first.b[0])}) == 1:
        notes.append("both sides have the same code of the suite: what differs is noise")
    return notes
