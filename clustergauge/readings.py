"""The times that a record holds, and what was read beside them in the same samples.  Pure."""

from __future__ import annotations

from clustergauge import turnstile
from clustergauge.model import Record


def samples(record: Record) -> list[float]:
    """Seconds of one iteration, in the order taken, without the warm-up; empty where nothing was measured."""
    measurement = record.measurement
    return measurement.samples_s[measurement.warmup_cut :] if measurement else []


def by_turn(record: Record) -> dict[float, list[float]]:
    """Seconds of one iteration, by the beginning of the turn in which each was taken (`turnstile`); all at 0 without turns."""
    measurement = record.measurement
    kept = measurement.series.get(turnstile.SERIES) if measurement else None
    if not measurement or not kept:
        return {0.0: samples(record)}
    found: dict[float, list[float]] = {}
    for turn, seconds in zip(kept.values, measurement.samples_s, strict=False):
        found.setdefault(turn, []).append(seconds)
    return found


def series(record: Record, name: str) -> list[float]:
    """The values of a series without those of the warm-up; empty where the record has none of that name.

    Every sample has added as many values as every other.
    """
    measurement = record.measurement
    found = measurement.series.get(name) if measurement else None
    if measurement is None or found is None or not measurement.samples_s:
        return []
    return found.values[len(found.values) * measurement.warmup_cut // len(measurement.samples_s) :]


def over_peer(record: Record) -> list[float]:
    """Our rate over that of another program doing the same, in each pair of turns; empty where there were none."""
    found = record.measurement.series if record.measurement else {}
    if not {"own_s", "peer_s"} <= found.keys():
        return []
    pairs = zip(found["own_s"].values, found["peer_s"].values, strict=False)
    return [theirs / ours for ours, theirs in pairs if ours > 0 and theirs > 0]
