"""A pool over several nodes: which rank goes where, and the orders to the agents that start them.  Decides nothing else.

Ranks are dealt in blocks: node i gets ranks i·k to i·k + k − 1.  Without MPI every agent starts its own; with MPI one command,
started by the first node's agent, starts all of them, and each finds the agent of its node by the node's name.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from clustergauge import hosts
from clustergauge.conversation import Site
from clustergauge.errors import UsageError
from clustergauge.launch import Install, Means, PoolKey, mpi_launcher, passed_on, places, start_message
from clustergauge.messages import StartPool
from clustergauge.model import Place
from clustergauge.remote import is_srun, remote_words

REACH = "reach"
"""Name of the program in the first node's scratch folder by which MPICH's launcher reaches other nodes."""
RELAY = "relay"
"""Name of the one that stands before it where nodes reach each other by IPv6 alone (`relay`)."""
_OWN = ("CLUSTERGAUGE_SCRATCH", "CLUSTERGAUGE_CPUS", "TMPDIR", "GLOO_SOCKET_IFNAME")
"""Variables that differ from node to node."""
_OF_THE_STEP = tuple(
    f"SLURM_{name}"
    for name in (
        *(
            "STEP",
            "PROCID",
            "LOCALID",
            "NODEID",
            "GTIDS",
            "NTASKS",
            "NPROCS",
            "NNODES",
            "TASKS_PER_NODE",
            "CPU_BIND",
            "DISTRIBUTION",
        ),
        *("MPI_TYPE", "LAUNCH_NODE", "SRUN_COMM", "KILL_BAD_EXIT", "WAIT", "OVERLAP", "UMASK", "TASK_PID"),
    )
)
"""What srun told the agent's own step, and would take for options of the next (srun(1), input and output variables)."""


def each(key: PoolKey, sites: Sequence[Site]) -> PoolKey:
    """The part of one node.  Raises `UsageError` where the ranks are not a multiple of the nodes."""
    if key.ranks % len(sites):
        raise UsageError(f"{key.ranks} ranks cannot be dealt equally to {len(sites)} nodes")
    return replace(key, ranks=key.ranks // len(sites))


def seats(key: PoolKey, sites: Sequence[Site]) -> list[Place]:
    """Where each rank goes.  Raises as `launch.places` does."""
    part = each(key, sites)
    dealt = [place for site in sites for place in places(part, site.machine)]
    return [msgspec.structs.replace(place, rank=rank) for rank, place in enumerate(dealt)]


def orders(key: PoolKey, sites: Sequence[Site], means: Means, number: int) -> list[StartPool]:
    """The order for each node's agent.  Raises `UsageError` for a launcher that does not fit."""
    part = each(key, sites)
    alone = replace(means, launcher="mpiexec")  # what starts ranks over nodes is said below
    made = [start_message(part, site.machine, site.scratch, alone, number) for site in sites]
    if key.world == "mpi":
        return _mpi(key, part, sites, made, means)
    return [
        msgspec.structs.replace(
            order,
            rank_env=[{"CLUSTERGAUGE_RANK": str(index * part.ranks + rank)} for rank in range(part.ranks)],
            env={name: value for name, value in order.env.items() if name not in ("CLUSTERGAUGE_CPUS", "GLOO_SOCKET_IFNAME")}
            | interfaces(site),
        )
        for index, (site, order) in enumerate(zip(sites, made, strict=True))
    ]


def interfaces(site: Site) -> dict[str, str]:
    """By which interface gloo and NCCL's sockets are to go: the user's choice, or the one that leads to the supervisor."""
    if not site.interface:
        return {}
    return {name: os.environ.get(name, site.interface) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


def _mpi(key: PoolKey, part: PoolKey, sites: Sequence[Site], made: list[StartPool], means: Means) -> list[StartPool]:
    """One command for all.  Whatever it makes of its environment, the words behind ``env`` reach every rank."""
    launcher, install = means.launcher, means.install
    mark = f"CLUSTERGAUGE_JOB={means.token}-{made[0].number}"
    common = {name: value for name, value in made[0].env.items() if name not in _OWN and str(sites[0].scratch) not in value}
    common |= {"CLUSTERGAUGE_RUN": means.token, "CLUSTERGAUGE_POOL": str(made[0].number)}
    common |= {name: value for name, value in passed_on(os.environ).items() if name != "PATH"}
    words = ["env", *(f"{name}={value}" for name, value in common.items()), mark]
    worker = [install.python, "-P", "-m", "mpi4py", "-m", "clustergauge.worker"]
    start = over_nodes(launcher, key.ranks, part.ranks, sites, install)
    files = {} if launcher else {REACH: reach(means.remote, [site.name for site in sites])}
    if files and _by_ipv6(sites):
        files[RELAY] = _RELAY.format(
            root=shlex.quote(str(install.root)), python=shlex.quote(install.python), reach=sites[0].scratch / REACH
        )
    drop = [*made[0].drop, "CLUSTERGAUGE_SCRATCH", "CLUSTERGAUGE_HOST", "TMPDIR", "PMI_", "PMIX_", *_OF_THE_STEP]
    env: dict[str, str] = {}
    if not launcher:
        drop.append("HYDRA_")
        env = {"HYDRA_RMK": "user"}
    first = StartPool([[*start, *words, *worker]], env, [{}], drop, made[0].number, mark, files)
    rest = StartPool([], {}, [], [], made[0].number, mark)
    return [first, *[rest] * (len(sites) - 1)]


def check_launcher(launcher: str, nodes: int) -> None:
    """Raises `UsageError` for a user's launcher that can start nothing: on so many nodes, or (0) on this machine."""
    if not launcher:
        return
    program = mpi_launcher(launcher, 1)[0]
    if "/" in program and not program.startswith("/"):
        raise UsageError(
            f"--launcher {launcher!r}: give the whole path of {program}, for ranks are started in a folder of their own"
        )
    if nodes > 1:
        _need_hosts(launcher)
    if not nodes and shutil.which(program) is None:  # other nodes have programs of their own
        raise UsageError(f"--launcher {launcher!r}: there is no program {program} here; give the path of an mpiexec or srun")


def _need_hosts(launcher: str) -> None:
    if not is_srun(launcher) and "{hosts}" not in launcher:
        raise UsageError(f"--launcher {launcher!r} must say {{hosts}} (a,b) where it is told its nodes")


def over_nodes(launcher: str, ranks: int, per_node: int, sites: Sequence[Site], install: Install) -> list[str]:
    """The command that starts MPI ranks over nodes: the user's, or that of the MPI which came along, over the remote command.

    In the user's ``{ranks}``, ``{hosts}`` (``a,b``), ``{nodes}`` and ``{per_node}`` are replaced.  Plain ``srun`` gets what it
    needs.
    """
    names = ",".join(site.name.rpartition("@")[2] for site in sites)
    if not launcher:
        own = install.python.rpartition("/")[0] + "/mpiexec"
        called = ",".join(_alias(site.name, number) for number, site in enumerate(sites))
        local, program = (["-localhost", "127.0.0.1"], RELAY) if _by_ipv6(sites) else ([], REACH)
        reached = ["-launcher", "ssh", "-launcher-exec", str(sites[0].scratch / program)]
        return [own, *local, *reached, "-hosts", called, "-ppn", str(per_node), "-n", str(ranks)]
    if is_srun(launcher):
        if "{ranks}" not in launcher and not {"-n", "--ntasks"} & {word.partition("=")[0] for word in shlex.split(launcher)}:
            nodes = f"--nodes={len(sites)} --nodelist={hosts.compress(site.name for site in sites)}"
            launcher += f" {nodes} --ntasks={{ranks}} --ntasks-per-node={{per_node}} --overlap --kill-on-bad-exit=1"
    elif len(sites) > 1:
        _need_hosts(launcher)
    values = {"{hosts}": names, "{nodes}": str(len(sites)), "{per_node}": str(per_node)}
    for name, value in values.items():
        launcher = launcher.replace(name, value)
    return mpi_launcher(launcher, ranks)


def _by_ipv6(sites: Sequence[Site]) -> bool:
    return any(":" in site.address for site in sites)


def _alias(name: str, number: int) -> str:
    """What MPICH's launcher calls a node, whose lists have other uses for colons: for an IPv6 address a number of IPv4 that no
    machine can have (RFC 1112), so that nobody is asked for it."""
    return f"240.0.{number >> 8}.{number & 255}" if ":" in name else name


def reach(remote: str, names: Sequence[str] = ()) -> str:
    """A program that MPICH's launcher calls as it would call ssh (options, host, words): it goes the way that agents went.

    ``names``: of the nodes, in the launcher's order.
    """
    aliases = "".join(
        f'[ "$host" != {alias} ] || host={shlex.quote(name)}\n'
        for number, name in enumerate(names)
        if (alias := _alias(name, number)) != name
    )
    if is_srun(remote):
        template = f'{remote} --overlap --mpi=none --nodes=1 --ntasks=1 --nodelist="$host" sh -c "$*"'
        return _REACH.format(aliases=aliases, command=template)
    mark, told = "\0host\0", "\0command\0"
    words = remote_words(remote, mark, told)
    line = " ".join(shlex.quote(word) for word in words)
    for placeholder, variable in ((mark, '"$host"'), (told, '"$*"')):
        line = (
            line.replace(placeholder, f"'{variable}'")
            if f"'{placeholder}'" not in line
            else line.replace(f"'{placeholder}'", variable)
        )
    return _REACH.format(aliases=aliases, command=line)


_REACH = """#!/bin/sh
while case "$1" in -*) true ;; *) false ;; esac; do shift; done
host=$1
shift
{aliases}exec {command}
"""
_RELAY = """#!/bin/sh
exec env PYTHONPATH={root} {python} -P -m clustergauge.relay near {reach} "$@"
"""
