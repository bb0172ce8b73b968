"""System calls on names, one after the other: from compiled code, as a program in C makes them, or from Python.

Python takes half a microsecond and more to find a path in an argument and to make an object of a result, as long as a local file
system takes for the call.  So a loop over all names of a sample is compiled (`compiled`); where it can't be, Python calls.
Pointers are made before, and what was seen is looked at afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

from clustergauge import compiled
from storage_io.errors import StorageError

CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
AT_ONCE = 1000
"""Calls between which nobody looks whether this process is to end."""
_STATX_BYTES, _INODE_AT = 256, 32
"""Of ``struct statx``, which looks the same on every processor, as ``struct stat`` does not."""
_BASIC_STATS, _HERE = 0x7FF, -100
"""``STATX_BASIC_STATS``: what stat(2) tells; ``AT_FDCWD``."""

Todo = Sequence[tuple[str, ...]]
"""The paths of each operation: two for *rename*, else one."""


class FromPython:
    """``op``: create, stat, open, list, rename or unlink.  ``done``: operations since `load`.  ``results``: of each call."""

    engine = "system calls from Python, 1 thread"

    def __init__(self, op: str) -> None:
        self._op = op
        self._call: Callable[..., object] = {
            "create": create,
            "stat": os.stat,
            "open": _open,
            "list": os.listdir,
            "rename": os.rename,
            "unlink": os.unlink,
        }[op]
        self._todo: Todo = ()
        self.results: list[Any] = []

    @property
    def done(self) -> int:
        """Operations since `load`."""
        return len(self.results)

    def load(self, todo: Todo) -> None:
        """What `run` is to do."""
        self._todo, self.results = todo, []

    def run(self) -> None:
        """All operations.  Raises `StorageError` at the first that fails."""
        call, results = self._call, self.results
        try:
            for paths in self._todo:
                results.append(call(*paths))
        except OSError as error:
            raise StorageError(f"cannot {self._op} {error.filename or self._todo[self.done][0]}", error) from error

    def inodes(self) -> list[int]:
        """What *stat* saw."""
        return [found.st_ino for found in self.results]


class Compiled:
    """The same in machine code, but for *list*.  Raises what comes where there is none."""

    engine = "system calls from compiled code, 1 thread"

    def __init__(self, op: str) -> None:
        self._op = op
        self._held, address = compiled.made(text(op), "names")
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._calls = ctypes.CFUNCTYPE(number, pointer, number, number, pointer, pointer)(address)
        self.load(())

    def load(self, todo: Todo) -> None:
        """See `FromPython`."""
        paths = [os.fsencode(path) for each in todo for path in each]
        self._paths = (ctypes.c_char_p * len(paths))(*paths)
        self._each = len(todo[0]) if todo else 1
        self._count, self.done = len(todo), 0
        self._inodes, self._errno = (ctypes.c_uint64 * len(todo))(), ctypes.c_int()

    def run(self) -> None:
        """See `FromPython`."""
        while self.done < self._count:
            until = min(self.done + AT_ONCE, self._count)
            self.done = self._calls(self._paths, self.done, until, self._inodes, ctypes.byref(self._errno))
            if self.done < until:
                number, path = self._errno.value, os.fsdecode(self._paths[self.done * self._each])
                raise StorageError(f"cannot {self._op} {path}", OSError(number, os.strerror(number)))

    def inodes(self) -> list[int]:
        """See `FromPython`."""
        return list(self._inodes)


def calls(op: str) -> FromPython | Compiled:
    """What makes the calls of an operation here."""
    if op != "list" and compiled.possible():
        with contextlib.suppress(Exception):  # no llvmlite, another C library: Python can call all the same
            return Compiled(op)
    return FromPython(op)


def create(path: str) -> None:
    """An empty file."""
    os.close(os.open(path, CREATE, 0o600))


def _open(path: str) -> None:
    os.close(os.open(path, OPEN))


def text(op: str) -> str:
    """The loop in LLVM's language.

    ``i64 names(paths, from, to, inodes, errno)``: the operation that failed (``errno`` says why), or ``to``.
    """
    return "\n".join(
        [
            "define i64 @names(ptr %paths, i64 %from, i64 %to, ptr %inodes, ptr %errno) {",
            "entry:",
            f"  %found = alloca [{_STATX_BYTES} x i8], align 8",
            "  br label %turn",
            "turn:",
            "  %n = phi i64 [%from, %entry], [%next, %done]",
            "  %left = icmp ult i64 %n, %to",
            "  br i1 %left, label %call, label %end",
            "call:",
            f"  %at = mul i64 %n, {2 if op == 'rename' else 1}",
            "  %path.at = getelementptr ptr, ptr %paths, i64 %at",
            "  %path = load ptr, ptr %path.at",
            *_call(op),
            "  %bad = icmp slt i32 %code, 0",
            "  br i1 %bad, label %failed, label %done",
            "done:",
            *(_SEEN if op == "stat" else []),
            "  %next = add i64 %n, 1",
            "  br label %turn",
            "failed:",
            f"  %where = call ptr {compiled.libc('__errno_location')}()",
            "  %number = load i32, ptr %where",
            "  store i32 %number, ptr %errno",
            "  br label %end",
            "end:",
            "  ret i64 %n",
            "}",
            "",
        ]
    )


_SEEN = [
    f"  %inode.at = getelementptr i8, ptr %found, i64 {_INODE_AT}",
    "  %inode = load i64, ptr %inode.at",
    "  %seen.at = getelementptr i64, ptr %inodes, i64 %n",
    "  store i64 %inode, ptr %seen.at",
]


def _call(op: str) -> list[str]:
    """The call on ``%path``, whose ``%code`` is below zero if it failed."""
    if op == "stat":
        return [f"  %code = call i32 {compiled.libc('statx')}(i32 {_HERE}, ptr %path, i32 0, i32 {_BASIC_STATS}, ptr %found)"]
    if op == "unlink":
        return [f"  %code = call i32 {compiled.libc('unlink')}(ptr %path)"]
    if op == "rename":
        return [
            "  %new.at = getelementptr ptr, ptr %path.at, i64 1",
            "  %new = load ptr, ptr %new.at",
            f"  %code = call i32 {compiled.libc('rename')}(ptr %path, ptr %new)",
        ]
    flags = CREATE if op == "create" else OPEN
    return [
        f"  %file = call i32 (ptr, i32, ...) {compiled.libc('open')}(ptr %path, i32 {flags}, i32 {0o600})",
        "  %none = icmp slt i32 %file, 0",
        "  br i1 %none, label %failed, label %opened",
        "opened:",
        f"  %code = call i32 {compiled.libc('close')}(i32 %file)",
    ]
