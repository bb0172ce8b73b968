"""What the project ships: every Triton kernel in every configuration it is launched with.

A module of ``kernels.triton`` whose kernels are not listed here has ``gate_entries() -> list[Entry]`` and is named in
`DECLARING`.  `undeclared` finds kernels that were forgotten.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import textwrap
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clustergauge.probe import Skip
from kernels.gate.entry import SCALE, Argument, Entry, Expects, Pointer, named
from kernels.gate.targets import TARGETS

if TYPE_CHECKING:
    from kernels.triton.matmul_tiles import Config

DECLARING = (
    "kernels.triton.attention",
    "kernels.triton.cache",
    "kernels.triton.launch",
    "kernels.triton.matmul_tma",
    "kernels.triton.matvec",
    "kernels.triton.normalise",
)
"""Modules with a function ``gate_entries``."""
SHAPES = {
    "": (8192, 8192, 8192),
    "K masked": (8192, 8192, 8208),
    "K ragged": (8192, 8192, 8191),
    "N ragged": (8192, 8191, 8192),
    "1 row": (1, 8192, 8192),
    "16 rows": (16, 8192, 8192),
    "16 rows, K masked": (16, 8192, 8208),
    "32 rows": (32, 8192, 8192),
    "64 rows": (64, 8192, 8192),
    "63 rows, K masked": (63, 8192, 8208),
}
"""M, N and K for each way a launch specialises a product: all divisible by all tiles; K by 16 alone; rows of the operands that
start anywhere; rows of the output that do (both get small tiles); and few rows (one is a constant to the compiler)."""
NARROW = 64
"""Instructions of warp groups and of tensor memory multiply so many rows at least."""
_BOTH = frozenset({"loads", "stores"})


def entries() -> list[Entry]:
    """All of them; each (id, target) occurs once."""
    declared = [entry for name in DECLARING for entry in importlib.import_module(name).gate_entries()]
    return [*matmul_entries(), *memory_entries(), *declared]


def matmul_entries() -> list[Entry]:
    """Every dtype and kind of shape on every target where pointers run it."""
    from kernels.triton import matmul_tiles

    cases = itertools.product(TARGETS, matmul_tiles.DTYPES, SHAPES)
    return [entry for case in cases for entry in _matmul(*case)]


def _matmul(target: str, dtype: str, shape: str) -> Iterator[Entry]:
    """Of every candidate; none where the kernel has no configuration, or tiles are moved by the copy engine."""
    from kernels.triton import matmul_tiles

    m, n, k = SHAPES[shape]
    try:
        found = matmul_tiles.candidates(target.replace("sm", "sm_"), dtype, n, k, m)
    except Skip:
        return
    for number, config in enumerate(found, 1):
        if isinstance(config, matmul_tiles.Config):
            yield _product(target, dtype, shape, config, number)


def _product(target: str, dtype: str, shape: str, config: Config, number: int) -> Entry:
    from kernels.triton import matmul

    m, n, k = SHAPES[shape]
    kind, scale = dtype.removesuffix("_fast"), SCALE if dtype.startswith("fp8") else None
    operand, output = {"int8": ("int8", "int32"), "tf32": ("fp32", "fp32"), "fp8": ("fp8", "bf16")}.get(kind, (kind, kind))
    wide = {"": {"loads", "stores"}, "N ragged": {"loads"}}.get(shape, {"loads"} if config.few else set[str]())
    if target.startswith("gfx"):
        wide -= {"stores"}  # sums are stored as the products leave them
        if (scale or dtype == "int8") and "ragged" in shape:
            wide -= {"loads"}  # a small tile has 8 bytes for each of its 256 threads
    return Entry(
        kernel="matmul",
        variant=named(f"{dtype}, {shape}" if shape else dtype, number),
        function=matmul.matmul_kernel,
        arguments={
            "a_ptr": Pointer(operand),
            "b_ptr": Pointer(operand),
            "c_ptr": Pointer(output),
            "a_scale_ptr": scale,
            "b_scale_ptr": scale,
            "M": m,
            "N": n,
            "K": k,
        },
        constants=matmul.constants(config, dtype, k),
        warps=config.warps,
        stages=config.stages,
        targets=(target,),
        expects=Expects(
            "" if kind == "fp32" else kind,
            narrow=config.bm < NARROW,
            wide=frozenset(wide),
            scalars=2 * SCALE.bytes if scale else 0,
        ),
        config=str(config),
    )


def memory_entries() -> list[Entry]:
    """Every operation on arrays of 1 GiB, and for AMD on 4 GiB, where addresses no longer fit a buffer descriptor."""
    from kernels.triton import memory

    found: list[Entry] = []
    for size, targets in ((1 << 30, tuple(TARGETS)), (4 << 30, tuple(n for n, t in TARGETS.items() if t.backend == "hip"))):
        for op in ("read", "write", "copy", "scale", "add", "triad"):
            array = Pointer("fp64", size)
            arguments: dict[str, Argument]
            if op == "read":
                arguments = {"b_ptr": array, "partial_ptr": Pointer("fp64", 1 << 16), "n": size // 8}
                wide = frozenset({"loads"})
            else:
                arguments = {"out_ptr": array, "b_ptr": array, "c_ptr": array, "scalar": 3.0, "n": size // 8}
                wide = frozenset({"stores"}) if op == "write" else _BOTH
            found.append(
                Entry(
                    kernel="memory",
                    variant=op if size <= 1 << 30 else f"{op}, 4 GiB",
                    function=memory.read_kernel if op == "read" else memory.stream_kernel,
                    arguments=arguments,
                    constants={"BLOCK": memory.BLOCK} if op == "read" else {"OP": op, "BLOCK": memory.BLOCK},
                    warps=memory.WARPS,
                    stages=None,
                    targets=targets,
                    expects=Expects(wide=wide),
                    config=f"blocks of {memory.BLOCK}, {memory.WARPS} warps",
                )
            )
    return found


def undeclared(declared: Iterable[Entry], modules: Iterable[ModuleType] | None = None) -> list[str]:
    """Kernels in the modules (all of ``kernels.triton``) that no entry compiles, as ``module.function``.

    A ``triton.jit`` function that another one names is a part of that one, and no kernel of its own.
    """
    functions = {
        f"{module.__name__}.{name}": value
        for module in (_shipped() if modules is None else modules)
        for name, value in vars(module).items()
        if _is_jit(value) and jit(value).fn.__module__ == module.__name__
    }
    parts = {part for function in functions.values() for part in _named_in(jit(function))}
    compiled = {f"{jit(entry.function).fn.__module__}.{jit(entry.function).fn.__name__}" for entry in declared}
    return sorted(name for name in functions if name not in compiled and name.rpartition(".")[2] not in parts)


def jit(function: Any) -> Any:
    """The ``triton.jit`` function inside autotuners and heuristics."""
    from triton.runtime.jit import JITFunction

    while not isinstance(function, JITFunction):
        function = function.fn
    return function


def _shipped() -> Iterator[ModuleType]:
    import kernels.triton

    for found in pkgutil.iter_modules(kernels.triton.__path__, "kernels.triton."):
        yield importlib.import_module(found.name)


def _is_jit(value: Any) -> bool:
    from triton.runtime.jit import KernelInterface

    return isinstance(value, KernelInterface)


def _named_in(function: Any) -> set[str]:
    """Names used inside a function, its own excepted."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {function.fn.__name__}
