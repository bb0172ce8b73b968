"""The ranks that run one case together: who I am, meeting, and saying things to each other.

`barrier` goes over the transport under test (it aligns ranks just before a sample).  `gather` and `from_root` go over the
control channel, so that agreeing on an outcome still works when the transport does not.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Protocol

from clustergauge import hosts
from clustergauge.model import Json
from clustergauge.transport import NcclFile


class Hub(Protocol):
    """The control channel as a rank sees it."""

    def gather(self, value: Json) -> list[Json] | None:
        """All ranks' values on rank 0 (in rank order), ``None`` elsewhere."""
        ...

    def from_root(self, value: Json) -> Json:
        """Rank 0's value on every rank."""
        ...


class World(Protocol):
    """What probes and the timing loop see of the other ranks.  ``nccl``: where NCCL says what it does, if it joins them."""

    rank: int
    size: int
    local_size: int
    """Ranks on this host, this one included: they share its memory."""
    host: str
    nccl: NcclFile | None

    def barrier(self) -> None:
        """Every rank has arrived; over the transport under test."""
        ...

    def send_number(self, rank: int, number: int) -> None:
        """Send a 64-bit number to a rank that receives it; over the transport under test."""
        ...

    def receive_number(self, rank: int) -> int:
        """Wait for a number of that rank."""
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

    nccl: NcclFile | None = None

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self.local_size = 1
        self.host = hosts.own()

    def barrier(self) -> None:
        """Nobody to wait for."""

    def send_number(self, rank: int, number: int) -> None:
        """Nobody to talk to."""
        raise ValueError(f"alone: there is no rank {rank} to send {number} to")

    def receive_number(self, rank: int) -> int:
        """Nobody to talk to."""
        raise ValueError(f"alone: there is no rank {rank} to hear from")

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

    nccl: NcclFile | None = None

    def __init__(self, hub: Hub) -> None:
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD.Dup()
        self.rank = self.comm.Get_rank()
        self.size = self.comm.Get_size()
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_size = node.Get_size()
        node.Free()
        self._number = array("q", [0])
        self.host = hosts.own()
        self.library = MPI.Get_library_version().splitlines()[0].strip().rstrip("\x00")
        self.gather = hub.gather
        self.from_root = hub.from_root
        self.barrier: Callable[[], None] = self.comm.Barrier

    def send_number(self, rank: int, number: int) -> None:
        """MPI_Send of one 64-bit integer."""
        self._number[0] = number
        self.comm.Send(self._number, rank)

    def receive_number(self, rank: int) -> int:
        """MPI_Recv of one."""
        self.comm.Recv(self._number, rank)
        return self._number[0]

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
        self.host = hosts.own()
        store.add(f"ranks on {self.host}", 1)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        self._dist = dist
        self.library = f"torch.distributed {backend}"
        self.backend = backend
        self.nccl: NcclFile | None = NcclFile() if backend == "nccl" else None
        self.rank = rank
        self.size = size
        self.local_size = store.add(f"ranks on {self.host}", 0)  # every rank has added itself before the group stood
        self._number = torch.zeros(1, dtype=torch.int64, device=device if backend == "nccl" else "cpu")
        self.gather = hub.gather
        self.from_root = hub.from_root

    def barrier(self) -> None:
        """torch.distributed.barrier on the group under test."""
        self._dist.barrier()

    def send_number(self, rank: int, number: int) -> None:
        """torch.distributed.send of one 64-bit integer."""
        self._number.fill_(number)
        self._dist.send(self._number, rank)

    def receive_number(self, rank: int) -> int:
        """torch.distributed.recv of one."""
        self._dist.recv(self._number, rank)
        return int(self._number.item())

    def close(self) -> None:
        """Destroy the process group."""
        self._dist.destroy_process_group()
