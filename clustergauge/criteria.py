"""Acceptance files: what cases must reach, and what a machine must be.  Strict: every mistake names file, line and field.

```toml
title = "node of 8 H100"
[expect]
gpus = 8
gpu = "H100"                      # part of each GPU's name
ecc = true
[expect.versions]
nvidia_driver = ">=550"

[[criteria]]
case = "matmul/backend=torch/dtype=bf16/*"
metric = "compute"                # leave it out for the metric that the table shows
floor = 700                       # or limit, of_ceiling, reference, of_baseline, of_peers
unit = "TFLOP/s"
source = "where the figure comes from"
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from clustergauge import metrics, toml
from clustergauge.errors import UsageError
from clustergauge.globs import matches
from clustergauge.model import Criterion, Data, Scalar
from clustergauge.units import parse_rate, parse_size

KINDS = ("floor", "limit", "of_ceiling", "reference", "of_baseline", "of_peers")
"""The ways to say what a case must reach; a criterion has exactly one."""
_ABSOLUTE = ("floor", "limit", "reference")
LEAST_FRACTION = 1e-6
"""Of what else is reached: less asks for nothing."""
BEYOND = 1e24
"""Nothing is measured to be as much, or as little as one over it, in a bare unit; what is derived from such a bound is finite."""
_VERSION = re.compile(r"(>=|==|)\s*(\d[0-9A-Za-z.+-]*)")


class Expect(Data, frozen=True, kw_only=True):
    """What a machine must be; ``None`` and empty: not asked.

    ``gpu``: part of the name of every GPU.  ``gpu_memory``, ``memory``, ``cores``: at least so much (``80GiB``) or so many.
    ``power_limit_w``: at least, of every GPU.  ``nics``: at least so many ports of kind ``nic_kind`` that are up, each of
    ``nic_rate_gbit_s`` at least.  ``versions``: ``>=550``, ``==2.13.0`` or the start of one (``2.13``), by name as the machine's
    description has them.  ``settings``: what a setting of the machine must be.  ``ready``: preflight checks that must be well
    (``*``: all); one that could not be made is not measured.
    """

    gpus: int | None = None
    gpu: str = ""
    gpu_memory: str = ""
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    power_limit_w: float | None = None
    cores: int | None = None
    memory: str = ""
    nics: int | None = None
    nic_kind: str = ""
    nic_rate_gbit_s: float | None = None
    versions: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    settings: dict[str, Scalar] = msgspec.field(default_factory=dict[str, Scalar])
    ready: list[str] = msgspec.field(default_factory=list[str])


class Acceptance(Data, frozen=True, kw_only=True):
    """An acceptance file: ``criteria`` on cases, and what is expected of every machine."""

    criteria: list[Criterion] = msgspec.field(default_factory=list[Criterion])
    expect: Expect | None = None
    schema: int = 1
    title: str = ""
    source: str = ""


NOTHING = Acceptance()
"""No criteria at all."""


def parse(text: str, path: str) -> Acceptance:
    """An acceptance file.  Raises `UsageError` naming file, line and field."""
    text = text.removeprefix("\ufeff")
    try:
        file = msgspec.convert(toml.parse(text), Acceptance)
    except msgspec.ValidationError as error:
        words, _, field = str(error).partition(" - at `$")
        raise UsageError(f"{_located(text, path, field.rstrip('`').lstrip('.'), words)}: {words}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if file.schema != 1:
        raise UsageError(f"{_located(text, path, 'schema')}: {file.schema} is not known (this version reads 1)")
    if not file.criteria and file.expect in (None, Expect()):
        raise UsageError(f"{path}: asks for nothing: needs [[criteria]], or fields in [expect]")
    for number, criterion in enumerate(file.criteria):
        if problem := _problem(criterion):
            field, words = problem
            where = _located(text, path, f"criteria[{number}]" + (f".{field}" if field else ""))
            raise UsageError(f"{where}: {words}")
    if file.expect and (problem := _problem_of_expect(file.expect)):
        raise UsageError(f"{_located(text, path, f'expect.{problem[0]}')}: {problem[1]}")
    source = file.source
    return replace(file, criteria=[replace(c, source=c.source or source) for c in file.criteria])


def kind_of(criterion: Criterion) -> str:
    """Which of `KINDS` a criterion is."""
    return next(kind for kind in KINDS if getattr(criterion, kind) is not None)


def check_fits(criteria: Sequence[Criterion], cases: Collection[str], text: str, path: str) -> None:
    """Raises `UsageError` for the first criterion that is about none of the cases.  ``text``, ``path``: of its file."""
    for number, criterion in enumerate(criteria):
        if not any(matches(criterion.case, case) for case in cases):
            where = _located(text.removeprefix("\ufeff"), path, f"criteria[{number}].case")
            raise UsageError(f"{where}: {criterion.case!r} matches no case of this run")


def _problem(c: Criterion) -> tuple[str, str] | None:
    """The field and what is wrong with it; ``None`` for a criterion that makes sense."""
    given = [kind for kind in KINDS if getattr(c, kind) is not None]
    if len(given) != 1:
        return "", f"needs exactly one of {', '.join(KINDS)}, has {' and '.join(given) or 'none'}"
    kind, value = given[0], float(getattr(c, given[0]))
    if not (math.isfinite(value) and value > 0):
        return kind, f"{value:g}: must be more than 0"
    if kind not in _ABSOLUTE and not LEAST_FRACTION <= value <= 10:
        return kind, f"{value:g} is a fraction: 0.9 is 90 %"
    if (c.lower is not None or c.upper is not None) != (kind == "reference"):
        return ("lower" if kind == "reference" else kind), "a reference needs lower or upper (or both), and nothing else has them"
    if c.lower is not None and not -1 < c.lower <= 0:
        return "lower", f"{c.lower:g}: a fraction of the reference, from -1 to 0 (-0.05: 5 % less is well)"
    if c.upper is not None and not 0 <= c.upper < 10:
        return "upper", f"{c.upper:g}: a fraction of the reference, 0 or more (0.05: 5 % more is well)"
    if c.metric and c.metric not in metrics.UNITS:
        return "metric", f"unknown metric {c.metric!r} (there are {', '.join(metrics.UNITS)})"
    if not c.case:
        return "case", "an empty glob chooses nothing"
    return _problem_of_unit(c, kind, value)


def _problem_of_unit(c: Criterion, kind: str, value: float) -> tuple[str, str] | None:
    if kind not in _ABSOLUTE:
        return ("unit", f"{kind} is a fraction and has no unit") if c.unit else None
    if not c.metric:
        return "metric", f"{kind} needs a metric (there are {', '.join(metrics.UNITS)})"
    try:
        amount, bare = parse_rate(value, c.unit)
    except ValueError as error:
        return "unit", str(error)
    if not 1 / BEYOND < amount < BEYOND:
        return kind, f"{value:g} {c.unit}: beyond all that is measured"
    if bare not in metrics.UNITS[c.metric]:
        return "unit", f"{c.metric} is not measured in {c.unit} (but in {' or '.join(metrics.UNITS[c.metric])})"
    return _wrong_way(c, kind, bare)


def _wrong_way(c: Criterion, kind: str, bare: str) -> tuple[str, str] | None:
    """A bound that the worst machine meets: a time or an energy that must not be less, a rate that must not be more."""
    if bare == "1":
        return None  # a fraction may be asked for either way
    less = bare == "s" or bare.startswith("J/")
    right, side = ("limit", "upper") if less else ("floor", "lower")
    if kind in ("floor", "limit") and kind != right:
        return kind, f"less {c.metric} is better: say limit" if less else f"more {c.metric} is better: say floor"
    if kind == "reference" and getattr(c, side) is None:
        worse = "more" if less else "less"
        return kind, f"lets any machine pass: {side} says how much {worse} {c.metric} is well"
    return None


def _problem_of_expect(expect: Expect) -> tuple[str, str] | None:
    for field in ("gpus", "cores", "nics", "power_limit_w", "nic_rate_gbit_s"):
        value = getattr(expect, field)
        if value is not None and not 0 <= value < 1e9:
            return field, f"{str(value)[:20]}: must be 0 or more, and believable"
    for field in ("nic_kind", "nic_rate_gbit_s"):
        if getattr(expect, field) and expect.nics is None:
            return field, "says which ports are meant: say how many of them with nics"
    for field in ("gpu_memory", "memory"):
        try:
            _ = getattr(expect, field) and parse_size(getattr(expect, field))
        except ValueError as error:
            return field, str(error)
    for name, value in expect.settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"settings.{name}", f"{value}: no setting is that"
    for name, text in expect.versions.items():
        if not _VERSION.fullmatch(text):
            return f"versions.{name}", f"{text!r} is no version (write '>=550', '==2.13.0' or '2.13')"
    return None


def fits(asked: str, found: str) -> bool:
    """Whether a version is as asked: ``>=550.54``, ``==2.13.0``, or one that starts with the numbers given."""
    match = _VERSION.fullmatch(asked)
    assert match, asked
    sign, wanted = match.groups()
    if sign == "==":
        return wanted == found
    if sign == ">=":
        return _numbers(found) >= _numbers(wanted)
    return _numbers(found)[: len(_numbers(wanted))] == _numbers(wanted)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


# --------------------------------------------------------------------------------------------------------------------------
# where


def _located(text: str, path: str, field: str, words: str = "") -> str:
    """``FILE:LINE: FIELD`` (``criteria[1].unit``); the line of the table where the field itself is not written."""
    unknown = re.search(r"unknown field `(\w+)`", words)
    if unknown:
        field = f"{field}.{unknown[1]}".lstrip(".")
    line = line_of(text, field)
    return f"{path}{f':{line}' if line else ''}: {field}" if field else path


def line_of(text: str, field: str) -> int | None:
    """The line (from 1) of a field such as ``criteria[1].unit`` or ``expect.gpus`` in TOML written one value a line."""
    parts = [p for p in re.split(r"\.|(?=\[)", field) if p]
    lines, start, end = text.splitlines(), 0, None
    table, number, rest = _table_of(parts)
    if table:
        header = re.compile(rf"\s*\[\[?\s*{re.escape(table)}\s*\]\]?\s*(#.*)?$")
        heads = [i for i, line in enumerate(lines) if header.match(line)]
        if number < len(heads):
            start = heads[number]
            end = next((i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), None)
        elif not rest:
            return None
    if not rest:
        return start + 1
    key = re.compile(rf"""\s*["']?{re.escape(rest[-1])}["']?\s*=""")
    found = next((i for i in range(start, end or len(lines)) if key.match(lines[i])), None)
    return found + 1 if found is not None else start + 1 if table else None


def _table_of(parts: list[str]) -> tuple[str, int, list[str]]:
    """The table of a field, which of several of its name, and the rest of the path."""
    if len(parts) > 1 and (index := re.fullmatch(r"\[(\d+)\]", parts[1])):
        return parts[0], int(index[1]), parts[2:]
    if len(parts) > 2:
        return ".".join(parts[:-1]), 0, parts[-1:]
    return (parts[0], 0, parts[1:]) if len(parts) == 2 else ("", 0, parts)


def to_toml(acceptance: Acceptance, comment: Sequence[str] = ()) -> str:
    """The file as TOML, as `parse` reads it."""
    lines = [*(f"# {line}" for line in comment), "schema = 1"]
    lines += [f"{name} = {_toml(value)}" for name in ("title", "source") if (value := getattr(acceptance, name))]
    if expect := acceptance.expect:
        tables = {name: value for name in ("versions", "settings") if (value := getattr(expect, name))}
        lines += ["", "[expect]", *_fields(expect, skip=tuple(tables))]
        for name, table in tables.items():
            lines += [f"[expect.{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
    for criterion in acceptance.criteria:
        lines += ["", "[[criteria]]", *_fields(criterion)]
    return "\n".join(lines) + "\n"


def _fields(data: Data, skip: Sequence[str] = ()) -> list[str]:
    """Fields that differ from their defaults."""
    defaults = dict(zip(reversed(data.__struct_fields__), reversed(data.__struct_defaults__), strict=False))
    values = {name: getattr(data, name) for name in data.__struct_fields__ if name not in skip}
    return [
        f"{name} = {_toml(v)}"
        for name, v in values.items()
        if v is not None and v not in ("", [], {}) and _set(name, v, defaults)
    ]


def _set(name: str, value: Any, defaults: dict[str, Any]) -> bool:
    return name not in defaults or value != defaults[name]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")  # a JSON string is a TOML string but for DEL
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"  # pyright: ignore[reportUnknownVariableType]
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)
