"""What a run came to, one row a case: its launches on one device of one machine together, judged and derived."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from clustergauge import believed, ceilings, hosts, metrics, presence
from clustergauge.ceilings import Ceiling
from clustergauge.loading import LoadedRun
from clustergauge.model import Metric, Outcome, Record, Scalar, Verdict
from clustergauge.reached import grouped
from reports.fleet import words

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf
    from clustergauge.blamed import Fleet, State

Word = Literal[
    "error", "wrong", "invalid", "FAIL", "not measured", "inconclusive", "pass", "unreferenced", "verified", "skipped"
]  # fmt: skip
"""What became of a case, the worst first: a verdict, or the status of a case that has none."""
BAD: tuple[Word, ...] = ("error", "wrong", "invalid", "FAIL", "not measured", "inconclusive")
"""What somebody must look at."""
_JUDGED: tuple[Word, ...] = ("invalid", "FAIL", "not measured", "inconclusive", "pass", "unreferenced")


@dataclass
class Row:
    """One case on one device of one machine.

    ``records``: its launches in the order taken, empty for a case that has none.  ``metrics``: of its launches, headline first;
    empty unless all of them that ran are ok.  ``ceiling``: of the headline, ``None`` where unknown.  ``mhz``: the clock observed
    while sampling, the median of the launches, ``None`` unless all know it.  ``over``: of a case that was to span more nodes than
    it did, those that were in it, in words.
    """

    case: str
    device: str
    machine_id: str
    params: dict[str, Scalar]
    records: list[Record]
    verdicts: list[Verdict]
    word: Word
    metrics: list[Metric] = field(default_factory=list[Metric])
    ceiling: Ceiling | None = None
    mhz: float | None = None
    over: str = ""

    @property
    def headline(self) -> Metric | None:
        """The metric that the row is about."""
        return self.metrics[0] if self.metrics else None

    @property
    def measured(self) -> list[Record]:
        """The launches with a believed number: those that the verdict comes from."""
        return [r for r in believed.deciding(self.records) if r.status == "ok"]

    @property
    def believable(self) -> list[Metric]:
        """Its metrics, where they can be true: what is *invalid* is shown beside that word alone, and drawn nowhere."""
        return [] if self.word == "invalid" else self.metrics

    def metric(self, name: str) -> Metric | None:
        """The metric of this name."""
        return next((m for m in self.metrics if m.name == name), None)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that decides the row's word."""
        return next((v for v in self.verdicts if v.verdict == self.word), None)


def rows_of(loaded: LoadedRun, verdicts: Sequence[Verdict], ceiling: CeilingOf | None = None) -> list[Row]:
    """Rows in the order measured; then what verdicts name and no record answers.

    ``ceiling``: what physics allows a metric, if it is not as we know it.
    """
    ceiling = ceiling or ceilings.of_machines(loaded.machines, loaded.catalogue)
    groups = grouped(loaded.records)
    judged: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        judged.setdefault((verdict.machine_id, verdict.case, verdict.device), []).append(verdict)
    rows = [_row(ceiling, records, judged.get(key, [])) for key, records in groups.items()]
    _tell_absent(loaded, rows)
    rows += [
        Row(case, device, machine_id, {}, [], absent, _word([], absent))
        for (machine_id, case, device), absent in judged.items()
        if (machine_id, case, device) not in groups
    ]
    return rows


def place_in(loaded: LoadedRun) -> Callable[[Row], tuple[bool, int]]:
    """What rows are sorted by where the place decides: machines by their names, and what spans several last."""
    order = {machine_id: number for number, machine_id in enumerate(loaded.machines)}
    return lambda row: (hosts.spans(row.device), order.get(row.machine_id, len(order)))


def worst_first(loaded: LoadedRun, rows: Sequence[Row]) -> list[Row]:
    """What somebody must look at before the rest; then by case in the order measured, and by place (`place_in`)."""
    where, cases = place_in(loaded), {case: number for number, case in enumerate(dict.fromkeys(r.case for r in rows))}
    return sorted(rows, key=lambda r: (BAD.index(r.word) if r.word in BAD else len(BAD), cases[r.case], *where(r)))


def of_run(rows: Sequence[Row], owed: Sequence[str]) -> list[Row]:
    """What keeps a run from being whole though none of its ``rows`` says so, as one more of them: for programs that count rows.

    ``owed``: in words, of no case.
    """
    partly = [f"{row.case} on {row.device}: {row.over}" for row in rows if row.over and row.word not in BAD]
    return [_told("run", "", "not measured", [*owed, *partly])] if owed or partly else []


def of_nodes(fleet: Fleet) -> list[Row]:
    """The nodes of a run that are not good, and its slow racks, as rows: for programs that know cases alone."""
    states: dict[State, Outcome] = {"bad": "FAIL", "suspect": "inconclusive", "unmeasured": "not measured"}
    found = [
        _told("nodes", node.machine_id or node.name, word, map(words, node.reasons))
        for state, word in states.items()
        for node in fleet.of(state)
    ]
    racks = [f"rack {r.rack}: {r.case} at {100 * r.ratio:.0f} % of the others" for r in fleet.racks]
    return [*found, _told("racks", "", "inconclusive", racks)] if racks else found


def _told(case: str, machine_id: str, word: Outcome, why: Iterable[str]) -> Row:
    verdict = Verdict(case=case, machine_id=machine_id, verdict=word, reason="; ".join(why))
    return Row(case, "", machine_id, {}, [], [verdict], word)


def _tell_absent(loaded: LoadedRun, rows: Sequence[Row]) -> None:
    """Rows over fewer nodes than they were planned for, in any launch that counts, say so."""
    absent = presence.absent(loaded.records, loaded.run.planned, loaded.machines.values())
    if not absent:
        return
    nodes = {presence.launch_of(p): p.hosts for p in loaded.run.planned if p.nodes > 1}
    for row in rows:
        launches = [presence.launch_of(r) for r in row.measured]
        missing = dict.fromkeys(name for launch in launches for name in absent.get(launch, ()))
        if missing:
            count = max(len(hosts.expand(nodes[launch])) for launch in launches if launch in absent)
            row.over = f"over {presence.words(count, list(missing))}"


def _row(ceiling: CeilingOf, records: list[Record], verdicts: list[Verdict]) -> Row:
    first = records[0]
    row = Row(first.case, first.device, first.machine_id, first.params, records, verdicts, _word(records, verdicts))
    if row.measured and row.word not in ("error", "wrong"):
        row.metrics = metrics.derive(row.measured)
        row.ceiling = ceiling(row.measured[0], row.headline) if row.headline else None
        clocks = [ceilings.observed_mhz(record) for record in row.measured]
        known = [mhz for mhz in clocks if mhz is not None]
        row.mhz = statistics.median(known) if len(known) == len(clocks) else None
    return row


def _word(records: Sequence[Record], verdicts: Sequence[Verdict]) -> Word:
    statuses, outcomes = {r.status for r in records}, {v.verdict for v in verdicts}
    if "error" in statuses or "wrong" in statuses:
        return "error" if "error" in statuses else "wrong"
    if "ok" in statuses or not records:
        worst: list[Word] = [word for word in _JUDGED if word in outcomes]
        return worst[0] if worst else "unreferenced"
    if "not measured" in outcomes:
        return "not measured"
    return "verified" if "verified" in statuses else "skipped"
