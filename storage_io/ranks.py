"""Steps that all ranks of a case take together, outside the timed region: all go on, or all leave with the reason of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from clustergauge.probe import NoRoom, Skip, Wrong
from clustergauge.world import World
from storage_io.errors import StorageError

_T = TypeVar("_T")
_KINDS = ("", "skip", "no room", "wrong", "error")
"""From good to bad."""


def together(world: World, step: Callable[[], _T]) -> _T:
    """Do ``step``, and return what it does if it went well on every rank.

    Where it did not, every rank raises: `Skip`, `Wrong` or `StorageError`, which name the rank (that one raises what it met).
    """
    result: list[_T] = []
    met: Exception | None = None
    try:
        result.append(step())
    except Exception as error:  # noqa: BLE001 (told to all and raised below)
        met = error
    everybody = world.gather([_kind(met), str(met or "")])
    worst = None
    if everybody is not None:
        kind, rank = max((_KINDS.index(kind), -rank) for rank, (kind, _) in enumerate(everybody))
        worst = [_KINDS[kind], -rank, everybody[-rank][1]]
    kind, rank, text = world.from_root(worst)
    if not kind:
        return result[0]
    if met is not None and rank == world.rank:
        raise met
    if kind in ("skip", "no room"):
        raise (Skip if kind == "skip" else NoRoom)(text, rank)
    raise Wrong(text, rank) if kind == "wrong" else StorageError.quoted(text, rank)


def _kind(error: Exception | None) -> str:
    if error is None:
        return ""
    kinds = {NoRoom: "no room", Skip: "skip", Wrong: "wrong"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "error")


def partners(hosts: Sequence[str]) -> list[int]:
    """For each rank the one whose data it reads, by the ranks' hosts: of another host where there is one, each of one rank alone.

    Ranks sorted by host, shifted by as many as the fullest host has; one with more than half of them must read some of its own.
    """
    order = sorted(range(len(hosts)), key=lambda rank: (hosts[rank], rank))
    fullest = max(Counter(hosts).values())
    shift = fullest if fullest < len(hosts) else 1
    found = dict(zip(order, order[shift:] + order[:shift], strict=True))
    return [found[rank] for rank in range(len(hosts))]


def add_up(totals: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What the kernel counted for all ranks (`evidence.DeviceBytes`) together; nothing where one of them has none."""
    every = list(totals)
    return {name: sum(of_rank[name] for of_rank in every) for name in every[0]} if all(every) else {}


def least(world: World, number: int) -> int:
    """The smallest of what the ranks say, on every rank."""
    everybody = world.gather(number)
    return world.from_root(min(everybody) if everybody else None)
