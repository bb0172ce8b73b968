"""Every Triton kernel in the interpreter: every dtype and operation is right, and every planted error is caught.

The interpreter needs a process of its own, with TRITON_INTERPRET=1 set before triton is imported: `tests.interpreted` runs
``cases()`` there.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from clustergauge.probe import Skip
from kernels.triton import interpreter, matmul, matmul_tiles
from tests.interpreted import VERIFIED, case, caught, found_by, planted

DTYPES = matmul_tiles.DTYPES
SHAPES = ("64", "72x80x40", "130x65x129", "1x1x1", "520x64x32")
FEW = ("1x48x272", "3x80x160", "16x32x256", "64x144x160")
"""Few rows, of columns and sums that make tiles of their own, whole and ragged."""
OPS = ("read", "write", "copy", "scale", "add", "triad")
SIZES = (8192, 8192 + 8, (1 << 18) - 8)

MUTANTS = {
    "matmul": (
        ("a step of K lost", "range(tl.cdiv(K, BK))", "range(tl.cdiv(K, BK) - 1)"),
        ("sums forgotten", "tl.dot(at, bt, acc, ", "tl.dot(at, bt, "),
        ("operands not advanced", "        a += BK\n", ""),
        ("operands swapped", "launch(a, b, c, *factors", "launch(b, a, c, *factors"),
        ("padding of A and B is one", "other=0.0)", "other=1.0)"),
        ("K one too long", "< K - k * BK", "<= K - k * BK"),
        ("K one too short", "< K - k * BK", "< K - 1 - k * BK"),
        ("last row not written", "(tile_m * BM + cm < M)", "(tile_m * BM + cm < M - 1)"),
        ("last column not written", "(cn < N)", "(cn < N - 1)"),
        ("a column too many", "(cn < N)", "(cn <= N)"),
        ("a row too many", "(tile_m * BM + cm < M)", "(tile_m * BM + cm <= M)"),
        ("a tile not written", "launch = matmul_kernel[(", "launch = matmul_kernel[(-1 + "),
        ("a tile in the wrong place", "tile_n = pid % per_group // rows", "tile_n = 0"),
        ("last row read twice", "M - 1 - tile_m * BM)", "M - 2 - tile_m * BM)"),
        ("sums forgotten where they are promoted", "acc += tl.dot(", "acc = tl.dot("),
        ("scale of A forgotten", "tl.load(a_scale_ptr) * ", ""),
        ("scale of B forgotten", " * tl.load(b_scale_ptr)", ""),
        ("scale added", "acc *= tl.load", "acc += tl.load"),
        ("a row too few read", "(tl.arange(0, BM) < M)", "(tl.arange(0, BM) < M - 1)"),
        ("operand rows not clamped", "tl.minimum(tl.arange(0, BN), N - 1 - tile_n * BN)", "tl.arange(0, BN)"),
    ),
    "memory": (
        ("last element not touched", "offset < n", "offset < n - 1"),
        ("an element too many", "offset < n", "offset <= n"),
        ("a block lost", "triton.cdiv(n, BLOCK),)]", "triton.cdiv(n, BLOCK) - 1,)]"),
        ("gaps between blocks", "tl.program_id(0).to(tl.int64) * BLOCK", "tl.program_id(0).to(tl.int64) * (BLOCK + 1)"),
        ("scalar forgotten", "value += scalar * tl.load", "value += tl.load"),
        ("first operand twice", "tl.load(c_ptr", "tl.load(b_ptr"),
        ("scaled twice", "value = scalar * value", "value = scalar * scalar * value"),
        ("a block unread", "range(program,", "range(program + 1,"),
        ("blocks read twice", "tl.num_programs(0)):", "tl.num_programs(0) - 1):"),
        ("a sum misplaced", "partial_ptr + program,", "partial_ptr,"),
    ),
}
OF_SHAPE = {"a row too few read": "3x32x160"}
OF_OP = {
    "sums forgotten where they are promoted": ("fp8",),
    "scale of A forgotten": ("fp8", "fp8_fast"),
    "scale of B forgotten": ("fp8", "fp8_fast"),
    "scale added": ("fp8", "fp8_fast"),
    "scalar forgotten": ("triad",),
    "first operand twice": ("add", "triad"),
    "scaled twice": ("scale",),
    "a block unread": ("read",),
    "blocks read twice": ("read",),
    "a sum misplaced": ("read",),
    "a block lost": ("write", "copy", "scale", "add", "triad"),
    "gaps between blocks": ("write", "copy", "scale", "add", "triad"),
}


@triton.jit
def touch(out_ptr, in_ptr, n, ahead, WHAT: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803 (as the field writes)
    at = tl.arange(0, BLOCK)
    if WHAT == "load":
        tl.store(out_ptr + at, tl.load(in_ptr + at + ahead, mask=at < n, other=0.0), mask=at < n)
    elif WHAT == "store":
        tl.store(out_ptr + at + ahead, tl.load(in_ptr + at, mask=at < n, other=0.0), mask=at < n)
    elif WHAT == "add":
        value = tl.load(in_ptr + at)
        tl.store(out_ptr + at, value + value)
    elif WHAT == "sum":
        tl.store(out_ptr, tl.sum(tl.load(in_ptr + at), axis=0))
    elif WHAT == "where":
        value = tl.load(in_ptr + at)
        tl.store(out_ptr + at, tl.where(at < n, value, value))
    elif WHAT == "atomic":
        tl.atomic_add(out_ptr + at, tl.load(in_ptr + at))
    elif WHAT == "toward zero":
        tl.store(out_ptr + at, tl.load(in_ptr + at).to(tl.float32).to(tl.bfloat16, fp_downcast_rounding="rtz"))
    elif WHAT == "cast":
        tl.store(out_ptr + at, tl.load(in_ptr + at).to(out_ptr.dtype.element_ty))
    elif WHAT == "dot":
        square = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
        tl.store(out_ptr + square, tl.dot(tl.load(in_ptr + square), tl.load(in_ptr + square + 256)))


# --------------------------------------------------------------------------------------------------------------------------
# in the process that interprets


def cases() -> dict[str, Callable[[], object]]:
    """What is run, by name."""
    interpreter.install()
    interpreter.install()  # once is enough, twice does no harm
    found: dict[str, Callable[[], object]] = {
        "cast": partial(_rounds_as_torch, torch.bfloat16),
        "cast of e4m3": partial(_rounds_as_torch, torch.float8_e4m3fn),
        "dot": _multiplies_as_torch,
    }
    for shape in (*SHAPES, *FEW):
        found |= {f"matmul {dtype} {shape}": partial(case, "matmul", dtype=dtype, shape=shape) for dtype in DTYPES}
    for size in SIZES:
        found |= {f"memory {op} {size}": partial(case, "memory", op=op, size=size) for op in OPS}
    for room, mutants in MUTANTS.items():
        found |= {name: partial(_mutant, room, name, old, new) for name, old, new in mutants}
    found |= {f"beyond {what} {ahead}": partial(_beyond, what, ahead) for what in ("load", "store") for ahead in (0, 1, -1)}
    found |= {what: partial(_touch, what) for what in ("add", "sum", "where", "atomic", "toward zero")}
    return found | {f"e4m3 {what}": partial(_touch, what, torch.float8_e4m3fn) for what in ("add", "sum", "where")}


def _mutant(room: str, name: str, old: str, new: str) -> list[list[str]]:
    with planted(room, old, new):
        if room == "matmul":
            shape = OF_SHAPE.get(name, "130x72x41")
            return [case("matmul", dtype=dtype, shape=shape) for dtype in OF_OP.get(name, ("bf16", "int8"))]
        return [case("memory", op=op, size=8 * (5 * 1024 + 7)) for op in OF_OP.get(name, OPS)]


def _message(call) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001 (the interpreter wraps them all)
        return f"{type(error).__name__}: {error}"
    return ""


def _beyond(what: str, ahead: int) -> str:
    """Touches 100 elements from ``ahead`` on, in the middle of a larger tensor."""
    inner, other = torch.zeros(300)[100:200], torch.zeros(100)
    out, source = (inner, other) if what == "store" else (other, inner)
    return _message(lambda: touch[(1,)](out, source, 100, ahead, WHAT=what, BLOCK=128))


def _touch(what: str, dtype: torch.dtype = torch.bfloat16) -> str:
    values = torch.ones(128).to(dtype)
    return _message(lambda: touch[(1,)](torch.zeros_like(values), values, 128, 0, WHAT=what, BLOCK=128))


def _rounds_as_torch(dtype: torch.dtype) -> bool:
    bits = torch.randint(-(2**31), 2**31, (1 << 14,), generator=torch.Generator().manual_seed(1))
    values = bits.to(torch.int32).view(torch.float32).nan_to_num()
    if dtype == torch.float8_e4m3fn:
        values = values.clamp(-448, 448)
    rounded, wide = torch.zeros(1 << 14).to(dtype), torch.zeros(1 << 14)
    touch[(1,)](rounded, values, 1 << 14, 0, WHAT="cast", BLOCK=1 << 14)
    touch[(1,)](wide, rounded, 1 << 14, 0, WHAT="cast", BLOCK=1 << 14)
    right = values.to(dtype)
    return torch.equal(rounded.float(), right.float()) and torch.equal(wide, right.float())


def _multiplies_as_torch() -> bool:
    a, b = torch.randint(-8, 8, (2, 16, 16), generator=torch.Generator().manual_seed(1)).bfloat16() / 4
    out = torch.zeros(16, 16)
    touch[(1,)](out, torch.stack([a, b]), 0, 0, WHAT="dot", BLOCK=16)
    return torch.equal(out, a.float() @ b.float())


# --------------------------------------------------------------------------------------------------------------------------
# in the process that tests


@pytest.fixture(scope="module")
def found():
    """What comes of every case in a process of its own."""
    with found_by("tests.test_triton_kernels") as found:
        yield found


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param(dtype, shape, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, dtype in enumerate(DTYPES)
        for j, shape in enumerate((*SHAPES, *FEW))
    ],
)
def test_products_of_every_dtype_are_verified(found, dtype, shape):
    assert found[f"matmul {dtype} {shape}"] == VERIFIED


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", SIZES)
def test_every_operation_on_memory_is_verified(found, op, size):
    assert found[f"memory {op} {size}"] == VERIFIED


@pytest.mark.parametrize("name", [name for mutants in MUTANTS.values() for name, _, _ in mutants])
def test_a_kernel_with_a_planted_error_is_caught(found, name):
    assert all(caught(outcome) for outcome in found[name]), found[name]


@pytest.mark.parametrize(
    ("what", "ahead", "bytes_off"), [("load", 1, 400), ("store", 1, 400), ("load", -1, -4), ("store", -1, -4)]
)
def test_an_access_outside_the_tensors_of_the_launch_is_caught_and_named(found, what, ahead, bytes_off):
    """The neighbouring memory belongs to the process, so nothing else would notice."""
    assert f"program (0, 0, 0): {what} at byte {bytes_off} of a tensor of 400 bytes" in found[f"beyond {what} {ahead}"]


@pytest.mark.parametrize("what", ["load", "store"])
def test_an_access_inside_is_let_through(found, what):
    assert found[f"beyond {what} 0"] == ""


@pytest.mark.parametrize("what", ["add", "sum", "where", "atomic", "toward zero"])
def test_bfloat16_arithmetic_that_would_be_garbage_is_refused(found, what):
    assert "bfloat16 arithmetic is not served in the interpreter: cast to float32 first" in found[what]


@pytest.mark.parametrize("what", ["add", "sum", "where"])
def test_arithmetic_on_e4m3_that_would_be_garbage_is_refused(found, what):
    assert "e4m3 arithmetic is not served in the interpreter: cast to float32 first" in found[f"e4m3 {what}"]


def test_casts_of_e4m3_are_those_of_torch(found):
    assert found["cast of e4m3"] is True


def test_casts_and_products_of_bfloat16_are_those_of_torch(found):
    assert found["cast"] is True
    assert found["dot"] is True


# -- which configuration


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_120", "gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_architecture_has_a_configuration_or_says_so(arch, dtype):
    without = {"fp8": {"sm_80", "sm_86", "gfx942"}, "fp8_fast": {"sm_80", "sm_86", "gfx942"}, "tf32": {"gfx950"}}
    if arch in without.get(dtype, ()):
        with pytest.raises(Skip, match=f"the Triton matmul has no configuration for {dtype} on {arch}"):
            matmul_tiles.configuration(arch, dtype, 8192, 8192)
        return
    config = matmul_tiles.configuration(arch, dtype, 8192, 8192)
    promoted = f", sums promoted every {config.bk}" * config.promote
    assert str(config) == f"{config.bm}x{config.bn}x{config.bk}, 8 warps, {config.stages} stages, groups of 8{promoted}"
    assert config.stages == (3 if arch.startswith("sm") else 2)


@pytest.mark.parametrize(("n", "k"), [(8192, 8192), (8191, 8192), (8192, 8191)])
def test_sums_of_fp8_are_promoted_on_ada_and_hopper_unless_they_shall_be_fast(n, k):
    for arch in ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx950"):
        assert matmul_tiles.chosen(arch, "fp8", n, k).promote == (arch in {"sm_89", "sm_90"})
        assert not matmul_tiles.chosen(arch, "fp8_fast", n, k).promote
        assert not matmul_tiles.chosen(arch, "bf16", n, k).promote


@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_110", "gfx90a", "gfx1100", ""])
def test_an_unknown_architecture_is_skipped_by_name(arch):
    with pytest.raises(Skip, match=f"no configuration for bf16 on {arch}"):
        matmul_tiles.configuration(arch, "bf16", 8192, 8192)


def test_rows_that_start_anywhere_get_small_tiles():
    def chosen(n, k):
        return matmul_tiles.configuration("sm_80", "bf16", n, k)

    small = matmul_tiles.configuration("interpreter", "bf16", 8192, 8192)
    assert chosen(8192, 8192) == chosen(8192, 8208) == chosen(8208, 8192) != small
    assert chosen(8192, 8200) == chosen(8200, 8192) == chosen(8200, 8200) == small


@pytest.mark.parametrize("arch", ["interpreter", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_get_strips_that_hold_them(arch, dtype):
    def found(rows, n=8192, k=8192):
        return matmul_tiles.candidates(arch, dtype, n, k, rows)

    try:
        matmul_tiles.configuration(arch, dtype, 8192, 8192)
    except Skip:
        assert matmul_tiles.few_rows(arch, dtype, 1) == ()
        return
    of_64 = dtype.startswith("fp8") and arch in {"sm_90", "sm_100"}  # they have no narrower instruction for it
    for rows, tile in ((1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64)):
        for config in found(rows):
            assert (config.few, config.bm) == (True, 64 if of_64 else tile)
            assert not config.promote or config.bk <= 128
            assert config.promote == matmul_tiles.configuration(arch, dtype, 8192, 8192).promote
            assert matmul.constants(config, dtype, 8192)["FEW"]
    for usual in (*found(65), *found(1, n=8191), *found(1, k=8191)):
        assert not getattr(usual, "few", False)


def test_the_mask_of_k_is_spared_only_where_k_is_a_multiple_of_the_step():
    config = matmul_tiles.configuration("interpreter", "bf16", 64, 64)
    assert matmul.constants(config, "bf16", 64)["EVEN_K"]
    assert not matmul.constants(config, "bf16", 65)["EVEN_K"]
    assert matmul.constants(config, "int8", 64)["ACC"] == tl.int32
    assert [matmul.constants(config, dtype, 64)["PRECISION"] for dtype in ("fp32", "tf32")] == ["ieee", "tf32"]
