"""Several nodes as the supervisor sees them while one pool spans all of them: heard as one, asked as one, lost one by one.

A worker is known by its node's number and its process id in one number (`worker_id`), so that a pool over nodes is handled as a
pool on one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from clustergauge import hosts, messages as m
from clustergauge.control import Channel
from clustergauge.conversation import REQUESTS, Conversation, Died, Inbox, Silent, Site
from clustergauge.model import Machine, Place, Scalar
from clustergauge.threads import in_threads

_T = TypeVar("_T", bound=m.Answer)
_PIDS = 1 << 32


class Lost(Died):
    """A node is gone: its link, its agent or itself."""


def worker_id(node: int, pid: int) -> int:
    """What stands for a worker's process id in a team (`messages.Pid` is below 2²³)."""
    return node * _PIDS + pid


def process_id(worker: int) -> int:
    """The process id on its own node."""
    return worker % _PIDS


class Team:
    """Nodes in the order in which they get ranks.  ``lost``: why, by name."""

    def __init__(self, nodes: Mapping[str, Conversation]) -> None:
        self.lost: dict[str, str] = {}
        self._nodes = dict(enumerate(nodes.values()))
        self._names = list(nodes)
        self.inbox = Inbox()
        self._numbers: dict[Channel, int] = {}
        self._first_rank: dict[int, int] = {}
        self._commands: dict[int, int] = {}
        self._order: list[int] = []
        for number, node in list(self._nodes.items()):
            try:
                self._numbers[node.hand_over(self.inbox)] = number
            except Died as died:
                self._lose(number, str(died))

    @property
    def sites(self) -> list[Site]:
        """Of the nodes that are left."""
        return [site for node in self._nodes.values() for site in node.sites]

    @property
    def scratch(self) -> Path:
        """Of the first node that is left."""
        return self.sites[0].scratch

    def start(self, targets: Sequence[str] = ()) -> Machine:
        """The first of the machines: the agents are here already.  Raises `Died` where none is left."""
        del targets
        if not self._nodes:
            raise Died(f"no node is left: {self._words(self.lost)}")
        return self.sites[0].machine

    def close(self, ask: bool = True) -> list[str]:
        """End all agents at once."""
        survivors: list[str] = []
        nodes = {self._names[number]: node for number, node in self._nodes.items()}
        in_threads(lambda name: survivors.extend(nodes[name].close(ask)), nodes)
        self._nodes.clear()
        return survivors

    def leave(self) -> dict[str, Conversation]:
        """The nodes that are left, by name: no longer ours.  A pool over them has ended."""
        for heard in self.inbox.waiting():
            number = self._numbers.get(heard.channel)
            if heard.message is None and number in self._nodes:
                self._lose(number, heard.reason)
        left = {self._names[number]: node for number, node in self._nodes.items()}
        self._nodes.clear()
        return left

    def start_pool(self, orders: Sequence[m.StartPool]) -> None:
        """Have workers started: one order for each of `sites`."""
        self._order, first = list(self._nodes), 0
        for number, order in zip(self._order, orders, strict=True):
            self._first_rank[number], self._commands[number] = first, len(order.commands)
            first += len(order.commands)
            self._send(number, order)

    def seated(self, ranks: Mapping[int, int], where: Sequence[Place]) -> list[Place]:
        """Where the ranks (by worker) really are, each on a place of its node.

        Raises `Died` where the launcher dealt them otherwise than it was told.
        """
        seats = list(where)
        share = len(where) // len(self._order)
        for position, number in enumerate(self._order):
            here = sorted(rank for worker, rank in ranks.items() if worker // _PIDS == number)
            if len(here) != share:
                raise Died(f"the launcher started {len(here)} ranks on {self._names[number]}, not {share}")
            for rank, place in zip(here, where[position * share :], strict=False):
                seats[rank] = msgspec.structs.replace(place, rank=rank)
        return seats

    def send(self, message: m.ToAgent) -> None:
        """Send a message to the worker's node, or to all.  Raises `Lost`."""
        if isinstance(message, m.To):
            number, pid = divmod(message.pid, _PIDS)
            if number in self._nodes:
                self._send(number, m.To(pid, message.body))
            return
        for number in list(self._nodes):
            self._send(number, message)

    def hear(self, until: float) -> m.FromAgent | None:
        """The next message, ``None`` at the deadline (``time.monotonic``).  Raises `Lost` when a node is gone."""
        if (kept := self.inbox.kept()) is not None:
            return kept
        while (heard := self.inbox.next(until)) is not None:
            number = self._numbers.get(heard.channel)
            if number is None or number not in self._nodes:
                continue
            if heard.message is None:
                raise self._lose(number, heard.reason)
            return self._translated(number, heard.message)
        return None

    def ask(self, message: m.Question, kind: type[_T], within_s: float) -> _T:
        """Ask all and put their answers together; what else is heard is kept for `hear`.

        A node that does not answer is lost.  Raises `Silent` where none answers.
        """
        number = next(REQUESTS)
        for node in list(self._nodes):
            try:
                self._send(node, msgspec.structs.replace(message, number=number))
            except Lost:
                continue
        until = time.monotonic() + within_s
        answers: dict[int, _T] = {}
        others: list[m.FromAgent] = []
        while any(node not in answers for node in self._nodes) and (heard := self.inbox.next(until)) is not None:
            node = self._numbers.get(heard.channel)
            if node is None or node not in self._nodes:
                continue
            if heard.message is None:
                self._lose(node, heard.reason)
            elif not isinstance(said := self._translated(node, heard.message), m.Answer):
                others.append(said)
            elif isinstance(said, kind) and said.number == number:
                answers[node] = said
        self.inbox.keep(others)
        for node in [node for node in self._nodes if node not in answers]:
            self._lose(node, "its agent did not answer")
        if not answers:
            raise Silent(f"no node answered: {self._words(self.lost)}")
        return self._together(kind, answers)

    def is_lost(self, worker: int) -> bool:
        """Whether the worker's node is."""
        return worker // _PIDS not in self._nodes

    # -- the steps

    def _send(self, number: int, message: m.ToAgent) -> None:
        try:
            self._nodes[number].send(message)
        except Died as died:
            raise self._lose(number, str(died)) from None

    def _lose(self, number: int, reason: str) -> Lost:
        """Leave a node behind; its agent, if it lives, ends its workers and itself once it finds the connection gone."""
        name = self._names[number]
        self.lost.setdefault(name, reason)
        node = self._nodes.pop(number)
        threading.Thread(target=node.close, args=(False,), daemon=True).start()
        return Lost(f"{hosts.lost(name)}: {reason}")

    def _words(self, lost: Mapping[str, str]) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in lost.items())

    def _translated(self, number: int, message: m.FromAgent) -> m.FromAgent:
        """The agent's words as those of its node: whom it speaks of is one of its own, whatever it says."""
        message = self._nodes[number].sites[0].told(message)
        match message:
            case m.From(pid) | m.Closed(pid) | m.WorkerGone(pid) | m.Stopped(pid) | m.InPhase(pid):
                return msgspec.structs.replace(message, pid=worker_id(number, pid))
            case m.LauncherGone(index):
                own = max(0, min(index, self._commands.get(number, 0) - 1))
                return msgspec.structs.replace(message, index=self._first_rank.get(number, 0) + own)
            case m.AgentFailed(what, reason):
                return m.AgentFailed(what, f"{self._names[number]}: {reason}")
            case _:
                return message

    def _together(self, kind: type[_T], answers: Mapping[int, _T]) -> _T:
        """The answers as if one node had given them; what differs from node to node bears its name."""
        named: list[tuple[int, str, Any]] = [(n, self._names[n], answers[n]) for n in self._nodes if n in answers]
        if kind is m.Facts:
            health: dict[str, Scalar] = {f"{name}/{key}": value for _, name, said in named for key, value in said.health.items()}
            path = {port: moved for _, _, said in named for port, moved in said.path.items()}
            return cast("_T", m.Facts(health, _extremes([said.telemetry for _, _, said in named]), path))
        if kind is m.Inspected:
            workers = [msgspec.structs.replace(w, pid=worker_id(n, w.pid)) for n, _, said in named for w in said.workers]
            tail = "\n".join(f"{name}:\n{said.tail}" for _, name, said in named if said.tail)
            files = {f"{name}.{file}": content for _, name, said in named for file, content in said.files.items()}
            return cast("_T", m.Inspected(workers, tail, files))
        if kind is m.Swept:
            return cast("_T", m.Swept("; ".join(f"{name}: {said.note}" for _, name, said in named if said.note)))
        if kind is m.PoolEnded:
            return cast("_T", m.PoolEnded([f"{name}: {text}" for _, name, said in named for text in said.survivors]))
        return next(iter(answers.values()))


def _extremes(said: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """Of sensors over all nodes: the highest of what is a maximum, the lowest of a minimum, all words of what is words.

    What has no meaning over nodes (a median, a first third, energy between readings of each its own) is left out.
    """
    found: dict[str, Scalar] = {}
    for key in sorted({key for one in said for key in one}):
        values = [one[key] for one in said if one.get(key) is not None]
        numbers = [value for value in values if isinstance(value, int | float)]
        if len(numbers) == len(values) and key.endswith("_max"):
            found[key] = max(numbers)
        elif len(numbers) == len(values) and key.endswith("_min"):
            found[key] = min(numbers)
        elif not numbers:
            found[key] = ", ".join(dict.fromkeys(str(value) for value in values if value))
    return found
