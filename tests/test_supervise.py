"""Supervisor, agent, workers and launchers, all real; faults really injected.  Every fault costs one case and is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clustergauge import processes
from clustergauge.model import Planned
from clustergauge.plan import load_probes
from clustergauge.probe import Probe
from clustergauge.supervise import CaseResult, Supervisor
from tests.faults import misbehaving

MODULE = "tests.faults.misbehaving"
PROBE: Probe = load_probes([MODULE])["misbehave"]


@pytest.fixture(scope="module")
def supervisor():
    owner = Supervisor(start_s=30, peer_grace_s=1)
    owner.start()
    yield owner
    owner.close()
    assert processes.descendants(os.getpid()) == []


def run(supervisor: Supervisor, how: str, world: str = "serial", phase: str = "run", timeout_s: float = 3.0) -> CaseResult:
    (case,) = PROBE.cases(how=[how], world=[world], phase=[phase])
    planned = Planned(
        case=case.id,
        probe=case.probe,
        module=case.module,
        params=dict(case.params),
        device="cpu:0",
        ranks=1 if world == "serial" else 2,
        world=world,  # type: ignore[arg-type]
        budget_s=0.3,
        timeout_s=timeout_s,
    )
    return supervisor.run(planned, seed=1, llc_bytes=1 << 20)


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


@pytest.mark.parametrize("world", ["serial", "mpi", "torch"])
def test_a_well_behaved_case_is_measured(supervisor, world):
    result = run(supervisor, "well", world)
    assert result.outcome.status == "ok", result
    assert result.outcome.measurement
    assert len(result.outcome.measurement.samples_s) >= 6
    assert min(result.outcome.measurement.samples_s) >= 0.001
    assert len(result.where) == (1 if world == "serial" else 2)


FAULTS = [
    # how, phase, status, words of the reason
    ("raise", "prepare", "error", "RuntimeError: planned failure"),
    ("raise", "run", "error", "RuntimeError: planned failure"),
    ("raise", "check", "error", "RuntimeError: planned failure"),
    ("skip", "prepare", "skipped", "planned skip"),
    ("wrong", "check", "wrong", "element 3: expected 1, got 2"),
    ("memory", "run", "error", "out of memory"),
    ("kill", "run", "error", "killed by SIGKILL in phase 'measure'"),
    ("segfault", "prepare", "error", "killed by SIGSEGV in phase 'prepare'"),
    ("exit0", "run", "error", "exited with 0 in phase 'measure'"),
    ("stop", "run", "error", "is stopped (SIGSTOP or a debugger) in phase 'measure'"),
    ("hang", "check", "error", "rank 0 on {host} in phase 'check' (state S)"),
    ("orphan", "prepare", "error", "killed by SIGKILL in phase 'prepare'"),
    ("unequal", "run", "wrong", "two samples of a deterministic kernel differ"),
]


@pytest.mark.parametrize(("how", "phase", "status", "words"), FAULTS)
def test_a_fault_costs_one_case_and_is_named(supervisor, how, phase, status, words):
    result = run(supervisor, how, "serial", phase)
    assert result.outcome.status == status
    assert words.format(host=supervisor.machine.host) in result.outcome.reason
    if status == "error" and how not in ("raise", "memory"):
        assert all_gone(supervisor)
        assert f"rank 0 on {supervisor.machine.host}" in result.outcome.reason
    assert run(supervisor, "well").outcome.status == "ok"


def test_stacks_show_where_it_hung(supervisor):
    result = run(supervisor, "hang", "serial", "run")
    assert "misbehaving.py" in result.log
    assert "in misbehave" in result.log


def test_a_crash_leaves_its_stack(supervisor):
    assert "Fatal Python error: Segmentation fault" in run(supervisor, "segfault", "serial", "run").log


@pytest.mark.skipif(not os.access(misbehaving.OOM_GROUPS, os.W_OK), reason="no writable memory control group (v1) here")
def test_the_kernels_out_of_memory_killer_is_told_from_other_kills(supervisor):
    try:
        result = run(supervisor, "oom", phase="prepare")
        assert "killed by SIGKILL (out of memory: the kernel's OOM killer struck) in phase 'prepare'" in result.outcome.reason
    finally:
        for group in misbehaving.OOM_GROUPS.glob("clustergauge-*"):
            group.rmdir()


@pytest.mark.parametrize("how", ["flood", "print"])
def test_what_a_worker_prints_disturbs_nothing(supervisor, how):
    result = run(supervisor, how, "serial", "prepare", timeout_s=30)
    assert result.outcome.status == "ok"


MANY = [
    ("raise", "prepare", "rank 1: RuntimeError: planned failure"),
    ("raise", "run", "rank 1: RuntimeError: planned failure"),
    ("wrong", "check", "rank 1: element 3: expected 1, got 2"),
    ("kill", "run", "rank 1 on {host}"),
    ("exit0", "run", "rank 1 on {host}"),
    ("stop", "run", "rank 1 on {host} is stopped"),
    ("hang", "check", "rank 1 on {host} in phase 'check'"),
]


@pytest.mark.parametrize(
    ("world", "how", "phase", "words"),
    [("mpi", *fault) for fault in MANY] + [("torch", *fault) for fault in MANY if fault[0] in ("kill", "hang")],
)
def test_the_rank_at_fault_is_named_among_several(supervisor, world, how, phase, words):
    result = run(supervisor, how, world, phase)
    assert result.outcome.status in ("error", "wrong")
    assert words.format(host=supervisor.machine.host) in result.outcome.reason
    if how in ("kill", "exit0", "stop", "hang"):
        assert all_gone(supervisor)


def test_a_rank_that_was_killed_under_mpi_is_told_from_its_victims(supervisor):
    reason = run(supervisor, "kill", "mpi", "run").outcome.reason
    assert "rank 1" in reason
    assert "in phase 'measure'" in reason
    assert "rank 0" not in reason


def test_a_launcher_that_starts_singletons_is_named(supervisor):
    """Wrong launcher for the MPI library: N jobs of one rank each, which would measure nothing and say nothing."""
    single = Supervisor(launcher=f"{Path(__file__).parent}/faults/singletons.sh {{ranks}}", start_s=20)
    try:
        result = run(single, "well", "mpi")
        assert result.outcome.status == "error"
        assert "sees a world of 1, not 2" in result.outcome.reason
    finally:
        single.close()


def test_a_worker_that_never_connects_is_named():
    lonely = Supervisor(launcher="sh -c 'sleep 60' {ranks}", start_s=2)
    try:
        result = run(lonely, "well", "mpi")
        assert result.outcome.status == "error"
        assert "never connected within 2 s" in result.outcome.reason
        assert run(lonely, "well").outcome.status == "ok"
    finally:
        lonely.close()


def test_a_launcher_that_does_not_exist_is_named():
    lonely = Supervisor(launcher="no-such-launcher", start_s=5)
    try:
        assert "cannot start no-such-launcher" in run(lonely, "well", "mpi").outcome.reason
    finally:
        lonely.close()


def test_a_dead_agent_costs_one_case(supervisor):
    agent = supervisor.node._agent
    assert agent
    os.kill(agent.pid, 9)
    result = run(supervisor, "well")
    assert result.outcome.status == "error"
    assert "agent" in result.outcome.reason
    assert run(supervisor, "well").outcome.status == "ok"
