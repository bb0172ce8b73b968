"""Probe ``matvec``: what it runs, counts and refuses; that every output is compared bit for bit; planted errors."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from kernels import budget, buffers, matvec
from tests import interpreted

KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES = ("64x64", "1x1", "5x1024", "7x2500", "130x1023")

MUTANTS = (
    ("sums of 8 bits", "weight.to(tl.int32) * vector.to(tl.int32)[None, :]", "weight * vector[None, :]"),
    ("sums of 16 bits", "tl.sum(total, axis=1)", "tl.sum(total, axis=1).to(tl.int16)"),
    ("sums forgotten", "total += ", "total = "),
    ("a step lost", "range(0, K, BLOCK)", "range(0, K - BLOCK, BLOCK)"),
    ("weights not advanced", "        at += BLOCK\n", ""),
    ("vector not advanced", "vector_ptr + step + column", "vector_ptr + column"),
    ("padding is one", "other=0)", "other=1)"),
    ("a column too many", "column < K - step", "column <= K - step"),
    ("a column too few", "column < K - step", "column < K - 1 - step"),
    ("never masked", "even = k % BLOCK == 0", "even = True"),
    ("last row not written", "element_ty), mask=row < N)", "element_ty), mask=row < N - 1)"),
    ("a row too many", "mask=row < N)", "mask=row <= N)"),
    ("rows not clamped", "tl.minimum(row, N - 1)", "row"),
    ("a program lost", "triton.cdiv(n, ROWS),)]", "triton.cdiv(n, ROWS) - 1,)]"),
    ("scale of another row", "scale_ptr + row, mask=row < N, other=0.0", "scale_ptr + row * 0"),
    ("scale forgotten", "tl.float32) * scale", "tl.float32)"),
)


def cases() -> dict[str, Callable[[], object]]:
    """What the process that interprets runs, by name."""
    case = partial(interpreted.case, "matvec")

    def mutant(old: str, new: str) -> list[str]:
        with interpreted.planted("matvec", old, new):
            return case(activations="fp32", shape="9x2100")

    right = {f"{kind} {shape}": partial(case, activations=kind, shape=shape) for kind in KINDS for shape in SHAPES}
    large = {"too large": partial(case, activations="fp32", shape="4097x1024")}
    return {**right, **large, **{name: partial(mutant, old, new) for name, old, new in MUTANTS}}


REFUSE = budget.refuse_hopeless


@pytest.fixture(scope="module")
def found():
    with interpreted.found_by("tests.test_matvec") as found:
        yield found


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs a case, however long a call takes here."""
    monkeypatch.setattr(budget, "refuse_hopeless", lambda *_: None)

    def run(activations="bf16", shape="70x90", backend="torch", llc_bytes=4096, interpret=False):
        params = {"backend": backend, "activations": activations, "shape": shape}
        job = Job("matvec", "kernels.matvec", "matvec", params, "cpu", 0.02, 1, interpret=interpret, llc_bytes=llc_bytes)
        return execute(job, matvec.matvec, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def plant(monkeypatch):
    """Lets ``wrong(out, calls)`` spoil every output; ``calls`` counts them."""

    def planting(wrong):
        start, calls = matvec._torch_cpu, [0]

        def spoiled(weights, vector, scales, out):
            call = start(weights, vector, scales, out)

            def run():
                call()
                calls[0] += 1
                wrong(out, calls[0])

            return run

        monkeypatch.setattr(matvec, "_torch_cpu", spoiled)

    return planting


@pytest.mark.parametrize("activations", KINDS)
@pytest.mark.parametrize("shape", ["64x64", "1x1", "70x1003", "3x40000"])
def test_both_activations_are_right_and_counted(outcome, activations, shape):
    done = outcome(activations, shape)
    assert (done.status, done.reason) == ("ok", "")
    n, k = matvec.parse_shape(shape)
    assert (done.workload.ops, done.workload.flops) == (2 * n * k, 0)
    assert done.workload.bytes_read == n * k + k + 4 * n
    assert done.workload.bytes_written == n * KINDS[activations].itemsize
    assert (done.workload.dtype, done.workload.bound) == ("int8", "memory")
    assert (done.measurement.clock, len(done.measurement.digest)) == ("wall", 32)
    assert done.settings["op"] == "_int_mm, mul"


@pytest.mark.parametrize("activations", KINDS)
def test_the_padded_product_of_a_gpu_is_right(outcome, monkeypatch, activations):
    monkeypatch.setattr(matvec, "_torch_cpu", matvec._torch_gpu)
    done = outcome(activations, "72x96")
    assert (done.status, done.reason) == ("ok", "")


def test_sets_are_as_many_as_defeat_the_cache_and_cold_is_said_only_then(outcome, monkeypatch):
    done = outcome(shape="64x64", llc_bytes=10 * 64 * 64)
    assert (done.settings["buffer_sets"], done.measurement.cache) == (30, "cold")
    monkeypatch.setattr(matvec, "MOST_SETS", 29)
    done = outcome(shape="64x64", llc_bytes=10 * 64 * 64)
    assert (done.settings["buffer_sets"], done.measurement.cache) == (1, "hot")


# -- planted errors


def flip_a_bit(out, calls):
    out.view(torch.int16 if out.itemsize == 2 else torch.int32)[33] ^= 1


def forget_the_last(out, calls):
    out[-1] = torch.nan


def swap(out, calls):
    out[[33, 34]] = out[[34, 33]]


@pytest.mark.parametrize("activations", KINDS)
@pytest.mark.parametrize(("wrong", "element"), [(flip_a_bit, 33), (forget_the_last, 69), (swap, 33)])
def test_planted_errors_end_the_case_as_wrong(outcome, plant, activations, wrong, element):
    plant(wrong)
    done = outcome(activations)
    assert (done.status, done.measurement) == ("wrong", None)
    assert done.reason.startswith(f"element {element}: expected ")


def test_a_run_that_does_nothing_is_caught(outcome, monkeypatch):
    monkeypatch.setattr(matvec, "_torch_cpu", lambda *_: lambda: None)
    done = outcome()
    assert done.status == "wrong"
    assert done.reason.startswith("element 0: expected ")
    assert done.reason.endswith("got nan (70 of 70 elements differ)")


def test_an_output_that_is_right_at_first_only_is_caught(outcome, plant):
    plant(lambda out, calls: flip_a_bit(out, calls) if calls > 3 else None)
    assert outcome(llc_bytes=1).reason.startswith("element 33: expected ")


def test_the_digest_is_that_of_the_output(tmp_path):
    work = matvec.matvec.function(Context(Serial(), "cpu", 1, tmp_path), backend="torch", activations="bf16", shape="70x90")
    digests = set()
    for _ in range(2):
        work.reset()
        work.run[0]()
        digests.add(work.digest())
    assert len(digests) == 1
    work.reset()
    assert work.digest() not in digests


@pytest.mark.parametrize("bits", [16, 24])
def test_sums_that_saturate_are_caught_by_the_extremes(outcome, monkeypatch, bits):
    """Random data of short sums stays within 16 and 24 bits; the extremes do not."""
    most = 2 ** (bits - 1) - 1

    def saturating(weights, vector, scales, out):
        def run():
            sums = (weights.double() @ vector.double()).clamp(-most - 1, most)
            out.copy_(sums.float() * scales)

        return run

    monkeypatch.setattr(matvec, "_torch_cpu", saturating)
    done = outcome("fp32", "6x3" if bits == 16 else "6x600")
    assert done.status == "wrong"
    assert done.reason.startswith("extremes of int8: element 0: expected ")


def test_products_that_saturate_in_pairs_are_caught(outcome, monkeypatch):
    """What an instruction that adds two products in 16 bits would do (vpmaddubsw)."""

    def pairs(weights, vector, scales, out):
        def run():
            two = (weights.int() * vector.int()).view(len(weights), -1, 2).sum(2).clamp(-(2**15), 2**15 - 1)
            out.copy_(two.sum(1).float() * scales)

        return run

    monkeypatch.setattr(matvec, "_torch_cpu", pairs)
    assert outcome("fp32", "6x64").reason.startswith("extremes of int8: element 0: expected ")


# -- what is known


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from(sorted(KINDS)), st.integers(0, 2**31))
def test_what_is_expected_is_the_exact_sum_scaled(n, k, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty((n, k), dtype=torch.int8)
    weights.random_(-128, 128, generator=generator)
    vector = torch.empty(k, dtype=torch.int8)
    vector.random_(-128, 128, generator=generator)
    scales = torch.rand(n, generator=generator)
    sums = [sum(a * b for a, b in zip(row, vector.tolist(), strict=True)) for row in weights.tolist()]
    right = (torch.tensor(sums, dtype=torch.float32) * scales).to(KINDS[kind])
    assert torch.equal(matvec.expected(weights, vector, scales, KINDS[kind]), right)


def test_the_largest_sums_there_are_stay_within_int32():
    k = matvec._LONGEST_SUM - 1
    assert 128 * 128 * k < 2**31
    weights, vector = torch.empty((3, k), dtype=torch.int8), torch.empty(k, dtype=torch.int8)
    matvec.extremes(weights, vector, torch.Generator().manual_seed(1))
    for values in (weights, vector):
        assert set(values.unique().tolist()) == {-128, 127}
    assert torch.equal(weights[0], vector)
    assert torch.equal(weights[2], vector)
    assert not torch.equal(weights[1], vector)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50).filter(lambda v: max(map(abs, v)) > 1e-3))
def test_quantising_is_symmetric_uses_all_of_the_range_and_is_off_by_half_a_step(values):
    original = torch.tensor(values)
    whole, step = matvec.quantise(original)
    assert int(whole.int().abs().max()) == 127
    assert (whole.float() * step - original).abs().max() <= 0.5001 * step


def test_pieces_of_the_reference_meet_without_a_gap(monkeypatch):
    weights, vector = torch.ones((10, 4), dtype=torch.int8), torch.ones(4, dtype=torch.int8)
    monkeypatch.setattr(matvec, "_PIECE", 12)
    assert matvec.expected(weights, vector, torch.arange(10.0), torch.float32).tolist() == [4.0 * i for i in range(10)]


def test_a_difference_in_sign_of_zero_alone_is_a_difference():
    with pytest.raises(Wrong, match=r"^element 1: expected 0, got -0 \(1 of 2 elements differ\)$"):
        matvec.compare(torch.tensor([0.0, -0.0]), torch.tensor([0.0, 0.0]))


# -- what is refused


@pytest.mark.parametrize("text", ["", "8", "0x8", "8x", "8x8x8", "-1x8", " 8x8", "8x8\n", "٣x8", "16777217x8"])
def test_what_is_no_shape_is_the_users_mistake(text):
    with pytest.raises(UsageError, match=r"not a shape: .* \(write outputs x inputs, NxK: 14336x4096\)"):
        matvec.parse_shape(text)


def test_sums_that_could_leave_int32_are_refused():
    assert matvec.parse_shape("1x131071") == (1, 131071)
    with pytest.raises(UsageError, match="shape 1x131072: K must be below 131072, or sums of int8 products leave int32"):
        matvec.parse_shape("1x131072")


def test_needs_name_architecture_and_interpreter():
    def needs(backend, activations):
        return matvec.matvec.needs_of({"backend": backend, "activations": activations, "shape": "8x8"})

    assert [needs("torch", kind).arch for kind in KINDS] == [80, 75]
    assert (needs("triton", "fp32").arch, needs("triton", "fp32").interpreter) == (80, True)
    assert not needs("torch", "fp32").interpreter
    with pytest.raises(UsageError):
        matvec.matvec.needs_of({"backend": "torch", "activations": "fp32", "shape": "8"})


def test_triton_on_a_processor_runs_in_the_interpreter_only(outcome):
    done = outcome(backend="triton")
    assert (done.status, done.reason) == ("skipped", "Triton kernels run on a processor in the interpreter only")


def test_more_than_the_memory_has_is_refused(outcome, monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 9 << 20)
    assert outcome(shape="4096x2048").reason == "needs 8MiB of memory, 9MiB is free on cpu"


def test_a_call_too_long_for_its_budget_is_skipped(outcome, monkeypatch):
    monkeypatch.setattr(budget, "refuse_hopeless", REFUSE)
    monkeypatch.setattr(budget, "least_seconds", lambda call, *_: 1.0)
    assert outcome().reason == "one call would take about 1.00 s, far beyond the budget of 20 ms: a smaller shape fits"


@pytest.mark.parametrize("shape", [(16, 64), (64, 60)])
def test_what_torch_has_no_product_for_on_a_gpu_is_skipped(tmp_path, shape):
    with pytest.raises(Skip, match="torch's int8 product on a GPU needs more than 16 outputs and inputs divisible by 8"):
        matvec._starter(Context(Serial(), "cuda:0", 1, tmp_path), "torch", *shape)


# -- Triton


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_products_are_verified(found, kind, shape):
    assert found[f"{kind} {shape}"] == interpreted.VERIFIED


@pytest.mark.parametrize("name", [name for name, _, _ in MUTANTS])
def test_a_kernel_with_a_planted_error_is_caught(found, name):
    assert interpreted.caught(found[name]), found[name]


def test_what_the_interpreter_would_take_too_long_for_is_skipped(found):
    assert found["too large"][:2] == ["skipped", "too large for the interpreter: N·K up to 4194304 fits"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("activations", KINDS)
@pytest.mark.parametrize("shape", ["4096x4096", "1000x1032"])
def test_products_on_a_gpu_are_right(tmp_path, backend, activations, shape):
    params = {"backend": backend, "activations": activations, "shape": shape}
    job = Job("matvec", "kernels.matvec", "matvec", params, "cuda:0", 0.2, 1, llc_bytes=64 << 20)
    done = execute(job, matvec.matvec, Serial(), tmp_path, lambda _: None)
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == "cuda_graph"
