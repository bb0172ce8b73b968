"""Kernels and entries for tests of the code gate (``--entries tests.gate_entries``): some sound, some with planted defects."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace

import triton
import triton.language as tl

from kernels.gate.entry import Entry, Expects, Pointer
from kernels.gate.facts import Facts
from kernels.triton import matmul, matmul_tiles


@triton.jit
def _twice(value):
    return value + value


@triton.jit
def double_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):  # noqa: N803 (as the field writes)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, _twice(tl.load(in_ptr + at, mask=at < n)), mask=at < n)


@triton.jit
def tile_kernel(tile, out_ptr):
    rows = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out_ptr + rows, tile.load([0, 0]))


@triton.jit
def descriptor_kernel(out_ptr, in_ptr):
    tile = tl.make_tensor_descriptor(in_ptr, [64, 64], [64, 1], [64, 64])
    rows = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out_ptr + rows, tile.load([0, 0]))


def double(variant, targets=("sm90",), **changes):
    given = {"out_ptr": Pointer("fp32"), "in_ptr": Pointer("fp32"), "n": 4096}
    return replace(Entry("double", variant, double_kernel, given, {"BLOCK": 1024}, 4, 3, targets, config="plain"), **changes)


def product(variant, target, config, dtype="bf16"):
    given = {"a_ptr": Pointer(dtype), "b_ptr": Pointer(dtype), "c_ptr": Pointer(dtype), "M": 8192, "N": 8192, "K": 8192}
    given |= {"a_scale_ptr": None, "b_scale_ptr": None}
    fixed = matmul.constants(config, dtype, 8192)
    expects = Expects(tensor=dtype)
    return Entry(
        "product", variant, matmul.matmul_kernel, given, fixed, config.warps, config.stages, (target,), expects, str(config)
    )


@dataclass(frozen=True)
class Crashing(Entry):
    """Takes the compiler's process with it."""

    @property
    def constants(self):
        os.kill(os.getpid(), signal.SIGKILL)

    @constants.setter
    def constants(self, value):
        pass


def entries():
    """Sound and defective ones."""
    wide = Expects(wide=frozenset({"loads", "stores"}))
    return [
        double("sound", ("sm90", "sm89"), expects=wide),
        double("changed"),
        double("new"),
        double("narrow", arguments={"out_ptr": Pointer("fp32"), "in_ptr": Pointer("fp32"), "n": 4095}, expects=wide),
        double("no product", expects=Expects(tensor="bf16")),
        double("no tensor copy", expects=Expects(bulk=True)),
        double("odd warps", warps=3),
        Crashing(**{**vars(double("crash")), "constants": {}}),
        double("after the crash", ("sm89",)),
        product("spills", "sm90", matmul_tiles.Config(128, 256, 64, 4, 3)),
        product("too large", "sm80", matmul_tiles.Config(128, 256, 64, 8, 5)),
    ]


SOUND = Facts(warps=8, registers=176, spilled_bytes=0, shared_bytes=147456)
"""Facts of a kernel that passes."""
