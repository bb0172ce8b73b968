"""Rates from counted work and planted times: every formula to the last digit."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from clustergauge import metrics, readings, stats
from clustergauge.model import Measurement, Metric, Series, Workload
from tests import made
from tests.strategies import measurements, workloads

OPERATIONS = {"latency": Series(unit="s", values=[1.0] * 1000), "beside_bytes": Series(unit="B", values=[1.0] * 200)}
OPERATIONS |= {name: Series(unit="s", values=[1.0] * 9) for name in ("own_s", "peer_s")}
NETWORK = Workload(message_bytes=10**9, collective="all_reduce", dtype="fp32", bound="network")


def measured(samples: list[float], **more) -> Measurement:
    return Measurement(clock="wall", cache="none", samples_s=samples, **more)


def by_name(*records) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics.derive(records)}


def test_samples_are_what_follows_the_warm_up():
    assert readings.samples(made.record(measurement=measured([9.0, 9.0, 1.0, 2.0], warmup_cut=2))) == [1.0, 2.0]
    assert readings.samples(made.failed("error", "died")) == []


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


def loader(later, compute=0.25, steps=5, launch=0):
    """10 s a sample of ``steps`` steps of 64 samples, all but the first in ``later`` seconds; 4 s of the whole in a library."""
    series = {"later_steps": Series(unit="s", values=later), "framework": Series(unit="s", values=[4.0 / steps] * len(later))}
    taken = measured([10.0 / steps] * len(later), iterations_per_sample=steps, series=series)
    work = Workload(samples=64, bytes_read=1 << 20, bound="storage")
    return made.record(work=work, measurement=taken, settings={"compute_s": compute}, launch=launch)


def test_samples_a_second_are_of_all_steps_and_utilisation_is_without_the_first():
    found = metrics.derive([loader([2.0] * 9)])
    assert (found[0].name, found[0].unit, found[0].value) == ("samples", "samples/s", pytest.approx(32))
    assert by_name(loader([2.0] * 9))["utilisation"].value == pytest.approx(4 * 0.25 / 2.0)
    assert by_name(loader([1.0, 2.0, 4.0] * 5))["utilisation"].value == pytest.approx(0.5)


@pytest.mark.parametrize("record", [loader([2.0] * 9, compute=0.0), loader([2.0] * 9, compute=None), loader([2.0] * 9, steps=1)])
def test_there_is_no_utilisation_where_nothing_is_computed_or_there_is_one_step(record):
    assert "utilisation" not in by_name(record)


def test_every_metric_is_declared_with_its_unit():
    works = [Workload(flops=1, bytes_read=1, ios=1, message_bytes=1, collective="all_reduce"), Workload(ops=1)]
    joules = {"window": "sampling", "cpu_energy_j": 1.0, "cpu_energy_from_s": 0.0, "cpu_energy_to_s": 9.0}
    seen: set[tuple[str, str]] = set()
    for work in works:
        record = made.record(
            work=work,
            ranks=2,
            measurement=measured([1.0] * 200, sample_start_s=[float(i) for i in range(200)], loop_mean_s=1.0, series=OPERATIONS),
            device_bytes={"read": 1, "asked_read": 1},
            settings={"burn_in": True},
            telemetry=joules,
        )
        alone = msgspec.structs.replace(record, ranks=1)
        seen |= {(metric.name, metric.unit) for launch in (record, alone) for metric in metrics.derive([launch])}
    seen |= {
        (metric.name, metric.unit)
        for metric in metrics.derive(
            [
                loader([1.0] * 200),
            ]
        )
    }
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


IO = Workload(ios=1, bytes_read=4096, bound="storage")


def latencies(values, samples=(1.0,) * 30, **more):
    return measured(list(samples), series={"latency": Series(unit="s", values=values)}, **more)


def test_operations_a_second_are_the_headline_of_what_is_counted_in_operations():
    found = metrics.derive([made.record(work=IO, samples=[1e-5] * 30)])
    assert (found[0].name, found[0].unit, found[0].value) == ("iops", "IO/s", pytest.approx(1e5))
    assert by_name(made.record(work=IO, samples=[1e-5] * 30))["bandwidth"].value == pytest.approx(4096e5)


def test_quantiles_of_latency_come_from_the_series_and_need_enough_values():
    values = [1.0] * 980 + [3.0] * 15 + [9.0] * 5
    found = by_name(made.record(work=IO, measurement=latencies(values)))
    assert [found[f"latency_p{q}"].value for q in ("50", "99", "999")] == [1.0, 3.0, 9.0]
    assert found["latency_p50"].better == "lower"
    assert "latency_p999" not in by_name(made.record(work=IO, measurement=latencies(values[:999])))
    assert "latency_p99" not in by_name(made.record(work=IO, measurement=latencies([1.0] * 99)))
    assert "latency_p50" not in by_name(made.record(work=IO))
    few = made.record(work=IO, measurement=latencies([1.0] * 99), launch=1)
    assert "latency_p99" not in by_name(made.record(work=IO, measurement=latencies(values)), few)


def test_the_latencies_of_the_warm_up_do_not_count():
    cut = latencies([9.0] * 300 + [1.0] * 1200, samples=[3.0] * 6 + [1.0] * 24, warmup_cut=6)
    assert by_name(made.record(work=IO, measurement=cut))["latency_p999"].value == 1.0
    assert by_name(made.record(work=IO, measurement=latencies([9.0] * 300 + [1.0] * 1200)))["latency_p99"].value == 9.0


def test_the_rate_of_a_writer_beside_is_its_bytes_over_the_time_of_each_sample():
    beside = {"beside_bytes": Series(unit="B", values=[4e6, 6e6, 8e6] * 10)}
    both = measured([0.001, 0.002, 0.004] * 10, iterations_per_sample=10, series=beside)
    assert by_name(made.record(work=IO, measurement=both))["beside"].value == pytest.approx(3e8)
    assert "beside" not in by_name(made.record(work=IO))
    short = measured([1.0] * 30, series={"beside_bytes": Series(unit="B", values=[1.0] * 29)})
    assert "beside" not in by_name(made.record(work=IO, measurement=short))
    still = measured([1.0] * 30, series={"beside_bytes": Series(unit="B", values=[0.0] * 30)})
    assert "beside" not in by_name(made.record(work=IO, measurement=still))


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


# -- energy


def near(value: float):
    """Energies are smaller than the absolute tolerance of pytest."""
    return pytest.approx(value, rel=1e-9, abs=0)


def drawing(joules: float = 700.0, start: float = 0.25, end: float = 4.25, device: str = "cuda:1", **more):
    """A record of runs of 5 ms, ten a sample, a sample every 62.5 ms, whose device's counter was read from start to end."""
    part = "cpu" if device == "cpu:0" else f"gpu{device[5:]}"
    said = {"window": "sampling", f"{part}_energy_j": joules, f"{part}_energy_from_s": start, f"{part}_energy_to_s": end}
    taken = measured([5e-3] * 100, sample_start_s=[i / 16 for i in range(100)], iterations_per_sample=10, warmup_cut=7)
    fields = {"work": WORK, "device": device, "measurement": taken, "telemetry": said | more.pop("telemetry", {})}
    return made.record(**fields | more)


WORK = Workload(flops=10**12, bytes_read=3 * 10**9, bytes_written=10**9, bound="compute")


@pytest.mark.parametrize("device", ["cuda:1", "cuda:11", "cpu:0"])
def test_energy_is_what_the_counter_moved_over_the_runs_between_its_readings(device):
    found = by_name(drawing(device=device))
    per_run = 700.0 / 640  # 4 s, a sample every 1/16 s, ten runs each
    assert (found["energy_per_flop"].value, found["energy_per_flop"].unit) == (near(per_run / 1e12), "J/FLOP")
    assert (found["energy_per_byte"].value, found["energy_per_byte"].unit) == (near(per_run / 4e9), "J/B")
    assert {found[name].better for name in ("energy_per_flop", "energy_per_byte")} == {"lower"}
    longer = by_name(drawing(device=device, end=6.25))  # what was cut as warm-up drew energy too
    assert longer["energy_per_flop"].value == near(700.0 / 960 / 1e12)
    integers = by_name(drawing(device=device, work=Workload(ops=10**12, bound="compute")))
    assert (integers["energy_per_flop"].value, integers["energy_per_flop"].unit) == (near(per_run / 1e12), "J/OP")
    assert "energy_per_byte" not in integers


def test_the_ends_of_the_energy_hold_what_was_done_between_samples_and_how_coarse_the_readings_are():
    found = by_name(drawing())["energy_per_flop"]
    # of 62.5 ms the work took 50; one sample more or less of 64; a counter's step of 0.1 s in 4
    assert found.low == near(700.0 * 0.975 * 0.8 / 650 / 1e12)
    assert found.high == near(700.0 * 1.025 / 630 / 1e12)


def test_launches_give_one_energy_with_the_ends_of_all():
    launches = [drawing(j, launch=n) for n, j in enumerate((600.0, 700.0, 900.0))]
    alone = [by_name(r)["energy_per_flop"] for r in launches]
    found = by_name(*launches)["energy_per_flop"]
    assert (found.value, found.low, found.high) == (alone[1].value, alone[0].low, alone[2].high)
    some = by_name(launches[0], drawing(launch=1, telemetry={"window": "case"}))["energy_per_flop"]
    assert some == alone[0], "a launch that knows none takes nothing from those that do"


@pytest.mark.parametrize(
    "unknown",
    [
        {"telemetry": {"window": "case"}},  # the counter's readings are not beside the samples
        {"telemetry": {"gpu1_energy_j": None}},
        {"telemetry": {"gpu1_energy_j": "many"}},
        {"telemetry": {"gpu1_energy_to_s": None}},
        {"device": "cuda:0", "telemetry": {"gpu1_energy_j": 700.0, "gpu0_energy_j": None}},  # of another GPU
        {"joules": 0.0},
        {"start": 3.3},  # less than a second
        {"start": 3.9, "end": 8.25},  # in less than half of which the work ran
        {"ranks": 2},
        {"work": Workload(bytes_read=10**9, bound="storage")},
        {"measurement": Measurement(clock="wall", cache="none", samples_s=[5e-3] * 100, iterations_per_sample=10)},
    ],
)
def test_energy_is_absent_where_it_is_not_known(unknown):
    assert "energy_per_flop" in by_name(drawing())
    assert not {"energy_per_flop", "energy_per_byte"} & by_name(drawing(**unknown)).keys()


@settings(deadline=None)
@given(st.floats(1e-3, 1e6), st.floats(0, 5), st.floats(0, 9), st.integers(1, 1000), st.floats(1e-6, 1))
def test_whatever_a_counter_says_the_energy_lies_within_its_ends(joules, start, end, calls, seconds):
    taken = measured([seconds] * 50, sample_start_s=[i * seconds * calls for i in range(50)], iterations_per_sample=calls)
    metric = by_name(drawing(joules, start, end, measurement=taken)).get("energy_per_flop")
    if metric:
        assert 0 < metric.low <= metric.value <= metric.high < math.inf
        assert end - start >= 1


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
