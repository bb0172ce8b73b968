"""What the probes of the caches share: the ladder of working sets, which cache holds one, and what a record says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from clustergauge import processor
from clustergauge.plan import CACHES_EXCEEDED
from clustergauge.probe import Context

if TYPE_CHECKING:
    import torch

LADDER = tuple(1 << bits for bits in range(14, 29, 2))
"""Bytes of working sets, 16 KiB to 256 MiB: with four times the one before every cache of a usual machine gets at least one."""


def policy(ctx: Context, total: int) -> Literal["hot", "cold", "none"]:
    """The cache policy that reading ``total`` bytes over and over is: hot, unless no cache can hold much of them."""
    if ctx.interpret:
        return "none"
    return "cold" if total >= CACHES_EXCEEDED * ctx.llc_bytes else "hot"


def describe(ctx: Context, memory: torch.Tensor, size: int, on: Sequence[int], *, past_l1: bool = False) -> None:
    """Record what holds the working sets in ``memory``: the cache (where that is known), and whether pages are huge.

    ``size``: of the set of each of the processors ``on``.  A GPU tells the size of its L2 alone: of a set that fits into it, that
    it is served from there is known only where reading goes ``past_l1``.
    """
    from kernels import buffers

    if ctx.interpret:
        return
    if ctx.kind == "cpu":
        ctx.set("processors", len(on))
        level = processor.cache_level(size, on)
        buffers.note_huge_pages(ctx, [memory])
    else:
        second = buffers.l2_bytes(ctx.device)
        ctx.set("l2_bytes", second)
        level = "" if second is None else "memory" if memory.nbytes > second else "L2" if past_l1 else ""
    if level:
        ctx.set("cache_level", level)
