"""Storage probes."""

PROBES = ("storage_io.sequential", "storage_io.random_io")
"""Modules of this folder that define probes."""
