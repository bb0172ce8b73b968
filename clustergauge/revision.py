"""Revisions of this checkout in git: what is at hand, and another one checked out beside it for a while."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from clustergauge import folder
from clustergauge.errors import UsageError
from clustergauge.processes import undisturbed
from clustergauge.valid import printable, shown

PREFIX = "clustergauge-against-"
"""Beginning of the temporary folders that checkouts lie in."""
_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
"""What git tells its hooks of the repository they run in: here paths do."""
_SUBMODULE = re.compile(r"^160000 commit \S+\t(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Tree:
    """Files of one revision, with whatever was changed in them.

    ``top``: where git has them; ``inside``: the suite's own folder below (``.`` in its own repository); ``name``: as people
    are told.
    """

    top: Path
    inside: str
    commit: str
    name: str

    @property
    def root(self) -> Path:
        """Where its ``run_suite.py`` is."""
        return self.top / self.inside

    def place_of(self, path: Path, other: Tree) -> Path:
        """What a path of this tree is in the other one; the path itself where it lies outside, or the other has none."""
        inside = path.resolve()
        moved = other.top / inside.relative_to(self.top) if inside.is_relative_to(self.top) else path
        return moved if moved.exists() else path


def at_hand(root: Path) -> Tree:
    """The tree in ``root``, as it is.  Raises `UsageError` where git does not know it."""
    if not shutil.which("git"):
        raise UsageError("--against needs git, which is not installed")
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        inside = _git(root, "rev-parse", "--show-prefix") or "."
        commit = _git(root, "rev-parse", "HEAD")
    except GitError as error:
        raise UsageError(f"--against needs a git checkout of the suite, {printable(str(root))} is none: {error}") from None
    changed = len(_git(top, "--no-optional-locks", "status", "--porcelain", "--no-renames").splitlines())
    files = f" and {changed} uncommitted file{'s' if changed > 1 else ''}" if changed else ""
    return Tree(top.resolve(), inside, commit, f"this tree ({commit[:9]}{files})")


@contextlib.contextmanager
def checked_out(here: Tree, revision: str) -> Generator[Tree]:
    """A revision of the same repository in a temporary worktree, which is gone again however this ends.

    What a killed process has left of such is taken away first.  Raises `UsageError` for a revision that git does not know or
    cannot check out, and for one that needs submodules, which a worktree would lack.
    """
    commit = _commit_of(here, revision)
    if found := _SUBMODULE.search(_git(here.top, "ls-tree", "-r", commit)):
        raise UsageError(f"--against {shown(revision)}: it has submodules ({printable(found[1])}), which a worktree would lack")
    _sweep(here)
    home, lock = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve(), -1
    tree = Tree(home / "tree", here.inside, commit, f"{printable(revision)} ({commit[:9]})")
    try:
        lock = folder.lock(home)
        try:
            _git(here.top, "worktree", "add", "--detach", str(tree.top), commit)
        except GitError as error:
            raise UsageError(f"--against {shown(revision)}: {error}") from None
        if not (tree.root / "run_suite.py").is_file():
            raise UsageError(f"--against {shown(revision)}: it has no run_suite.py to measure with")
        yield tree
    finally:
        with undisturbed():
            _remove(here, home)
            if lock >= 0:
                os.close(lock)


class GitError(RuntimeError):
    """What git said, in one line."""


def _commit_of(here: Tree, revision: str) -> str:
    try:
        return _git(here.top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitError:
        shallow = _git(here.top, "rev-parse", "--is-shallow-repository") == "true"
        remedy = "this clone is shallow: fetch it, in CI with fetch-depth: 0" if shallow else "git fetch, or see: git log --all"
        raise UsageError(f"--against {shown(revision)}: no such revision here ({remedy})") from None


def _sweep(here: Tree) -> None:
    """Take away the worktrees of processes that were killed: those whose folder nobody holds."""
    for line in _git(here.top, "worktree", "list", "--porcelain").splitlines():
        home = Path(line.removeprefix("worktree ")).parent
        if line.startswith("worktree ") and home.name.startswith(PREFIX) and folder.writer_of(home) is None:
            _remove(here, home)


def _remove(here: Tree, home: Path) -> None:
    with contextlib.suppress(GitError):  # it may not have come so far
        _git(here.top, "worktree", "remove", "--force", "--force", str(home / "tree"))
    shutil.rmtree(home, ignore_errors=True)


def _git(where: Path, *words: str) -> str:
    """What a git command prints; no hook of the repository runs.  Raises `GitError`."""
    environment = {name: value for name, value in os.environ.items() if name not in _REPOSITORY} | {"LC_ALL": "C"}
    command = ["git", "-c", "core.hooksPath=/dev/null", "-C", str(where), *words]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"git {words[0]} exited with {done.returncode}"]
        fatal = next((line for line in lines if line.startswith("fatal: ")), lines[-1])  # advice may follow it
        raise GitError(printable(fatal.removeprefix("fatal: "))[:300])
    return done.stdout.strip("\n")
