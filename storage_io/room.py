"""Room in a target: how much must be free for a case, asked by the case itself and, where nothing is written, of a plan."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from clustergauge import targets
from clustergauge.model import Planned
from clustergauge.object_url import is_url
from clustergauge.probe import Probe
from storage_io.errors import StorageError

SPARE_BYTES = 2 << 30
"""Left free at least, or a tenth of the file system if that is more."""


def lack(target: Path, need: int, files: int, spare: int | None = None, at: Path | None = None) -> str:
    """Why ``need`` bytes in ``files`` files (and a run folder) do not fit so that ``spare`` bytes stay free; empty if they do.

    ``at``: the folder to ask where the target is yet to be made in it.
    """
    stat = os.statvfs(at or target)
    if not stat.f_blocks:
        return f"the file system of {target} does not say how much is free"
    free = stat.f_bavail * stat.f_frsize
    spare = max(stat.f_blocks * stat.f_frsize // 10, SPARE_BYTES) if spare is None else spare
    if free < need + spare:
        return f"{target} has {_mib(free)} free, the files need {_mib(need)} and {_mib(spare)} must stay free"
    if stat.f_files and stat.f_favail < files + 2:
        return f"{target} has {stat.f_favail} inodes free, {files + 2} are needed"
    return ""


def foreseen(planned: Sequence[Planned], probes: Mapping[str, Probe]) -> list[Planned]:
    """A plan as it is shown: cases that would be refused by their target now are skipped, in the words that they would have.

    Nothing is written.  What a killed run left there counts as taken, though a case would remove it first.
    """
    return [msgspec.structs.replace(p, skip=why) if why else p for p, why in _refusals(planned, probes)]


def promised(planned: Sequence[Planned], probes: Mapping[str, Probe]) -> list[Planned]:
    """A plan as it is carried out: whether there is room for each case now (`Planned.room`); the case itself sees to the rest."""
    return [msgspec.structs.replace(p, room=why == "") for p, why in _refusals(planned, probes)]


def _refusals(planned: Sequence[Planned], probes: Mapping[str, Probe]) -> Iterator[tuple[Planned, str | None]]:
    """Each case with the words by which its target would refuse it, empty if it would not; ``None`` if that can't be known."""
    for p in planned:
        room = None if p.skip or not p.target or is_url(p.target) else _room(p, probes)
        yield p, None if room is None else _refusal(Path(p.target), *room)


def _room(planned: Planned, probes: Mapping[str, Probe]) -> tuple[int, int] | None:
    """Bytes and files of a case; ``None`` where its probe does not say."""
    try:
        room = probes[planned.probe].needs_of(targets.own_params(planned.params)).room
        return room.of(planned.ranks, planned.cross_check) if room.files else None
    except Exception:  # noqa: BLE001 (parameters of a run that is gone on with may be anything: the case itself will tell)
        return None


def _refusal(target: Path, need: int, files: int) -> str | None:
    """``None`` where the target does not answer."""
    try:
        at = next(folder for folder in (target, *target.parents) if folder.exists())
        if number := targets.refusal(at):
            return str(StorageError(f"cannot write to {target}", OSError(number, os.strerror(number))))
        return lack(target, need, files, at=at)
    except OSError:
        return None


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 10 << 30 else f"{count / 2**30:.0f} GiB"
