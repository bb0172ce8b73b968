"""A run as one JSON document, for other programs (`clustergauge.schema` describes it)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clustergauge.blamed import Fleet
from clustergauge.document import Document
from clustergauge.loading import LoadedRun
from clustergauge.model import PairFindings, Verdict


def document(
    loaded: LoadedRun, verdicts: Sequence[Verdict], pairs: Sequence[PairFindings] = (), fleet: Fleet | None = None
) -> bytes:
    """UTF-8 JSON of a `Document` with a newline at its end; machines sorted by id, records as measured."""
    made = Document(
        run=loaded.run,
        machines=[loaded.machines[machine_id] for machine_id in sorted(loaded.machines)],
        records=loaded.records,
        verdicts=list(verdicts),
        pairs=list(pairs),
        fleet=fleet,
    )
    return msgspec.json.encode(made) + b"\n"
