"""A node's mark in a storage target, by which others see that they share it (`meeting`).

A mark is an empty folder with the name of a run folder of storage cases, so that the next of these removes what a killed agent
left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Literal

from clustergauge.at_work import PREFIX
from clustergauge.preflight import within

Step = Literal["mark", "look", "clear"]
_MARK = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}", re.ASCII)


def mark_of(token: str, node: str) -> str:
    """The name of a node's mark in a run."""
    return PREFIX + hashlib.sha256(f"{token}\0{node}".encode()).hexdigest()[:16]


def take(step: Step, target: str, mark: str) -> list[str]:
    """Make one's mark, name the marks that are there, or remove one's own.  Nothing where the target can't be used in time."""
    if not _MARK.fullmatch(mark):
        return []

    def do() -> list[str]:
        folder = Path(target)
        if step == "mark":
            with contextlib.suppress(FileExistsError):
                (folder / mark).mkdir(mode=0o700)
        elif step == "look":
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries if _MARK.fullmatch(entry.name)]
        else:
            (folder / mark).rmdir()
        return []

    try:
        return within(do) or []
    except OSError:
        return []
