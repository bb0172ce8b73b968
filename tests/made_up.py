"""Made-up runs: every number planted, nothing measured."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clustergauge.loading import LoadedRun
from clustergauge.model import (
    Counters,
    Cpu,
    Finding,
    Gpu,
    Machine,
    Measurement,
    Planned,
    Record,
    Run,
    Verdict,
    Workload,
)
from clustergauge.probe import Case

RUN = "20260301-101500-ab12"
CPU = Machine(
    machine_id="m1",
    host="node-017",
    cpu=Cpu(model="AMD EPYC 7B13", cores=2, threads=4, allowed="0-3"),
    memory_bytes=8 << 30,
    versions={"python": "3.11.9", "torch": "2.13.0", "triton": "3.7.1"},
)
GPU = msgspec.structs.replace(
    CPU,
    gpus=[Gpu(index=i, name="NVIDIA H100 80GB HBM3", uuid=f"GPU-{i}") for i in range(8)],
    versions={"torch": "2.13.0", "nvidia_driver": "570.86", "cuda_driver": "12.8"},
)

MATMUL = {"backend": "torch", "dtype": "fp32", "shape": "1024"}
TRITON = {"backend": "triton", "dtype": "bf16", "shape": "8192"}
COPY = {"backend": "torch", "op": "copy", "size": 256 << 20}
REDUCE = {"backend": "gloo", "dtype": "fp32", "size": 64 << 20}
TINY = {"backend": "mpi", "dtype": "fp32", "size": 8}


def work(probe: str, params: dict) -> Workload:
    """Work whose rate at 1 ms is a round number."""
    size = params.get("size", 0)
    if probe == "matmul":
        return Workload(flops=2_000_000_000, dtype="fp32", bound="compute")
    if probe == "all_reduce":
        return Workload(message_bytes=size, collective="all_reduce", bound="latency" if size < 65536 else "network")
    return Workload(bytes_read=size, bytes_written=size, bound="memory")


def record(probe: str, params: dict, status: str = "ok", reason: str = "", time: float = 1e-3, **more) -> Record:
    """One record; ``ok`` ones hold forty samples around ``time`` (seconds), spread evenly by ±0.4 %."""
    measurement = None
    if status == "ok":
        spread = [time * (1 + 0.001 * ((7 * i) % 9 - 4)) for i in range(40)]
        measurement = Measurement(clock="wall", cache="none", samples_s=spread)
    return Record(
        run_id=RUN,
        case=Case(probe, "", params).id,
        probe=probe,
        params=params,
        machine_id=more.pop("machine_id", "m1"),
        status=status,  # type: ignore[arg-type]
        reason=reason,
        started="2026-03-01T10:15:00Z",
        workload=work(probe, params) if status == "ok" else None,
        measurement=measurement,
        counters=Counters(health=more.pop("health", {})),
        **more,
    )


def planned(what: Record, **more) -> Planned:
    """The plan that a record answers."""
    return Planned(
        case=what.case,
        probe=what.probe,
        module="made.up",
        params=what.params,
        device=what.device,
        launch=what.launch,
        ranks=what.ranks,
        skip=what.reason if what.status == "skipped" else "",
        **more,
    )


def loaded(*records: Record, machines=(CPU,), command=(), notes=(), missing=(), seconds: float = 192.0, **more) -> LoadedRun:
    """A run of these records; ``missing``: planned cases that have none."""
    run = Run(
        run_id=RUN,
        started="2026-03-01T10:15:00Z",
        finished="2026-03-01T10:18:12Z",
        command=["run_suite.py", *command],
        suite="quick",
        code="c0de",
        planned=[*(planned(r) for r in records), *missing],
        settings={"seconds": seconds, "case_seconds": 0.75 * seconds},
        **more,
    )
    return LoadedRun(run, {m.machine_id: m for m in machines}, list(records), Path.cwd() / "results" / RUN, list(notes))


def verdict(what: Record, word: str, metric: str = "", value: float | None = None, unit: str = "", **more) -> Verdict:
    """A verdict on a record; ``floor`` or ``limit``: the bound."""
    floor, limit = more.pop("floor", None), more.pop("limit", None)
    bound = limit if floor is None else floor
    margin = None if bound is None or value is None else (value / bound - 1) * (1 if limit is None else -1)
    return Verdict(
        case=what.case,
        device=what.device,
        machine_id=what.machine_id,
        verdict=word,  # type: ignore[arg-type]
        metric=metric,
        value=value,
        unit=unit,
        bound=bound,
        margin=margin,
        **more,
    )


def finding(name: str, state: str, detail: str = "", remedy: str = "") -> Finding:
    """A preflight finding."""
    return Finding(name=name, state=state, detail=detail, remedy=remedy)  # type: ignore[arg-type]
