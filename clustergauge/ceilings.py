"""What physics allows: the highest rate a device can reach, with its source.  Unknown is ``None``, never 0 or infinity.

The figures are data (``ceilings.toml``), each with its source and whether it is firm.  A name that is not exactly known, a slice
of a part, or several devices together have no ceiling here: a wrong one would call a good number a lie.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from clustergauge.errors import UsageError
from clustergauge.model import DTYPES, Cpu, Gpu, Machine, Metric, Record

Vector = Literal["sse2", "avx2", "avx512", "amx", "neon", "sve"]
Peak = Literal["fp64", "fp64_matrix", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]

ROUNDING = 0.02
"""Data sheets round to two or three digits: so far above a printed figure the true one may lie."""
_MEMORY_SLACK = 0.2
"""A device reports somewhat more or less memory than it is sold with (GiB for GB, ECC); a slice differs by more."""
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


# --------------------------------------------------------------------------------------------------------------------------
# the data


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One number of a data sheet.  ``source``: keys of ``[sources]``, or a text of its own; at least one."""

    value: Positive
    firm: bool = False
    source: Annotated[list[Text], msgspec.Meta(min_length=1)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of accelerator; the fields and units are described at the head of ``ceilings.toml``."""

    name: Text
    device_names: list[Text] = []
    arch: str = ""
    memory_gb: list[Positive] = []
    note: str = ""
    clock_mhz: Figure | None = None
    matrix_clock_mhz: Figure | None = None
    bandwidth_gb_s: Figure | None = None
    l2_mib: Figure | None = None
    peak: dict[Peak, Figure] = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of ceilings: ours, or a user's that is laid over it."""

    schema: int = 1
    sources: dict[str, Text] = {}
    cores: dict[Vector, dict[Peak, Figure]] = {}
    parts: list[Part] = []


@dataclass(frozen=True)
class Catalogue:
    """All that is known.  ``cores``: operations of one core in one cycle, by vector unit and dtype."""

    sources: Mapping[str, str]
    cores: Mapping[str, Mapping[str, Figure]]
    parts: Mapping[str, Part]
    exact: Mapping[str, Part]
    """By device name, as the driver writes it."""
    normal: Mapping[str, Part]
    """By device name in its normal form (`normal_name`)."""


@functools.cache
def known() -> Catalogue:
    """Our own figures; read once."""
    text = resources.files("clustergauge").joinpath("ceilings.toml").read_text(encoding="utf-8")
    file = _parse(text, "ceilings.toml")
    return _catalogue(file.sources, _plain(file), file.parts, "ceilings.toml")


def load(path: Path) -> Catalogue:
    """A user's own file laid over ours: a part of the same name keeps what the file does not say.

    Every mistake in it is a `UsageError` naming file and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no file of ceilings {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read ceilings {path}: {error}") from None
    own, base = _parse(text, str(path)), known()
    names = [part.name for part in own.parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{path}: two parts are named {twice!r}")
    taken = {normal_name(name) for part in own.parts for name in part.device_names}
    parts = {
        name: msgspec.structs.replace(part, device_names=[n for n in part.device_names if normal_name(n) not in taken])
        for name, part in base.parts.items()
    }
    for part in own.parts:
        parts[part.name] = _over(base.parts.get(part.name), part)
    cores = {**base.cores, **{unit: {**base.cores.get(unit, {}), **rates} for unit, rates in _plain(own).items()}}
    return _catalogue({**base.sources, **own.sources}, cores, parts.values(), str(path))


def _parse(text: str, path: str) -> _File:
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from None
    if file.schema != 1:
        raise UsageError(f"{path}: schema {file.schema} is not known (this version reads 1)")
    return file


def _over(base: Part | None, own: Part) -> Part:
    """The fields that ``own`` gives, over those of ``base``."""
    if base is None:
        return own
    given = {name: value for name in own.__struct_fields__ if (value := getattr(own, name)) not in (None, "", [], {})}
    given["device_names"] = [*base.device_names, *own.device_names]
    return msgspec.structs.replace(base, **{**given, "peak": {**base.peak, **own.peak}})


def _plain(file: _File) -> dict[str, dict[str, Figure]]:
    return {unit: {**rates} for unit, rates in file.cores.items()}


def _catalogue(
    sources: Mapping[str, str], cores: Mapping[str, Mapping[str, Figure]], parts: Iterable[Part], path: str
) -> Catalogue:
    parts = list(parts)
    exact: dict[str, Part] = {}
    normal: dict[str, Part] = {}
    for part in parts:
        for name in part.device_names:
            other = normal.setdefault(normal_name(name), part)
            if other is not part:
                raise UsageError(f"{path}: device name {name!r} belongs to both {other.name!r} and {part.name!r}")
            exact[name] = part
    return Catalogue(sources, cores, {part.name: part for part in parts}, exact, normal)


# --------------------------------------------------------------------------------------------------------------------------
# which part is it


def normal_name(name: str) -> str:
    """A device name without its vendor, in small letters, with single blanks between its words.  Keeps every other word."""
    return re.sub(r"^(nvidia|amd) ", "", " ".join(re.split(r"[\s_-]+", name.strip().casefold())))


def part_of(gpu: Gpu, catalogue: Catalogue | None = None) -> Part | None:
    """The part a device is, or ``None``: unknown, another variant, or a slice of one (MIG, a partition, a virtual GPU).

    The name must be known exactly, or in its normal form, or with the size of its memory put behind it; then architecture and
    memory, where the device tells them, must agree too.
    """
    catalogue = catalogue or known()
    part = catalogue.exact.get(gpu.name) or catalogue.normal.get(normal_name(gpu.name))
    if part is None and (match := re.fullmatch(r"(.+) (\d{1,4}) ?gb", normal_name(gpu.name), re.ASCII)):
        part = catalogue.normal.get(match[1])
        if part and int(match[2]) not in part.memory_gb:
            return None
    if part is None or gpu.mig or (gpu.arch and part.arch and gpu.arch.partition(":")[0] != part.arch):
        return None
    if gpu.memory_bytes is not None and part.memory_gb:
        ratios = [gpu.memory_bytes / (size * 1e9) for size in part.memory_gb]
        if not any(abs(ratio - 1) <= _MEMORY_SLACK for ratio in ratios):
            return None
    return part


def _gpu_of(record: Record, machine: Machine) -> Gpu | None:
    """The device a record ran on: by UUID or PCI address where the placement has one, else by its number."""
    place = record.placement[0] if record.placement else None
    if place and place.device.lower().startswith(("gpu-", "mig-")):
        return next((gpu for gpu in machine.gpus if gpu.uuid == place.device), None)
    if place and place.pci:
        return next((gpu for gpu in machine.gpus if gpu.pci == place.pci), None)
    return next((gpu for gpu in machine.gpus if record.device == f"cuda:{gpu.index}"), None)


# --------------------------------------------------------------------------------------------------------------------------
# ceilings


def ceiling(record: Record, machine: Machine, metric: Metric, catalogue: Catalogue | None = None) -> Ceiling | None:
    """The most ``metric`` can be for a record of ``machine``; ``None`` where that is not known.

    ``compute`` on a GPU: the dense peak of the workload's dtype.  ``bandwidth`` on a GPU: that of its memory, for memory-bound
    work on cold caches (a cache has another ceiling).  ``compute`` on a processor, never firm:

        cores × highest clock × operations per core and cycle = units × lanes × 2 (a multiply-add is two)

    with the most units any core of that vector width has (the rates and their sources are in ``ceilings.toml``).  There is none
    for the memory of a processor (its channels are not known here), for links, or for several devices together.
    """
    catalogue = catalogue or known()
    if record.workload is None or record.ranks != 1 or metric.better != "higher":
        return None
    if record.device.startswith("cuda"):
        gpu = _gpu_of(record, machine)
        part = part_of(gpu, catalogue) if gpu else None
        return _of_gpu(record, gpu, part, metric, catalogue) if gpu and part else None
    return _of_cpu(record.workload.dtype, machine.cpu, metric, catalogue) if metric.name == "compute" else None


def _of_gpu(record: Record, gpu: Gpu, part: Part, metric: Metric, catalogue: Catalogue) -> Ceiling | None:
    workload, measured = record.workload, record.measurement
    if workload and metric.name == "compute" and metric.unit == _unit(workload.dtype):
        return _peak(workload.dtype, gpu, part, metric, catalogue)
    if metric.name == "bandwidth" and metric.unit == "B/s" and workload and workload.bound == "memory":
        figure = part.bandwidth_gb_s
        if figure and measured and measured.cache == "cold":
            value = figure.value * 1e9
            firm = figure.firm and not _within(metric, value, value * (1 + ROUNDING))
            return Ceiling(value, "B/s", firm, f"{part.name}, memory: {_cited(figure, catalogue)}")
    return None


def _peak(dtype: str, gpu: Gpu, part: Part, metric: Metric, catalogue: Catalogue) -> Ceiling | None:
    """The faster of vector and matrix units.  Firm only if all clocks are known: a device may run faster than its data sheet."""
    units = ("fp64", "fp64_matrix") if dtype == "fp64" else (dtype,) if dtype in DTYPES else ()
    peaks = [(unit, figure) for unit, figure in part.peak.items() if unit in units]
    unit, figure = max(peaks, key=lambda peak: peak[1].value, default=(None, None))
    if unit is None or figure is None:
        return None
    clock = part.clock_mhz if unit in _VECTOR_CLOCK else part.matrix_clock_mhz
    value = figure.value * 1e12
    words, firm = f"{part.name}, {unit.replace('_', ' ')} dense", False
    if clock:
        words += f" at {clock.value:g} MHz"
        if gpu.sm_clock_max_mhz and figure.firm and clock.firm:
            reach = value * max(1.0, gpu.sm_clock_max_mhz / clock.value) * (1 + ROUNDING)
            firm = not _within(metric, value, reach)
    return Ceiling(value, metric.unit, firm, f"{words}: {_cited(figure, catalogue)}")


def _of_cpu(dtype: str, cpu: Cpu, metric: Metric, catalogue: Catalogue) -> Ceiling | None:
    figure = catalogue.cores[cpu.vector].get(dtype) if cpu.vector in catalogue.cores else None
    if figure is None or cpu.clock_max_mhz is None or cpu.clock_max_mhz <= 0 or cpu.cores < 1 or metric.unit != _unit(dtype):
        return None
    words = (
        f"estimated: {cpu.cores} cores × {cpu.clock_max_mhz:g} MHz × {figure.value:g} operations a cycle, "
        f"the most of any {cpu.vector} core"
    )
    value = cpu.cores * cpu.clock_max_mhz * 1e6 * figure.value
    return Ceiling(value, metric.unit, False, f"{words}: {_cited(figure, catalogue)}")


def _unit(dtype: str) -> str:
    """What `metrics` counts work of the dtype in."""
    return "OP/s" if dtype == "int8" else "FLOP/s"


def _within(metric: Metric, value: float, reach: float) -> bool:
    """Whether the metric lies above ``value`` but may be true; judged by the low end of its interval, as verdicts are."""
    return value < (metric.value if metric.low is None else metric.low) <= reach


def _cited(figure: Figure, catalogue: Catalogue) -> str:
    return ", ".join(catalogue.sources.get(source, source) for source in figure.source)
