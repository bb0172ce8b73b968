"""One file under test, opened for direct I/O where that is what the file system really does, and labelled either way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from clustergauge.model import Scalar
from storage_io.errors import StorageError
from storage_io.evidence import cached_bytes, process_io

REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
"""What file systems without direct I/O answer, at open or at the first transfer."""
ENOUGH = 0.95
"""Share of the bytes asked for that the kernel must have counted at the device."""


class DataFile:
    """A new file (the path must be free; links are not followed), readable and writable; or one that is there (``new=False``).

    ``direct``: whether transfers go past the page cache; ``reason``: how that is known.  ``counted``: whether the kernel's device
    counters mean something on this file system.  The last two are known after `prove`.
    """

    def __init__(self, path: Path, size: int, *, new: bool = True) -> None:
        self.path = path
        self.size = size
        self.direct = True
        self.reason = ""
        self.counted = True
        flags = os.O_NOFOLLOW | os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0)
        try:
            try:
                self._fd = os.open(path, flags | os.O_DIRECT, 0o600)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                if new:
                    path.unlink(missing_ok=True)  # some make the file before they refuse the flag
                self._fd = os.open(path, flags, 0o600)
                self.direct, self.reason = False, "the file system refuses direct I/O"
        except OSError as error:
            raise StorageError(f"cannot {'create' if new else 'open'} {path}", error) from error

    def settings(self) -> dict[str, Scalar]:
        """What a record says of the way the bytes went."""
        return {"direct": self.direct, "direct_reason": self.reason, "device_counters": self.counted}

    @property
    def descriptor(self) -> int:
        """For engines that transfer by themselves, in this process or another."""
        return self._fd

    def allocate(self) -> None:
        """Reserve the space, in one piece where the file system can; where it can't, the first write allocates."""
        try:
            os.posix_fallocate(self._fd, 0, self.size)
        except OSError as error:
            if error.errno not in REFUSED:
                raise StorageError(f"cannot allocate {self.size} bytes for {self.path}", error) from error

    def write_at(self, offset: int, view: memoryview) -> None:
        """Write the whole of ``view``, or raise `StorageError`."""
        self._transfer(os.pwritev, "write", offset, view)

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill the whole of ``view``, or raise `StorageError`."""
        self._transfer(os.preadv, "read", offset, view)

    def sync(self) -> None:
        """fdatasync(2): what was written is on the device."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise StorageError(f"cannot sync {self.path}", error) from error

    def drop(self) -> int | None:
        """Empty the page cache of this file; returns the bytes that stay there all the same, ``None`` if the kernel won't say."""
        try:
            os.fsync(self._fd)  # dirty pages can't be dropped
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise StorageError(f"cannot sync {self.path}", error) from error
        return cached_bytes(self._fd, self.size)

    def go_buffered(self, reason: str) -> None:
        """Give up direct I/O."""
        import fcntl

        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct, self.reason = False, reason

    def prove(self, work: Callable[[], None], reads: int, writes: int) -> None:
        """Do ``work``, which reads or writes so many bytes of a file none of which is cached; believe only what the kernel saw.

        Sets ``direct``, ``reason`` and ``counted``.  A file system may take the flag and go through the page cache all the same;
        and one without a block device behind it need not count anything.
        """
        self.drop()
        before = process_io()
        work()
        after = process_io()
        cached = cached_bytes(self._fd, self.size)
        left = self.drop()
        moved = after[0] + after[1] - before[0] - before[1] if before and after else None
        counted = moved is not None and moved >= ENOUGH * (reads + writes)
        self.counted = counted or left != 0  # a file that can't be dropped is memory: then nothing counted means no device
        if not self.direct:
            return
        if cached:
            self.go_buffered("the file system takes direct I/O but goes through the page cache")
        elif counted:
            self.reason = f"the device moved {moved} of {reads + writes} bytes" + ("" if cached is None else ", none cached")
        elif cached == 0:
            self.reason = "no page was cached; the kernel counts no device bytes here"
        else:
            self.go_buffered("the file system takes direct I/O but nothing shows that it happens")

    def prove_writes(self, work: Callable[[], None], size: int) -> None:
        """`prove` with ``work`` that writes ``size`` bytes; once more without direct I/O where it refuses them."""
        try:
            self.prove(work, 0, size)
        except StorageError as error:
            if not (self.direct and error.errno in REFUSED):
                raise
            self.go_buffered("the file system refuses direct transfers")
            self.prove(work, 0, size)

    def close(self) -> None:
        """Close the file; a thread still at work meets a bad descriptor, never another file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _transfer(self, call: Callable[..., int], verb: str, offset: int, view: memoryview) -> None:
        try:
            while (done := call(self._fd, (view,), offset)) < len(view):
                if done == 0:
                    raise OSError(errno.EIO, f"the file {'ends' if verb == 'read' else 'takes no more'} here")
                offset, view = offset + done, view[done:]
        except OSError as error:
            raise StorageError(f"cannot {verb} {self.path} at byte {offset}", error) from error
