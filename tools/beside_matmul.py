"""Matrix products beside each other, in turn in one process: as measured here, and called bare in a loop.

    .venv/bin/python -m tools.beside_matmul [PAIRS [SECONDS]]

For fp32 and bf16, at 1024 and 2048: the best rate of probe ``matmul`` (torch; for fp32 numpy too) as the timing loop takes it
(rotating through buffers, resets and checks in between) over the best rate of ``torch.mm`` and of numpy's BLAS for the same
product (B stored N×K), called bare in a loop for as long.
Then what measuring adds to an operation of about 1 ms.  Printed are medians over PAIRS (11, and no fewer), the middle half, all.
Times are means on both sides, so that whatever else the machine does counts on both: take figures on an idle one.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median, quantiles
from tempfile import TemporaryDirectory

import numpy as np
import torch

from clustergauge import processor
from clustergauge.clocks import WallClock
from clustergauge.measure import Plan, Sampler
from clustergauge.model import Workload
from clustergauge.probe import Context, Work
from clustergauge.world import Serial
from kernels.matmul import matmul

Call = Callable[[], object]
PAIRS, SECONDS = 11, 0.5
OPERATION_S = 1e-3


def measured(work: Work, seconds: float) -> float:
    """Mean seconds of a run, by the timing loop."""
    taken = Sampler(work, WallClock(), Serial(), Plan(budget_s=seconds, target=0.0)).measure()
    return fmean(taken.samples_s[taken.warmup_cut :])


def bare(call: Call, seconds: float) -> float:
    """Mean seconds of a call in a loop of about so many seconds, after two that do not count."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, round(seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def in_turn(works: Sequence[Work], others: Sequence[Call], pairs: int, seconds: float) -> list[float]:
    """Of each pair: seconds of the fastest bare call over those of the fastest measured one.  Who is first alternates."""
    ratios: list[float] = []
    sides = [*(partial(measured, work, seconds) for work in works), *(partial(bare, other, seconds) for other in others)]
    for pair in range(pairs):
        order = range(len(sides)) if pair % 2 else reversed(range(len(sides)))
        took = {side: sides[side]() for side in order}
        ratios.append(min(took[side] for side in range(len(works), len(sides))) / min(took[side] for side in range(len(works))))
    return ratios


def products(dtype: str, size: int, scratch: Path) -> tuple[list[Work], list[Call]]:
    """The probe's works, and the same product called bare: by torch, and by numpy where it has the type."""
    a, b = (torch.randn(size, size, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]) for _ in range(2))
    c = torch.empty_like(a)
    right = b.T
    others: list[Call] = [lambda: torch.mm(a, right, out=c)]
    if dtype == "fp32":
        x, y = a.numpy(), right.numpy()
        z = np.empty_like(x)
        others.append(lambda: np.matmul(x, y, out=z))
    works: list[Work] = []
    for backend in ("torch", "numpy")[: len(others)]:
        ctx = Context(Serial(), "cpu", 1, scratch)
        ctx.llc_bytes = processor.describe(processor.allowed()).llc_bytes or ctx.llc_bytes
        works.append(matmul.function(ctx, backend=backend, dtype=dtype, shape=str(size)))
    return works, others


def operation() -> Work:
    """A chain of SHA-256 of about `OPERATION_S`."""
    rounds = 1000
    seconds = bare(partial(hashlib.pbkdf2_hmac, "sha256", b"", b"", rounds), 0.1)
    rounds = max(1, round(rounds * OPERATION_S / seconds))
    return Work(run=partial(hashlib.pbkdf2_hmac, "sha256", b"", b"", rounds), workload=Workload())


def spread(values: Sequence[float], form: str) -> str:
    """Median, middle half, and all."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values):{form}}  ({low:{form}} … {high:{form}}; all {min(values):{form}} … {max(values):{form}})"


def main() -> int:
    """Entry point."""
    pairs = max(PAIRS, int(sys.argv[1])) if len(sys.argv) > 1 else PAIRS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    with TemporaryDirectory() as scratch:
        for dtype in ("fp32", "bf16"):
            for size in (1024, 2048):
                works, others = products(dtype, size, Path(scratch))
                best = "torch or numpy" if len(others) > 1 else "torch"
                ratios = in_turn(works, others, pairs, seconds)
                sys.stdout.write(f"matmul {dtype} {size}: measured over bare {best}: {spread(ratios, '.3f')}\n")
    work = operation()
    added = [1 / ratio - 1 for ratio in in_turn([work], work.runs, pairs, seconds)]
    sys.stdout.write(f"measuring adds to an operation of about 1 ms: {spread(added, '+.2%')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
