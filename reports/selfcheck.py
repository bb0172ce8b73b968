"""What the selftest found, for people and for machines."""

from __future__ import annotations

import sys

import msgspec

from clustergauge.selftest import Selftest
from clustergauge.units import format_time


def show(result: Selftest, form: str) -> None:
    """Print the figures on stdout: a table, or one JSON document."""
    if form == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    else:
        print("\n".join(lines(result)))


def lines(result: Selftest) -> list[str]:
    """The figures as text, at most 79 columns wide."""
    text = ["selftest: what the gauge makes of what is known", ""]
    if result.known:
        text.append(f"  {'known duration':<16}{'measured':>12}{'bias':>10}{'±':>9}   limit 2 % above / below")
    for known in result.known:
        width = f"{known.half_width:.2%}" if known.half_width is not None else "–"
        verdicts = " / ".join(known.verdicts)
        text.append(
            f"  {format_time(known.seconds):<16}{format_time(known.measured):>12}{known.bias:>+10.2%}{width:>9}   {verdicts}"
        )
    if result.shifts:
        text += ["", f"  {'slowdown':<16}{'shown':>12}{'interval':>22}   called  ({result.launches} + {result.launches} launches)"]
    for shift in result.shifts:
        name = f"{shift.injected:.0%}" if shift.injected else "none"
        text.append(f"  {name:<16}{shift.shift:>+12.2%}{f'{shift.low:+.2%} … {shift.high:+.2%}':>22}   {shift.word}")
    if result.known:
        text += [
            "",
            f"  overhead per call {format_time(result.overhead_s)} · step of the clock {format_time(result.tick_s)}",
            f"  smallest change {result.launches} + {result.launches} launches can show here: {result.smallest_change:.1%}",
        ]
    text += ["", *(f"  problem: {problem}" for problem in result.problems), *(f"  note: {doubt}" for doubt in result.doubts)]
    text.append("selftest: " + ("the gauge contradicts what is known" if result.problems else "nothing contradicts what is known"))
    return text
