"""All-reduce over one path of NCCL after the other: each forced by NCCL's own environment, and proven by the links' counters.

The environment is read when a communicator is made, so each path has workers of its own.  These note every choice of algorithm
too (``TUNING``), which the prediction of the bytes needs.  Noting costs the host, not the device: the messages are large, their
launches are queued before the device begins, and samples in which they were not are counted.

https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
"""

from __future__ import annotations

from clustergauge.launch import NCCL_SUBSYSTEMS
from clustergauge.probe import Context, Needs, Work, probe
from collectives.operations import all_reduce

NOTES = {"NCCL_DEBUG_SUBSYS": f"{NCCL_SUBSYSTEMS},TUNING"}
PATHS: dict[str, dict[str, str]] = {
    "default": {},
    # NVLink alone may join two GPUs; a pair without it would have to take the network, and the counters say so
    "nvlink": {"NCCL_P2P_LEVEL": "NVL", "NCCL_SHM_DISABLE": "1"},
    # through memory of the host; NVLS and multi-node NVLink are switched off too, for they need no peer-to-peer
    "p2p_off": {"NCCL_P2P_DISABLE": "1", "NCCL_NVLS_ENABLE": "0", "NCCL_MNNVL_ENABLE": "0"},
    # even between GPUs of one host
    "net": {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_NVLS_ENABLE": "0", "NCCL_MNNVL_ENABLE": "0"},
}
"""What forces each path."""
SIZES = (2**20, 2**26, 2**28, 2**30, 2**33)


def needs(path: str, dtype: str, size: int) -> Needs:  # noqa: ARG001 (called with all axes)
    """NCCL ranks in an environment that forces the path."""
    return Needs(world="torch", ranks=2, device="cuda", modules=("torch",), env=PATHS[path] | NOTES, nvlink=path == "nvlink")


@probe("nccl_path", needs=needs, path=tuple(PATHS), dtype=("bf16", "fp32"), size=SIZES)
def nccl_path(ctx: Context, path: str, dtype: str, size: int) -> Work:
    """All-reduce of NCCL, kept to one path.  size: bytes each rank contributes (S of nccl-tests)."""
    ctx.set("path", path)
    return all_reduce.function(ctx, backend="nccl", dtype=dtype, size=size)
