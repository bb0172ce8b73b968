"""Files opened, read whole and closed, one after the other, from compiled code: several threads take from one list.

After each of these system calls a thread of Python would need the interpreter again, and wait for the others that need it too: on
a busy machine eight of them read 5 000 files of 128 KiB a second where threads in C read 9 000.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from clustergauge import compiled

AT_ONCE = 16
"""Files between which a thread looks whether this process is to end."""
NONE_LEFT, PAUSE = -1, -2


class Taken(NamedTuple):
    """What a thread came to.

    ``which``: the file that did not come whole, `NONE_LEFT` or `PAUSE`; ``reason``: why (errno; 0: it is shorter); ``last``: the
    last one that came whole (-1: none); ``whole``: how many did.
    """

    which: int
    reason: int
    last: int
    whole: int


class Files:
    """Files of ``size`` bytes each, opened with these flags; of which `take` reads some.

    Raises what comes where there is no compiled code.
    """

    def __init__(self, size: int, flags: int) -> None:
        self._held, address = compiled.made(text(size, flags), "whole")
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._whole = ctypes.CFUNCTYPE(number, pointer, number, pointer, pointer, pointer)(address)
        self.load(())

    def load(self, paths: Sequence[bytes]) -> None:
        """What is to be read."""
        self._paths = (ctypes.c_char_p * len(paths))(*paths)
        self._count = len(paths)
        self._next = ctypes.c_int64(self._count)

    def start(self) -> None:
        """From the first on."""
        self._next.value = 0

    def take(self, into: int) -> Taken:
        """Read files into the memory at this address until none is left, `AT_ONCE` are done or one does not come whole."""
        told = (ctypes.c_int64 * 3)()
        which = self._whole(self._paths, self._count, ctypes.byref(self._next), into, told)
        return Taken(which, *told)

    def stop(self) -> None:
        """Leave nothing for the others."""
        self._next.value = self._count


def files(size: int, flags: int) -> Files | None:
    """`Files`, where there can be compiled code."""
    if compiled.possible():
        with contextlib.suppress(Exception):  # no llvmlite, another C library: Python can read all the same
            return Files(size, flags)
    return None


def text(size: int, flags: int) -> str:
    """The loop in LLVM's language: ``i64 whole(paths, count, next, into, told)``; `Taken`, the first of it returned."""
    return f"""
define i64 @whole(ptr %paths, i64 %count, ptr %next, ptr %into, ptr %told) {{
entry:
  br label %turn
turn:
  %done = phi i64 [0, %entry], [%more, %whole]
  %last = phi i64 [-1, %entry], [%n, %whole]
  %enough = icmp uge i64 %done, {AT_ONCE}
  br i1 %enough, label %end, label %take
take:
  %n = atomicrmw add ptr %next, i64 1 monotonic
  %left = icmp slt i64 %n, %count
  br i1 %left, label %open, label %end
open:
  %path.at = getelementptr ptr, ptr %paths, i64 %n
  %path = load ptr, ptr %path.at
  %file = call i32 (ptr, i32, ...) {compiled.libc("open")}(ptr %path, i32 {flags}, i32 0)
  %none = icmp slt i32 %file, 0
  br i1 %none, label %failed, label %read
read:
  %got = call i64 {compiled.libc("pread")}(i32 %file, ptr %into, i64 {size}, i64 0)
  %bad = icmp slt i64 %got, 0
  br i1 %bad, label %unread, label %close
unread:
  %where = call ptr {compiled.libc("__errno_location")}()
  %why = load i32, ptr %where
  call i32 {compiled.libc("close")}(i32 %file)
  br label %end
close:
  %code = call i32 {compiled.libc("close")}(i32 %file)
  %unclosed = icmp slt i32 %code, 0
  br i1 %unclosed, label %failed, label %closed
closed:
  %all = icmp eq i64 %got, {size}
  br i1 %all, label %whole, label %end
whole:
  %more = add i64 %done, 1
  br label %turn
failed:
  %here = call ptr {compiled.libc("__errno_location")}()
  %reason = load i32, ptr %here
  br label %end
end:
  %which = phi i64 [{PAUSE}, %turn], [{NONE_LEFT}, %take], [%n, %unread], [%n, %closed], [%n, %failed]
  %errno = phi i32 [0, %turn], [0, %take], [%why, %unread], [0, %closed], [%reason, %failed]
  %errno.wide = sext i32 %errno to i64
  store i64 %errno.wide, ptr %told
  %last.at = getelementptr i64, ptr %told, i64 1
  store i64 %last, ptr %last.at
  %done.at = getelementptr i64, ptr %told, i64 2
  store i64 %done, ptr %done.at
  ret i64 %which
}}
"""
