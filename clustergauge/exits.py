"""Exit codes: what results come to.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from clustergauge import hosts, presence, unmeasured
from clustergauge.believed import is_cut
from clustergauge.model import Machine, Planned, Record, Verdict

OK, FAILED, BROKEN, UNKNOWN = 0, 1, 3, 4
"""Exit codes of results; `exit_code` chooses."""


def exit_code(
    records: Sequence[Record],
    verdicts: Iterable[Verdict],
    planned: Sequence[Planned] = (),
    device: str = "",
    machines: Iterable[Machine] = (),
) -> int:
    """The worst that happened: 3 wrong, error, invalid · 1 FAIL · 4 not measured, inconclusive · 0.

    Not measured is what was planned and has no record, or one that was cut short (`is_cut`) or was over fewer nodes than it was
    to be, what nodes left to a case over all of them that has no number (`presence`), and a run in which nothing was seen to be
    good, or no GPU though they are there (`unmeasured`).  Of a run over nodes it is not the whole: see `judgement.exit_code_of`.
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
    if unmeasured.idle(records, planned, device) or any(r.status == "ok" and is_cut(r) for r in records):
        outcomes.add("not measured")
    missing = presence.absent(records, planned, machines) or presence.unjudged(records, planned)
    if missing or unmeasured.gpus(records, planned, machines, device):
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
