"""From records and criteria to verdicts and the exit code.  Pure: judged anew whenever a run is read.

A verdict comes from the interval, with the spread between launches in it (`stats.judging_interval`), never from the point:
*pass* if all of it is on the right side of the bound, *FAIL* if none of it is, *inconclusive* otherwise.  What was asked for and
has no number is *not measured*, never a pass.  A number that cannot be true is *invalid*, whatever is asked of it.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from clustergauge import metrics
from clustergauge.errors import UsageError
from clustergauge.globs import matches
from clustergauge.model import Criterion, Metric, Outcome, Planned, Record, Verdict
from clustergauge.units import format_rate, parse_rate

if TYPE_CHECKING:
    from clustergauge.ceilings import Ceiling

    CeilingOf = Callable[[Record, Metric], Ceiling | None]

OK, FAILED, BROKEN, UNKNOWN = 0, 1, 3, 4
"""Exit codes of results; `exit_code` chooses."""
LEAST_DEVICE_FRACTION = 0.95
"""Below it a cache answered in the device's place."""
REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "9p", "virtiofs", "afs", "pvfs", "wekafs")
"""File systems (by the start of their type) whose device is not this machine's: the kernel's counters prove nothing there."""

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

Group = tuple[str, str, str]
"""Machine, case, device: the launches of one group are judged together."""


# --------------------------------------------------------------------------------------------------------------------------
# criteria


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A criteria file."""

    criteria: list[Criterion]
    schema: int = 1
    title: str = ""


def parse_criteria(text: str, path: str) -> list[Criterion]:
    """The ``[[criteria]]`` of a TOML file.  Every mistake is a `UsageError` naming file and field (``criteria[1].unit``)."""
    try:
        raw = tomllib.loads(text.removeprefix("\ufeff"))
        file = msgspec.convert(raw, _File)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from None
    if file.schema != 1:
        raise UsageError(f"{path}: schema {file.schema} is not known (this version reads 1)")
    if not file.criteria:
        raise UsageError(f"{path}: holds no [[criteria]]")
    for number, criterion in enumerate(file.criteria):
        _check(criterion, f"{path}: criteria[{number}]")
    return file.criteria


def _check(criterion: Criterion, where: str) -> None:
    if (criterion.floor is None) == (criterion.limit is None):
        raise UsageError(f"{where}: needs either floor (at least) or limit (at most)")
    field = "floor" if criterion.limit is None else "limit"
    bound = _bound(criterion)
    if not (math.isfinite(bound) and bound > 0):
        raise UsageError(f"{where}.{field} is {bound:g}: must be more than 0")
    unit = metrics.UNITS.get(criterion.metric)
    if unit is None:
        raise UsageError(f"{where}.metric: unknown metric {criterion.metric!r} (there are {', '.join(metrics.UNITS)})")
    try:
        bare = parse_rate(bound, criterion.unit)[1]
    except ValueError as error:
        raise UsageError(f"{where}.unit: {error}") from None
    if bare not in unit:
        raise UsageError(f"{where}.unit: {criterion.metric} is not measured in {criterion.unit} (but in {' or '.join(unit)})")


def _bound(criterion: Criterion) -> float:
    bound = criterion.floor if criterion.limit is None else criterion.limit
    assert bound is not None
    return bound


def unmatched(criteria: Iterable[Criterion], cases: Sequence[str]) -> list[str]:
    """The globs of criteria that no case answers to."""
    return [c.case for c in criteria if not any(matches(c.case, case) for case in cases)]


# --------------------------------------------------------------------------------------------------------------------------
# verdicts


def judge(
    records: Sequence[Record],
    criteria: Sequence[Criterion] = (),
    ceiling: CeilingOf | None = None,
    planned: Sequence[Planned] = (),
) -> list[Verdict]:
    """One verdict for each case that was measured and each criterion on it, in the order of the records.

    ``ceiling``: what physics allows a metric (``None`` where unknown).  ``planned``: what should have been measured: a case of it
    that a criterion requires and that has no record is *not measured*, and one with fewer launches than planned never passes.
    """
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault((record.machine_id, record.case, record.device), []).append(record)
    launches = Counter((p.case, p.device) for p in planned if not p.skip)
    verdicts = [
        verdict
        for (_, case, device), group in groups.items()
        for verdict in _of_group(group, launches[case, device], criteria, ceiling)
    ]
    recorded = {(record.case, record.device) for record in records}
    missing = dict.fromkeys((p.case, p.device) for p in planned if (p.case, p.device) not in recorded)
    for case, device in missing:
        absent = Verdict(case=case, device=device, verdict="not measured", reason="the run did not get to it")
        verdicts += _not_measured(absent, criteria)
    everything = [case for case, _ in [*recorded, *missing]]
    verdicts += [
        Verdict(case=c.case, metric=c.metric, verdict="not measured", reason="no case of this run matches", source=c.source)
        for c in criteria
        if c.required and not any(matches(c.case, case) for case in everything)
    ]
    return verdicts


def exit_code(records: Sequence[Record], verdicts: Iterable[Verdict], planned: Iterable[Planned] = ()) -> int:
    """The worst that happened: 3 wrong, error, invalid · 1 FAIL · 4 not measured (planned, but no record), inconclusive · 0."""
    outcomes: set[str] = {v.verdict for v in verdicts}
    statuses: set[str] = {r.status for r in records}
    recorded = {(r.case, r.device, r.launch) for r in records}
    if any(not p.skip and (p.case, p.device, p.launch) not in recorded for p in planned):
        outcomes.add("not measured")
    if statuses & {"wrong", "error"} or "invalid" in outcomes:
        return BROKEN
    if "FAIL" in outcomes:
        return FAILED
    return UNKNOWN if outcomes & {"not measured", "inconclusive"} else OK


def _of_group(group: list[Record], launches: int, criteria: Sequence[Criterion], ceiling: CeilingOf | None) -> Iterator[Verdict]:
    """The verdicts of one case on one device of one machine.  ``launches``: how many were planned, 0 where that is not known."""
    first = group[0]
    verdict = Verdict(case=first.case, device=first.device, machine_id=first.machine_id, verdict="not measured")
    bad = next((r for r in group if r.status in ("wrong", "error")), None)
    measured = [r for r in group if r.status == "ok"]
    if bad or not measured:
        bad = bad or first
        yield from _not_measured(replace(verdict, reason=f"{bad.status}: {bad.reason}"), criteria)
        return
    found = {metric.name: metric for metric in metrics.derive(measured)}
    lie, doubt = _contradiction(measured, found.values(), ceiling)
    if lie:
        yield replace(verdict, verdict="invalid", reason=lie)
        return
    asked = [c for c in criteria if matches(c.case, first.case)]
    for criterion in asked:
        judged = _verdict(replace(verdict, reason=doubt), criterion, found)
        if judged.verdict == "pass" and len(measured) < launches:
            judged = replace(judged, verdict="inconclusive", reason=f"only {len(measured)} of {launches} launches were measured")
        if judged.verdict != "not measured" or criterion.required:
            yield judged
    if not asked and found:
        headline = next(iter(found.values()))
        yield replace(
            verdict, verdict="unreferenced", metric=headline.name, unit=headline.unit, value=headline.value, reason=doubt
        )


def _not_measured(verdict: Verdict, criteria: Iterable[Criterion]) -> Iterator[Verdict]:
    """The verdict for each criterion that required a number."""
    for c in criteria:
        if c.required and matches(c.case, verdict.case):
            yield replace(verdict, metric=c.metric, source=c.source)


def _contradiction(records: list[Record], found: Iterable[Metric], ceiling: CeilingOf | None) -> tuple[str, str]:
    """Why the numbers cannot be true, and why they are hard to believe (above an estimated limit); empty where nothing is."""
    doubt = ""
    if faults := sorted({f"{name} {change}" for r in records for name, change in r.counters.health.items() if _is_fault(name)}):
        return f"the hardware failed meanwhile: {', '.join(faults)}", ""
    for metric in found:
        if metric.name == "device_fraction" and metric.value < LEAST_DEVICE_FRACTION and not is_remote(records[0]):
            return f"cached: the device moved {metric.value:.0%} of the bytes", ""
        limit = ceiling(records[0], metric) if ceiling else None
        if limit and _surely_above(metric, limit.value):
            words = f"above the {'' if limit.firm else 'estimated '}ceiling of {format_rate(limit.value, limit.unit)}"
            if limit.firm:
                return f"{words} ({limit.source})", ""
            doubt = words
    return "", doubt


def _is_fault(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in FAULTS or last.startswith("xid_")


def _surely_above(metric: Metric, limit: float) -> bool:
    return (metric.value if metric.low is None else metric.low) > limit


def is_remote(record: Record) -> bool:
    """Whether a storage case ran on a file system whose device is not this machine's."""
    return str(record.settings.get("fs_type", "")).startswith(REMOTE)


def _verdict(verdict: Verdict, criterion: Criterion, found: Mapping[str, Metric]) -> Verdict:
    """One criterion on one measured case; ``verdict`` names the case, and what is doubtful about it."""
    bound, unit = parse_rate(_bound(criterion), criterion.unit)
    metric = found.get(criterion.metric)
    verdict = replace(verdict, metric=criterion.metric, source=criterion.source)
    if metric is None or metric.unit != unit:
        return replace(verdict, reason=f"this case has no {criterion.metric} in {unit}")
    at_least = criterion.floor is not None
    outcome, reason = _side(metric, bound, at_least)
    return replace(
        verdict,
        verdict=outcome,
        reason=reason or verdict.reason,
        value=metric.value,
        unit=unit,
        bound=bound,
        margin=(metric.value / bound - 1) * (1 if at_least else -1),
    )


def _side(metric: Metric, bound: float, at_least: bool) -> tuple[Outcome, str]:
    """On which side of the bound the interval lies."""
    if metric.low is None or metric.high is None:
        return "inconclusive", "too few samples for an interval"
    if metric.low >= bound if at_least else metric.high <= bound:
        return "pass", ""
    if metric.high < bound if at_least else metric.low > bound:
        return "FAIL", ""
    low, high = (format_rate(end, metric.unit) for end in (metric.low, metric.high))
    return "inconclusive", f"the bound lies inside the interval: {low} … {high}"
