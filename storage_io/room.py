"""Room in a target: how much must be free for a case, asked by the case itself and, where nothing is written, of a plan."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from clustergauge import free, hosts, targets
from clustergauge.free import Free
from clustergauge.model import Planned
from clustergauge.object_url import is_url
from clustergauge.probe import Probe
from storage_io.errors import StorageError

SPARE_BYTES = 2 << 30
"""Left free at least, or a tenth of the file system if that is more."""
OfNodes = Mapping[str, Mapping[str, Free]]
"""What is free on nodes, by node and target; nodes and targets of which nothing is known are absent."""
T = TypeVar("T", str | None, bool)


def lack(target: Path, need: int, files: int, spare: int | None = None) -> str:
    """Why ``need`` bytes in ``files`` files (and a run folder) do not fit so that ``spare`` bytes stay free; empty if they do."""
    return _lack(target, free.measured(target), need, files, spare)


def _lack(target: Path | str, found: Free, need: int, files: int, spare: int | None = None) -> str:
    if not found.size:
        return f"the file system of {target} does not say how much is free"
    spare = max(found.size // 10, SPARE_BYTES) if spare is None else spare
    if found.free < need + spare:
        return f"{target} has {_mib(found.free)} free, the files need {_mib(need)} and {_mib(spare)} must stay free"
    if found.files and found.files_free < files + 2:
        return f"{target} has {found.files_free} inodes free, {files + 2} are needed"
    return ""


def foreseen(planned: Sequence[Planned], probes: Mapping[str, Probe], nodes: OfNodes | None = None) -> list[Planned]:
    """A plan as it is shown: cases that would be refused by their target now are skipped, in the words that they would have.

    Over ``nodes`` those that would refuse a case are named before the words, and the others keep it.  Nothing is written.  What a
    killed run left in a target counts as taken, though a case would remove it first.
    """
    found: list[Planned] = []
    for p in planned:
        for part, why in _parts(p, _refusals(p, probes, nodes)):
            words = f"{part.hosts}: {why}" if part.hosts else str(why)
            found.append(msgspec.structs.replace(part, skip=words, in_turn="") if why else part)
    return found


def promised(planned: Sequence[Planned], probes: Mapping[str, Probe], nodes: OfNodes | None = None) -> list[Planned]:
    """A plan as it is carried out: whether there is room for each case now (`Planned.room`); the case itself sees to the rest."""
    found: list[Planned] = []
    for p in planned:
        there = {name: why == "" for name, why in _refusals(p, probes, nodes).items()}
        found += [msgspec.structs.replace(part, room=room) for part, room in _parts(p, there)]
    return found


def _parts(planned: Planned, said: Mapping[str, T]) -> Iterator[tuple[Planned, T]]:
    """A case for each list of nodes of which the same is said."""
    alike: dict[T, list[str]] = {}
    for name, what in said.items():
        alike.setdefault(what, []).append(name)
    for what, names in alike.items():
        yield planned if len(alike) == 1 else msgspec.structs.replace(planned, hosts=hosts.compress(names)), what


def _refusals(planned: Planned, probes: Mapping[str, Probe], nodes: OfNodes | None) -> dict[str, str | None]:
    """By node (or for this machine) the words by which its target would refuse a case, empty if it would not.

    ``None`` if that can't be known.  Where a case spans nodes they share the target: what one says of it is said of all.
    """
    room = None if planned.skip or not planned.target or is_url(planned.target) else _room(planned, probes)
    if room is None:
        return {planned.hosts: None}
    if nodes is None:
        return {"": _here(Path(planned.target), *room)}
    said = {name: _there(planned.target, nodes.get(name, {}).get(planned.target), *room) for name in hosts.expand(planned.hosts)}
    if planned.nodes > 1:
        return dict.fromkeys(said, next((why for why in said.values() if why is not None), None))
    return said


def _room(planned: Planned, probes: Mapping[str, Probe]) -> tuple[int, int] | None:
    """Bytes and files of a case; ``None`` where its probe does not say."""
    try:
        room = probes[planned.probe].needs_of(targets.own_params(planned.params)).room
        return room.of(planned.ranks, planned.cross_check) if room.files else None
    except Exception:  # noqa: BLE001 (parameters of a run that is gone on with may be anything: the case itself will tell)
        return None


def _here(target: Path, need: int, files: int) -> str | None:
    """``None`` where the target does not answer.  One that is yet to be made is asked of the folder that it will be in."""
    try:
        at = next(folder for folder in (target, *target.parents) if folder.exists())
        number = targets.refusal(at)
        return _refused(target, number) if number else _lack(target, free.measured(at), need, files)
    except OSError:
        return None


def _there(target: str, found: Free | None, need: int, files: int) -> str | None:
    """By what a node said."""
    if found is None:
        return None
    return _refused(target, found.refused) if found.refused else _lack(target, found, need, files)


def _refused(target: Path | str, number: int) -> str:
    return str(StorageError(f"cannot write to {target}", OSError(number, os.strerror(number))))


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 10 << 30 else f"{count / 2**30:.0f} GiB"
