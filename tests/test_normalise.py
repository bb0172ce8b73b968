"""Probe ``normalise``: what it runs, counts and refuses; that rows are checked within bounds and bit for bit; planted errors."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Wrong
from clustergauge.world import Serial
from kernels import budget, buffers, normalise, rows
from tests import interpreted

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPS = ("softmax", "rmsnorm")
STARTERS = {"softmax": "_softmax", "rmsnorm": "_rmsnorm_blocks"}
SHAPES = ("64x64", "7x5", "1x1", "63x1000", "2x16385")

MUTANTS = (
    ("last column not written", "mask=inside & (row < rows)[:, None])", "mask=inside & (column < columns - 1)[None, :])", OPS),
    ("last row not written", "(row < rows)", "(row < rows - 1)", OPS),
    ("rows not clamped", "tl.minimum(row, rows - 1)", "row", OPS),
    ("a program lost", "triton.cdiv(rows, config.rows),)]", "triton.cdiv(rows, config.rows) - 1,)]", OPS),
    ("padding counts", 'other=float("-inf")', "other=0.0", ("softmax",)),
    ("maximum forgotten", "tl.exp(x - peak[:, None])", "tl.exp(x)", ("softmax",)),
    ("a column too many", "inside = column[None, :] < columns", "inside = column[None, :] <= columns", OPS),
    ("not divided", "out = power * inverse[:, None]", "out = power", ("softmax",)),
    ("eps forgotten", "mean + eps", "mean + 0.01", ("rmsnorm",)),
    ("weight forgotten", " * weight[None, :]", "", ("rmsnorm",)),
    ("mean over the block", "tl.float32) + columns)", "tl.float32) + BLOCK)", ("rmsnorm",)),
)
LONG_MUTANTS = (
    ("long: last step lost", "range(0, columns, STEP)", "range(0, columns - STEP, STEP)", OPS),
    ("long: sum not rescaled", "total * tl.exp(peak - higher)", "total", ("softmax",)),
    ("long: a column too many", "column < columns - step", "column <= columns - step", OPS),
    ("long: always the first columns", "start + step + column", "start + column", OPS),
    ("long: a row lost", "launch = kernel[(rows,)]", "launch = kernel[(rows - 1,)]", OPS),
    ("long: squares of the last step", "squares += x * x", "squares = x * x", ("rmsnorm",)),
)


def cases() -> dict[str, Callable[[], object]]:
    """What the process that interprets runs, by name."""
    case = partial(interpreted.case, "normalise")

    def mutant(old: str, new: str, op: str, shape: str) -> list[str]:
        with interpreted.planted("normalise", old, new):
            return case(op=op, dtype="fp32", shape=shape)

    every = itertools.product(OPS, DTYPES, SHAPES)
    found = {f"{op} {dtype} {shape}": partial(case, op=op, dtype=dtype, shape=shape) for op, dtype, shape in every}
    for mutants, shape in ((MUTANTS, "67x100"), (LONG_MUTANTS, "2x17000")):
        found |= {f"{name}, {op}": partial(mutant, old, new, op, shape) for name, old, new, ops in mutants for op in ops}
    return found | {"too large": partial(case, op="softmax", dtype="fp32", shape="1025x1024")}


@pytest.fixture(scope="module")
def found():
    with interpreted.found_by("tests.test_normalise") as found:
        yield found


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs a case, however long a call takes here."""
    monkeypatch.setattr(budget, "refuse_hopeless", lambda *_: None)

    def run(op="softmax", dtype="fp32", shape="130x100", backend="torch", llc_bytes=4096, interpret=False):
        params = {"backend": backend, "op": op, "dtype": dtype, "shape": shape}
        job = Job("normalise", "kernels.normalise", "normalise", params, "cpu", 0.02, 1, interpret=interpret, llc_bytes=llc_bytes)
        return execute(job, normalise.normalise, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def plant(monkeypatch):
    """Lets ``wrong(out, calls)`` spoil every output; ``calls`` counts them."""

    def planting(op, wrong):
        start, calls = getattr(normalise, STARTERS[op]), [0]

        def spoiled(x, weight, outputs, index):
            call = start(x, weight, outputs, index)

            def run():
                call()
                calls[0] += 1
                wrong(outputs[index], calls[0])

            return run

        monkeypatch.setattr(normalise, STARTERS[op], spoiled)

    return planting


# -- torch


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["64x64", "7x5", "1x1", "200x1003", "3x5000"])
def test_every_dtype_of_a_processor_is_right_and_counted(outcome, op, dtype, shape):
    done = outcome(op, dtype, shape)
    assert (done.status, done.reason) == ("ok", "")
    many, columns = normalise.parse_shape(shape)
    size = DTYPES[dtype].itemsize
    assert done.workload.bytes_written == many * columns * size
    assert done.workload.bytes_read == many * columns * size + (columns * size if op == "rmsnorm" else 0)
    assert (done.workload.flops, done.workload.dtype, done.workload.bound) == (0, dtype, "memory")
    assert (done.measurement.clock, len(done.measurement.digest)) == ("wall", 32)
    assert done.settings["threads"] == torch.get_num_threads()


def test_rms_norm_over_several_blocks_is_right(outcome, monkeypatch):
    monkeypatch.setattr(normalise, "_BLOCK", 700)
    for dtype in DTYPES:
        assert outcome("rmsnorm", dtype, "131x100").reason == ""


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_s_own_rms_norm_is_right_too(outcome, monkeypatch, dtype):
    """What a GPU gets: a call that makes its own output."""
    monkeypatch.setattr(normalise, "_rmsnorm_blocks", normalise._rmsnorm_fused)
    done = outcome("rmsnorm", dtype, "131x100")
    assert (done.status, done.reason) == ("ok", "")


def test_sets_are_as_many_as_defeat_the_cache_and_cold_is_said_only_then(outcome, monkeypatch):
    per_set = 2 * 64 * 64 * 4
    done = outcome(shape="64x64", llc_bytes=10 * per_set)
    assert (done.settings["buffer_sets"], done.measurement.cache) == (30, "cold")
    monkeypatch.setattr(normalise, "MOST_SETS", 29)
    done = outcome(shape="64x64", llc_bytes=10 * per_set)
    assert (done.settings["buffer_sets"], done.measurement.cache) == (1, "hot")


# -- planted errors


def spoil_an_element(out, calls):
    out[77, 33] *= 1.1


def swap_rows(out, calls):
    out[[3, 4]] = out[[4, 3]]


def forget_a_row(out, calls):
    out[129] = math.nan


def forget_the_last_column(out, calls):
    out[:, -1] = math.nan


def scale_all(out, calls):
    out.mul_(1.1)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (spoil_an_element, "row 77, column 33"),
        (swap_rows, "row 3, column "),
        (forget_a_row, "row 129, column 0"),
        (forget_the_last_column, "row 0, column 99"),
        (scale_all, "row 0, column "),
    ],
)
def test_planted_errors_end_the_case_as_wrong(outcome, plant, op, dtype, wrong, where):
    plant(op, wrong)
    done = outcome(op, dtype)
    assert (done.status, done.measurement) == ("wrong", None)
    assert done.reason.startswith(where)


@pytest.mark.parametrize("op", OPS)
def test_errors_of_a_ten_thousandth_are_caught_in_fp32(outcome, plant, op):
    plant(op, lambda out, calls: out[77, 33:34].mul_(1.0001))
    assert outcome(op, "fp32").reason.startswith("row 77, column 33: expected ")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["fp32"])
def test_one_flipped_bit_is_caught_by_the_exact_pass(outcome, plant, op, dtype):
    def flip(out, calls):
        row = out[77].view(torch.int32)
        row[int(row.ne(0).nonzero()[-1])] ^= 1

    plant(op, flip)
    assert outcome(op, dtype).reason.startswith("exact rows: row 77, column ")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("makes_its_own", [False, True])
def test_a_run_that_does_nothing_is_caught(outcome, monkeypatch, op, makes_its_own):
    if makes_its_own:

        def nothing(x, weight, outputs, index):
            def run():
                outputs[index] = torch.full_like(x, math.nan)

            return run
    else:

        def nothing(x, weight, outputs, index):
            return lambda: None

    monkeypatch.setattr(normalise, STARTERS[op], nothing)
    done = outcome(op)
    assert (done.status, done.reason[:16]) == ("wrong", "row 0, column 0:")


@pytest.mark.parametrize("op", OPS)
def test_the_digest_tells_outputs_apart_that_differ_in_one_bit(tmp_path, monkeypatch, op):
    made = []
    start = getattr(normalise, STARTERS[op])
    monkeypatch.setattr(normalise, STARTERS[op], lambda x, w, o, i: made.append(o[i]) or start(x, w, o, i))
    work = normalise.normalise.function(Context(Serial(), "cpu", 1, tmp_path), backend="torch", op=op, dtype="fp32", shape="70x9")
    out = made[-len(work.run)]
    digests = set()
    for flip in (0, 0, 1, 1 << 20):
        work.reset()
        work.run[0]()
        out.view(torch.int32)[33, 3] ^= flip
        digests.add(work.digest())
    assert len(digests) == 3


@pytest.mark.parametrize("fault", ["weight", "eps"])
def test_a_forgotten_part_of_rms_norm_is_caught(outcome, monkeypatch, fault):
    start = normalise._rmsnorm_blocks
    if fault == "weight":
        monkeypatch.setattr(normalise, "_rmsnorm_blocks", lambda x, w, o, i: start(x, torch.ones_like(w), o, i))
    else:
        call = rows.Bounds.of
        monkeypatch.setattr(rows.Bounds, "of", lambda op, base, weight, dtype, eps: call(op, base, weight, dtype, 100 * eps))
    assert outcome("rmsnorm").status == "wrong"


# -- what the checks know


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(OPS), st.sampled_from(sorted(DTYPES)), st.integers(1, 70), st.integers(1, 300), st.integers(0, 2**31))
def test_what_float64_gives_lies_within_the_bounds_and_exact_rows_are_exact(op, dtype, many, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    kind = DTYPES[dtype]
    base = torch.randn((rows.period(many, columns), columns), generator=generator).to(kind)
    weight = torch.randn(columns, generator=generator).to(kind)

    def right(x, w, eps):
        x, w = x.double(), w.double()
        return torch.softmax(x, 1) if op == "softmax" else x * w / (x.square().mean(1, keepdim=True) + eps).sqrt()

    def repeated(base):
        out = torch.empty((1, many, columns), dtype=kind)
        rows.repeat(base, out)
        return out[0]

    rows.Bounds.of(op, base, weight, dtype, 1e-5).check(repeated(right(base, weight, 1e-5).to(kind)))
    x, w, expected = rows.exact_rows(op, base, generator)
    assert torch.equal(right(x, w, 0.0), expected.double())
    for slack in (False, True):
        rows.check_exact(repeated(expected), expected, slack=slack)


@pytest.mark.parametrize("op", OPS)
def test_exact_rows_tell_rows_columns_and_powers_apart(op):
    base = torch.randn((61, 300))
    x, _, expected = rows.exact_rows(op, base, torch.Generator().manual_seed(1))
    assert len({tuple(row) for row in expected.tolist()}) == 61
    assert len({tuple(column) for column in expected.T.tolist()}) > 290
    if op == "softmax":
        assert {int(row.ne(0).sum()) for row in expected} == {2**i for i in range(9)}
        assert not torch.isnan(x).any()


def test_pieces_of_the_check_meet_without_a_gap(monkeypatch):
    monkeypatch.setattr(rows, "_CHUNK", 2 * 61 * 10)
    base = torch.arange(610.0).view(61, 10)
    for many in (61, 122, 123, 305, 400):
        out = torch.empty((1, many, 10))
        rows.repeat(base, out)
        rows.check_exact(out[0], base, slack=False)
        for row in {0, 60, 61 % many, 122 % many, many - 1}:
            old, out[0, row, 7] = out[0, row, 7].clone(), -1
            with pytest.raises(Wrong, match=rf"^exact rows: row {row}, column 7: expected {float(old):.9g}, got -1$"):
                rows.check_exact(out[0], base, slack=False)
            out[0, row, 7] = old


def test_a_row_may_be_off_by_one_small_factor_and_no_more_than_that():
    base = torch.randn((4, 64))
    _, _, expected = rows.exact_rows("rmsnorm", base, torch.Generator().manual_seed(1))
    near = expected.clone()
    near[1] *= 1 + 2.0**-22
    rows.check_exact(near, expected, slack=True)
    with pytest.raises(Wrong, match="row 1, column 0"):
        rows.check_exact(near, expected, slack=False)
    near[1, 5] = expected[1, 5]
    with pytest.raises(Wrong, match="row 1, column 5"):
        rows.check_exact(near, expected, slack=True)
    far = expected.clone()
    far[2] *= 1 + 2.0**-20
    with pytest.raises(Wrong, match="row 2, column 0"):
        rows.check_exact(far, expected, slack=True)
    far[2] = math.nan
    with pytest.raises(Wrong, match="row 2, column 0"):
        rows.check_exact(far, expected, slack=True)


def test_poison_is_in_every_row_and_in_every_stretch_of_columns():
    out = torch.zeros((2, 5, 600))
    rows.poison(out)
    assert out.isnan().sum(2).eq(4).all()
    assert out[1, 4].isnan().nonzero().flatten().tolist() == [0, 256, 512, 599]


# -- what is refused


@pytest.mark.parametrize(
    "text", ["", "8", "0x8", "8x0", "8x", "x8", "8x8x8", "-1x8", "1e3x8", " 8x8", "8x8\n", "٣x8", "8x16777217"]
)
def test_what_is_no_shape_is_the_users_mistake(text):
    with pytest.raises(UsageError, match=r"not a shape: .* \(write rows x columns, at most 16777216 columns: 4096x8192\)"):
        normalise.parse_shape(text)


@given(st.integers(1, 10**9 - 1), st.integers(1, 1 << 24))
def test_shapes_survive_writing_and_reading(many, columns):
    assert normalise.parse_shape(f"{many}x{columns}") == (many, columns)


def test_needs_name_architecture_and_interpreter():
    def needs(backend, dtype):
        return normalise.normalise.needs_of({"backend": backend, "op": "softmax", "dtype": dtype, "shape": "8x8"})

    assert [needs("torch", dtype).arch for dtype in DTYPES] == [0, 80, 0]
    assert (needs("triton", "fp32").arch, needs("triton", "fp32").interpreter) == (80, True)
    assert not needs("torch", "fp32").interpreter
    with pytest.raises(UsageError):
        normalise.normalise.needs_of({"backend": "torch", "op": "softmax", "dtype": "fp32", "shape": "8"})


def test_triton_on_a_processor_runs_in_the_interpreter_only(outcome):
    done = outcome(backend="triton")
    assert (done.status, done.reason) == ("skipped", "Triton kernels run on a processor in the interpreter only")


def test_more_than_the_memory_has_is_refused(outcome, monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 9 << 20)
    assert outcome(shape="1024x1024").reason == "needs 8MiB of memory, 9MiB is free on cpu"


# -- Triton


@pytest.mark.parametrize(("op", "dtype", "shape"), interpreted.pairwise(OPS, DTYPES, SHAPES))
def test_triton_rows_of_every_dtype_are_verified(found, op, dtype, shape):
    assert found[f"{op} {dtype} {shape}"] == interpreted.VERIFIED


@pytest.mark.parametrize("name", [f"{name}, {op}" for name, _, _, ops in (*MUTANTS, *LONG_MUTANTS) for op in ops])
def test_a_kernel_with_a_planted_error_is_caught(found, name):
    assert interpreted.caught(found[name]), found[name]


def test_what_the_interpreter_would_take_too_long_for_is_skipped(found):
    assert found["too large"][:2] == ["skipped", "too large for the interpreter: rows × columns up to 1048576 fits"]


def test_configurations_hold_rows_and_go_in_steps_beyond():
    from kernels.triton.normalise import configuration

    assert str(configuration(1)) == "128x16, whole rows, 4 warps"
    assert str(configuration(1000)) == "2x1024, whole rows, 4 warps"
    assert str(configuration(4096)) == "1x4096, whole rows, 8 warps"
    assert str(configuration(16384)) == "1x16384, whole rows, 16 warps"
    assert str(configuration(16385)) == "steps of 4096, two passes, 8 warps"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["1000x1003", "4096x4096", "64x131072"])
def test_rows_on_a_gpu_are_right(tmp_path, backend, op, dtype, shape):
    params = {"backend": backend, "op": op, "dtype": dtype, "shape": shape}
    job = Job("normalise", "kernels.normalise", "normalise", params, "cuda:0", 0.2, 1, llc_bytes=64 << 20)
    done = execute(job, normalise.normalise, Serial(), tmp_path, lambda _: None)
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == "cuda_event"
