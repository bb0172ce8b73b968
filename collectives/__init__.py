"""Interconnect probes."""

PROBES = ("collectives.all_reduce",)
"""Modules of this folder that define probes."""
