"""Memory for probes: how much is free, sets to rotate through, and whether pages are huge."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from clustergauge import memory
from clustergauge.probe import Context, Skip
from clustergauge.units import format_size

ALIGNMENT = 256
"""Bytes to which every set is aligned, as CUDA's own allocations are."""


def free_bytes(device: str) -> int:
    """Memory that can be had now: the device's own, or what the kernel and control groups leave (`memory.available_bytes`)."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what torch keeps of memory that nobody uses any more is free too
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    available = memory.available_bytes()
    if available is None:
        raise RuntimeError(
            "cannot tell how much memory is available: /proc/meminfo has no MemAvailable, and no control group a limit"
        )
    return available


def require(wanted: int, device: str) -> None:
    """Raises `Skip` if ``wanted`` bytes would take more than 80 % of the free memory."""
    free = free_bytes(device)
    if wanted > 0.8 * free:
        raise Skip(f"needs {format_size(_round(wanted))} of memory, {format_size(_round(free))} is free on {device}")


def rotation(ctx: Context, per_set: int, most: int, least: int = 1) -> tuple[int, Literal["cold", "hot", "none"]]:
    """How many buffer sets of ``per_set`` bytes to rotate through, and the cache policy that this is.

    So many that they defeat the cache, in half of the free memory and ``most`` at most; where they cannot, one that stays in the
    cache, with the reason in the record.  ``least``: more than it takes, if there is memory for them.  In the interpreter one,
    where the word has no meaning.  Never depends on time: what else the machine does must not change what is measured.
    """
    wanted = ctx.buffer_sets(per_set)
    affordable = max(1, min(most, free_bytes(ctx.device) // 2 // per_set))
    cold = wanted <= affordable
    sets = max(wanted, min(least, affordable)) if cold and not ctx.interpret else 1
    ctx.set("buffer_sets", sets)
    if ctx.interpret:
        return sets, "none"
    if not cold:
        holder = "no more are made" if affordable == most else "half of the free memory holds no more"
        ctx.set("cache_reason", f"{wanted} buffer sets would defeat the cache, at most {affordable} are to be had: {holder}")
    return sets, "cold" if cold else "hot"


def stack(sets: int, rows: int, columns: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Uninitialised (sets × rows × columns), each set row-major and aligned to `ALIGNMENT`."""
    per_set = -(-rows * columns * dtype.itemsize // ALIGNMENT) * ALIGNMENT // dtype.itemsize
    return torch.empty((sets, per_set), dtype=dtype, device=device).as_strided((sets, rows, columns), (per_set, columns, 1))


def huge_share(tensors: Iterable[torch.Tensor], smaps: str) -> float | None:
    """Share of the resident memory that lies on huge pages, over the mappings that hold the tensors; 3 digits.

    ``smaps``: text of /proc/self/smaps (proc(5)).  ``None`` if no mapping holds a tensor, or the kernel does not say.
    """
    wanted = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors]
    resident = huge = 0
    for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", mapping)
        if not span:
            continue
        low, high = int(span[1], 16), int(span[2], 16)
        if any(start < high and end > low for start, end in wanted):
            fields = dict(re.findall(r"(?m)^(Rss|AnonHugePages):\s+(\d+) kB$", mapping))
            if len(fields) < 2:
                return None
            resident += int(fields["Rss"])
            huge += int(fields["AnonHugePages"])
    return round(huge / resident, 3) if resident else None


def note_huge_pages(ctx: Context, tensors: Iterable[torch.Tensor]) -> None:
    """Record `huge_share` of the tensors, where /proc tells of this process's mappings."""
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    ctx.set("huge_page_share", huge_share(tensors, smaps))


def l2_bytes(device: str) -> int | None:
    """Bytes of a GPU's L2; ``None`` if torch does not tell."""
    return getattr(torch.cuda.get_device_properties(torch.device(device)), "L2_cache_size", None) or None


def _round(size: int) -> int:
    """Down to whole MiB where that loses little, for messages."""
    return size >> 20 << 20 if size >> 20 else size
