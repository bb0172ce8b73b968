"""CUDA C kernels as ``.cu`` files beside this module, compiled on the device by CuPy, on the stream that the clock watches.

Sources include no header and have kernels with C names alone; every argument is 8 bytes (pointer, ``long long``, ``double``), as
CuPy passes Python's own integers and floats.  Arrays are torch tensors.  Importing this module imports neither torch nor CuPy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from clustergauge.probe import Skip

if TYPE_CHECKING:
    import torch

    Values = torch.Tensor

Call = Callable[[], object]

SOURCES = ("stream", "cache", "chase", "sgemm")
"""The ``.cu`` files, without their ending."""
OPTIONS = ("-std=c++17",)
CUBLAS = ("fp64", "fp32", "fp16")
"""dtypes of matmul that CuPy hands to cuBLAS as they are, summed in fp32 (fp64 in fp64)."""

STREAM_THREADS = 256
CHUNK = 2048
"""Elements that a block of the stream kernels handles at a time."""
READERS_PER_UNIT = 64
"""Blocks of the read kernel for each multiprocessor: eight times what fits at once, so that a fast one takes more of them."""
CACHE_THREADS = 1024
L2_BLOCKS_PER_UNIT = 2
"""Blocks that fill a multiprocessor (2048 threads)."""
WORD = 16
"""Bytes of one access of the cache kernels."""
TILE = 128
SGEMM_THREADS = 256


# --------------------------------------------------------------------------------------------------------------------------
# sources, compiling, launching


def source(name: str) -> str:
    """Text of a ``.cu`` file."""
    return (resources.files(__name__) / f"{name}.cu").read_text(encoding="utf-8")


def kernels_in(text: str) -> tuple[str, ...]:
    """Names of the kernels that a source defines, in order."""
    return tuple(re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(', text))


@cache
def _kernel(name: str, kernel: str, index: int) -> Any:
    """A kernel, compiled for a device: what compiling costs must not fall into the first launch."""
    import cupy

    with cupy.cuda.Device(index):
        compiled = cupy.RawModule(code=source(name), options=OPTIONS).get_function(kernel)
        compiled.compile()
        return compiled


@dataclass(frozen=True)
class _Handle:
    """A stream by its address, in CUDA's stream protocol (cuda.core, "Interoperability")."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@lru_cache(maxsize=16)
def _stream(pointer: int, index: int) -> Any:
    """A stream that somebody else owns, as CuPy knows it."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):  # from CuPy 14 on, which deprecates the other
        return cupy.cuda.Stream.from_external(_Handle(pointer))
    return cupy.cuda.ExternalStream(pointer, index)


def _refuse_rocm() -> None:
    """Raises `Skip` on accelerators that torch calls ``cuda``, and that are none."""
    import torch

    if torch.version.hip:
        raise Skip("CuPy's kernels are CUDA C: this is a ROCm build of torch")


def _index(device: torch.device | str) -> int:
    """Number of a CUDA device.  Raises `Skip` on others."""
    import torch

    _refuse_rocm()
    number = torch.device(device).index
    return torch.cuda.current_device() if number is None else number


def on_current_stream(index: int, action: Call) -> Call:
    """A callable that runs ``action`` with CuPy on the stream that is torch's current one at that moment."""
    import cupy
    import torch

    def run() -> None:
        with cupy.cuda.Device(index), _stream(torch.cuda.current_stream(index).cuda_stream, index):
            action()

    return run


def launcher(
    name: str, kernel: str, grid: int, threads: int, device: torch.device | str, *arguments: Any, keep: Values | None = None
) -> Call:
    """A callable that launches ``kernel`` of the source ``name``; it is compiled here, and the tensors are kept alive.

    ``arguments``: tensors (passed as addresses), integers (``long long``) and floats (``double``).  ``keep``: a tensor that the
    kernel reaches by other means.
    """
    import torch

    index = _index(device)
    compiled = _kernel(name, kernel, index)
    passed = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)

    def launch(_keep: tuple[Any, ...] = (*arguments, keep)) -> None:
        compiled((grid,), (threads,), passed)

    return on_current_stream(index, launch)


def _units(device: torch.device | str) -> int:
    """Multiprocessors of a device."""
    import torch

    return torch.cuda.get_device_properties(torch.device(device)).multi_processor_count


def _require_aligned(*tensors: Values) -> None:
    """Raises ``ValueError`` unless 16-byte accesses from the first element on are possible."""
    for tensor in tensors:
        if tensor.data_ptr() % WORD or not tensor.is_contiguous():
            raise ValueError("arrays must be contiguous and aligned to 16 bytes")


# --------------------------------------------------------------------------------------------------------------------------
# memory


def readers(n: int, device: str) -> int:
    """How many blocks, and so partial sums, the read kernel gets for n elements on a torch device."""
    return max(1, min(-(-n // CHUNK), READERS_PER_UNIT * _units(device)))


def stream(op: str, out: Values, b: Values, c: Values, scalar: float) -> Call:
    """A callable that runs ``op``.  ``b``, ``c``: float64 of n elements (those that ``op`` does not read may be ``out``).

    ``out``: n elements, or for ``read`` the partial sums, as many as `readers` says.
    """
    n = b.numel()
    _require_aligned(out, b, c)
    inputs = {"read": (b,), "write": (scalar,), "copy": (b,), "scale": (b, scalar), "add": (b, c), "triad": (b, c, scalar)}[op]
    blocks = out.numel() if op == "read" else max(1, -(-n // CHUNK))
    return launcher("stream", f"stream_{op}", blocks, STREAM_THREADS, b.device, out, *inputs, n)


def cache_blocks(level: str, device: str) -> int:
    """How many blocks, and so sums, `cache_read` gets.  ``level``: ``l1`` or ``l2``."""
    return _units(device) * {"l1": 1, "l2": L2_BLOCKS_PER_UNIT}[level]


def cache_read(level: str, data: Values, sums: Values, rounds: int) -> Call:
    """A callable that reads all of ``data`` (int32) ``rounds`` times: rounds × data.nbytes bytes, exactly.

    ``sums``: int32, as many as `cache_blocks` says; together they are ``rounds`` × the sum of ``data``, modulo 2^32.
    ``l2`` bypasses L1; ``l1`` gives each block an equal window of ``data`` of its own, twice of which must fit L1 (two blocks
    may meet on a multiprocessor).
    """
    _require_aligned(data)
    words = data.nbytes // WORD
    share = words // sums.numel() if level == "l1" else words
    if data.nbytes % WORD or (level == "l1" and words % sums.numel()):
        raise ValueError("data must be whole 16-byte words, and with l1 as many for each block")
    return launcher("cache", f"cache_{level}", sums.numel(), CACHE_THREADS, data.device, sums, data, share, rounds)


def chase(memory: Values, cell: Values, steps: int) -> Call:
    """A callable that follows ``steps`` addresses in ``memory``, each from the load before.

    ``cell``: two int64 on the device: the address to go on from, and how many steps were taken; both are brought up to date.
    """
    return launcher("chase", "chase", 1, 1, memory.device, cell, steps, keep=memory)


# --------------------------------------------------------------------------------------------------------------------------
# products


def matmul(engine: str, dtype: str, a: Values, b: Values, c: Values) -> Call:
    """A callable that computes c = a·bᵀ; a (m×k), b (n×k), c (m×n), all row-major without gaps.

    ``engine``: ``cublas`` (through ``cupy.matmul``: what a CuPy user gets, and the fast one) or ``simt`` (``sgemm.cu``, float32:
    what plain CUDA C reaches without tensor cores).  Raises `Skip` where the engine has no such product.
    """
    if engine == "cublas":
        return _cublas(dtype, a, b, c)
    if dtype != "fp32":
        raise Skip(f"the CUDA C matmul computes in fp32, not in {dtype}")
    _require_aligned(a, b, c)
    (m, k), n = a.shape, b.shape[0]
    kernel = "sgemm_ragged" if k % 4 else "sgemm_wide"
    return launcher("sgemm", kernel, -(-m // TILE) * -(-n // TILE), SGEMM_THREADS, a.device, a, b, c, m, n, k)


def _cublas(dtype: str, a: Values, b: Values, c: Values) -> Call:
    if dtype not in CUBLAS:
        raise Skip(f"CuPy's matmul has no {dtype} of its own: {', '.join(CUBLAS)} go to cuBLAS")
    if dtype == "fp32" and os.environ.get("CUPY_TF32", "0") != "0":
        raise Skip("CUPY_TF32 is set, so CuPy's fp32 products are tf32: unset it")
    import cupy

    index = _index(a.device)
    with cupy.cuda.Device(index):
        left, right, out = (cupy.asarray(tensor) for tensor in (a, b, c))
    if (left.data.ptr, right.data.ptr, out.data.ptr) != (a.data_ptr(), b.data_ptr(), c.data_ptr()):
        raise RuntimeError("CuPy copied an array that it should have shared with torch")
    right = right.T
    return on_current_stream(index, lambda: cupy.matmul(left, right, out=out))


def describe(engine: str, k: int) -> str:
    """What a record says of the engine: the library's version, or the kernel and its tile.  Raises `Skip` where it has none."""
    _refuse_rocm()
    if engine == "simt":
        return f"{'sgemm_ragged' if k % 4 else 'sgemm_wide'}, 128x128x8, 256 threads, 8x8 each"
    import cupy

    return f"cuBLAS {cupy.cuda.cublas.getVersion(cupy.cuda.get_cublas_handle())}"
