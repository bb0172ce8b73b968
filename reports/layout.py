"""Text for terminals and pipes: widths in cells, names that fit, and nothing that could steer the terminal.

A `Page` is a list of lines.  Whatever goes on it is made printable first; nothing is ever read as markup.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.text import Text

from clustergauge.model import Scalar
from clustergauge.probe import Case
from clustergauge.valid import printable

LEAST, MOST, PIPE = 72, 160, 120
"""The narrowest and widest page, and the width of a pipe that has no ``COLUMNS``."""
LONGEST = 2000
"""Characters of one text that are looked at; the record has the rest."""
SHOWN_VALUES = 6
"""Values of an axis that `compact` spells out."""
_NUMBER = re.compile(r"\d[\w.]*")
"""With its unit."""
_PLAIN = str.maketrans({"–": "-", "−": "-", "…": "~", "µ": "u", "×": "x", "·": "-", "→": ">"})

Part = str | tuple[str, str]
"""Text, or text and a rich style."""


class Page:
    """Lines of text at most ``width`` cells wide (only what must stay whole to be pasted is longer)."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[Text] = []

    def add(self, *parts: Part) -> None:
        """One line of parts side by side."""
        line = Text(no_wrap=True)
        for part in parts:
            text, style = part if isinstance(part, tuple) else (part, "")
            line.append(printable(text), style)
        line.rstrip()
        self.lines.append(line)

    def gap(self) -> None:
        """An empty line, unless there is one."""
        if self.lines and self.lines[-1].plain:
            self.lines.append(Text())

    def wrap(self, text: str, lead: str = "", style: str = "", most: int = 6) -> None:
        """Text broken between words into lines, ``lead`` before the first and as many blanks before the others.

        After ``most`` lines it is cut and says so.
        """
        room = self.width - cell_len(lead)
        lines = broken(printable(text[:LONGEST]), room)
        for number, line in enumerate(lines[:most]):
            cut = number == most - 1 and len(lines) > most
            start = lead if number == 0 else " " * cell_len(lead)
            self.add(start, (fit_end(f"{line[:-1]}…" if cell_len(line) == room else f"{line} …", room) if cut else line, style))

    def text(self, color: bool = False) -> str:
        """All lines; with ``color`` as a terminal wants them, otherwise without a single escape."""
        if not color:
            return "".join(f"{line.plain}\n" for line in self.lines)
        from rich.console import Console

        file = io.StringIO()
        console = Console(
            file=file, width=self.width, force_terminal=True, color_system="standard", legacy_windows=False, _environ={}
        )
        for line in self.lines:
            console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)
        return file.getvalue()


def width_of(stream: TextIO) -> int:
    """Cells a line may have: ``COLUMNS`` if set, else the terminal's width, else (in a pipe) 120."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and 0 < len(columns) < 6 and int(columns):
        return min(max(int(columns), LEAST), MOST)
    try:
        return min(max(os.get_terminal_size(stream.fileno()).columns or PIPE, LEAST), MOST)
    except (OSError, ValueError):
        return PIPE


def has_color(stream: TextIO) -> bool:
    """Whether the stream is a terminal that shows colours, and nobody asked for none (``NO_COLOR``)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("dumb", "unknown"):
        return False
    try:
        return stream.isatty()
    except ValueError:
        return False


def put(page: Page) -> None:
    """The page on stdout; signs that its encoding lacks are replaced."""
    text, encoding = page.text(has_color(sys.stdout)), sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)


# --------------------------------------------------------------------------------------------------------------------------
# widths


def pad(text: str, width: int, right: bool = False) -> str:
    """The text filled with blanks to ``width`` cells; ``right``: blanks before it."""
    blanks = " " * (width - cell_len(text))
    return blanks + text if right else text + blanks


def fit(text: str, width: int, head: float = 0.5) -> str:
    """The text in at most ``width`` cells, shortened in the middle; ``head``: the share of what is kept at its start."""
    text = text[:LONGEST]
    if cell_len(text) <= width:
        return text
    left = _start(text, max(0, round((width - 1) * head)))
    room = max(0, width - 1 - cell_len(left))
    return f"{left}…{_start(text[::-1], room)[::-1]}" if width > 0 else ""


def fit_end(text: str, width: int) -> str:
    """The text in at most ``width`` cells, cut at its end."""
    return fit(text, width, 1.0)


def broken(text: str, width: int) -> list[str]:
    """The text as lines of at most ``width`` cells, broken between words, and within words that are longer."""
    lines = [""]
    for word in text.split():
        rest = word
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(rest) <= width:
            lines[-1] += f" {rest}"
            continue
        while rest:
            piece = _start(rest, width) or rest[0]
            lines.append(piece)
            rest = rest[len(piece) :]
    return lines[1:]


def listed(items: Sequence[str], width: int, between: str = ", ") -> str:
    """As many items as fit into ``width`` cells, with ``between`` between them, and how many more there are."""
    for count in range(min(len(items), width), 0, -1):
        more = f"{between}… +{len(items) - count}" if count < len(items) else ""
        text = between.join(items[:count]) + more
        if cell_len(text) <= width:
            return text
    more = f" … +{len(items) - 1}" if len(items) > 1 else ""
    return fit(items[0], width - len(more)) + more if items else ""


def _start(text: str, width: int) -> str:
    """The longest start of the text that fits into ``width`` cells."""
    low, high = 0, min(len(text), max(0, 4 * width))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cell_len(text[:middle]) <= width else (low, middle - 1)
    return text[:low]


# --------------------------------------------------------------------------------------------------------------------------
# names of cases


def parts_of(case: str, params: Mapping[str, Scalar]) -> tuple[str, ...]:
    """The probe and the values of its axes: ``("memory", "torch", "triad", "1GiB")`` of the id with ``backend=torch/op=…``."""
    known = Case(case.partition("/")[0], "", params)
    if known.id == case:  # a value may hold a slash
        return (printable(known.probe), *(printable(part.partition("=")[2]) for part in known.parts))
    return tuple(part.partition("=")[2] if part.partition("=")[0] in params else part for part in printable(case).split("/"))


def short_names(cases: Mapping[str, Mapping[str, Scalar]]) -> dict[str, str]:
    """By id, the names that tables show: values without their axes; the whole id where two would look alike."""
    names = {case: "/".join(parts_of(case, params)).replace("//", " /") for case, params in cases.items()}  # of a target's path
    count: dict[str, int] = {}
    for name in names.values():
        count[name] = count.get(name, 0) + 1
    return {case: name if count[name] == 1 else printable(case) for case, name in names.items()}


def squeezed(names: Iterable[str], width: int) -> dict[str, str]:
    """Names by name, each in at most ``width`` cells and, if at all possible, no two alike.

    First goes what all cases of a probe have in common, then the middle; a number is cut in two only where nothing else tells
    the names apart, for half of one reads as another.
    """
    names = list(dict.fromkeys(names))
    families: dict[str, list[list[str]]] = {}
    for name in names:
        families.setdefault(name.partition("/")[0], []).append(name.split("/"))
    lean = {probe: _differing(family) for probe, family in families.items()}
    leaner = {name: _without_common(name, lean[name.partition("/")[0]]) if cell_len(name) > width else name for name in names}
    for cut in (_with_whole_numbers, fit):
        for head in (0.5, 0.3, 0.7, 0.15, 0.85, 0.0, 1.0):
            found = {name: cut(lean, width, head) for name, lean in leaner.items()}
            if len(set(found.values())) == len(names) and all(found.values()):
                return found
    return {name: fit(lean, width) for name, lean in leaner.items()}


def _with_whole_numbers(name: str, width: int, head: float) -> str:
    """As `fit`, without what the cut leaves of a number; empty where that is all that was left behind the cut."""
    name = name[:LONGEST]
    short = fit(name, width, head)
    if short == name or not short:
        return short
    left = _start(name, max(0, round((width - 1) * head)))
    right = name[len(name) - (len(short) - len(left) - 1) :]
    for number in _NUMBER.finditer(name):
        if number.start() < len(left) < number.end():
            left = left[: number.start()]
        if number.start() < len(name) - len(right) < number.end():
            right = name[number.end() :]
    return f"{left}…{right}" if right else ""


def _differing(family: Sequence[Sequence[str]]) -> list[bool]:
    """For each part of the names of a probe, whether names differ in it; empty where they cannot be held against each other."""
    if len(family) < 2 or any(len(parts) != len(family[0]) for parts in family):
        return []
    return [len(set(values)) > 1 for values in zip(*family, strict=True)]


def _without_common(name: str, differs: Sequence[bool]) -> str:
    """The name with ``…`` for the values in its middle that are the same in all names of its probe."""
    if not differs:
        return name
    parts = name.split("/")
    kept: list[str] = []
    for index, part in enumerate(parts):
        if differs[index] or index in (0, len(parts) - 1):
            kept.append(part)
        elif kept[-1] != "…":
            kept.append("…")
    return "/".join(kept)


def compact(cases: Iterable[tuple[str, ...]]) -> list[str]:
    """Names of many cases in few words: ``all_reduce/{mpi,gloo}/fp32/{8B,64KiB}`` for four of them."""
    return [name for name, _ in packed(cases)]


def packed(cases: Iterable[tuple[str, ...]]) -> list[tuple[str, tuple[tuple[str, ...], ...]]]:
    """Those names, each with the values of every part that it stands for."""
    entries: list[tuple[tuple[str, ...], ...]] = [tuple((value,) for value in case) for case in dict.fromkeys(cases)]
    for axis in range(max(map(len, entries), default=0) - 1, 0, -1):
        merged: dict[tuple[object, ...], list[tuple[tuple[str, ...], ...]]] = {}
        for entry in entries:
            rest = (len(entry), entry[:axis], entry[axis + 1 :]) if axis < len(entry) else (len(entry), entry, ())
            merged.setdefault(rest, []).append(entry)
        entries = [
            (*same[0][:axis], tuple(dict.fromkeys(v for e in same for v in e[axis])), *same[0][axis + 1 :])
            if len(same) > 1
            else same[0]
            for same in merged.values()
        ]
    return [("/".join(_braced(values) for values in entry), entry) for entry in entries]


def _braced(values: Sequence[str]) -> str:
    if len(values) == 1:
        return values[0]
    spelled = values if len(values) <= SHOWN_VALUES else (*values[:2], "…", values[-1])
    return "{" + ",".join(spelled) + "}"
