"""Supervisor, agent, workers and launchers, all real; faults really injected.  Every fault costs one case and is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clustergauge import agent, code, launch, messages as m, processes, watch, worker
from clustergauge.control import ChannelError, Heard, connect
from clustergauge.conversation import Died, Silent
from clustergauge.launch import Means
from clustergauge.model import Planned
from clustergauge.node import Node
from clustergauge.plan import load_probes
from clustergauge.pool import Pool, Rank
from clustergauge.probe import Probe
from clustergauge.supervise import UNKNOWN, CaseResult, Patience, Supervisor
from clustergauge.world import Serial
from tests import made
from tests.faults import misbehaving

MODULE = "tests.faults.misbehaving"
PROBE: Probe = load_probes([MODULE])["misbehave"]
OPEN_MPI = next((path for path in ("/usr/bin/mpiexec.openmpi", "/usr/bin/orterun") if Path(path).exists()), "")


@pytest.fixture(scope="module")
def supervisor():
    owner = Supervisor(patience=Patience(start_s=30, peer_grace_s=1))
    owner.start()
    yield owner
    owner.close()
    assert processes.descendants(os.getpid()) == []


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


def test_the_agent_asks_its_sensors_for_the_time_in_which_its_workers_sampled():
    class Sensors:
        def facts(self, case: object, sampled: list[object]) -> dict[str, object]:
            return {"sampled": str(sampled)}

    one: Any = agent.Agent.__new__(agent.Agent)
    one.boss, one.sidecar, one.sampled, one.by_channel = Deaf(), Sensors(), [], {"a": agent.Worker(1, 0, None), "b": None}  # type: ignore[arg-type]
    one.by_channel["b"] = agent.Worker(2, 1, None)  # type: ignore[arg-type]

    def said() -> str:
        one._obey(m.Finish(number=1))
        return one.boss.sent[-1].telemetry["sampled"]

    for turn in range(2):
        one._obey(m.Begin(number=1))
        assert said() == "[]", "what an earlier case sampled is over"
        for channel, sampled in (("a", (5.0, 6.0 + turn)), ("b", (5.5, 7.0)), ("a", None)):
            one._worker_said(Heard(channel, m.Outcome("ok", sampled=sampled)))  # type: ignore[arg-type]
        assert said() == f"[(5.0, {6.0 + turn}), (5.5, 7.0)]"


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
    ("wrong", "run", "rank 1: element 3: expected 1, got 2"),
    ("skip", "run", "rank 1: planned skip"),
    ("kill", "run", "rank 1 on {host}"),
    ("exit0", "run", "rank 1 on {host}"),
    ("stop", "run", "rank 1 on {host} is stopped"),
    ("hang", "check", "rank 1 on {host} in phase 'check'"),
]


@pytest.mark.parametrize(
    ("world", "how", "phase", "words"),
    [("mpi" if n % 2 else "torch", *fault) for n, fault in enumerate(MANY)]
    + [pytest.param("torch" if n % 2 else "mpi", *fault, marks=pytest.mark.slow) for n, fault in enumerate(MANY)],
)
def test_the_rank_at_fault_is_named_among_several(supervisor, world, how, phase, words):
    result = run(supervisor, how, world, phase)
    assert result.outcome.status == {"wrong": "wrong", "skip": "skipped"}.get(how, "error")
    assert words.format(host=supervisor.machine.host) in result.outcome.reason
    if how != "hang":  # there all that did not end are named
        assert "rank 0 on" not in result.outcome.reason
    if how in ("kill", "exit0", "stop", "hang"):
        assert all_gone(supervisor)
    assert run(supervisor, "well", world).outcome.status == "ok"


@pytest.mark.parametrize("world", ["mpi", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_stopped_rank_that_takes_no_messages_does_not_stop_its_agent(supervisor, world):
    result = run(supervisor, "deaf", world, timeout_s=20)
    assert f"rank 1 on {supervisor.machine.host}" in result.outcome.reason
    assert result.facts != UNKNOWN
    assert all_gone(supervisor)
    assert run(supervisor, "well").outcome.status == "ok"


def test_a_rank_that_was_killed_under_mpi_is_told_from_its_victims(supervisor):
    reason = run(supervisor, "kill", "mpi", "run").outcome.reason
    assert "rank 1" in reason
    assert "in phase 'measure'" in reason
    assert "rank 0" not in reason


def test_a_launcher_that_starts_singletons_is_named(supervisor):
    """Wrong launcher for the MPI library: N jobs of one rank each, which would measure nothing and say nothing."""
    single = Supervisor(Means(f"{Path(__file__).parent}/faults/singletons.sh {{ranks}}"), patience=Patience(start_s=20))
    try:
        result = run(single, "well", "mpi")
        assert result.outcome.status == "error"
        assert "sees a world of 1, not 2" in result.outcome.reason
        run(single, "well", "mpi")
    finally:
        single.close()
    assert [note for note in single.notes if "must be of one kind" in note and "MPI4PY_LIBMPI is not set" in note] == single.notes
    assert len(single.notes) == 1, "said once"


@pytest.mark.skipif(not OPEN_MPI, reason="no Open MPI is installed")
def test_a_launcher_of_another_mpi_than_the_library_is_named_and_what_to_do():
    foreign = Supervisor(Means(f"{OPEN_MPI} --allow-run-as-root --oversubscribe -n {{ranks}}"), patience=Patience(start_s=30))
    try:
        assert run(foreign, "well", "mpi").outcome.status == "error"
        assert run(foreign, "well", "mpi").outcome.status == "error"
    finally:
        foreign.close()
    (note,) = foreign.notes
    assert "export MPI4PY_LIBMPI=" in note
    assert OPEN_MPI in note


def test_a_worker_that_never_connects_is_named():
    lonely = Supervisor(Means("sh -c 'sleep 60' {ranks}"), patience=Patience(start_s=2))
    try:
        result = run(lonely, "well", "mpi")
        assert result.outcome.status == "error"
        assert "never connected within 2 s" in result.outcome.reason
        assert run(lonely, "well").outcome.status == "ok"
    finally:
        lonely.close()


def test_a_launcher_that_does_not_exist_is_named():
    lonely = Supervisor(Means("no-such-launcher"), patience=Patience(start_s=5))
    try:
        assert "cannot start no-such-launcher" in run(lonely, "well", "mpi").outcome.reason
    finally:
        lonely.close()


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


class Deaf:
    """A channel to an agent that says nothing of its own."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: object) -> None:
        self.sent.append(message)

    def close(self) -> None:
        pass


@pytest.fixture
def node():
    """A node without an agent; what it would say is put on ``inbox.heard``."""
    alone = Node()
    alone._channel = Deaf()
    yield alone
    alone.close(ask=False)


def test_a_late_answer_is_not_that_of_the_next_case(node):
    said = {"memory_errors": 1}
    with pytest.raises(Silent):
        node.ask(m.Finish(), m.Facts, 0.01)
    node.inbox.heard.put(Heard(node._channel, m.Facts(said, {}, number=node._channel.sent[0].number)))
    with pytest.raises(Silent):
        node.ask(m.Finish(), m.Facts, 0.01)
    late, current = (message.number for message in node._channel.sent)
    node.inbox.heard.put(Heard(node._channel, m.Facts(said, {}, number=late)))
    node.inbox.heard.put(Heard(node._channel, m.LauncherGone(0, "exited with 0", "")))
    node.inbox.heard.put(Heard(node._channel, m.Facts({}, {}, number=current + 1)))
    assert node.ask(m.Finish(), m.Facts, 1.0) == m.Facts({}, {}, number=current + 1)
    assert isinstance(node.hear(time.monotonic()), m.LauncherGone)  # what is no answer is kept


def test_a_worker_of_an_earlier_pool_does_not_enter_the_next(node):
    key = launch.PoolKey("torch", False, 1, "cpu:0", 0)
    pool = Pool(node, "node-1", key, launch.places(key, made.machine()), number=2)
    node.inbox.heard.put(Heard(node._channel, m.From(11, m.Hello(1, 11, "node-1", 0, code.digest(), "3.11"))))
    node.inbox.heard.put(Heard(node._channel, m.From(12, m.Hello(2, 12, "node-1", 0, code.digest(), "3.11"))))
    pool._await_hellos(time.monotonic() + 1, 1)
    assert list(pool.ranks) == [12]


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


def test_what_was_said_within_another_case_is_not_passed_on(node):
    key = launch.PoolKey("torch", False, 2, "cpu:0", 0)
    pool = Pool(node, "node-1", key, launch.places(key, made.machine()), job=7)
    pool.ranks = {10: Rank(10, 0, "node-1"), 11: Rank(11, 1, "node-1")}
    pool.pass_on(pool.ranks[10], m.Share("old", 6))
    pool.pass_on(pool.ranks[10], m.Gather("old", 6))
    pool.pass_on(pool.ranks[11], m.Gather("one", 7))
    pool.pass_on(pool.ranks[10], m.Gather("zero", 7))
    pool.pass_on(pool.ranks[10], m.Share("new", 7))
    assert node._channel.sent == [m.To(10, m.Gathered(["zero", "one"], 7)), m.To(11, m.Shared("new", 7))]
    pool.ranks[11].outcome = m.Outcome("skipped", job=7)
    pool.pass_on(pool.ranks[10], m.Share("newer", 7))
    assert len(node._channel.sent) == 2  # a rank that has left the case waits for no value


class Script:
    """A worker's mouth that hears what is planned and remembers what it says."""

    def __init__(self, *heard: m.ToWorker) -> None:
        self.heard, self.said, self.job, self.rank = list(heard), [], 0, 1

    def hear(self) -> m.ToWorker:
        return self.heard.pop(0)

    def say(self, message: m.FromWorker) -> None:
        self.said.append(message)

    def say_so_far(self, outcome: m.Outcome) -> None:
        self.said.append(m.SoFar(outcome, self.job))


def test_a_rank_that_has_left_its_case_is_not_disturbed_by_what_comes_late(tmp_path):
    late = m.Shared("late", 1), m.Gathered(["late"], 1)
    job = m.Job("c", "no.such.module", "p", {}, "cpu", 1.0, 1, number=2)
    script: Any = Script(*late, job, *late, m.Leave())
    worker.serve(script, Serial(), lambda _: None, tmp_path)
    assert [(said.status, said.job) for said in script.said] == [("error", 2)]
    assert script.heard == []


def test_a_rank_takes_only_the_answers_of_its_own_case():
    mouth: Any = worker.Mouth.__new__(worker.Mouth)
    mouth.rank, mouth.job, mouth.say = 1, 2, lambda _: None
    mouth.hear = Script(m.Shared("old", 1), m.Gathered(["other"], 2), m.Shared("new", 2), m.Leave()).hear
    assert mouth.from_root(None) == "new"
    with pytest.raises(SystemExit):  # told to leave while it waits, it does
        mouth.from_root(None)


def test_workers_that_do_not_answer_are_waited_for_together(monkeypatch, tmp_path):
    """However many they are: all are signalled before the first is waited for.  The clock is made up."""
    now, signalled = [0.0], []

    def sleep(seconds: float) -> None:
        assert len(signalled) == 128
        now[0] += seconds

    silent: Any = agent.Agent.__new__(agent.Agent)
    silent.scratch = tmp_path
    silent.workers = {pid: agent.Worker(pid, pid, None) for pid in range(1000, 1128)}  # type: ignore[arg-type]
    monkeypatch.setattr(agent.processes, "read", lambda pid: processes.Process(pid, 1, "S", 1, "python"))
    monkeypatch.setattr(agent.os, "kill", lambda pid, number: signalled.append((pid, number)))
    monkeypatch.setattr(agent.time, "sleep", sleep)
    monkeypatch.setattr(agent.time, "monotonic", lambda: now[0])
    states = silent._inspect()
    assert sorted(pid for pid, _ in signalled) == [state.pid for state in states] == list(range(1000, 1128))
    assert {number for _, number in signalled} == {signal.SIGUSR1}
    assert now[0] < watch.INSPECT_S + 0.2


def test_an_error_and_a_death_after_it_are_both_named(node):
    """Either may have caused the other; a wrong result cannot be caused by a peer's death."""
    owner = Supervisor(patience=Patience(answer_s=0.01))
    key = launch.PoolKey("torch", False, 2, "cpu:0", 0)
    for status, reason in (("error", "rank 1: CUDA error; then rank 0 on h killed by SIGABRT"), ("wrong", "rank 1: CUDA error")):
        pool = Pool(node, "node-1", key, [], early=m.Outcome(status, "rank 1: CUDA error"))
        result = owner._autopsy(node, pool, "rank 0 on h killed by SIGABRT")
        assert result.outcome.status == status
        assert result.outcome.reason == reason
        assert "rank 0 on h killed by SIGABRT" in result.log


def test_an_out_of_memory_kill_under_a_launcher_is_told(node):
    """Hydra alone learns how a rank ended, the agent alone that the OOM killer struck."""
    key = launch.PoolKey("mpi", False, 2, "cpu:0", 0)
    tail = "=   PID 11 RUNNING AT node-1\n=   EXIT CODE: 9\nYOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
    for oom, words in ((True, " (out of memory: the kernel's OOM killer struck)"), (False, "")):
        pool = Pool(node, "node-1", key, [], ranks={11: Rank(11, 1, "node-1")})
        node.inbox.heard.put(Heard(node._channel, m.LauncherGone(0, "exited with 9", tail)))
        said = pool.blame(m.WorkerGone(11, 1, "measure", "ended", oom=oom))
        assert said == f"rank 1 on node-1 was killed by signal 9 (Killed){words} in phase 'measure'"


def test_ranks_keep_to_their_processors_whatever_the_environment_calls_them(monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor is no choice")
    monkeypatch.setenv("MPIEXEC", str(Path(sysconfig.get_path("scripts")) / "mpiexec"))
    twisted = Supervisor(Means(f"{Path(__file__).parent}/faults/twisted.sh {{ranks}}"), patience=Patience(start_s=30))
    try:
        result = run(twisted, "where", "mpi")
        assert result.outcome.status == "ok", result
        first, second = (place.cpus for place in result.where)
        assert first != second
        assert (
            result.outcome.settings["cpus"]
            == first
            == launch.places(launch.key_of(plan("where", "mpi")), twisted.machine)[0].cpus
        )
    finally:
        twisted.close()


def test_the_record_says_where_ranks_really_are(node):
    """A launcher's control group may forbid what was planned."""
    key = launch.PoolKey("torch", False, 2, "cpu:0", 0)
    pool = Pool(node, "node-1", key, launch.places(key, made.machine()), ranks={p: Rank(p, p - 10, "node-1") for p in (10, 11)})
    planned = [place.cpus for place in pool.where]
    told = {"GLOO_SOCKET_IFNAME": "ens3,eth1"}
    pool._believe({10: m.Ready(1, 2, "node-1", 10, "", "4-7", told), 11: m.Ready(0, 2, "node-1", 11, "", "0")})
    assert planned == ["0", "1"]
    assert [(place.cpus, place.interface) for place in pool.where] == [("0", ""), ("4-7", "ens3")]


def test_ranks_that_a_launcher_started_elsewhere_are_recorded_there():
    mpiexec = Path(sysconfig.get_path("scripts")) / "mpiexec"
    means = Means(f"{mpiexec} -n {{ranks}} {Path(__file__).parent}/faults/elsewhere.sh")
    spread_out = Supervisor(means, Patience(start_s=30))
    try:
        result = run(spread_out, "well", "mpi")
        assert result.outcome.status == "ok", result
        assert [(place.rank, place.host) for place in result.where] == [(0, "far0"), (1, "far1")]
        died = run(spread_out, "kill", "mpi", "run")
        assert "rank 1 on far1" in died.outcome.reason
    finally:
        spread_out.close()


@pytest.mark.parametrize(("name", "rank"), [("-x", 1), ("a b", 1), ("\x1b[31m", 1), ("n" * 400, 1), ("", 1), ("node-2", 7)])
def test_a_rank_is_not_believed_to_be_where_no_host_or_rank_is(node, name, rank):
    key = launch.PoolKey("mpi", False, 2, "cpu:0", 0)
    pool = Pool(node, "node-1", key, launch.places(key, made.machine()), ranks={p: Rank(p, p - 10, "node-1") for p in (10, 11)})
    with pytest.raises(Died) as died:
        pool._believe({10: m.Ready(0, 2, "node-1", 10), 11: m.Ready(rank, 2, name, 11)})
    assert str(died.value).isprintable()
    assert len(str(died.value)) < 300


def test_a_worker_obeys_no_inherited_number_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    for name in misbehaving.PLANTED:
        monkeypatch.setenv(name, "3")
    owner = Supervisor(patience=Patience(start_s=30))
    try:
        alone = run(owner, "where").outcome.settings
        pair = run(owner, "where", "torch").outcome.settings
    finally:
        owner.close()
    cores = owner.machine.cpu.cores
    assert alone["threads"] == str(cores)
    assert int(pair["threads"]) == max(1, cores // 2)
    assert alone["inherited"] == pair["inherited"] == "CUDA_DEVICE_ORDER"


def test_inside_an_allocation_ranks_are_started_all_the_same(monkeypatch, tmp_path):
    """Hydra that sees Slurm starts its proxies with srun."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nsleep 60\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_JOBID": "7",
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "0",
        "HYDRA_LAUNCHER": "slurm",
    }.items():
        monkeypatch.setenv(name, value)
    owner = Supervisor(patience=Patience(start_s=20))
    try:
        assert run(owner, "well", "mpi").outcome.status == "ok"
    finally:
        owner.close()


@pytest.mark.parametrize(
    ("launcher", "words"),
    [("mpiexec '", '--launcher "mpiexec \'" is no command (No closing quotation)'), (" ", "--launcher ' ' is no command")],
)
def test_a_launcher_that_is_no_command_costs_its_cases_only(supervisor, launcher, words):
    supervisor.means, before = Means(launcher), supervisor.means
    try:
        result = run(supervisor, "well", "mpi")
        assert result.outcome.status == "error"
        assert words in result.outcome.reason
        supervisor._failed_starts.clear()
        assert run(supervisor, "well").outcome.status == "ok"
    finally:
        supervisor.means = before


def test_a_missing_launcher_and_missing_gpus_cost_their_cases_only(supervisor, monkeypatch):
    gpus = msgspec.structs.replace(plan("well", "torch"), device="cuda:all", ranks=4)
    assert "the case needs 4 GPUs" in supervisor.run(gpus, 1, 1 << 20).outcome.reason
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda _: "/no/such/folder")
    reason = run(supervisor, "well", "mpi").outcome.reason
    assert "no MPI launcher beside this Python" in reason
    supervisor._failed_starts.clear()


def test_a_gpu_held_by_a_survivor_is_used_by_no_case():
    """A process that the kernel does not release holds its GPU: every pool with that GPU is refused, and no other."""

    def owner(survivor: str, key: launch.PoolKey) -> Supervisor:
        owner = Supervisor()
        owner.machine = made.machine(gpus=3)
        pool = Pool(Node.__new__(Node), "node-1", key, launch.places(key, owner.machine), ranks={12: Rank(12, 1, "node-1")})
        owner._note_survivors([survivor], pool)
        return owner

    def key(world: str, device: str, ranks: int = 1) -> launch.PoolKey:
        return launch.PoolKey(world, False, ranks, device, 0)

    alone = owner("pid 5 python, state D", key("serial", "cuda:1"))
    assert alone._why_retired(key("serial", "cuda:1")) == "cuda:1 was retired: pid 5 python, state D"
    assert alone._why_retired(key("torch", "cuda:all", 3))
    assert not alone._why_retired(key("torch", "cuda:all", 1))
    assert not alone._why_retired(key("serial", "cuda:0"))
    assert not alone._why_retired(key("serial", "cpu:0"))
    result = alone.run(msgspec.structs.replace(plan("well", "torch"), device="cuda:all", ranks=3), 1, 1)
    assert result.outcome == m.Outcome("error", "cuda:1 was retired: pid 5 python, state D")
    rank_1 = owner("pid 12 python, state D", key("torch", "cuda:all", 3))
    assert [bool(rank_1._why_retired(key("serial", f"cuda:{i}"))) for i in range(3)] == [False, True, False]
    unknown = owner("pid 99 mpiexec, state D", key("torch", "cuda:all", 3))
    assert all(unknown._why_retired(key("serial", f"cuda:{i}")) for i in range(3))


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
