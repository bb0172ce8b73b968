"""Cases of the probe that misbehaves, on one node, and what is left of their processes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from clustergauge import processes
from clustergauge.model import Planned
from clustergauge.plan import load_probes
from clustergauge.probe import Probe
from clustergauge.supervise import CaseResult, Patience, Supervisor

MODULE = "tests.faults.misbehaving"
PROBE: Probe = load_probes([MODULE])["misbehave"]


@contextlib.contextmanager
def supervised():
    """A supervisor with its agent; nothing of them lives on."""
    before = {p.pid for p in processes.descendants(os.getpid())}  # libraries that other tests use keep a process for good
    owner = Supervisor(patience=Patience(start_s=30, peer_grace_s=1))
    owner.start()
    yield owner
    owner.close()
    assert {p.pid for p in processes.descendants(os.getpid())} <= before


def run(
    supervisor: Supervisor, how: str, world: str = "serial", phase: str = "run", timeout_s: float = 3.0, target: str = ""
) -> CaseResult:
    return supervisor.run(plan(how, world, phase, timeout_s, target), seed=1, llc_bytes=1 << 20)


def plan(how: str, world: str = "serial", phase: str = "run", timeout_s: float = 3.0, target: str = "") -> Planned:
    (case,) = PROBE.cases(how=[how], world=[world], phase=[phase])
    return Planned(
        case=case.id,
        probe=case.probe,
        module=case.module,
        params=dict(case.params),
        device="cpu:0",
        ranks=1 if world == "serial" else 2,
        world=world,  # type: ignore[arg-type]
        budget_s=0.3,
        timeout_s=timeout_s,
        target=target,
    )


def all_gone(supervisor: Supervisor, within_s: float = 10.0) -> bool:
    """Nothing but the agent and its sidecar is left of us."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        names = [_command(p.pid) for p in processes.descendants(os.getpid())]
        if not [n for n in names if "clustergauge.worker" in n or "planned orphan" in n or "mpiexec" in n]:
            return True
        time.sleep(0.05)
    return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
