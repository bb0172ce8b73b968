"""Interconnect probes."""

PROBES = ("collectives.operations", "collectives.barrier", "collectives.send_recv")
"""Modules of this folder that define probes."""
