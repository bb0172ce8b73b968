"""Rates from counted work and planted times: every formula to the last digit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings, strategies as st

from clustergauge import metrics, stats
from clustergauge.model import Measurement, Metric, Workload
from tests import made
from tests.strategies import measurements, workloads

NETWORK = Workload(message_bytes=10**9, collective="all_reduce", dtype="fp32", bound="network")


def measured(samples: list[float], **more) -> Measurement:
    return Measurement(clock="wall", cache="none", samples_s=samples, **more)


def by_name(*records) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics.derive(records)}


def test_samples_are_what_follows_the_warm_up():
    assert metrics.samples(made.record(measurement=measured([9.0, 9.0, 1.0, 2.0], warmup_cut=2))) == [1.0, 2.0]
    assert metrics.samples(made.failed("error", "died")) == []


@pytest.mark.parametrize(
    ("work", "name", "value", "unit"),
    [
        (Workload(flops=6 * 10**12, bound="compute"), "compute", 3e12, "FLOP/s"),
        (Workload(ops=6 * 10**12, bound="compute"), "compute", 3e12, "OP/s"),
        (Workload(bytes_read=4 * 10**9, bytes_written=2 * 10**9, bound="memory"), "bandwidth", 3e9, "B/s"),
        (Workload(bytes_written=6 * 10**9, bound="storage"), "bandwidth", 3e9, "B/s"),
        (Workload(message_bytes=8 * 10**9, collective="all_reduce", bound="network"), "busbw", 6e9, "B/s"),
        (Workload(message_bytes=8, collective="all_reduce", bound="latency"), "time", 2.0, "s"),
        (Workload(flops=10**9), "time", 2.0, "s"),
    ],
)
def test_the_headline_is_the_rate_of_what_bounds_the_case(work, name, value, unit):
    record = made.record(work=work, samples=[2.0] * 30, ranks=4)
    assert metrics.headline([record]) == metrics.derive([record])[0]
    found = metrics.derive([record])[0]
    assert (found.name, found.value, found.unit) == (name, value, unit)
    assert found.better == ("lower" if name == "time" else "higher")


def test_every_metric_is_declared_with_its_unit():
    works = [Workload(flops=1, bytes_read=1, message_bytes=1, collective="all_reduce"), Workload(ops=1)]
    seen: set[tuple[str, str]] = set()
    for work in works:
        record = made.record(
            work=work,
            ranks=2,
            measurement=measured([1.0] * 200, loop_mean_s=1.0),
            device_bytes={"read": 1, "asked_read": 1},
            settings={"burn_in": True},
        )
        seen |= {(metric.name, metric.unit) for metric in metrics.derive([record])}
    assert seen == {(name, unit) for name, units in metrics.UNITS.items() for unit in units}
    assert set(metrics.HEADLINES.values()) <= set(metrics.UNITS)


@pytest.mark.parametrize(
    ("collective", "ranks", "factor"),  # nccl-tests, PERFORMANCE.md
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 8, 1.75),
        ("all_gather", 8, 0.875),
        ("reduce_scatter", 8, 0.875),
        ("all_to_all", 4, 0.75),
        ("gather", 4, 0.75),
        ("scatter", 4, 0.75),
        ("broadcast", 8, 1.0),
        ("reduce", 8, 1.0),
        ("send_recv", 2, 1.0),
    ],
)
def test_bus_bandwidth_has_the_factors_of_nccl_tests(collective, ranks, factor):
    work = Workload(message_bytes=10**9, collective=collective, bound="network")
    found = by_name(made.record(work=work, ranks=ranks, samples=[0.5] * 30))
    assert found["algbw"].value == 2e9
    assert found["busbw"].value == 2e9 * factor


def test_no_link_no_bus_bandwidth():
    assert "busbw" not in by_name(made.record(work=NETWORK, ranks=1))
    unknown = Workload(message_bytes=10**9, collective="gossip", bound="network")
    found = metrics.derive([made.record(work=unknown, ranks=4)])
    assert [metric.name for metric in found] == ["time", "algbw"]


def test_the_ends_of_a_rate_are_those_of_the_time_turned_round():
    samples = [0.99, 1.0, 1.0, 1.0, 1.02] * 8
    found = by_name(made.record(work=Workload(flops=100, bound="compute"), samples=samples))
    time, compute = found["time"], found["compute"]
    assert time.low is not None
    assert time.high is not None
    assert time.low < 1.0 < time.high
    assert (compute.low, compute.high) == (100 / time.high, 100 / time.low)


def test_the_interval_is_the_one_for_judging():
    launches = [[1.0] * 20, [1.01] * 20, [1.02] * 20]
    found = by_name(*(made.record(samples=samples, launch=n) for n, samples in enumerate(launches)))
    expected = stats.judging_interval(launches)
    assert (found["time"].value, found["time"].low, found["time"].high) == (1.01, expected.low, expected.high)
    assert expected.low is not None
    assert expected.low < 1.0


def test_too_few_samples_have_a_rate_without_an_interval():
    found = by_name(made.record(samples=[1.0, 2.0, 3.0]))["compute"]
    assert (found.value, found.low, found.high) == (1e12, None, None)


def test_a_99th_percentile_needs_100_samples_of_single_iterations():
    tail = [1.0] * 990 + [3.0] * 10
    assert by_name(made.record(samples=tail))["time_p99"].value == pytest.approx(1.02, abs=0.02)
    assert by_name(made.record(samples=[1.0] * 980 + [3.0] * 20))["time_p99"].value == 3.0
    assert "time_p99" not in by_name(made.record(samples=[1.0] * 99))
    assert "time_p99" not in by_name(made.record(measurement=measured(tail, iterations_per_sample=10)))
    assert "time_p99" not in by_name(made.record(samples=tail), made.record(samples=[1.0] * 99, launch=1))


def test_the_loop_has_its_own_time_and_rate():
    found = by_name(made.record(work=NETWORK, ranks=2, measurement=measured([1.0] * 20, loop_mean_s=0.5)))
    assert (found["loop_time"].value, found["loop_time"].low) == (0.5, None)
    assert found["loop_busbw"].value == 2e9
    loops = [
        made.record(work=NETWORK, ranks=2, launch=n, measurement=measured([1.0] * 20, loop_mean_s=t))
        for n, t in enumerate((0.5, 0.4, 0.6))
    ]
    several = by_name(*loops)["loop_time"]
    assert several.value == 0.5
    assert several.low is not None
    assert several.low < 0.4
    assert "loop_time" not in by_name(made.record(work=NETWORK, ranks=2))


def test_the_device_fraction_is_the_worst_launch_and_the_worst_way():
    good = {"read": 95, "asked_read": 100, "written": 120, "asked_written": 100}
    cached = {"read": 10, "asked_read": 100, "written": 100, "asked_written": 100}
    assert by_name(made.record(device_bytes=good))["device_fraction"].value == 0.95
    assert by_name(made.record(device_bytes=good), made.record(device_bytes=cached, launch=1))["device_fraction"].value == 0.1


def test_the_device_fraction_is_absent_where_a_launch_does_not_know():
    good = {"read": 95, "asked_read": 100}
    assert "device_fraction" not in by_name(made.record(device_bytes=good), made.record(launch=1))
    assert "device_fraction" not in by_name(made.record(device_bytes={"read": 5}))
    assert "device_fraction" not in by_name(made.record(device_bytes={"read": 0, "asked_read": 0}))
    only_reads = {"read": 100, "asked_read": 100, "written": 4096, "asked_written": 0}
    assert by_name(made.record(device_bytes=only_reads))["device_fraction"].value == 1.0


def test_a_burn_in_tells_its_first_and_last_window():
    samples = [1.0] * 100 + [1.1] * 800 + [1.25] * 100
    found = by_name(made.record(samples=samples, settings={"burn_in": True}))
    assert (found["first_window"].value, found["last_window"].value) == (2e12, pytest.approx(1.6e12))
    assert found["sustained"].value == pytest.approx(0.8)
    assert found["sustained"].low < 0.8 < found["sustained"].high
    assert "sustained" not in by_name(made.record(samples=samples))
    assert "sustained" not in by_name(made.record(samples=samples[:190], settings={"burn_in": True}))


def test_launches_that_did_different_amounts_of_work_have_the_rates_of_each_and_no_time():
    """Three launches chose shapes of their own: 2, 3 and 8 TFLOP, at 2, 2.02 and 1.98 TFLOP/s."""
    amounts, rates = (2e12, 3e12, 8e12), (2e12, 2.02e12, 1.98e12)
    records = [
        made.record(work=Workload(flops=int(work), dtype="fp32", bound="compute"), samples=[work / rate] * 200, launch=n)
        for n, (work, rate) in enumerate(zip(amounts, rates, strict=True))
    ]
    (compute,) = metrics.derive(records)
    assert (compute.name, compute.value) == ("compute", pytest.approx(2e12))
    same = by_name(*(made.record(samples=[2e12 / rate] * 200, launch=n) for n, rate in enumerate(rates)))["compute"]
    assert (compute.low, compute.high) == (pytest.approx(same.low), pytest.approx(same.high))
    assert metrics.headline(records[::-1]).value == pytest.approx(2e12)
    assert metrics.disagreement(records) == "launches did different amounts of work"
    assert metrics.disagreement(records[:1]) == metrics.disagreement([]) == ""
    assert metrics.disagreement([records[0], made.record(status="wrong", work=records[1].workload)]) == ""


def test_loops_and_windows_of_different_amounts_of_work_have_rates_and_no_time():
    works = [Workload(message_bytes=10**9 * n, collective="all_reduce", bound="network") for n in (1, 4)]
    loops = [
        made.record(work=work, ranks=2, launch=n, measurement=measured([seconds * 2] * 20, loop_mean_s=seconds))
        for n, (work, seconds) in enumerate(zip(works, (0.5, 2.0), strict=True))
    ]
    found = by_name(*loops)
    assert list(found) == ["busbw", "algbw", "loop_busbw"]
    assert (found["busbw"].value, found["loop_busbw"].value) == (1e9, 2e9)
    flops = [Workload(flops=10**12 * n, bound="compute") for n in (1, 4)]
    burns = [
        made.record(work=work, samples=[n] * 500 + [1.25 * n] * 500, launch=n, settings={"burn_in": True})
        for n, work in zip((1, 4), flops, strict=True)
    ]
    found = by_name(*burns)
    assert (found["first_window"].value, found["last_window"].value) == (1e12, pytest.approx(0.8e12))
    assert found["sustained"].value == pytest.approx(0.8)
    assert "time" not in found


@pytest.mark.parametrize(
    "other",
    [
        {"work": Workload(ops=2 * 10**12, dtype="fp32", bound="compute")},
        {"work": Workload(flops=2 * 10**12, dtype="bf16", bound="compute")},
        {"work": Workload(flops=2 * 10**12, bytes_read=1, dtype="fp32", bound="compute")},
        {"work": Workload(flops=10**12, dtype="fp32", bound="memory")},
        {"ranks": 2},
    ],
)
def test_launches_of_different_kinds_or_ranks_have_nothing_in_common(other):
    records = [made.record(), made.record(launch=1, **other)]
    assert metrics.derive(records) == []
    ranks = "ranks" in other
    assert metrics.disagreement(records) == ("launches ran on 1 and 2 ranks" if ranks else "launches did different kinds of work")


def test_what_was_not_checked_and_timed_says_nothing():
    for status in ("wrong", "error", "skipped", "verified"):
        assert metrics.derive([made.record(status=status)]) == []
    assert metrics.derive([]) == []
    assert metrics.headline([made.failed("error", "died")]) is None
    mixed = by_name(made.record(samples=[1.0] * 20), made.record(status="wrong", samples=[9.0] * 20, launch=1))
    assert mixed["time"].value == 1.0


def test_a_record_without_a_workload_has_a_time():
    assert list(by_name(made.record(workload=None))) == ["time"]


def test_no_time_gives_no_rate():
    assert [metric.name for metric in metrics.derive([made.record(samples=[0.0] * 30)])] == ["time"]


@settings(deadline=None)
@given(st.lists(measurements(), min_size=1, max_size=4), workloads, st.integers(1, 64))
def test_whatever_was_measured_every_number_is_finite_and_in_its_interval(taken, work, ranks):
    records = [made.record(measurement=m, work=work, ranks=ranks, launch=n) for n, m in enumerate(taken)]
    found = metrics.derive(records)
    assert len({metric.name for metric in found}) == len(found)
    for metric in found:
        assert metric.unit in metrics.UNITS[metric.name]
        assert math.isfinite(metric.value)
        assert metric.value > 0
        assert (metric.low is None) == (metric.high is None)
        if metric.low is not None and metric.high is not None:
            assert 0 < metric.low <= metric.value * (1 + 1e-12)
            assert metric.value * (1 - 1e-12) <= metric.high < math.inf
