"""Counted work over measured times.  Pure.

A rate is work over the median time; its interval is that of the time, turned round (Hoefler and Belli, SC'15: summarise times,
then divide).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import structs

from clustergauge import stats
from clustergauge.model import Metric, Record, Workload


def _one(_ranks: int) -> float:
    return 1.0


def _twice_the_rest(ranks: int) -> float:
    return 2 * (ranks - 1) / ranks


def _the_rest(ranks: int) -> float:
    return (ranks - 1) / ranks


BUS_FACTOR: Mapping[str, Callable[[int], float]] = {
    "all_reduce": _twice_the_rest,
    "all_gather": _the_rest,
    "reduce_scatter": _the_rest,
    "all_to_all": _the_rest,
    "gather": _the_rest,
    "scatter": _the_rest,
    "broadcast": _one,
    "reduce": _one,
    "send_recv": _one,
}
"""busbw over algbw for a number of ranks: what each link must carry, whatever the algorithm (nccl-tests, PERFORMANCE.md)."""


def operations(record: Record) -> float:
    """Floating-point operations of one iteration, or integer ones where it has none."""
    return record.workload.flops or record.workload.ops if record.workload else 0


def bytes_moved(record: Record) -> float:
    """Bytes that one iteration reads and writes."""
    return record.workload.bytes_read + record.workload.bytes_written if record.workload else 0


def _ios(record: Record) -> float:
    return record.workload.ios if record.workload else 0


def _samples(record: Record) -> float:
    return record.workload.samples if record.workload else 0


def _message_bytes(record: Record) -> float:
    return record.workload.message_bytes if record.workload else 0


def bus_bytes(record: Record) -> float:
    """Bytes that each link has to carry for one iteration."""
    return record.workload.message_bytes * _factor(record.workload, record.ranks) if record.workload else 0


AMOUNTS: Mapping[str, Callable[[Record], float]] = {
    "compute": operations,
    "bandwidth": bytes_moved,
    "iops": _ios,
    "samples": _samples,
    "algbw": _message_bytes,
    "busbw": bus_bytes,
}
"""Work of one iteration, by the rate that it gives."""


def unit_of(name: str, record: Record) -> str:
    """The unit of one of the rates of `AMOUNTS`."""
    if name != "compute":
        return {"iops": "IO/s", "samples": "samples/s"}.get(name, "B/s")
    return "FLOP/s" if record.workload and record.workload.flops else "OP/s"


def _factor(workload: Workload, ranks: int) -> float:
    """busbw over algbw; 0 for an unknown collective, and for one rank where nothing crosses a link: no such metric then."""
    factor = BUS_FACTOR.get(workload.collective)
    return factor(ranks) if factor and ranks > 0 else 0.0


def kind_of_work(workload: Workload | None) -> tuple[object, ...]:
    """What a work is, whatever its amounts."""
    if workload is None:
        return ()
    return tuple(value > 0 if isinstance(value, int) else value for value in structs.astuple(workload))


def time(name: str, interval: stats.Interval) -> Metric:
    """A time (s) as a metric."""
    return Metric(name=name, value=interval.median, unit="s", low=interval.low, high=interval.high, better="lower")


def rate(name: str, works: Sequence[float], unit: str, launches: Sequence[Sequence[float]]) -> Iterator[Metric]:
    """Each launch's work over its times, where there was work and it took time."""
    if min(works) <= 0:
        return
    interval = stats.judging_interval(as_if_same(works, launches))
    if interval.median > 0:
        yield Metric(
            name=name,
            value=works[0] / interval.median,
            unit=unit,
            low=works[0] / interval.high if interval.high else None,
            high=works[0] / interval.low if interval.low else None,
        )


def as_if_same(works: Sequence[float], launches: Sequence[Sequence[float]]) -> list[list[float]]:
    """The times that the first launch's work would have taken at the rates of each; as they are where nothing was counted."""
    shares = [works[0] / work if work > 0 else 1.0 for work in works]
    return [[seconds * share for seconds in launch] for share, launch in zip(shares, launches, strict=True)]
