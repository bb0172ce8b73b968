"""Files that a library wrote: taken to the device, and out of the page cache, by name."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from clustergauge.probe import Context
from storage_io.errors import StorageError
from storage_io.evidence import cached_bytes

LEFT = "page_cache_left_bytes"


def sync(path: Path) -> None:
    """fsync(2) of a file or a folder: what it holds is on the device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot sync {path}", error) from error


def sync_all(folder: Path) -> None:
    """syncfs(2): everything written to the file system of a folder is on its device."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(f"cannot sync {folder}", error) from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise StorageError(f"cannot sync {folder}", OSError(number, os.strerror(number)))
    finally:
        os.close(descriptor)


def drop(path: Path) -> int:
    """Empty the page cache of a file, after a sync of it; bytes that stay there all the same (0 where the kernel won't say)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)  # dirty pages can't be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size
            return (cached_bytes(descriptor, size) or 0) if size else 0
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot drop {path} from the page cache", error) from error


def say_left(ctx: Context, left: int | None) -> None:
    """Record the most bytes that the kernel would not drop before a run; nothing where it dropped all, or does not say."""
    before = ctx.settings.get(LEFT, 0)
    if left and isinstance(before, int):
        ctx.set(LEFT, max(before, left))
