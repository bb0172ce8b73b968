"""The attention probe on a processor: its work count, its checks, and what it refuses."""

import math
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import scaled_dot_product_attention

from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Skip, Wrong
from clustergauge.worker import load_probe
from clustergauge.world import Serial
from kernels import attended, attended_exact, attention, attention_live, budget, buffers
from kernels.attended import Shape, Tensors

ATTENTION = load_probe("kernels.attention", "attention")
CASE = {
    "backend": "sdpa_math",
    "mode": "forward",
    "mask": "causal",
    "dtype": "bf16",
    "head_dim": 64,
    "heads": "2x1",
    "seq": 70,
    "batch": 1,
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost more than these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs a case; what a busy machine takes for it decides nothing."""

    def least_seconds(call, *_):
        call()
        return 1e-9

    monkeypatch.setattr(budget, "least_seconds", least_seconds)

    def run(device="cpu", interpret=False, **params):
        job = Job(
            number=1,
            case="attention",
            module="kernels.attention",
            probe="attention",
            params=CASE | params,
            device=device,
            budget_s=0.02,
            seed=1,
            interpret=interpret,
            llc_bytes=1,
        )
        return execute(job, ATTENTION, Serial(), tmp_path, lambda _: None)

    return run


# -- the work


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.booleans())
def test_pairs_are_what_the_mask_lets_through(queries, more, causal):
    shape = Shape(1, 1, 1, queries, queries + more, 64, causal)
    assert int(shape.sees(torch.arange(queries)).sum()) == shape.pairs
    assert shape.flops == 4 * 64 * shape.pairs


def test_the_mask_is_that_of_torch():
    shape = Shape(1, 1, 1, 9, 9, 64, causal=True)
    assert torch.equal(shape.sees(torch.arange(9)), torch.ones(9, 9).tril().bool())


def test_work_is_counted_exactly(outcome):
    count = 4 * 64 * 2 * 70 * 71 // 2
    assert outcome().workload.flops == count
    done = outcome(mode="backward")
    assert (done.workload.flops, done.workload.bound) == (count * 5 // 2, "compute")
    assert done.settings["flops_counted"] == "2.5 x forward"
    assert outcome(mask="full").workload.flops == 4 * 64 * 2 * 70 * 70
    done = outcome(mode="decode", mask="full", batch=3)
    assert (done.workload.bytes_read, done.workload.bytes_written) == (3 * (2 * 70 + 2) * 64 * 2, 3 * 2 * 64 * 2)
    assert (done.workload.flops, done.workload.bound) == (3 * 4 * 64 * 2 * 70, "memory")


# -- right results are accepted


@pytest.mark.parametrize("backend", ["sdpa_flash", "sdpa_math"])
@pytest.mark.parametrize("mode", ["forward", "backward", "decode"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("head_dim", "heads", "mask"), [(64, "4x2", "causal"), (128, "2x2", "full")])
def test_what_torch_computes_is_right(outcome, backend, mode, dtype, head_dim, heads, mask):
    mask = "full" if mode == "decode" else mask
    done = outcome(backend=backend, mode=mode, dtype=dtype, head_dim=head_dim, heads=heads, mask=mask, batch=2)
    assert (done.status, done.reason) == ("ok", "")
    assert bool(done.measurement.digest) == (mode != "backward" or backend == "sdpa_math")


def made(shape, dtype=torch.bfloat16, seed=1):
    """Inputs at random and what float64 gives for them, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    of_q = (shape.batch, shape.heads, shape.queries, shape.head_dim)
    of_k = (shape.batch, shape.kv_heads, shape.keys, shape.head_dim)
    q, do, k, v = (torch.randn(size, generator=generator).to(dtype) for size in (of_q, of_q, of_k, of_k))
    return computed(shape, q, k, v, do)


def computed(shape, q, k, v, do):
    q64, k64, v64 = (x.double().requires_grad_() for x in (q, k, v))
    mask = shape.sees(torch.arange(shape.queries))
    o = scaled_dot_product_attention(q64, k64, v64, attn_mask=mask, enable_gqa=True)
    grads = torch.autograd.grad(o, (q64, k64, v64), do.double())
    return Tensors(q, k, v, o.detach().to(q.dtype), do, tuple(g.to(q.dtype) for g in grads))


SHAPES = [Shape(2, 4, 2, 45, 45, 64, True), Shape(1, 2, 1, 33, 70, 128, True), Shape(1, 2, 2, 40, 65, 64, False)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_float64_passes_every_check(shape, dtype):
    t = made(shape, dtype)
    attended.check_rows(shape, t, 1)
    attended.check_gradients(shape, t, 1)
    attended_exact.check_exact(shape, t, lambda: computed(shape, *t[:3], t.do), 1)
    attended_exact.check_counts(shape, t, lambda: computed(shape, *t[:3], t.do), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_longer_than_one_window_codes_stay_apart(dtype):
    keys = torch.arange(20000)
    codes = attended_exact._digits(attended_exact._code(keys, 64), 64)
    assert len({tuple(row) for row in codes.tolist()}) == 20000
    assert attended_exact.most_keys(64) == attention.LONGEST


# -- wrong results are not


def spoil(name, change):
    """A change to one of the outputs: ``o``, or a gradient by number."""

    def spoiled(t):
        target = t.o if name == "o" else t.grads[name]
        change(target)
        return t

    return spoiled


def nan_tile(x):
    x[-1, -1, 16:32] = math.nan


def shift_rows(x):
    x.copy_(x.roll(1, dims=2))


def swap_heads(x):
    x.copy_(x.flip(1))


def scale(x):
    x.mul_(1.2)


def one_element(x):
    x[0, 0, 7, 3] += 0.5 * float(x.abs().max())


def zero(x):
    x.zero_()


@pytest.mark.parametrize("change", [nan_tile, shift_rows, swap_heads, scale, one_element, zero])
@pytest.mark.parametrize("name", ["o", 0, 1, 2])
def test_spoiled_outputs_are_caught_and_named(name, change):
    shape = SHAPES[0]
    t = spoil(name, change)(made(shape))
    label = {"o": "output", 0: "dQ|batch", 1: "dK|batch", 2: "dV"}[name]
    with pytest.raises(Wrong, match=rf"^(?:{label})") as caught:
        attended.check_rows(shape, t, 1) if name == "o" else attended.check_gradients(shape, t, 1)
    assert "batch" in str(caught.value)
    assert re.search(r"head \d", str(caught.value))


@pytest.mark.parametrize("change", [nan_tile, shift_rows, swap_heads, one_element, zero])
@pytest.mark.parametrize("name", ["o", 1, 2])
def test_spoiled_outputs_are_caught_by_the_exact_pass_too(name, change):
    shape = SHAPES[0]
    t = made(shape)
    with pytest.raises(Wrong, match=r"^codes: "):
        attended_exact.check_exact(shape, t, lambda: spoil(name, change)(computed(shape, *t[:3], t.do)), 1)


class Masked(Shape):
    """As a kernel whose causal mask is off by one would see it."""

    ahead = 1

    def sees(self, rows):
        return super().sees(rows + self.ahead)


class Short(Masked):
    ahead = -1


@pytest.mark.parametrize("wrong", [Masked, Short])
@pytest.mark.parametrize("check", [attended_exact.check_exact, attended_exact.check_counts])
def test_a_mask_that_is_off_by_one_is_caught_bit_for_bit(wrong, check):
    shape = Shape(1, 2, 1, 40, 60, 64, True)
    lies = wrong(1, 2, 1, 40, 60, 64, True)
    t = made(shape)
    with pytest.raises(Wrong):
        check(shape, t, lambda: computed(lies, *t[:3], t.do), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lost", [0, 31, 59])
def test_a_key_that_is_not_read_is_caught_among_many(dtype, lost):
    shape = Shape(1, 2, 2, 1, 3000, 64, False)
    t = made(shape, dtype)

    def forgetful():
        k, v = (torch.cat([x[:, :, :lost], x[:, :, lost + 1 :]], dim=2) for x in (t.k, t.v))
        return t._replace(o=computed(Shape(1, 2, 2, 1, 2999, 64, False), t.q, k, v, t.do).o)

    with pytest.raises(Wrong, match="counts: the sum of the values"):
        attended_exact.check_counts(shape, t, forgetful, 1)


def test_columns_of_all_heads_must_add_up(monkeypatch):
    """Where only one head is compared whole, the others are held by their sums."""
    monkeypatch.setattr(attended, "_check_group", lambda *_: None)
    shape = SHAPES[0]
    attended.check_gradients(shape, made(shape), 1)
    with pytest.raises(Wrong, match=r"dV, batch 0, head 0, column \d+: the sum over keys is "):
        attended.check_gradients(shape, spoil(2, shift_out)(made(shape)), 1)
    with pytest.raises(Wrong, match=r"batch \d, head \d: the sum of dQ·Q is "):
        attended.check_gradients(shape, spoil(1, negate)(made(shape)), 1)


def shift_out(x):
    x[:, :, :8] = 0


def negate(x):
    x.neg_()


def test_only_some_heads_are_compared_whole_where_all_would_cost_too_much(monkeypatch):
    shape = SHAPES[0]
    monkeypatch.setitem(attended.WHOLE, "cpu", 1)
    generator = torch.Generator().manual_seed(1)
    assert len(attended._chosen(shape, 1000, shape.heads, "cpu", generator)) == 1
    t = made(shape)
    attended.check_rows(shape, t, 1)
    t.o[:, :, -1, 5] += 1  # the last row of every head is always compared
    with pytest.raises(Wrong, match="row 44, column 5"):
        attended.check_rows(shape, t, 1)


def test_one_changed_element_changes_the_digest():
    o = made(SHAPES[0]).o
    before = attended.digest([o])
    o.view(torch.int16)[1, 2, 3, 4] ^= 1
    assert attended.digest([o]) != before
    o.view(torch.int16)[1, 2, 3, 4] ^= 1
    assert attended.digest([o]) == before


def test_a_run_that_does_nothing_is_caught(outcome, monkeypatch):
    class Idle(attention_live.Torch):
        def __init__(self, *args):
            super().__init__(*args)
            work, calls = self.run, []

            def run():
                if not calls:
                    work()
                calls.append(1)

            self.run = run

    monkeypatch.setattr(attention_live, "Torch", Idle)
    for mode in ("forward", "backward"):
        done = outcome(mode=mode)
        assert done.status == "wrong"
        assert re.search(r"got nan \(\d+ of \d+ elements are not finite\)|differ", done.reason)


def test_a_mask_forgotten_ends_the_case_as_wrong(outcome, monkeypatch):
    def careless(q, k, v, is_causal, **options):
        return scaled_dot_product_attention(q, k, v, **options)

    monkeypatch.setattr(attention_live, "scaled_dot_product_attention", careless)
    for mode in ("forward", "backward"):
        assert outcome(mode=mode).status == "wrong"
    assert outcome(mask="full").status == "ok"


# -- what is refused


def test_decode_sees_the_whole_cache(outcome):
    done = outcome(mode="decode")
    assert (done.status, done.reason) == ("skipped", "one query at the end of a cache sees all of it: mask=full is the same case")


def test_what_torch_refuses_is_skipped_in_its_own_words(outcome):
    done = outcome(backend="sdpa_efficient")
    assert done.status == "skipped"
    assert done.reason.startswith("torch has no such kernel for this case: No viable backend")


def test_other_failures_of_torch_are_not_taken_for_refusals():
    class Broken:
        def run(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        attention_live.attempt(Broken())


def test_the_reasons_that_torch_gives_are_passed_on():
    import warnings

    class Picky:
        def run(self):
            warnings.warn("Flash Attention kernel not used because: (Triggered internally at /x.cpp:1.)", stacklevel=1)
            warnings.warn("Both operands need bfloat16 (Triggered internally at /x.cpp:2.)", stacklevel=1)
            raise RuntimeError("No available kernel. Aborting execution.")

    with pytest.raises(Skip, match=r"this case: Flash Attention kernel not used because:; Both operands need bfloat16$"):
        attention_live.attempt(Picky())


def test_triton_on_a_processor_runs_in_the_interpreter_only(outcome):
    assert outcome(backend="triton").reason == "Triton kernels run on a processor in the interpreter only"
    done = outcome(backend="triton", seq=4096, interpret=True)
    assert done.reason == "too large for the interpreter: batch·heads·queries·keys up to 262144 fits"


def test_what_would_take_far_too_long_is_skipped(outcome, monkeypatch):
    monkeypatch.setattr(budget, "least_seconds", lambda call, *_: 7.0)
    done = outcome(mask="full")
    assert done.status == "skipped"
    assert re.match(r"one call would take about 7(\.00)? s, far beyond the budget of 20 ms", done.reason)


def test_more_than_the_memory_has_is_refused(outcome, monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 4 << 20)
    assert outcome(seq=1024).reason == "needs 48MiB of memory, 4MiB is free on cpu"
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 1 << 20)
    assert outcome(seq=2048, backend="sdpa_flash").reason == "needs 1MiB of memory, 1MiB is free on cpu"


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(1, 500), st.booleans())
def test_parts_of_a_case_are_whole_groups_and_grow_to_the_whole(batch, kv_heads, group, queries, causal):
    shape = Shape(batch, kv_heads * group, kv_heads, queries, 500, 64, causal)
    parts = list(attention.pieces(shape))
    rows = [part.heads * part.queries for part in parts]
    assert all(part.group == group and not part.causal and part.queries <= queries for part in parts)
    assert rows[0] <= max(attention.FIRST, group)
    assert rows == sorted(rows)
    assert rows[-1] == batch * kv_heads * group * queries


@pytest.mark.parametrize(("text", "heads"), [("32x8", (32, 8)), ("1x1", (1, 1)), ("16x16", (16, 16))])
def test_heads_are_read(text, heads):
    assert attention.parse_heads(text) == heads


@pytest.mark.parametrize("text", ["", "32", "8x", "x8", "0x1", "8x0", "8x8x8", "8 x8", "8x8\n", "-8x8", "٣x٣", "99999x1"])
def test_what_is_no_number_of_heads_is_the_users_mistake(text):
    with pytest.raises(UsageError, match=r"not a number of heads: .* \(write QxKV: 32x32, or 32x8 for groups of four\)"):
        attention.parse_heads(text)


def test_heads_that_cannot_be_shared_out_are_the_users_mistake():
    with pytest.raises(UsageError, match="heads 8x3: query heads must be a multiple of key heads"):
        attention.parse_heads("8x3")


@pytest.mark.parametrize(
    ("axis", "value", "words"),
    [
        ("backend", "torch", "backend 'torch': there are sdpa_flash, "),
        ("mode", "both", "mode 'both': there are forward, backward, decode"),
        ("mask", True, "mask True: there are causal, full"),
        ("dtype", "fp32", "dtype 'fp32': there are bf16, fp16"),
        ("head_dim", 96, "head_dim 96: there are 64, 128"),
        ("seq", 65537, "seq 65537: must be a whole number from 1 to 65536"),
        ("seq", 0, "seq 0: must be"),
        ("batch", 0, "batch 0: must be a whole number from 1 to 4096"),
    ],
)
def test_values_off_an_axis_are_the_users_mistake(axis, value, words):
    with pytest.raises(UsageError, match=words):
        ATTENTION.needs_of(CASE | {axis: value})


def test_needs_name_device_architecture_and_interpreter():
    def needs(backend):
        return ATTENTION.needs_of(CASE | {"backend": backend})

    assert [needs(b).device for b in attention.BACKENDS] == ["any", "cuda", "cuda", "any", "any"]
    assert [needs(b).arch for b in attention.BACKENDS] == [80, 80, 80, 0, 80]
    assert needs("triton").interpreter
    assert not needs("sdpa_flash").interpreter


@pytest.mark.gpu
@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize("mode", attention.MODES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("head_dim", "heads", "mask", "seq"), [(64, "8x2", "causal", 1024), (128, "8x8", "full", 1000)])
def test_attention_on_a_gpu_is_right(outcome, backend, mode, dtype, head_dim, heads, mask, seq):
    mask = "full" if mode == "decode" else mask
    done = outcome("cuda:0", backend=backend, mode=mode, dtype=dtype, head_dim=head_dim, heads=heads, mask=mask, seq=seq, batch=2)
    if done.status == "skipped" and done.reason.startswith("torch has no such kernel"):
        pytest.skip(done.reason)
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == "cuda_event"
