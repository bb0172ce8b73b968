"""Reads that stay in a cache, in Triton: a working set is read over and over and summed up as 32-bit integers, which wrap."""

# ruff: noqa: N803  (capitals are what the field writes for compile-time constants)
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from kernels.gate.entry import Entry

TILES = (8192, 4096)
"""Elements a program reads at a time, where they divide its set; with 16 warps four or two 16-byte accesses a thread."""
WARPS = 16
PER_UNIT = {"one": 1, "each": 1, "together": 4}
"""Programs for each multiprocessor (of one only, with ``one``)."""
INTERPRETED = 3
"""Multiprocessors in the interpreter."""


@triton.jit
def cache_kernel(data_ptr, sums_ptr, n, passes, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """sums[p] = what program p found in all its passes.  Each reads n elements of its own, or ``TOGETHER`` all read the same n.

    Together each program takes every P-th tile, in each pass those of another, and no L1 is asked.  n: a multiple of BLOCK.
    """
    program = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    if TOGETHER:
        programs = tl.num_programs(0)
        for turn in range(passes):
            part = (program + turn) % programs
            for start in range(part * BLOCK, n, programs * BLOCK):
                total += tl.load(data_ptr + start + offset, cache_modifier=".cg")
    else:
        own = data_ptr + program.to(tl.int64) * n + offset
        for _ in range(passes):
            for start in range(0, n, BLOCK):
                total += tl.load(own + start)
    tl.store(sums_ptr + program, tl.sum(total.to(tl.int64), axis=0))  # wide: the interpreter does not let it wrap


def programs(cores: str, device: str) -> int:
    """How many programs, and so sums, the kernel gets.  ``cores``: a key of `PER_UNIT`."""
    units = INTERPRETED
    if device.startswith("cuda"):
        units = torch.cuda.get_device_properties(torch.device(device)).multi_processor_count
    return PER_UNIT[cores] * (1 if cores == "one" else units)


def tile(n: int) -> int:
    """The most elements of `TILES` that divide n.  Raises ``ValueError`` if none does."""
    for elements in TILES:
        if n % elements == 0:
            return elements
    raise ValueError(f"{n} elements are not whole tiles of {TILES[-1]}")


def call(cores: str, data: torch.Tensor, sums: torch.Tensor, passes: int) -> Callable[[], object]:
    """A callable that reads the set, or the sets, in ``data`` (int32) ``passes`` times.

    ``sums``: int64, as many as `programs` says; together they are ``passes`` × the sum of ``data``, modulo 2³².
    """
    together = cores == "together"
    n = data.numel() // (1 if together else sums.numel())
    launch = cache_kernel[(sums.numel(),)]
    return lambda: launch(data, sums, n, passes, TOGETHER=together, BLOCK=tile(n), num_warps=WARPS)


def gate_entries() -> list[Entry]:
    """For the code gate: sets of the programs' own in both tiles, and one for all together, on every target."""
    from kernels.gate.entry import Entry, Expects, Pointer
    from kernels.gate.targets import TARGETS

    return [
        Entry(
            kernel="cache",
            variant=variant,
            function=cache_kernel,
            arguments={"data_ptr": Pointer("int32", size), "sums_ptr": Pointer("int64", 4096), "n": n, "passes": 4097},
            constants={"TOGETHER": variant == "together", "BLOCK": tile(n)},
            warps=WARPS,
            stages=None,
            targets=tuple(TARGETS),
            expects=Expects(wide=frozenset({"loads"})),
            config=f"tiles of {tile(n)}, {WARPS} warps",
        )
        for variant, n, size in (("each", 8192, 1 << 22), ("each, 16 KiB", 4096, 1 << 21), ("together", 1 << 20, 1 << 22))
    ]
