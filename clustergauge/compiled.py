"""Machine code for calls of functions that are in memory already, made by llvmlite of LLVM's language: no compiler is needed.

What Python does between two calls of a library, to take arguments apart and make objects of results, lasts as long as a short
call.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

PROCESSORS = ("x86_64", "aarch64")
"""Where a number in place of a C ``int`` arrives as one: up to eight arguments lie in registers, or in slots as wide."""


def possible() -> bool:
    """Whether such calls are known to work on this processor."""
    return platform.machine() in PROCESSORS


def address(library: Any, name: str) -> str:
    """Where a function of a ``ctypes`` library is, as LLVM writes it.  Raises ``AttributeError`` where the library has none."""
    return f"inttoptr (i64 {ctypes.cast(getattr(library, name), ctypes.c_void_p).value} to ptr)"


def libc(name: str) -> str:
    """`address` of a function of the C library."""
    return address(ctypes.CDLL(None), name)


def made(code: str, name: str) -> tuple[Any, int]:
    """Machine code of a text: what holds it, and where the function of that name begins.  Raises what llvmlite raises."""
    from llvmlite import binding

    llvm: Any = binding  # it tells no types
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
    module = llvm.parse_assembly(code)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, engine.get_function_address(name)
