"""What the gauge found when it gauged itself on a machine: kept beside the runs, for their reports."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clustergauge import folder, valid
from clustergauge.errors import UsageError
from clustergauge.model import Data

if TYPE_CHECKING:
    from clustergauge.selftest import Selftest

FOLDER = "selftests"
"""Beside the run folders."""


class Gauged(Data, frozen=True, kw_only=True):
    """The figures of one selftest; ``None`` where it did not come so far.

    ``bias``: of a known duration the largest, relative.  ``overhead_s``: of a call.  ``tick_s``: step of the clock.
    ``smallest_change``: that ``launches`` launches a side can show.  ``problems``: where it contradicted what is known.
    """

    machine_id: str
    code: str
    when: str
    launches: int
    bias: float | None
    overhead_s: float | None
    tick_s: float | None
    smallest_change: float | None
    problems: list[str]
    doubts: list[str]


_decoder = msgspec.json.Decoder(Gauged)


def of(result: Selftest, machine_id: str, code: str, when: str) -> Gauged:
    """The figures of a result, to be kept.  ``when``: ISO 8601, UTC."""
    return Gauged(
        machine_id=machine_id,
        code=code,
        when=when,
        launches=result.launches,
        bias=max((known.bias for known in result.known), key=abs, default=None),
        overhead_s=_known(result.overhead_s),
        tick_s=_known(result.tick_s),
        smallest_change=_known(result.smallest_change),
        problems=result.problems,
        doubts=result.doubts,
    )


def keep(gauged: Gauged, results: Path) -> Path:
    """Write it, in place of an earlier one of the same machine.  Raises ``OSError``."""
    path = results / FOLDER / f"{gauged.machine_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(gauged)) + b"\n")
    return new.replace(path)


def find(results: Path, machine_ids: Iterable[str]) -> list[Gauged]:
    """What is kept of these machines; what is not as it was written is as if it were not there."""
    found: list[Gauged] = []
    for machine_id in machine_ids:
        if not valid.is_file_name(machine_id):
            continue
        try:
            gauged = valid.clean(_decoder.decode(folder.content_of(results / FOLDER / f"{machine_id}.json")))
        except (OSError, ValueError, RecursionError, UsageError):
            continue
        if gauged.machine_id == machine_id:
            found.append(gauged)
    return found


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number
