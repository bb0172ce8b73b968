"""A probe that is slow on some hosts: what a fleet must suspect, and what measuring again confirms or clears."""

from __future__ import annotations

import time

from clustergauge import hosts
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe

USUAL_S, SLOW_S = 0.02, 0.2


@probe("lame", needs=Needs(target=True), number=(1, 2))
def lame(ctx: Context, number: int) -> Work:
    """Sleeps; in case 1 longer on a host called ``…slow``, the first time alone on ``…once``; ``…gone`` is measured just once."""
    assert ctx.target
    first, host = not (seen := ctx.target / f"{hosts.own()}-{number}").exists(), hosts.own()
    seen.touch()
    if host.endswith("gone") and not first:
        raise Skip("planned: it is not there any more")
    slow = number == 1 and (host.endswith("slow") or (first and host.endswith(("once", "gone"))))
    return Work(
        run=lambda: time.sleep(SLOW_S if slow else USUAL_S),
        check=lambda: None,
        workload=Workload(bound="latency"),
    )
