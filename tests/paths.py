"""What tests of paths share: records of ranks on hosts with planted counters, machines with their ports."""

from __future__ import annotations

from typing import Any

from clustergauge import path
from clustergauge.model import Counters, Link, Machine, Nic, Place, Record, Workload
from tests import made

SIZE = 1 << 26
RUNS = 100
IB = Nic(name="mlx5_0", kind="infiniband", state="active")
ROCE = Nic(name="mlx5_0", kind="roce", state="active")
EFA = Nic(name="rdmap0s31", kind="other", state="active")
ETH = Nic(name="eth0", kind="ethernet", state="up")
GLOO = {"torch_distributed_backend": "gloo", "env.GLOO_SOCKET_IFNAME": "lo"}
RING = {"nccl_algorithm": "RING", "nccl_protocol": "SIMPLE", "torch_distributed_backend": "nccl"}
PAIR = {"a": 1, "b": 1}


def record(
    hosts: dict[str, int],
    moved: dict[str, float],
    collective: str = "all_reduce",
    backend: str = "nccl",
    runs: int = RUNS,
    size: int = SIZE,
    device: str = "cpu:0",
    settings: dict[str, Any] | None = None,
    **params: Any,
) -> Record:
    """A record of ranks on hosts (name → number).  ``moved``: port → bytes sent and received, in units of S × runs."""
    places = [Place(rank=rank, host=host) for rank, host in enumerate(h for h, n in hosts.items() for _ in range(n))]
    counters = {f"{port}.{way}_bytes": round(share * size * runs) for port, share in moved.items() for way in ("tx", "rx")}
    return made.record(
        collective,
        [1e-3] * 30,
        Workload(message_bytes=size, collective=collective, bound="network"),
        ranks=len(places),
        placement=places,
        device=device,
        settings=settings or {},
        counters=Counters(path=counters | ({"runs": runs} if runs else {})),
        size=size,
        **params,
        **({"backend": backend} if backend else {}),
    )


def node(host: str, *nics: Nic, gpus: int = 0, nvlink: bool = False) -> Machine:
    """A machine with such ports, and GPUs behind NVLink or not."""
    links = [Link(a=0, b=b, kind="nvlink" if nvlink else "pcie") for b in range(1, gpus)]
    return made.machine(gpus=gpus, host=host, machine_id=host, nics=list(nics), links=links)


def state(record: Record, *machines: Machine) -> str:
    """What the counters prove: ``proven``, ``contradicted`` or ``unproven``."""
    found = path.proof(record, machines)
    assert found
    return found.state
