"""How workers are started: commands, environment and places for each kind of world.  Decides nothing else."""

from __future__ import annotations

import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clustergauge import hosts, placement
from clustergauge.code import ROOT, python_path as path_of
from clustergauge.errors import UsageError
from clustergauge.launched import LIKE_CHOICES
from clustergauge.messages import StartPool
from clustergauge.model import Machine, Place, Planned

_SYS = Path("/sys")

THREADS: tuple[str, ...] = (
    "OMP_",
    "GOMP_",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "KMP_HW_SUBSET",
    "KMP_LIBRARY",
    "KMP_PLACE_THREADS",
    "MKL_NUM_THREADS",
    "MKL_DOMAIN_NUM_THREADS",
    "MKL_DYNAMIC",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "CLUSTERGAUGE_RANK",
)
"""Beginnings of variables that workers don't inherit: how many threads there are and where is ours to say, and recorded."""

NCCL_SUBSYSTEMS = "INIT,ENV,NET"
"""What NCCL notes when it starts and connects; not ``TUNING``, which notes every call, while it is timed."""
CHOICES = (
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_SHM_DISABLE",
    "NCCL_NVLS_ENABLE",
    "NCCL_MNNVL_ENABLE",
    "NCCL_DEBUG_SUBSYS",
)
"""Variables that only choose among NCCL's paths, and what it notes."""


STEERING: tuple[str, ...] = (
    *("NCCL_", "TORCH_NCCL_", "RCCL_", "UCX_", "FI_", "GLOO_", "MPI4PY_"),
    *("MPICH_", "MPIR_CVAR_", "OMPI_MCA_", "OPAL_", "PMIX_MCA_", "PRTE_MCA_", "I_MPI_"),
)
"""Beginnings of variables that steer transports: recorded with every case of several ranks, and passed on to other nodes."""


def steering(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that steer transports."""
    return {k: v for k, v in sorted(environment.items()) if k.startswith(STEERING) and not k.startswith(LIKE_CHOICES)}


def told(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of them that somebody chose: not where NCCL and torch write for us, which is another place in every run.

    What is no UTF-8 in them is told with the character that stands for it.
    """
    chosen = {name: value for name, value in steering(environment).items() if name not in _recorders(Path())}
    return {_readable(name): _readable(value) for name, value in chosen.items()}


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What agents on other nodes are to have of the supervisor's environment: where libraries are, and what steers transports.

    Raises `UsageError` for what cannot be told them as it is: JSON has no bytes that are no UTF-8.
    """
    passed = {k: environment[k] for k in ("PATH", "LD_LIBRARY_PATH") if k in environment} | steering(environment)
    for name, value in passed.items():
        if (_readable(name), _readable(value)) != (name, value):
            raise UsageError(
                f"the environment variable {_readable(name)} is not UTF-8 ({_readable(value)[:60]!r}) and cannot be passed on to "
                "other nodes: set it otherwise, or unset it"
            )
    return passed


def _readable(text: str) -> str:
    return os.fsencode(text).decode(errors="replace")


@dataclass(frozen=True)
class Install:
    """Where the checkout and its Python are on the nodes."""

    root: Path = ROOT
    python: str = sys.executable

    @classmethod
    def at(cls, root: str) -> Install:
        """The checkout at another path than here; a Python inside it goes along."""
        if not root:
            return cls()
        own = Path(sys.executable)
        moved = Path(root) / own.relative_to(ROOT) if own.is_relative_to(ROOT) else own
        return cls(Path(root), str(moved))


@dataclass(frozen=True)
class Means:
    """How workers are started, whatever the pool.

    ``launcher``: command that starts MPI ranks, ``{ranks}`` replaced; empty for our own.  ``python_path``: where workers look for
    modules last.  ``install``: the checkout, as it is where they start.  ``remote``: the command by which nodes are reached,
    ``token``: of the run; empty where this machine is the only one.
    """

    launcher: str = ""
    python_path: tuple[str, ...] = ()
    install: Install = field(default_factory=Install)
    remote: str = ""
    token: str = ""


@dataclass(frozen=True)
class PoolKey:
    """Cases with the same key can share their workers."""

    world: str
    interpret: bool
    ranks: int
    device: str
    launch: int
    env: tuple[tuple[str, str], ...] = ()


def key_of(planned: Planned) -> PoolKey:
    """The pool a case runs in."""
    env = tuple(sorted(planned.env.items()))
    return PoolKey(planned.world, planned.interpret, planned.ranks, planned.device, planned.launch, env)


def places(key: PoolKey, machine: Machine) -> list[Place]:
    """Where each rank goes: beside its GPU, or an equal share of the cores; a lone CPU worker gets all cores.

    Raises `UsageError` where the machine has fewer GPUs.
    """
    if key.device.startswith("cuda"):
        index = int(key.device.partition(":")[2]) if key.world == "serial" else key.ranks - 1
        if index >= len(machine.gpus):
            wanted = f"the case is for {key.device}" if key.world == "serial" else f"the case needs {key.ranks} GPUs"
            raise UsageError(f"{wanted}, {machine.host} has {len(machine.gpus)} GPUs: choose --ranks and --device to fit")
        of_gpus = placement.place(machine, len(machine.gpus), "cuda")
        if key.world != "serial":
            return of_gpus[: key.ranks]
        return [
            Place(
                rank=0,
                host=machine.host,
                device=key.device,
                pci=of_gpus[index].pci,
                cpus=of_gpus[index].cpus,
                nic=of_gpus[index].nic,
            )
        ]
    if key.ranks == 1:
        return [Place(rank=0, host=machine.host, cpus=machine.cpu.allowed)]
    return placement.place(machine, key.ranks, "cpu")


def start_message(
    key: PoolKey,
    machine: Machine,
    scratch: Path,
    means: Means,
    number: int = 0,
    sys_root: Path = _SYS,
) -> StartPool:
    """The agent's order for this pool, the run's ``number``-th.

    ``sys_root``: where the kernel tells which processors share a core.  Raises `UsageError` for a launcher that is none, and as
    `places` does.
    """
    install = means.install
    worker = [install.python, "-P", "-m", "clustergauge.worker"]
    where = places(key, machine)
    env = {
        "CLUSTERGAUGE_SCRATCH": str(scratch),
        "TMPDIR": str(scratch),  # launchers leave files behind when they are killed
        "CLUSTERGAUGE_CPUS": ";".join(p.cpus for p in where),
        "PYTHONPATH": path_of(install.root),
        "CLUSTERGAUGE_PATH": os.pathsep.join(means.python_path),  # goes last: nothing there may stand in for a library
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts: cuda:3 is the GPU that the machine's description calls 3
        "OMP_NUM_THREADS": str(max(1, min(_cores(p, machine, sys_root) for p in where))),
        "TRITON_DEFAULT_FP_FUSION": "1",  # the default of most versions, and what the code gate compiles with
        "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages for large CPU buffers; read when torch is imported
    }
    if key.interpret:
        env["TRITON_INTERPRET"] = "1"
    if key.device.startswith("cuda") and key.world != "serial":
        env |= _recorders(scratch)
    env |= dict(key.env)
    if key.ranks > 1:
        env["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this node
    if key.world == "mpi":
        env["MPI4PY_RC_THREAD_LEVEL"] = "funneled"  # multiple costs an 8 B all-reduce more than 1 µs
        drop = list(THREADS)
        start = mpi_launcher(means.launcher, key.ranks)
        if not means.launcher:  # all are on this node: inside an allocation Hydra would start them with srun, and wait for ever
            drop.append("HYDRA_")
            env |= {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"}
        command = [*start, install.python, "-P", "-m", "mpi4py", "-m", "clustergauge.worker"]
        return StartPool([command], env, [{}], drop, number)
    ranks = [{"CLUSTERGAUGE_RANK": str(rank)} for rank in range(key.ranks)]
    return StartPool([worker] * key.ranks, env, ranks, list(THREADS), number)


def is_choice(name: str, value: str) -> bool:
    """Whether a variable only chooses among NCCL's paths and notes: what a run folder may ask for, wherever it comes from."""
    return name in CHOICES and re.fullmatch(r"[A-Za-z0-9,]{1,40}", value) is not None


def _recorders(scratch: Path) -> dict[str, str]:
    """What makes torch and NCCL write down what they do, into the scratch folder: for records, and for when they hang.

    The user's own choice comes first.  The pipe is how torch's monitor is told to dump its flight recorder.
    """
    wanted = {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{scratch}/trace-rank-",
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": f"{scratch}/trace-pipe-",
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": NCCL_SUBSYSTEMS,
        "NCCL_DEBUG_FILE": f"{scratch}/nccl-debug.%h.%p",  # a file of its own: what is printed is for people
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _cores(place: Place, machine: Machine, sys_root: Path) -> int:
    """Physical cores of a place; of another machine, whose topology cannot be read here, by its own count."""
    cpus = placement.parse_cpus(place.cpus)
    if sys_root == _SYS and machine.host != hosts.own():
        return max(1, len(cpus) * machine.cpu.cores // max(1, machine.cpu.threads))
    return len(placement.cores(cpus, sys_root))


def mpi_launcher(launcher: str, ranks: int) -> list[str]:
    """The command that starts MPI ranks: the user's, or the one of the MPI installed beside this Python (by absolute path)."""
    if launcher:
        try:
            words = shlex.split(launcher)
        except ValueError as error:
            raise UsageError(f"--launcher {launcher!r} is no command ({error}): close its quotes") from None
        if not words or not words[0]:
            raise UsageError(f"--launcher {launcher!r} is no command: write for example 'mpiexec -n {{ranks}}'")
        if any("{ranks}" in w for w in words):
            return [w.replace("{ranks}", str(ranks)) for w in words]
        return [*words, "-n", str(ranks)]
    own = Path(sysconfig.get_path("scripts")) / "mpiexec"
    if not own.exists():
        raise UsageError("no MPI launcher beside this Python: install the mpich package, or name one with --launcher 'mpiexec'")
    return [str(own), "-n", str(ranks)]


def unlike(launcher: str, environment: Mapping[str, str]) -> str:
    """Why a world of MPI may not have been made where the user chose launcher or library, in words; empty where neither."""
    library = environment.get("MPI4PY_LIBMPI", "")
    if not launcher and not library:
        return ""
    said = "no MPI world could be made: launcher and MPI library must be of one kind, and are "
    said += f"--launcher {launcher!r} and " if launcher else "the MPICH that comes along and "
    said += f"MPI4PY_LIBMPI={library}" if library else "the library of the MPICH that comes along (MPI4PY_LIBMPI is not set)"
    if not library:
        return f"{said}: export MPI4PY_LIBMPI=/PATH/OF/THAT/MPI/lib/libmpi.so, or leave out --launcher"
    if not launcher:
        return f"{said}: name its mpiexec with --launcher, or unset MPI4PY_LIBMPI"
    return f"{said}: name both of the same MPI, or neither"
