"""What is between the GPUs of one host, and which pairs of them can be expected to be alike.  Pure.

A host may join some of its GPUs by NVLink and others by PCIe alone, or by more and fewer lanes: pairs are held against pairs of
the same kind.  That of a pair is what is usual between the same two GPUs on hosts with the same GPUs, so that a host where NVLink
is off, or has lost lanes, is held against the others, and is no kind of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustergauge.model import Link, Machine, Place

MOST_LANES = 36
"""NVLinks of one GPU (``NVML_NVLINK_MAX_LINKS``).  Where those to all others make more than that, each leads to a switch, and so
to every one of them: how many are up is then a state, not the way a host is built."""
MOST_SAID = 8


class Kind(NamedTuple):
    """What a pair goes over, as far as its rate depends on it."""

    kind: str
    lanes: int
    ancestor: str

    def __str__(self) -> str:
        """In words: ``over NVLink, 4 lanes``."""
        if self.kind == "nvlink":
            return f"over NVLink{f', {self.lanes} lane' if self.lanes else ''}{'s' if self.lanes > 1 else ''}"
        return f"over PCIe{f' ({self.ancestor})' if self.ancestor else ''}"


@dataclass(frozen=True)
class Wire:
    """Between two GPUs: what is there, and what pairs it is like."""

    here: Kind
    like: Kind
    odd: bool
    """Most hosts with these GPUs have something else there."""

    def __str__(self) -> str:
        """In words."""
        return f"{self.here}, {self.like} on most hosts" if self.odd else str(self.here)


Wires = Mapping[tuple[str, str], Wire]
"""By the names of both endpoints, in both orders."""


def wires_of(placement: Sequence[Place], names: Sequence[str], machines: Mapping[str, Machine]) -> Wires:
    """Of the GPUs of each host.  ``names``: of the endpoints, by rank.  ``machines``: by host."""
    of_gpu = {(place.host, place.device): names[place.rank] for place in placement if place.rank < len(names)}
    there = {place.host: machines[place.host] for place in placement if place.host in machines}
    usual = _usual(there.values())
    found: dict[tuple[str, str], Wire] = {}
    for host, machine in there.items():
        switched = _switched(machine)
        for link in machine.links:
            a, b = (of_gpu.get((host, f"cuda:{gpu}"), "") for gpu in (link.a, link.b))
            if a and b and link.kind:
                own = _kind(link, switched)
                like = usual.get((_models(machine), link.a, link.b)) or own
                found[a, b] = found[b, a] = Wire(_kind(link, False), like, like != own)
    return found


def codes(names: Sequence[str], wires: Wires) -> NDArray[np.int64]:
    """N × N: equal numbers for pairs of one kind, 0 where that is not known."""
    number = {kind: n for n, kind in enumerate(sorted({wire.like for wire in wires.values()}), 1)}
    place = {name: n for n, name in enumerate(names)}
    found = np.zeros((len(names), len(names)), np.int64)
    for (a, b), wire in wires.items():
        found[place[a], place[b]] = number[wire.like]
    return found


def notes(wires: Wires) -> list[str]:
    """What pairs are alone of their kind, so that nothing can be said of them but that one direction is slower."""
    count = Counter(wire.like for wire in wires.values())
    sole = [f"{a} and {b} {wire.like}" for (a, b), wire in wires.items() if count[wire.like] == 2 and a < b]
    if not sole or len(count) == 1:
        return []
    more = " …" if len(sole) > MOST_SAID else ""
    return [f"alone of their kind, and held against no other pair: {'; '.join(sole[:MOST_SAID])}{more}"]


def _usual(machines: Iterable[Machine]) -> dict[tuple[tuple[str, ...], int, int], Kind]:
    """What more than half of the hosts with the same GPUs, three at least, have between two of these."""
    seen: dict[tuple[tuple[str, ...], int, int], Counter[Kind]] = {}
    for machine in machines:
        switched = _switched(machine)
        for link in machine.links:
            if link.kind:
                seen.setdefault((_models(machine), link.a, link.b), Counter())[_kind(link, switched)] += 1
    tops = {key: (*count.most_common(1)[0], count.total()) for key, count in seen.items()}
    return {key: kind for key, (kind, often, of) in tops.items() if of > 2 and 2 * often > of}


def _kind(link: Link, switched: bool) -> Kind:
    if link.kind == "nvlink":
        return Kind("nvlink", 0 if switched else link.lanes or 0, "")
    return Kind(link.kind, 0, link.ancestor)


def _switched(machine: Machine) -> bool:
    lanes = Counter[int]()
    for link in machine.links:
        for gpu in (link.a, link.b):
            lanes[gpu] += link.lanes or 0
    return any(count > MOST_LANES for count in lanes.values())


def _models(machine: Machine) -> tuple[str, ...]:
    return tuple(gpu.name for gpu in machine.gpus)
