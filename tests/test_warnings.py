"""Doubts: each is raised by what was planted, says its figures, and is silent on a quiet machine."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest

from clustergauge import metrics, stats, warnings
from clustergauge.ceilings import Ceiling
from clustergauge.model import Counters, Measurement, Metric, Record, Series, Workload
from reports import terminal
from reports.rows import rows_of
from tests import made
from tests.made_up import loaded
from tests.test_stats import noise


def steady(seed: int = 1, cv: float = 0.002, count: int = 100) -> list[float]:
    return noise(np.random.default_rng(seed), cv, 0.0, count).tolist()


def spikes(height: float) -> list[float]:
    """Five of a hundred samples are this slow."""
    return [height if i % 20 == 10 else 1.0 for i in range(100)]


def names(*records: Record) -> list[str]:
    return [warning.name for warning in warnings.doubts(records)]


def only(*records: Record) -> str:
    """The detail of the only doubt."""
    (warning,) = warnings.doubts(records)
    assert warning.remedy
    return warning.detail


def detail(name: str, *records: Record) -> str:
    return next(warning.detail for warning in warnings.doubts(records) if warning.name == name)


def test_a_quiet_case_raises_no_doubt():
    settings = {"clock_tick_s": 1e-9}
    telemetry = {"gpu0_throttle": "none", "gpu0_limited": "sw_power_cap", "gpu0_sm_mhz_start": 1980.0, "gpu0_sm_mhz_end": 1800.0}
    assert names(made.record(samples=steady(), settings=settings, telemetry=telemetry)) == []
    assert warnings.doubts([]) == []


def test_records_without_checked_times_raise_no_doubt():
    assert names(made.failed("error", "died"), made.record(status="wrong", samples=[1.0, 5.0])) == []


def test_launches_that_did_different_work_are_named():
    other = Workload(flops=10**12, dtype="fp32", bound="compute")
    assert (
        only(made.record(samples=steady()), made.record(samples=steady(), work=other, launch=1))
        == "launches did different amounts of work: they have no time in common"
    )


def test_a_number_above_a_ceiling_that_is_no_proof_is_doubted_and_one_above_a_firm_ceiling_is_left_to_the_verdict():
    """2 TFLOP/s is what `made.record` reaches, ±1 % for the spread between launches."""

    def said(value: float, firm: bool = False, name: str = "compute") -> list[tuple[str, str]]:
        def ceiling(record: Record, metric: Metric) -> Ceiling | None:
            return Ceiling(value, metric.unit, firm, "planted") if metric.name == name else None

        launches = [made.record(samples=steady()), made.record(samples=steady(), launch=1)]
        return [(warning.name, warning.detail) for warning in warnings.doubts(launches, ceiling)]

    assert said(1.9e12) == [("above the ceiling", "compute 2.00 TFLOP/s, at most 1.90 TFLOP/s: planted")]
    assert said(1.995e12) == said(2.1e12) == said(1.9e12, firm=True) == said(1.0, name="busbw") == []
    (warning,) = warnings.doubts([made.record(samples=steady())], lambda r, m: Ceiling(1.0, m.unit, m.name != "compute", ""))
    assert "--ceilings FILE" in warning.remedy


def test_a_spread_over_five_percent_is_restless():
    assert (
        only(made.record(samples=spikes(2.0))) == "samples spread by 20.8% (standard deviation over mean), from 1.00 s to 2.00 s"
    )
    assert names(made.record(samples=spikes(1.3))) == ["restless"]
    assert "restless" not in names(made.record(samples=[1.0, 1.08] * 50))


def test_samples_of_single_operations_are_told_by_their_rates():
    """The time in the table is that of one operation."""

    def said(name, samples):
        latency = Series(unit="s", values=[0.5] * len(samples))
        measurement = Measurement(clock="wall", cache="none", samples_s=samples, series={"latency": latency})
        return detail(name, made.record(work=Workload(ios=10, bytes_read=40960, bound="storage"), measurement=measurement))

    assert said("restless", spikes(2.0)) == "samples spread by 20.8% (standard deviation over mean), from 10.0 IO/s to 5.00 IO/s"
    modes = said("two modes", [1.0, 1.0, 1.0, 1.1] * 25)
    assert modes == "75% of the samples reach about 10.0 IO/s, the others 9.09 IO/s (+10.0%)"


def test_an_interval_wider_than_asked_says_why():
    record = made.record(measurement=Measurement(clock="wall", cache="none", samples_s=[1.0, 1.06] * 10, stop_reason="budget"))
    assert only(record) == "±3.1 % after 20 samples, which were to bring it near 1%: the time was up"
    full = made.record(measurement=Measurement(clock="wall", cache="none", samples_s=[1.0, 1.06] * 10, stop_reason="samples"))
    assert only(full).endswith("a record keeps no more")
    assert "wide interval" not in names(made.record(samples=[1.0, 1.01] * 10))


def test_too_few_samples_for_an_interval_are_said():
    assert detail("wide interval", made.record(samples=[1.0, 1.01, 1.02])) == "3 samples are too few for an interval"
    assert detail("wide interval", made.record(samples=[1.0])) == "1 sample is too few for an interval"


def test_enough_samples_that_resemble_each_other_are_not_said_to_be_few():
    ramp = [1.0, 1.02, 1.05, 1.09, 1.14, 1.2, 1.27, 1.35, 1.44]
    said = detail("wide interval", made.record(samples=ramp))
    assert said.startswith("each sample resembles the one before (ρ = 0.")
    assert said.endswith("): 9 are worth 1, too few for an interval")


def test_the_warning_and_the_table_speak_of_one_interval():
    """Of a rate, whose interval is another than that of the time where both are wide."""
    record = made.record(samples=[0.1, 1.0, 3.0] * 12)
    (row,) = rows_of(loaded(record), [])
    assert row.headline
    assert row.headline.name == "compute"
    (line,) = (line for line in terminal.page_of(loaded(record), [], 160).text().splitlines() if line.startswith("matmul "))
    (share,) = re.findall(r"[0-9.]+ %", line.partition("FLOP/s")[2])
    assert float(share.split()[0]) > 100
    assert detail("wide interval", record).startswith(f"±{share} after 36 samples")
    assert stats.median_interval([0.1, 1.0, 3.0] * 12).half_width != pytest.approx(metrics.half_width(row.headline), rel=0.2)


def test_samples_that_resemble_each_other_are_worth_fewer():
    swing = (1 + 0.004 * np.sin(np.arange(200) / 3)).tolist()
    assert detail("correlated", made.record(samples=swing)).startswith("each sample resembles the one before (ρ = 0.9")
    assert "correlated" not in names(made.record(samples=noise(np.random.default_rng(1), 0.004, 0.5, 200).tolist()))


def test_a_sample_under_100_ticks_is_short():
    measurement = Measurement(clock="wall", cache="none", samples_s=[1e-6] * 30, iterations_per_sample=5)
    short = made.record(measurement=measurement, settings={"clock_tick_s": 1e-7})
    assert only(short) == "a sample takes 5.00 µs, 50 ticks of its clock (100 ns)"
    assert names(made.record(measurement=measurement, settings={"clock_tick_s": 4e-8})) == []
    for unknown in ({}, {"clock_tick_s": None}, {"clock_tick_s": "fast"}, {"clock_tick_s": True}, {"clock_tick_s": 0.0}):
        assert names(made.record(measurement=measurement, settings=unknown)) == []


def test_a_slower_last_third_is_drift():
    samples = [s * (1 + 0.03 * i / 60) for i, s in enumerate(steady(count=60))]
    assert detail("drift", made.record(samples=samples)).startswith("the last third is 2.0% slower than the first")
    assert "faster" in detail("drift", made.record(samples=samples[::-1]))
    little = [s * (1 + 0.01 * i / 60) for i, s in enumerate(steady(count=60))]
    assert "drift" not in names(made.record(samples=little))
    assert "drift" not in names(made.record(samples=[1.0] * 9 + [1.1] * 9))  # too few to speak of thirds


STORED = Workload(bytes_read=4096, ios=1, bound="storage")


def rates(*windows: float, width: int = 4) -> list[float]:
    """Samples whose last five windows have these rates, after as many that are not looked at."""
    return [1.0] * (5 * width) + [1 / rate for rate in windows for _ in range(width)]


def test_storage_whose_last_windows_stray_or_slope_is_not_steady():
    def doubted(samples: list[float], work: Workload = STORED) -> bool:
        return "not steady" in names(made.record(work=work, samples=samples))

    assert detail("not steady", made.record(work=STORED, samples=rates(1, 1, 1.5, 1, 1))).startswith(
        "in the last 5 windows the rate strays by 36% from its mean and changes by +0%"
    )
    assert "changes by -12%" in detail("not steady", made.record(work=STORED, samples=rates(1.06, 1.03, 1.0, 0.97, 0.945)))
    assert not doubted(rates(1, 1, 1.2, 1, 1))
    assert not doubted(rates(1.04, 1.02, 1.0, 0.98, 0.96))
    assert not doubted([2.0] * 20 + rates(1, 1, 1, 1, 1)[20:])  # what came before does not count
    assert doubted(rates(1, 1, 1.5, 1, 1, width=1))
    assert not doubted([1.0, 9.0, 1.0, 9.0])  # too few to say
    assert not doubted(rates(1, 1, 1.5, 1, 1), Workload(flops=1, bound="compute"))


def test_storage_on_a_device_that_is_a_file_or_memory_is_unproven():
    moved = {"read": 100, "asked_read": 100, "written": 0, "asked_written": 0}
    record = made.record(work=STORED, device_bytes=moved, settings={"fs_type": "ext4"})
    assert "unproven" not in names(record)
    behind = "loop0 is the file /image, through the page cache"
    cached = msgspec.structs.replace(record, settings={"fs_type": "ext4", "device_cached": behind})
    assert detail("unproven", cached) == f"{behind}: what the device does cannot be seen from here"


def test_two_modes_are_told_with_their_shares():
    samples = np.random.default_rng(3).permutation(steady(count=75) + [1.1 * s for s in steady(2, count=25)]).tolist()
    assert detail("two modes", made.record(samples=samples)) == (
        "75% of the samples take about 1.00 s, the others 1.10 s (+10.0%)"
    )


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([*steady(count=96), *[1.5] * 4], id="outliers are no mode"),
        pytest.param([*steady(count=60), *[1.015 * s for s in steady(2, count=40)]], id="a gap under 2 %"),
        pytest.param([*steady(count=30), *[1.1 * s for s in steady(2, count=15)]], id="under 50 samples"),
        pytest.param(np.linspace(1.0, 1.5, 200).tolist(), id="evenly spread"),
        pytest.param(noise(np.random.default_rng(3), 0.05, 0.0, 500).tolist(), id="one wide mode"),
        pytest.param(
            [*steady(count=38), *[1.05 * s for s in steady(2, count=25)], *[1.1 * s for s in steady(3, count=37)]],
            id="three modes",
        ),
        pytest.param([1.0] * 100, id="all equal"),
    ],
)
def test_these_are_not_two_modes(samples):
    assert "two modes" not in names(made.record(samples=samples))


def test_two_modes_of_a_coarse_clock_are_found():
    assert "two modes" in names(made.record(samples=[1.0] * 60 + [1.1] * 40))


def test_quiet_machines_are_seldom_accused():
    """False alarms on plain noise of CV 1 %, ρ .3."""
    random = np.random.default_rng(9)
    alarms = [n for _ in range(300) for n in names(made.record(samples=noise(random, 0.01, 0.3, 60).tolist()))]
    assert len(alarms) <= 9


def test_a_clock_below_nine_tenths_of_its_start_is_named():
    telemetry = {"gpu0_sm_mhz_start": 1980.0, "gpu0_sm_mhz_end": 1485.0, "cpu_mhz_start": 3000.0, "cpu_mhz_end": 2950.0}
    record = made.record(samples=steady(), telemetry=telemetry)
    assert only(record) == "the gpu0 sm clock fell from 1980 to 1485 MHz (75%)"
    for unknown in (
        {"cpu_mhz_start": 3000.0},
        {"cpu_mhz_start": 3000.0, "cpu_mhz_end": None},
        {"cpu_mhz_start": "x", "cpu_mhz_end": 1.0},
    ):
        assert names(made.record(samples=steady(), telemetry=unknown)) == []


@pytest.mark.parametrize(
    ("telemetry", "health", "said"),
    [
        ({"gpu0_throttle": "hw_thermal_slowdown"}, {}, "gpu0: hw_thermal_slowdown"),
        ({}, {"gpu1.throttle": "none → hw_power_brake_slowdown"}, "gpu1.throttle: none → hw_power_brake_slowdown"),
        ({}, {"cpu.package_throttle": 12}, "cpu.package_throttle: +12"),
        ({}, {"gpu0.thermal_violation_ns": 5}, "gpu0.thermal_violation_ns: +5"),
    ],
)
def test_a_throttle_is_told_wherever_it_was_seen(telemetry, health, said):
    record = made.record(samples=steady(), telemetry=telemetry, counters=Counters(health=health))
    assert names(record) == ["throttled"]
    assert only(record) == said


def test_a_throttle_that_ended_and_a_power_cap_are_no_doubt():
    health = {"gpu0.throttle": "hw_slowdown → none"}
    telemetry = {"gpu0_limited": "sw_power_cap", "gpu0_throttle": "none"}
    assert names(made.record(samples=steady(), telemetry=telemetry, counters=Counters(health=health))) == []


def test_error_counters_that_moved_are_told_and_unknown_ones_not():
    health = {"gpu0.ecc_uncorrected": 2, "eth0.state": "up → down", "unknown": "gpu1.ecc_corrected"}
    record = made.record(samples=steady(), counters=Counters(health=health))
    assert names(record) == ["health"]
    assert only(record) == "gpu0.ecc_uncorrected: +2; eth0.state: up → down"
    assert names(made.record(samples=steady(), counters=Counters(health={"unknown": "x"}))) == []


def test_of_several_launches_the_worst_is_told_once():
    quiet, bad, worse = steady(), spikes(2.0), spikes(3.0)
    found = only(*(made.record(samples=s, launch=n) for n, s in enumerate((quiet, bad, worse))))
    assert found.endswith("from 1.00 s to 3.00 s (launch 2; 2 of 3 launches)")


def test_the_warm_up_raises_no_doubt():
    measurement = Measurement(clock="wall", cache="none", samples_s=[9.0] * 5 + steady(), warmup_cut=5)
    assert names(made.record(measurement=measurement)) == []


def test_fewer_than_three_launches_are_said_once_for_the_run():
    records = [made.record(n=n, launch=launch) for n in (1, 2) for launch in range(2)]
    (warning,) = warnings.of_run(records)
    assert warning.name == "few launches"
    assert warning.detail == "every case had 2 launches: the spread between launches is not measured, 0.5% is assumed"
    assert "--launches" in warning.remedy
    more = [made.record(n=1, launch=launch) for launch in range(3)]
    assert warnings.of_run(more) == []
    (warning,) = warnings.of_run([*more, made.record(n=2)])
    assert warning.detail.startswith("1 of 2 cases had 1 launch:")


def test_a_run_without_numbers_has_no_launches_to_speak_of():
    assert warnings.of_run([made.failed("skipped", "no GPU")]) == []
    assert warnings.of_run([made.record(launch=n, status="ok" if n < 1 else "wrong") for n in range(3)]) != []
