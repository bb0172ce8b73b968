"""The nodes that the flags name, and how they are reached."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

from verbs.cases import python_path, targets_of
from verbs.said import say

if TYPE_CHECKING:
    from clustergauge.fleet import Fleet

SWEEP = [sys.executable, "-P", "-m", "storage_io.workspace"]


@contextlib.contextmanager
def fleet_of(options: argparse.Namespace) -> Generator[Fleet | None]:
    """The nodes that the flags name, with their agents, and the end of these; ``None`` for this machine alone."""
    from clustergauge import fleet, launch, remote, spread, supervise, targets

    way, names = remote.way(options.remote, options.launcher), names_in(options)
    spread.check_launcher(options.launcher, len(names))
    if not names:
        yield None
        return
    desk = remote.Desk(names, way, options.address, launch.Install.at(options.remote_root))

    def supervise_one(name: str) -> supervise.Supervisor:
        sweep = [desk.install.python, *SWEEP[1:]]
        means = desk.means(options.launcher, python_path(options))
        return supervise.Supervisor(means, sweep=sweep, make=lambda: remote.RemoteNode(desk, name), desk=desk)

    nodes = fleet.Fleet(desk, supervise_one)
    try:
        nodes.assemble(targets.fitting(targets_of(options, None), objects=False))
        for name, why in (nodes.left_out | nodes.apart).items():
            say(f"{name}: {'left out' if name in nodes.left_out else 'measured alone only'}: {why}")
        yield nodes
    finally:
        nodes.close()


def names_in(options: argparse.Namespace) -> list[str]:
    """The nodes that the flags name; empty for this machine alone."""
    from clustergauge import hosts, remote

    way = remote.way(options.remote, options.launcher)
    return hosts.wanted(options.hosts, options.hostfile, remote.is_srun(way), os.environ)
