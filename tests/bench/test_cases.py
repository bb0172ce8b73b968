"""Every case of the chosen suite, measured by our clock and loop, in pytest-benchmark's books.

``pytest tests/bench --benchmark-json=out.json``; the options that begin with ``--bench-`` choose what.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from clustergauge import readings
from tests.bench.lane import Lane, Tape


def test_case(benchmark: BenchmarkFixture, lane: Lane, tape: Tape, case: str) -> None:
    """Measured, and right; only checked where benchmarks are disabled (as under pytest-xdist)."""
    record, log = lane.measure(case, check_only=benchmark.disabled)
    if record.status == "skipped":
        pytest.skip(record.reason)
    problem = "" if record.status in ("ok", "verified") else f"{record.status}: {record.reason}"
    samples = readings.samples(record) if record.status == "ok" else []
    if samples:
        about, impossible = lane.describe(record)
        problem = f"invalid: {impossible}" if impossible else ""
        benchmark.extra_info.update(about)
        tape.load(samples)
    if problem or not samples:
        benchmark.disabled = True  # nothing to time: the interpreter's time, or that of a wrong result, means nothing

    def settle() -> None:
        if problem:
            pytest.fail(f"{problem}\n{log}".rstrip(), pytrace=False)

    benchmark.pedantic(settle, rounds=max(1, len(samples)))
