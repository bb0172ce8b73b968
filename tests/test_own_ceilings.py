"""A user's own file of ceilings: laid over ours, strict, and known by what it holds."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from clustergauge import ceilings
from clustergauge.catalogue import Catalogue, Figure, Part, known, load, part_of
from clustergauge.ceilings import ceiling
from clustergauge.errors import UsageError
from clustergauge.model import Metric
from tests.parts import CPU, H100, bandwidth, compute, gpu, machine, record


def own(tmp_path, text: str) -> Catalogue:
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
        ("parts = " + "[" * 100_000, "not TOML: nested too deeply"),
        ("schema = " + "9" * 5000, "not TOML: Exceeds the limit"),
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
