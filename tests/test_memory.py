"""Probe ``memory``: what it runs, counts and refuses, and that every planted error is caught."""

import math

import pytest
import torch

from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Work, Wrong
from clustergauge.world import Serial
from kernels import buffers, memory

OPS = tuple(memory.READS)
WRITING = tuple(op for op in OPS if op != "read")
SIZE = (3 * memory.PERIOD + 1000) * 8
"""Not a multiple of anything, and longer than what repeats."""
N = SIZE // 8


@pytest.fixture
def outcome(tmp_path):
    """Runs a case with a cache so small that it counts as memory."""

    def run(op, size=SIZE, backend="torch", llc_bytes=4096, interpret=False):
        params = {"backend": backend, "op": op, "size": size}
        job = Job("memory", "kernels.memory", "memory", params, "cpu", 0.02, 1, interpret=interpret, llc_bytes=llc_bytes)
        return execute(job, memory.memory, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def work(tmp_path):
    def prepare(op, size=SIZE) -> Work:
        return memory.memory.function(Context(Serial(), "cpu", 1, tmp_path, llc_bytes=2048), backend="torch", op=op, size=size)

    return prepare


@pytest.fixture
def plant(monkeypatch):
    """Puts a wrong operation in the place of the right one: ``wrong(out, sources)``."""

    def planting(wrong):
        monkeypatch.setattr(memory, "_call", lambda backend, op, out, sources: lambda: wrong(out, sources))

    return planting


@pytest.mark.parametrize(
    ("op", "arrays_read", "arrays_written"),
    [("read", 1, 0), ("write", 0, 1), ("copy", 1, 1), ("scale", 1, 1), ("add", 2, 1), ("triad", 2, 1)],
)
def test_every_operation_is_right_and_counted_as_stream_counts(outcome, op, arrays_read, arrays_written):
    done = outcome(op)
    assert (done.status, done.reason) == ("ok", "")
    assert done.workload.bytes_read == arrays_read * SIZE
    assert done.workload.bytes_written == arrays_written * SIZE
    assert (done.workload.bound, done.workload.dtype, done.workload.flops) == ("memory", "fp64", 0)
    assert (done.measurement.clock, done.measurement.cache) == ("wall", "cold")
    assert len(done.measurement.digest) == 32
    assert done.settings["threads"] == torch.get_num_threads()
    assert "huge_page_share" in done.settings


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("n", [1024, memory.PERIOD, 4 * memory.PERIOD, 4 * memory.PERIOD + 1])
def test_sizes_at_the_edges_of_the_checks_pieces_are_right(work, monkeypatch, op, n):
    monkeypatch.setattr(memory, "_CHUNK", 2 * memory.PERIOD)
    one = work(op, 8 * n)
    one.run()
    one.check()
    one.exact()


def test_results_are_those_of_stream_in_float64(work, monkeypatch):
    made = {}
    call = memory._call

    def keep(backend, op, out, sources):
        made[op] = (out, [source.clone() for source in sources])
        return call(backend, op, out, sources)

    monkeypatch.setattr(memory, "_call", keep)
    for op in OPS:
        work(op).run()
    for op, (out, (b, c)) in {op: (out, (*sources, out, out)[:2]) for op, (out, sources) in made.items()}.items():
        right = {"read": b.sum(), "write": torch.full_like(out, 3), "copy": b, "scale": 3 * b, "add": b + c, "triad": b + 3 * c}
        assert torch.equal(out, right[op]), op


def test_inputs_differ_between_arrays_and_are_integers_of_both_signs(work, monkeypatch):
    seen = []
    monkeypatch.setattr(memory, "_call", lambda backend, op, out, sources: seen.extend(sources) or (lambda: None))
    work("add")
    b, c = seen
    assert not torch.equal(b, c)
    for values in seen:
        assert torch.equal(values, values.round())
        assert values.min() < -400 < 400 < values.max()
        assert torch.equal(values[: -memory.PERIOD], values[memory.PERIOD :])
        assert not torch.equal(values[: 1 << 16], values[1 << 16 : 1 << 17])


# -- planted errors


def right(op, out, sources):
    memory_call = {
        "write": lambda: out.fill_(3.0),
        "copy": lambda: out.copy_(sources[0]),
        "scale": lambda: torch.mul(sources[0], 3.0, out=out),
        "add": lambda: torch.add(sources[0], sources[1], out=out),
        "triad": lambda: torch.add(sources[0], sources[1], alpha=3.0, out=out),
    }
    memory_call[op]()


@pytest.mark.parametrize("op", WRITING)
def test_one_flipped_bit_anywhere_is_caught_and_named(work, op):
    one = work(op)
    bits = one.reset.__self__.out.view(torch.int64)
    for place in (0, 1, memory.PERIOD, N // 2 + 3, 3 * memory.PERIOD, N - 1):
        one.reset()
        one.run()
        one.check()
        bits[place] ^= 1
        with pytest.raises(Wrong, match=f"^element {place}: expected "):
            one.check()


@pytest.mark.parametrize("op", WRITING)
def test_a_wrong_element_ends_the_case_as_wrong(outcome, plant, op):
    def wrong(out, sources):
        right(op, out, sources)
        out[N // 3] += 1

    plant(wrong)
    done = outcome(op)
    assert (done.status, done.measurement) == ("wrong", None)
    assert done.reason.startswith(f"element {N // 3}: expected ")


def test_a_zero_of_the_wrong_sign_is_caught(work):
    one = work("copy")
    one.run()
    out = one.reset.__self__.out
    zero = int((out == 0).nonzero()[0])
    out[zero] = -0.0
    with pytest.raises(Wrong, match=f"element {zero}: expected 0, got -0.0"):
        one.check()


@pytest.mark.parametrize("op", OPS)
def test_a_run_that_does_nothing_is_caught(outcome, plant, op):
    plant(lambda out, sources: None)
    done = outcome(op)
    assert done.status == "wrong"
    assert "nan" in done.reason


@pytest.mark.parametrize("hole", [slice(600, 601), slice(N // 2, N // 2 + 10), slice(N - 600, N - 599)])
def test_a_hole_that_keeps_right_values_of_an_earlier_run_is_caught_by_the_exact_pass(outcome, plant, hole):
    calls = []

    def wrong(out, sources):
        stale = out[hole].clone()
        right("copy", out, sources)
        if calls:
            out[hole] = stale
        calls.append(1)

    plant(wrong)
    done = outcome("copy")
    assert done.status == "wrong"
    assert done.reason.startswith(f"element {hole.start}: expected ")
    assert done.reason.endswith("got nan")


@pytest.mark.parametrize("op", WRITING)
def test_poison_of_every_sample_shows_a_hole_of_two_stretches(work, op):
    one = work(op)
    one.run()
    one.check()
    one.reset()
    out = one.reset.__self__.out
    width = 2 * math.ceil(N / memory.SAMPLES)
    assert all(bool(piece.isnan().any()) for piece in out.split(width))
    assert bool(out[:512].isnan().all())
    assert bool(out[-512:].isnan().all())
    with pytest.raises(Wrong, match=r"element 0: expected .*, got nan"):
        one.check()


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("triad", lambda out, s: torch.add(s[1], s[0], alpha=3.0, out=out)),
        ("triad", lambda out, s: torch.add(s[0], s[1], out=out)),
        ("add", lambda out, s: torch.add(s[0], s[0], out=out)),
        ("add", lambda out, s: torch.sub(s[0], s[1], out=out)),
        ("scale", lambda out, s: out.copy_(s[0])),
        ("copy", lambda out, s: out.copy_(s[0].flip(0))),
        ("copy", lambda out, s: out.copy_(s[0].roll(1))),
        ("copy", lambda out, s: out.copy_(s[0].roll(1024))),
        ("write", lambda out, s: out.fill_(0.0)),
    ],
)
def test_a_swapped_or_shifted_operand_is_caught(outcome, plant, op, wrong):
    plant(wrong)
    done = outcome(op)
    assert done.status == "wrong"
    assert done.reason.startswith("element ")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda out, s: torch.sum(s[0][:-1], 0, out=out),
        lambda out, s: torch.sum(s[0][1:], 0, out=out),
        lambda out, s: torch.sum(torch.cat([s[0], s[0][-1:]]), 0, out=out),
        lambda out, s: torch.sum(s[0][::2], 0, out=out),
        lambda out, s: torch.sum(s[0].float(), 0, out=out),
        lambda out, s: out.fill_(float(s[0][0])),
    ],
    ids=["last lost", "first lost", "last twice", "every second", "float32", "one element"],
)
def test_a_read_that_misses_or_repeats_elements_is_caught(outcome, plant, wrong):
    plant(wrong)
    done = outcome("read")
    assert done.status == "wrong"
    assert done.reason.startswith(f"the sum of {N} elements is ")


def test_the_exact_pass_of_read_marks_first_and_last_and_restores_the_source(work, monkeypatch):
    """A run that knows the old sum passes the check, and fails the exact pass."""
    seen = []
    monkeypatch.setattr(memory, "_call", lambda b, op, out, s: seen.append((out, s[0], float(s[0].sum()))) or (lambda: None))
    one = work("read")
    out, source, total = seen[0]
    before = source.clone()
    out.fill_(total)
    one.check()
    marked = []

    def cheat():
        marked.append(source - before)
        out.fill_(total)

    with pytest.raises(Wrong):
        one.reset.__self__.exact(cheat)
    assert torch.equal(source, before)
    assert marked[0][0] == 2.0**12
    assert marked[0][-1] == 2.0**43
    assert int((marked[0] != 0).sum()) == 32


def test_an_output_that_changes_between_samples_is_caught(outcome, plant):
    calls = []

    def wrong(out, sources):
        right("copy", out, sources)
        calls.append(1)
        if len(calls) >= 4:
            out[3] += 1

    plant(wrong)
    done = outcome("copy")
    assert done.status == "wrong"
    assert done.reason.startswith(("element 3: expected ", "two samples of a deterministic kernel differ"))


# -- what is refused


def test_the_working_set_is_every_array_once():
    needs = memory.memory.needs_of
    sets = {op: needs({"backend": "torch", "op": op, "size": 1 << 20}).working_set >> 20 for op in memory.READS}
    assert sets == {"read": 1, "write": 1, "copy": 2, "scale": 2, "add": 3, "triad": 3}


def test_more_than_the_memory_has_is_refused(outcome, monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 4 << 20)
    done = outcome("triad", size=2 << 20)
    assert done.status == "skipped"
    assert done.reason == "needs 6MiB of memory, 4MiB is free on cpu"


def test_triton_on_a_processor_runs_in_the_interpreter_only(outcome):
    assert outcome("copy", backend="triton").reason == "Triton kernels run on a processor in the interpreter only"
    done = outcome("copy", size=32 << 20, backend="triton", interpret=True)
    assert (done.status, done.reason) == ("skipped", "too large for the interpreter: up to 16MiB fits")


@pytest.mark.parametrize("size", [0, 8, 8184, 8196, 1 << 20 | 4])
def test_sizes_that_hold_no_two_pages_of_whole_elements_are_the_users_mistake(size):
    with pytest.raises(UsageError, match=f"size {size}: arrays hold 8-byte elements"):
        memory.memory.needs_of({"backend": "torch", "op": "copy", "size": size})


def test_needs_name_the_modules_and_the_interpreter():
    torch_needs, triton_needs = (memory.memory.needs_of({"backend": b, "op": "copy", "size": 8192}) for b in ("torch", "triton"))
    assert (torch_needs.modules, torch_needs.interpreter) == (("torch",), False)
    assert (triton_needs.modules, triton_needs.interpreter, triton_needs.arch) == (("torch", "triton"), True, 80)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("op", OPS)
def test_operations_on_a_gpu_are_right(tmp_path, backend, op):
    params = {"backend": backend, "op": op, "size": (256 << 20) + 8}
    job = Job("memory", "kernels.memory", "memory", params, "cuda:0", 0.2, 1, llc_bytes=64 << 20)
    done = execute(job, memory.memory, Serial(), tmp_path, lambda _: None)
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == "cuda_event"
