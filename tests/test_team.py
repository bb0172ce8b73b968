"""A team believes each agent about its own node alone."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clustergauge import code, conversation, messages as m
from clustergauge.control import Channel, ChannelError, Heard, decode
from clustergauge.conversation import Conversation, Died, Silent, Site
from clustergauge.launch import PoolKey
from clustergauge.pool import Pool, Rank
from clustergauge.remote import RemoteNode
from clustergauge.team import Team, _extremes, worker_id
from tests import made

_DECODER: msgspec.json.Decoder[m.FromAgent] = msgspec.json.Decoder(m.FromAgent)
OF_ANOTHER = 2**32 + 77


class Agentless(Conversation):
    """One end of a conversation with an agent that the test speaks for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.site = Site(made.machine(host=name), Path("/scratch"), name)
        left, self.agent = socket.socketpair()
        self._channel = Channel(left, b"k", b"a", b"b")
        self.said: list[m.FromAgent] = []

    def close(self, ask: bool = True) -> list[str]:
        del ask
        self._ears.close()
        self.agent.close()
        if self._channel:
            self._channel.close()
        return []

    def send(self, message: m.ToAgent) -> None:
        assert self._channel
        for answer in self.said:
            number = {"number": message.number} if isinstance(message, m.Request) else {}
            self._ears.queue.put(Heard(self._channel, msgspec.structs.replace(answer, **number)))


@pytest.fixture
def nodes() -> Iterator[dict[str, Agentless]]:
    both = {name: Agentless(name) for name in ("na", "nb")}
    yield both
    for node in both.values():
        node.close()


@pytest.mark.parametrize(
    "message",
    [
        m.From(OF_ANOTHER, m.Share(1)),
        m.Closed(OF_ANOTHER),
        m.WorkerGone(OF_ANOTHER, 0, "measure", "exited with 0"),
        m.Stopped(OF_ANOTHER, 0, "measure"),
        m.InPhase(OF_ANOTHER, "measure"),
        m.Inspected([m.WorkerState(OF_ANOTHER, 0, "nb", "measure", "S", "")], ""),
        m.Closed(0),
        m.Closed(-1),
        m.LauncherGone(-1, "exited with 1", ""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_no_agent_can_speak_of_a_process_that_no_node_can_have(message: Any) -> None:
    with pytest.raises(ChannelError, match="no message"):
        decode(msgspec.json.encode(message), _DECODER)


def heard(nodes: dict[str, Agentless], name: str, message: m.FromAgent) -> m.FromAgent | None:
    """What a team over the nodes makes of an agent's words, after each was told to start two workers."""
    team = Team(nodes)
    team.start_pool([m.StartPool([["true"]] * 2, {}, [{}] * 2)] * 2)
    nodes[name]._ears.queue.put(Heard(nodes[name]._channel, message))
    return team.hear(time.monotonic())


def test_a_command_that_a_node_never_had_is_none_of_another_nodes(nodes: dict[str, Agentless]) -> None:
    assert heard(nodes, "na", m.LauncherGone(3, "exited with 1", "")) == m.LauncherGone(1, "exited with 1", "")


def test_a_worker_is_on_the_node_whose_agent_speaks_for_it(nodes: dict[str, Agentless]) -> None:
    said = heard(nodes, "nb", m.From(7, m.Hello(1, 7, "na", 0, "code", "3.11")))
    assert said == m.From(worker_id(1, 7), m.Hello(1, 7, "nb", 0, "code", "3.11"))


def test_a_worker_of_one_node_is_there_too_and_on_this_machine_it_says_so_itself(nodes: dict[str, Agentless]) -> None:
    hello = m.From(7, m.Hello(1, 7, "elsewhere", 0, "code", "3.11"))
    node = nodes["na"]
    for name, host in (("na", "na"), ("", "elsewhere")):
        node.site = Site(made.machine(host="na"), Path("/scratch"), name)
        node._ears.queue.put(Heard(node._channel, hello))
        assert node.hear(time.monotonic()) == m.From(7, msgspec.structs.replace(hello.body, host=host))


class Babble(queue.Queue[Any]):
    """An agent that talks without end, and says nothing that was asked for."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        del block, timeout
        return self.said

    said: Heard[m.FromAgent]


def test_who_talks_without_end_has_no_longer_than_who_is_silent(
    nodes: dict[str, Agentless], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "LATE_S", 0.1)
    alone, channel = nodes["na"], nodes["nb"]._channel
    team = Team({"nb": nodes["nb"]})
    for crew in (alone, team):
        crew.inbox.heard = Babble()
        crew.inbox.heard.said = Heard(alone._channel if crew is alone else channel, m.InPhase(7, "measure"))  # type: ignore[arg-type]
        with pytest.raises(Silent):
            crew.ask(m.Finish(), m.Facts, 0.0)
        crew.inbox.forget()
        pool = Pool(crew, "na", PoolKey("serial", False, 1, "cpu:0", 0), [])
        with pytest.raises(Died, match="never connected within 0 s"):
            pool.start([], 0.0)


def test_ports_bear_the_name_of_the_host_that_the_supervisor_knows(nodes: dict[str, Agentless]) -> None:
    for node, port in (("na", "eth0.tx_bytes"), ("nb", "na/eth0.tx_bytes")):
        nodes[node].said = [m.Facts({}, {}, {port: 5})]
    alone = nodes["nb"].ask(m.Finish(), m.Facts, 1.0)
    assert alone.path == {"nb/na/eth0.tx_bytes": 5}
    together = Team(nodes).ask(m.Finish(), m.Facts, 1.0)
    assert together.path == {"na/eth0.tx_bytes": 5, "nb/na/eth0.tx_bytes": 5}


def test_how_a_rank_of_a_team_was_killed_is_read_from_its_launcher(nodes: dict[str, Agentless]) -> None:
    """Hydra, from version 4 on, has a line of its own for a signal, and names the process by its number on its node."""
    team = Team(nodes)
    tail = "=   RANK 1 PID 11 RUNNING AT nb\n=   KILLED BY SIGNAL: 9 (Killed)\n"
    pool = Pool(
        team, "na", PoolKey("mpi", False, 2, "cpu:nodes", 0), [], ranks={worker_id(1, 11): Rank(worker_id(1, 11), 1, "nb")}
    )
    nodes["na"]._ears.queue.put(Heard(nodes["na"]._channel, m.LauncherGone(0, "exited with 255", tail)))
    said = pool.blame(m.WorkerGone(worker_id(1, 11), 1, "measure", "ended"))
    assert said == "rank 1 on nb was killed by signal 9 (Killed) in phase 'measure'"


@pytest.mark.parametrize(
    ("address", "more", "words"),
    [
        ("127.0.0.1", {"machine_id": "../m1"}, "machine_id '../m1' cannot name a file"),
        ("127.0.0.1", {"memory_bytes": -1}, "memory_bytes"),
        ("elsewhere.example", {}, "address 'elsewhere.example' is none"),
    ],
)
def test_a_node_whose_agent_says_what_no_run_can_keep_is_left_out(address: str, more: dict[str, Any], words: str) -> None:
    left, right = socket.socketpair()
    hello = m.AgentHello("na", 7, code.digest(), made.machine(**more), "na", "/scratch", address)
    desk: Any = SimpleNamespace(summon=lambda *_: None, await_call=lambda *_: (Channel(left, b"k", b"a", b"b"), hello))
    with pytest.raises(Died, match=f"what its agent says of it cannot be kept: {words}"):
        RemoteNode(desk, "na").start()
    right.close()


@pytest.mark.parametrize(("own", "beside"), [("na", ""), ("gpu7.example", "gpu7.example"), ("$(reboot)", ""), ("nb", "nb")])
def test_a_node_is_who_we_called_whatever_it_calls_itself(own: str, beside: str) -> None:
    left, right = socket.socketpair()
    hello = m.AgentHello(own, 7, code.digest(), made.machine(host=own), "root@na", "/scratch", "::1")
    desk: Any = SimpleNamespace(summon=lambda *_: None, await_call=lambda *_: (Channel(left, b"k", b"a", b"b"), hello))
    node = RemoteNode(desk, "root@na")
    machine = node.start()
    assert (machine.host, machine.node, machine.calls_itself) == ("na", "root@na", beside)
    assert node.sites[0].machine == machine
    node._ears.close()
    left.close()
    right.close()


def test_sensors_over_nodes_keep_their_extremes():
    said = [{"load1_max": 1.0, "clock_min": 5, "cpu_energy_j": 2.0, "gpu0_throttle": "", "t_start": 1.0}]
    said.append({"load1_max": 3.0, "clock_min": 4, "cpu_energy_j": 1.5, "gpu0_throttle": "thermal", "t_start": 2.0})
    assert _extremes(said) == {"load1_max": 3.0, "clock_min": 4, "gpu0_throttle": "thermal"}
