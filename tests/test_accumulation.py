"""How fp8 sums were accumulated: simulated accumulators, in float64, are told apart, and what was not asked for is wrong."""

import math

import pytest
import torch

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.world import Serial
from kernels import accumulation, matmul, matmul_backends

SCALE = 2.0**-14


def cut(terms, bits):
    """The sum of terms (last axis), each aligned to the largest and cut after so many bits behind its point."""
    unit = torch.exp2(torch.frexp(terms.abs().amax(-1, keepdim=True))[1].double() - 1 - bits)
    return ((terms / unit).trunc() * unit).sum(-1)


def accumulated(a, b, scale, bits=13, step=32, move=0, splits=1):
    """c = scale·a·bᵀ as tensor cores sum: ``step`` products and the sum so far at a time, of ``bits`` bits.

    ``move``: places after which the sum is moved to a wider one (0: never).  ``splits``: parts of K with sums of their own.
    """
    products = a.double()[:, None, :] * b.double()[None, :, :]
    wide = torch.zeros(products.shape[:2], dtype=torch.float64)
    for part in products.chunk(splits, dim=2):
        total = torch.zeros_like(wide)
        for start in range(0, part.shape[2], step):
            total = cut(torch.cat([part[:, :, start : start + step], total[..., None]], dim=2), bits)
            if move and (start + step) % move == 0:
                wide, total = wide + total, torch.zeros_like(total)
        wide = wide + total
    return (wide * scale).bfloat16()


def kept(k, product, m=2, n=3):
    a, b = (torch.empty(rows, k, dtype=torch.float8_e4m3fn) for rows in (m, n))
    c = torch.empty(m, n, dtype=torch.bfloat16)
    return accumulation.kept(a, b, c, lambda: c.copy_(product(a, b)), SCALE)


@pytest.mark.parametrize("k", [2048, 2064, 4096, 14336, 28672, 65520])
def test_fp32_keeps_every_term_whatever_the_order(k):
    assert kept(k, lambda a, b: (a.float() @ b.float().T * SCALE).bfloat16()) == 1
    order = torch.randperm(k, generator=torch.Generator().manual_seed(1))
    assert kept(k, lambda a, b: (a.float()[:, order] @ b.float()[:, order].T * SCALE).bfloat16()) == 1


@pytest.mark.parametrize("k", [2048, 4096, 14336])
@pytest.mark.parametrize("step", [16, 32, 64, 128])
def test_a_single_accumulator_of_14_bits_keeps_none(k, step):
    assert kept(k, lambda a, b: accumulated(a, b, SCALE, step=step)) == 0


@pytest.mark.parametrize(("k", "move"), [(2048, 128), (2048, 512), (4096, 128), (14336, 128), (28672, 4096)])
def test_sums_moved_to_fp32_now_and_then_keep_every_term(k, move):
    assert kept(k, lambda a, b: accumulated(a, b, SCALE, move=move)) == 1


@pytest.mark.parametrize("bits", [23, 24])
def test_tensor_cores_that_cut_like_fp32_keep_every_term(bits):
    assert kept(4096, lambda a, b: accumulated(a, b, SCALE, bits=bits)) == 1


@pytest.mark.parametrize(("splits", "least", "most"), [(2, 0.4, 0.6), (4, 0.4, 1)])
def test_several_short_accumulators_keep_some(splits, least, most):
    assert least < kept(4096, lambda a, b: accumulated(a, b, SCALE, splits=splits)) <= most


def test_the_element_that_lost_most_speaks():
    def one_lost(a, b):
        c = (a.float() @ b.float().T * SCALE).bfloat16()
        c[1, 2] = value
        return c

    for value in (0.0, 2.0**-20, -1.0, 100.0):
        assert kept(2048, one_lost) == value / (1024 * 2.0**-5 * SCALE)
    value = math.nan
    assert math.isnan(kept(2048, one_lost))
    assert math.isnan(kept(2048, lambda a, b: torch.full((2, 3), math.nan)))


def test_short_sums_cannot_tell():
    assert kept(2047, lambda a, b: pytest.fail("was run")) is None


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs a case of fp8 on simulated tensor cores."""
    monkeypatch.setattr(matmul_backends, "refuse_fp8", lambda *_: None)
    monkeypatch.setattr(matmul, "_refuse_hopeless", lambda *_: None)

    def run(dtype, product, shape="4x4x2048"):
        def start(a, b, c, scales, *, fast):
            return lambda: c.copy_(product(a, b, float(scales[0] * scales[1])))

        monkeypatch.setattr(matmul_backends, "scaled_call", start)
        params = {"backend": "torch", "dtype": dtype, "shape": shape}
        job = Job("matmul", "kernels.matmul", "matmul", params, "cpu", 0.01, 1, llc_bytes=4096)
        return execute(job, matmul.matmul, Serial(), tmp_path, lambda _: None)

    return run


def exactly(a, b, scale):
    return (a.float() @ b.float().T * scale).bfloat16()


def test_the_mode_is_recorded_and_reduced_sums_are_wrong_unless_asked_for(outcome):
    done = outcome("fp8_fast", accumulated)
    assert (done.status, done.settings["accumulated"], done.settings["fast_accum"]) == ("ok", "reduced", True)
    done = outcome("fp8", accumulated)
    assert (done.status, done.measurement) == ("wrong", None)
    assert done.reason == "sums kept 0.0% of small terms beside a large one: fewer bits than fp32, which only fp8_fast allows"
    for dtype in ("fp8", "fp8_fast"):
        done = outcome(dtype, exactly)
        assert (done.status, done.settings["accumulated"]) == ("ok", "fp32")
    assert outcome("fp8", lambda a, b, scale: accumulated(a, b, scale, move=128)).settings["accumulated"] == "fp32"


def test_where_sums_are_too_short_nothing_is_said(outcome):
    assert "accumulated" not in outcome("fp8", accumulated, "4x4x1024").settings


def test_planted_sums_that_are_no_numbers_are_wrong_in_either_mode(outcome, monkeypatch):
    monkeypatch.setattr(accumulation, "kept", lambda *_: math.nan)
    assert [outcome(dtype, exactly).status for dtype in ("fp8", "fp8_fast")] == ["wrong"] * 2


@pytest.mark.gpu
def test_a_gpu_sums_fp8_in_fp32_unless_it_is_let(tmp_path):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    params = {"backend": "torch", "dtype": "fp8", "shape": "4096"}
    job = Job("matmul", "kernels.matmul", "matmul", params, "cuda:0", 0.2, 1, llc_bytes=64 << 20)
    done = execute(job, matmul.matmul, Serial(), tmp_path, lambda _: None)
    assert (done.status, done.reason) == ("ok", "")
    assert done.settings["accumulated"] == "fp32"
