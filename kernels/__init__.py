"""Compute and memory probes."""

PROBES = (
    "kernels.matmul",
    "kernels.best",
    "kernels.attention",
    "kernels.memory",
    "kernels.cache",
    "kernels.latency",
    "kernels.normalise",
    "kernels.matvec",
    "kernels.launch",
    "kernels.transfer",
    "kernels.burnin",
)
"""Modules of this folder that define probes."""
