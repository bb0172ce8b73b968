"""all_reduce, for real: two MPI ranks and two gloo ranks of this machine; faults are planted in the library's call."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from collectives.all_reduce import SIZES, all_reduce

RANKS = Path(__file__).with_name("all_reduce_ranks.py")
MPIEXEC = Path(sysconfig.get_path("scripts")) / "mpiexec"
ENV = os.environ | {"OMP_NUM_THREADS": "1", "MPI4PY_RC_THREAD_LEVEL": "funneled", "GLOO_SOCKET_IFNAME": "lo"}


def case(backend, dtype="fp32", size=8):
    return {"backend": backend, "dtype": dtype, "size": size}


def run_ranks(folder, backend, cases):
    """What came of every case (fault, parameters) on every rank: [rank][case]."""
    python, cases = [sys.executable], json.dumps(cases)
    if backend == "mpi":
        commands = [[str(MPIEXEC), "-n", "2", *python, "-m", "mpi4py", str(RANKS), str(folder), "mpi", cases]]
    else:
        commands = [[*python, str(RANKS), str(folder), f"torch:{rank}:2", cases] for rank in range(2)]
    started = [subprocess.Popen(c, env=ENV, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        for process in started:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


SOUND = {
    "mpi": [case("mpi"), case("mpi", size=1 << 16), case("mpi", "fp64", 1 << 20), case("mpi", "bf16"), case("mpi", size=6)],
    "gloo": [case("gloo"), case("gloo", size=1 << 20), case("gloo", "bf16", 1 << 16), case("gloo", "fp16", 1 << 12)],
}
FAULTS = {"flip": 4096, "nothing": 4096, "stale": 8, "missing": 8}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Outcomes by backend, then by fault, then by rank; one launch a backend, for starting ranks is what takes the time."""
    outcomes = {}
    for backend, sound in SOUND.items():
        faulty = [(fault, case(backend, size=size)) for fault, size in FAULTS.items()]
        ranks = run_ranks(tmp_path_factory.mktemp(backend), backend, [("none", c) for c in sound] + faulty)
        outcomes[backend] = {"none": [of_rank[: len(sound)] for of_rank in ranks]} | {
            fault: [of_rank[len(sound) + n] for of_rank in ranks] for n, fault in enumerate(FAULTS)
        }
    return outcomes


def test_mpi_sums_exactly_and_says_how(said):
    for of_rank in said["mpi"]["none"]:
        assert [o["status"] for o in of_rank] == ["ok", "ok", "ok", "skipped", "skipped"], of_rank
    small, _, large, no_bf16, odd = said["mpi"]["none"][0]
    assert small["iterations"] == 3  # out of place: any number of runs in a sample
    assert small["loop"]
    work = small["workload"]
    assert (work["message_bytes"], work["collective"], work["dtype"], work["bound"]) == (8, "all_reduce", "fp32", "latency")
    assert (large["workload"]["dtype"], large["workload"]["bound"]) == ("fp64", "network")
    assert "MPI" in small["settings"]["library"]
    assert small["settings"]["mpi_thread_level"] == "funneled"
    assert "MPI has no bf16" in no_bf16["reason"]
    assert "not a whole number of fp32 elements" in odd["reason"]


def test_gloo_sums_exactly_once_per_buffer(said):
    for of_rank in said["gloo"]["none"]:
        assert [o["status"] for o in of_rank] == ["ok"] * 4, of_rank
    for outcome in said["gloo"]["none"][0]:
        assert outcome["iterations"] == 1  # in place: the next run would sum sums
        assert outcome["loop"]
        assert outcome["settings"]["torch_distributed_backend"] == "gloo"
        assert outcome["settings"]["threads"] == 1


@pytest.mark.parametrize("backend", ["mpi", "gloo"])
@pytest.mark.parametrize(("fault", "element"), [("flip", 512), ("nothing", 0)])
def test_a_fault_on_one_rank_names_it(said, backend, fault, element):
    healthy, bad = said[backend][fault]
    assert healthy["status"] == "ok"
    assert bad["status"] == "wrong"
    assert f"element {element} of 1024 on rank 1: expected" in bad["reason"]
    assert ", got " in bad["reason"]


@pytest.mark.parametrize("backend", ["mpi", "gloo"])
@pytest.mark.parametrize("fault", ["stale", "missing"])
def test_a_stale_or_missing_sum_is_wrong_even_in_two_elements(said, backend, fault):
    assert [of_rank["status"] for of_rank in said[backend][fault]] == ["wrong", "wrong"]


def context(world):
    return Context(world=world, device="cpu", seed=1, scratch=Path())


def two_ranks_of_no_world():
    world = Serial()
    world.size = 2
    return world


def test_one_rank_has_nothing_to_measure():
    with pytest.raises(Skip, match="nobody to sum with"):
        all_reduce.function(context(Serial()), "mpi", "fp32", 8)


def test_ranks_of_another_world_are_refused():
    for backend in ("mpi", "gloo"):
        with pytest.raises(TypeError, match=f"all_reduce over {backend} needs"):
            all_reduce.function(context(two_ranks_of_no_world()), backend, "fp32", 8)


def test_a_message_larger_than_memory_is_skipped_in_words():
    with pytest.raises(Skip, match=r"2 ranks need about \d+ MiB of memory"):
        all_reduce.function(context(two_ranks_of_no_world()), "gloo", "fp32", 1 << 50)


def test_what_each_backend_needs():
    needs = {backend: all_reduce.needs_of(case(backend)) for backend in all_reduce.axes["backend"]}
    assert {b: (n.world, n.device, n.ranks) for b, n in needs.items()} == {
        "mpi": ("mpi", "cpu", 2),
        "gloo": ("torch", "cpu", 2),
        "nccl": ("torch", "cuda", 2),
    }
    assert all(size % 8 == 0 for size in SIZES)


def test_listing_imports_nothing_heavy():
    code = "import sys, collectives.all_reduce; print({'torch', 'numpy', 'mpi4py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=RANKS.parents[1], check=True)
    assert done.stdout.strip() == "set()"
