"""What supervisor, agent, pools and workers say to each other, and what they take for an answer; nothing is started here."""

from __future__ import annotations

import signal
import time
from typing import Any

import msgspec
import pytest

from clustergauge import agent, code, launch, messages as m, processes, watch, worker
from clustergauge.control import Heard
from clustergauge.conversation import Died, Silent
from clustergauge.node import Node
from clustergauge.pool import Pool, Rank
from clustergauge.supervise import Patience, Supervisor
from clustergauge.world import Serial
from tests import made
from tests.misbehaved import plan


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
    for oom, words in ((True, " (out of memory? the kernel's OOM killer struck on this node meanwhile)"), (False, "")):
        pool = Pool(node, "node-1", key, [], ranks={11: Rank(11, 1, "node-1")})
        node.inbox.heard.put(Heard(node._channel, m.LauncherGone(0, "exited with 9", tail)))
        said = pool.blame(m.WorkerGone(11, 1, "measure", "ended", oom=oom))
        assert said == f"rank 1 on node-1 was killed by signal 9 (Killed){words} in phase 'measure'"


def test_the_record_says_where_ranks_really_are(node):
    """A launcher's control group may forbid what was planned."""
    key = launch.PoolKey("torch", False, 2, "cpu:0", 0)
    pool = Pool(node, "node-1", key, launch.places(key, made.machine()), ranks={p: Rank(p, p - 10, "node-1") for p in (10, 11)})
    planned = [place.cpus for place in pool.where]
    told = {"GLOO_SOCKET_IFNAME": "ens3,eth1"}
    pool._believe({10: m.Ready(1, 2, "node-1", 10, "", "4-7", told), 11: m.Ready(0, 2, "node-1", 11, "", "0")})
    assert planned == ["0", "1"]
    assert [(place.cpus, place.interface) for place in pool.where] == [("0", ""), ("4-7", "ens3")]


@pytest.mark.parametrize(("name", "rank"), [("-x", 1), ("a b", 1), ("\x1b[31m", 1), ("n" * 400, 1), ("", 1), ("node-2", 7)])
def test_a_rank_is_not_believed_to_be_where_no_host_or_rank_is(node, name, rank):
    key = launch.PoolKey("mpi", False, 2, "cpu:0", 0)
    pool = Pool(node, "node-1", key, launch.places(key, made.machine()), ranks={p: Rank(p, p - 10, "node-1") for p in (10, 11)})
    with pytest.raises(Died) as died:
        pool._believe({10: m.Ready(0, 2, "node-1", 10), 11: m.Ready(rank, 2, name, 11)})
    assert str(died.value).isprintable()
    assert len(str(died.value)) < 300


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
