"""A small case of every probe of a GPU, through real workers: checked on the device, and timed by the device's own clock.

They need an accelerator (``pytest -m gpu tests/test_on_gpu.py``, a few minutes) and are skipped elsewhere.  What the probes
refuse and catch is tested beside each of them, without one.
"""

from __future__ import annotations

import os

import msgspec
import pytest

import kernels
from clustergauge import machine, processes
from clustergauge.model import Planned
from clustergauge.plan import Suite, Wish, load_probes, plan
from clustergauge.run import seed_of
from clustergauge.supervise import Patience, Supervisor

PROBES = load_probes(kernels.PROBES)
MIB = 1 << 20
CASES = [
    # probe, clock, parameters
    ("matmul", "cuda_event", {"backend": "torch", "dtype": "bf16", "shape": "1024"}),
    ("matmul", "cuda_event", {"backend": "triton", "dtype": "bf16", "shape": "1024"}),
    ("matmul", "cuda_graph", {"backend": "torch", "dtype": "bf16", "shape": "1x4096x4096"}),
    ("matmul", "cuda_graph", {"backend": "triton", "dtype": "bf16", "shape": "1x4096x4096"}),
    ("matmul", "cuda_graph", {"backend": "triton", "dtype": "bf16", "shape": "48x4096x4112"}),
    ("best_matmul", "cuda_event", {"backend": "torch", "dtype": "bf16"}),
    ("attention", "cuda_event", {"backend": "triton", "mode": "forward", "dtype": "bf16", "head_dim": 64, "heads": "8x2"}),
    ("memory", "cuda_event", {"backend": "triton", "op": "triad", "size": 256 * MIB}),
    ("cache", "cuda_event", {"backend": "triton", "cores": "one", "size": 64 << 10}),
    ("cache", "cuda_event", {"backend": "triton", "cores": "together", "size": 4 * MIB}),
    ("cache", "cuda_event", {"backend": "cupy", "cores": "each", "size": 64 << 10}),
    ("latency", "cuda_event", {"backend": "cupy", "size": 64 << 10}),
    ("latency", "cuda_event", {"backend": "cupy", "size": 256 * MIB}),
    ("normalise", "cuda_event", {"backend": "triton", "op": "softmax", "dtype": "bf16", "shape": "4096x4096"}),
    ("matvec", "cuda_graph", {"backend": "triton", "shape": "4096x4096"}),
    ("launch", "cuda_event", {"backend": "triton", "what": "graph"}),
    ("launch", "cuda_event", {"backend": "torch", "what": "back_to_back"}),
    ("transfer", "cuda_event", {"direction": "to_device", "host": "pinned", "size": 64 * MIB}),
    ("burnin", "cuda_event", {"backend": "torch", "dtype": "bf16", "shape": "2048", "on": "gpus"}),
]


IN_PREPARING = [
    ("attention", {"backend": "triton", "mode": "backward", "dtype": "bf16", "head_dim": 64, "heads": "8x2"}),
    ("launch", {"backend": "triton", "what": "graph"}),
    ("launch", {"backend": "triton", "what": "jit"}),
    ("latency", {"backend": "cupy", "size": 64 << 10}),
    ("best_matmul", {"backend": "triton", "dtype": "bf16"}),
]
"""Cases that launch kernels before the clock is made, which owns the device."""


def planned(probe: str, params: dict[str, object], which: int = 0) -> Planned:
    """The case on the first GPU, or on that at place ``which``, or on all of them; axes not named stand at their first value."""
    axes = {name: [params.get(name, values[0])] for name, values in PROBES[probe].axes.items()}
    table = {"title": "t", "cases": [{"probe": probe, "device": "cuda", "budget_s": 0.5, "axes": axes}]}
    return plan(msgspec.convert(table, Suite), PROBES, machine.describe_apart(), Wish())[which]


@pytest.fixture(scope="module")
def supervisor():
    owner = Supervisor(patience=Patience(start_s=60))
    owner.start()
    yield owner
    owner.close()
    assert processes.descendants(os.getpid()) == []


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("probe", "clock", "params"), CASES)
def test_a_small_case_is_checked_on_the_device_and_timed_by_its_clock(supervisor, probe, clock, params):
    case = planned(probe, params)
    if case.skip:
        pytest.skip(case.skip)
    result = supervisor.run(case, seed_of(case.case), 64 * MIB)
    assert (result.outcome.status, result.outcome.reason) == ("ok", ""), result.log
    assert result.outcome.measurement.clock == clock
    assert result.outcome.settings["checked_samples"] >= 1
    assert all(place.device.startswith("cuda") for place in result.where)
    if probe in ("matmul", "best_matmul", "burnin", "attention", "normalise", "matvec", "transfer"):
        assert result.outcome.measurement.digest


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("probe", "params"), IN_PREPARING)
def test_what_launches_while_preparing_does_so_on_its_own_gpu(supervisor, probe, params):
    case = planned(probe, params, which=-1)
    if case.skip or case.device == "cuda:0":
        pytest.skip(case.skip or "needs two GPUs")
    result = supervisor.run(case, 1, 64 * MIB)
    assert (result.outcome.status, result.outcome.reason) == ("ok", ""), result.log


@pytest.mark.gpu
def test_a_burn_in_on_several_gpus_keeps_how_long_each_took(supervisor):
    case = planned("burnin", {"shape": "2048"})
    if case.skip or case.ranks < 2:
        pytest.skip(case.skip or "needs two GPUs")
    measured = supervisor.run(case, 1, 64 * MIB).outcome.measurement
    assert len(measured.series["rank_time"].values) == case.ranks


# -- these run everywhere, so that the list above cannot go stale unnoticed


def test_every_kernel_probe_has_a_device_check():
    assert {probe for probe, *_ in CASES} == set(PROBES)


@pytest.mark.parametrize(("probe", "clock", "params"), CASES)
def test_every_device_check_names_a_case_that_its_probe_knows(probe, clock, params):
    assert params.keys() <= PROBES[probe].axes.keys()
    case = planned(probe, params)  # raises for a value that the probe does not know
    assert case.device.startswith("cuda")
    assert {name: case.params[name] for name in params} == params


@pytest.mark.parametrize(("probe", "params"), IN_PREPARING)
def test_the_same_of_those_on_the_last_gpu(probe, params):
    case = planned(probe, params, which=-1)
    assert {name: case.params[name] for name in params} == params
