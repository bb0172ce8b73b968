"""Operations on the names of files, as an unpacking job does by thousands: create, stat, open, list, rename, unlink.

A population of empty files stands before timing, in one folder or in many.  A sample is one operation on some of them, chosen
anew, and what it did is undone before the next, untimed; *list* reads all names of all folders.  Times and IO/s are of single
operations (of single names, for *list*).  The kernel's caches are warm, as they are for programs: a local file system answers
*stat*, *open* and *list* from memory.  Nothing is synced: what a crash would lose is another question (see `flush`).

On ext4 a create may take 0.02 ms, or 0.6 ms for some minutes after many files were removed and synced, whoever removed them; a
sample of *create* comes after the removal of what the last one made.

After every sample all names are listed and compared with what must be there; *stat* and *rename* must show each file's own inode.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import cast

from clustergauge.budget import seconds
from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Room, Skip, Work, Wrong, probe
from storage_io import names as calling
from storage_io.errors import StorageError
from storage_io.layout import make_all, patience
from storage_io.mounts import tell
from storage_io.workspace import Workspace

PER_FOLDER = 32
"""Files in each of many folders."""
LEAST = 20
"""Operations of a sample, however slow the file system."""
SAMPLES = 15
BYTES_EACH = 4096
"""Space set aside for a name and an inode."""
OPS = ("create", "stat", "open", "list", "rename", "unlink")


def needs(layout: str, files: int, **_axes: object) -> Needs:
    """A folder."""
    return Needs(target=True, moves=Moves(names=files), room=room(layout, files))


def room(layout: str, files: int) -> Room:
    """The population, and its folders."""
    names = files + -(-files // in_folder(layout, files))
    return Room(names * BYTES_EACH, names)


def in_folder(layout: str, files: int) -> int:
    """How many files a folder holds."""
    return files if layout == "one" else PER_FOLDER


REMEDY = "; take a smaller --set files=…"


@probe("metadata", needs=needs, op=OPS, layout=("one", "many"), files=(1000, 10_000, 100_000))
def metadata(ctx: Context, op: str, layout: str, files: int) -> Work:
    """Operations on names.  layout: all files in one folder, or 32 in each of many.  files: how many there are."""
    return prepare(ctx, op, layout, files)


def prepare(ctx: Context, op: str, layout: str, files: int, spare: int | None = None) -> Work:
    """The work of the probe.  ``spare``: bytes to leave free instead of what `Workspace` asks for.

    Raises `Skip` where space, inodes or time are short, `StorageError` where the target can't be written to.
    """
    if ctx.target is None:
        raise Skip("no target folder")
    each = in_folder(layout, files)
    folders = -(-files // each)
    with contextlib.ExitStack() as stack:
        space = Workspace(ctx.target, *room(layout, files).of(), spare=spare)
        workspace = stack.enter_context(closing(space))
        tell(ctx, workspace.path)
        names = _Names(ctx, workspace, op, files, each)
        names.populate()
        names.calibrate()
        ctx.set("engine", names.engine)
        ctx.set("folders", folders)
        close = stack.pop_all().close
    return Work(
        run=names.run,
        reset=names.reset,
        check=names.check,
        close=close,
        workload=Workload(ios=1, bound="latency"),
        max_iterations=1,
        steps=names.count,
    )


class _Names:
    """The population: file ``n`` is called ``data-n`` in its folder, or ``data-(n + files)`` after a renaming.

    ``count``: operations of a sample.  ``_chosen``: the files that it is about.
    """

    def __init__(self, ctx: Context, workspace: Workspace, op: str, files: int, each: int) -> None:
        import numpy as np

        self._ctx = ctx
        self._op = op
        self._files = files
        self._folders = [workspace.folder(n) for n in range(-(-files // each))]
        self._each = each
        self._choose = np.random.default_rng(ctx.seed)
        self._inodes: dict[int, int] = {}
        self._moved: set[int] = set()
        self._absent: set[int] = set()
        self._chosen: list[int] = []
        self._asked = False
        self.count = min(LEAST, files) if op != "list" else files
        self._calls = calling.calls(op)
        self.engine = self._calls.engine

    def populate(self) -> None:
        """Make folders and files.  Raises `Skip` where that would take too long."""
        with _told("create", self._folders[0]):
            for folder in self._folders:
                folder.mkdir(mode=0o700)
            words = f"creating {self._files} files"
            make_all(self._files, patience(self._ctx), lambda n: calling.create(self._path(n - 1)), words, remedy=REMEDY)
            self._inodes = {n: self._inode(n) for n in range(self._files)}

    def calibrate(self) -> None:
        """Find how many operations take a sample's share of the budget."""
        if self._op == "list":
            return
        share = self._ctx.budget_s / SAMPLES
        for _ in range(3):
            self.reset()
            took = max(seconds(self.run), 1e-9)
            wanted = max(self.count, min(self._files, int(self.count * share / took)))
            self.check()
            near, self.count = wanted < 2 * self.count, wanted
            if near:
                break
        self._ctx.set("operations_per_sample", self.count)

    # -- the timed region

    def run(self) -> None:
        """All operations of the sample."""
        self._calls.run()

    # -- outside of it

    def reset(self) -> None:
        """Verify the last sample, undo it, and choose the next."""
        if self._asked:
            self.check()
        with _told("restore", self._folders[0]):
            for n in sorted(self._absent) if self._op == "unlink" else ():
                calling.create(self._path(n))
                self._inodes[n] = self._inode(n)
            self._absent.clear()
            self._chosen = [int(n) for n in self._choose.permutation(self._files)[: self.count]]
            if self._op == "create":
                for n in self._chosen:
                    os.unlink(self._path(n))  # noqa: PTH108 (a path object for each would be slower)
        self._calls.load(self._todo())
        self._asked = True

    def check(self) -> None:
        """All names, and what the sample saw or made."""
        if not self._asked:
            return
        self._asked = False
        if (done := self._calls.done) != (asked := len(self._folders if self._op == "list" else self._chosen)):
            raise Wrong(f"{done} of {asked} operations were done")
        if self._op == "rename":
            self._moved ^= set(self._chosen)
        if self._op == "unlink":
            self._absent = set(self._chosen)
        if self._op == "list" and isinstance(self._calls, calling.FromPython):
            found = self._calls.results
        else:
            found = [[p.name for p in folder.iterdir()] for folder in self._folders]
        for index, folder in enumerate(self._folders):
            self._compare(folder, found[index], self._expected(index))
        if self._op in ("stat", "rename"):
            seen = self._calls.inodes() if self._op == "stat" else [self._inode(n) for n in self._chosen]
            for n, inode in zip(self._chosen, seen, strict=True):
                if inode != self._inodes[n]:
                    raise Wrong(f"{self._path(n)} has inode {inode}, expected {self._inodes[n]}")

    def _todo(self) -> calling.Todo:
        """The paths of each operation of the sample."""
        if self._op == "list":
            return [(str(folder),) for folder in self._folders]
        paths = [(self._path(n),) for n in self._chosen]
        if self._op != "rename":
            return paths
        return [(path, self._path(n, renamed=n not in self._moved)) for n, (path,) in zip(self._chosen, paths, strict=True)]

    def _inode(self, number: int) -> int:
        return Path(self._path(number)).stat().st_ino

    def _path(self, number: int, *, renamed: bool | None = None) -> str:
        renamed = number in self._moved if renamed is None else renamed
        return f"{self._folders[number // self._each]}/data-{number + self._files * renamed}"

    def _expected(self, index: int) -> set[str]:
        """The names that a folder must hold."""
        numbers = range(index * self._each, min((index + 1) * self._each, self._files))
        return {f"data-{n + self._files * (n in self._moved)}" for n in numbers if n not in self._absent}

    def _compare(self, folder: Path, found: object, expected: set[str]) -> None:
        names = cast("list[str]", found)
        if len(names) != len(expected) or set(names) != expected:
            odd = sorted(set(names) ^ expected)[:3]
            raise Wrong(f"{folder} holds {len(names)} names, expected {len(expected)}; not as they must be: {', '.join(odd)}")


@contextlib.contextmanager
def _told(verb: str, folder: Path) -> Generator[None, None, None]:
    """Errors as one sentence."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {verb} {error.filename or folder}", error) from error
