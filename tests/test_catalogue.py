"""The parts that are known: a name means one part or none, and every figure has a source."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from clustergauge.catalogue import known, normal_name, part_of
from tests.parts import gpu, peak

PARTS = list(known().parts.values())
NAMES = [(name, part.name) for part in PARTS for name in part.device_names]


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
