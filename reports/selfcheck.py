"""What the selftest found, for people and for machines."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import msgspec

from clustergauge.units import format_time
from reports.layout import Page, put

if TYPE_CHECKING:
    from clustergauge.selftest import Selftest

WIDTH = 79


def show(result: Selftest, form: str) -> None:
    """Print the figures on stdout: a table, or one JSON document."""
    if form == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    else:
        put(page_of(result))


def page_of(result: Selftest) -> Page:
    """The figures as lines at most 79 columns wide."""
    page = Page(WIDTH)
    page.add("selftest: what the gauge makes of what is known")
    if result.known:
        page.gap()
        page.add(f"  {'known duration':<16}{'measured':>12}{'bias':>10}{'±':>9}   limit 2 % above / below")
    for known in result.known:
        width = _percent(known.half_width, "") if known.half_width is not None else "–"
        measured, bias = format_time(known.measured), _percent(known.bias, "+")
        page.add(f"  {format_time(known.seconds):<16}{measured:>12}{bias:>10}{width:>9}   {' / '.join(known.verdicts)}")
    if result.shifts:
        page.gap()
        called = f"called  ({result.launches} + {result.launches} launches)"
        page.add(f"  {'slowdown':<16}{'shown':>12}{'interval':>20}   {called}")
    for shift in result.shifts:
        name = f"{shift.injected:.0%}".replace("%", " %") if shift.injected else "none"
        interval = f"{_percent(shift.low, '+')} … {_percent(shift.high, '+')}"
        page.add(f"  {name:<16}{_percent(shift.shift, '+'):>12}{interval:>20}   {shift.word}")
    if result.known:
        page.gap()
        page.add(f"  overhead per call {_time(result.overhead_s)} · step of the clock {_time(result.tick_s)}")
        smallest = _percent(result.smallest_change, "")
        page.add(f"  smallest change {result.launches} + {result.launches} launches can show here: {smallest}")
    page.gap()
    for problem in result.problems:
        page.wrap(f"problem: {problem}", "  ", "bold red")
    for doubt in result.doubts:
        page.wrap(f"note: {doubt}", "  ", "yellow")
    page.add(f"selftest: {'the gauge contradicts what is known' if result.problems else 'nothing contradicts what is known'}")
    return page


def _time(seconds: float) -> str:
    return "–" if math.isnan(seconds) else format_time(seconds)


def _percent(fraction: float, sign: str) -> str:
    return "–" if math.isnan(fraction) else f"{fraction:{sign}.2%}".replace("%", " %")
