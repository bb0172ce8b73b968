"""Records of pair sweeps with planted bandwidths."""

from __future__ import annotations

import numpy as np

from clustergauge.model import Measurement, Place, Record, Series, Workload
from clustergauge.probe import Case

RUN = "20260301-101500-ab12"
SIZE = 8 << 20
PARAMS = {"backend": "mpi", "direction": "uni", "quiet": "one", "size": SIZE}


def series_of(bandwidth) -> dict[str, Series]:
    """The series of a sweep; pairs that are not a number are not in it."""
    count = bandwidth.shape[1]
    met = [(a, b) for a in range(count) for b in range(count) if a != b and np.isfinite(bandwidth[:, a, b]).all()]
    return {
        "pair_from": Series(unit="rank", values=[float(a) for a, _ in met]),
        "pair_to": Series(unit="rank", values=[float(b) for _, b in met]),
        "pair_seconds": Series(unit="s", values=[SIZE / float(one[a, b]) for one in bandwidth for a, b in met]),
    }


def swept(bandwidth, places: list[Place] | None = None, **more) -> Record:
    """The record of a sweep, passes × N × N in B/s; a host for each rank unless told otherwise."""
    count = bandwidth.shape[1]
    series = more.pop("series", None) or series_of(bandwidth)
    measured = Measurement(clock="wall", cache="none", samples_s=[0.01] * 40, series=series)
    fields = {
        "run_id": RUN,
        "case": Case("pairs", "", PARAMS).id,
        "probe": "pairs",
        "params": PARAMS,
        "machine_id": "m1",
        "ranks": count,
        "placement": places or [Place(rank=r, host=f"node-{r:03d}") for r in range(count)],
        "status": "ok",
        "started": "2026-03-01T10:15:00Z",
        "workload": Workload(message_bytes=SIZE, collective="send_recv", dtype="fp32", bound="network"),
        "measurement": measured,
    }
    return Record(**fields | more)  # type: ignore[arg-type]


def flat(count: int, passes: int = 5, **slow: float):
    """A sweep at 1 GB/s, passes spread by ±0.2 %; ``sends_2=0.5``, ``receives_1=0.4``, ``link_0_1=0.3`` plant what is left."""
    sweep = np.full((passes, count, count), 1e9) * (1 + 0.001 * (np.arange(passes) - passes // 2))[:, None, None]
    for name, left in slow.items():
        kind, *ranks = name.split("_")
        numbers = [int(r) for r in ranks]
        if kind == "sends":
            sweep[:, numbers[0], :] *= left
        elif kind == "receives":
            sweep[:, :, numbers[0]] *= left
        else:
            sweep[:, numbers[0], numbers[1]] *= left
    sweep[:, range(count), range(count)] = np.nan
    return sweep
