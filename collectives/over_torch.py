"""torch.distributed's calls (gloo, NCCL) on the default process group."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clustergauge.probe import Context, Skip
from clustergauge.world import TorchDistributed
from collectives.layout import ROOT

if TYPE_CHECKING:
    from collectives.layout import Operation

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64", "int32": "int32"}
ALL_GATHER = ("all_gather_single", "all_gather_into_tensor")
REDUCE_SCATTER = ("reduce_scatter_single", "reduce_scatter_tensor")
"""Names by age, the youngest first: the old ones are deprecated, and deprecation costs time in every call."""
ONLY_IN_PLACE = ("all_reduce", "reduce", "broadcast")
"""What torch.distributed does in one buffer, always."""


def world_of(ctx: Context, backend: str) -> TorchDistributed:
    """The world, if it is one of torch.distributed over that backend; notes versions and threads."""
    if not isinstance(ctx.world, TorchDistributed) or ctx.world.backend != backend:
        raise TypeError(f"the {backend} backend needs torch.distributed ranks joined by {backend}")
    import torch
    import torch.cuda.nccl
    import torch.distributed as dist

    ctx.set("library", f"{ctx.world.library}, torch {torch.__version__}")
    ctx.set("torch_distributed_backend", str(dist.get_backend()))
    ctx.set("threads", torch.get_num_threads())
    if backend == "nccl":
        ctx.set("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    return ctx.world


def refuse(operation: Operation, place: str) -> None:
    """`Skip` what torch.distributed has no form of."""
    if place == "in" and operation.name in ONLY_IN_PLACE:
        raise Skip(f"torch.distributed does {operation.name} in place only: this is the case without place=in")
    if place == "in" and operation.name == "all_to_all":
        raise Skip("torch.distributed has no all_to_all in place")


def bind(operation: Operation, send: Any, receive: Any, ranks: int, dtype: str) -> Callable[[], object]:
    """The call for these buffers (tensors of bits; ``None`` where this rank has none)."""
    import torch
    import torch.distributed

    dist: Any = torch.distributed
    kind = getattr(torch, DTYPES[dtype])
    source, target = (None if buffer is None else buffer.view(kind) for buffer in (send, receive))
    call: Any = functools.partial
    match operation.name:
        case "all_reduce":
            return call(dist.all_reduce, target, op=dist.ReduceOp.SUM)
        case "reduce":
            return call(dist.reduce, source, dst=ROOT, op=dist.ReduceOp.SUM)
        case "reduce_scatter":
            return call(_known(dist, REDUCE_SCATTER), target, source, op=dist.ReduceOp.SUM)
        case "all_gather":
            return call(_known(dist, ALL_GATHER), target, source)
        case "all_to_all":
            return call(dist.all_to_all_single, target, source)
        case "broadcast":
            return call(dist.broadcast, target, src=ROOT)
        case "gather":
            return call(dist.gather, source, None if target is None else list(target.chunk(ranks)), dst=ROOT)
        case "scatter":
            return call(dist.scatter, target, None if source is None else list(source.chunk(ranks)), src=ROOT)
        case _:
            raise ValueError(f"torch.distributed has no {operation.name}")


def _known(dist: Any, names: tuple[str, ...]) -> Any:
    """The first of these functions that this torch has."""
    return next(function for name in names if (function := getattr(dist, name, None)))
