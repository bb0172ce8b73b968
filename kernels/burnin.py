"""Probe ``burnin``: matrix products for the whole time given, on all devices at once, every output the same to the last bit.

Unlike other probes it does not stop when the interval is narrow: heat takes minutes.  ``first_window``, ``last_window`` and
``sustained`` (`clustergauge.metrics`) say what the devices held; digests, error counters and throttle reasons say what broke.
"""

from __future__ import annotations

from clustergauge.probe import Context, Needs, Work, probe


def _needs(backend: str, dtype: str, shape: str, on: str) -> Needs:
    from kernels import matmul

    needs = matmul.matmul.needs_of({"backend": backend, "dtype": dtype, "shape": shape})
    if on == "gpus":
        return Needs(world="torch", device="cuda", modules=needs.modules, arch=needs.arch)
    return Needs(device="cpu", modules=needs.modules)


@probe(
    "burnin",
    needs=_needs,
    backend=("torch", "triton"),
    dtype=("bf16", "fp16", "fp32", "int8"),
    shape=("8192", "2048"),
    on=("gpus", "cores"),
)
def burnin(ctx: Context, backend: str, dtype: str, shape: str, on: str) -> Work:
    """The product of probe ``matmul`` without pause.  on: all GPUs of the node, a rank each; or all cores of the processor."""
    del on
    from kernels import matmul

    work = matmul.matmul.function(ctx, backend, dtype, shape)
    work.whole_budget = True
    ctx.set("burn_in", True)
    return work
