"""Which values an axis of a probe takes, and in what words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clustergauge.errors import UsageError
from clustergauge.model import Scalar
from clustergauge.probe import Probe
from clustergauge.units import format_size, parse_size

OPEN = {"size", "shape", "heads", "seq", "batch"}
"""Axes whose declared values are a ladder of examples rather than all that is allowed."""
COUNTED = {"block", "compute", "concurrency", "depth", "files", "workers"}
"""Axes of which any value between the least and the largest declared is allowed, where these are whole numbers (of ``block``
sizes, too: a probe may call something else so, and then has the values that it declares)."""


def knows(probe: Probe, axis: str, value: Scalar) -> bool:
    """Whether the probe has cases of this value."""
    declared = probe.axes[axis]
    if axis in OPEN or not declared:
        return True
    if not _is_range(axis, declared):
        return value in declared
    return type(value) is type(declared[0]) and min(map(_number, declared)) <= _number(value) <= max(map(_number, declared))


def words(axis: str, declared: Iterable[Scalar]) -> str:
    """What is known, for a person."""
    ordered = list(declared)
    if not _is_range(axis, ordered):
        return ", ".join(map(str, ordered))
    kind = "size" if isinstance(ordered[0], str) else "whole number"
    return f"any {kind} from {min(ordered, key=_number)} to {max(ordered, key=_number)}"


def value(probe: Probe, axis: str, given: Scalar, where: str) -> Scalar:
    """The value as cases of this probe have it.  ``where`` it was given.  Raises `UsageError` for a ``size`` that is none."""
    if axis == "size" and isinstance(given, str):
        try:
            return parse_size(given)
        except ValueError as error:
            raise UsageError(f"{where}: {axis}: {error}") from None
    if _are_sizes(axis, probe.axes.get(axis, ())):
        size = _number(given)
        return given if size < 0 else format_size(size)
    if where == "--set" and isinstance(given, str) and given.isdigit() and axis != "shape":
        return int(given)
    return given


def values(probe: Probe, given: Mapping[str, Sequence[Scalar]], where: str) -> dict[str, list[Scalar]]:
    """The same of several axes."""
    return {axis: [value(probe, axis, each, where) for each in some] for axis, some in given.items()}


def wished(probe: Probe, axis: str, given: Sequence[str]) -> list[Scalar]:
    """Of the values that ``--set`` gives an axis of the probe those that it knows; the others are another's."""
    return [found for each in given if knows(probe, axis, found := value(probe, axis, each, "--set"))]


def refuse_unknown(wish: Mapping[str, Sequence[str]], probes: Mapping[str, Probe]) -> None:
    """Raise `UsageError` for an axis, or a value of one, that no probe knows.  ``wish``: by ``--set``."""
    for axis, given in wish.items():
        having = [probe for probe in probes.values() if axis in probe.axes]
        if not having:
            known = sorted({axis for probe in probes.values() for axis in probe.axes})
            raise UsageError(f"--set {axis}: no probe has this axis (there are {', '.join(known)})")
        for each in given:
            if not any(wished(probe, axis, [each]) for probe in having):
                raise UsageError(f"--set {axis}={each}: no probe knows this value (known: {_all_words(axis, having)})")


def _all_words(axis: str, having: Sequence[Probe]) -> str:
    """What these probes know together."""
    ranges, others = ([p.axes[axis] for p in having if _is_range(axis, p.axes[axis]) == is_range] for is_range in (True, False))
    return ", ".join(words(axis, dict.fromkeys(v for some in each for v in some)) for each in (ranges, others) if each)


def _is_range(axis: str, declared: Sequence[Scalar]) -> bool:
    counted = axis in COUNTED and bool(declared) and all(type(each) is int for each in declared)
    return counted or _are_sizes(axis, declared)


def _are_sizes(axis: str, declared: Sequence[Scalar]) -> bool:
    return axis == "block" and bool(declared) and all(isinstance(each, str) and _number(each) >= 0 for each in declared)


def _number(of: Scalar) -> int:
    """Bytes of a size, a whole number as it is; negative for all else."""
    if isinstance(of, str):
        try:
            return parse_size(of)
        except ValueError:
            return -1
    return of if type(of) is int else -1
