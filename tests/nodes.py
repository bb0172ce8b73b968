"""What tests over several nodes share: agents reached by a command that stands in for ssh, a team of them, and planned cases."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from clustergauge import processes
from clustergauge.fleet import Fleet
from clustergauge.launch import Install
from clustergauge.model import Planned
from clustergauge.plan import load_probes
from clustergauge.remote import Desk, RemoteNode
from clustergauge.supervise import CaseResult, Patience, Supervisor
from clustergauge.team import Team

FAULTS = Path(__file__).parent / "faults"
REMOTE = f"{FAULTS}/remote.sh {{host}}"
HERE = "127.0.0.1"
"""Where agents call that are really on this machine, under names that lead nowhere."""
PROBE = load_probes(["tests.faults.misbehaving"])["misbehave"]
SUITE = """
title = "nodes"
budget_s = 0.3
timeout_s = 20
[[cases]]
probe = "misbehave"
how = ["well", "sick"]
world = "serial"
phase = "run"
[[cases]]
probe = "misbehave"
how = "well"
world = "torch"
phase = "run"
"""
"""Two cases that each node measures alone, of which one fails on the nodes named sick; and one over all of them."""


def fleet(
    names: Sequence[str],
    remote: str = REMOTE,
    address: str = HERE,
    start_s: float = 45.0,
    root: str = "",
    launcher: str = "",
    pool_s: float = 45.0,
) -> Fleet:
    """Nodes with their agents; some may be left out.  ``start_s``, ``pool_s``: time for agents, and for pools of ranks."""
    desk = Desk(names, remote, address, Install.at(root), start_s)

    def supervise(name: str) -> Supervisor:
        means, patience = desk.means(launcher, ()), Patience(start_s=pool_s, peer_grace_s=1)
        return Supervisor(means, patience, make=lambda: RemoteNode(desk, name), desk=desk)

    nodes = Fleet(desk, supervise)
    nodes.assemble([])
    return nodes


def own_disks(folder: Path, target: Path, size: str = "64m") -> str:
    """A remote command by which each node has a file system of its own at ``target``, in a mount namespace.

    ``size``: as a shell reads it, to which ``$2`` is the node.
    """
    remote = folder / "own_disk"
    if subprocess.run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs {target}"], check=False).returncode:
        pytest.skip("cannot mount")
    mount = f'mount -t tmpfs -o size={size} tmpfs {target} && exec "$@"'
    remote.write_text(f"#!/bin/sh\nexec unshare -m sh -c '{mount}' sh {FAULTS}/remote.sh \"$@\"\n")
    remote.chmod(0o700)
    return f"{remote} {{host}}"


def team_of(nodes: Fleet) -> tuple[Supervisor, Team]:
    """All nodes of a fleet under one supervisor."""
    team = Team({name: nodes.supervisors[name].hand_over() for name in nodes.machines})  # type: ignore[arg-type]
    supervisor = nodes.supervise("")
    supervisor.take(team)
    return supervisor, team


def planned(how: str, world: str, phase: str = "run", ranks: int = 2, nodes: int = 2, timeout_s: float = 6.0) -> Planned:
    """A case of the probe that misbehaves on its last rank."""
    (case,) = PROBE.cases(how=[how], world=[world], phase=[phase])
    return Planned(
        case=case.id,
        probe=case.probe,
        module="tests.faults.misbehaving",
        params=dict(case.params),
        device="cpu:0" if nodes == 1 else "cpu:nodes",
        ranks=ranks,
        world=world,  # type: ignore[arg-type]
        budget_s=0.3,
        timeout_s=timeout_s,
        nodes=nodes,
    )


def run(supervisor: Supervisor, *case: object, **more: object) -> CaseResult:
    """Run one case."""
    return supervisor.run(planned(*case, **more), seed=1, llc_bytes=1 << 20)  # type: ignore[arg-type]


def workers_left(token: str, within_s: float = 30.0, only: Sequence[str] = ("",)) -> list[str]:
    """Processes of a run that live on after a while, wherever: workers, launchers, agents; ``only``: with such a command."""
    until = time.monotonic() + within_s
    while True:
        there = [(p, _command(p.pid)) for p in _all() if token in _trace(p.pid)]
        left = [f"{p.describe()}: {command}" for p, command in there if any(word in command for word in only)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def _all() -> list[processes.Process]:
    return [
        p
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (p := processes.read(int(entry.name))) and p.state != "Z"
    ]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _trace(pid: int) -> str:
    """Command, environment and folder of a process: a worker of a run bears its token in one of them."""
    try:
        entry = Path(f"/proc/{pid}")
        return _command(pid) + (entry / "environ").read_bytes().decode(errors="replace") + str((entry / "cwd").readlink())
    except OSError:
        return ""
