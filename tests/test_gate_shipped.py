"""Kernels that are shipped: all are declared to the code gate, and they are what their golden facts say."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest

from clustergauge.errors import UsageError
from kernels.gate import golden, rules
from kernels.gate.compile import compile_entry, triton_version
from kernels.gate.entries import SHAPES, entries as shipped, jit, undeclared
from kernels.gate.entry import named
from kernels.gate.targets import TARGETS
from kernels.gate.worker import Job, compile_all, load_entries
from kernels.triton import attention_tiles, matmul, matmul_tiles, normalise
from tests.gate_entries import _twice, double, double_kernel, tile_kernel


def test_every_configuration_of_matmul_and_every_operation_on_memory_is_declared():
    declared = {(entry.id, target) for entry in load_entries("kernels.gate.entries") for target in entry.targets}
    everywhere = {"fp32", "tf32", "fp16", "bf16", "int8"}
    for name, dtypes in (
        ("sm80", everywhere),
        ("sm89", everywhere | {"fp8", "fp8_fast"}),
        ("sm90", everywhere | {"fp8", "fp8_fast"}),
        ("sm100", everywhere | {"fp8", "fp8_fast"}),
        ("sm120", everywhere | {"fp8", "fp8_fast"}),
        ("gfx942", everywhere),  # its e4m3 is another
        ("gfx950", (everywhere | {"fp8", "fp8_fast"}) - {"tf32"}),  # has no such instruction
    ):
        by_tensor = {"tf32", "fp16", "bf16", "fp8", "fp8_fast"} if name in {"sm90", "sm100"} else set()
        assert {(entry, target) for entry, target in declared if entry.startswith("matmul ") and target == name} == {
            (f"matmul {named(f'{dtype}, {shape}' if shape else dtype, number)}", name)
            for dtype in dtypes
            for shape, (m, n, k) in SHAPES.items()
            if dtype not in by_tensor or "ragged" in shape or m < 8192
            for number, _ in enumerate(matmul_tiles.candidates(name.replace("sm", "sm_"), dtype, n, k, m), 1)
        }
    for op in ("read", "write", "copy", "scale", "add", "triad"):
        assert {(f"memory {op}", target) for target in TARGETS} <= declared
        assert (f"memory {op}, 4 GiB", "gfx950") in declared


def test_every_kernel_is_declared_on_every_target():
    everything = shipped()
    assert undeclared(everything) == []
    by_kernel = {(jit(e.function).fn.__name__, name) for e in everything for name in e.targets}
    assert by_kernel == {(kernel, name) for kernel, _ in by_kernel for name in TARGETS}


@pytest.mark.parametrize("op", ["softmax", "rmsnorm"])
def test_the_longest_rows_that_are_held_and_both_passes_of_longer_ones_are_declared(op):
    columns = {e.variant.partition(" ")[2] for e in shipped() if e.kernel == op}
    assert columns >= {str(normalise.LONGEST), "131072", "131071", "1000"}


def test_attention_is_declared_for_each_dtype_mask_and_kind_of_length():
    for target in TARGETS:
        for kernel in ("forward", "keys", "queries"):
            for size in ("D64", "D128"):
                said = {e.variant for e in shipped() if e.kernel == f"attention_{kernel}" and target in e.targets}
                kinds = ("bf16 {} causal", "bf16 {} full", "bf16 {} causal ragged", "bf16 {} full ragged", "fp16 {} causal")
                assert {kind.format(size) for kind in kinds} <= said


def test_every_candidate_is_compiled_wherever_a_launch_may_choose_it():
    """On each target with each kind of shape, mask and length of the first of them."""
    compiled = {(entry.id, name): entry.config for entry in shipped() for name in entry.targets}
    tuned = {key: config for key, config in compiled.items() if ", candidate " in key[0]}
    for (entry, name), config in tuned.items():
        first = entry.partition(", candidate ")[0]
        assert compiled[first, name] != config
    for name, (dtype, (m, n, k)) in itertools.product(TARGETS, itertools.product(("bf16", "int8"), SHAPES.values())):
        for config in matmul_tiles.candidates(name.replace("sm", "sm_"), dtype, n, k, m)[1:]:
            assert any(entry.startswith(("matmul ", "matmul_tma ")) for (entry, _), c in tuned.items() if c == str(config))
    for name, family in (("sm80", "sm_80"), ("sm90", "sm_9"), ("sm100", "sm_10")):
        for head_dim, tiles in attention_tiles.OTHERS[family].items():
            for kernel, tile in tiles.items():
                said = {e for (e, target), config in tuned.items() if target == name and config == str(tile)}
                kinds = ("bf16 {}", "bf16 {} ragged", "fp16 {}")
                if kernel != "decode":
                    kinds = ("bf16 {} causal", "bf16 {} full", "bf16 {} causal ragged", "bf16 {} full ragged", "fp16 {} causal")
                wanted = {f"attention_{kernel} {named(kind.format(f'D{head_dim}'), 2)}" for kind in kinds}
                assert wanted <= said


def test_a_candidate_that_cannot_run_fails_the_gate(monkeypatch):
    monkeypatch.setitem(matmul_tiles.OTHERS["sm_80"], "bf16", (matmul_tiles.Config(128, 256, 64, 8, 5),))
    (entry,) = (e for e in shipped() if e.id == "matmul bf16, candidate 2" and e.targets == ("sm80",))
    (said,) = rules.problems(entry, TARGETS["sm80"], compile_entry(entry, TARGETS["sm80"]))
    assert said.endswith("bytes of shared memory, sm80 has 166912")


def test_only_fp32_products_need_no_tensor_core():
    assert {e.variant.partition(",")[0] for e in shipped() if e.kernel == "matmul" and not e.expects.tensor} == {"fp32"}


def test_a_kernel_that_was_forgotten_is_named_and_a_part_of_one_is_not():
    module = ModuleType("tests.gate_entries")
    module.double_kernel, module.tile_kernel, module._twice = double_kernel, tile_kernel, _twice
    assert undeclared([], [module]) == ["tests.gate_entries.double_kernel", "tests.gate_entries.tile_kernel"]
    assert undeclared([double("")], [module]) == ["tests.gate_entries.tile_kernel"]
    assert undeclared(shipped(), [matmul]) == []


def test_an_entry_declared_twice_is_refused(monkeypatch):
    monkeypatch.setattr("tests.gate_entries.entries", lambda: [double("a"), double("a", ("sm80", "sm90"))])
    with pytest.raises(UsageError, match="'double a' is declared twice for sm90"):
        load_entries("tests.gate_entries")


def test_golden_facts_are_kept_for_the_installed_triton_and_obey_the_rules():
    if triton_version() not in golden.versions():
        pytest.skip(f"no golden facts for triton {triton_version()}")
    kept = golden.load(triton_version())
    assert kept
    assert {name for by_target in kept.facts.values() for name in by_target} == {"sm80", "sm90", "sm100", "gfx942"}
    by_id = {(entry.id, name): entry for entry in shipped() for name in entry.targets}
    for entry, by_target in kept.facts.items():
        for name, made in by_target.items():
            assert (entry, name) in by_id
            assert rules.problems(by_id[entry, name], TARGETS[name], made) == []


def test_shipped_kernels_compile_to_their_golden_facts():
    """Some of them, of every kind of target: the command compiles all."""
    kept = golden.load(triton_version())
    if kept is None:
        pytest.skip(f"no golden facts for triton {triton_version()}")
    jobs = [
        Job("matmul_tma bf16", "sm90"),
        Job("matmul bf16", "gfx942"),
        Job("memory triad", "sm100"),
        Job("memory read", "sm80"),
    ]
    for job, answer in zip(jobs, compile_all("kernels.gate.entries", jobs, 1), strict=True):
        assert (job, answer.error) == (job, "")
        assert (job, golden.differences(answer.facts, kept.facts[job.entry][job.target])) == (job, [])
