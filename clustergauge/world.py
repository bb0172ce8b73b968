"""The ranks that run one case together: who I am, meeting, and saying things to each other.

`barrier` goes over the transport under test (it aligns ranks just before a sample).  `gather` and `from_root` go over the
control channel, so that agreeing on an outcome still works when the transport does not.
"""

from __future__ import annotations

from typing import Any, Protocol

from clustergauge import hosts
from clustergauge.model import Json


class Hub(Protocol):
    """The control channel as a rank sees it."""

    def gather(self, value: Json) -> list[Json] | None:
        """All ranks' values on rank 0 (in rank order), ``None`` elsewhere."""
        ...

    def from_root(self, value: Json) -> Json:
        """Rank 0's value on every rank."""
        ...


class World(Protocol):
    """What probes and the timing loop see of the other ranks."""

    rank: int
    size: int
    host: str

    def barrier(self) -> None:
        """Every rank has arrived; over the transport under test."""
        ...

    def gather(self, value: Json) -> list[Json] | None:
        """All ranks' values on rank 0, ``None`` elsewhere; over the control channel."""
        ...

    def from_root(self, value: Json) -> Json:
        """Rank 0's value on every rank; over the control channel."""
        ...

    def close(self) -> None:
        """Leave the world in good order; every rank does."""
        ...


class Serial:
    """One process, alone."""

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self.host = hosts.own()

    def barrier(self) -> None:
        """Nobody to wait for."""

    def gather(self, value: Json) -> list[Json] | None:
        """The own value."""
        return [value]

    def from_root(self, value: Json) -> Json:
        """The own value."""
        return value

    def close(self) -> None:
        """Nothing to leave."""


class Mpi:
    """Ranks of an MPI job.  ``comm`` is a private duplicate of COMM_WORLD, for the probe's use too."""

    def __init__(self, hub: Hub) -> None:
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD.Dup()
        self.rank = self.comm.Get_rank()
        self.size = self.comm.Get_size()
        self.host = hosts.own()
        self.library = MPI.Get_library_version().splitlines()[0].strip().rstrip("\x00")
        self.gather = hub.gather
        self.from_root = hub.from_root

    def barrier(self) -> None:
        """MPI_Barrier."""
        self.comm.Barrier()

    def close(self) -> None:
        """Free the communicator; mpi4py finalises MPI at exit."""
        self.comm.Free()


class TorchDistributed:
    """Ranks of torch.distributed over a TCP store that rank 0 serves; no MPI.

    NCCL where the device is a GPU, gloo elsewhere.  The store's address goes over the control channel, its port is free by
    construction.
    """

    def __init__(self, hub: Hub, rank: int, size: int, device: str, timeout_s: float, host: str = "127.0.0.1") -> None:
        """``host``: address of rank 0's node."""
        from datetime import timedelta

        import torch

        dist: Any = torch.distributed
        backend = "nccl" if device.startswith("cuda") else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(torch.device(device))
        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(host, 0, size, is_master=True, timeout=timeout, wait_for_workers=False) if rank == 0 else None
        host, port = hub.from_root([host, store.port] if store else None)
        store = store or dist.TCPStore(host, port, size, is_master=False, timeout=timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        self._dist = dist
        self.library = f"torch.distributed {backend}"
        self.backend = backend
        self.rank = rank
        self.size = size
        self.host = hosts.own()
        self.gather = hub.gather
        self.from_root = hub.from_root

    def barrier(self) -> None:
        """torch.distributed.barrier on the group under test."""
        self._dist.barrier()

    def close(self) -> None:
        """Destroy the process group."""
        self._dist.destroy_process_group()
