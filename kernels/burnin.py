"""Probe ``burnin``: matrix products for the whole time given, on all devices at once, every output the same to the last bit.

Unlike other probes it does not stop when the interval is narrow: heat takes minutes.  ``first_window``, ``last_window`` and
``sustained`` (`clustergauge.metrics`) say what the devices held; outputs, error counters and throttle reasons say what broke.

A sample holds no more products than there are sets of buffers, so that all its outputs are still there when it is over.  Then,
untimed and on the device, each is compared with one that was kept from the beginning: an error of one product among many
thousands shows, and so does one of the memory that holds operands, which every set has for itself.

After each such look what was measured is told (`clustergauge.so_far`): cut short, a burn-in keeps it, and never passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clustergauge.probe import Context, Needs, Work, Wrong, probe

if TYPE_CHECKING:
    import torch

SETS = {"cuda": 64, "cpu": 8}
"""Of buffers, where half of the free memory holds so many: products of a sample, about 0.1 s of them on an H100."""


def _needs(backend: str, dtype: str, shape: str, on: str) -> Needs:
    from kernels import matmul

    needs = matmul.matmul.needs_of({"backend": backend, "dtype": dtype, "shape": shape})
    if on == "gpus":
        return Needs(world="torch", device="cuda", modules=needs.modules, arch=needs.arch, tunes=needs.tunes)
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
    """The product of probe ``matmul`` without pause.  on: all GPUs of the node, a rank each; or all cores of the processor.

    All outputs of all samples are compared bit for bit, not only the last of some.  Triton's configuration is the one that the
    run chose for the same product on one GPU before, else the first of them: several ranks do not tune.
    """
    del on
    from kernels import matmul

    work, outputs = matmul.prepare(ctx, backend, dtype, shape, SETS[ctx.kind])
    work.whole_budget = True
    work.max_iterations = len(outputs)
    ctx.set("burn_in", True)
    watch_all(work, outputs)
    return work


def watch_all(work: Work, outputs: torch.Tensor) -> None:
    """Make ``work`` compare every output (sets × M × N) of a sample before the next one overwrites it.

    Its digest raises `Wrong` if any that was compared since the digest before was not, bit for bit, the first that there was.
    """
    import torch

    bits = outputs.view(torch.int16 if outputs.itemsize == 2 else torch.int32)
    kept: list[torch.Tensor] = []
    wrong = torch.zeros((), dtype=torch.int64, device=outputs.device)  # there: to look at it would wait for the device
    reset, digest = work.reset, work.digest
    assert reset, "a product has one"
    assert digest, "a product has one"

    def compare() -> None:
        if kept:
            for back in range(min(work.count, len(bits))):
                wrong.add_((bits[(work.last - back) % len(bits)] != kept[0]).any())
        work.count = 0

    def compare_and_reset() -> None:
        compare()
        reset()

    def look() -> str:
        compare()
        if not kept:
            kept.append(bits[work.last].clone())
        if number := int(wrong):
            raise Wrong(f"outputs of one product differ: {number} since the last look are not what the first was, bit for bit")
        return digest()

    work.reset, work.digest = compare_and_reset, look
