"""Several ranks on one node and the launchers that start them, all real: the rank, or the launcher, at fault is named."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import msgspec
import pytest

from clustergauge import launch
from clustergauge.launch import Means
from clustergauge.supervise import UNKNOWN, Patience, Supervisor
from tests import misbehaved
from tests.faults import misbehaving
from tests.misbehaved import all_gone, plan, run


@pytest.fixture(scope="module")
def supervisor():
    with misbehaved.supervised() as owner:
        yield owner


OPEN_MPI = next((path for path in ("/usr/bin/mpiexec.openmpi", "/usr/bin/orterun") if Path(path).exists()), "")


MANY = [
    ("raise", "prepare", "rank 1: RuntimeError: planned failure"),
    ("raise", "run", "rank 1: RuntimeError: planned failure"),
    ("wrong", "check", "rank 1: element 3: expected 1, got 2"),
    ("wrong", "run", "rank 1: element 3: expected 1, got 2"),
    ("skip", "run", "rank 1: planned skip"),
    ("kill", "run", "rank 1 on {host}"),
    ("exit0", "run", "rank 1 on {host}"),
    ("stop", "run", "rank 1 on {host} is stopped"),
    ("hang", "check", "rank 1 on {host} in phase 'check'"),
]
"""In one world each, one world after the other: a pool serves until a fault takes it."""


@pytest.mark.parametrize(
    ("world", "how", "phase", "words"),
    sorted([("mpi" if n % 2 else "torch", *fault) for n, fault in enumerate(MANY[:-1])], key=lambda row: row[0] == "mpi")
    + [pytest.param("torch", *MANY[-1], marks=pytest.mark.slow)]  # to see that one hangs takes longest
    + [pytest.param("torch" if n % 2 else "mpi", *fault, marks=pytest.mark.slow) for n, fault in enumerate(MANY)],
)
def test_the_rank_at_fault_is_named_among_several(supervisor, world, how, phase, words):
    result = run(supervisor, how, world, phase)
    assert result.outcome.status == {"wrong": "wrong", "skip": "skipped"}.get(how, "error")
    assert words.format(host=supervisor.machine.host) in result.outcome.reason
    if how != "hang":  # there all that did not end are named
        assert "rank 0 on" not in result.outcome.reason
    if how in ("kill", "exit0", "stop", "hang"):
        assert all_gone(supervisor)
    assert run(supervisor, "well", world).outcome.status == "ok"


@pytest.mark.parametrize("world", ["mpi", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_stopped_rank_that_takes_no_messages_does_not_stop_its_agent(supervisor, world):
    result = run(supervisor, "deaf", world, timeout_s=20)
    assert f"rank 1 on {supervisor.machine.host}" in result.outcome.reason
    assert result.facts != UNKNOWN
    assert all_gone(supervisor)
    assert run(supervisor, "well").outcome.status == "ok"


def test_a_rank_that_was_killed_under_mpi_is_told_from_its_victims(supervisor):
    reason = run(supervisor, "kill", "mpi", "run").outcome.reason
    assert "rank 1" in reason
    assert "in phase 'measure'" in reason
    assert "rank 0" not in reason


def test_a_launcher_that_starts_singletons_is_named(supervisor):
    """Wrong launcher for the MPI library: N jobs of one rank each, which would measure nothing and say nothing."""
    single = Supervisor(Means(f"{Path(__file__).parent}/faults/singletons.sh {{ranks}}"), patience=Patience(start_s=20))
    try:
        result = run(single, "well", "mpi")
        assert result.outcome.status == "error"
        assert "sees a world of 1, not 2" in result.outcome.reason
        run(single, "well", "mpi")
    finally:
        single.close()
    assert [note for note in single.notes if "must be of one kind" in note and "MPI4PY_LIBMPI is not set" in note] == single.notes
    assert len(single.notes) == 1, "said once"


@pytest.mark.skipif(not OPEN_MPI, reason="no Open MPI is installed")
def test_a_launcher_of_another_mpi_than_the_library_is_named_and_what_to_do():
    foreign = Supervisor(Means(f"{OPEN_MPI} --allow-run-as-root --oversubscribe -n {{ranks}}"), patience=Patience(start_s=30))
    try:
        assert run(foreign, "well", "mpi").outcome.status == "error"
        assert run(foreign, "well", "mpi").outcome.status == "error"
    finally:
        foreign.close()
    (note,) = foreign.notes
    assert "export MPI4PY_LIBMPI=" in note
    assert OPEN_MPI in note


def test_a_worker_that_never_connects_is_named():
    lonely = Supervisor(Means("sh -c 'sleep 60' {ranks}"), patience=Patience(start_s=2))
    try:
        result = run(lonely, "well", "mpi")
        assert result.outcome.status == "error"
        assert "never connected within 2 s" in result.outcome.reason
        assert run(lonely, "well").outcome.status == "ok"
    finally:
        lonely.close()


def test_a_launcher_that_does_not_exist_is_named():
    lonely = Supervisor(Means("no-such-launcher"), patience=Patience(start_s=5))
    try:
        assert "cannot start no-such-launcher" in run(lonely, "well", "mpi").outcome.reason
    finally:
        lonely.close()


@pytest.mark.parametrize(
    ("launcher", "words"),
    [("mpiexec '", '--launcher "mpiexec \'" is no command (No closing quotation)'), (" ", "--launcher ' ' is no command")],
)
def test_a_launcher_that_is_no_command_costs_its_cases_only(supervisor, launcher, words):
    supervisor.means, before = Means(launcher), supervisor.means
    try:
        result = run(supervisor, "well", "mpi")
        assert result.outcome.status == "error"
        assert words in result.outcome.reason
        supervisor._failed_starts.clear()
        assert run(supervisor, "well").outcome.status == "ok"
    finally:
        supervisor.means = before


def test_a_missing_launcher_and_missing_gpus_cost_their_cases_only(supervisor, monkeypatch):
    gpus = msgspec.structs.replace(plan("well", "torch"), device="cuda:all", ranks=4)
    assert "the case needs 4 GPUs" in supervisor.run(gpus, 1, 1 << 20).outcome.reason
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda _: "/no/such/folder")
    reason = run(supervisor, "well", "mpi").outcome.reason
    assert "no MPI launcher beside this Python" in reason
    supervisor._failed_starts.clear()


def test_inside_an_allocation_ranks_are_started_all_the_same(monkeypatch, tmp_path):
    """Hydra that sees Slurm starts its proxies with srun."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nsleep 60\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_JOBID": "7",
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "0",
        "HYDRA_LAUNCHER": "slurm",
    }.items():
        monkeypatch.setenv(name, value)
    owner = Supervisor(patience=Patience(start_s=20))
    try:
        assert run(owner, "well", "mpi").outcome.status == "ok"
    finally:
        owner.close()


def test_ranks_keep_to_their_processors_whatever_the_environment_calls_them(monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor is no choice")
    monkeypatch.setenv("MPIEXEC", str(Path(sysconfig.get_path("scripts")) / "mpiexec"))
    twisted = Supervisor(Means(f"{Path(__file__).parent}/faults/twisted.sh {{ranks}}"), patience=Patience(start_s=30))
    try:
        result = run(twisted, "where", "mpi")
        assert result.outcome.status == "ok", result
        first, second = (place.cpus for place in result.where)
        assert first != second
        assert (
            result.outcome.settings["cpus"]
            == first
            == launch.places(launch.key_of(plan("where", "mpi")), twisted.machine)[0].cpus
        )
    finally:
        twisted.close()


def test_ranks_that_a_launcher_started_elsewhere_are_recorded_there():
    mpiexec = Path(sysconfig.get_path("scripts")) / "mpiexec"
    means = Means(f"{mpiexec} -n {{ranks}} {Path(__file__).parent}/faults/elsewhere.sh")
    spread_out = Supervisor(means, Patience(start_s=30))
    try:
        result = run(spread_out, "well", "mpi")
        assert result.outcome.status == "ok", result
        assert [(place.rank, place.host) for place in result.where] == [(0, "far0"), (1, "far1")]
        died = run(spread_out, "kill", "mpi", "run")
        assert "rank 1 on far1" in died.outcome.reason
    finally:
        spread_out.close()


def test_a_worker_obeys_no_inherited_number_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    for name in misbehaving.PLANTED:
        monkeypatch.setenv(name, "3")
    owner = Supervisor(patience=Patience(start_s=30))
    try:
        alone = run(owner, "where").outcome.settings
        pair = run(owner, "where", "torch").outcome.settings
    finally:
        owner.close()
    cores = owner.machine.cpu.cores
    assert alone["threads"] == str(cores)
    assert int(pair["threads"]) == max(1, cores // 2)
    assert alone["inherited"] == pair["inherited"] == "CUDA_DEVICE_ORDER"
