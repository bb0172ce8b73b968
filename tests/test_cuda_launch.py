"""CUDA C kernels and cuBLAS are launched on what the caller gave, and refuse what they cannot read; CuPy is a stand-in."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from clustergauge.probe import Skip
from kernels import cuda
from tests.cuda_on_cpu import UNITS, pretend, stand_in


@pytest.fixture
def cupy(monkeypatch):
    streams = iter((100, 200, 100, 300))
    module = pretend(monkeypatch.setattr, stand_in(), lambda index: next(streams))
    monkeypatch.setitem(sys.modules, "cupy", module)
    yield module
    cuda._kernel.cache_clear()
    cuda._stream.cache_clear()


def test_a_launch_goes_to_the_stream_that_is_current_at_that_moment(cupy):
    run = cuda.on_current_stream(3, lambda: cupy.log.append("work"))
    run()
    run()
    device = ("device", 3)
    assert cupy.log == [device, ("stream", 100), "work", device, ("stream", 200), "work"]


def test_an_older_cupy_gets_its_external_stream(cupy):
    cupy.cuda.Stream = SimpleNamespace()
    cuda.on_current_stream(1, lambda: None)()
    assert cupy.log == [("device", 1), ("external", 100, 1)]


@pytest.mark.parametrize(("dtype", "kind"), [("fp64", torch.float64), ("fp32", torch.float32), ("fp16", torch.float16)])
def test_cublas_writes_into_the_tensor_that_it_got(cupy, monkeypatch, dtype, kind):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    a, b = (torch.arange(float(6)).reshape(shape).to(kind) for shape in ((2, 3), (2, 3)))
    c = torch.full((2, 2), math.nan, dtype=kind)
    run = cuda.matmul("cublas", dtype, a, b, c)
    assert c.isnan().all()
    run()
    assert c.tolist() == [[5.0, 14.0], [14.0, 50.0]]
    assert cupy.log[-2:] == [("device", 0), ("stream", 100)]


def test_products_that_an_engine_has_not_are_skipped_with_the_reason(cupy, monkeypatch):
    a = torch.ones((2, 2))
    with pytest.raises(Skip, match="has no bf16 of its own"):
        cuda.matmul("cublas", "bf16", a, a, a)
    with pytest.raises(Skip, match="computes in fp32, not in fp16"):
        cuda.matmul("simt", "fp16", a, a, a)
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(Skip, match="CUPY_TF32 is set"):
        cuda.matmul("cublas", "fp32", a, a, a)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(Skip, match="ROCm"):
        cuda.matmul("simt", "fp32", a, a, a)


def test_an_array_that_cupy_copied_is_refused(cupy, monkeypatch):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    cupy.asarray = lambda tensor, shared=cupy.asarray: shared(tensor.clone())
    with pytest.raises(RuntimeError, match="copied"):
        cuda.matmul("cublas", "fp32", *torch.ones((3, 2, 2)))


def test_arrays_that_16_byte_accesses_cannot_read_are_refused(cupy):
    values = torch.zeros(33, dtype=torch.float64)
    shifted = values[1:]
    assert values.data_ptr() % 16 == 0
    with pytest.raises(ValueError, match="aligned"):
        cuda.stream("copy", values[:32], shifted, shifted, 3.0)
    with pytest.raises(ValueError, match="whole 16-byte words"):
        cuda.cache_read("l2", torch.zeros(6, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match="as many for each block"):
        cuda.cache_read("l1", torch.zeros(12, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 1)


def test_blocks_follow_the_elements_and_the_multiprocessors(cupy):
    assert [cuda.readers(n, "cuda:0") for n in (1, 2048, 2049, 1 << 30)] == [1, 1, 2, 64 * UNITS]
    assert [cuda.cache_blocks(level, "cuda:0") for level in ("l1", "l2")] == [UNITS, 2 * UNITS]


def test_a_record_says_which_library_or_which_kernel_multiplied(cupy):
    assert cuda.describe("cublas", 64) == "cuBLAS 130100"
    assert cuda.describe("simt", 64).startswith("sgemm_wide, 128x128x8")
    assert cuda.describe("simt", 63).startswith("sgemm_ragged, 128x128x8")


@pytest.mark.parametrize("engine", ["cublas", "simt"])
def test_on_rocm_there_is_neither(monkeypatch, engine):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(Skip, match="ROCm build of torch"):
        cuda.describe(engine, 64)
