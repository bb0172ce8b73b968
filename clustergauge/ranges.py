"""Which values an axis of a probe takes, and in what words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clustergauge.errors import UsageError
from clustergauge.model import Scalar
from clustergauge.probe import Probe
from clustergauge.units import format_size, parse_size

RANGES = {"block", "compute", "concurrency", "depth", "files", "workers"}
"""Axes of which any value between the least and the largest declared is allowed."""


def is_open(axis: str) -> bool:
    """Axes whose declared values are a ladder of examples rather than all that is allowed."""
    return axis in {"size", "shape", "heads", "seq", "batch"}


def knows(probe: Probe, axis: str, value: Scalar) -> bool:
    """Whether the probe has cases of this value."""
    declared = probe.axes[axis]
    if is_open(axis) or not declared:
        return True
    if axis not in RANGES:
        return value in declared
    return type(value) is type(declared[0]) and min(map(_number, declared)) <= _number(value) <= max(map(_number, declared))


def words(axis: str, declared: Iterable[Scalar]) -> str:
    """What is known, for a person."""
    if axis not in RANGES:
        return ", ".join(map(str, declared))
    ordered = sorted(declared, key=_number)
    kind = "size" if isinstance(ordered[0], str) else "whole number"
    return f"any {kind} from {ordered[0]} to {ordered[-1]}"


def value(axis: str, given: Scalar, where: str) -> Scalar:
    """The value as cases have it.  ``where`` it was given.  Raises `UsageError` where it is no size and has to be one."""
    if axis == "block" and type(given) is int and given >= 0:
        return format_size(given)
    if axis in ("size", "block") and isinstance(given, str):
        try:
            size = parse_size(given)
        except ValueError as error:
            raise UsageError(f"{where}: {axis}: {error}") from None
        return size if axis == "size" else format_size(size)
    if where == "--set" and isinstance(given, str) and given.isdigit() and axis != "shape":
        return int(given)
    return given


def values(given: Mapping[str, Sequence[Scalar]], where: str) -> dict[str, list[Scalar]]:
    """The same of several axes."""
    return {axis: [value(axis, each, where) for each in some] for axis, some in given.items()}


def refuse_unknown(wished: Mapping[str, Sequence[str]], probes: Mapping[str, Probe]) -> None:
    """Raise `UsageError` for an axis, or a value of one, that no probe knows.  ``wished``: by ``--set``."""
    for axis, given in wished.items():
        having = [probe for probe in probes.values() if axis in probe.axes]
        if not having:
            known = sorted({axis for probe in probes.values() for axis in probe.axes})
            raise UsageError(f"--set {axis}: no probe has this axis (there are {', '.join(known)})")
        for each in given:
            if not any(knows(probe, axis, value(axis, each, "--set")) for probe in having):
                known = words(axis, dict.fromkeys(v for probe in having for v in probe.axes[axis]))
                raise UsageError(f"--set {axis}={each}: no probe knows this value (known: {known})")


def _number(of: Scalar) -> float:
    return parse_size(of) if isinstance(of, str) else float(of or 0)
