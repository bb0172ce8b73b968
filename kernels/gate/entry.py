"""How a kernel declares itself to the gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DTYPES = ("fp64", "fp32", "fp16", "bf16", "fp8", "int8", "int32", "int64", "uint8")
"""What a pointer or descriptor may point to; fp8 is e4m3."""


@dataclass(frozen=True)
class Pointer:
    """A tensor argument: 16-byte aligned, of so many bytes (AMD addresses those up to 2 GiB differently)."""

    dtype: str
    bytes: int = 1 << 28


SCALE = Pointer("fp32", 4)
"""A factor on the device: what turns an operand of fp8 back into what was quantised."""


@dataclass(frozen=True)
class Descriptor:
    """A host tensor descriptor of a row-major tensor: TMA where the target has it.  ``block``: shape of the tile it copies."""

    dtype: str
    block: tuple[int, ...]
    shape: tuple[int, ...] = ()


def named(variant: str, number: int) -> str:
    """The variant of a candidate: what it computes, and for all but the first of them which it is."""
    return variant if number == 1 else f"{variant}, candidate {number}"


Argument = Pointer | Descriptor | int | float | bool | None


@dataclass(frozen=True)
class Expects:
    """What the compiled kernel must have.

    ``tensor``: dtype whose tensor-core instruction it must use, empty where none is expected (fp64, fp32 with ``ieee``).
    ``narrow``: see `kernels.gate.targets.tensor_instruction`.  ``wide``: of ``loads`` and ``stores``, those that must all be 16
    bytes wide (tensor copies are).  ``scalars``: bytes of single numbers that it may load besides, however narrow.  ``bulk``: it
    must copy by tensor (TMA) on the targets that have it.
    """

    tensor: str = ""
    narrow: bool = False
    wide: frozenset[str] = frozenset()
    bulk: bool = False
    scalars: int = 0


@dataclass(frozen=True)
class Entry:
    """One kernel in one configuration.

    ``kernel``: what ``--kernel`` selects; ``variant``: what tells its entries apart on one target; ``config``: the configuration
    in words.  ``function``: the ``triton.jit`` function.  ``arguments``: what a launch passes, by name; integers are specialised
    as a launch specialises them.  ``constants``: its ``tl.constexpr`` arguments.  ``stages``: None where a launch does
    not say (the target's default).  ``options``: further options of the launch.
    """

    kernel: str
    variant: str
    function: Any
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    warps: int
    stages: int | None
    targets: tuple[str, ...]
    expects: Expects = Expects()
    config: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``matmul bf16``: the same on every target."""
        return f"{self.kernel} {self.variant}"
