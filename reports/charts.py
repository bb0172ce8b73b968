"""Charts as inline SVG, drawn from numbers alone: no script, no font, no file.  Colours come from the page's style (``--s0`` …).

Each is a figure with its table, so that nothing is told by a picture alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.cells import cell_len

from reports.layout import squeezed
from reports.web import figure, table

Point = tuple[float, float]
Format = Callable[[float], str]
Place = Callable[[float], float]
"""From a value to where it lies in the picture."""
COLOURS = 6
"""Series that the style tells apart; further ones repeat the colours with dashes."""
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 86, 30, 12, 44
_NAMES = 206
"""Width that the names of rows take beside them."""
_NAME, _NAME_ABOVE = 24, 84
"""Cells of a name that fit beside a row, and above it."""
_ROW, _ROW_NAMED = 26, 40
"""Height of a row, and of one with its name above."""
_TICKS = 8


@dataclass(frozen=True)
class Axes:
    """What runs along x and y, and how their values are written.  ``share``: y goes from 0 to 1, not by its logarithm."""

    x: str
    y: str
    format_x: Format
    format_y: Format
    share: bool = False


def lines(
    title: str, series: Mapping[str, Sequence[Point]], axes: Axes, bounds: Mapping[str, Sequence[Point]] | None = None
) -> str:
    """Series over a logarithmic x axis.  Points must be positive.  ``bounds``: lines that nothing can lie above, drawn dotted."""
    return _chart(title, series, axes, bounds or {}, joined=True)


def points(
    title: str, series: Mapping[str, Sequence[Point]], axes: Axes, bounds: Mapping[str, Sequence[Point]] | None = None
) -> str:
    """The same, of single points that no line joins."""
    return _chart(title, series, axes, bounds or {}, joined=False)


def _chart(
    title: str, series: Mapping[str, Sequence[Point]], axes: Axes, bounds: Mapping[str, Sequence[Point]], joined: bool
) -> str:
    xs, ys = zip(*(p for line in (*series.values(), *bounds.values()) for p in line), strict=True)
    across = _scale(min(xs), max(xs), _LEFT, _W - _RIGHT)
    up: Callable[[float], float] = (
        (lambda y: _H - _BOTTOM - y * (_H - _BOTTOM - _TOP)) if axes.share else _scale(min(ys), max(ys), _H - _BOTTOM, _TOP)
    )
    marks = [_tick_x(across(x), axes.format_x(x)) for x in _ticks(min(xs), max(xs))]
    steps = (0.0, 0.25, 0.5, 0.75, 1.0) if axes.share else _ticks(min(ys), max(ys))
    marks += [_tick_y(up(y), axes.format_y(y)) for y in steps]
    drawn = [f'<polyline class="bound" points="{_path(line, across, up)}"/>' for line in bounds.values()]
    for number, line in enumerate(series.values()):
        colour, dash = number % COLOURS, _dash(number)
        if joined:
            drawn.append(f'<polyline class="line" style="stroke:var(--s{colour})"{dash} points="{_path(line, across, up)}"/>')
        if not axes.share:
            drawn += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" style="fill:var(--s{colour})"/>' for x, y in line]
    names = f'<text class="axis" x="{(_W + _LEFT) / 2:.0f}" y="{_H - 6}" text-anchor="middle">{escape(axes.x)}</text>'
    svg = _svg(f"{title}: {axes.y} over {axes.x}", _W, _H, "".join([*marks, *drawn, names]))
    keys = "".join(_key(name, f'class="line" style="stroke:var(--s{n % COLOURS})"{_dash(n)}') for n, name in enumerate(series))
    keys += "".join(_key(name, 'class="bound"') for name in bounds)
    told = [[name, axes.format_x(x), axes.format_y(y)] for name, line in series.items() for x, y in line]
    told += [[name, axes.format_x(x), axes.format_y(y)] for name, line in bounds.items() for x, y in line]
    return figure(title, f'{svg}<ul class="keys">{keys}</ul>', table(title, ["series", axes.x, axes.y], told))


def _path(line: Sequence[Point], across: Place, up: Place) -> str:
    return " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)


def heat(title: str, names: Sequence[str], shares: Sequence[Sequence[float | None]]) -> str:
    """A square matrix of shares (1 = as its peers), from row to column; ``None`` where not measured, which is hatched."""
    count = len(names)
    side = max(6.0, min(36.0, 520 / max(count, 1)))
    cells: list[str] = []
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            place = f'x="{30 + j * side:.1f}" y="{20 + i * side:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}"'
            if i == j:
                continue
            if share is None:
                cells.append(f'<rect class="unknown" {place}/>')
                continue
            lost = min(max(1 - share, 0.0) / 0.5, 1.0)
            cells.append(f'<rect class="cell" style="fill-opacity:{0.08 + 0.92 * lost:.2f}" {place}/>')
            if side >= 26:
                x, y = 30 + (j + 0.5) * side, 20 + (i + 0.62) * side
                ink = ' class="on"' if lost > 0.5 else ""
                cells.append(f'<text{ink} x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{100 * share:.0f}</text>')
    step = max(1, math.ceil(count / 20))
    for i in range(0, count, step):
        cells.append(f'<text class="axis" x="26" y="{20 + (i + 0.62) * side:.1f}" text-anchor="end">{i}</text>')
        cells.append(f'<text class="axis" x="{30 + (i + 0.5) * side:.1f}" y="14" text-anchor="middle">{i}</text>')
    size = round(30 + count * side)
    svg = _svg(f"{title}: percent of the bandwidth of peers, from row to column", size, size, "".join(cells), square=True)
    head = ["from \\ to", *map(str, range(count))]
    told = [
        [f"{i} {name}", *("·" if i == j else "unknown" if s is None else f"{100 * s:.0f}" for j, s in enumerate(row))]
        for i, (name, row) in enumerate(zip(names, shares, strict=True))
    ]
    return figure(title, svg, table(f"{title}, % of peers", head, told))


# --------------------------------------------------------------------------------------------------------------------------
# rows along one axis


@dataclass(frozen=True)
class Bar:
    """An interval and its middle, as one row.  ``style``: ``bad``, ``doubt``, ``good`` or empty."""

    name: str
    low: float
    value: float
    high: float
    style: str = ""


def intervals(title: str, bars: Sequence[Bar], axis: str, form: Format) -> str:
    """Intervals below one another on one linear axis, with a line at zero."""
    low, high = min(0.0, *(b.low for b in bars)), max(0.0, *(b.high for b in bars))
    rows = _rows([b.name for b in bars])
    across = _linear(low, high, rows.left, _W - _RIGHT)
    marks = _frame(rows, _even(low, high), across, form, axis)
    marks.append(f'<path class="zero" d="M{across(0):.1f} {_TOP}V{rows.bottom}"/>')
    for number, bar in enumerate(bars):
        y, style = rows.y(number), bar.style or "plain"
        marks.append(f'<g class="{style}"><path class="span" d="M{across(bar.low):.1f} {y}H{across(bar.high):.1f}"/>')
        marks.append(f'<circle class="dot" cx="{across(bar.value):.1f}" cy="{y}" r="4"/></g>')
        marks.append(rows.label(bar.name, number))
    told = [[b.name, form(b.value), form(b.low), form(b.high)] for b in bars]
    svg = _svg(f"{title}: {axis}", _W, rows.bottom + _BOTTOM, "".join(marks))
    return figure(title, svg, table(title, ["case", axis, "from", "to"], told))


@dataclass(frozen=True)
class Strip:
    """Values of many devices in one row.  ``named``: those that are pointed out, by name, with their style."""

    name: str
    values: Sequence[float]
    named: Mapping[str, tuple[float, str]]


def strips(title: str, rows: Sequence[Strip], axis: str, form: Format) -> str:
    """Where each device of a fleet lies, one row a case; dots that would cover one another are drawn once."""
    everything = [v for row in rows for v in (*row.values, *(value for value, _ in row.named.values()))]
    low, high = min(everything), max(everything)
    lie = _rows([row.name for row in rows])
    across = _linear(low, high, lie.left, _W - _RIGHT)
    marks = _frame(lie, _even(low, high), across, form, axis)
    told: list[list[str]] = []
    for number, row in enumerate(rows):
        y = lie.y(number)
        places = sorted({round(across(v), 1) for v in row.values})
        marks += [f'<circle class="many" cx="{x:.1f}" cy="{y}" r="3"/>' for x in places]
        for name, (value, style) in row.named.items():
            tip = f"<title>{escape(name)}: {escape(form(value))}</title>"
            marks.append(f'<g class="{style}"><circle class="dot" cx="{across(value):.1f}" cy="{y}" r="4">{tip}</circle></g>')
            told.append([row.name, name, form(value)])
        marks.append(lie.label(row.name, number))
        ordered = sorted(row.values)
        if ordered:
            ends = f"{form(ordered[0])} … {form(ordered[-1])}"
            told.append([row.name, f"the other {len(ordered)}", ends])
    svg = _svg(f"{title}: {axis}", _W, lie.bottom + _BOTTOM, "".join(marks))
    return figure(title, svg, table(title, ["case", "device", axis], told))


@dataclass(frozen=True)
class _Rows:
    """Where rows and their names lie: names beside the rows, or, where one of them is too long for that, above."""

    short: Mapping[str, str]
    count: int
    above: bool

    @property
    def left(self) -> int:
        """Where the axis begins."""
        return _RIGHT if self.above else _NAMES

    @property
    def height(self) -> int:
        """Of a row."""
        return _ROW_NAMED if self.above else _ROW

    @property
    def bottom(self) -> int:
        """Where the axis lies."""
        return _TOP + self.height * self.count

    def y(self, number: int) -> int:
        """The middle of what is drawn in a row."""
        return _TOP + self.height * (number + 1) - _ROW // 2

    def label(self, name: str, number: int) -> str:
        """The name of a row.  What was left out of it is in its title, and in the table."""
        x, y, anchor = (4, self.y(number) - 14, "start") if self.above else (_NAMES - 12, self.y(number) + 4, "end")
        place = f'class="name" x="{x}" y="{y}" text-anchor="{anchor}"'
        return f"<text {place}>{escape(self.short[name])}<title>{escape(name)}</title></text>"


def _rows(names: Sequence[str]) -> _Rows:
    above = any(cell_len(name) > _NAME for name in names)
    return _Rows(squeezed(names, _NAME_ABOVE if above else _NAME), len(names), above)


def _frame(rows: _Rows, ticks: Sequence[float], across: Place, form: Format, axis: str) -> list[str]:
    """Grid and axis of rows."""
    bottom = rows.bottom
    marks = [
        f'<path class="grid" d="M{across(t):.1f} {_TOP}V{bottom}"/>'
        f'<text x="{across(t):.1f}" y="{bottom + 18}" text-anchor="middle">{escape(form(t))}</text>'
        for t in ticks
    ]
    middle = (_W - _RIGHT + rows.left) / 2
    return [*marks, f'<text class="axis" x="{middle:.0f}" y="{bottom + 38}" text-anchor="middle">{escape(axis)}</text>']


# --------------------------------------------------------------------------------------------------------------------------
# parts


def _svg(label: str, width: int, height: int, inside: str, square: bool = False) -> str:
    kind = ' class="square"' if square else ""
    return f'<svg role="img"{kind} aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{inside}</svg>'


def _key(name: str, style: str) -> str:
    return f'<li><svg class="key" viewBox="0 0 26 8" aria-hidden="true"><path {style} d="M0 4H26"/></svg> {escape(name)}</li>'


def _dash(number: int) -> str:
    return ' stroke-dasharray="6 3"' if number >= COLOURS else ""


def _scale(low: float, high: float, start: float, end: float) -> Place:
    """Logarithmic; a single value lies in the middle."""
    a, b = math.log(low), math.log(high)
    return lambda v: start + (end - start) * ((math.log(v) - a) / (b - a) if b > a else 0.5)


def _linear(low: float, high: float, start: float, end: float) -> Place:
    """A single value lies in the middle."""
    return lambda v: start + (end - start) * ((v - low) / (high - low) if high > low else 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Even steps of the logarithm from end to end."""
    count = _TICKS - 2 if high / low > 4 else 2
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)] if high > low else [low]


def _even(low: float, high: float) -> list[float]:
    """Round steps (1, 2 or 5 of a power of ten) within the ends, four to eight of them."""
    if not high > low:
        return [low]
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_x(x: float, words: str) -> str:
    y = _H - _BOTTOM
    label = f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle">{escape(words)}</text>'
    return f'<path class="grid" d="M{x:.1f} {_TOP}V{y}"/>{label}'


def _tick_y(y: float, words: str) -> str:
    label = f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(words)}</text>'
    return f'<path class="grid" d="M{_LEFT} {y:.1f}H{_W - _RIGHT}"/>{label}'
