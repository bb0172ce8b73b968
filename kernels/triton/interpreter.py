"""What the Triton interpreter gets wrong and our kernels need right; the one place that touches its internals.

The stock interpreter (``TRITON_INTERPRET=1``) computes on numpy arrays and keeps bfloat16 and fp8 as their raw bits:

* ``tl.dot`` of bfloat16 multiplies the bit patterns as integers, and that of e4m3 takes NaN for 480: here the operands are
  widened to float32 first;
* float32 → bfloat16 truncates, and float32 → e4m3 loses the carry (1.97 becomes 1): here they round to nearest, ties to even, as
  the hardware does;
* any other arithmetic on them (reductions, atomics, casts with another rounding mode) is silent garbage: here it raises, and our
  kernels compute in float32;
* addresses are not checked: here a load or store outside the tensors of the launch raises, naming program and byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from clustergauge.probe import Skip

SERVED = ("3.7", "3.8", "3.9")
"""Minor versions of triton whose interpreter this module was tested with."""

Extent = tuple[int, int]


def install() -> None:
    """Mend the interpreter of this process, once.

    Raises `Skip` if triton's version is not one of `SERVED`, ``RuntimeError`` if the process does not run the interpreter.
    """
    import triton

    if ".".join(triton.__version__.split(".")[:2]) not in SERVED:
        raise Skip(f"the interpreter of triton {triton.__version__} is not known here: install a version of {', '.join(SERVED)}")
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET=1 must be in the environment before triton is imported")
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if not hasattr(builder, "clustergauge_served"):
        builder.clustergauge_served = True
        _serve_narrow(builder, interpreter.TensorHandle)
        _refuse_narrow(builder, interpreter.ReduceScanOpInterface)
        _check_addresses(interpreter)


def widen(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bfloat16 bits (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 as bfloat16 bits (uint16), rounded to nearest, ties to even; NaN stays NaN, overflow becomes infinity."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def widen_e4m3(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """e4m3 bits (uint8) as float32, exactly."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.float8_e4m3fn).float().numpy()


def narrow_e4m3(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 as e4m3 bits (uint8), rounded to nearest, ties to even; NaN stays NaN, overflow becomes 448 (PTX, satfinite)."""
    import torch

    most = torch.finfo(torch.float8_e4m3fn).max
    wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).clamp(-most, most)
    return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def _serve_narrow(builder: Any, handle: Any) -> None:
    import triton.language as tl
    from triton._C.libtriton import ir

    stock_cast, stock_convert, stock_dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot

    def wide(value: Any) -> Any:
        widening = {tl.bfloat16: widen, tl.float8e4nv: widen_e4m3}.get(value.dtype.scalar)
        return handle(widening(value.data), tl.float32) if widening else value

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        given, wanted = source.dtype.scalar, target.scalar
        if given == wanted or tl.bfloat16 not in (given, wanted):
            return stock_cast(self, source, target)
        if wanted == tl.bfloat16:
            return handle(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return stock_cast(self, wide(source), target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        given, wanted = source.dtype.scalar, target.scalar
        if tl.bfloat16 in (given, wanted) or rounding not in (None, ir.ROUNDING_MODE.RTNE):
            _refuse(source, target)
        if wanted == tl.float8e4nv and not given.is_fp8():
            return handle(narrow_e4m3(source.data.astype(np.float32)), wanted)
        if given == tl.float8e4nv and not wanted.is_fp8():
            return stock_cast(self, wide(source), target)
        return stock_convert(self, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        _refuse(accumulator)
        return stock_dot(self, wide(a), wide(b), accumulator, *rest)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.create_dot = create_dot


def _refuse_narrow(builder: Any, reductions: Any) -> None:
    def refusing(stock: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Any, *operands: Any) -> Any:
            _refuse(*operands)
            return stock(self, *operands)

        return operation

    for name in ("binary_op", "unary_op", "ternary_op", "create_fma", "create_rsqrt", "create_erf", "create_atomic_rmw"):
        setattr(builder, name, refusing(getattr(builder, name)))
    stock_check = reductions.check_tensor

    def check_tensor(self: Any, tensors: Any) -> None:
        _refuse(*tensors)
        stock_check(self, tensors)

    reductions.check_tensor = check_tensor


def _refuse(*operands: Any) -> None:
    """Raises if one of the operands (values or types) is bfloat16 or e4m3."""
    import triton.language as tl

    for operand in operands:
        kind = getattr(getattr(operand, "dtype", operand), "scalar", None)
        for narrow_kind, name in ((tl.bfloat16, "bfloat16"), (tl.float8e4nv, "e4m3")):
            if kind == narrow_kind:
                raise NotImplementedError(f"{name} arithmetic is not served in the interpreter: cast to float32 first")


def _check_addresses(interpreter: Any) -> None:
    """Every address that a launch touches must lie inside one of the tensors it was given."""
    extents: set[Extent] = set()
    builder = interpreter.InterpreterBuilder
    stock_launch, stock_argument = interpreter.GridExecutor.__call__, interpreter._implicit_cvt
    stock_load, stock_store = builder.create_masked_load, builder.create_masked_store

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        extents.clear()
        return stock_launch(self, *args, **kwargs)

    def argument(value: Any) -> Any:
        if hasattr(value, "data_ptr") and hasattr(value, "stride"):
            last = sum((length - 1) * step for length, step in zip(value.shape, value.stride(), strict=True))
            extents.add((value.data_ptr(), value.data_ptr() + (last + 1) * value.element_size()))
        return stock_argument(value)

    def inside(what: str, pointers: Any, mask: Any) -> None:
        addresses, wanted = np.broadcast_arrays(pointers.data, mask.data)
        addresses = addresses[wanted]
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        good = np.zeros(addresses.shape, dtype=bool)
        for low, high in extents:
            good |= (addresses >= low) & (addresses + width <= high)
        if not good.all():
            bad = int(addresses[~good][0])
            low, high = min(extents, key=lambda extent: min(abs(bad - extent[0]), abs(bad - extent[1])))
            program = interpreter.interpreter_builder.grid_idx
            raise IndexError(f"program {program}: {what} at byte {bad - low} of a tensor of {high - low} bytes")

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        inside("load", pointers, mask)
        return stock_load(self, pointers, mask, *rest, **named)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        inside("store", pointers, mask)
        return stock_store(self, pointers, value, mask, *rest, **named)

    interpreter.GridExecutor.__call__ = launch
    interpreter._implicit_cvt = argument
    builder.create_masked_load = create_masked_load
    builder.create_masked_store = create_masked_store
