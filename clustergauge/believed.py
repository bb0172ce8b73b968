"""Which launches of a case decide, and whether their numbers can be true.  Pure.

A number that cannot be true is *invalid*, whatever is asked of it: the hardware failed meanwhile, the bytes went another way, a
cache answered in the device's place, or it lies above what physics allows.  It is no baseline and no peer of another either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from clustergauge import ceilings, metrics, path, readings, searched
from clustergauge.catalogue import Catalogue
from clustergauge.ceilings import Ceiling
from clustergauge.model import Machine, Metric, Record
from clustergauge.units import format_rate

CeilingOf = Callable[[Record, Metric], Ceiling | None]
"""What physics allows a metric, by the record that it is of; ``None`` where unknown."""
LEAST_DEVICE_FRACTION = 0.95
"""Below it a cache answered in the device's place."""
REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "9p", "virtiofs", "afs", "pvfs", "wekafs", "s3")
"""File systems and stores (by the start of their type) whose device is not ours: the kernel's counters prove nothing there."""

FAULTS = (
    "ecc_uncorrected",
    "retired_pages_double_bit",
    "remapped_rows_uncorrected",
    "remap_failed",
    "uncorrected",
    "machine_checks",
    "aer_dev_fatal",
)
"""Health counters (last word of their names, beside every ``xid_…``): if one moves during a case, its numbers mean nothing."""


@dataclass(frozen=True)
class Limits:
    """What numbers are held against before they are believed.

    ``ceiling``: what physics allows a metric (``None`` where unknown).  ``machines``: those of the run, whose links say what path
    a case was meant to take.
    """

    ceiling: CeilingOf | None = None
    machines: Sequence[Machine] = ()

    @cached_property
    def _by_host(self) -> dict[str, Machine]:
        return {machine.host: machine for machine in self.machines}

    def around(self, record: Record) -> list[Machine]:
        """The machines that the ranks of a record were on: of ten thousand a few."""
        hosts = dict.fromkeys(place.host for place in record.placement)
        return [self._by_host[host] for host in hosts if host in self._by_host]


def limits_of(machines: Mapping[str, Machine], catalogue: Catalogue | None = None) -> Limits:
    """What the numbers of a run on these machines are held against.  ``catalogue``: of ceilings, if not ours."""
    return Limits(ceilings.of_machines(machines, catalogue), tuple(machines.values()))


def deciding(records: Sequence[Record]) -> list[Record]:
    """Of the launches of one case those that its verdict and its numbers come from: the fresh ones, where there are such."""
    fresh = [record for record in records if record.confirms]
    return fresh or list(records)


def contradiction(records: Sequence[Record], found: Sequence[Metric], limits: Limits) -> tuple[str, str]:
    """Why the numbers ``found`` of measured launches cannot be true, and why they are hard to believe (above an estimated limit);
    empty where nothing is."""
    doubt = ""
    if faults := sorted({f"{name} {change}" for r in records for name, change in r.counters.health.items() if _is_fault(name)}):
        return f"the hardware failed meanwhile: {', '.join(faults)}", ""
    for record in records:
        proof = path.proof(record, limits.around(record))
        if proof and proof.state == "contradicted":
            return f"another path: meant for {proof.path}, but {proof.reason}", ""
    if less := searched.refuted(records, found):
        return less, ""
    for metric in found:
        if metric.name == "device_fraction" and metric.value < LEAST_DEVICE_FRACTION and not is_remote(records[0]):
            return f"cached: the device moved {metric.value:.0%} of the bytes", ""
        limit = limits.ceiling(records[0], metric) if limits.ceiling else None
        if limit and surely_above(metric, limit.value):
            words = f"above the {'' if limit.firm else 'estimated '}ceiling of {format_rate(limit.value, limit.unit)}"
            if limit.firm:
                return f"{words} ({limit.source})", ""
            doubt = words
    return "", doubt


def number(records: Sequence[Record], limits: Limits) -> tuple[str, Metric | None]:
    """Why the launches of one case have no number to believe, empty where they have; and the headline."""
    for record in records:
        if record.status != "ok":
            return f"{record.status}: {record.reason}", None
        if not readings.samples(record):
            return "no samples", None
    chosen = deciding(records)
    found = metrics.derive(chosen)
    lie, _ = contradiction(chosen, found, limits)
    return (f"invalid: {lie}", None) if lie else ("", found[0] if found else None)


def is_bad(record: Record) -> bool:
    """Whether a record speaks against its machine: wrong, an error, or hardware that failed meanwhile."""
    return record.status in ("wrong", "error") or any(map(_is_fault, record.counters.health))


def is_cut(record: Record) -> bool:
    """Whether work that was to run for its whole budget was cut short: what it holds is measured, and less than was asked."""
    return record.measurement is not None and record.measurement.stop_reason == "interrupted"


def is_remote(record: Record) -> bool:
    """Whether a storage case ran on a file system whose device is not this machine's."""
    return str(record.settings.get("fs_type", "")).startswith(REMOTE)


def surely_above(metric: Metric, limit: float) -> bool:
    """Whether all of the interval lies above; the number alone decides where there is none."""
    return (metric.value if metric.low is None else metric.low) > limit


def _is_fault(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in FAULTS or last.startswith("xid_")
