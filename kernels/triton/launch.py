"""The smallest kernel that leaves a trace, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_kernel(counter_ptr):
    """Adds one to a counter (one program)."""
    tl.store(counter_ptr, tl.load(counter_ptr) + 1)
