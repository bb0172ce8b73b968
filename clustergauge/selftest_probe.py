"""Probes with a known answer, for `selftest`: the gauge is held against them."""

from __future__ import annotations

import hashlib
import time

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Work, probe

HASH_BYTES = 1 << 20


@probe("known", needs=Needs(), ns=(10_000, 100_000, 1_000_000, 10_000_000))
def known(ctx: Context, ns: int) -> Work:
    """Spins until ``ns`` nanoseconds have passed: never shorter, and longer by one reading of the clock at most."""
    del ctx
    read = time.perf_counter_ns

    def run() -> None:
        end = read() + ns
        while read() < end:
            pass

    return Work(run=run, workload=Workload(bound="latency"))


@probe("nothing", needs=Needs())
def nothing(ctx: Context) -> Work:
    """Does nothing: what is measured is what the gauge adds to every call."""
    del ctx
    return Work(run=_nothing, workload=Workload(bound="latency"))


@probe("hash", needs=Needs(), percent=(0, 2, 5), side=("a", "b"))
def hashing(ctx: Context, percent: int, side: str) -> Work:
    """SHA-256 of 1 MiB, or of ``percent`` more: real work, slowed down on purpose.  ``side`` only tells equal cases apart."""
    del side
    data = memoryview(ctx.seed.to_bytes(8, "little") * (HASH_BYTES * (100 + percent) // 800))
    digest = hashlib.sha256(data).hexdigest()
    last = ""

    def run() -> None:
        nonlocal last
        last = hashlib.sha256(data).hexdigest()

    def check() -> None:
        assert last == digest

    return Work(run=run, check=check, workload=Workload(bytes_read=len(data), bound="compute"))


def _nothing() -> None:
    return None
