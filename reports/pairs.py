"""Transfers between pairs below the row of their case: who stands out, what would have shown, and a small matrix to see it in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from rich.cells import cell_len

from clustergauge import pairs, sweeps, topology
from clustergauge.model import Machine, PairFindings, Record, Run
from clustergauge.pair_fit import nanmedian
from clustergauge.valid import printable
from reports.layout import Page, Part, fit, pad

MANY = 6
"""More suspects than this are counted."""
LOW, LOWER = 90, 80
"""Percent of like pairs below which a cell is coloured."""
_CELL = 5
_CORNER = "% from ↓ to →"
_LABEL = 28
"""Most cells of a row's label."""


def draw(page: Page, found: PairFindings, records: Sequence[Record], run: Run, machines: Iterable[Machine]) -> None:
    """Lines below the row of a case.  ``records``: its launches, from which the matrix is made if something stands out."""
    confirmed = any(suspect.confirmed for suspect in found.suspects)
    if not confirmed and (why := sweeps.blind(found)):
        page.wrap(why, "  pairs: ", "yellow", 3)
    elif not found.suspects:
        page.wrap(_nothing(found), "  pairs: ", "dim", 3)
    for suspect in found.suspects[:MANY]:
        asked = f"{100 * pairs.THRESHOLD:.0f} %"
        sure = (
            ""
            if suspect.confirmed
            else f" · {asked} is asked"
            if suspect.ratio >= pairs.THRESHOLD
            else f" · not surely below {asked}"
        )
        page.wrap(sweeps.sentence(suspect) + sure, "  pairs: ", "bold red" if suspect.confirmed else "yellow", 3)
    if len(found.suspects) > MANY:
        page.add(f"  pairs: … and {len(found.suspects) - MANY} more")
    for note in found.notes:
        page.wrap(note, "  pairs: ", "dim", 3)
    if found.suspects:
        matrix(page, found, records, run, machines)


def matrix(page: Page, found: PairFindings, records: Sequence[Record], run: Run, machines: Iterable[Machine]) -> None:
    """Every ordered pair in percent of the upper quartile of pairs like it, where they all find room."""
    labels = [f"{number} {name}" for number, name in enumerate(map(printable, found.endpoints))]
    wide = min(max(map(cell_len, [*labels, _CORNER])), _LABEL)
    if 2 + wide + _CELL * len(labels) > page.width:
        return
    sweep = sweeps.sweep_of(records, topology.of_run(run), {machine.host: machine for machine in machines})
    logs = nanmedian(np.log(sweep.bandwidth))
    percent = 100 * np.exp(logs - sweep.reference(logs))
    page.add("  ", pad(_CORNER, wide), *(pad(str(number), _CELL, right=True) for number in range(len(labels))))
    for i, label in enumerate(labels):
        cells = [_cell(float(value), i == j) for j, value in enumerate(percent[i])]
        page.add("  ", pad(fit(label, wide), wide), *cells)


def _cell(value: float, own: bool) -> Part:
    """One pair: ``·`` on the diagonal, ``–`` where nothing was measured."""
    if own or math.isnan(value):
        return (pad("·" if own else "–", _CELL, right=True), "dim")
    style = "bold red" if value < LOWER else "yellow" if value < LOW else ""
    return (pad(f"{value:.0f}", _CELL, right=True), style)


def _nothing(found: PairFindings) -> str:
    """That nobody stands out, and what would have."""
    of = f"{found.measured} of {found.possible} pairs, {found.passes} passes"
    if len(found.endpoints) < 3 or found.smallest_degradation is None:
        return of
    return f"no endpoint stands out ({of}); one that lost {math.ceil(100 * found.smallest_degradation)} % would have"
