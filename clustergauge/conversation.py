"""The supervisor's talk with one node's agent: what is sent, what is heard, and answers told from late ones."""

from __future__ import annotations

import itertools
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from clustergauge import messages as m
from clustergauge.control import Channel, ChannelError, Ears, Heard
from clustergauge.model import Machine, Place

SEND_S = 5.0
"""How long an agent may leave a message of ours untaken."""
_T = TypeVar("_T", bound=m.Answer)


class Died(Exception):
    """A worker, launcher or agent failed; the text names rank, host and phase."""


class NoWorld(Died):
    """Workers are there, and could not make their world."""


class Silent(Died):
    """An agent lives and does not answer: stopped, or hung in the kernel or a driver."""


@dataclass(frozen=True)
class Site:
    """What starting workers on a node takes to know: the machine, its agent's scratch folder, the address and the name of the
    interface by which the agent reaches the supervisor (empty on this machine), and how it was called by the user."""

    machine: Machine
    scratch: Path
    name: str = ""
    address: str = ""
    interface: str = ""

    def ports(self, moved: Mapping[str, int]) -> dict[str, int]:
        """Bytes by port, with the name of the host before each: the one we know it by, not one that it says."""
        return {f"{self.machine.host}/{port}": count for port, count in moved.items()}


class Conversation:
    """What `node.Node` (an agent on this machine) and `remote.RemoteNode` share: both say how one begins and ends."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self._events: queue.Queue[Heard[m.FromAgent]] = queue.Queue()
        self._kept: deque[m.FromAgent] = deque()
        self._ears = Ears[m.FromAgent](msgspec.json.Decoder(m.FromAgent), self._events)
        self._channel: Channel | None = None
        self.who = "the node agent"
        self._ended = ""
        self._told_to_quit = False
        self._numbers = itertools.count(1)

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

    def hand_over(self, events: queue.Queue[Heard[m.FromAgent]]) -> Channel:
        """From now on what the agent says goes to ``events``.  Raises `Died` when it is gone already."""
        if self._channel is None:
            raise Died(f"{self.who} was never there")
        self._ears.queue = events
        while not self._events.empty():
            heard = self._events.get()
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
        """Send a message.  Raises `Died` when the agent is gone."""
        if self._channel is None:
            raise Died(f"{self.who} was never there")
        self._told_to_quit = self._told_to_quit or isinstance(message, m.Quit)
        try:
            self._channel.send(message)
        except ChannelError as error:
            raise Died(f"{self.who} is gone: {error}") from None

    def hear(self, until: float) -> m.FromAgent | None:
        """The agent's next message, ``None`` at the deadline (``time.monotonic``).  Raises `Died` when the agent is gone."""
        if self._kept:
            return self._kept.popleft()
        while True:
            try:
                heard = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return None
            if isinstance(heard.message, m.Facts) and self.site:
                return msgspec.structs.replace(heard.message, path=self.site.ports(heard.message.path))
            if heard.message is not None:
                return heard.message
            if heard.channel is self._channel:
                self._ended = heard.reason
                raise Died(f"{self.who} died ({heard.reason}): {self._agent_words()}")

    def ask(self, message: m.Inspect | m.Begin | m.Finish | m.EndPool | m.Sweep | m.Meet, kind: type[_T], within_s: float) -> _T:
        """Send a request and wait for its answer; what else is heard is kept for `hear`, but not the late answers to others.

        Raises `Silent` if there is none in time, `Died` when the agent is gone.
        """
        number = next(self._numbers)
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
            self._kept.extend(others)

    def forget(self) -> None:
        """Let go of what was kept for `hear`: it concerns processes that are gone."""
        self._kept.clear()

    def _agent_state(self) -> str:
        return ""

    def _agent_words(self) -> str:
        return "it said nothing"
