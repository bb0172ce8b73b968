"""Interconnect probes."""

PROBES = (
    "collectives.operations",
    "collectives.barrier",
    "collectives.send_recv",
    "collectives.nccl_path",
    "collectives.pairs",
)
"""Modules of this folder that define probes."""
