"""What ``--format json`` prints of a run: one document."""

from __future__ import annotations

import msgspec

from clustergauge.blamed import Fleet
from clustergauge.model import Data, Machine, PairFindings, Record, Run, Verdict


class Document(Data, frozen=True, kw_only=True):
    """A run as it was measured, and what it comes to.

    ``fleet``: its nodes held against each other, as ``fleet --format json`` says it of many runs; none of a run of one machine.
    """

    run: Run
    machines: list[Machine]
    records: list[Record]
    verdicts: list[Verdict]
    pairs: list[PairFindings] = msgspec.field(default_factory=list[PairFindings])
    fleet: Fleet | None = None
