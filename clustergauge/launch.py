"""How workers are started: commands, environment and places for each kind of world.  Decides nothing else."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from clustergauge import placement
from clustergauge.code import ROOT
from clustergauge.errors import UsageError
from clustergauge.messages import StartPool
from clustergauge.model import Machine, Place, Planned


@dataclass(frozen=True)
class PoolKey:
    """Cases with the same key can share their workers."""

    world: str
    interpret: bool
    ranks: int
    device: str
    launch: int


def key_of(planned: Planned) -> PoolKey:
    """The pool a case runs in."""
    return PoolKey(planned.world, planned.interpret, planned.ranks, planned.device, planned.launch)


def places(key: PoolKey, machine: Machine) -> list[Place]:
    """Where each rank goes: beside its GPU, or an equal share of the cores; a lone CPU worker gets all cores."""
    if key.device.startswith("cuda"):
        of_gpus = placement.place(machine, len(machine.gpus), "cuda")
        if key.world != "serial":
            return of_gpus[: key.ranks]
        index = int(key.device.partition(":")[2])
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


def start_message(key: PoolKey, machine: Machine, scratch: Path, launcher: str, python_path: list[str]) -> StartPool:
    """The agent's order for this pool.  ``launcher``: command that starts MPI ranks, ``{ranks}`` replaced; empty for our own."""
    worker = [sys.executable, "-P", "-m", "clustergauge.worker"]
    where = places(key, machine)
    env = {
        "CLUSTERGAUGE_SCRATCH": str(scratch),
        "TMPDIR": str(scratch),  # launchers leave files behind when they are killed
        "CLUSTERGAUGE_CPUS": ";".join(p.cpus for p in where),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *python_path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts: cuda:3 is the GPU that the machine's description calls 3
        "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages for large CPU buffers; read when torch is imported
    }
    if key.interpret:
        env["TRITON_INTERPRET"] = "1"
    if key.ranks > 1:
        env["OMP_NUM_THREADS"] = str(max(1, machine.cpu.cores // key.ranks))
        env["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this node
    if key.world == "mpi":
        env["MPI4PY_RC_THREAD_LEVEL"] = "funneled"  # multiple costs an 8 B all-reduce more than 1 µs
        start = mpi_launcher(launcher, key.ranks)
        return StartPool([[*start, sys.executable, "-P", "-m", "mpi4py", "-m", "clustergauge.worker"]], env, [{}])
    return StartPool([worker] * key.ranks, env, [{"CLUSTERGAUGE_RANK": str(rank)} for rank in range(key.ranks)])


def mpi_launcher(launcher: str, ranks: int) -> list[str]:
    """The command that starts MPI ranks: the user's, or the one of the MPI installed beside this Python (by absolute path)."""
    if launcher:
        words = shlex.split(launcher)
        if any("{ranks}" in w for w in words):
            return [w.replace("{ranks}", str(ranks)) for w in words]
        return [*words, "-n", str(ranks)]
    own = Path(sysconfig.get_path("scripts")) / "mpiexec"
    if not own.exists():
        raise UsageError("no MPI launcher beside this Python: install the mpich package, or name one with --launcher 'mpiexec'")
    return [str(own), "-n", str(ranks)]
