"""Names of ours in a storage target, and which other runs are at work there: two that measure at once disturb each other.

A storage case keeps what it writes in a folder ``.clustergauge-<16 hex digits>``, of which the first eight are those of its run,
with a locked file ``lock`` in it, which holds host and pid of the owner.  A lock that is held says that the owner lives.  Where
none tells (the folder of another user, or of a host that locks don't reach) a folder counts while it is fresh: what a killed run
left does not count for long, and a case that lasts longer than that is not noticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path

PREFIX = ".clustergauge-"
"""Names of ours in a target begin so."""
LOCK = "lock"
FRESH_S = 900.0
_FOLDER = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}", re.ASCII)
_ALONE = secrets.token_hex(8)
"""Stands for the run in a process that nobody told of one."""


def of_run() -> str:
    """Eight hex digits that stand for this run, on all of its nodes."""
    run = os.environ.get("CLUSTERGAUGE_RUN") or _ALONE
    return hashlib.sha256(run.encode()).hexdigest()[:8]


def own() -> str:
    """What names of folders of this run begin with."""
    return PREFIX + of_run()


def others(target: Path) -> dict[str, int]:
    """Other runs that are at work in a folder, each with the id of its user.  Raises ``OSError`` where it cannot be looked at."""
    found: dict[str, int] = {}
    parent = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if _FOLDER.fullmatch(entry.name) and not entry.name.startswith(own())]
        for name in names:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                about = os.stat(name, dir_fd=parent, follow_symlinks=False)
                fresh = time.time() - about.st_mtime < FRESH_S
                if stat.S_ISDIR(about.st_mode) and _at_work(parent, name, fresh):
                    found[name[: len(own())]] = about.st_uid
    finally:
        os.close(parent)
    return found


def _at_work(parent: int, name: str, fresh: bool) -> bool:
    """Whether the owner of a folder lives; where nothing tells, whether it is ``fresh``.  Raises ``OSError`` without a lock."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            stack.callback(os.close, folder)
            lock = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            stack.callback(os.close, lock)
        except PermissionError:
            return fresh
        host = os.pread(lock, 512, 0).decode(errors="replace").partition(" ")[0]
        if not host:
            return False  # not signed yet: its owner is about to lock it, which we must not hinder
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return fresh
        return fresh and host != os.uname().nodename
