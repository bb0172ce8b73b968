"""A run as one JSON document, for other programs (`clustergauge.schema` describes it)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clustergauge.loading import LoadedRun
from clustergauge.model import Document, PairFindings, Verdict


def document(loaded: LoadedRun, verdicts: Sequence[Verdict], pairs: Sequence[PairFindings] = ()) -> bytes:
    """UTF-8 JSON of a `Document` with a newline at its end; machines sorted by id, records as measured."""
    machines = [loaded.machines[machine_id] for machine_id in sorted(loaded.machines)]
    return (
        msgspec.json.encode(
            Document(run=loaded.run, machines=machines, records=loaded.records, verdicts=list(verdicts), pairs=list(pairs))
        )
        + b"\n"
    )
