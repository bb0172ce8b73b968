"""Collectives over MPI, for real: ranks of this machine, with faults planted in the library's calls."""

from __future__ import annotations

import ctypes
import re

import pytest

from clustergauge import metrics, warnings
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from collectives import over_mpi
from tests.faults.planted import LATE_S
from tests.planted_cases import COLLECTIVES, ONE_FORM, record, run, supervised

FORMS = [(name, place) for name in COLLECTIVES for place in ("", "in") if not (place and name in ONE_FORM)]


@pytest.fixture(scope="module")
def supervisor():
    with supervised() as owner:
        yield owner


@pytest.mark.parametrize(("name", "place"), FORMS)
def test_every_operation_is_exact_between_two_ranks(supervisor, name, place):
    dtype = "int32" if place else "fp32"
    outcome = run(supervisor, name, "mpi", place=place, dtype=dtype, size=20_000)
    assert outcome.status == "ok", outcome
    work, measured = outcome.workload, outcome.measurement
    message = 20_000 if name in ("all_reduce", "reduce", "broadcast") else 19_968 + 32
    assert (work.collective, work.dtype, work.message_bytes) == (name, dtype, message)
    assert outcome.settings["place"] == ("in" if place or name == "broadcast" else "out")
    assert outcome.settings["mpi_calls"] == "C"
    assert measured.loop_mean_s > 0
    assert outcome.settings["call_overhead_s"] > 0
    assert len(measured.arrival_skew_s) == len(measured.samples_s)
    once = place == "in" and name in ("all_reduce", "reduce", "reduce_scatter", "all_to_all")
    assert not once or measured.iterations_per_sample == 1


@pytest.mark.parametrize("name", ["barrier", "pingpong", "unidirectional", "bidirectional"])
def test_the_others_are_exact_too(supervisor, name):
    outcome = run(supervisor, name, "mpi")
    assert outcome.status == "ok", outcome
    repeats = {"barrier": 1, "pingpong": 2}.get(name, 64)
    assert outcome.measurement.iterations_per_sample % repeats == 0
    found = [metric.name for metric in metrics.derive([record(outcome, 2)])]
    assert ("loop_time" in found, "algbw" in found) == (True, name != "barrier")
    if name != "barrier":
        assert (outcome.settings["pair"], outcome.settings["window"]) == ("0-1", 64 if repeats == 64 else 1)
        assert outcome.settings["mpi_calls"] == "C"


@pytest.mark.parametrize(("name", "place"), FORMS)
def test_one_wrong_bit_names_rank_and_element(supervisor, name, place):
    outcome = run(supervisor, name, "mpi", place=place, fault="flip")
    rank = 0 if name in ("reduce", "gather") else 1
    element, length = (128, 512) if name in ("reduce_scatter", "scatter") else (256, 1024)
    assert outcome.status == "wrong"
    assert outcome.reason.startswith(f"rank {rank}: element {element} of {length} on rank {rank}: expected ")
    assert outcome.reason.endswith(" (elements wrong: 1)")  # over mpi4py, whose calls have the fault: all else is right


@pytest.mark.parametrize("mode", ["pingpong", "unidirectional", "bidirectional"])
def test_one_wrong_bit_in_a_message_is_named(supervisor, mode):
    outcome = run(supervisor, mode, "mpi", fault="flip")
    rank, length = (0, 1024) if mode == "pingpong" else (1, 64 * 1024)
    assert f"rank {rank}: element {length // 2} of {length} on rank {rank}: expected " in outcome.reason


@pytest.mark.parametrize(
    ("name", "fault"),
    [*((name, "nothing") for name in COLLECTIVES), *((n, f) for n in ("all_reduce", "all_to_all") for f in ("stale", "missing"))],
)
def test_what_did_not_happen_is_wrong(supervisor, name, fault):
    assert run(supervisor, name, "mpi", fault=fault).status == "wrong"


def test_a_barrier_that_does_not_wait_is_wrong(supervisor):
    outcome = run(supervisor, "barrier", "mpi", fault="stale")
    assert outcome.status == "wrong"
    assert re.search(r"rank \d left \S+ ms before rank \d had entered", outcome.reason)  # on a busy machine another may be later


def test_clocks_of_other_kernels_are_compared_over_the_transport(supervisor):
    outcome = run(supervisor, "all_reduce", "mpi", fault="far")
    assert outcome.status == "ok", outcome
    assert outcome.settings["clock_error_s"] > 0
    assert outcome.settings["clock_drift_s"] >= 0


def test_what_does_not_fit_is_skipped_in_words(supervisor):
    odd = run(supervisor, "all_reduce", "mpi", size=6)
    assert (odd.status, odd.reason) == ("skipped", "rank 0: 6B is not a whole number of fp32 elements")
    few = run(supervisor, "all_gather", "mpi", dtype="fp64", size=8)
    assert "8B dealt out to 2 ranks is less than one fp64 element each" in few.reason
    large = run(supervisor, "all_reduce", "mpi", size=1 << 50)
    assert "2 ranks need about " in large.reason
    assert " MiB of memory, " in large.reason


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_mpi_cannot_sum_it_can_move(supervisor, dtype):
    assert run(supervisor, "all_gather", "mpi", dtype=dtype).status == "ok"
    summed = run(supervisor, "all_reduce", "mpi", dtype=dtype)
    if summed.status != "ok":  # a matter of the library
        assert summed.reason == f"rank 0: this MPI has no {dtype} to sum (gloo and nccl sum {dtype} too)"


@pytest.mark.parametrize(
    ("name", "place"), [("reduce_scatter", "in"), ("all_gather", "in"), ("all_to_all", ""), ("gather", "in")]
)
def test_three_ranks_have_blocks_of_their_own(supervisor, name, place):
    outcome = run(supervisor, name, "mpi", ranks=3, place=place, dtype="fp64", size=1 << 16)
    assert outcome.status == "ok", outcome
    assert outcome.workload.message_bytes == 3 * 21840  # whole 16 bytes each
    assert len(outcome.measurement.series["late"].values) == 3


def test_the_rank_that_is_late_is_named_and_not_its_victims(supervisor):
    late = record(run(supervisor, "all_reduce", "mpi", ranks=3, fault="late", budget_s=0.3), 3)
    values = late.measurement.series["late"].values
    assert max(range(3), key=values.__getitem__) == 2
    assert values[2] >= LATE_S["mpi"] / 2
    (doubt,) = [w for w in warnings.doubts([late]) if w.name == "late rank"]
    assert doubt.detail.startswith("rank 2 on node-2 began ")


def test_ranks_of_another_world_are_refused():
    with pytest.raises(TypeError, match="the mpi backends need MPI ranks"):
        over_mpi.world_of(Context(world=Serial(), device="cpu", seed=1, scratch=None))


class Library:
    """An MPI library as far as its word on device buffers goes (planted: no such MPI is here)."""

    def __init__(self, **functions):
        self.__dict__ |= functions


def gpu_query(answer, failed=0):
    def query(kind, pointer):
        assert kind == 0
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = answer
        return failed

    return query


@pytest.mark.parametrize(
    ("library", "known"),
    [
        (Library(MPIX_Query_cuda_support=lambda: 1), True),
        (Library(MPIX_Query_cuda_support=lambda: 0), False),
        (Library(MPIX_GPU_query_support=gpu_query(1)), True),
        (Library(MPIX_GPU_query_support=gpu_query(0)), False),
        (Library(MPIX_GPU_query_support=gpu_query(1, failed=3)), False),
        (Library(), None),
    ],
)
def test_an_mpi_says_itself_whether_it_takes_device_buffers(library, known):
    assert over_mpi.device_aware(library) is known


def test_device_buffers_are_not_given_to_an_mpi_that_does_not_say_it_takes_them(monkeypatch):
    for library, words in ((Library(), "does not tell"), (Library(MPIX_Query_cuda_support=lambda: 0), "takes no device buffers")):
        monkeypatch.setattr(over_mpi, "_loaded_library", lambda library=library: library)
        with pytest.raises(Skip, match=words):
            over_mpi.require_device_buffers()
