"""What a launcher (mpiexec, srun, torchrun) tells each of the processes that it starts together, by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NUMBERS = (
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, MVAPICH
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # of srun alone: a batch script has SLURM_NTASKS too, and is one process
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun
)
"""Which of them a process is, and how many there are."""
_ON_THIS_HOST = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_WAYS = ("PMI_FD", "PMI_PORT", "PMIX_RANK")
"""One of these has who can join an MPI world: srun's tasks and torchrun's processes need not be able to."""
LIKE_CHOICES = tuple(
    f"OMPI_MCA_{name}"
    for name in (
        *("PREFIXES", "cpu_type", "ess", "initial_wdir", "mpi_oversubscribe", "num_procs", "pmix", "shmem_RUNTIME_QUERY_hint"),
        *("orte_app_num", "orte_bound_at_launch", "orte_ess", "orte_hnp_uri", "orte_jobfam_session_dir", "orte_launch"),
        *("orte_local_daemon_uri", "orte_num_nodes", "orte_precondition_transports", "orte_top_session_dir"),
    )
)
"""Beginnings of variables by which Open MPI tells its ranks something, though they look like somebody's choices."""
_TOLD = (
    *("PMI_", "PMI2_", "MPI_LOCAL", "HYDI_"),  # MPICH's Hydra
    *("OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE", "OMPI_APP_CTX", "OMPI_NUM_APP_CTX", "OMPI_FIRST_RANKS"),
    *("OMPI_ARGV", "OMPI_COMMAND", "OMPI_FILE_LOCATION", *LIKE_CHOICES),
    *(f"SLURM_{name}" for name in ("PROCID", "LOCALID", "NODEID", "GTIDS", "TASK_PID", "STEP_")),
)
_CHOSEN = ("PMIX_MCA_",)


@dataclass(frozen=True)
class Launched:
    """``rank`` of ``size`` processes.  ``by``: the variable that says so, empty without a launcher.

    ``joins``: the launcher also says how to join an MPI world.  ``apart``: not all of the processes are on this host.
    """

    rank: int = 0
    size: int = 1
    by: str = ""
    joins: bool = False
    apart: bool = False


def launched_as(environment: Mapping[str, str]) -> Launched:
    """What the launcher of a process with this environment told it; one process without a launcher."""
    for rank, size in _NUMBERS:
        told = (environment.get(rank, ""), environment.get(size, ""))
        if all(text.isdecimal() for text in told):
            count = int(told[1])
            return Launched(int(told[0]), count, rank, any(name in environment for name in _WAYS), _apart(environment, count))
    return Launched()


def _apart(environment: Mapping[str, str], size: int) -> bool:
    for name in _ON_THIS_HOST:
        if (here := environment.get(name, "")).isdecimal():
            return int(here) < size
    return environment.get("SLURM_STEP_NUM_NODES", "1") != "1"


def given(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an environment what a launcher told this one process, and nobody else is to have: which rank it is, whom to ask."""
    return {name: value for name, value in environment.items() if _is_told(name)}


def _is_told(name: str) -> bool:
    return name.startswith(_TOLD) or (name.startswith("PMIX_") and not name.startswith(_CHOSEN))
