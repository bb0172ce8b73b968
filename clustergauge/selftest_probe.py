"""Probes with a known answer, for `selftest`: the gauge is held against them."""

from __future__ import annotations

import hashlib
import time

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Work, Wrong, probe

HASHES_PER_PERCENT = 4
HASH_BYTES = 1984
"""With its padding 32 blocks of SHA-256, and too short for hashlib to let go of the interpreter."""
_DIGEST_BYTES = 32


@probe("known", needs=Needs(), ns=(10_000, 100_000, 1_000_000, 10_000_000))
def known(ctx: Context, ns: int) -> Work:
    """Spins until ``ns`` nanoseconds have passed: never shorter, and longer by one reading of the clock at most.

    It reads a clock of its own, the raw hardware's where there is one, not the one that the gauge reads.
    """

    passed = 0

    def run() -> None:
        nonlocal passed
        start = now = own_clock_ns()
        while now < start + ns:
            now = own_clock_ns()
        passed = now - start

    def check() -> None:
        if passed < ns:
            raise Wrong(f"only {passed} ns passed")

    steps = sorted(after - before for before, after in ((own_clock_ns(), own_clock_ns()) for _ in range(201)))
    ctx.set("own_step_s", steps[100] * 1e-9)
    return Work(run=run, check=check, workload=Workload(bound="latency"))


@probe("nothing", needs=Needs())
def nothing(ctx: Context) -> Work:
    """Does nothing: what is measured is what the gauge adds to every call."""
    del ctx

    def check() -> None:
        if (result := _nothing()) is not None:
            raise Wrong(f"nothing returned {result}")

    return Work(run=_nothing, check=check, workload=Workload(bound="latency"))


@probe("hash", needs=Needs(), percent=(0, 2, 5), side=("a", "b"))
def hashing(ctx: Context, percent: int, side: str) -> Work:
    """A chain of 400 SHA-256, or of exactly ``percent`` more: real work, slowed down on purpose.

    ``side`` only tells equal cases apart.
    """
    del side
    count, start = HASHES_PER_PERCENT * (100 + percent), ctx.seed.to_bytes(_DIGEST_BYTES, "little")
    expected, last = chain(start, count), b""

    def run() -> None:
        nonlocal last
        last = chain(start, count)

    def reset() -> None:
        nonlocal last
        last = b""

    def check() -> None:
        if last != expected:
            raise Wrong(f"the chain ends in {last.hex() or 'nothing'}, not in {expected.hex()}")

    return Work(run=run, reset=reset, check=check, workload=Workload(bytes_read=count * HASH_BYTES, bound="latency"))


def chain(value: bytes, count: int) -> bytes:
    """Each hash goes into the next, so none can be left out."""
    filler = bytes(HASH_BYTES - _DIGEST_BYTES)
    for _ in range(count):
        value = hashlib.sha256(value + filler).digest()
    return value


def own_clock_ns() -> int:
    """Nanoseconds of the raw hardware clock, which nothing slews; of the gauge's where the system has no other."""
    return time.clock_gettime_ns(_RAW) if _RAW is not None else time.perf_counter_ns()


_RAW: int | None = getattr(time, "CLOCK_MONOTONIC_RAW", None)


def _nothing() -> object:
    return None
