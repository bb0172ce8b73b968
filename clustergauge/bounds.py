"""Bounds of a metric in its bare unit, and on which side of them an interval lies.  Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec.structs import replace

from clustergauge.model import Metric, Outcome
from clustergauge.units import format_rate, parse_rate


@dataclass(frozen=True)
class Asked:
    """The bounds of a metric in its bare unit.  ``width``: how unsure they are themselves (half an interval, relative)."""

    low: float | None
    unit: str
    high: float | None = None
    remark: str = ""
    width: float = 0.0

    def bound_for(self, value: float) -> tuple[float, bool]:
        """The bound that matters for this value, and whether it is a floor."""
        if self.low is not None and (self.high is None or value < math.sqrt(self.low * self.high)):
            return self.low, True
        assert self.high is not None
        return self.high, False

    def side_of(self, metric: Metric) -> tuple[Outcome, str]:
        """On which side of the bounds the interval lies: of both, where there are two."""
        wide = _widened(metric, self.width)
        bounds = ((self.low, True), (self.high, False))
        sides = [_side(wide, bound, at_least) for bound, at_least in bounds if bound is not None]
        order: tuple[Outcome, ...] = ("FAIL", "inconclusive", "pass")
        return min(sides, key=lambda side: order.index(side[0]))


def absolute(value: float | None, unit: str) -> tuple[float, str]:
    """A number in a prefixed unit in its bare one."""
    assert value is not None
    return parse_rate(value, unit)


def fraction(fraction: float | None, whole: float, metric: Metric, remark: str, width: float = 0.0) -> Asked:
    """At least this fraction of what something else reaches; of a time, at most the time over the fraction."""
    assert fraction is not None
    if metric.better == "higher":
        return Asked(fraction * whole, metric.unit, None, remark, width)
    return Asked(None, metric.unit, whole / fraction, remark, width)


def _widened(metric: Metric, width: float) -> Metric:
    """The metric with an interval that holds the doubt of what it is compared with, too."""
    if metric.low is None or metric.high is None or not width or metric.value <= 0:
        return metric
    down, up = (math.hypot(1 - metric.low / metric.value, width), math.hypot(metric.high / metric.value - 1, width))
    return replace(metric, low=metric.value * (1 - down), high=metric.value * (1 + up))


def _side(metric: Metric, bound: float, at_least: bool) -> tuple[Outcome, str]:
    """On which side of the bound the interval lies."""
    if metric.low is None or metric.high is None:
        return "inconclusive", "too few samples for an interval"
    if metric.low >= bound if at_least else metric.high <= bound:
        return "pass", ""
    if metric.high < bound if at_least else metric.low > bound:
        return "FAIL", ""
    low, high = (format_rate(end, metric.unit) for end in (metric.low, metric.high))
    return "inconclusive", f"the bound lies inside the interval: {low} … {high}"
