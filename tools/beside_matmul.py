"""Matrix products beside each other, in turn in one process: as measured here, and called bare in a loop.

    .venv/bin/python -m tools.beside_matmul [PAIRS [SECONDS]]

For fp32 and bf16, at 1024 and 2048: the best rate of probe ``matmul`` (torch; for fp32 numpy too) as the timing loop takes it
(rotating through buffers, resets and checks in between) over the best rate of ``torch.mm`` and of numpy's BLAS for the same
product (B stored N×K), called bare in a loop for as long: rotating through as many buffers (*cold*, as the probe is), and on one
(*hot*: what leaving the cache costs is in this ratio too).
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


def bare(calls: Sequence[Call], seconds: float) -> float:
    """Mean seconds of a call in a loop of about so many seconds over the calls in turn, after two that do not count."""
    calls[0]()
    began = time.perf_counter()
    calls[0]()
    count = max(1, round(seconds / (time.perf_counter() - began) / len(calls))) * len(calls)
    turns = calls * (count // len(calls))
    began = time.perf_counter()
    for call in turns:
        call()
    return (time.perf_counter() - began) / count


def in_turn(works: Sequence[Work], others: Sequence[Sequence[list[Call]]], pairs: int, seconds: float) -> list[list[float]]:
    """For each group of ``others``, of each pair: seconds of its fastest over the fastest work's.  Who is first alternates."""
    groups = [
        [partial(measured, work, seconds) for work in works],
        *([partial(bare, o, seconds) for o in group] for group in others),
    ]
    ratios: list[list[float]] = [[] for _ in others]
    for pair in range(pairs):
        order = range(len(groups)) if pair % 2 else reversed(range(len(groups)))
        took = {group: min(side() for side in groups[group]) for group in order}
        for group, into in enumerate(ratios, 1):
            into.append(took[group] / took[0])
    return ratios


def products(dtype: str, size: int, scratch: Path) -> tuple[list[Work], list[list[Call]], list[list[Call]]]:
    """The probe's works, and the same product called bare, by torch and where it has the type by numpy: cold, and hot."""
    works: list[Work] = []
    cold: list[list[Call]] = []
    for backend in ("torch", "numpy") if dtype == "fp32" else ("torch",):
        ctx = Context(Serial(), "cpu", 1, scratch)
        ctx.llc_bytes = processor.describe(processor.allowed()).llc_bytes or ctx.llc_bytes
        works.append(matmul.function(ctx, backend=backend, dtype=dtype, shape=str(size)))
        cold.append([_bare(backend, dtype, size) for _ in works[-1].runs])
    return works, cold, [calls[:1] for calls in cold]


def _bare(backend: str, dtype: str, size: int) -> Call:
    """A product on buffers of its own."""
    a, b = (torch.randn(size, size, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]) for _ in range(2))
    c, right = torch.zeros_like(a), b.T
    if backend == "torch":
        return lambda: torch.mm(a, right, out=c)
    x, y, z = a.numpy(), right.numpy(), c.numpy()
    return lambda: np.matmul(x, y, out=z)


def operation() -> Work:
    """A chain of SHA-256 of about `OPERATION_S`."""
    rounds = 1000
    seconds = bare([partial(hashlib.pbkdf2_hmac, "sha256", b"", b"", rounds)], 0.1)
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
                works, cold, hot = products(dtype, size, Path(scratch))
                best = "torch or numpy" if len(works) > 1 else "torch"
                for kind, ratios in zip(("cold", "hot"), in_turn(works, [cold, hot], pairs, seconds), strict=True):
                    sys.stdout.write(f"matmul {dtype} {size}: measured over bare {best}, {kind}: {spread(ratios, '.3f')}\n")
    work = operation()
    added = [1 / ratio - 1 for ratio in in_turn([work], [[list(work.runs)]], pairs, seconds)[0]]
    sys.stdout.write(f"measuring adds to an operation of about 1 ms: {spread(added, '+.2%')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
