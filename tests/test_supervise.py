"""Supervisor, agent and workers, all real; faults really injected.  Every fault costs one case and is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from clustergauge import code, messages as m, processes
from clustergauge.control import ChannelError, connect
from clustergauge.conversation import Died
from clustergauge.node import Node
from clustergauge.supervise import UNKNOWN, CaseResult, Patience, Supervisor
from tests import misbehaved
from tests.faults import misbehaving
from tests.misbehaved import all_gone, run


@pytest.fixture(scope="module")
def supervisor():
    with misbehaved.supervised() as owner:
        yield owner


@pytest.mark.parametrize("world", ["serial", "mpi", "torch"])
def test_a_well_behaved_case_is_measured(supervisor, world):
    result = run(supervisor, "well", world)
    assert result.outcome.status == "ok", result
    assert result.outcome.measurement
    assert len(result.outcome.measurement.samples_s) >= 6
    assert min(result.outcome.measurement.samples_s) >= 0.001
    assert len(result.where) == (1 if world == "serial" else 2)


def test_a_worker_says_when_it_sampled_by_the_clock_of_its_host(supervisor):
    before = time.monotonic()
    result = run(supervisor, "well")
    after = time.monotonic()
    assert result.outcome.sampled
    assert result.outcome.measurement
    began, ended = result.outcome.sampled
    assert before < began < ended < after
    assert ended - began > sum(result.outcome.measurement.samples_s)
    assert run(supervisor, "raise").outcome.sampled is None


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


@pytest.mark.parametrize(
    ("how", "phase", "status", "words"),
    [pytest.param(*fault, marks=pytest.mark.slow) if fault[0] in ("skip", "memory", "orphan") else fault for fault in FAULTS],
)
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
        told = "killed by SIGKILL (out of memory? the kernel's OOM killer struck on this node meanwhile) in phase 'prepare'"
        assert told in result.outcome.reason
    finally:
        for group in misbehaving.OOM_GROUPS.glob("clustergauge-*"):
            group.rmdir()


@pytest.mark.parametrize("how", ["flood", "print"])
def test_what_a_worker_prints_disturbs_nothing(supervisor, how):
    result = run(supervisor, how, "serial", "prepare", timeout_s=30)
    assert result.outcome.status == "ok"


def test_a_dead_agent_costs_one_case(supervisor):
    os.kill(supervisor.node._agent.pid, 9)
    result = run(supervisor, "well")
    assert result.outcome.status == "error"
    assert "agent" in result.outcome.reason
    assert run(supervisor, "well").outcome.status == "ok"


@pytest.mark.parametrize("when", ["before", "within"])
def test_an_agent_that_does_not_answer_costs_one_case_and_is_replaced(when):
    """Stopped, or hung in a driver: what it says late must not be taken for the facts of a later case."""
    lonely = Supervisor(patience=Patience(start_s=30, answer_s=2))
    try:
        assert run(lonely, "well").outcome.status == "ok"
        pid = lonely.node._agent.pid
        if when == "before":
            os.kill(pid, signal.SIGSTOP)
            result = run(lonely, "well")
            assert "the node agent did not answer" in result.outcome.reason
            assert "state T" in result.outcome.reason
            assert result.facts == UNKNOWN
        else:  # after its last worker's last word: the case is measured, what the node says of it is not known
            lonely._run_in = _stop_agent_before_finish(lonely)
            result = run(lonely, "well")
            assert result.outcome.status == "ok"
            assert result.facts.health == {"unknown": "the node agent did not answer"}
            del lonely._run_in
        assert processes.read(pid) is None or processes.read(pid).state == "Z"
        assert run(lonely, "well").outcome.status == "ok"
        assert lonely.node._agent.pid != pid
    finally:
        lonely.close()


def _stop_agent_before_finish(supervisor: Supervisor) -> Any:
    original = supervisor._run_in

    def run_in(node: Node, *rest: Any) -> CaseResult:
        send = node.send

        def stop_then_send(message: m.ToAgent) -> None:
            if isinstance(message, m.Finish):
                os.kill(node._agent.pid, signal.SIGSTOP)
            send(message)

        node.send = stop_then_send
        return original(node, *rest)

    return run_in


def test_the_agent_refuses_a_worker_of_another_pool(supervisor):
    """A process that knows the key, and whose pool is over."""
    assert run(supervisor, "well").outcome.status == "ok"
    scratch = supervisor.node.scratch
    late = connect(str(scratch / "agent.sock"), (scratch / "key").read_bytes())
    late.send(m.Hello(supervisor.pool.number - 1, 1, "node-1", 0, code.digest(), "3.11"))
    late.sock.settimeout(10)
    with pytest.raises(ChannelError, match="closed by the other side"):
        late.receive()
    late.close()


def test_what_a_killed_worker_left_in_its_target_is_swept(tmp_path):
    broom = "import pathlib, sys; [f.unlink() for f in pathlib.Path(sys.argv[1]).glob('litter')]"
    owner = Supervisor(patience=Patience(start_s=30), sweep=[sys.executable, "-c", broom])
    try:
        run(owner, "litter", target=str(tmp_path))
        assert list(tmp_path.iterdir()) == []
        assert owner.notes == []
        owner.sweep = [sys.executable, "-c", "import sys; sys.exit('planned words')"]
        run(owner, "litter", target=str(tmp_path))
        assert owner.notes == [f"{tmp_path} was not swept (last words: planned words)"]
        assert [f.name for f in tmp_path.iterdir()] == ["litter"]
    finally:
        owner.close()


def test_the_storage_room_sweeps_when_asked(tmp_path):
    """The command that the command line names: folders whose owner was killed go, others stay."""
    folder = tmp_path / ".clustergauge-0123456789abcdef"
    folder.mkdir()
    (folder / "lock").write_text(f"{os.uname().nodename} 1\n")
    (folder / "data-0").touch()
    (tmp_path / "mine").touch()
    command = [sys.executable, "-P", "-m", "storage_io.workspace"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run([*command, str(tmp_path)], env=env, check=False).returncode == 0
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]
    said = subprocess.run([*command, "/no/such"], env=env, check=False, capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (1, "cannot sweep /no/such: No such file or directory\n")


def test_a_long_tmpdir_does_not_keep_the_agent_from_starting(monkeypatch, tmp_path):
    far = tmp_path / ("x" * 100)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    owner = Supervisor(patience=Patience(start_s=30))
    try:
        assert run(owner, "well").outcome.status == "ok"
        assert str(owner.node.scratch).startswith("/tmp/clustergauge-")
    finally:
        owner.close()
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(Died, match=r"no folder for sockets \(TMPDIR /no/such/folder"):
        Node()
