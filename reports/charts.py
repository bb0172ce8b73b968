"""Charts as inline SVG, drawn from numbers alone: no script, no font, no file.  Colours come from the page's style (``--s0`` …).

Each is a figure with its table, so that nothing is told by a picture alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Point = tuple[float, float]
Format = Callable[[float], str]
COLOURS = 6
SENTENCE = 40
"""Characters from which on a cell may be broken into lines."""
"""Series that the style tells apart; further ones repeat the colours with dashes."""
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 86, 16, 12, 44
_TICKS = 8


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; the first cell of each row is its header."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(map(_cell, row[1:])) + "</tr>" for row in rows)
    lead = f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>"
    return f'<div class="wide"><table>{lead}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """Numbers and words stay on one line; a sentence is broken."""
    kind = ' class="text"' if len(text) > SENTENCE else ""
    return f"<td{kind}>{escape(text)}</td>"


def figure(title: str, svg: str, numbers: str) -> str:
    """A chart, its title, and its table folded away."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}<details><summary>Table</summary>{numbers}</details></figure>"


def lines(
    title: str, series: Mapping[str, Sequence[Point]], axes: tuple[str, str], formats: tuple[Format, Format], share: bool = False
) -> str:
    """Series over a logarithmic x axis; y is logarithmic too, or from 0 to 1 if it is a ``share``.  Points must be positive."""
    xs, ys = zip(*(p for points in series.values() for p in points), strict=True)
    across = _scale(min(xs), max(xs), _LEFT, _W - _RIGHT)
    up: Callable[[float], float] = (
        (lambda y: _H - _BOTTOM - y * (_H - _BOTTOM - _TOP)) if share else _scale(min(ys), max(ys), _H - _BOTTOM, _TOP)
    )
    marks = [_tick_x(across(x), formats[0](x)) for x in _ticks(min(xs), max(xs))]
    marks += [_tick_y(up(y), formats[1](y)) for y in ((0.0, 0.25, 0.5, 0.75, 1.0) if share else _ticks(min(ys), max(ys)))]
    drawn: list[str] = []
    for number, points in enumerate(series.values()):
        colour, dash = number % COLOURS, _dash(number)
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        drawn.append(f'<polyline class="line" style="stroke:var(--s{colour})"{dash} points="{path}"/>')
        if not share:
            drawn += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" style="fill:var(--s{colour})"/>' for x, y in points]
    names = f'<text class="axis" x="{(_W + _LEFT) / 2:.0f}" y="{_H - 6}" text-anchor="middle">{escape(axes[0])}</text>'
    svg = _svg(f"{title}: {axes[1]} over {axes[0]}", _W, _H, "".join([*marks, *drawn, names]))
    keys = "".join(map(_key, range(len(series)), series))
    told = [[name, formats[0](x), formats[1](y)] for name, points in series.items() for x, y in points]
    return figure(title, f'{svg}<ul class="keys">{keys}</ul>', table(title, ["series", *axes], told))


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


def _svg(label: str, width: int, height: int, inside: str, square: bool = False) -> str:
    kind = ' class="square"' if square else ""
    return f'<svg role="img"{kind} aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{inside}</svg>'


def _key(number: int, name: str) -> str:
    line = f'<path class="line" style="stroke:var(--s{number % COLOURS})"{_dash(number)} d="M0 4H26"/>'
    return f'<li><svg class="key" viewBox="0 0 26 8" aria-hidden="true">{line}</svg> {escape(name)}</li>'


def _dash(number: int) -> str:
    return ' stroke-dasharray="6 3"' if number >= COLOURS else ""


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Logarithmic; a single value lies in the middle."""
    a, b = math.log(low), math.log(high)
    return lambda v: start + (end - start) * ((math.log(v) - a) / (b - a) if b > a else 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Even steps of the logarithm from end to end."""
    count = _TICKS - 2 if high / low > 4 else 2
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)] if high > low else [low]


def _tick_x(x: float, text: str) -> str:
    y = _H - _BOTTOM
    label = f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle">{escape(text)}</text>'
    return f'<path class="grid" d="M{x:.1f} {_TOP}V{y}"/>{label}'


def _tick_y(y: float, text: str) -> str:
    label = f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    return f'<path class="grid" d="M{_LEFT} {y:.1f}H{_W - _RIGHT}"/>{label}'
