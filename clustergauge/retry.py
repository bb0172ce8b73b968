"""What to measure again before a verdict is final: more launches of what is undecided, fresh ones of what would fail.  Pure.

A case whose interval holds the bound gets launches until its interval is decided or `MOST` are reached: with three its own spread
between launches is known, and is often smaller than the assumed one.  A case that would fail is measured afresh and judged on the
new launches alone, for of many criteria some fail by chance (flag, then confirm).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from clustergauge import hosts
from clustergauge.model import Planned, Record, Verdict

STEPS = (3, 5)
"""Launches that an undecided case is brought to, one step a round."""
CONFIRMING = 2
"""Fresh launches of a case that would fail."""

Key = tuple[str, str, str]
"""Case, device and, of what each of several nodes measures alone, the node's name."""


def again(
    planned: Sequence[Planned],
    records: Iterable[Record],
    verdicts: Iterable[Verdict],
    nodes: Mapping[str, str] | None = None,
) -> list[Planned]:
    """The launches to measure next; empty where every verdict is as final as it gets.

    ``nodes``: in a run over several, the name of each machine by its id: what one measures alone, it alone measures again.
    Only cases that were measured without an error are measured again.  Launches are numbered on.
    """

    def key(of: Record | Verdict) -> Key:
        return of.case, of.device, "" if hosts.spans(of.device) else (nodes or {}).get(of.machine_id, "")

    wanted: dict[Key, str] = {}
    for verdict in verdicts:
        if verdict.verdict == "FAIL" or (verdict.verdict == "inconclusive" and verdict.bound is not None):
            wanted[key(verdict)] = "FAIL" if verdict.verdict == "FAIL" else wanted.get(key(verdict), verdict.verdict)
    plans: dict[Key, list[Planned]] = {}
    for plan in planned:
        for name in _each(plan):
            plans.setdefault((plan.case, plan.device, name), []).append(plan)
    done: dict[Key, list[Record]] = {}
    for record in records:
        done.setdefault(key(record), []).append(record)
    found: list[Planned] = []
    for one, word in wanted.items():
        if one in plans and one in done and all(r.status == "ok" for r in done[one]):
            found += [replace(plan, hosts=one[2] or plan.hosts) for plan in _more(plans[one], word)]
    return found


def _each(plan: Planned) -> Iterator[str]:
    """The nodes that measure it, each alone; one empty name where there is one machine, or one measurement over all."""
    yield from hosts.expand(plan.hosts) if plan.hosts and plan.nodes == 1 else [""]


def _more(plans: list[Planned], word: str) -> list[Planned]:
    """More launches of one case: fresh ones where it fails, until it was confirmed; otherwise up to the next step."""
    fresh = [p for p in plans if p.confirms]
    have = len(fresh) if fresh else len(plans)
    next_step = next((step - have for step in STEPS if step > have), 0)
    count = next_step if word != "FAIL" else 0 if fresh else CONFIRMING
    first = max(p.launch for p in plans) + 1
    confirms = bool(fresh) or word == "FAIL"
    return [replace(plans[0], launch=first + n, confirms=confirms, skip="") for n in range(count)]
