"""What multiplies for probe ``matmul``: torch, numpy, Triton and CUDA, each as a callable for one set of buffers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from clustergauge.probe import Context, Skip
from kernels.shapes import Shape, format_shape

if TYPE_CHECKING:
    import torch

    from kernels.triton.matmul_tiles import Config
    from kernels.triton.matmul_tma import Config as TmaConfig

    Scales = tuple[torch.Tensor, torch.Tensor]
    Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Callable[[], object]]

Call = Callable[[], object]

INTERPRETED = 512**3
"""Most multiply-adds that are worth sending through the interpreter (a few seconds)."""
NUMPY = ("fp64", "fp32")
"""What numpy's BLAS computes in."""
TRITON = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp8_fast", "int8")
"""What the Triton kernel computes in."""
XF32 = "gfx94"
"""AMD's architectures that multiply tf32: later ones have no such instruction, and hipBLASLt emulates it with bf16."""
OCP = ("gfx95", "gfx12")
"""AMD's architectures for which torch multiplies the e4m3 of OCP."""


def starter(ctx: Context, backend: str, dtype: str, mnk: Shape, scales: Scales) -> Start:
    """What makes a callable for one set of buffers.  ``scales``: of A and B, for fp8.  Raises `Skip` without a meaning."""
    if backend in {"cupy", "cuda"}:
        from kernels import cuda

        engine = "cublas" if backend == "cupy" else "simt"
        ctx.set("engine", cuda.describe(engine, mnk[2]))
        return lambda a, b, c: cuda.matmul(engine, dtype, a, b, c)
    if backend == "triton":
        return triton_starter(ctx, dtype, mnk, scales)
    if backend == "numpy":
        return numpy_starter(ctx, dtype)
    import torch

    m, n, k = mnk
    if dtype.startswith("fp8"):
        refuse_fp8(ctx, n, k)
        return lambda a, b, c: scaled_call(a, b, c, scales, fast=dtype == "fp8_fast")
    if ctx.kind == "cuda":
        if dtype == "tf32":
            refuse_tf32(ctx)
        if dtype == "int8" and (m <= 16 or n % 8 or k % 8):
            raise Skip("int8 on a GPU needs M above 16 and N and K divisible by 8")
    else:
        ctx.set("threads", torch.get_num_threads())
        ctx.set("mkl", torch.backends.mkl.is_available())
        ctx.set("onednn", torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
        ctx.set("vector", torch.backends.cpu.get_cpu_capability())
    return torch_call


def numpy_starter(ctx: Context, dtype: str) -> Start:
    """numpy's own BLAS (OpenBLAS in its wheels): on some processors faster than what torch brings.  It has no smaller types."""
    import numpy as np

    if dtype not in NUMPY:
        raise Skip(f"numpy's BLAS has no {dtype}: it has {', '.join(NUMPY)}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    ctx.set("blas", f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip())
    ctx.set("threads", int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count())

    def start(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Call:
        left, right, out = a.numpy(), b.numpy().T, c.numpy()
        return lambda: np.matmul(left, right, out=out)

    return start


def torch_call(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Call:
    """torch's product, in the type of ``a``."""
    import torch

    right = b.T
    if a.dtype == torch.int8:
        return lambda: torch._int_mm(a, right, out=c)
    return lambda: torch.mm(a, right, out=c)


def scaled_call(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, scales: Scales, *, fast: bool) -> Call:
    """torch's fp8 product with one scale a tensor.  ``fast``: sums may have fewer bits than fp32."""
    import torch

    right, (of_a, of_b) = b.T, scales
    return lambda: torch._scaled_mm(a, right, of_a, of_b, out_dtype=c.dtype, use_fast_accum=fast, out=c)


def refuse_fp8(ctx: Context, n: int, k: int) -> None:
    """Raises `Skip` where torch has no fp8 product that is worth measuring."""
    import torch

    if ctx.kind == "cpu":
        raise Skip("a processor has no fp8 arithmetic: torch converts, and that is what would be measured")
    if torch.version.hip:
        arch = torch.cuda.get_device_properties(torch.device(ctx.device)).gcnArchName
        if arch.startswith("gfx94"):
            raise Skip("this device multiplies e4m3 of a format of its own (fnuz), not the e4m3 of OCP that is measured here")
        if not arch.startswith(OCP):
            raise Skip(f"torch has no fp8 product for {arch.partition(':')[0]}")
    if n % 16 or k % 16:
        raise Skip("fp8 needs N and K divisible by 16")


def refuse_tf32(ctx: Context) -> None:
    """Raises `Skip` where torch has no product in tf32: on AMD's GPUs but for MI300, of which it asks hipBLASLt for it."""
    import torch

    if torch.version.hip:
        arch = torch.cuda.get_device_properties(torch.device(ctx.device)).gcnArchName.partition(":")[0]
        if not arch.startswith(XF32):
            raise Skip(f"{arch} has no tf32: its products would be in fp32 or an emulation of it")


def triton_starter(ctx: Context, dtype: str, mnk: Shape, scales: Scales) -> Start:
    """Our Triton kernel in the configuration to be had without measuring; `tune` finds the fastest."""
    if dtype not in TRITON:
        raise Skip(f"the Triton matmul has no {dtype}: it has {', '.join(TRITON)}")
    if ctx.interpret:
        from kernels.triton import interpreter

        if math.prod(mnk) > INTERPRETED:
            raise Skip("too large for the interpreter: M·N·K up to 512x512x512 fits")
        interpreter.install()
    elif ctx.kind == "cpu":
        raise Skip("Triton kernels run on a processor in the interpreter only")
    from kernels.triton import matmul as kernel, matmul_tiles

    m, n, k = mnk
    config = matmul_tiles.chosen("interpreter" if ctx.interpret else kernel.architecture(ctx.device), dtype, n, k, m)
    ctx.set("config", str(config))
    factors = scales if dtype.startswith("fp8") else None
    return lambda a, b, c: kernel.call(config, dtype, a, b, c, factors)


def tune(ctx: Context, dtype: str, mnk: Shape, scales: Scales, stacks: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Start:
    """What makes a callable for one set of buffers, of the candidate that is fastest on all of them in turn."""
    from kernels.triton import matmul as kernel, matmul_tiles, tuned

    m, n, k = mnk
    factors = scales if dtype.startswith("fp8") else None

    def start(config: Config | TmaConfig) -> Start:
        return lambda a, b, c: kernel.call(config, dtype, a, b, c, factors)

    arch = "interpreter" if ctx.interpret else kernel.architecture(ctx.device)
    candidates = {str(config): config for config in matmul_tiles.candidates(arch, dtype, n, k, m)}
    config = tuned.choose(
        ctx,
        f"matmul {dtype} {format_shape(mnk)}",
        candidates,
        lambda config: [start(config)(*tensors) for tensors in zip(*stacks, strict=True)],
    )
    ctx.set("config", str(config))
    return start(config)
