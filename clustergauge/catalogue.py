"""The parts whose limits are known, each figure with its source: our own data (``ceilings.toml``) and a user's laid over it.

A name that is not exactly known, or a slice of a part, is no part here: a wrong one would call a good number a lie.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from clustergauge import toml
from clustergauge.errors import UsageError
from clustergauge.model import Cpu, Gpu, Scalar

Vector = Literal["sse2", "avx2", "avx512", "amx", "neon", "sve"]
Peak = Literal["fp64", "fp64_matrix", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]

_MEMORY_SLACK = 0.2
"""A device reports somewhat more or less memory than it is sold with (GiB for GB, ECC); a slice differs by more."""


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One number of a data sheet.  ``source``: keys of ``[sources]``, or a text of its own; at least one."""

    value: Positive
    firm: bool = False
    source: Annotated[list[Text], msgspec.Meta(min_length=1)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of accelerator, or of processor; the fields and units are described at the head of ``ceilings.toml``."""

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
    path: str = ""
    """The user's file that was laid over ours, its SHA-256 and what it holds; empty without one."""
    sha256: str = ""
    content: bytes = b""


@functools.cache
def known() -> Catalogue:
    """Our own figures; read once."""
    file = _parse(resources.files("clustergauge").joinpath("ceilings.toml").read_text(encoding="utf-8"))
    return _catalogue(file.sources, _plain(file), file.parts)


def load(path: Path) -> Catalogue:
    """A user's own file laid over ours: a part of the same name keeps what the file does not say.

    Every mistake in it is a `UsageError` naming file and field.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"no file of ceilings {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read ceilings {path}: {error}") from None
    try:
        laid_over = _laid_over(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return replace(laid_over, path=str(path), sha256=hashlib.sha256(content).hexdigest(), content=content)


@functools.lru_cache(8)
def _laid_over(text: str) -> Catalogue:
    """A file laid over ours.  The runs of a fleet keep the same one again and again."""
    own, base = _parse(text), known()
    names = [part.name for part in own.parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two parts are named {twice!r}")
    taken = {normal_name(name) for part in own.parts for name in part.device_names}
    parts = {
        name: msgspec.structs.replace(part, device_names=[n for n in part.device_names if normal_name(n) not in taken])
        for name, part in base.parts.items()
    }
    for part in own.parts:
        parts[part.name] = _over(base.parts.get(part.name), part)
    cores = {**base.cores, **{unit: {**base.cores.get(unit, {}), **rates} for unit, rates in _plain(own).items()}}
    return _catalogue({**base.sources, **own.sources}, cores, parts.values())


def _parse(text: str) -> _File:
    try:
        file = msgspec.convert(toml.parse(text), _File)
    except ValueError as error:
        raise UsageError(f"{error}{_fields_there(str(error))}") from None
    if file.schema != 1:
        raise UsageError(f"schema {file.schema} is not known (this version reads 1)")
    return file


def _fields_there(problem: str) -> str:
    """The fields that there are, where a file has one that there is not."""
    if "unknown field" not in problem:
        return ""
    where = re.search(r"`\$\.?(\w*)", problem)
    kind = _File if where is None or not where[1] else Part
    if re.search(r"\.(?:clock_mhz|matrix_clock_mhz|bandwidth_gb_s|l2_mib)`|\.peak\[|`\$\.cores", problem):
        kind = Figure
    return f" (there are: {', '.join(kind.__struct_fields__)})"


def _over(base: Part | None, own: Part) -> Part:
    """The fields that ``own`` gives, over those of ``base``."""
    if base is None:
        return own
    given = {name: value for name in own.__struct_fields__ if (value := getattr(own, name)) not in (None, "", [], {})}
    given["device_names"] = [*base.device_names, *own.device_names]
    return msgspec.structs.replace(base, **{**given, "peak": {**base.peak, **own.peak}})


def _plain(file: _File) -> dict[str, dict[str, Figure]]:
    return {unit: {**rates} for unit, rates in file.cores.items()}


def _catalogue(sources: Mapping[str, str], cores: Mapping[str, Mapping[str, Figure]], parts: Iterable[Part]) -> Catalogue:
    parts = list(parts)
    exact: dict[str, Part] = {}
    normal: dict[str, Part] = {}
    for part in parts:
        for name in part.device_names:
            other = normal.setdefault(normal_name(name), part)
            if other is not part:
                raise UsageError(f"device name {name!r} belongs to both {other.name!r} and {part.name!r}")
            exact[name] = part
    return Catalogue(sources, cores, {part.name: part for part in parts}, exact, normal)


# --------------------------------------------------------------------------------------------------------------------------
# which part is it


@functools.lru_cache(1024)
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


def part_of_cpu(cpu: Cpu, catalogue: Catalogue) -> Part | None:
    """The part that a processor is named as, by its model as the kernel writes it; only a user's file names any."""
    return catalogue.exact.get(cpu.model) or catalogue.normal.get(normal_name(cpu.model))


def remembered(catalogue: Catalogue | None) -> dict[str, Scalar]:
    """What a run keeps of the ceilings it was held against."""
    return {"ceilings": catalogue.path, "ceilings_sha256": catalogue.sha256} if catalogue else {}
