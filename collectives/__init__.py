"""Interconnect probes."""

PROBES = ("collectives.all_reduce", "collectives.nccl_path", "collectives.pairs")
"""Modules of this folder that define probes."""
