"""The acceptance files that come along: they read, their globs meet the suite, no figure lies above what the part can reach."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

import run_suite
from clustergauge import accept, catalogue, criteria
from clustergauge.criteria import Acceptance
from clustergauge.forecast import predict
from clustergauge.model import Criterion
from clustergauge.plan import Wish, load_probes, load_suite, plan
from clustergauge.plan_nodes import plan_nodes
from clustergauge.units import parse_rate, parse_size
from tests import made
from verbs.cases import probe_modules

SUITES = Path(run_suite.__file__).parent / "suites"
FILES = sorted((SUITES / "machines").glob("*.toml"))
PARTS = {
    "a100-8": ("NVIDIA A100-SXM4-80GB", "sm_80"),
    "h100-8": ("NVIDIA H100 80GB HBM3", "sm_90"),
    "h200-8": ("NVIDIA H200", "sm_90"),
    "b200-8": ("NVIDIA B200", "sm_100"),
    "mi300x-8": ("AMD Instinct MI300X", "gfx942"),
    "cpu": ("", ""),
}
LINKS_GB_S = {"a100-8": 300, "h100-8": 450, "h200-8": 450, "b200-8": 900, "mi300x-8": 448}
"""Of all links of a GPU to its peers together, one way, by data sheet.  In-network reduction halves what an all-reduce moves."""
ADAPTERS_GB_S = {"a100-8": 200, "h100-8": 400, "h200-8": 400, "b200-8": 400, "mi300x-8": 400}
"""Of all network adapters of the nodes that the figures are of, one way."""
PCIE_GB_S = {"a100-8": 31.5, "h100-8": 63, "h200-8": 63, "b200-8": 63, "mi300x-8": 63}


def load(path: Path) -> Acceptance:
    return criteria.parse(path.read_text(), str(path))


def machine(name: str, number: int = 0):
    """A made-up machine of this kind, with all that is needed to plan for it."""
    gpu, arch = PARTS[name]
    found = made.machine(gpus=8 if gpu else 0, cores=64, machine_id=f"m{number}", host=f"n{number}", memory_bytes=1 << 41)
    return msgspec.structs.replace(found, gpus=[msgspec.structs.replace(g, name=gpu, arch=arch) for g in found.gpus])


@pytest.fixture
def everything(monkeypatch):
    """All packages are there, as on such a machine; they are not imported."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object() if name == "cupy" else found(name, *more))
    return load_probes(probe_modules())


def test_the_files_are_those_we_know_parts_for():
    assert sorted(path.stem for path in FILES) == sorted(PARTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_criterion_is_about_cases_of_the_suite_and_has_its_source(path, everything):
    machines = {f"n{n}": machine(path.stem, n) for n in range(2)}
    planned = plan_nodes(load_suite(SUITES / "accept.toml"), everything, machines, list(machines), Wish(targets=["/x"]))
    run = [p for p in planned if not p.skip]
    for criterion in load(path).criteria:
        assert [p for p in run if accept.applies(criterion, p.case, p.device)], criterion.case
        assert criterion.source, criterion.case
        assert not criterion.device.endswith(":nodes") or not criterion.required


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_figure_lies_above_what_the_part_can_reach(path):
    acceptance = load(path)
    absolute = [c for c in acceptance.criteria if (c.floor or c.reference) is not None]
    assert path.stem == "cpu" or len(absolute) >= 6
    for criterion in absolute:
        value, limit = parse_rate(criterion.floor or criterion.reference or 0, criterion.unit)[0], highest(path.stem, criterion)
        assert 0.3 * limit < value < limit, (criterion.case, value, limit)


def highest(name: str, criterion: Criterion) -> float:
    """What the part can reach of a criterion's metric, in its bare unit."""
    part = next(p for p in catalogue.known().parts.values() if PARTS[name][0] in p.device_names)
    if criterion.metric == "compute":
        dtype = next(d for d in ("bf16", "fp16", "tf32", "fp8") if f"dtype={d}" in criterion.case)
        return part.peak[dtype].value * 1e12
    if criterion.metric == "bandwidth" and criterion.case.startswith("memory/"):
        assert part.bandwidth_gb_s
        return part.bandwidth_gb_s.value * 1e9
    if criterion.metric == "bandwidth":
        return PCIE_GB_S[name] * 1e9
    assert criterion.metric == "busbw"
    if criterion.device == "cuda:nodes":
        return ADAPTERS_GB_S[name] * 1e9
    return LINKS_GB_S[name] * 1e9 * (2 if criterion.case.startswith("all_reduce/") else 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_part_that_is_expected_is_the_one_the_figures_are_of(path):
    expect = load(path).expect
    assert expect
    gpu = PARTS[path.stem][0]
    assert expect.gpus == (8 if gpu else 0)
    assert expect.gpu in gpu
    if gpu:
        part = next(p for p in catalogue.known().parts.values() if gpu in p.device_names)
        assert parse_size(expect.gpu_memory) // 2**30 in part.memory_gb


def test_a_prolog_fits_into_a_minute(everything):
    assert predict(plan(load_suite(SUITES / "check.toml"), everything, machine("h100-8"), Wish(targets=["/x"]))) <= 60


@pytest.mark.parametrize("shared", [False, True])
def test_64_nodes_are_accepted_in_half_an_hour(everything, shared):
    """As `--dry-run` predicts it, on nodes of eight GPUs that have disks of their own or one file system."""
    machines = {f"n{n}": machine("h100-8", n) for n in range(64)}
    suite, names, wish = load_suite(SUITES / "accept.toml"), list(machines), Wish(targets=["/x"])
    planned = plan_nodes(suite, everything, machines, names, wish, shared={"/x": [names]} if shared else None)
    assert {p.nodes for p in planned} == {1, 8, 64}
    assert {p.target for p in planned if p.skip} == ({"/x"} if shared else set())
    assert predict(planned) <= 30 * 60


def test_what_is_asked_of_one_machine_is_not_asked_of_many_together():
    inside, over = made.record("all_reduce", device="cuda:all"), made.record("all_reduce", device="cuda:nodes")
    for criterion, found in (
        (Criterion(case="*", device="cuda", floor=1), [True, False]),
        (Criterion(case="*", device="cuda:nodes", floor=1), [False, True]),
        (Criterion(case="*", floor=1), [True, True]),
    ):
        assert [accept.applies(criterion, r.case, r.device) for r in (inside, over)] == found
