"""Memory for probes: how much is free, sets to rotate through, and whether pages are huge."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from clustergauge.probe import Skip
from clustergauge.units import format_size

ALIGNMENT = 256
"""Bytes to which every set is aligned, as CUDA's own allocations are."""
_KIB = 1024


def free_bytes(device: str) -> int:
    """Memory that can be had now: the device's own, or what the kernel estimates as available (``MemAvailable``)."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    if not match:
        raise RuntimeError("/proc/meminfo has no MemAvailable")
    return int(match[1]) * _KIB


def require(wanted: int, device: str) -> None:
    """Raises `Skip` if ``wanted`` bytes would take more than 80 % of the free memory."""
    free = free_bytes(device)
    if wanted > 0.8 * free:
        raise Skip(f"needs {format_size(_round(wanted))} of memory, {format_size(_round(free))} is free on {device}")


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


def _round(size: int) -> int:
    """Down to whole MiB where that loses little, for messages."""
    return size >> 20 << 20 if size >> 20 else size
