"""A case of several ranks that meet, with one host that makes all wait: what a group of nodes must be blamed for."""

from __future__ import annotations

import time

from clustergauge import hosts
from clustergauge.model import Workload
from clustergauge.probe import Needs, Work, probe

USUAL_S, SLOW_S = 0.01, 0.05


@probe("in_step", needs=Needs(world="mpi", ranks=2, device="cpu", modules=("mpi4py",)))
def in_step(_ctx: object) -> Work:
    """Sleeps; on a host called ``…slow`` longer."""
    seconds = SLOW_S if hosts.own().endswith("slow") else USUAL_S
    return Work(run=lambda: time.sleep(seconds), check=lambda: None, sync=True, workload=Workload(bound="latency"))
