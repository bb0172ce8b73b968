"""How workers are started: commands, environment and places, as orders to the agent; nothing is started here."""

from __future__ import annotations

import pytest

from clustergauge.errors import UsageError
from clustergauge.launch import Means, PoolKey, mpi_launcher, places, start_message, unlike
from clustergauge.messages import StartPool
from clustergauge.model import Machine
from clustergauge.spread import check_launcher
from tests import made, trees
from tests.command_line import called


def key(world: str = "serial", ranks: int = 1, device: str = "cpu:0") -> PoolKey:
    return PoolKey(world, False, ranks, device, 0)


def order(key: PoolKey, machine: Machine, root, launcher: str = "mpirun -n {ranks}") -> StartPool:
    return start_message(key, machine, root, Means(launcher), 3, root / "sys")


def test_the_number_of_threads_is_that_of_the_cores_of_a_rank(tmp_path):
    trees.processors(tmp_path, [[0, 4], [1, 5], [2, 6], [3, 7]])
    machine = made.machine(cores=8)
    assert order(key(), machine, tmp_path).env["OMP_NUM_THREADS"] == "4"  # hardware threads are no cores
    few = made.machine(cpu=made.Cpu(model="cpu", cores=2, threads=3, allowed="0,1,5"))
    assert order(key(), few, tmp_path).env["OMP_NUM_THREADS"] == "2"


def test_every_rank_gets_as_many_threads_as_the_one_with_the_fewest_cores(tmp_path):
    machine = made.machine(cores=8)
    threads = {n: order(key("torch", n), machine, tmp_path).env["OMP_NUM_THREADS"] for n in (1, 2, 3, 8, 20)}
    assert threads == {1: "8", 2: "4", 3: "2", 8: "1", 20: "1"}


def test_threads_are_not_inherited_by_any_world(tmp_path):
    for world in ("serial", "torch", "mpi"):
        drop = tuple(order(key(world), made.machine(), tmp_path).drop)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "CLUSTERGAUGE_RANK"):
            assert name.startswith(drop), (world, name)
        for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "OMPI_COMM_WORLD_RANK", "PATH", "CLUSTERGAUGE_SCRATCH"):
            assert not name.startswith(drop), (world, name)


def test_gpus_are_counted_as_the_machine_counts_them(tmp_path):
    assert order(key(device="cuda:1"), made.machine(gpus=2), tmp_path).env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_our_own_launcher_forks_on_this_node_and_the_users_is_left_alone(tmp_path):
    ours = order(key("mpi", 2), made.machine(), tmp_path, launcher="")
    assert (ours.env["HYDRA_LAUNCHER"], ours.env["HYDRA_RMK"]) == ("fork", "user")
    assert "HYDRA_" in ours.drop
    users = order(key("mpi", 2), made.machine(), tmp_path)
    assert not any(name.startswith("HYDRA_") for name in [*users.env, *users.drop])
    assert (ours.number, users.number) == (3, 3)


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("mpirun", ["mpirun", "-n", "4"]),
        ("mpirun --np={ranks} -x 'A B'", ["mpirun", "--np=4", "-x", "A B"]),
        ("srun -n {ranks} --mpi=pmi2", ["srun", "-n", "4", "--mpi=pmi2"]),
    ],
)
def test_the_users_launcher_is_taken_word_by_word(launcher, words):
    assert mpi_launcher(launcher, 4) == words


@pytest.mark.parametrize("launcher", ['mpirun "', "mpirun 'x", "mpirun \\", "  ", "''"])
def test_a_launcher_that_is_no_command_is_the_users_mistake(launcher):
    with pytest.raises(UsageError, match=r"--launcher .* is no command") as caught:
        mpi_launcher(launcher, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (key("torch", 3, "cuda:all"), "the case needs 3 GPUs, node-1 has 2 GPUs"),
        (key("mpi", 3, "cuda:all"), "the case needs 3 GPUs, node-1 has 2 GPUs"),
        (key("serial", 1, "cuda:2"), "the case is for cuda:2, node-1 has 2 GPUs"),
    ],
)
def test_ranks_beyond_the_gpus_are_refused_in_words(key, words):
    with pytest.raises(UsageError, match=words):
        places(key, made.machine(gpus=2))


def test_ranks_go_beside_the_gpus_they_use():
    machine = made.machine(gpus=2, cores=4)
    assert [p.device for p in places(key("torch", 2, "cuda:all"), machine)] == ["cuda:0", "cuda:1"]
    assert [(p.rank, p.device) for p in places(key("serial", 1, "cuda:1"), machine)] == [(0, "cuda:1")]


@pytest.mark.parametrize(
    ("launcher", "nodes", "words"),
    [
        ("/opt/nope/mpirun -n {ranks}", 0, "there is no program /opt/nope/mpirun here"),
        ("nope-mpirun", 0, "there is no program nope-mpirun here"),
        ("./mpirun -n {ranks}", 0, "give the whole path of ./mpirun"),
        ("/usr/bin/mpiexec -n {ranks}", 2, r"must say \{hosts\}"),
        ("mpirun '", 1, "is no command"),
    ],
)
def test_a_launcher_that_can_start_nothing_is_the_users_mistake(launcher, nodes, words):
    with pytest.raises(UsageError, match=words):
        check_launcher(launcher, nodes)


@pytest.mark.parametrize(("launcher", "nodes"), [("", 2), ("sh -c x", 0), ("/opt/there/mpirun --host {hosts}", 2), ("srun", 9)])
def test_a_launcher_that_may_do_is_not_refused(launcher, nodes):
    check_launcher(launcher, nodes)


@pytest.mark.parametrize("words", [["run", "--dry-run"], ["list"]])
def test_it_is_found_before_anything_is_planned(words):
    done = called(*words, "--launcher", "/opt/nope/mpirun")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no program /opt/nope/mpirun" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("launcher", "library", "words"),
    [
        ("mpiexec -n {ranks}", "", ["--launcher 'mpiexec -n {ranks}'", "export MPI4PY_LIBMPI="]),
        ("", "/o/libmpi.so", ["MPI4PY_LIBMPI=/o/libmpi.so", "with --launcher, or unset"]),
        ("mpiexec", "/o/libmpi.so", ["--launcher 'mpiexec'", "MPI4PY_LIBMPI=/o/libmpi.so", "of the same MPI"]),
    ],
)
def test_launcher_and_library_of_two_kinds_are_named_with_what_to_do(launcher, library, words):
    said = unlike(launcher, {"MPI4PY_LIBMPI": library} if library else {})
    assert all(word in said for word in words), said
    assert unlike("", {}) == ""
