"""What is free in a target of storage cases: what is asked here, and what a node says of its own.

By these numbers a plan knows which cases will be refused.  They may come from another machine, which is believed if they can be.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

MOST = 1 << 62
"""What is more (a store without an end says 2⁶⁴) is as good as this."""
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class Free(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the file system of a target.

    ``size``, ``free``: bytes, and those that may be used; no ``size`` where it does not say.  ``files``, ``files_free``: inodes;
    no ``files`` where there are as many as one likes.  ``refused``: the number of the error that a new file would meet, or 0.
    """

    size: Count = 0
    free: Count = 0
    files: Count = 0
    files_free: Count = 0
    refused: Annotated[int, msgspec.Meta(ge=0, le=4095)] = 0


def measured(folder: Path) -> Free:
    """What is free in a folder.  Raises ``OSError`` where it can't be asked."""
    found = os.statvfs(folder)
    counts = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail)
    return Free(*(min(count, MOST) for count in counts))
