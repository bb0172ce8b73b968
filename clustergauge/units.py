"""Numbers as people write and read them: sizes are binary, rates decimal, durations short."""

from __future__ import annotations

import re
from fractions import Fraction

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_SMALL = ("", "m", "µ", "n", "p", "f", "a")
_RATES = ("FLOP/s", "OP/s", "B/s", "IO/s", "samples/s")
_ENERGIES = ("J/FLOP", "J/OP", "J/B")
_DURATION = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}


def format_size(size: int) -> str:
    """Bytes in the largest binary unit that divides them exactly: ``1GiB``, ``8B``, ``1536KiB``."""
    unit = 0
    while size and size % 1024 == 0 and unit < len(_BINARY) - 1:
        size //= 1024
        unit += 1
    return f"{size}{_BINARY[unit]}"


def about(size: int) -> str:
    """Bytes as a person reads them, to three digits: ``23.5 GiB``."""
    power = next((power for power in (3, 2, 1) if size >= 1 << 10 * power), 0)
    scaled, unit = size / (1 << 10 * power), ("B", "KiB", "MiB", "GiB")[power]
    return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"


def installed(memory_bytes: int) -> int:
    """The memory of a machine whose kernel shows so much of it: up to a sixteenth of its power of two, for the kernel keeps some
    to itself, and not always as much."""
    step = 1 << max(0, memory_bytes.bit_length() - 5)
    return -(-memory_bytes // step) * step


def parse_size(text: str) -> int:
    """Bytes of ``64MiB``, ``1G``, ``4k``, ``512``.  Every unit is binary.  Raises ``ValueError`` with an example."""
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*(?:([KMGTP])I?)?B?\s*", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise ValueError(f"not a size: {text!r} (write 8B, 64KiB, 1GiB)")
    value = Fraction(match[1]) * 1024 ** ("KMGTP".index(match[2].upper()) + 1 if match[2] else 0)
    if value.denominator != 1:
        raise ValueError(f"not a whole number of bytes: {text!r}")
    return value.numerator


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m``, ``1.5h``, ``200ms``.  Raises ``ValueError`` with an example."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|min|m|h)?\s*", text, re.ASCII)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"not a duration: {text!r} (write 90s, 10m, 1.5h)")
    return float(match[1]) * _DURATION[match[2] or ""]


def format_duration(seconds: float) -> str:
    """``812 ms``, ``34 s``, ``3 min 12 s``, ``2 h 5 min``."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_time(seconds: float) -> str:
    """A measured time with three significant digits: ``1.41 ms``, ``850 ns``, ``34.1 s``."""
    for factor, unit in ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms")):
        if abs(seconds) < 999.5 * factor:
            return f"{_three(seconds / factor)} {unit}"
    return f"{_three(seconds)} s"


def format_rate(value: float, unit: str) -> str:
    """A rate with three significant digits and a decimal prefix: ``779 TFLOP/s``, ``2.98 TB/s``, ``1.21 pJ/FLOP``.

    ``unit`` is the bare unit (``FLOP/s``, ``OP/s``, ``B/s``, ``IO/s``, ``samples/s``, ``J/FLOP``, ``J/OP``, ``J/B``); times
    (``s``) go through `format_time`, and fractions (``1``) become percent.
    """
    if unit == "s":
        return format_time(value)
    if unit == "1":
        return f"{_three(100 * value)} %"
    step = 0
    while unit in _ENERGIES and 0 < abs(value) < 0.9995 and step < len(_SMALL) - 1:
        value *= 1000
        step += 1
    if step:
        return f"{_three(value)} {_SMALL[step]}{unit}"
    while abs(value) >= 999.5 and step < len(_DECIMAL) - 1:
        value /= 1000
        step += 1
    return f"{_three(value)} {_DECIMAL[step]}{unit}"


def format_width(fraction: float) -> str:
    """Half of an interval over its middle, ``1.4 %``; one that says nothing at all is ``>999 %``."""
    half = 100 * fraction
    return ">999 %" if half >= 999.5 else f"{half:.0f} %" if half >= 9.95 else f"{half:.1f} %" if half >= 0.05 else "<0.1 %"


def parse_rate(value: float, unit: str) -> tuple[float, str]:
    """A number in a prefixed unit as (number, bare unit): ``(700, "TFLOP/s")`` is ``(7e14, "FLOP/s")``.

    Times (``ms``, ``µs``) become seconds, percent a fraction (``1``).  Raises ``ValueError`` for any other unit.
    """
    times = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    if unit in times:
        return value * times[unit], "s"
    if unit in ("1", "%"):
        return value / 100 if unit == "%" else value, "1"
    for bare in _ENERGIES:
        prefix = unit.removesuffix(bare).replace("u", "µ")
        if unit.endswith(bare) and prefix in _SMALL:
            return value / 1000.0 ** _SMALL.index(prefix), bare
    for bare in (*_RATES, *_ENERGIES):
        prefix = unit.removesuffix(bare)
        if unit.endswith(bare) and prefix in _DECIMAL:
            return value * 1000.0 ** _DECIMAL.index(prefix), bare
    raise ValueError(f"unknown unit {unit!r} (write TFLOP/s, GB/s, TOP/s, kIO/s, ms, pJ/FLOP)")


def counted(count: int, what: str, many: str = "") -> str:
    """``1 case``, ``2 cases``; ``many``: the plural, where an s does not make it."""
    return f"{count} {what}" if count == 1 else f"{count} {many or f'{what}s'}"


def _three(value: float) -> str:
    """Three significant digits; an exponent only below 0.0001."""
    magnitude = abs(value)
    if 0 < magnitude < 0.9995:
        return f"{value:#.3g}"
    return f"{value:.0f}" if magnitude >= 99.95 else f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
