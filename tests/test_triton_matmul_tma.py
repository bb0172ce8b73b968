"""The Triton products in the interpreter: right for every dtype and edge, every planted error caught; and who gets which.

As in `tests.test_triton_kernels`, all cases are run in a process that interprets.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from clustergauge.probe import Skip
from kernels import products
from kernels.gate import rules
from kernels.gate.compile import compile_entry
from kernels.gate.entries import entries
from kernels.gate.entry import named
from kernels.gate.targets import TARGETS
from kernels.gate.worker import Job, compile_all
from kernels.triton import matmul, matmul_tiles, matmul_tma
from tests.interpreted import caught, found_by, pairwise, planted

TYPES = {
    "fp16": (torch.float16, torch.float16),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "tf32": (torch.float32, torch.float32),
    "fp8": (torch.float8_e4m3fn, torch.bfloat16),
}
"""Types of the operands and of the output."""
SCALES = 2.0**-3, 2.0**5
"""Of A and B in fp8: powers of two, so that dividing the output by both leaves the product of the operands, bit for bit."""
PRECISION = {**products.PRECISION, "fp8": products.PRECISION["bf16"]}
"""Sums of the interpreter are those of float32 for fp8 too."""
WAYS = {
    "whole": matmul_tma.Config(32, 32, 32, 4, 2, 1, group=2),
    "in parts": matmul_tma.Config(32, 32, 32, 4, 2, 2, group=2),
    "warp-specialised": matmul_tma.Config(32, 64, 16, 4, 2, 2, ws=True, group=2),
    "tall": matmul_tma.Config(64, 32, 32, 4, 2, 1, group=2),
    "promoted": matmul_tma.Config(32, 32, 32, 4, 2, 1, group=2, promote=True),
    "pointers": matmul_tiles.Config(32, 32, 32, 4, 2, group=2),
    "pointers, promoted": matmul_tiles.Config(32, 32, 32, 4, 2, group=2, promote=True),
}
SHAPES = [(64, 64, 64), (70, 72, 48), (1, 16, 16), (129, 40, 80), (33, 200, 16), (31, 8, 112)]
"""M×N×K: all that tiles divide, and each edge ragged; K in whole rows of 16 bytes for every dtype."""

MUTANTS = {
    "a step of K lost": ("range(tl.cdiv(K, BK))", "range(tl.cdiv(K, BK) - 1)"),
    "sums forgotten": ("tl.dot(at, tl.trans(bt), acc, in", "tl.dot(at, tl.trans(bt), in"),
    "sums that begin at one": ("acc = tl.zeros((BM, BN), dtype=tl.float32)", "acc = tl.full((BM, BN), 1.0, tl.float32)"),
    "B not transposed": ("tl.trans(bt)", "bt"),
    "sums forgotten where they are promoted": ("tl.dot(at, tl.trans(bt), acc, max", "tl.dot(at, tl.trans(bt), max"),
    "scale of A twice": ("tl.load(b_scale_ptr)", "tl.load(a_scale_ptr)"),
    "scale of B twice": ("tl.load(a_scale_ptr)", "tl.load(b_scale_ptr)"),
    "the whole not scaled": ("(acc * scale)", "acc"),
    "the first part not scaled": ("(left * scale)", "left"),
    "the second part not scaled": ("(right * scale)", "right"),
    "A not advanced": ("a_src.load([row, k * BK])", "a_src.load([row, 0])"),
    "B not advanced": ("b_src.load([column, k * BK])", "b_src.load([column, 0])"),
    "a tile lost at the start": ("tl.range(tl.program_id(0),", "tl.range(tl.program_id(0) + 1,"),
    "a tile lost at the end": ("tiles_m * tiles_n, tl", "tiles_m * tiles_n - 1, tl"),
    "tiles between programs lost": ("tl.num_programs(0), flatten", "tl.num_programs(0) + 1, flatten"),
    "groups in the same place": ("row = (first + ", "row = ("),
    "tiles in the same column": ("// rows * BN", "// rows * 0"),
    "tiles in the same row": ("% rows) * BM", "% rows) * 0"),
    "the last group as high as the others": ("min(tiles_m - first, GROUP)", "GROUP"),
    "parts in each other's place": ("left, right = ", "right, left = "),
    "parts woven": ("tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1))", "tl.reshape(acc, (BM, BN // 2, 2))"),
    "the second part over the first": ("[row, column + BN // 2]", "[row, column]"),
    "the second part lost": ("c_dst.store([row, column + BN // 2], (right * scale).to(c_dst.dtype))", "pass"),
    "operands swapped": ("zip((a, b, c),", "zip((b, a, c),"),
    "a row too few": ("list(x.shape),", "[x.shape[0] - 1, x.shape[1]],"),
    "a row too many": ("list(x.shape),", "[x.shape[0] + 1, x.shape[1]],"),
    "a column too few": ("list(x.shape),", "[x.shape[0], x.shape[1] - 1],"),
    "a column too many": ("list(x.shape),", "[x.shape[0], x.shape[1] + 1],"),
    "K of N": ("(m, k), n = a.shape, b.shape[0]", "(m, n), k = a.shape, b.shape[0]"),
}
"""Name: what is there, what is planted."""
MUTATED = (70, 72, 48)
SEEN = {
    "sums forgotten where they are promoted": ("promoted", ("fp8",)),
    "scale of A twice": ("whole", ("fp8",)),
    "scale of B twice": ("whole", ("fp8",)),
    "the whole not scaled": ("whole", ("fp8",)),
    "the first part not scaled": ("in parts", ("fp8",)),
    "the second part not scaled": ("in parts", ("fp8",)),
}
"""On which way and dtypes a planted error is seen; all others in parts, on bf16 and tf32."""


# --------------------------------------------------------------------------------------------------------------------------
# in the process that interprets


def cases() -> dict[str, Callable[[], object]]:
    """What is run, by name: nothing comes of it, or the error."""
    from kernels.triton import interpreter

    interpreter.install()
    found: dict[str, Callable[[], object]] = {
        f"{way} {dtype} {shape}": partial(_product, config, dtype, shape)
        for way, config in WAYS.items()
        for dtype in TYPES
        for shape in SHAPES
    }
    for name in MUTANTS:
        way, dtypes = SEEN.get(name, ("in parts", ("bf16", "tf32")))
        found[name] = partial(_mutant, "matmul_tma", name, way, dtypes)
    for name in ("scale of A twice", "scale of B twice"):
        found[f"pointers: {name}"] = partial(_mutant, "matmul", name, "pointers", ("fp8",))
    return found


def _mutant(room: str, name: str, way: str, dtypes: tuple[str, ...]) -> list[str]:
    with planted(room, *MUTANTS[name]):
        return [_product(WAYS[way], dtype, MUTATED) for dtype in dtypes]


def _product(config: matmul_tiles.Config | matmul_tma.Config, dtype: str, shape: tuple[int, int, int]) -> str:
    """Random data against float64, row by row and as a whole, and small integers bit for bit."""
    from kernels.triton import matmul as pointers, matmul_tma as planted

    (m, n, k), (operand, output) = shape, TYPES[dtype]
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.empty((rows, k)) for rows in (m, n))
    products.fill(a, "tf32", generator)
    products.fill(b, "tf32", generator)
    a, b, c = a.to(operand), b.to(operand), torch.empty((m, n), dtype=output)
    call = planted.call
    if planted is matmul_tma or pointers is not matmul:  # the dispatch first, then mutants of what it leads to
        call = pointers.call
    scales = [torch.tensor(scale) for scale in SCALES] if dtype == "fp8" else None
    launch = call(config, dtype, a, b, c, scales)

    def run() -> None:
        launch()
        if scales:
            c.div_(math.prod(SCALES))

    products.poison(c)
    try:
        run()
        products.check_rows(a, b, c, PRECISION[dtype], list(range(m)))
        products.check_whole(a, b, c, PRECISION[dtype], generator)
        products.check_exact(a, b, c, run, generator)
    except Exception as error:  # noqa: BLE001 (the interpreter wraps them all)
        return f"{type(error).__name__}: {error}"
    return ""


# --------------------------------------------------------------------------------------------------------------------------
# in the process that tests


@pytest.fixture(scope="module")
def found():
    """What comes of every case in a process of its own."""
    with found_by("tests.test_triton_matmul_tma") as found:
        yield found


@pytest.mark.parametrize(("way", "dtype", "shape"), pairwise(WAYS, TYPES, SHAPES))
def test_products_of_every_dtype_and_edge_agree_with_float64(found, way, dtype, shape):
    assert found[f"{way} {dtype} {shape}"] == ""


@pytest.mark.parametrize("name", [*MUTANTS, "pointers: scale of A twice", "pointers: scale of B twice"])
def test_a_kernel_with_a_planted_error_is_caught(found, name):
    for reason in found[name]:
        kind = reason.partition(":")[0]
        assert caught(["wrong" if kind == "Wrong" else "error", reason, ""]), reason


# -- who gets it


def test_hopper_and_blackwell_get_tensor_copies_and_all_others_pointers():
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942", "gfx950"):
        for dtype in matmul_tiles.DTYPES:
            if (arch, dtype) == ("gfx950", "tf32") or (dtype.startswith("fp8") and arch in {"sm_80", "sm_86", "gfx942"}):
                continue
            config = matmul_tiles.chosen(arch, dtype, 8192, 8192)
            by_tensor = arch in {"sm_90", "sm_100", "sm_103"} and dtype not in {"int8", "fp32"}
            assert isinstance(config, matmul_tma.Config) == by_tensor
            if by_tensor:
                assert config.ws == (arch != "sm_90")
            else:
                assert config == matmul_tiles.configuration(arch, dtype, 8192, 8192)


@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_110", "gfx90a", "gfx1100", ""])
def test_an_unknown_architecture_is_skipped_by_name(arch):
    with pytest.raises(Skip, match=f"no configuration for bf16 on {arch}"):
        matmul_tiles.chosen(arch, "bf16", 8192, 8192)


@pytest.mark.parametrize(
    ("dtype", "of_n", "of_k"), [("fp16", 8, 8), ("bf16", 8, 8), ("tf32", 4, 4), ("fp8", 8, 16)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_rows_that_do_not_start_at_16_bytes_get_pointers(arch, dtype, of_n, of_k):
    for edge in range(1, 40):
        assert (matmul_tma.configuration(arch, dtype, edge, 8192) is not None) == (edge % of_n == 0)
        assert (matmul_tma.configuration(arch, dtype, 8192, edge) is not None) == (edge % of_k == 0)
    small = replace(matmul_tiles.configuration("interpreter", dtype, 64, 64), promote=(dtype, arch) == ("fp8", "sm_90"))
    assert matmul_tiles.chosen(arch, dtype, 8192, 8191) == matmul_tiles.chosen(arch, dtype, 8191, 8192) == small


def test_a_configuration_says_what_runs():
    tile = "128x256x64, 8 warps, {} stages, groups of 8, persistent by TMA"
    assert str(matmul_tiles.chosen("sm_90", "bf16", 8192, 8192)) == tile.format(3)
    assert str(matmul_tiles.chosen("sm_100", "bf16", 8192, 8192)) == tile.format(4) + ", stored in 2 parts, warp-specialised"
    promoted = "128x128x128, 8 warps, {} stages, groups of 8{}, sums promoted every 128"
    assert str(matmul_tiles.chosen("sm_90", "fp8", 8192, 8192)) == promoted.format(4, ", persistent by TMA")
    assert str(matmul_tiles.chosen("sm_89", "fp8", 8192, 8192)) == promoted.format(3, "")


# -- what is compiled


def test_every_configuration_is_declared_to_the_code_gate_with_ragged_edges_too():
    declared = [(entry.id, *entry.targets) for entry in matmul_tma.gate_entries()]
    assert len(declared) == len(set(declared))
    candidates = {"sm90": {"fp16": 4, "bf16": 4, "tf32": 2, "fp8": 1, "fp8_fast": 3}, "sm100": dict.fromkeys(TYPES, 2)}
    candidates["sm100"]["fp8_fast"] = 2
    assert set(declared) == {
        (f"matmul_tma {named(f'{dtype}{edges}', number)}", name)
        for name, by_dtype in candidates.items()
        for dtype in (*TYPES, "fp8_fast")
        for edges in ("", ", ragged")
        for number in range(1, by_dtype[dtype] + 1)
    }


def test_it_compiles_to_tensor_copies_and_the_widest_products_without_spilling():
    jobs = [Job("matmul_tma bf16", "sm90"), Job("matmul_tma bf16, ragged", "sm100")]
    declared = {(entry.id, name): entry for entry in matmul_tma.gate_entries() for name in entry.targets}
    for job, answer in zip(jobs, compile_all("kernels.gate.entries", jobs, 1), strict=True):
        assert answer.facts, answer.error
        assert rules.problems(declared[job.entry, job.target], TARGETS[job.target], answer.facts) == []
        assert {"UTMALDG", "UTMASTG"} <= answer.facts.copies.keys()
        assert answer.facts.loads == answer.facts.stores == {}
        assert answer.facts.advisories == ()


@pytest.mark.parametrize(
    ("entry", "target", "additions"),
    [
        ("matmul fp8", "sm89", 128 * 128 // 256),
        ("matmul fp8, N ragged", "sm89", 64 * 64 // 128),
        ("matmul fp8, N ragged", "sm90", 64 * 64 // 128),
        ("matmul_tma fp8", "sm90", 128 * 128 // 256),
        ("matmul fp8_fast", "sm89", 0),
        ("matmul_tma fp8_fast", "sm90", 0),
    ],
)
def test_sums_of_fp8_leave_the_tensor_core_or_do_not(monkeypatch, entry, target, additions):
    """One addition of a register for each element of the tile that a thread holds; its loop occurs once."""
    from kernels.gate import compile as compiling

    (found,) = [e for e in entries() if e.id == entry and target in e.targets]
    seen, disassemble = [], compiling.disassemble
    monkeypatch.setattr(compiling, "disassemble", lambda cubin: seen.append(disassemble(cubin)) or seen[0])
    compile_entry(found, TARGETS[target])
    assert len(re.findall(r"\bFADD\b", seen[0])) == additions


def test_too_many_stages_would_not_fit_and_the_gate_says_so():
    (entry,) = [e for e in matmul_tma.gate_entries() if e.id == "matmul_tma tf32" and "sm90" in e.targets]
    facts = compile_entry(replace(entry, stages=4), TARGETS["sm90"])
    assert rules.problems(entry, TARGETS["sm90"], facts) == [f"{facts.shared_bytes} bytes of shared memory, sm90 has 232448"]
