"""The smallest kernel that leaves a trace, in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from kernels.gate.entry import Entry


@triton.jit
def count_kernel(counter_ptr):
    """Adds one to a counter (one program)."""
    tl.store(counter_ptr, tl.load(counter_ptr) + 1)


def gate_entries() -> list[Entry]:
    """For the code gate: the kernel as it is launched, on every target."""
    from kernels.gate.entry import Entry, Pointer
    from kernels.gate.targets import TARGETS

    counter = Pointer("int32", 4)
    return [Entry("launch", "count", count_kernel, {"counter_ptr": counter}, {}, 1, None, tuple(TARGETS), config="1 warp")]
