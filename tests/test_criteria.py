"""Acceptance files: read strictly, every mistake with file, line and field; written so that they are read back."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from clustergauge import criteria
from clustergauge.criteria import Acceptance, Expect, fits, parse, to_toml
from clustergauge.errors import UsageError
from clustergauge.globs import matches
from clustergauge.model import Criterion

GOOD = """\
schema = 1
title = "a node"

[expect]
gpus = 8
gpu_memory = "80GiB"

[expect.versions]
nvidia_driver = ">=550"

[[criteria]]
case = "attention/*"
of_ceiling = 0.5

[[criteria]]
case = "matmul/*"
metric = "compute"
floor = 700
unit = "TFLOP/s"
source = "a good run"
"""


def test_a_file_is_read():
    file = parse(GOOD, "a.toml")
    assert file.criteria[1] == Criterion(case="matmul/*", metric="compute", unit="TFLOP/s", floor=700, source="a good run")
    assert file.expect == Expect(gpus=8, gpu_memory="80GiB", versions={"nvidia_driver": ">=550"})


def test_the_source_of_the_file_serves_criteria_without_one():
    file = parse('source = "the vendor"\n' + GOOD, "a.toml")
    assert [c.source for c in file.criteria] == ["the vendor", "a good run"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[criteria]]", "[[criteria]", "a.toml: not TOML"),
        ("floor = 700", "flor = 700", "a.toml:18: criteria[1].flor: Object contains unknown field `flor`"),
        ("floor = 700", 'floor = "700"', "a.toml:18: criteria[1].floor: Expected `float | null`, got `str`"),
        ("floor = 700\n", "", "a.toml:15: criteria[1]: needs exactly one of floor, limit, of_ceiling,"),
        ("floor = 700", "floor = 700\nlimit = 3", "a.toml:15: criteria[1]: needs exactly one of"),
        ("floor = 700", "floor = -1", "a.toml:18: criteria[1].floor: -1: must be more than 0"),
        ("floor = 700", "floor = nan", "a.toml:18: criteria[1].floor: nan: must be more than 0"),
        ("floor = 700", "floor = inf", "a.toml:18: criteria[1].floor: inf: must be more than 0"),
        ("TFLOP/s", "parsec", "a.toml:19: criteria[1].unit: unknown unit 'parsec'"),
        ("TFLOP/s", "GB/s", "a.toml:19: criteria[1].unit: compute is not measured in GB/s (but in FLOP/s or OP/s)"),
        ('"compute"', '"speed"', "a.toml:17: criteria[1].metric: unknown metric 'speed' (there are time"),
        ("of_ceiling = 0.5", "of_ceiling = 50", "a.toml:13: criteria[0].of_ceiling: 50 is a fraction: 0.9 is 90 %"),
        (
            "of_ceiling = 0.5",
            'of_peers = 0.5\nunit = "GB/s"',
            "a.toml:14: criteria[0].unit: of_peers is a fraction and has no unit",
        ),
        ("floor = 700", "reference = 700", "criteria[1].lower: a reference needs lower or upper"),
        (
            "floor = 700",
            "reference = 700\nlower = 0.1",
            "a.toml:19: criteria[1].lower: 0.1: a fraction of the reference, from -1",
        ),
        ("floor = 700", "reference = 700\nupper = -0.1", "a.toml:19: criteria[1].upper: -0.1: a fraction of the reference, 0 or"),
        ("floor = 700", "limit = 700", "a.toml:18: criteria[1].limit: more compute is better: say floor"),
        (
            "floor = 700",
            "reference = 700\nupper = 0.1",
            "a.toml:18: criteria[1].reference: lets any machine pass: lower says how much less compute is well",
        ),
        ('case = "matmul/*"', 'case = ""', "a.toml:16: criteria[1].case: an empty glob"),
        ("schema = 1", "schema = 2", "a.toml:1: schema: 2 is not known"),
        ("gpus = 8", "gpus = -8", "a.toml:5: expect.gpus: -8: must be 0 or more"),
        ("gpus = 8", "gpu_count = 8", "a.toml:5: expect.gpu_count: Object contains unknown field"),
        ('"80GiB"', '"many"', "a.toml:6: expect.gpu_memory: "),
        (
            "gpus = 8",
            'nic_kind = "roce"',
            "a.toml:5: expect.nic_kind: says which ports are meant: say how many",
        ),
        ("gpus = 8", "nic_rate_gbit_s = 400", "a.toml:5: expect.nic_rate_gbit_s: says which ports are meant"),
        ('">=550"', '"new"', "a.toml:9: expect.versions.nvidia_driver: 'new' is no version"),
        ("[expect.versions]", "[expect.settings]\nx = nan\n[expect.versions]", "a.toml:9: expect.settings.x: nan: no setting is"),
        ("gpus = 8", f"gpus = {'9' * 400}", f"a.toml:5: expect.gpus: {'9' * 20}: must be 0 or more"),
        ("gpus = 8", f"gpus = {'9' * 5000}", "a.toml: not TOML: Exceeds the limit (4300 digits)"),
        ("gpus = 8", f"gpus = {'[' * 100_000}", "a.toml: not TOML: nested too deeply"),
        ("floor = 700", f"floor = {'9' * 400}", "a.toml:18: criteria[1].floor: Number out of range"),
        ("floor = 700", "floor = 1e300", "a.toml:18: criteria[1].floor: 1e+300 TFLOP/s: beyond all that is measured"),
        ("floor = 700", "floor = 1e-300", "a.toml:18: criteria[1].floor: 1e-300 TFLOP/s: beyond all that is measured"),
        ("of_ceiling = 0.5", "of_ceiling = 1e-9", "a.toml:13: criteria[0].of_ceiling: 1e-09 is a fraction: 0.9 is 90 %"),
    ],
)
def test_a_mistake_names_file_line_and_field(old, new, said):
    with pytest.raises(UsageError) as caught:
        parse(GOOD.replace(old, new), "a.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["schema = 1", "[expect]", "[expect.versions]"])
def test_a_file_that_asks_for_nothing_is_a_mistake(text):
    with pytest.raises(UsageError, match="asks for nothing"):
        parse(text, "a.toml")


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    with pytest.raises(UsageError):
        parse(text, "a.toml")


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
some = st.lists(
    st.builds(
        Criterion,
        case=names,
        metric=st.just("compute"),
        unit=st.just("TFLOP/s"),
        floor=st.floats(1e-6, 1e6),
        required=st.booleans(),
        source=names,
    ),
    min_size=1,
    max_size=4,
)
expectations = st.builds(
    Expect, gpus=st.none() | st.integers(0, 16), gpu=names, ecc=st.none() | st.booleans(), settings=st.dictionaries(names, names)
)


@given(some, st.none() | expectations, names)
def test_what_is_written_is_read_back(found, expect, title):
    file = Acceptance(criteria=found, expect=expect, title=title)
    assert parse(to_toml(file, ["a comment"]), "a.toml") == file


@pytest.mark.parametrize(
    ("asked", "found", "fit"),
    [
        (">=550", "550.54.15", True),
        (">=550.60", "550.54.15", False),
        ("==2.13.0", "2.13.0", True),
        ("==2.13.0", "2.13.1", False),
        ("2.13", "2.13.0+cu126", True),
        ("2.1", "2.13.0", False),
        (">=2.9", "2.13.0+cpu", True),
    ],
)
def test_versions_are_compared_by_their_numbers(asked, found, fit):
    assert fits(asked, found) is fit


@pytest.mark.parametrize(
    ("glob", "case", "meant"),
    [
        ("mat", "matmul/shape=256", True),
        ("matmul/shape=256", "matmul/shape=256", True),
        ("matmul/shape=256", "matmul/shape=2560", False),
        ("shape=256/x=1", "matmul/shape=256/x=1", True),
        ("matmul/*=256", "matmul/shape=256", True),
        ("matmul/*=256", "matmul/shape=2560", False),
    ],
)
def test_a_path_means_whole_parts_and_a_word_any_part(glob, case, meant):
    assert matches(glob, case) is meant


@pytest.mark.parametrize("lead", ["", "\ufeff"])
def test_a_glob_that_matches_no_case_is_named_with_file_line_and_field(lead):
    found = parse(GOOD, "a.toml").criteria
    criteria.check_fits(found, ["matmul/dtype=bf16/shape=1", "attention/mode=decode"], GOOD, "a.toml")
    with pytest.raises(UsageError, match=r"^a.toml:16: criteria\[1\].case: 'matmul/\*' matches no case of this run$"):
        criteria.check_fits(found, ["attention/mode=decode"], lead + GOOD, "a.toml")


def test_an_energy_is_asked_for_in_its_own_units():
    text = '[[criteria]]\ncase = "*"\nmetric = "energy_per_{}"\nunit = "pJ/FLOP"\nlimit = 1.5\n'
    assert parse(text.format("flop"), "a.toml").criteria[0].limit == 1.5
    with pytest.raises(UsageError, match="energy_per_byte is not measured in pJ/FLOP"):
        parse(text.format("byte"), "a.toml")


@pytest.mark.parametrize(("metric", "unit"), [("time", "ms"), ("latency_p99", "us"), ("energy_per_flop", "pJ/FLOP")])
def test_what_is_better_the_less_there_is_of_it_has_no_floor(metric, unit):
    text = f'[[criteria]]\ncase = "*"\nmetric = "{metric}"\nunit = "{unit}"\n'
    with pytest.raises(UsageError, match=rf"criteria\[0\]\.floor: less {metric} is better: say limit"):
        parse(text + "floor = 3", "a.toml")
    with pytest.raises(UsageError, match=r"criteria\[0\]\.reference: lets any machine pass: upper says how much more"):
        parse(text + "reference = 3\nlower = -0.1", "a.toml")
    for well in ("limit = 3", "reference = 3\nupper = 0.1", "reference = 3\nupper = 0.1\nlower = -0.1"):
        assert parse(text + well, "a.toml").criteria


@pytest.mark.parametrize("kind", ["floor", "limit"])
def test_a_fraction_may_be_bound_on_either_side(kind):
    text = f'[[criteria]]\ncase = "*"\nmetric = "device_fraction"\nunit = "1"\n{kind} = 0.5'
    assert parse(text, "a.toml").criteria
