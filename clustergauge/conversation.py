"""The supervisor's talk with one node's agent: what is sent, what is heard, and answers told from late ones."""

from __future__ import annotations

import itertools
import queue
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from clustergauge import messages as m
from clustergauge.control import Channel, ChannelError, Ears, Heard
from clustergauge.free import Free
from clustergauge.model import Machine, Place

SEND_S = 5.0
"""How long an agent may leave a message of ours untaken."""
LATE_S = 5.0
"""How long after a deadline what is heard already is still taken."""
REQUESTS = itertools.count(1)
"""Numbers of requests, none twice: a late answer to one is never taken for that to another, whoever asked."""
_T = TypeVar("_T", bound=m.Answer)


class Died(Exception):
    """A worker, launcher or agent failed; the text names rank, host and phase."""


class NoWorld(Died):
    """Workers are there, and could not make their world."""


class Gone(Died):
    """An agent is gone, or cannot be had: whatever it is, nobody knows whether its node is bad."""


class Silent(Gone):
    """An agent lives and does not answer: stopped, or hung in the kernel or a driver."""


@dataclass(frozen=True)
class Site:
    """What is to be known of a node: the machine, its agent's scratch folder, how the node was called by the user, the address
    and the name of the interface by which the agent reaches the supervisor (empty on this machine), and what is free by target.
    """

    machine: Machine
    scratch: Path
    name: str = ""
    address: str = ""
    interface: str = ""
    free: Mapping[str, Free] = field(default_factory=dict[str, Free])

    def told(self, message: m.FromAgent) -> m.FromAgent:
        """The agent's words with the name of its host in them: the one we know it by, not one that it says.

        On this machine workers say for themselves where they are: the user's launcher may have started them elsewhere.
        """
        match message:
            case m.From(pid, m.Hello() | m.Ready() as said) if self.name:
                return m.From(pid, msgspec.structs.replace(said, host=self.machine.host))
            case m.Facts():
                path = {f"{self.machine.host}/{port}": count for port, count in message.path.items()}
                return msgspec.structs.replace(message, path=path)
            case _:
                return message


class Inbox:
    """What agents say, for one to take in the order heard; what came while an answer was waited for comes first."""

    def __init__(self) -> None:
        self.heard: queue.Queue[Heard[m.FromAgent]] = queue.Queue()
        self._kept: deque[m.FromAgent] = deque()

    def next(self, until: float) -> Heard[m.FromAgent] | None:
        """What is heard next, the end of a channel too; ``None`` at the deadline (``time.monotonic``).

        What came in time is taken a little later too; but who talks without end gets no longer than who says nothing.
        """
        left_s = until - time.monotonic()
        if left_s < -LATE_S:
            return None
        try:
            return self.heard.get(timeout=max(0.0, left_s))
        except queue.Empty:
            return None

    def waiting(self) -> list[Heard[m.FromAgent]]:
        """All that was heard until now."""
        return [self.heard.get() for _ in range(self.heard.qsize())]

    def keep(self, messages: Iterable[m.FromAgent]) -> None:
        """Messages to be taken later."""
        self._kept.extend(messages)

    def kept(self) -> m.FromAgent | None:
        """The first that was kept, once."""
        return self._kept.popleft() if self._kept else None

    def forget(self) -> None:
        """Let go of what was kept: it concerns processes that are gone."""
        self._kept.clear()


class Conversation:
    """What `node.Node` (an agent on this machine) and `remote.RemoteNode` share: both say how one begins and ends."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.inbox = Inbox()
        self._ears = Ears[m.FromAgent](msgspec.json.Decoder(m.FromAgent), self.inbox.heard)
        self._channel: Channel | None = None
        self.who = "the node agent"
        self._ended = ""
        self._told_to_quit = False

    @property
    def sites(self) -> list[Site]:
        """The one node, once it is there (`team.Team` has several)."""
        return [self.site] if self.site else []

    def start(self, targets: Sequence[str] = ()) -> Machine:
        """Start the agent; what it says of its machine.  Raises `Died` if it does not come up."""
        raise NotImplementedError

    def close(self, ask: bool = True) -> list[str]:
        """End the agent and everything it started; what the kernel would not release, in words."""
        raise NotImplementedError

    def hand_over(self, inbox: Inbox) -> Channel:
        """From now on what the agent says goes to ``inbox``.  Raises `Died` when it is gone already."""
        if self._channel is None:
            raise Died(f"{self.who} was never there")
        self._ears.queue = inbox.heard
        for heard in self.inbox.waiting():
            if heard.message is None and heard.channel is self._channel:
                raise Died(f"{self.who} died ({heard.reason})")
        return self._channel

    def start_pool(self, orders: list[m.StartPool]) -> None:
        """Have workers started: one order for each of `sites`."""
        for order in orders:
            self.send(order)

    def seated(self, ranks: Mapping[int, int], where: Sequence[Place]) -> list[Place]:
        """Where the ranks (by process id) really are: as planned, on one node."""
        del ranks
        return list(where)

    def send(self, message: m.ToAgent) -> None:
        """Send a message.  Raises `Gone` when the agent is."""
        if self._channel is None:
            raise Died(f"{self.who} was never there")
        self._told_to_quit = self._told_to_quit or isinstance(message, m.Quit)
        try:
            self._channel.send(message)
        except ChannelError as error:
            raise Gone(f"{self.who} is gone: {error}") from None

    def hear(self, until: float) -> m.FromAgent | None:
        """The agent's next message, ``None`` at the deadline (``time.monotonic``).  Raises `Gone` when the agent is."""
        if (kept := self.inbox.kept()) is not None:
            return kept
        while (heard := self.inbox.next(until)) is not None:
            if heard.message is not None:
                return self.site.told(heard.message) if self.site else heard.message
            if heard.channel is self._channel:
                self._ended = heard.reason
                raise Gone(f"{self.who} died ({heard.reason}): {self._agent_words()}")
        return None

    def ask(self, message: m.Question, kind: type[_T], within_s: float) -> _T:
        """Send a request and wait for its answer; what else is heard is kept for `hear`, but not the late answers to others.

        Raises `Silent` if there is none in time, `Gone` when the agent is.
        """
        number = next(REQUESTS)
        self.send(msgspec.structs.replace(message, number=number))
        until = time.monotonic() + within_s
        others: list[m.FromAgent] = []
        try:
            while (heard := self.hear(until)) is not None:
                if not isinstance(heard, m.Answer):
                    others.append(heard)
                elif isinstance(heard, kind) and heard.number == number:
                    return heard
            raise Silent(f"{self.who} did not answer{self._agent_state()}")
        finally:
            self.inbox.keep(others)

    def _agent_state(self) -> str:
        return ""

    def _agent_words(self) -> str:
        return "it said nothing"
