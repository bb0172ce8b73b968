"""Probe ``matmul``: what it runs, counts and refuses, and that planted errors end it as wrong."""

import math
import os
import re
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from clustergauge import catalogue
from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from kernels import accumulation, buffers, matmul, matmul_backends as backends

MM = matmul.matmul
REFUSE = matmul._refuse_hopeless


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs a case, however long a product takes here."""
    monkeypatch.setattr(matmul, "_refuse_hopeless", lambda *_: None)

    def run(dtype="fp32", shape="48x80x64", backend="torch", budget_s=0.05, llc_bytes=4096, interpret=False):
        params = {"backend": backend, "dtype": dtype, "shape": shape}
        job = Job("matmul", "kernels.matmul", "matmul", params, "cpu", budget_s, 1, interpret=interpret, llc_bytes=llc_bytes)
        return execute(job, MM, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def plant(monkeypatch):
    """Lets ``wrong(c, calls)`` spoil the output of every product; ``calls`` counts them."""

    def planting(wrong):
        calls = [0]

        def spoiling(start):
            def spoiled(a, b, c, *scales, **options):
                call = start(a, b, c, *scales, **options)

                def run():
                    call()
                    calls[0] += 1
                    wrong(c, calls[0])

                return run

            return spoiled

        monkeypatch.setattr(backends, "torch_call", spoiling(backends.torch_call))
        monkeypatch.setattr(backends, "scaled_call", spoiling(backends.scaled_call))

    return planting


@pytest.fixture
def fp8_here(monkeypatch):
    """Lets fp8 cases run here: torch's product for processors is right, if slow."""
    monkeypatch.setattr(backends, "refuse_fp8", lambda *_: None)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("shape", ["64", "48x80x64", "33x17x5"])
def test_every_dtype_of_a_processor_is_right_and_counted(outcome, dtype, shape):
    done = outcome(dtype, shape)
    assert (done.status, done.reason) == ("ok", "")
    work = 2 * math.prod(matmul.parse_shape(shape))
    assert (done.workload.flops, done.workload.ops) == ((0, work) if dtype == "int8" else (work, 0))
    assert (done.workload.dtype, done.workload.bound) == (dtype, "compute")
    assert (done.measurement.clock, len(done.measurement.digest)) == ("wall", 32)
    assert done.settings["threads"] == torch.get_num_threads()
    assert {"mkl", "onednn", "vector", "layout", "buffer_sets"} <= set(done.settings)
    assert done.settings["mnk"] == "x".join(map(str, matmul.parse_shape(shape)))


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("shape", ["48x80x64", "33x17x5"])
def test_numpys_own_blas_is_right_and_named(outcome, dtype, shape):
    done = outcome(dtype, shape, "numpy")
    assert done.status == "ok", done.reason
    assert done.workload.flops == 2 * math.prod(matmul.parse_shape(shape))
    assert done.settings["blas"]
    assert done.settings["threads"] >= 1


def test_an_error_in_numpys_product_is_wrong(outcome, monkeypatch):
    right = backends.numpy_starter

    def spoiling(ctx, dtype):
        def start(a, b, c):
            call = right(ctx, dtype)(a, b, c)

            def run():
                call()
                c[0, 0] += 1

            return run

        return start

    monkeypatch.setattr(backends, "numpy_starter", spoiling)
    assert outcome("fp32", backend="numpy").status == "wrong"


def test_numpys_blas_has_no_small_types(outcome):
    done = outcome("bf16", backend="numpy")
    assert (done.status, done.reason) == ("skipped", "numpy's BLAS has no bf16: it has fp64, fp32")


def test_sets_are_as_many_as_defeat_the_cache_and_cold_is_said_only_then(outcome, monkeypatch):
    per_set = (64 * 64 * 3) * 4
    done = outcome(shape="64", llc_bytes=10 * per_set)
    assert (done.settings["buffer_sets"], done.measurement.cache) == (30, "cold")
    assert "cache_reason" not in done.settings
    monkeypatch.setattr(matmul, "MOST_SETS", 29)
    done = outcome(shape="64", llc_bytes=10 * per_set)
    assert (done.settings["buffer_sets"], done.measurement.cache) == (1, "hot")
    assert done.settings["cache_reason"] == "30 buffer sets would defeat the cache, at most 29 are to be had: no more are made"


def test_time_neither_changes_the_sets_nor_skips_what_is_merely_slow(outcome, monkeypatch):
    start = backends.torch_call

    def slow(a, b, c):
        call = start(a, b, c)
        return lambda: (time.sleep(0.004), call())

    monkeypatch.setattr(backends, "torch_call", slow)
    monkeypatch.setattr(matmul, "_refuse_hopeless", REFUSE)
    done = outcome(shape="64", llc_bytes=10 * 64 * 64 * 12, budget_s=0.02)
    assert (done.status, done.settings["buffer_sets"], done.measurement.cache) == ("ok", 30, "cold")


def test_every_set_is_run_and_gives_the_same_output(tmp_path):
    ctx = Context(Serial(), "cpu", 1, tmp_path, llc_bytes=4096 * 4)
    work = MM.function(ctx, backend="torch", dtype="fp32", shape="32")
    assert len(work.runs) == 4
    work.reset()
    digests = set()
    for index, run in enumerate(work.runs):
        run()
        work.last = index
        work.check()
        digests.add(work.digest())
    assert len(digests) == 1


# -- planted errors


def spoil_row(c, calls):
    c[33] = c[32]


def spoil_element(c, calls):
    c[33, 17] += 100


def swap(c, calls):
    c.copy_(c.T.clone())


def keep_a_tile(c, calls):
    c[16:32, 32:48] = math.nan if c.is_floating_point() else -(2**31)  # as poison that was not overwritten


def flip_a_bit(c, calls):
    c.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[c.itemsize])[33, 17] ^= 1


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "int8", "fp8", "fp8_fast"])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (spoil_row, "row 33"),
        (spoil_element, "row 33"),
        (swap, "row "),
        (keep_a_tile, r"row (1[6-9]|2\d|3[01])\b"),
        (flip_a_bit, "(small integers: )?row 33, column 17"),
    ],
)
def test_planted_errors_end_the_case_as_wrong(outcome, plant, fp8_here, dtype, wrong, reason):
    plant(wrong)
    done = outcome(dtype, "64")
    assert (done.status, done.measurement) == ("wrong", None)
    assert re.match(reason, done.reason)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_one_flipped_bit_in_floats_is_left_to_the_exact_pass(outcome, plant, dtype):
    plant(flip_a_bit)
    assert outcome(dtype, "64").reason.startswith("small integers: row 33, column 17: ")


def test_a_run_that_does_nothing_is_caught(outcome, plant, monkeypatch):
    monkeypatch.setattr(backends, "torch_call", lambda a, b, c: lambda: None)
    for dtype in ("fp64", "fp32", "bf16", "int8"):
        done = outcome(dtype, "64")
        assert done.status == "wrong"
        assert re.match(r"row \d+, column \d+: expected ", done.reason)


def test_a_tile_left_stale_after_the_first_run_is_caught(outcome, plant, monkeypatch):
    start = backends.torch_call

    def stale(a, b, c):
        call, seen = start(a, b, c), []

        def run():
            old = c[16:32, 16:32].clone()
            call()
            if seen:
                c[16:32, 16:32] = old
            seen.append(1)

        return run

    monkeypatch.setattr(backends, "torch_call", stale)
    done = outcome("fp32", "64", llc_bytes=1)
    assert done.status == "wrong"
    assert done.reason.startswith(("row 16", "two samples of a deterministic kernel differ"))


def test_the_digest_tells_outputs_apart_that_are_both_right(tmp_path):
    work = MM.function(Context(Serial(), "cpu", 1, tmp_path, llc_bytes=1), backend="torch", dtype="fp32", shape="64")
    work.reset()
    work.run[0]()
    before = work.digest()
    (c,) = (cell.cell_contents for cell in work.reset.__closure__ if isinstance(cell.cell_contents, torch.Tensor))
    c.view(torch.int32)[0, 1, 1] ^= 1
    work.check()
    assert work.digest() != before


# -- fp8


@pytest.mark.parametrize(("dtype", "fast"), [("fp8", False), ("fp8_fast", True)])
def test_fp8_declares_scales_and_accumulation_and_counts_as_fp8(outcome, fp8_here, monkeypatch, dtype, fast):
    product, asked = torch._scaled_mm, []

    def watched(*operands, **options):
        asked.append(options["use_fast_accum"])
        return product(*operands, **options)

    monkeypatch.setattr(torch, "_scaled_mm", watched)
    done = outcome(dtype, "48x80x64")
    assert (done.status, done.reason) == ("ok", "")
    assert (done.workload.dtype, done.workload.flops) == ("fp8", 2 * 48 * 80 * 64)
    assert (done.settings["format"], done.settings["fast_accum"]) == ("e4m3", fast)
    assert set(asked) == {fast}
    for name in ("scale_a", "scale_b"):
        assert math.frexp(done.settings[name])[0] == 0.5
        assert 2**-8 <= done.settings[name] <= 2**-6


def test_scales_that_do_not_belong_to_the_operands_are_caught(outcome, fp8_here, monkeypatch):
    start = backends.scaled_call
    monkeypatch.setattr(backends, "scaled_call", lambda a, b, c, scales, **more: start(a, b, c, (torch.ones(()),) * 2, **more))
    assert re.match(r"row \d+, column \d+: expected ", outcome("fp8", "64").reason)


def test_an_fp8_run_that_does_nothing_is_caught(outcome, fp8_here, monkeypatch):
    monkeypatch.setattr(backends, "scaled_call", lambda *_, **__: lambda: None)
    assert re.match(r"row \d+, column \d+: expected .*, got nan", outcome("fp8", "64").reason)


def test_fp8_is_refused_where_it_would_be_something_else(outcome, tmp_path, monkeypatch):
    assert outcome("fp8").reason.startswith("a processor has no fp8 arithmetic")
    ctx = Context(Serial(), "cuda:0", 1, tmp_path)
    for n, k in ((24, 32), (32, 24)):
        with pytest.raises(Skip, match="divisible by 16"):
            backends.refuse_fp8(ctx, n, k)
    backends.refuse_fp8(ctx, 16, 32)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for arch, why in (
        ("gfx942:sramecc+", "fnuz"),
        ("gfx90a:sramecc+:xnack-", "no fp8 product for gfx90a$"),
        ("gfx950", ""),
        ("gfx1201", ""),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, arch=arch: SimpleNamespace(gcnArchName=arch))
        with pytest.raises(Skip, match=why) if why else nullcontext():
            backends.refuse_fp8(ctx, 16, 32)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("mnk", [(4096, 4096, 4096), (512, 512, 500)])
def test_triton_takes_what_the_architecture_moves_tiles_with(tmp_path, monkeypatch, arch, mnk):
    from kernels.triton import matmul as kernel, matmul_tiles

    calls = []
    monkeypatch.setattr(kernel, "architecture", lambda _: arch)
    monkeypatch.setattr(kernel, "call", lambda config, *_: calls.append(config))
    ctx = Context(Serial(), "cuda:0", 1, tmp_path)
    backends.starter(ctx, "triton", "bf16", mnk, ())(None, None, None)
    assert calls == [matmul_tiles.chosen(arch, "bf16", *mnk[1:], mnk[0])]
    assert ctx.settings["config"] == str(calls[0])


@pytest.mark.parametrize("interpret", [True, False])
def test_triton_says_what_it_has_not(outcome, interpret):
    done = outcome("fp64", "64", backend="triton", interpret=interpret)
    has = "fp32, tf32, fp16, bf16, fp8, fp8_fast, int8"
    assert (done.status, done.reason) == ("skipped", f"the Triton matmul has no fp64: it has {has}")


@pytest.mark.parametrize("dtype", ["fp8", "fp8_fast"])
def test_fp8_in_triton_is_for_devices_that_multiply_the_format_of_ocp(tmp_path, monkeypatch, dtype):
    from kernels.triton import matmul as kernel, matmul_tiles

    calls, scales = [], (torch.ones(()), torch.ones(()))
    monkeypatch.setattr(kernel, "call", lambda config, *rest: calls.append((config, *rest)))
    ctx = Context(Serial(), "cuda:0", 1, tmp_path)
    for arch in ("sm_89", "sm_90", "sm_100", "sm_120", "gfx950"):
        monkeypatch.setattr(kernel, "architecture", lambda _, arch=arch: arch)
        backends.starter(ctx, "triton", dtype, (64, 64, 64), scales)(None, None, None)
        assert calls.pop() == (matmul_tiles.chosen(arch, dtype, 64, 64, 64), dtype, None, None, None, scales)
    for arch in ("sm_80", "sm_86", "gfx942"):
        monkeypatch.setattr(kernel, "architecture", lambda _, arch=arch: arch)
        with pytest.raises(Skip, match=f"the Triton matmul has no configuration for {dtype} on {arch}"):
            backends.starter(ctx, "triton", dtype, (64, 64, 64), scales)
    assert MM.needs_of({"backend": "triton", "dtype": dtype, "shape": "64"}).arch == 89


def test_only_fp8_is_scaled(tmp_path, monkeypatch):
    from kernels.triton import matmul as kernel

    calls = []
    monkeypatch.setattr(kernel, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(kernel, "call", lambda *given: calls.append(given))
    ctx = Context(Serial(), "cuda:0", 1, tmp_path)
    backends.starter(ctx, "triton", "bf16", (64, 64, 64), (torch.ones(()), torch.ones(())))(None, None, None)
    assert calls[0][-1] is None


# -- what takes the time


def test_a_product_of_few_rows_is_bound_by_memory_and_counts_its_bytes_once(outcome):
    one = outcome("fp32", "1x512x256").workload
    assert (one.bound, one.flops) == ("memory", 2 * 512 * 256)
    assert (one.bytes_read, one.bytes_written) == (4 * (512 * 256 + 256), 4 * 512)
    int8 = outcome("int8", "1x512x256").workload
    assert (int8.bound, int8.bytes_read, int8.bytes_written) == ("memory", 512 * 256 + 256, 4 * 512)
    many = outcome("fp32", "64x512x256").workload
    assert (many.bound, many.bytes_read, many.bytes_written) == ("compute", 0, 0)


@pytest.mark.parametrize(
    ("dtype", "rows"), [("fp64", 1), ("fp32", 8), ("tf32", 64), ("fp16", 64), ("bf16", 64), ("fp8_fast", 64), ("int8", 64)]
)
def test_on_a_gpu_so_many_rows_are_bound_by_memory(dtype, rows):
    n, k = 8192, 8192
    operand, output = matmul._types(dtype)
    for m, bound in ((rows, "memory"), (4 * rows, "compute")):
        moved = (m + n) * k * operand.itemsize + m * n * output.itemsize
        assert matmul._bound("cuda", dtype, (m, n, k), moved) == bound
        assert matmul._clock("cuda", "triton", bound) == ("graph" if bound == "memory" else "device")
    assert matmul._clock("cuda", "cupy", "memory") == "device"
    assert matmul._clock("cpu", "torch", "memory") == "wall"


def test_no_gpu_that_is_known_computes_less_while_its_memory_moves_a_byte():
    known = [part for part in catalogue.known().parts.values() if part.arch and part.bandwidth_gb_s]
    assert len(known) > 20
    for part in known:
        for dtype, figure in part.peak.items():
            if dtype in matmul.BALANCE["cuda"] and (part.name, dtype) not in {("B300 SXM", "int8"), ("B300 SXM", "fp64")}:
                assert 1e3 * figure.value / part.bandwidth_gb_s.value > 0.9 * matmul.BALANCE["cuda"][dtype], (part.name, dtype)


def rounded(tensor, bits):
    """fp32 with so many bits of the mantissa, cut."""
    return (tensor.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def test_tf32_that_is_computed_in_fp32_or_emulated_is_no_tf32():
    a, b, c = torch.empty(48, 64), torch.empty(80, 64), torch.empty(48, 80)
    high = torch.bfloat16

    def emulated():  # bf16 x 3
        rest = (a - a.to(high).float()).to(high).float()
        c.copy_(a.to(high).float() @ b.T + rest @ b.T)

    before = torch.get_float32_matmul_precision()
    try:
        for run, kept in (
            (lambda: torch.mm(a, b.T, out=c), True),
            (emulated, True),
            (lambda: torch.mm(rounded(a, 10), rounded(b, 10).T, out=c), False),
            (lambda: torch.mm(a.bfloat16().float(), b.T, out=c), False),  # the check of its values finds that
            (lambda: None, False),
        ):
            assert accumulation.keeps_fp32(a, b, c, run) == kept
            with pytest.raises(Skip, match="keeps the bits of fp32") if kept else nullcontext():
                matmul._refuse_fp32(a, b, c, run)
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_of_torch_on_amd_is_that_of_mi300(tmp_path, monkeypatch):
    ctx = Context(Serial(), "cuda:0", 1, tmp_path)
    backends.refuse_tf32(ctx)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.delenv("HIPBLASLT_ALLOW_TF32", raising=False)
    for arch in ("gfx942:sramecc+:xnack-", "gfx950", "gfx90a:sramecc+", "gfx1100"):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, arch=arch: SimpleNamespace(gcnArchName=arch))
        name = arch.partition(":")[0]
        with pytest.raises(Skip, match=f"^{name} has no tf32") if name != "gfx942" else nullcontext():
            backends.starter(ctx, "torch", "tf32", (64, 64, 64), ())
    try:
        matmul.set_precision("fp32")
        assert "HIPBLASLT_ALLOW_TF32" not in os.environ
        matmul.set_precision("tf32")
        assert os.environ["HIPBLASLT_ALLOW_TF32"] == "1"  # torch for ROCm asks no library for tf32 without it
    finally:
        matmul.set_precision("fp32")
        monkeypatch.delenv("HIPBLASLT_ALLOW_TF32", raising=False)


# -- what is refused


def test_a_kernel_that_does_not_fit_the_device_is_no_trial(tmp_path, monkeypatch):
    from triton import OutOfResources

    def refused():
        raise OutOfResources(98304, 65536, "shared memory")

    monkeypatch.setattr(backends, "starter", lambda *_: lambda *_: refused)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    ctx = Context(Serial(), "cpu", 1, tmp_path)
    try:
        with pytest.raises(Skip, match="needs 98304 bytes of shared memory, a block on H100 has 65536"):
            matmul.trial(ctx, "triton", "bf16", "64")
    finally:
        matmul.set_precision("fp32")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("2048", (2048,) * 3),
        ("1", (1,) * 3),
        ("200x136x96", (200, 136, 96)),
        ("1048576", (1 << 20,) * 3),
        ("llama3-8b-o-m8", (8, 4096, 4096)),
    ],
)
def test_shapes_are_read(text, shape):
    assert matmul.parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "0", "x", "12x", "2x3", "1x2x3x4", "-1", "1e3", " 1", "1 ", "01", "٣", "12345678", "1\n"])
def test_what_is_no_shape_is_the_users_mistake(text):
    with pytest.raises(UsageError, match=r"not a shape: .* \(write 2048, or MxNxK: 200x136x96, or a name: "):
        matmul.parse_shape(text)


def test_edges_have_a_limit():
    with pytest.raises(UsageError, match="shape 1x1048577x1: no edge may be longer than 1048576"):
        matmul.parse_shape("1x1048577x1")


@given(st.tuples(*(st.integers(1, 1 << 20),) * 3))
def test_shapes_survive_writing_and_reading(shape):
    assert matmul.parse_shape("x".join(map(str, shape))) == shape


def test_int8_sums_that_could_leave_int32_are_refused():
    params = {"backend": "torch", "dtype": "int8"}
    MM.needs_of({**params, "shape": "1x1x131071"})
    with pytest.raises(UsageError, match="with int8, K must be below 131072"):
        MM.needs_of({**params, "shape": "1x1x131072"})
    assert 128 * 128 * 131071 < 2**31


@pytest.mark.parametrize("dtype", ["fp8", "fp8_fast"])
def test_fp8_sums_that_truncation_would_drown_are_refused(dtype):
    params = {"backend": "torch", "dtype": dtype}
    MM.needs_of({**params, "shape": "16x16x65520"})
    with pytest.raises(UsageError, match=f"with {dtype}, K must be below 65536"):
        MM.needs_of({**params, "shape": "16x16x65536"})


def test_needs_name_device_architecture_and_interpreter():
    def needs(backend, dtype):
        return MM.needs_of({"backend": backend, "dtype": dtype, "shape": "256"})

    assert (needs("torch", "fp32").device, needs("torch", "tf32").device) == ("any", "cuda")
    assert [needs("torch", dtype).arch for dtype in matmul.DTYPES] == [0, 0, 80, 0, 80, 89, 89, 75]
    assert matmul.DTYPES == ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp8_fast", "int8")
    assert (needs("triton", "bf16").modules, needs("triton", "bf16").interpreter) == (("torch", "triton"), True)
    assert not needs("torch", "bf16").interpreter


def test_triton_on_a_processor_runs_in_the_interpreter_only(outcome):
    done = outcome(backend="triton")
    assert (done.status, done.reason) == ("skipped", "Triton kernels run on a processor in the interpreter only")
    done = outcome(backend="triton", shape="512x512x513", interpret=True)
    assert done.reason == "too large for the interpreter: M·N·K up to 512x512x512 fits"


def test_more_than_the_memory_has_is_refused(outcome, monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 14 << 20)
    assert outcome(shape="1024").reason == "needs 12MiB of memory, 14MiB is free on cpu"


def test_tf32_of_torch_is_on_for_tf32_alone():
    before = torch.get_float32_matmul_precision()
    try:
        matmul.set_precision("tf32")
        assert torch.get_float32_matmul_precision() == "high"
        for dtype in ("fp32", "bf16", "int8"):
            matmul.set_precision("tf32")
            matmul.set_precision(dtype)
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *(("torch", dtype) for dtype in matmul.DTYPES),
        *(("triton", dtype) for dtype in backends.TRITON),
    ],
)
@pytest.mark.parametrize("shape", ["1024", "1000x760x520"])
def test_products_on_a_gpu_are_right(tmp_path, backend, dtype, shape):
    params = {"backend": backend, "dtype": dtype, "shape": shape}
    if torch.cuda.get_device_capability() < divmod(MM.needs_of(params).arch, 10):
        pytest.skip(f"this GPU has no {dtype}")
    job = Job("matmul", "kernels.matmul", "matmul", params, "cuda:0", 0.2, 1, llc_bytes=64 << 20)
    done = execute(job, MM, Serial(), tmp_path, lambda _: None)
    if dtype.startswith("fp8") and shape != "1024":
        assert (done.status, done.reason) == ("skipped", "fp8 needs N and K divisible by 16")
        return
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == "cuda_event"
