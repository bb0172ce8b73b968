"""What physics allows: the highest rate a device can reach, with its source.  Unknown is ``None``, never 0 or infinity.

The figures are those of `catalogue`.  Several devices together have no ceiling here: a wrong one would call a good number a lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from clustergauge.catalogue import Catalogue, Figure, Part, known, part_of, part_of_cpu
from clustergauge.model import DTYPES, Cpu, Gpu, Machine, Metric, Record

ROUNDING = 0.02
"""Data sheets round to two or three digits: so far above a printed figure the true one may lie."""
_VECTOR_CLOCK = ("fp64", "fp64_matrix", "fp32")
"""Whose peaks hold at `Part.clock_mhz`; the others at ``matrix_clock_mhz``."""


@dataclass(frozen=True)
class Ceiling:
    """The most that a metric can be, in its bare ``unit``.

    ``firm``: the metric it was asked for cannot truly lie above it.  Not firm: the figure is estimated or unconfirmed, or the
    metric lies no further above it than the device's highest clock and the rounding of data sheets explain.
    """

    value: float
    unit: str
    firm: bool
    source: str
    clock_mhz: float | None = None
    """The clock that the figure holds at; of memory, or where it is not known, ``None``."""


class Under(NamedTuple):
    """The parts whose figures a record is held against: ``number`` of one kind, whose clock goes up to ``highest_mhz``."""

    part: Part
    number: int
    highest_mhz: float | None


# --------------------------------------------------------------------------------------------------------------------------
# ceilings


def ceiling(record: Record, machine: Machine, metric: Metric, catalogue: Catalogue | None = None) -> Ceiling | None:
    """The most ``metric`` can be for a record of ``machine``; ``None`` where that is not known.

    ``compute`` on a GPU: the dense peak of the workload's dtype.  ``bandwidth`` on a GPU: that of its memory, for memory-bound
    work on cold caches (a cache has another ceiling).  Both on a processor that the user's file names: its figures × sockets.
    ``compute`` on any other processor, never firm:

        cores × highest clock × operations per core and cycle = units × lanes × 2 (a multiply-add is two)

    with the most units any core of that vector width has (the rates and their sources are in ``ceilings.toml``).  There is none
    for the memory of such a processor (its channels are not known here), for links, or for several devices together.
    """
    catalogue = catalogue or known()
    if record.workload is None or record.ranks != 1 or metric.better != "higher":
        return None
    there = under(record, machine, catalogue)
    if there and (limit := _of_part(record, there, metric, catalogue)):
        return limit
    if record.device.startswith("cuda") or metric.name != "compute":
        return None
    return _of_cpu(record.workload.dtype, machine.cpu, metric, catalogue)


def under(record: Record, machine: Machine, catalogue: Catalogue) -> Under | None:
    """The known parts that a record of one rank ran on: its GPU, or all sockets; ``None`` where they are not known."""
    if record.device.startswith("cuda"):
        gpu = _gpu_of(record, machine)
        part = part_of(gpu, catalogue) if gpu else None
        return Under(part, 1, gpu.sm_clock_max_mhz) if gpu and part else None
    part, sockets = part_of_cpu(machine.cpu, catalogue), machine.cpu.sockets
    if part is None or not sockets:
        return None
    highest = machine.cpu.clock_max_mhz or (part.clock_mhz.value if part.clock_mhz else None)  # what the file calls it
    return Under(replace(part, matrix_clock_mhz=part.matrix_clock_mhz or part.clock_mhz), sockets, highest)


def _gpu_of(record: Record, machine: Machine) -> Gpu | None:
    """The device a record ran on: by UUID or PCI address where the placement has one, else by its number."""
    place = record.placement[0] if record.placement else None
    if place and place.device.lower().startswith(("gpu-", "mig-")):
        return next((gpu for gpu in machine.gpus if gpu.uuid == place.device), None)
    if place and place.pci:
        return next((gpu for gpu in machine.gpus if gpu.pci == place.pci), None)
    return next((gpu for gpu in machine.gpus if record.device == f"cuda:{gpu.index}"), None)


def of_machines(
    machines: Mapping[str, Machine], catalogue: Catalogue | None = None
) -> Callable[[Record, Metric], Ceiling | None]:
    """`ceiling` by record and metric, as verdicts, warnings and reports ask for it; ``None`` for a machine that is not here."""

    def limit(record: Record, metric: Metric) -> Ceiling | None:
        machine = machines.get(record.machine_id)
        return ceiling(record, machine, metric, catalogue) if machine else None

    return limit


def observed_mhz(record: Record) -> float | None:
    """The clock that a record's device had while its samples were taken, their median; ``None`` where it was not read then."""
    part = f"gpu{record.device.removeprefix('cuda:')}_sm" if record.device.startswith("cuda") else "cpu"
    mhz = record.telemetry.get(f"{part}_mhz_median") if record.telemetry.get("window") == "sampling" else None
    return float(mhz) if isinstance(mhz, int | float) and mhz > 0 else None


def at_clock(limit: Ceiling, mhz: float) -> float | None:
    """What a ceiling of compute units is at another clock, which their rate follows; ``None`` where its own is not known."""
    return limit.value * mhz / limit.clock_mhz if limit.clock_mhz else None


def _of_part(record: Record, there: Under, metric: Metric, catalogue: Catalogue) -> Ceiling | None:
    """Of known parts, all of them together."""
    (part, count, _), workload, measured = there, record.workload, record.measurement
    if workload and metric.name == "compute" and metric.unit == _unit(workload.dtype):
        return _peak(workload.dtype, there, metric, catalogue)
    if metric.name == "bandwidth" and metric.unit == "B/s" and workload and workload.bound == "memory":
        figure = part.bandwidth_gb_s
        if figure and measured and measured.cache == "cold":
            value = figure.value * 1e9 * count
            rounded = _within(metric, value, value * (1 + ROUNDING))
            words = f"{_named(part, count)}, memory: {_cited(figure, catalogue)}"
            words += "; no proof: figures are rounded" if figure.firm and rounded else ""
            return Ceiling(value, "B/s", figure.firm and not rounded, words)
    return None


def _peak(dtype: str, there: Under, metric: Metric, catalogue: Catalogue) -> Ceiling | None:
    """The faster of vector and matrix units.  Firm only if all clocks are known: a device may run faster than its data sheet."""
    part, count, highest_mhz = there
    units = ("fp64", "fp64_matrix") if dtype == "fp64" else (dtype,) if dtype in DTYPES else ()
    peaks = [(unit, figure) for unit, figure in part.peak.items() if unit in units]
    unit, figure = max(peaks, key=lambda peak: peak[1].value, default=(None, None))
    if unit is None or figure is None:
        return None
    clock = part.clock_mhz if unit in _VECTOR_CLOCK else part.matrix_clock_mhz
    value = figure.value * 1e12 * count
    words = f"{_named(part, count)}, {unit.replace('_', ' ')} dense" + (f" at {clock.value:g} MHz" if clock else "")
    doubt = ""
    if figure.firm and _within(metric, value, math.inf):
        doubt = _no_proof(metric, value, clock, highest_mhz)
    firm = figure.firm and bool(clock and clock.firm and highest_mhz) and not doubt
    words = f"{words}: {_cited(figure, catalogue)}{doubt and f'; no proof: {doubt}'}"
    return Ceiling(value, metric.unit, firm, words, clock.value if clock else None)


def _no_proof(metric: Metric, value: float, clock: Figure | None, highest_mhz: float | None) -> str:
    """Why a metric above a firm figure may be true all the same, in words; empty where it cannot."""
    if clock is None:
        return "the clock that the figure holds at is not given"
    if not clock.firm:
        return "the clock that the figure holds at is not firm"
    if not highest_mhz:
        return "the highest clock of this device is not known here"
    reach = value * max(1.0, highest_mhz / clock.value) * (1 + ROUNDING)
    return f"its clock goes up to {highest_mhz:g} MHz, and figures are rounded" if _within(metric, value, reach) else ""


def _of_cpu(dtype: str, cpu: Cpu, metric: Metric, catalogue: Catalogue) -> Ceiling | None:
    figure = catalogue.cores[cpu.vector].get(dtype) if cpu.vector in catalogue.cores else None
    if figure is None or cpu.clock_max_mhz is None or cpu.clock_max_mhz <= 0 or cpu.cores < 1 or metric.unit != _unit(dtype):
        return None
    words = (
        f"estimated: {cpu.cores} cores × {cpu.clock_max_mhz:g} MHz × {figure.value:g} operations a cycle, "
        f"the most of any {cpu.vector} core"
    )
    value = cpu.cores * cpu.clock_max_mhz * 1e6 * figure.value
    return Ceiling(value, metric.unit, False, f"{words}: {_cited(figure, catalogue)}", cpu.clock_max_mhz)


def _named(part: Part, count: int) -> str:
    return part.name if count == 1 else f"{count} × {part.name}"


def _unit(dtype: str) -> str:
    """What `metrics` counts work of the dtype in."""
    return "OP/s" if dtype == "int8" else "FLOP/s"


def _within(metric: Metric, value: float, reach: float) -> bool:
    """Whether the metric lies above ``value`` but may be true; judged by the low end of its interval, as verdicts are."""
    return value < (metric.value if metric.low is None else metric.low) <= reach


def _cited(figure: Figure, catalogue: Catalogue) -> str:
    return ", ".join(catalogue.sources.get(source, source) for source in figure.source)
