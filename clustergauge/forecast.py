"""How long a plan will take: budgets, what preparing and checking add, and what storage cases move beyond their budget."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clustergauge import hosts, stats
from clustergauge.cross_check import PAIRS, TURN_S
from clustergauge.model import Planned
from clustergauge.probe import Moves

DEVICE_RATE = 500e6
"""Bytes a second that a node's storage is taken to move, as a SATA SSD, a large cloud volume or one client of a shared file
system does.  Most targets of AI machines are faster, and their cases end earlier."""
NAMES_RATE = 1000.0
"""Files or objects that it makes or removes a second, as one client of a shared file system or an object store does."""
POOL_S = 3.0
"""To start workers."""
UNTIMED_S = 1.0
"""To check a case that is not timed: small ones, whatever their budget."""


def at_best(todo: Sequence[Planned]) -> float:
    """As `predict`, where storage is so fast that its cases take no longer than others of their budget."""
    return predict([msgspec.structs.replace(p, beyond_s=0.0) for p in todo])


def predict(todo: Sequence[Planned]) -> float:
    """Seconds that cases will take, and a start of workers for each group of them.

    Nodes measure alone at once, and so do groups of nodes: the longest counts.  What they measure in turn is added up.
    """
    running = [p for p in todo if not p.skip]
    alone: dict[str, list[Planned]] = {}
    groups: dict[str, list[Planned]] = {}
    turns: dict[tuple[str, str], list[Planned]] = {}
    rest: list[Planned] = []
    for planned in running:
        if planned.in_turn:
            turns.setdefault((planned.in_turn, planned.hosts), []).append(planned)
        elif hosts.is_group(planned.device):
            groups.setdefault(planned.device, []).append(planned)
        elif planned.hosts and planned.nodes == 1:
            alone.setdefault(planned.hosts, []).append(planned)
        else:
            rest.append(planned)
    in_turn: dict[str, float] = {}
    for (first, names), cases in turns.items():
        in_turn[first] = in_turn.get(first, 0.0) + in_a_row(cases) * len(hosts.expand(names))
    return (
        _longest(alone) + max(in_turn.values(), default=0.0) + max(map(in_a_row, groups.values()), default=0.0) + in_a_row(rest)
    )


def _longest(alone: dict[str, list[Planned]]) -> float:
    """Of nodes that measure alone, by lists of hosts."""
    of_node: dict[str, list[Planned]] = {}
    if len(alone) == 1:
        return in_a_row(next(iter(alone.values())))
    for names, cases in alone.items():
        for name in hosts.expand(names):
            of_node.setdefault(name, []).extend(cases)
    return max(map(in_a_row, of_node.values()), default=0.0)


def in_a_row(todo: Sequence[Planned]) -> float:
    """Seconds that cases will take one after the other, wherever each is measured."""
    running = [p for p in todo if not p.skip]
    pools = {(p.world, p.interpret, p.ranks, p.device, p.launch, *sorted(p.env.items())) for p in running}
    return sum(map(predict_case, running)) + POOL_S * len(pools)


def predict_case(planned: Planned) -> float:
    """Seconds that one case will take once its workers are there."""
    if planned.interpret or planned.check_only:
        return UNTIMED_S
    beside = (2 * PAIRS + 1) * TURN_S if planned.cross_check and planned.peer else 0.0
    return planned.budget_s + min(0.3 * planned.budget_s, 2.0) + 0.3 + planned.beyond_s + beside


def beyond(moves: Moves, ranks: int, budget_s: float) -> float:
    """Seconds beyond its budget of a case whose ``ranks`` on one node share the node's `DEVICE_RATE`."""
    one, most, after = (size * ranks / DEVICE_RATE for size in (moves.sample, moves.most, moves.after))
    one = max(one + moves.pause, min(most, moves.share * budget_s))
    if moves.patience and one > (most := moves.patience * budget_s):
        one, after = most, after * most / one
    least = stats.LEAST_SAMPLES if stats.LEAST_SAMPLES * one <= stats.OVER_BUDGET * budget_s else stats.FEWEST_SAMPLES
    sampling = max(0.0, least * one - budget_s)
    uncounted = (5 if moves.share else 3) * one  # to warm up, to calibrate, after a check; to find how much takes that share
    before = ranks * (moves.before / DEVICE_RATE + 2 * moves.names / NAMES_RATE)
    return before + uncounted + sampling + after
