"""States of links: what they mean in numbers, and which of them trained down during a case.  Pure.

A link that comes up slower or narrower than it can (a bad cable, a dirty connector, a card that is not seated) still works, so
nothing but its state tells.  Formats: ``rate`` as in the kernel's Documentation/ABI/stable/sysfs-class-infiniband and
drivers/infiniband/core/sysfs.c; ``current_link_speed`` and its like as in Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from clustergauge.model import Scalar

_RATE = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,2})?) Gb/sec(?: \(([0-9]{1,2})X(?: ([A-Z][A-Z0-9]{1,5}))?\))?", re.ASCII)
_PCIE = re.compile(r"([0-9]{1,3}(?:\.[0-9])?) GT/s(?: PCIe)?", re.ASCII)


class Rate(NamedTuple):
    """State of an InfiniBand port: Gbit/s, lanes (0: not said) and the name of its speed (empty: not said)."""

    gbit_s: float
    lanes: int
    speed: str


def parse_rate(text: str | None) -> Rate | None:
    """``100 Gb/sec (4X EDR)``; ``None`` for anything else."""
    match = _RATE.fullmatch(text or "")
    return Rate(float(match[1]), int(match[2] or 0), match[3] or "") if match and float(match[1]) > 0 else None


def parse_pcie_speed(text: str | None) -> float | None:
    """``16.0 GT/s PCIe`` in GT/s; ``None`` for anything else (``Unknown``)."""
    match = _PCIE.fullmatch(text or "")
    return float(match[1]) if match and float(match[1]) > 0 else None


def parse_width(text: str | None) -> int | None:
    """Lanes of a PCIe link: ``16`` or ``x16``; ``None`` for what is none (0 and 255 mean unknown)."""
    match = re.fullmatch(r"x?([0-9]{1,2})", text or "", re.ASCII)
    return int(match[1]) if match and 1 <= int(match[1]) <= 32 else None


# --------------------------------------------------------------------------------------------------------------------------
# during a case


def _gbit_s(text: str) -> float | None:
    rate = parse_rate(text)
    return rate.gbit_s if rate else None


def _count(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,4}", text, re.ASCII) else None


_STATES: dict[str, Callable[[str], float | None]] = {
    "rate": _gbit_s,
    "pcie_width": parse_width,
    "pcie_speed": parse_pcie_speed,
    "nvlinks_up": _count,
}
"""Of the states that `health` reads (last word of their names) those whose fall means that a link trained down."""


def fell(health: Mapping[str, Scalar]) -> list[str]:
    """The links that trained down during a case, in words: ``mlx5_0:1.rate 400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)``."""
    found: list[str] = []
    for name, change in health.items():
        parse = _STATES.get(name.rpartition(".")[2])
        if parse and isinstance(change, str):
            before, _, after = change.partition(" → ")
            first, last = parse(before), parse(after)
            if first is not None and last is not None and last < first:
                found.append(f"{name} {change}")
    return found
