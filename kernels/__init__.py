"""Compute and memory probes."""

PROBES = ("kernels.matmul", "kernels.memory")
"""Modules of this folder that define probes."""
