"""A storage case that finds out whether another node measures on the same target meanwhile."""

from __future__ import annotations

import os
import time

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Work, Wrong, probe

BUSY_S = 0.4


@probe("alone", needs=Needs(target=True))
def alone(ctx: Context) -> Work:
    """A file with this node's name is there as long as it measures."""
    assert ctx.target
    folder, own = ctx.target, f"busy-{os.environ['CLUSTERGAUGE_HOST']}"
    seen: set[str] = set()

    def run() -> None:
        (folder / own).touch()
        time.sleep(BUSY_S)
        seen.update(path.name for path in folder.glob("busy-*"))

    def check() -> None:
        (folder / own).unlink(missing_ok=True)
        if seen != {own}:
            raise Wrong(f"{', '.join(sorted(seen))} at once")

    return Work(run=run, check=check, workload=Workload(ios=1, bound="latency"), max_iterations=1)
