"""What remote commands print, a file for each in a folder of the run; what a killed run left is removed by the next.

A folder is called ``clustergauge-logs-<8 characters>`` and holds a locked file ``lock`` (its owner's host) and files ``*.log``.
One whose lock is free has lost its owner.  Folders of other users and other hosts, and whatever else is in them, are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

_PREFIX = "clustergauge-logs-"
_FOLDER = re.compile(re.escape(_PREFIX) + "[0-9a-z_]{8}", re.ASCII)
_LOCK = "lock"
_TAIL = 4096


class Logs:
    """The logs of one run, by name.  `close` removes them."""

    def __init__(self) -> None:
        """Raises ``OSError`` where there is no place for temporary files."""
        sweep(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        with contextlib.suppress(OSError):  # no locks here: then nothing is swept here either
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._lock, _host())

    def open(self, name: str) -> BinaryIO:
        """To be written, from its beginning."""
        return (self.folder / f"{name}.log").open("wb")

    def words(self, name: str) -> str:
        """The end of a log; empty where there is none."""
        with contextlib.suppress(OSError):
            return (self.folder / f"{name}.log").read_text(errors="replace")[-_TAIL:]
        return ""

    def close(self) -> None:
        """Remove them.  Safe to call twice."""
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(parent: Path) -> list[str]:
    """Remove the folders whose owners are gone; returns their names."""
    with contextlib.suppress(OSError):
        names = sorted(name for name in os.listdir(parent) if _FOLDER.fullmatch(name))  # noqa: PTH208 (names alone)
        return [name for name in names if _sweep_one(parent / name)]
    return []


def _sweep_one(path: Path) -> bool:
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, folder)
        if os.fstat(folder).st_uid != os.geteuid():
            return False
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.pread(lock, 512, 0) != _host():  # not signed yet, or by a host whose locks may not be seen here
            return False
        for name in os.listdir(folder):  # noqa: PTH208 (an open folder)
            if name.endswith(".log"):
                os.unlink(name, dir_fd=folder)
        os.unlink(_LOCK, dir_fd=folder)
        path.rmdir()
        return True
    return False


def _host() -> bytes:
    return os.fsencode(os.uname().nodename)
