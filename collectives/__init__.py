"""Interconnect probes."""

PROBES = ("collectives.all_reduce", "collectives.nccl_path")
"""Modules of this folder that define probes."""
