"""Made-up machines, runs and records for tests: what they hold is planted, never measured."""

from __future__ import annotations

from typing import Any

from clustergauge.model import Counters, Cpu, Gpu, Machine, Measurement, Planned, Record, Run, Workload
from clustergauge.probe import Case

STARTED = "2026-11-23T06:30:00Z"


def machine(gpus: int | list[Gpu] = 0, cores: int = 2, **more: Any) -> Machine:
    """A processor, and so many A100s, or these GPUs, if asked for."""
    own = (
        [Gpu(index=i, name="NVIDIA A100-SXM4-80GB", uuid=f"GPU-{i}", arch="sm_80") for i in range(gpus)]
        if isinstance(gpus, int)
        else gpus
    )
    fields: dict[str, Any] = {
        "machine_id": "m1",
        "host": "node-1",
        "cpu": Cpu(model="cpu", cores=cores, threads=cores, allowed=f"0-{cores - 1}"),
        "memory_bytes": 1 << 34,
        "gpus": own,
    }
    return Machine(**fields | more)


def record(
    probe: str = "matmul",
    samples: list[float] | None = None,
    work: Workload | None = None,
    device_bytes: dict[str, int] | None = None,
    **more: Any,
) -> Record:
    """A record that is ok, of 2 TFLOP in each of 30 samples of 1 s unless told otherwise; keywords beyond those of `Record`
    are parameters of the case."""
    params = {name: more.pop(name) for name in list(more) if name not in Record.__struct_fields__}
    fields: dict[str, Any] = {
        "run_id": "run",
        "case": Case(probe, "", params).id,
        "probe": probe,
        "params": params,
        "machine_id": "m1",
        "status": "ok",
        "started": STARTED,
        "workload": work or Workload(flops=2 * 10**12, dtype="fp32", bound="compute"),
        "measurement": Measurement(clock="wall", cache="none", samples_s=[1.0] * 30 if samples is None else samples),
        "counters": Counters(device_bytes=device_bytes or {}),
    }
    return Record(**fields | more)


def failed(status: str, reason: str, **more: Any) -> Record:
    """A record without a measurement."""
    return record(status=status, reason=reason, measurement=None, **more)


def planned(record: Record, **more: Any) -> Planned:
    """The plan that a record answers."""
    fields = {name: getattr(record, name) for name in ("case", "probe", "params", "device", "launch", "ranks")}
    return Planned(**{"module": "kernels.matmul", **fields} | more)


def run(records: list[Record], **more: Any) -> Run:
    """The run that these records are of."""
    fields: dict[str, Any] = {
        "run_id": "run",
        "started": STARTED,
        "command": ["run_suite.py"],
        "suite": "quick",
        "code": "c0de",
        "planned": [planned(r) for r in records],
    }
    return Run(**fields | more)
