"""Collectives over torch.distributed with gloo, for real; what NCCL runs is the same code with other buffers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from clustergauge import warnings
from clustergauge.code import ROOT
from clustergauge.probe import Context
from clustergauge.world import Serial
from collectives import barrier, operations, over_torch, send_recv
from tests.faults.planted import LATE_S
from tests.planted_cases import COLLECTIVES, record, run, supervised

TWO_FORMS = ("all_gather", "reduce_scatter", "gather", "scatter")
DTYPES = ("bf16", "fp16", "fp32", "fp64", "int32")


@pytest.fixture(scope="module")
def supervisor():
    with supervised() as owner:
        yield owner


@pytest.mark.parametrize(("number", "name"), list(enumerate(COLLECTIVES)))
def test_every_operation_is_exact_between_two_ranks(supervisor, number, name):
    dtype = DTYPES[number % len(DTYPES)]
    outcome = run(supervisor, name, "gloo", dtype=dtype, size=20_000)
    assert outcome.status == "ok", outcome
    assert outcome.workload.collective == name
    assert outcome.settings["place"] == ("in" if name in over_torch.ONLY_IN_PLACE else "out")
    assert outcome.settings["torch_distributed_backend"] == "gloo"
    assert outcome.measurement.loop_mean_s > 0
    if name in ("all_reduce", "reduce"):
        assert outcome.measurement.iterations_per_sample == 1  # in place: the next run would sum sums


@pytest.mark.parametrize("name", TWO_FORMS)
def test_every_operation_is_exact_in_place(supervisor, name):
    outcome = run(supervisor, name, "gloo", place="in")
    assert outcome.status == "ok", outcome
    assert outcome.settings["place"] == "in"


@pytest.mark.parametrize("name", ["all_reduce", "reduce", "all_to_all"])
def test_forms_that_there_are_not_are_skipped(supervisor, name):
    outcome = run(supervisor, name, "gloo", place="in")
    assert outcome.status == "skipped"
    assert "in place" in outcome.reason


@pytest.mark.parametrize("name", ["barrier", "pingpong", "unidirectional", "bidirectional"])
def test_the_others_are_exact_too(supervisor, name):
    outcome = run(supervisor, name, "gloo")
    assert outcome.status == "ok", outcome


@pytest.mark.parametrize(
    ("name", "place"), [*((name, "") for name in (*COLLECTIVES, "unidirectional")), *((name, "in") for name in TWO_FORMS)]
)
def test_one_wrong_bit_names_rank_and_element(supervisor, name, place):
    outcome = run(supervisor, name, "gloo", place=place, fault="flip")
    rank = 0 if name in ("reduce", "gather") else 1
    assert outcome.status == "wrong"
    length = {"reduce_scatter": 512, "scatter": 512, "unidirectional": 64 * 1024}.get(name, 1024)
    element = {"gather": 640, "unidirectional": length // 2}.get(
        name, length // 4
    )  # gather's output is a list: the last is struck
    assert outcome.reason.startswith(f"rank {rank}: element {element} of {length} on rank {rank}: expected ")


def test_a_barrier_that_does_not_wait_is_wrong(supervisor):
    outcome = run(supervisor, "barrier", "gloo", fault="stale")
    assert outcome.status == "wrong"
    assert re.search(r"rank \d left \S+ ms before rank \d had entered", outcome.reason)  # on a busy machine another may be later


def test_a_slow_call_is_not_a_late_arrival(supervisor):
    slow = record(run(supervisor, "all_reduce", "gloo", fault="slow", budget_s=0.3), 2)
    assert "late rank" not in [w.name for w in warnings.doubts([slow])]


def test_clocks_of_other_kernels_are_compared_over_the_transport(supervisor):
    outcome = run(supervisor, "all_reduce", "gloo", fault="far")
    assert outcome.status == "ok", outcome
    assert outcome.settings["clock_error_s"] > 0


@pytest.mark.parametrize("name", ["all_to_all", "reduce_scatter"])
def test_three_ranks_have_blocks_of_their_own(supervisor, name):
    outcome = run(supervisor, name, "gloo", ranks=3)
    assert outcome.status == "ok", outcome
    assert outcome.workload.message_bytes == 3 * 1360


def test_the_rank_that_is_late_is_named_and_not_its_victims(supervisor):
    late = record(run(supervisor, "all_reduce", "gloo", ranks=3, fault="late", budget_s=0.3), 3)
    values = late.measurement.series["late"].values
    assert max(range(3), key=values.__getitem__) == 2
    assert values[2] >= LATE_S["gloo"] / 2


def test_ranks_of_another_world_are_refused():
    with pytest.raises(TypeError, match=r"the gloo backend needs torch\.distributed ranks"):
        over_torch.world_of(Context(world=Serial(), device="cpu", seed=1, scratch=None), "gloo")


PROBES = [
    *(getattr(operations, name) for name in COLLECTIVES),
    barrier.barrier,
    send_recv.send_recv,
]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_what_each_backend_needs(probe):
    for backend in probe.axes["backend"]:
        needs = probe.needs_of(next(case.params for case in probe.cases(backend=[backend])))
        wanted = {"mpi": ("mpi", "cpu"), "gloo": ("torch", "cpu"), "nccl": ("torch", "cuda"), "mpi_device": ("mpi", "cuda")}
        assert (needs.world, needs.device) == wanted[backend]
        assert needs.ranks == 2


def test_ids_are_those_of_before_the_axis_place():
    cases = operations.all_reduce.cases(backend=["mpi"], dtype=["fp32"], size=[8])
    assert [case.id for case in cases] == [
        "all_reduce/backend=mpi/dtype=fp32/size=8B",
        "all_reduce/backend=mpi/dtype=fp32/size=8B/place=in",
    ]


def test_listing_imports_nothing_heavy():
    modules = ", ".join(f"collectives.{name}" for name in ("operations", "barrier", "send_recv"))
    code = f"import sys, {modules}; print({{'torch', 'scipy', 'mpi4py'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
