"""What stands between two runs: parts, drivers, libraries, clocks and settings that differ, each with both its values.  Pure.

A difference of these explains a shift better than any kernel does, so runs that differ are not compared unless somebody says
that he means it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clustergauge.model import Gpu, Machine, Record, Scalar
from clustergauge.pins import PREFIX
from clustergauge.units import installed

Kind = Literal["device", "driver", "library", "clock", "setting", "work", "code"]

DRIVERS = ("nvidia_driver", "amdgpu_driver", "cuda_driver", "cuda_driver_api", "mlx5_core", "kernel")
"""Versions of a machine that are its drivers'; the others are libraries'."""
CLOCK_TOLERANCE = 0.03
"""Clocks observed while measuring may differ by this much (relative): steps of a governor, and rounding."""
OBSERVED = (
    "exposed_samples",
    "checked_samples",
    "page_cache_left_bytes",
    "log",
    "cache_reason",
    "searched",
    "finalists",
    "mnk",
    "compulsory_bytes",
    "cross_check",
    "other_runs",
    "free_bytes",
    "folder",
    "direct_reason",
    "latencies",
    "latency_every",
    "transfers_per_sample",
    "operations_per_sample",
    "files_per_sample",
)
"""Settings of a record that say what was seen, not what was chosen; those with a fraction are observations too."""
TUNED = ("config", "splits", "tuned")
"""Settings that a choice among candidates of the same work may change: they are told, and runs are compared none the less."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same on both sides; ``a`` and ``b`` as text, ``–`` where a side has none.

    ``bars``: whether it makes the two incomparable unless somebody insists.  Other code of the suite doesn't: that is what a
    change is compared for.
    """

    kind: Kind
    name: str
    a: str
    b: str
    bars: bool = True


def of_machines(a: Machine, b: Machine) -> list[Difference]:
    """What differs between two machines, or between one machine then and now."""
    both = zip(traits(a), traits(b), strict=True)
    return [difference for (kind, one), (_, other) in both for difference in _mapped(kind, one, other)]


def traits(machine: Machine) -> list[tuple[Kind, Mapping[str, Scalar]]]:
    """All that `of_machines` looks at: machines of which it is equal differ in nothing."""
    return [
        ("device", _described(machine)),
        ("driver", {"kernel": machine.kernel}),
        ("driver", {name: version for name, version in machine.versions.items() if name in DRIVERS}),
        ("library", {name: version for name, version in machine.versions.items() if name not in DRIVERS}),
        ("clock", _clocks(machine)),
        ("setting", machine.settings),
        ("setting", _switches(machine)),
    ]


def of_records(a: Sequence[Record], b: Sequence[Record]) -> list[Difference]:
    """What differs between the launches of one case on two sides: the work, how it was timed, ranks, threads, libraries."""
    first, second = a[0], b[0]
    work = _mapped("work", _work(first), _work(second))
    chosen = _mapped("setting", _choices(a), _choices(b))
    told = [replace(d, bars=False) if d.name in TUNED and first.settings.get("candidates") else d for d in chosen]
    return [*work, *told, *_observed_clocks(a, b)]


def _described(machine: Machine) -> dict[str, Scalar]:
    cpu = machine.cpu
    gpus = {f"gpu {gpu.index}": _gpu(gpu) for gpu in machine.gpus}
    processor = f"{cpu.model}, {cpu.cores} cores, {cpu.threads} threads" + (f", {cpu.vector}" if cpu.vector else "")
    memory = f"{installed(machine.memory_bytes) / 2**30:.4g} GiB"
    return {"processor": processor, "memory": memory, "virtual": machine.virtual, **_same_as_one(gpus)}


def _same_as_one(gpus: dict[str, str]) -> dict[str, Scalar]:
    """GPUs that are all alike are one line."""
    kinds = set(gpus.values())
    return {"gpus": f"{len(gpus)} × {kinds.pop()}"} if len(kinds) == 1 else dict(gpus)


def _gpu(gpu: Gpu) -> str:
    return gpu.name + (f", {gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "")


def _clocks(machine: Machine) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {"processor's highest, MHz": machine.cpu.clock_max_mhz}
    for gpu in machine.gpus:
        found[f"gpu {gpu.index} highest, MHz"] = gpu.sm_clock_max_mhz
        found[f"gpu {gpu.index} power limit, W"] = gpu.power_limit_w
    return found


def _switches(machine: Machine) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for gpu in machine.gpus:
        found[f"gpu {gpu.index} ECC"] = gpu.ecc
        found[f"gpu {gpu.index} MIG"] = gpu.mig
    return found


def _work(record: Record) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {"ranks": record.ranks}
    if record.workload:
        found |= {name: getattr(record.workload, name) for name in record.workload.__struct_fields__}
    if record.measurement:
        found |= {"clock": record.measurement.clock, "cache": record.measurement.cache}
    return found


def _choices(records: Sequence[Record]) -> dict[str, Scalar]:
    """Settings that all launches of a side share and that are choices, not observations."""
    first = records[0].settings
    return {
        name: value
        for name, value in first.items()
        if name not in OBSERVED
        and not name.startswith(PREFIX)
        and not isinstance(value, float)
        and all(name in r.settings and r.settings[name] == value for r in records)
    }


def _mapped(kind: Kind, a: Mapping[str, Scalar], b: Mapping[str, Scalar]) -> Iterator[Difference]:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield Difference(kind, name, _text(a.get(name)), _text(b.get(name)))


def _text(value: Scalar) -> str:
    return "–" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def _observed_clocks(a: Sequence[Record], b: Sequence[Record]) -> Iterator[Difference]:
    """Clocks that sensors saw while measuring: a note, for a slower clock may be the very fault that is looked for."""
    left, right = _clock_means(a), _clock_means(b)
    for name in left:
        if name in right and abs(right[name] / left[name] - 1) > CLOCK_TOLERANCE:
            yield Difference("clock", name.replace("_", " "), f"{left[name]:.0f}", f"{right[name]:.0f}", bars=False)


def _clock_means(records: Sequence[Record]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.telemetry.items():
            if name.endswith("_mhz_median") and isinstance(value, int | float) and value > 0:
                found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}
