"""Probe ``burnin``: it works for all its time, and one wrong output among many ends it as wrong."""

import pytest
import torch

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Wrong
from clustergauge.world import Serial
from kernels import burnin, matmul

BURN_IN = burnin.burnin
PARAMS = {"backend": "torch", "dtype": "fp32", "shape": "48x80x64", "on": "cores"}


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs the case, however long a product takes here, with ``spoil(c, calls)`` after every product."""
    monkeypatch.setattr(matmul, "_refuse_hopeless", lambda *_: None)
    start = matmul.backends.torch_call

    def run(spoil=lambda *_: None, budget_s=0.2):
        calls = [0]

        def spoiled(a, b, c):
            call = start(a, b, c)

            def both():
                call()
                calls[0] += 1
                spoil(c, calls[0])

            return both

        monkeypatch.setattr(matmul.backends, "torch_call", spoiled)
        job = Job("burnin", "kernels.burnin", "burnin", PARAMS, "cpu", budget_s, 1, llc_bytes=4096)
        return execute(job, BURN_IN, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """The work, and the outputs that it writes."""
    monkeypatch.setattr(matmul, "_refuse_hopeless", lambda *_: None)
    ctx = Context(Serial(), "cpu", 1, tmp_path, llc_bytes=4096)
    work, outputs = matmul.prepare(ctx, "torch", "fp32", "48x80x64", 8)
    burnin.watch_all(work, outputs)
    return work, outputs


def sample(work, first, count):
    """What the timing loop does: reset, and then some runs in rotation."""
    work.reset()
    for index in range(first, first + count):
        work.runs[index % len(work.runs)]()
    work.last, work.count = (first + count - 1) % len(work.runs), count


def test_a_sample_holds_no_more_products_than_there_are_outputs_to_keep(outcome):
    result = outcome()
    assert (result.status, result.reason) == ("ok", "")
    assert result.settings["burn_in"] is True
    assert result.settings["buffer_sets"] == burnin.SETS["cpu"]
    assert result.measurement.iterations_per_sample <= burnin.SETS["cpu"]


def test_one_product_among_many_that_is_wrong_in_one_bit_ends_it_as_wrong(outcome):
    def once(c, calls):
        if calls == 10:  # after the first look (one run of each set, at most), and overwritten long before the end
            c.view(torch.int32)[3, 5] ^= 1

    result = outcome(once, budget_s=1.0)
    assert result.status == "wrong"
    assert "outputs of one product differ: 1 since the last look" in result.reason


@pytest.mark.parametrize("back", range(8))
def test_every_output_of_a_sample_is_compared_before_it_is_overwritten(watched, back):
    work, outputs = watched
    sample(work, 0, 8)
    first = work.digest()
    sample(work, 0, 8)
    assert work.digest() == first
    sample(work, 0, 8)
    outputs[back].view(torch.int32)[47, 79] ^= 1 << 30
    sample(work, 0, 8)
    with pytest.raises(Wrong, match="outputs of one product differ: 1 since"):
        work.digest()


def test_outputs_that_a_sample_did_not_write_are_not_compared(watched):
    work, _ = watched
    sample(work, 0, 8)
    first = work.digest()
    for start, count in ((0, 3), (3, 1), (4, 6), (2, 8)):
        sample(work, start, count)
        assert work.digest() == first
