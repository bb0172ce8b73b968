"""MPI's calls, from host or device buffers: all is bound beforehand, and the timed call is the bare one, as from C (`bare`)."""

from __future__ import annotations

import ctypes
import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustergauge.probe import Context, Skip
from clustergauge.world import Mpi
from collectives import bare
from collectives.layout import ROOT

if TYPE_CHECKING:
    from collectives.layout import Operation

SUM_TYPES = {"fp32": "FLOAT", "fp64": "DOUBLE", "int32": "INT32_T", "fp16": "FLOAT16_T", "bf16": "BFLOAT16_T"}
"""MPI's names; the standard has neither of the last two, some libraries do."""
_CUDA = 0
"""``MPIX_GPU_SUPPORT_CUDA`` of MPICH's ``MPIX_GPU_query_support``."""


def world_of(ctx: Context) -> Mpi:
    """The world, if it is one of MPI ranks; notes the library and its thread level."""
    if not isinstance(ctx.world, Mpi):
        raise TypeError("the mpi backends need MPI ranks")
    from mpi4py import MPI

    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    ctx.set("library", ctx.world.library)
    ctx.set("mpi_thread_level", levels.get(MPI.Query_thread(), "multiple"))
    return ctx.world


def refuse(operation: Operation, dtype: str) -> None:
    """`Skip` what this MPI can't sum."""
    from mpi4py import MPI

    if operation.sums and getattr(MPI, SUM_TYPES[dtype], MPI.DATATYPE_NULL) == MPI.DATATYPE_NULL:
        raise Skip(f"this MPI has no {dtype} to sum (gloo and nccl sum {dtype} too)")


def bind(
    world: Mpi, operation: Operation, send: Any, receive: Any, length: int, dtype: str, in_place: bool
) -> Callable[[], object]:
    """The call for these buffers (bits; ``None`` where this rank has none), of ``length`` elements a block.

    Sums are of the dtype; data that only moves is bytes.
    """
    return _bound(world.comm, operation, send, receive, length, dtype, in_place)


def alone(operation: Operation, array: Callable[[int], Any], dtype: str) -> Callable[[], object]:
    """The same call among one rank, on one element; ``array`` allocates bits."""
    from mpi4py import MPI

    return _bound(MPI.COMM_SELF, operation, array(1), array(1), 1, dtype, False)


def _bound(
    comm: Any, operation: Operation, send: Any, receive: Any, length: int, dtype: str, in_place: bool
) -> Callable[[], object]:
    from mpi4py import MPI

    def spec(buffer: Any) -> Any:
        if buffer is None:
            return None
        memory = as_memory(buffer)
        if operation.sums:
            return [memory, length, getattr(MPI, SUM_TYPES[dtype])]
        return [memory, length * buffer.itemsize, MPI.BYTE]

    source, target = spec(send), spec(receive)
    at_root = comm.Get_rank() == ROOT
    if in_place and operation.name == "scatter":
        target = MPI.IN_PLACE if at_root else target
    elif in_place and (at_root or operation.name not in ("reduce", "gather")):
        source = MPI.IN_PLACE
    if as_in_c := _as_in_c(comm, operation.name, source, target):
        return as_in_c
    call = functools.partial
    match operation.name:
        case "all_reduce":
            return call(comm.Allreduce, source, target, MPI.SUM)
        case "reduce":
            return call(comm.Reduce, source, target, MPI.SUM, ROOT)
        case "reduce_scatter":
            return call(comm.Reduce_scatter_block, source, target, MPI.SUM)
        case "all_gather":
            return call(comm.Allgather, source, target)
        case "all_to_all":
            return call(comm.Alltoall, source, target)
        case "broadcast":
            return call(comm.Bcast, target, ROOT)
        case "gather":
            return call(comm.Gather, source, target, ROOT)
        case "scatter":
            return call(comm.Scatter, source, target, ROOT)
        case _:
            raise ValueError(f"MPI has no {operation.name}")


def _as_in_c(comm: Any, name: str, source: Any, target: Any) -> Callable[[], object] | None:
    """The call made as from C, where it can be: of host buffers, with counts that a C ``int`` holds."""
    from mpi4py import MPI

    sent, received = c_spec(source), c_spec(target)
    if not isinstance(comm, MPI.Comm) or sent is None or received is None:
        return None
    ends, add, world = (sent[0], received[0]), bare.handle(MPI.SUM), bare.handle(comm)
    what = (sent if target is None else received)[1:]
    arguments = {
        "all_reduce": ("Allreduce", *ends, *what, add),
        "reduce": ("Reduce", *ends, *what, add, ROOT),
        "reduce_scatter": ("Reduce_scatter_block", *ends, *what, add),
        "all_gather": ("Allgather", *sent, *received),
        "all_to_all": ("Alltoall", *sent, *received),
        "broadcast": ("Bcast", *received, ROOT),
        "gather": ("Gather", *sent, *received, ROOT),
        "scatter": ("Scatter", *sent, *received, ROOT),
    }
    function, *rest = arguments[name]
    return bare.function([bare.Call(f"MPI_{function}", (*rest, world))], (source, target))


def c_spec(spec: Any) -> tuple[int, int, int] | None:
    """Address, count and datatype as C knows them; ``None`` for a device's buffer, and where the count is beyond an ``int``."""
    from mpi4py import MPI

    if spec is None or spec is MPI.IN_PLACE:
        return 0 if spec is None else int(spec), 0, bare.handle(MPI.BYTE)
    memory, count, kind = spec
    if not isinstance(memory, MPI.buffer) or count > bare.MOST:
        return None
    return memory.address, count, bare.handle(kind)


def note_way(ctx: Context, run: Callable[[], object]) -> None:
    """Note how calls reach the library: ``C``, as a program in C would make them, or by ``mpi4py``."""
    ctx.set("mpi_calls", "C" if isinstance(run, types.BuiltinFunctionType) else "mpi4py")


def as_memory(buffer: Any) -> Any:
    """A host buffer as mpi4py takes it fastest (some 40 ns less a call than a numpy array); a device's as it is."""
    from mpi4py import MPI

    return buffer if hasattr(buffer, "__cuda_array_interface__") else MPI.buffer.frombuffer(buffer)


def require_device_buffers() -> None:
    """`Skip` unless the MPI library itself says that it takes device buffers: one that does not would die of them."""
    known = device_aware(_loaded_library())
    if known is None:
        raise Skip("this MPI does not tell whether it takes device buffers")
    if not known:
        raise Skip("this MPI takes no device buffers (it says so itself): load one that is built for CUDA")


def device_aware(library: Any) -> bool | None:
    """Whether an MPI library takes CUDA buffers, by its own word (Open MPI's ``MPIX_Query_cuda_support``, MPICH's
    ``MPIX_GPU_query_support``); ``None`` if it has neither function."""
    if hasattr(library, "MPIX_Query_cuda_support"):
        return bool(library.MPIX_Query_cuda_support())
    if hasattr(library, "MPIX_GPU_query_support"):
        answer = ctypes.c_int(0)
        failed = library.MPIX_GPU_query_support(_CUDA, ctypes.byref(answer))
        return bool(answer.value) and not failed
    return None


def _loaded_library() -> Any:
    """The MPI library that mpi4py has loaded into this process, or an object without functions."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.partition("/")
        if path[1] and Path(path[2]).name.startswith("libmpi.so"):
            return ctypes.CDLL("/" + path[2])
    return object()
