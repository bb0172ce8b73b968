"""Ceilings: the most that a metric can be, and what is unknown stays unknown."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from clustergauge import ceilings
from clustergauge.ceilings import at_clock, ceiling, observed_mhz
from clustergauge.model import Gpu, Metric, Place
from tests.parts import CPU, H100, bandwidth, compute, gpu, machine, peak, record

# -- GPUs


def test_the_device_is_found_by_number_pci_address_or_uuid():
    a100 = Gpu(index=1, name="NVIDIA A100-SXM4-80GB", uuid="GPU-b", pci="0000:2b:00.0", sm_clock_max_mhz=1410.0)
    both = machine(H100, a100)

    def value(**fields) -> float | None:
        limit = ceiling(record(**fields), both, compute())
        return limit and limit.value / 1e12

    assert value(device="cuda:0") == pytest.approx(989.4)
    assert value(device="cuda:1") == 312
    assert value(device="cuda:2") is None
    assert value(device="cuda:0", placement=[Place(rank=0, host="h", device="GPU-b")]) == 312
    assert value(device="cuda:0", placement=[Place(rank=0, host="h", device="GPU-c")]) is None
    assert value(device="cuda:0", placement=[Place(rank=0, host="h", device="cuda:0", pci="0000:2b:00.0")]) == 312
    assert value(device="cuda:0", placement=[Place(rank=0, host="h", device="cuda:0", pci="0000:ff:00.0")]) is None


def test_compute_is_the_dense_peak_of_the_dtype_in_bare_units():
    limit = peak(H100)
    assert limit.value == pytest.approx(989.4e12)
    assert limit.unit == "FLOP/s"
    assert limit.firm
    assert limit.source.startswith("H100 SXM5 80GB, bf16 dense at 1830 MHz: https://")
    assert peak(H100, "int8").unit == "OP/s"
    assert peak(H100, "int8").value == pytest.approx(1978.9e12)
    assert peak(H100, "int8", compute()) is None
    assert peak(H100, "bf16", compute(unit="OP/s")) is None


def test_a_ceiling_of_compute_units_follows_the_clock_and_one_of_memory_does_not():
    limit = peak(H100)
    assert limit.clock_mhz == 1830
    assert at_clock(limit, 1830.0) == limit.value
    assert at_clock(limit, 1410.0) == limit.value * 1410 / 1830
    assert peak(H100, "fp32").clock_mhz == 1980
    assert at_clock(ceiling(record(bound="memory"), machine(H100), bandwidth()), 1410.0) is None
    assert at_clock(peak(gpu("Tesla V100-SXM2-16GB"), "fp16"), 1410.0) is None, "the clock of this figure is not known"
    assert at_clock(ceiling(record("cpu:0", "fp32"), machine(), compute()), 1500.0) == 8 * 1.5e9 * 32


@pytest.mark.parametrize(
    ("device", "said", "mhz"),
    [
        ("cuda:1", {"window": "sampling", "gpu1_sm_mhz_median": 1410.0, "gpu11_sm_mhz_median": 9.0}, 1410.0),
        ("cpu:0", {"window": "sampling", "cpu_mhz_median": 3100.0, "gpu0_sm_mhz_median": 9.0}, 3100.0),
        ("cuda:1", {"window": "case", "gpu1_sm_mhz_median": 1410.0}, None),
        ("cuda:1", {"gpu1_sm_mhz_median": 1410.0}, None),
        ("cuda:1", {"window": "sampling", "gpu0_sm_mhz_median": 1410.0}, None),
        ("cuda:1", {"window": "sampling", "gpu1_sm_mhz_median": "fast"}, None),
        ("cuda:1", {"window": "sampling", "gpu1_sm_mhz_median": 0.0}, None),
        ("cuda:all", {"window": "sampling", "gpu1_sm_mhz_median": 1410.0}, None),
    ],
)
def test_the_clock_observed_is_that_of_the_device_while_it_was_sampled(device, said, mhz):
    assert observed_mhz(record(device, telemetry=said)) == mhz


def test_a_machine_that_is_not_here_has_no_ceiling():
    limit = ceilings.of_machines({"m1": machine(H100)})
    assert limit(record(), compute()) == peak(H100)
    assert limit(record(machine_id="m2"), compute()) is None


def test_fp64_may_use_the_matrix_units():
    assert peak(H100, "fp64").value == pytest.approx(66.9e12)
    assert "fp64 matrix dense at 1980 MHz" in peak(H100, "fp64").source
    assert peak(H100, "fp64_matrix") is None


def test_what_a_part_cannot_do_or_nobody_says_has_no_ceiling():
    assert peak(gpu("NVIDIA A100-SXM4-80GB"), "fp8") is None
    assert peak(gpu("Tesla T4"), "bf16") is None
    assert peak(gpu("NVIDIA H20"), "fp32") is None
    assert peak(H100, "") is None
    assert peak(H100, "fp4") is None


def test_a_clock_above_that_of_the_data_sheet_explains_some_excess_and_no_more():
    # 1980 / 1830 MHz and 2 % of rounding: up to 1092 TFLOP/s
    assert peak(H100, metric=compute(980e12)).firm
    assert not peak(H100, metric=compute(990e12)).firm
    assert not peak(H100, metric=compute(1091e12)).firm
    assert peak(H100, metric=compute(1093e12)).firm
    assert peak(H100, metric=compute(2000e12)).value == pytest.approx(989.4e12)


def test_the_low_end_of_the_interval_decides_what_the_clock_explains():
    assert not peak(H100, metric=compute(1200e12, low=1000e12, high=1400e12)).firm
    assert peak(H100, metric=compute(1200e12, low=1100e12, high=1300e12)).firm


def test_without_the_highest_clock_or_with_unsure_figures_nothing_is_firm():
    unknown = peak(msgspec.structs.replace(H100, sm_clock_max_mhz=None), metric=compute(2000e12))
    assert not unknown.firm
    assert unknown.source.endswith("; no proof: the highest clock of this device is not known here")
    assert "no proof" not in peak(msgspec.structs.replace(H100, sm_clock_max_mhz=None), metric=compute(500e12)).source
    assert not peak(gpu("NVIDIA A10G", sm_clock_max_mhz=1710.0), metric=compute(2000e12)).firm
    assert not peak(gpu("NVIDIA B300 SXM6 AC", sm_clock_max_mhz=1920.0), metric=compute(9000e12)).firm
    assert not peak(gpu("Tesla V100-SXM2-16GB", sm_clock_max_mhz=1530.0), "fp16", compute(2000e12)).firm  # of unknown clock


def test_memory_bandwidth_is_for_memory_bound_work_on_cold_caches():
    here = machine(H100)
    limit = ceiling(record(bound="memory"), here, bandwidth())
    assert (limit.value, limit.unit, limit.firm) == (3.35e12, "B/s", True)
    assert "memory: https://" in limit.source
    assert ceiling(record(bound="memory", cache="hot"), here, bandwidth()) is None
    assert ceiling(record(bound="memory", cache="none"), here, bandwidth()) is None
    assert ceiling(record(bound="storage"), here, bandwidth()) is None
    assert ceiling(record(bound="memory", measurement=None), here, bandwidth()) is None
    assert ceiling(record(bound="memory"), machine(gpu("NVIDIA GB300")), bandwidth()) is None


def test_the_rounding_of_a_data_sheet_makes_no_liar():
    here = machine(H100)
    assert not ceiling(record(bound="memory"), here, bandwidth(3.352e12)).firm
    assert ceiling(record(bound="memory"), here, bandwidth(3.5e12)).firm
    unsure = machine(gpu("NVIDIA B200"))
    assert not ceiling(record(bound="memory"), unsure, bandwidth(99e12)).firm


@pytest.mark.parametrize("name", ["time", "time_p99", "algbw", "busbw", "loop_time", "loop_busbw", "device_fraction"])
def test_other_metrics_have_no_ceiling(name):
    for bound in ("network", "memory", "compute"):
        for device in ("cuda:0", "cpu:0"):
            metric = Metric(name=name, value=1.0, unit="B/s")
            assert ceiling(record(device=device, bound=bound, dtype="fp32"), machine(H100), metric) is None


def test_several_ranks_or_no_workload_have_no_ceiling():
    assert ceiling(record(ranks=2), machine(H100), compute()) is None
    assert ceiling(record(workload=None), machine(H100), compute()) is None
    assert ceiling(record(device="cpu:0", dtype="fp32", ranks=2), machine(), compute()) is None


# -- processors


@pytest.mark.parametrize(
    ("vector", "dtype", "operations"),
    [
        ("sse2", "fp32", 16),
        ("sse2", "fp64", 8),
        ("avx2", "fp32", 2 * 8 * 2),
        ("avx2", "fp64", 2 * 4 * 2),
        ("avx512", "fp32", 2 * 16 * 2),
        ("avx512", "fp64", 2 * 8 * 2),
        ("avx512", "bf16", 2 * 32 * 2),
        ("avx512", "int8", 2 * 64 * 2),
        ("amx", "fp32", 64),
        ("amx", "bf16", 1024),
        ("amx", "int8", 2048),
        ("neon", "fp32", 4 * 4 * 2),
        ("neon", "fp64", 4 * 2 * 2),
    ],
)
def test_a_processor_is_cores_times_clock_times_operations_and_never_firm(vector, dtype, operations):
    cpu = msgspec.structs.replace(CPU, vector=vector)
    unit = "OP/s" if dtype == "int8" else "FLOP/s"
    limit = ceiling(record("cpu:0", dtype), machine(cpu=cpu), compute(1e30, unit))
    assert limit.value == 8 * 3.0e9 * operations
    assert limit.unit == unit
    assert not limit.firm
    assert limit.source.startswith(f"estimated: 8 cores × 3000 MHz × {operations} operations a cycle, the most of any {vector}")
    assert "https://" in limit.source


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"clock_max_mhz": None}, "fp32"),
        ({"clock_max_mhz": 0.0}, "fp32"),
        ({"cores": 0}, "fp32"),
        ({"vector": ""}, "fp32"),
        ({"vector": "sve"}, "fp32"),
        ({"vector": "avx1024"}, "fp32"),
        ({"vector": "avx2"}, "bf16"),
        ({"vector": "avx2"}, "int8"),
        ({"vector": "amx"}, "tf32"),
        ({"vector": "neon"}, "bf16"),
    ],
)
def test_an_unknown_processor_has_no_ceiling(fields, dtype):
    cpu = msgspec.structs.replace(CPU, **fields)
    assert ceiling(record("cpu:0", dtype), machine(cpu=cpu), compute(unit="OP/s" if dtype == "int8" else "FLOP/s")) is None


def test_the_memory_of_a_processor_has_no_ceiling():
    assert ceiling(record("cpu:0", "fp64", "memory"), machine(), bandwidth()) is None


def test_no_device_library_is_needed():
    heavy = ("torch", "numpy", "scipy", "triton", "mpi4py", "pynvml", "cupy")
    code = "import sys; from clustergauge import catalogue, ceilings; catalogue.known()"
    code += f"; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
