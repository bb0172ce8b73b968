"""What to call the cases and the places of a run on a page: as short as they stay distinct."""

from __future__ import annotations

from collections.abc import Sequence

from clustergauge.loading import LoadedRun
from clustergauge.valid import printable
from reports.layout import fit_end, short_names
from reports.rows import BAD, Row, place_in

GOOD = ("pass", "unreferenced")
"""Words of rows that are well."""


class Called:
    """Of one run on a page so wide.

    ``names``: of cases, by id.  ``hosts``: of machines, by id.  ``places``: the machine and device of every row, with their
    order.  ``several``: whether rows are of more than one machine.
    """

    def __init__(self, loaded: LoadedRun, rows: Sequence[Row], width: int) -> None:
        self.names = short_names({r.case: r.params for r in rows} | {p.case: p.params for p in loaded.run.planned})
        self.hosts = {m.machine_id: m.host for m in loaded.machines.values()}
        place = place_in(loaded)
        numbered = sorted((r for r in rows if r.word in (*GOOD, *BAD)), key=lambda r: (r.word in BAD, *place(r)))
        measured = dict.fromkeys((r.machine_id, r.device) for r in numbered if r.machine_id)
        self.places = {place: number for number, place in enumerate(measured)}
        self.several = len({machine for machine, _ in self.places}) > 1
        self._width = width

    def place(self, machine_id: str, device: str) -> str:
        """A machine, where there are several, and its device."""
        words = [self.hosts.get(machine_id, machine_id)] if self.several and machine_id else []
        return fit_end(" · ".join(map(printable, [*words, device or "any device"])), self._width)

    def where(self, row: Row) -> str:
        """A case, and where it was measured, where there are several such places."""
        name = self.names[row.case]
        return f"{name} on {self.place(row.machine_id, row.device)}" if len(self.places) > 1 else name
