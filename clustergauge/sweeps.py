"""From records of transfers between pairs to what they say of endpoints, links and leaves, and to verdicts.  Pure.

The bandwidth of a pair is held against its peers, so no reference and no ceiling is needed.  A suspect whose whole interval lies
below `pairs.THRESHOLD` of its peers fails the case; any other is worth a word, and no more.  A run measures what would fail
afresh (`retry`), and then only the fresh launches count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from clustergauge import pairs, waits, wiring
from clustergauge.model import Machine, PairFindings, Place, Record, Series, Suspect, Verdict
from clustergauge.pair_fit import Array, Codes
from clustergauge.pairs import ACROSS, Endpoint
from clustergauge.topology import Topology
from clustergauge.valid import LONGEST_S, SHORTEST_S, printable

PROBE = "pairs"
METRIC = "peers"
"""What the verdicts of pairs are about: the share of the bandwidth of peers."""
MOST_ENDPOINTS = 1024
"""More are not looked at: the matrix is kept whole."""
_FROM, _TO, _SECONDS = "pair_from", "pair_to", "pair_seconds"


@dataclass(frozen=True)
class Sweep:
    """The launches of one case.  ``bandwidth``: passes × N × N, B/s from row to column, not a number where not measured.

    ``wires``: what is between the GPUs of each host.
    """

    endpoints: list[Endpoint]
    bandwidth: Array
    notes: list[str]
    wires: wiring.Wires

    def reference(self, logs: Array) -> Array:
        """See `pairs.class_reference`."""
        return pairs.class_reference(self.endpoints, logs, self.codes)

    @property
    def codes(self) -> Codes:
        """See `pairs.analyse`."""
        return wiring.codes([e.name for e in self.endpoints], self.wires)


def findings(records: Sequence[Record], topology: Topology | None = None, machines: Iterable[Machine] = ()) -> list[PairFindings]:
    """What each case says that moved data between pairs, in the order of the records.

    ``machines``: of the run; they know what is between the GPUs of one host.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if is_sweep(record):
            groups.setdefault((record.machine_id, record.case, record.device), []).append(record)
    fresh = ([record for record in group if record.confirms] or group for group in groups.values())
    by_host = {machine.host: machine for machine in machines}
    return [_findings(group, topology, by_host) for group in fresh]


def is_sweep(record: Record) -> bool:
    """Whether the record holds times of pairs."""
    return bool(record.status == "ok" and record.measurement and _SECONDS in record.measurement.series)


def sweep_of(records: Sequence[Record], topology: Topology | None = None, machines: Mapping[str, Machine] | None = None) -> Sweep:
    """The launches of one case as one sweep.  What cannot be believed is left out, and a note says so.  ``machines``: by host."""
    notes: list[str] = []
    ends = _endpoints(records[0], topology, notes)
    parts: list[Array] = []
    for record in records:
        own = ends if record is records[0] else _endpoints(record, topology, [])
        if [e.name for e in own] != [e.name for e in ends]:
            notes.append(f"launch {record.launch} ran elsewhere than launch {records[0].launch} and is left out")
        elif len(ends) > MOST_ENDPOINTS:
            notes.append(f"{len(ends)} endpoints: more than {MOST_ENDPOINTS} are not looked at together")
            ends = []
            break
        elif (part := _bandwidth(record)) is None:
            notes.append(f"launch {record.launch} holds series that do not belong together")
        else:
            parts.append(part)
    empty = np.full((1, len(ends), len(ends)), np.nan)
    wires = wiring.wires_of(records[0].placement, [e.name for e in ends], machines or {})
    return Sweep(ends, np.concatenate(parts) if parts else empty, [*notes, *wiring.notes(wires)], wires)


def verdicts(found: Iterable[PairFindings]) -> list[Verdict]:
    """A FAIL for each confirmed suspect; where there is none, *inconclusive* if none could have been seen (`blind`)."""
    judged: list[Verdict] = []
    for one in found:
        about = Verdict(
            case=one.case,
            device=one.device,
            machine_id=one.machine_id,
            metric=METRIC,
            verdict="FAIL",
            unit="1",
            bound=pairs.THRESHOLD,
            source="its peers in the same sweep",
        )
        confirmed = [suspect for suspect in one.suspects if suspect.confirmed]
        judged += [
            replace(about, reason=sentence(suspect), value=suspect.ratio, margin=suspect.ratio / pairs.THRESHOLD - 1)
            for suspect in confirmed
        ]
        if not confirmed and (why := blind(one)):
            judged.append(replace(about, verdict="inconclusive", reason=why))
    return judged


def blind(found: PairFindings) -> str:
    """Why a sweep does not clear its endpoints: what it could not have shown of them; empty if it does.

    Of one or two endpoints nothing is ever told apart: that is no fault of the sweep, and it says so, if it has measured them.
    """
    of = f"{found.measured} of {found.possible} pairs, {found.passes} passes"
    smallest, whole = found.smallest_degradation, found.measured == found.possible
    if (len(found.endpoints) in (1, 2) and whole) or (smallest is not None and 1 - smallest >= pairs.THRESHOLD):
        return ""
    if smallest is None:
        return f"no endpoint could be judged ({of})"
    shown, asked = math.ceil(100 * smallest), f"{100 * (1 - pairs.THRESHOLD):.0f} %"
    return f"a loss below {shown} % would not have shown ({of}), one of {asked} must: more time (budget_s) or quiet helps"


def sentence(suspect: Suspect) -> str:
    """A suspect in words: ``node-017/gpu5 sends at 61 % of its peers (58 … 64 %)``."""
    verb = {"both": " sends and receives", "": ""}.get(suspect.direction, f" {suspect.direction}")
    what = {"leaf": "leaf ", "node": "host "}.get(suspect.kind, "")
    sure = f"{100 * suspect.low:.0f} … {100 * suspect.high:.0f} %"
    note = f"; {suspect.note}" if suspect.note else ""
    return printable(f"{what}{suspect.where}{verb} at {100 * suspect.ratio:.0f} % of its peers ({sure}{note})")


def _findings(records: Sequence[Record], topology: Topology | None, machines: Mapping[str, Machine]) -> PairFindings:
    sweep = sweep_of(records, topology, machines)
    count = len(sweep.endpoints)
    analysis = pairs.analyse(sweep.endpoints, sweep.bandwidth, wires=sweep.codes) if count > 1 else pairs.Analysis()
    starved = _starved(records, sweep.endpoints)
    measured = int(np.isfinite(sweep.bandwidth).any(0).sum())
    first = records[0]
    return PairFindings(
        case=first.case,
        device=first.device,
        machine_id=first.machine_id,
        endpoints=[e.name for e in sweep.endpoints],
        measured=measured,
        possible=count * (count - 1),
        passes=len(sweep.bandwidth),
        suspects=[_explained(_wired(suspect, sweep.wires), starved) for suspect in analysis.suspects],
        smallest_degradation=analysis.smallest_degradation,
        notes=[*sweep.notes, *analysis.notes],
    )


def _wired(suspect: Suspect, wires: wiring.Wires) -> Suspect:
    """With what the pairs inside its host go over, where that is one kind of link."""
    if suspect.kind == "link":
        own = [wire for ends, wire in wires.items() if " → ".join(ends) == suspect.where]
    elif suspect.kind == "endpoint":
        own = [wire for (a, _), wire in wires.items() if a == suspect.where]
    else:
        own = [wire for (a, _), wire in wires.items() if a.startswith(f"{suspect.where}/gpu")]
    words = {str(wire) for wire in own}
    if len(words) != 1 or suspect.note.startswith(ACROSS):
        return suspect
    return replace(suspect, note="; ".join([*filter(None, [suspect.note]), words.pop()]))


def _starved(records: Sequence[Record], endpoints: Sequence[Endpoint]) -> dict[str, waits.Starved]:
    """The endpoints whose ranks waited for a processor, by name: in the mean over launches."""
    told = [r.measurement.series[waits.SERIES].values for r in records if r.measurement and waits.SERIES in r.measurement.series]
    told = [shares for shares in told if len(shares) == len(endpoints)]
    return {endpoints[s.rank].name: s for s in waits.starved(np.mean(told, 0).tolist())} if told else {}


def _explained(suspect: Suspect, starved: Mapping[str, waits.Starved]) -> Suspect:
    """With what its ends' processors have to do with it.  A starved endpoint's fault is its host's, not the network's."""
    ends = [suspect.where] if suspect.kind == "endpoint" else suspect.where.split(" → ") if suspect.kind == "link" else []
    slow = [f"the processor of {end} is slow: its rank {starved[end]}" for end in ends if end in starved]
    if not slow:
        return suspect
    return replace(suspect, cause="processor", note="; ".join([*filter(None, [suspect.note]), *slow]))


def _endpoints(record: Record, topology: Topology | None, notes: list[str]) -> list[Endpoint]:
    """An endpoint for each rank: its GPU, its NIC where that names it, its host where it is alone there."""
    by_rank = {place.rank: place for place in record.placement}
    places = [by_rank.get(rank, Place(rank=rank, host="?")) for rank in range(min(record.ranks, MOST_ENDPOINTS + 1))]
    on_host = Counter(place.host for place in places)
    on_nic = Counter((place.host, place.nic) for place in places)
    found: list[Endpoint] = []
    lost: dict[str, None] = {}
    for place in places:
        if place.device.startswith("cuda:"):
            name = f"{place.host}/gpu{place.device.removeprefix('cuda:')}"
        elif place.nic and on_nic[place.host, place.nic] == 1:
            name = f"{place.host}/{place.nic}"
        else:
            name = place.host if on_host[place.host] == 1 else f"{place.host}/rank {place.rank}"
        leaf = topology.find(place.host, place.nic) if topology else None
        if topology and not leaf:
            lost[f"{place.host} {place.nic}".strip()] = None
        found.append(Endpoint(printable(name), place.host, leaf.name if leaf else "", leaf.rail if leaf else ""))
    if lost:
        notes.append(
            printable(
                f"in no leaf of the topology, or not in one alone: {', '.join(list(lost)[:8])}{' …' if len(lost) > 8 else ''}"
            )
        )
    return found


def _bandwidth(record: Record) -> Array | None:
    """Passes × N × N of one launch; ``None`` if its series contradict each other."""
    assert record.measurement
    series, work, count = record.measurement.series, record.workload, record.ranks
    ends = [list(_ranks(series.get(name), count)) for name in (_FROM, _TO)]
    seconds = np.asarray(series[_SECONDS].values, np.float64)
    pairs_ = len(ends[0])
    if (
        not work
        or not work.message_bytes
        or not pairs_
        or len(ends[1]) != pairs_
        or len(seconds) % pairs_
        or not ((seconds >= SHORTEST_S) & (seconds <= LONGEST_S)).all()
    ):
        return None
    found = np.full((len(seconds) // pairs_, count, count), np.nan)
    found[:, ends[0], ends[1]] = work.message_bytes / seconds.reshape(-1, pairs_)
    return found if len(found) else None


def _ranks(series: Series | None, count: int) -> Iterator[int]:
    """Ranks of a series; it ends at what is none."""
    for value in series.values if series else []:
        if value != int(value) or not 0 <= value < count:
            return
        yield int(value)
