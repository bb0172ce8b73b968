"""Storage probes."""

PROBES = (
    "storage_io.sequential",
    "storage_io.parallel",
    "storage_io.random_io",
    "storage_io.flush",
    "storage_io.metadata",
    "storage_io.small_files",
    "storage_io.under_write",
    "storage_io.checkpoint",
    "storage_io.loader",
    "storage_io.object_store",
)
"""Modules of this folder that define probes."""
