"""Ahead-of-time compilation of one entry for one target, through the very path of a launch, with no GPU."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from clustergauge.errors import UsageError
from kernels.gate import facts
from kernels.gate.entries import jit
from kernels.gate.entry import Argument, Descriptor, Entry, Pointer
from kernels.gate.facts import Facts
from kernels.gate.targets import Target

SLOWEST_TOOL_S = 60.0


class CompileError(RuntimeError):
    """The compiler refused; one line."""


def triton_version() -> str:
    """Raises `UsageError` if triton is missing or too old to be told what the gate needs (knobs, since 3.4)."""
    try:
        import triton.knobs
    except ImportError as error:
        raise UsageError(f"the gate needs triton 3.4 or later: {error}") from error
    return triton.__version__


def compile_entry(entry: Entry, target: Target) -> Facts:
    """Compile afresh and read the facts.

    Arguments are specialised, options parsed and stages run by what a launch would call; only the driver is a stand-in.  Raises
    `CompileError` if it does not compile, `facts.Unreadable` if a fact cannot be read.
    """
    function = jit(entry.function)
    options = {"num_warps": entry.warps, **({} if entry.stages is None else {"num_stages": entry.stages}), **entry.options}
    said = io.StringIO()
    with _settings(), _offline(target) as driver:
        try:
            arguments = {name: _argument(value) for name, value in entry.arguments.items()}
            with contextlib.redirect_stdout(said):
                made = function.run(grid=(1,), warmup=True, **arguments, **entry.constants, **options)
        except Exception as error:  # whatever the compiler raises is the answer
            raise CompileError(reason(error)) from error
        finally:
            function.device_caches.pop(driver.device, None)
    metadata, code = made.metadata, made.asm
    if target.backend == "hip":
        found = facts.amd(metadata.num_warps, metadata.shared, code["amdgcn"])
    else:
        tmem = getattr(metadata, "tmem_size", 0) or 0
        sass = disassemble(code["cubin"])
        found = facts.nvidia(metadata.num_warps, metadata.shared, tmem, said.getvalue(), code["ptx"], sass)
    scratch = sum(getattr(metadata, f"{kind}_scratch_size", 0) or 0 for kind in ("global", "profile"))
    return msgspec.structs.replace(found, scratch_bytes=scratch)


def reason(error: BaseException) -> str:
    """The kind of an error and its telling line, without temporary paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(("^", "Repro"))]
    telling = [line for line in lines if re.search(r"error|fatal|fail|not supported|must|out of", line, re.I)]
    line = (telling or lines or ["no word"])[-1]
    return f"{type(error).__name__}: {re.sub(r'/[^ :,]*/', '', line)[:300]}"


def disassemble(cubin: bytes) -> str:
    """SASS, by the nvdisasm that comes with triton.  Raises `facts.Unreadable` if it fails or hangs."""
    from triton import knobs

    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        try:
            done = subprocess.run(
                [knobs.nvidia.nvdisasm.path, "-c", "-ndf", str(path)],
                capture_output=True,
                text=True,
                check=False,
                timeout=SLOWEST_TOOL_S,
            )
        except subprocess.TimeoutExpired as error:
            raise facts.Unreadable(f"nvdisasm was not done after {SLOWEST_TOOL_S:.0f} s") from error
    if done.returncode:
        raise facts.Unreadable(f"nvdisasm ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """No cache is read or left, ptxas says what it spilled, and multiply-adds are fused whatever the version's default is."""
    from triton import knobs

    with (
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.language.scope(),
        knobs.nvidia.scope(),
        tempfile.TemporaryDirectory(prefix="gate-") as folder,
    ):
        knobs.cache.dir = folder
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        if hasattr(knobs.language, "default_fp_fusion"):
            knobs.language.default_fp_fusion = True
        yield


class _Driver:
    """What compiling asks of a driver: which target there is."""

    def __init__(self, target: Target) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(target.backend, target.arch, target.lanes)
        self.device = object()  # functions keep what they compiled by device: this one is new

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        return self.device

    def get_current_stream(self, device: Any = None) -> int:  # noqa: ARG002 (the driver's signature)
        return 0


@contextlib.contextmanager
def _offline(target: Target) -> Iterator[_Driver]:
    from triton.runtime.driver import driver

    before = driver._active
    made = _Driver(target)
    driver.set_active(made)
    try:
        yield made
    finally:
        driver._active = before


class _Tensor:
    """A tensor that is nowhere, 16-byte aligned."""

    def __init__(self, dtype: str, size: int) -> None:
        import torch

        self.dtype = {
            "fp64": torch.float64,
            "fp32": torch.float32,
            "fp16": torch.float16,
            "bf16": torch.bfloat16,
            "fp8": torch.float8_e4m3fn,
            "int8": torch.int8,
            "int32": torch.int32,
            "int64": torch.int64,
            "uint8": torch.uint8,
        }[dtype]
        self.size = size

    def data_ptr(self) -> int:
        return 0

    def ptr_range(self) -> int:
        """Bytes: what AMD's back end asks for."""
        return self.size


def _argument(value: Argument) -> Any:
    if isinstance(value, Pointer):
        return _Tensor(value.dtype, value.bytes)
    if isinstance(value, Descriptor):
        from triton.tools.tensor_descriptor import TensorDescriptor

        shape = list(value.shape or [8192] * len(value.block))
        strides = [1]
        for length in reversed(shape[1:]):
            strides.insert(0, strides[0] * length)
        return TensorDescriptor(_Tensor(value.dtype, 1 << 28), shape, strides, list(value.block))
    return value
