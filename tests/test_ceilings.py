"""Ceilings: a name means one part or none, every figure has a source, and what is unknown stays unknown."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import catalogue as parts, ceilings
from clustergauge.catalogue import Figure, Part, known, load, normal_name, part_of
from clustergauge.ceilings import at_clock, ceiling, observed_mhz
from clustergauge.errors import UsageError
from clustergauge.model import Cpu, Gpu, Machine, Measurement, Metric, Place, Record, Workload

CPU = Cpu(model="Test", cores=8, threads=16, allowed="0-15", clock_max_mhz=3000.0, vector="avx2")
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-a", pci="0000:1b:00.0", sm_clock_max_mhz=1980.0)
PARTS = list(known().parts.values())
NAMES = [(name, part.name) for part in PARTS for name in part.device_names]


def gpu(name: str, **fields) -> Gpu:
    return Gpu(index=0, name=name, uuid="GPU-a", **fields)


def machine(*gpus: Gpu, cpu: Cpu = CPU) -> Machine:
    return Machine(machine_id="m1", host="h", cpu=cpu, memory_bytes=1 << 34, gpus=list(gpus))


def record(device: str = "cuda:0", dtype: str = "bf16", bound: str = "compute", cache: str = "cold", **fields) -> Record:
    given_fields = {
        "run_id": "r",
        "case": "c",
        "probe": "p",
        "params": {},
        "machine_id": "m1",
        "status": "ok",
        "started": "2026-01-01T00:00:00Z",
        "workload": Workload(flops=1, dtype=dtype, bound=bound),
        "measurement": Measurement(clock="wall", cache=cache),
    }
    return Record(device=device, **(given_fields | fields))


def compute(value: float = 1.0, unit: str = "FLOP/s", **fields) -> Metric:
    return Metric(name="compute", value=value, unit=unit, **fields)


def bandwidth(value: float = 1.0, **fields) -> Metric:
    return Metric(name="bandwidth", value=value, unit="B/s", **fields)


def peak(device: Gpu, dtype: str = "bf16", metric: Metric | None = None):
    return ceiling(record(dtype=dtype), machine(device), metric or compute(unit="OP/s" if dtype == "int8" else "FLOP/s"))


# -- the data


def test_every_figure_has_a_source_with_an_address():
    data = known()
    figures = [
        *(f for rates in data.cores.values() for f in rates.values()),
        *(f for part in PARTS for f in part.peak.values()),
        *(f for part in PARTS for f in (part.clock_mhz, part.matrix_clock_mhz, part.bandwidth_gb_s, part.l2_mib) if f),
    ]
    assert len(figures) > 300
    for figure in figures:
        assert all(source in data.sources for source in figure.source)
    assert all(address.startswith("https://") for address in data.sources.values())
    used = {source for figure in figures for source in figure.source}
    assert used == set(data.sources)


def test_every_part_has_a_name_a_memory_and_something_to_say():
    for part in PARTS:
        assert part.device_names
        assert part.memory_gb
        assert part.arch
        assert part.peak


def test_faster_formats_are_never_slower():
    order = ("fp32", "tf32", "fp16", "fp8")
    for part in PARTS:
        rates = [part.peak[dtype].value for dtype in order if dtype in part.peak]
        assert rates == sorted(rates), part.name
        if "fp16" in part.peak and "bf16" in part.peak:
            assert part.peak["fp16"].value == part.peak["bf16"].value


def test_a_part_with_fp64_matrix_units_of_unknown_rate_has_no_fp64_ceiling():
    for part in PARTS:
        if part.arch in ("sm_80", "sm_90") and "fp64" in part.peak:
            assert "fp64_matrix" in part.peak, part.name


@pytest.mark.parametrize(
    ("part", "dtype", "value", "firm"),
    [
        ("H100 SXM5 80GB", "bf16", 989.4, True),
        ("H100 SXM5 80GB", "fp8", 1978.9, True),
        ("H100 SXM5 80GB", "fp32", 66.9, True),
        ("H100 PCIe 80GB", "bf16", 756, True),
        ("H200 SXM5", "bf16", 989.4, True),
        ("A100 SXM4 80GB", "bf16", 312, True),
        ("A100 SXM4 80GB", "tf32", 156, True),
        ("B200 SXM", "bf16", 2250, True),
        ("B300 SXM", "int8", 150, False),
        ("GB200", "bf16", 2500, True),
        ("Instinct MI300X", "bf16", 1307.4, True),
        ("Instinct MI250X (one GCD)", "bf16", 191.5, True),
        ("GeForce RTX 4090", "bf16", 165.2, True),
        ("T4", "int8", 130, False),
    ],
)
def test_peaks_are_those_of_the_data_sheets(part, dtype, value, firm):
    figure = known().parts[part].peak[dtype]
    assert (figure.value, figure.firm) == (value, firm)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("H100 SXM5 80GB", 3350),
        ("H200 SXM5", 4800),
        ("A100 SXM4 40GB", 1555),
        ("A100 SXM4 80GB", 2039),
        ("A100 PCIe 80GB", 1935),
        ("Instinct MI300X", 5300),
        ("Instinct MI250X (one GCD)", 1638.4),
    ],
)
def test_memory_bandwidths_are_those_of_the_data_sheets(part, value):
    assert known().parts[part].bandwidth_gb_s.value == value


# -- which part is it


@pytest.mark.parametrize(("name", "part"), NAMES)
def test_each_device_name_is_its_own_part_and_only_that(name, part):
    assert part_of(gpu(name)).name == part
    assert sum(name in other.device_names for other in PARTS) == 1
    for spelling in (name.upper(), name.lower(), name.replace("NVIDIA ", ""), name.replace(" ", "  "), name.replace("-", " ")):
        assert part_of(gpu(spelling)).name == part


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA H100 96GB HBM3",
        "NVIDIA H100 NVL 80GB",
        "NVIDIA H100 PCIe 94GB",
        "NVIDIA H800",
        "NVIDIA H20-3e",
        "NVIDIA H20 141GB",
        "NVIDIA H200 NVL 96GB",
        "NVIDIA A100",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100 40GB PCIe",
        "NVIDIA A100X",
        "NVIDIA A10-24Q",
        "GRID A100-40C",
        "NVIDIA A16",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 48GB",
        "NVIDIA RTX A6000",
        "NVIDIA RTX 6000",
        "Quadro RTX 6000",
        "NVIDIA RTX PRO 6000 Blackwell",
        "NVIDIA B200 NVL",
        "NVIDIA GB200 NVL4",
        "AMD Instinct MI300",
        "AMD Instinct MI250",
        "Tesla V100-PCIE-16GB",
        "xNVIDIA B200",
        "NVIDIA H100 80GB HBM3\x00",
        "NVIDIA H100 80GB HBM3\x1b[31m",
    ],
)
def test_a_near_name_is_no_part(name):
    assert part_of(gpu(name)) is None
    assert peak(gpu(name)) is None


@pytest.mark.parametrize(
    ("name", "part"),
    [("NVIDIA H200 141GB", "H200 SXM5"), ("NVIDIA B200 180 GB", "B200 SXM"), ("GeForce RTX 3090 24GB", "GeForce RTX 3090")],
)
def test_the_size_of_the_memory_may_stand_behind_a_name_if_it_is_the_right_one(name, part):
    assert part_of(gpu(name)).name == part


@given(st.text(max_size=40))
def test_no_text_is_taken_for_a_part_it_does_not_name(text):
    part = part_of(gpu(text))
    if part:
        stripped = normal_name(text)
        assert any(stripped.startswith(normal_name(name)) for name in part.device_names)


def test_memory_and_architecture_must_agree_with_the_name():
    name = "NVIDIA H100 80GB HBM3"
    assert part_of(gpu(name, memory_bytes=81559 << 20, arch="sm_90"))
    assert part_of(gpu(name, memory_bytes=10 << 30)) is None
    assert part_of(gpu(name, memory_bytes=141 * 10**9)) is None
    assert part_of(gpu(name, arch="sm_80")) is None
    assert part_of(gpu(name, mig=True)) is None
    assert part_of(gpu("Tesla V100-SXM2-16GB", memory_bytes=16 << 30))
    assert part_of(gpu("Tesla V100-SXM2-32GB", memory_bytes=32 << 30))
    mi300x = "AMD Instinct MI300X"
    assert part_of(gpu(mi300x, memory_bytes=192 << 30, arch="gfx942:sramecc+:xnack-"))
    assert part_of(gpu(mi300x, memory_bytes=24 << 30)) is None  # one of eight partitions, under the same name


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


# -- GPU ceilings


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


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("tittle = 1", "schema, sources, cores, parts"),
        ('[[parts]]\nname = "x"\nvendor = "y"', "name, device_names, arch, memory_gb, note, clock_mhz, matrix_clock_mhz, "),
        ('[[parts]]\nname = "x"\npeak.fp32 = { value = 1, source = ["y"], unit = "z" }', "value, firm, source"),
        ('[[parts]]\nname = "x"\nclock_mhz = { value = 1, source = ["y"], unit = "z" }', "value, firm, source"),
        ('[cores.avx2]\nfp32 = { value = 1, source = ["y"], unit = "z" }', "value, firm, source"),
    ],
)
def test_where_a_field_is_not_known_those_that_are_stand_beside_it(tmp_path, text, there):
    with pytest.raises(UsageError) as caught:
        own(tmp_path, text)
    assert f" (there are: {there}" in str(caught.value)


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


# -- a user's own file


def own(tmp_path, text: str) -> parts.Catalogue:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_a_users_file_adds_a_part_and_leaves_ours(tmp_path):
    catalogue = own(
        tmp_path,
        """
        [[parts]]
        name = "Prototype"
        device_names = ["NVIDIA Graphics Device"]
        peak.bf16 = { value = 100, firm = true, source = ["measured by us"] }
        bandwidth_gb_s = { value = 1000, source = ["measured by us"] }
        """,
    )
    limit = ceiling(record(), machine(gpu("NVIDIA Graphics Device")), compute(), catalogue)
    assert limit == ceilings.Ceiling(100e12, "FLOP/s", False, "Prototype, bf16 dense: measured by us")
    assert part_of(H100, catalogue) == part_of(H100)
    assert part_of(gpu("NVIDIA Graphics Device")) is None


def test_a_users_file_mends_one_figure_of_a_part(tmp_path):
    catalogue = own(
        tmp_path,
        """
        [sources]
        lab = "https://example.org/lab"
        [cores.avx512]
        fp32 = { value = 32, source = ["lab"] }
        [[parts]]
        name = "B200 SXM"
        bandwidth_gb_s = { value = 7700, firm = true, source = ["lab"] }
        peak.fp64 = { value = 40, source = ["lab"] }
        """,
    )
    ours, mended = known().parts["B200 SXM"], catalogue.parts["B200 SXM"]
    assert mended.bandwidth_gb_s == Figure(value=7700, firm=True, source=["lab"])
    assert mended.peak == {**ours.peak, "fp64": Figure(value=40, source=["lab"])}
    assert mended.device_names == ours.device_names
    limit = ceiling(record(bound="memory"), machine(gpu("NVIDIA B200")), bandwidth(), catalogue)
    assert (limit.value, limit.source) == (7.7e12, "B200 SXM, memory: https://example.org/lab")
    cpu = msgspec.structs.replace(CPU, vector="avx512")
    assert ceiling(record("cpu:0", "fp32"), machine(cpu=cpu), compute(), catalogue).value == 8 * 3.0e9 * 32
    assert ceiling(record("cpu:0", "fp64"), machine(cpu=cpu), compute(), catalogue).value == 8 * 3.0e9 * 32
    assert catalogue.cores["avx2"] == known().cores["avx2"]


def test_a_users_part_may_take_a_device_name_over(tmp_path):
    catalogue = own(tmp_path, '[[parts]]\nname = "Ours"\ndevice_names = ["nvidia h100 PCIe"]\n')
    assert part_of(gpu("NVIDIA H100 PCIe"), catalogue) == Part(name="Ours", device_names=["nvidia h100 PCIe"])
    assert part_of(gpu("NVIDIA H100 PCIe")).name == "H100 PCIe 80GB"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[parts]", "not TOML"),
        ("speed = 1", "unknown field `speed`"),
        ("schema = 2", "schema 2 is not known"),
        ('[[parts]]\ndevice_names = ["x"]', "missing required field `name` - at `$.parts[0]`"),
        ('[[parts]]\nname = ""', "at `$.parts[0].name`"),
        ('[[parts]]\nname = "x"\ntflops = 1', "unknown field `tflops` - at `$.parts[0]`"),
        ('[[parts]]\nname = "x"\npeak.fp5 = { value = 1, source = ["s"] }', "`$.parts[0].peak`"),
        ('[[parts]]\nname = "x"\npeak.fp8 = { value = -1, source = ["s"] }', "`$.parts[0].peak[...].value`"),
        ('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = 0, source = ["s"] }', "`$.parts[0].bandwidth_gb_s.value`"),
        ('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = inf, source = ["s"] }', "`$.parts[0].bandwidth_gb_s.value`"),
        ('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = nan, source = ["s"] }', "`$.parts[0].bandwidth_gb_s.value`"),
        ('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = true, source = ["s"] }', "`$.parts[0].bandwidth_gb_s.value`"),
        ('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = 1 }', "missing required field `source`"),
        ('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = 1, source = [] }', "`$.parts[0].bandwidth_gb_s.source`"),
        ('[cores.mmx]\nfp32 = { value = 1, source = ["s"] }', "`$.cores`"),
        ('[[parts]]\nname = "x"\n[[parts]]\nname = "x"', "two parts are named 'x'"),
        (
            '[[parts]]\nname = "x"\ndevice_names = ["d e"]\n[[parts]]\nname = "y"\ndevice_names = ["D-E"]',
            "device name 'D-E' belongs to both 'x' and 'y'",
        ),
    ],
)
def test_a_mistake_in_a_users_file_is_one_line_with_file_and_field(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        own(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'own.toml'}: ")
    assert words in message
    assert "\n" not in message


def test_a_users_file_may_name_processors_whose_figures_are_of_one_socket(tmp_path):
    catalogue = own(
        tmp_path,
        """
        [[parts]]
        name = "ours"
        device_names = ["AMD EPYC 7B13"]
        clock_mhz = { value = 3000, firm = true, source = ["lab"] }
        bandwidth_gb_s = { value = 200, firm = true, source = ["lab"] }
        peak.fp32 = { value = 2, firm = true, source = ["lab"] }
        """,
    )
    cpu = msgspec.structs.replace(CPU, model="AMD EPYC 7B13", sockets=2)

    def limit(metric: Metric, dtype: str = "fp32", bound: str = "compute", **fields):
        here = machine(cpu=msgspec.structs.replace(cpu, **fields))
        return ceiling(record("cpu:0", dtype, bound), here, metric, catalogue)

    assert limit(compute()) == ceilings.Ceiling(4e12, "FLOP/s", True, "2 × ours, fp32 dense at 3000 MHz: lab", 3000)
    assert limit(bandwidth(), bound="memory") == ceilings.Ceiling(400e9, "B/s", True, "2 × ours, memory: lab")
    assert limit(bandwidth(), bound="memory", sockets=1).value == 200e9
    assert limit(bandwidth(500e9), bound="memory").firm
    faster = limit(compute(4.1e12), clock_max_mhz=3600.0)
    assert not faster.firm
    assert faster.source.endswith("lab; no proof: its clock goes up to 3600 MHz, and figures are rounded")
    assert limit(compute(14e12), clock_max_mhz=3600.0).firm
    unknown = limit(compute(14e12), clock_max_mhz=None)  # a virtual machine tells none: the file's is the highest
    assert (unknown.firm, unknown.value) == (True, 4e12)
    assert not limit(compute(4.05e12), clock_max_mhz=None).firm  # rounding
    assert limit(bandwidth(), bound="memory", sockets=None) is None
    assert limit(bandwidth(), bound="memory", model="AMD EPYC 7B12") is None
    assert limit(compute(), "fp64").source.startswith("estimated: 8 cores"), "what the file does not say is estimated as ever"


def test_a_users_file_is_known_by_its_path_and_what_it_holds(tmp_path):
    text = '\ufeff[[parts]]\nname = "x"\n'
    found = own(tmp_path, text)
    assert (found.path, found.sha256) == (str(tmp_path / "own.toml"), hashlib.sha256(text.encode()).hexdigest())
    assert (known().path, known().sha256) == ("", "")


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no file of ceilings"):
        load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot read ceilings"):
        load(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read ceilings"):
        load(tmp_path / "bytes.toml")


def test_no_device_library_is_needed():
    heavy = ("torch", "numpy", "scipy", "triton", "mpi4py", "pynvml", "cupy")
    code = "import sys; from clustergauge import catalogue, ceilings; catalogue.known()"
    code += f"; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
