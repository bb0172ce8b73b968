"""Interconnect probes."""

PROBES = ("collectives.all_reduce", "collectives.pairs")
"""Modules of this folder that define probes."""
