"""The run folder that all ranks of a case share: one rank makes it with the files in it, all of them must find it.

``n_to_n``: a file for each rank; ``n_to_1``: one file, in which each rank has a region, one after the other.  Rank 0 makes the
files, empty, and removes them: so whatever becomes of the others, the run folder and its lock are of one process.  The others
learn its name from rank 0 and open the files by their own path to the target.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from clustergauge.probe import Skip
from clustergauge.world import World
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.mounts import describe
from storage_io.ranks import together
from storage_io.workspace import Workspace, data_file, folder_of

LAYOUTS = ("n_to_n", "n_to_1")


@dataclass(frozen=True)
class Agreed:
    """What all ranks know: how bytes go, as `DataFile` says it of one, the seed of the data, and the host of each rank."""

    direct: bool
    reason: str
    counted: bool
    seed: int
    hosts: list[str]


def agree(world: World, own: DataFile) -> Agreed:
    """Direct where a file of its own is on every rank, counted where all count; else the reason of the first without."""
    everybody = world.gather([own.direct, own.reason, own.counted, world.host])
    said = None
    if everybody:
        rank, first = next(((n, one) for n, one in enumerate(everybody) if not one[0]), (0, everybody[0]))
        reason = f"rank {rank}: {first[1]}" if rank else first[1]
        said = [first[0], reason, all(counted for _, _, counted, _ in everybody), secrets.randbits(62), [s[3] for s in everybody]]
    return Agreed(*world.from_root(said))


class SharedFolder:
    """Files of ``size`` bytes a rank, opened as was agreed.  ``spare``: bytes to leave free, not what `Workspace` asks for.

    ``path``: the run folder, as this rank finds it.  For all ranks together.  Raises `Skip` where space is short or each node has
    a target of its own, `StorageError` where it can't be written to or is not the same on nodes that should share it.
    """

    def __init__(self, world: World, target: Path, layout: str, size: int, agreed: Agreed, spare: int | None = None) -> None:
        self.size = size
        self._world = world
        self._agreed = agreed
        self._each = layout == "n_to_n"
        self._own: Workspace | None = None
        try:
            together(world, lambda: self._make(target, spare))
            name, kind = world.from_root([self.path.name, _kind(self.path)] if self._own else None)
            self.path = folder_of(target, name)
            together(world, lambda: self._find(target, kind))
        except BaseException:
            self.close()
            raise

    def start(self, rank: int) -> int:
        """Where a rank's bytes begin in its file."""
        return 0 if self._each else rank * self.size

    def number(self, rank: int) -> int:
        """The number of the file in which a rank has its bytes."""
        return rank if self._each else 0

    def open(self, rank: int) -> DataFile:
        """The file in which a rank has its bytes.  Raises `StorageError` where it is not there."""
        path = data_file(self.path, self.number(rank))
        try:
            file = DataFile(path, self.size if self._each else self.size * self._world.size, new=False)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            raise StorageError.quoted(f"{self._whose(rank)} {path} is not there: {_QUESTION}") from None
        if file.direct and not self._agreed.direct:
            file.go_buffered(self._agreed.reason)
        return file

    def close(self) -> None:
        """On rank 0, remove the folder and what is in it."""
        own, self._own = self._own, None
        if own:
            own.close()

    def _make(self, target: Path, spare: int | None) -> None:
        if self._world.rank:
            return
        files = self._world.size if self._each else 1
        self._own = Workspace(target, self.size * self._world.size, files, spare=spare)
        self.path = self._own.path
        for number in range(files):
            DataFile(self._own.file(number), 0).close()

    def _find(self, target: Path, kind: str) -> None:
        """See that what rank 0 made is here.  ``kind``: the file system that it is on.

        Where neither that one nor ours is of the network nobody expects it: then the case has no meaning on these nodes.
        """
        own = data_file(self.path, self.number(self._world.rank))
        try:
            os.lstat(own)
        except FileNotFoundError:
            here = _kind(target)
            said = f"{self._whose(self._world.rank)} {own} is not there: {_QUESTION} (here {here}, on rank 0's {kind})"
            raise StorageError.quoted(said) if _is_shared(here) or _is_shared(kind) else Skip(said) from None
        except OSError as error:
            raise StorageError(f"cannot see {own}", error) from error

    def _whose(self, rank: int) -> str:
        return f"rank {rank}'s file" if self._each else "the ranks' file"


_QUESTION = "is the target one file system on all nodes?"


def _kind(folder: Path) -> str:
    return str(describe(folder).get("fs_type", "an unknown file system"))


def _is_shared(kind: str) -> bool:
    from clustergauge.believed import REMOTE

    return kind.startswith(REMOTE)
