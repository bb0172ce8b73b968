"""MPI's functions called as a program in C calls them: machine code for a few fixed calls, which Python calls as one function.

mpi4py takes its arguments apart in every call, which lasts half a microsecond, as long as a small message in shared memory.  Here
llvmlite makes code that calls the same functions of the library that mpi4py has loaded, with the same handles and addresses, and
lets go of the interpreter's lock meanwhile, as mpi4py does.  An error is raised as mpi4py raises it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from clustergauge import compiled

MOST = 2**31 - 1
"""The largest count that these functions take."""
STATUS_BYTES = 256
"""More than an ``MPI_Status`` has, whichever the library."""
_NO_ARGUMENTS = 0x0004
"""``METH_NOARGS``."""


class Call(NamedTuple):
    """One function and its arguments: numbers, addresses, handles."""

    name: str
    arguments: tuple[int, ...]


class _Method(ctypes.Structure):
    """``PyMethodDef``."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


def handle(of: Any) -> int:
    """A communicator, datatype, operation or request as C knows it: a pointer, or an ``int``."""
    from mpi4py import MPI

    number = MPI._handleof(of)
    return number - 2**64 if number >= 2**63 else number


def array(requests: Sequence[Any]) -> ctypes.Array[ctypes.c_char]:
    """Persistent requests as an array in C: they stay the same however often they are started."""
    from mpi4py import MPI

    size = MPI._sizeof(requests[0])
    numbers = (handle(request) % 2 ** (8 * size) for request in requests)
    return ctypes.create_string_buffer(b"".join(number.to_bytes(size, sys.byteorder) for number in numbers))


def function(calls: Sequence[Call], keep: object) -> Callable[[], object] | None:
    """A function that makes these calls, in order, until one fails; ``None`` where no such code can be made.

    ``keep``: what the addresses lead to; it lives as long as the function, and is the last of its ``__self__``.
    """
    if sys.implementation.name != "cpython" or not compiled.possible():
        return None
    try:
        engine, address = compiled.made(text(calls), "calls")
    except Exception:  # noqa: BLE001 (no llvmlite, a library that hides its functions: mpi4py can call it all the same)
        return None
    method = _Method(b"calls", address, _NO_ARGUMENTS, None)
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return new(("PyCFunction_NewEx", ctypes.pythonapi))(ctypes.addressof(method), (method, engine, keep), None)


def text(calls: Sequence[Call]) -> str:
    """The code in LLVM's language.  Raises ``AttributeError`` for a function that the library does not have."""
    from mpi4py import MPI

    own = {name: compiled.address(ctypes.pythonapi, f"Py{name}") for name in _OF_PYTHON}
    none, error = (f"ptr inttoptr (i64 {id(value)} to ptr)" for value in (None, MPI.Exception))
    lines = ["define ptr @calls(ptr %self, ptr %nothing) {", f"  %lock = call ptr {own['Eval_SaveThread']}()"]
    lines.append("  br label %call0")
    for number, (name, arguments) in enumerate(calls):
        given = ", ".join(f"i64 {argument}" for argument in arguments)
        lines += [
            f"call{number}:",
            f"  %code{number} = call i32 {_of_mpi(name)}({given})",
            f"  %bad{number} = icmp ne i32 %code{number}, 0",
            f"  br i1 %bad{number}, label %failed, label %call{number + 1}",
        ]
    codes = ", ".join(f"[%code{number}, %call{number}]" for number in range(len(calls)))
    return "\n".join(
        [
            *lines,
            f"call{len(calls)}:",
            f"  call void {own['Eval_RestoreThread']}(ptr %lock)",
            f"  call void {own['_IncRef']}({none})",
            f"  ret {none}",
            "failed:",
            f"  %code = phi i32 {codes}",
            f"  call void {own['Eval_RestoreThread']}(ptr %lock)",
            "  %wide = sext i32 %code to i64",
            f"  %number = call ptr {own['Long_FromLong']}(i64 %wide)",
            f"  call void {own['Err_SetObject']}({error}, ptr %number)",
            f"  call void {own['_DecRef']}(ptr %number)",
            "  ret ptr null",
            "}",
            "",
        ]
    )


_OF_PYTHON = ("Eval_SaveThread", "Eval_RestoreThread", "Long_FromLong", "Err_SetObject", "_IncRef", "_DecRef")


def _of_mpi(name: str) -> str:
    """Where a function of MPI is: one that a profiler has put before the library's, or that which mpi4py's module calls."""
    from mpi4py import MPI

    before = ctypes.CDLL(None)
    return compiled.address(before if hasattr(before, name) else ctypes.CDLL(MPI.__file__), name)
