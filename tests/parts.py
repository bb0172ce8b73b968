"""What tests of ceilings share: a processor and a GPU that are known, records and metrics to be held against their limits."""

from __future__ import annotations

from clustergauge.ceilings import ceiling
from clustergauge.model import Cpu, Gpu, Machine, Measurement, Metric, Record, Workload

CPU = Cpu(model="Test", cores=8, threads=16, allowed="0-15", clock_max_mhz=3000.0, vector="avx2")
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-a", pci="0000:1b:00.0", sm_clock_max_mhz=1980.0)


def gpu(name: str, **fields) -> Gpu:
    """A GPU of this name."""
    return Gpu(index=0, name=name, uuid="GPU-a", **fields)


def machine(*gpus: Gpu, cpu: Cpu = CPU) -> Machine:
    """A machine with these GPUs."""
    return Machine(machine_id="m1", host="h", cpu=cpu, memory_bytes=1 << 34, gpus=list(gpus))


def record(device: str = "cuda:0", dtype: str = "bf16", bound: str = "compute", cache: str = "cold", **fields) -> Record:
    """A record of one rank that did such work."""
    given_fields = {
        "run_id": "r",
        "case": "c",
        "probe": "p",
        "params": {},
        "machine_id": "m1",
        "status": "ok",
        "started": "2026-01-01T00:00:00Z",
        "workload": Workload(flops=1, dtype=dtype, bound=bound),
        "measurement": Measurement(clock="wall", cache=cache),
    }
    return Record(device=device, **(given_fields | fields))


def compute(value: float = 1.0, unit: str = "FLOP/s", **fields) -> Metric:
    """A rate of operations."""
    return Metric(name="compute", value=value, unit=unit, **fields)


def bandwidth(value: float = 1.0, **fields) -> Metric:
    """A rate of bytes."""
    return Metric(name="bandwidth", value=value, unit="B/s", **fields)


def peak(device: Gpu, dtype: str = "bf16", metric: Metric | None = None):
    """The ceiling of what a GPU computes."""
    return ceiling(record(dtype=dtype), machine(device), metric or compute(unit="OP/s" if dtype == "int8" else "FLOP/s"))
