"""A private folder under the target: refused where space is short, always removed, swept by the next run if its owner was killed.

A run folder (named as `at_work` says) holds a locked file ``lock`` (its owner's host and pid) and files ``data-<n>``, some in
folders ``folder-<n>``.  A run folder whose lock is free has lost its owner; but where locks don't reach other hosts (Lustre's
``localflock``) a living owner elsewhere looks the same, so a folder of another host is left alone until it is a day old.  Nothing
with another name is ever touched, no symbolic link is followed, and folders of other users are left alone.  Where the file system
has no ``flock``, nothing is swept.

Who removes a folder holds its lock until the lock file is unlinked, and who has just made one looks, once the lock is its own,
whether the file is still there: so a sweeper that finds a folder before its owner has locked it either takes it whole or not at
all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import sys
import time
from pathlib import Path

from clustergauge.at_work import LOCK, PREFIX, own
from clustergauge.object_url import is_url
from clustergauge.probe import Context, NoRoom, Skip
from storage_io.errors import StorageError
from storage_io.room import lack

FOREIGN_AGE_S = 86_400
"""Age in seconds at which a folder of another host is given up; no case lives as long."""
_FOLDER = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}", re.ASCII)
_DATA = re.compile(r"data-[0-9]{1,9}|\.tmp[0-9A-Za-z]{6}", re.ASCII)
"""The second is what safetensors calls a file until it is whole."""
_INNER = re.compile("folder-[0-9]{1,9}", re.ASCII)


class Workspace:
    """A run folder.  ``need``: bytes that will be written into it; ``files``: how many files; ``spare``: bytes to leave free
    (`room.SPARE_BYTES` or a tenth of the file system unless given).

    Raises `NoRoom` where space or inodes are short, `StorageError` where the target cannot be written to.
    """

    def __init__(self, target: Path, need: int, files: int = 1, spare: int | None = None) -> None:
        try:
            self.swept = sweep(target)
            require_space(target, need, files, spare)
            self.path, self._lock = _make(target.resolve())
        except OSError as error:
            raise StorageError(f"cannot write to {target}", error) from error

    def file(self, number: int) -> Path:
        """Path of data file ``number``."""
        return data_file(self.path, number)

    def folder(self, number: int) -> Path:
        """Path of folder ``number``, for data files alone; to be made by the caller."""
        return self.path / f"folder-{number}"

    def close(self) -> None:
        """Remove the folder and what is in it.  Raises `StorageError` if something of another name is in there."""
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _empty(folder, lock)
            finally:
                os.close(folder)
            with contextlib.suppress(FileNotFoundError):  # a sweeper came in between, once the lock was free
                self.path.rmdir()
        except OSError as error:
            raise StorageError(f"cannot remove {self.path}", error) from error


def target_of(ctx: Context) -> Path:
    """The folder of a case.  Raises `Skip` where there is none, or not what proves that bytes came from a device."""
    if ctx.target is None:
        raise Skip("no target folder")
    if not hasattr(os, "O_DIRECT"):
        raise Skip("needs Linux: direct I/O and its evidence")
    return ctx.target


def data_file(folder: Path, number: int) -> Path:
    """Path of data file ``number`` of a run folder."""
    return folder / f"data-{number}"


def folder_of(target: Path, name: str) -> Path:
    """The run folder of this name, which another process made.  Raises ``ValueError`` for what is no name of one."""
    if not _FOLDER.fullmatch(name):
        raise ValueError(f"{name!r} is no run folder")
    return target.resolve() / name


def sweep(target: Path) -> list[str]:
    """Remove the run folders under ``target`` whose owners are gone; returns their names."""
    parent = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [name for name in _names(parent, _FOLDER) if _sweep_one(parent, name)]
    finally:
        os.close(parent)


def require_space(target: Path, need: int, files: int, spare: int | None = None) -> None:
    """Raise `NoRoom` unless ``need`` bytes in ``files`` files (and the run folder) fit and leave ``spare`` bytes free."""
    if why := lack(target, need, files, spare):
        raise NoRoom(why)


def _make(target: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock.  A sweeper may take the folder before it is locked: then another."""
    for _ in range(100):
        path = target / f"{own()}{secrets.token_hex(4)}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        try:
            lock = os.open(path / LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileNotFoundError:
            continue
        except OSError:
            path.rmdir()
            raise
        try:
            if _try_lock(lock) is not False and _is(lock, path / LOCK):
                os.write(lock, f"{_host()} {os.getpid()}\n".encode())
                return path, lock
        except OSError:
            (path / LOCK).unlink()
            os.close(lock)
            path.rmdir()
            raise
        os.close(lock)
    raise OSError("another process removes every folder made there")


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name.

    That one is opened to see it: NFS keeps a link to an open file that was removed, and asks its server only at an opening.
    """
    try:
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return os.path.sameopenfile(descriptor, found)
    finally:
        os.close(found)


def _host() -> str:
    return os.uname().nodename


def _try_lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; ``None`` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep_one(parent: int, name: str) -> bool:
    """Remove one run folder if its owner is gone; whether it was removed.  A folder without a lock file goes only if empty."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        stack.callback(os.close, folder)
        if os.fstat(folder).st_uid != os.geteuid():
            return False
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            if not (_try_lock(lock) and _given_up(lock)):
                os.close(lock)
                return False
            _empty(folder, lock)
        os.rmdir(name, dir_fd=parent)
        return True
    return False


def _given_up(lock: int) -> bool:
    """Whether a free lock means that the owner is gone: it was on this host, or was made long ago, or died before it signed."""
    owner = os.pread(lock, 512, 0).decode(errors="replace").partition(" ")[0]
    return owner in ("", _host()) or time.time() - os.fstat(lock).st_mtime > FOREIGN_AGE_S


def _empty(folder: int, lock: int) -> None:
    """Unlink our own files of an open folder, and its lock, which is held until then.

    The lock goes last, for without it the rest would never be swept.  It is closed before the folder can go: NFS only renames a
    file that is open, and removes it when it is closed.
    """
    try:
        _unlink_data(folder)
        for name in _names(folder, _INNER):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                _unlink_data(inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
        with contextlib.suppress(FileNotFoundError):  # another sweeper was faster, and this lock is of no file any more
            os.unlink(LOCK, dir_fd=folder)
    finally:
        os.close(lock)


def _unlink_data(folder: int) -> None:
    for name in _names(folder, _DATA):
        os.unlink(name, dir_fd=folder)


def _names(folder: int, pattern: re.Pattern[str]) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))


def main() -> int:
    """``python -m storage_io.workspace TARGET``: sweep a target, as the next storage case would."""
    if is_url(sys.argv[1]):
        from storage_io import object_space

        return object_space.main("sweep", sys.argv[1])
    try:
        sweep(Path(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"cannot sweep {sys.argv[1]}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
