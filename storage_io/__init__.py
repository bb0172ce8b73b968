"""Storage probes."""

PROBES = ("storage_io.sequential",)
"""Modules of this folder that define probes."""
