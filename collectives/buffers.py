"""Where the buffers of a case lie: host memory (numpy, or torch for gloo) or a device's; and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clustergauge import memory
from clustergauge.probe import Context, Skip
from collectives import exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKENDS = ("mpi", "gloo", "nccl", "mpi_device")
"""MPI from host buffers, torch.distributed over gloo or NCCL, MPI from device buffers."""


@dataclass(frozen=True)
class Buffers:
    """Allocates bits of one dtype where a backend wants them.  ``device``: of torch, or empty for numpy."""

    dtype: str
    device: str

    def empty(self, length: int) -> Any:
        """So many elements, one-dimensional, not initialised."""
        bits = exact.FORMATS[self.dtype].bits
        if self.device:
            import torch

            return torch.empty(length, dtype=getattr(torch, bits), device=self.device)
        import numpy as np

        return np.empty(length, bits)

    def moved(self, pattern: NDArray[Any]) -> Any:
        """A pattern where these buffers lie."""
        if self.device:
            import torch

            return torch.tensor(pattern, device=self.device)
        return pattern

    def settle(self) -> None:
        """Wait for what was written on a device: MPI does not look at its streams."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)


def buffers(ctx: Context, backend: str, dtype: str) -> Buffers:
    """Those that a backend works on."""
    return Buffers(dtype, "" if backend == "mpi" else ctx.device)


def require(ctx: Context, backend: str, bytes_per_rank: int) -> None:
    """`Skip` unless the memory available holds the buffers of all ranks of this host twice over (libraries have buffers too)."""
    ranks, where, available = ctx.world.local_size, "memory", memory.available_bytes()
    if backend in ("nccl", "mpi_device"):
        import torch

        ranks, where, available = 1, "device memory", int(torch.cuda.mem_get_info(ctx.device)[0])
    wanted = 2 * bytes_per_rank * ranks
    if available is not None and wanted > available:
        who = f"{ranks} ranks need" if ranks > 1 else "a rank needs"
        raise Skip(f"{who} about {wanted >> 20} MiB of {where}, {available >> 20} MiB are available")
