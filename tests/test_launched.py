"""What launchers tell by the environment, as their manuals and their sources have it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from clustergauge.launched import Launched, given, launched_as


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({}, Launched()),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Launched(1, 2, "PMI_RANK")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "5", "MPI_LOCALNRANKS": "2"}, Launched(1, 2, "PMI_RANK", joins=True)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "4", "PMI_PORT": "h:5", "MPI_LOCALNRANKS": "2"},
            Launched(1, 4, "PMI_RANK", True, True),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "PMIX_RANK": "0"},
            Launched(0, 4, "OMPI_COMM_WORLD_RANK", joins=True, apart=True),
        ),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, Launched(3, 8, "SLURM_PROCID")),
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "PMIX_RANK": "3"},
            Launched(3, 8, "SLURM_PROCID", joins=True, apart=True),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Launched()),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launched(1, 2, "LOCAL_RANK")),
        ({"PMI_RANK": "", "PMI_SIZE": "two"}, Launched()),
    ],
)
def test_what_a_launcher_tells(told, known):
    assert launched_as(told) == known


def test_what_is_one_process_own_is_told_from_what_somebody_chose():
    own = {
        *("PMI_RANK", "PMI_FD", "PMI_SIZE", "HYDI_CONTROL_FD", "MPI_LOCALRANKID", "PMIX_NAMESPACE", "PMIX_RANK"),
        *("OMPI_COMM_WORLD_RANK", "OMPI_UNIVERSE_SIZE", "OMPI_MCA_ess_base_vpid", "OMPI_MCA_orte_hnp_uri", "SLURM_PROCID"),
    }
    chosen = {
        *("PATH", "MPI4PY_LIBMPI", "PMIX_MCA_gds", "OMPI_MCA_btl", "OMPI_MCA_mpi_yield_when_idle", "OMPI_ALLOW_RUN_AS_ROOT"),
        *("SLURM_JOB_ID", "MPICH_ASYNC_PROGRESS", "HYDRA_LAUNCHER", "OMP_NUM_THREADS"),
    }
    assert set(given(dict.fromkeys(own | chosen, "1"))) == own


def under_mpiexec(ranks, *words):
    root = Path(__file__).parents[1]
    command = [str(Path(sysconfig.get_path("scripts")) / "mpiexec"), "-n", str(ranks), sys.executable, str(root / "run_suite.py")]
    return subprocess.run([*command, *words], cwd=root, capture_output=True, text=True, timeout=110)


def test_a_suite_that_is_started_several_times_at_once_measures_nothing_and_says_so_once(tmp_path):
    done = under_mpiexec(2, "run", "-k", "latency/*", "-o", str(tmp_path))
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("run_suite.py")] == [
        "run_suite.py: started 2 times at once (PMI_RANK), each of which would measure beside the others: start it once, by "
        "itself; it starts ranks of its own (--ranks 2), by another launcher with --launcher 'mpiexec -n {ranks}'"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_suite_that_is_started_once_by_a_launcher_goes_on():
    done = under_mpiexec(1, "run", "-k", "latency/*", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "latency" in done.stdout
