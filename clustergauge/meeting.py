"""Whether nodes share a storage target: each makes a mark in it, then all look whose marks they see.

What a file system calls itself decides nothing: the same folder seen by two nodes does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from clustergauge import messages as m
from clustergauge.conversation import Conversation, Died
from clustergauge.marks import Step, mark_of
from clustergauge.object_url import is_url
from clustergauge.preflight import PATIENCE_S
from clustergauge.threads import in_threads

TRIES = 3
"""Others who measure there sweep what they take for left behind: a node that misses its own mark makes it again."""
Groups = dict[str, list[list[str]]]
"""By target the groups of nodes that share it, two or more in each."""


def groups(nodes: Mapping[str, Conversation], targets: Sequence[str], token: str) -> Groups:
    """Ask the nodes' agents which of the targets they share.  An object store is shared by all of them."""
    found: Groups = {}
    names = list(nodes)
    marks = {mark_of(token, name): name for name in names}
    for target in targets if len(names) > 1 else ():
        found[target] = [names] if is_url(target) else _sharing(nodes, target, marks)
    return {target: sharing for target, sharing in found.items() if sharing}


def _sharing(nodes: Mapping[str, Conversation], target: str, marks: Mapping[str, str]) -> list[list[str]]:
    seen: dict[str, set[str]] = {}
    for _ in range(TRIES):
        missing = [name for name in nodes if name not in seen.get(name, ())]
        if not missing:
            break
        _ask(nodes, missing, "mark", target, marks)
        answers = _ask(nodes, list(nodes), "look", target, marks)
        seen |= {name: {marks[mark] for mark in answer if mark in marks} for name, answer in answers.items()}
    _ask(nodes, list(nodes), "clear", target, marks)
    return joined({name: seen[name] for name in nodes if name in seen})


def joined(seen: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes of which each sees another's mark or is seen by it, in the order of ``seen``."""
    group: dict[str, list[str]] = {name: [name] for name in seen}
    for name, others in seen.items():
        for other in others:
            if other in group and group[other] is not group[name]:
                both = group[name] + group[other]
                for member in both:
                    group[member] = both
    order = {name: number for number, name in enumerate(seen)}
    distinct = {id(members): sorted(members, key=order.__getitem__) for members in group.values()}
    return [members for members in distinct.values() if len(members) > 1]


def _ask(
    nodes: Mapping[str, Conversation], names: Sequence[str], step: Step, target: str, marks: Mapping[str, str]
) -> dict[str, list[str]]:
    """What nodes answer, all asked at once; one that does not is left out."""
    answers: dict[str, list[str]] = {}
    mark_of_node = {name: mark for mark, name in marks.items()}

    def ask(name: str) -> None:
        with contextlib.suppress(Died):
            met = nodes[name].ask(m.Meet(step, target, mark_of_node[name]), m.Met, 3 * PATIENCE_S)
            answers[name] = met.marks

    in_threads(ask, names)
    return answers
