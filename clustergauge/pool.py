"""A living pool of workers: from the launcher's command to a world that is what it claims to be, and who is at fault in it."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from clustergauge import code, hosts, messages as m, so_far, turnstile
from clustergauge.conversation import Conversation, Died, NoWorld
from clustergauge.launch import PoolKey
from clustergauge.model import Place
from clustergauge.output import exit_string, quote
from clustergauge.team import Team, process_id
from clustergauge.valid import shown

Crew = Conversation | Team
"""One node, or several that a pool spans."""


PHASE_LENGTH = 64
"""A worker has no longer names for its phases."""
GOOD = ("ok", "verified")
"""How a case ends well."""


class TimeUp(Exception):
    """The run's time is over, and the case in hand is one that can be cut short."""


@dataclass
class Rank:
    """One worker of the pool."""

    pid: int
    rank: int
    host: str
    library: str = ""
    phase: str = ""
    """As its agent saw it last; empty before that."""
    outcome: m.Outcome | None = None
    parts: deque[Any] = field(default_factory=deque[Any])

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass
class Pool:
    """Workers of one world.

    ``number``: of the pool, as its workers say in their `Hello`.  ``where``: planned, and once they are ready, real.
    ``so_far``: what the job in hand says it has measured (see `so_far`), ``None`` for work that says nothing before its end.
    ``dead``: why it cannot be used any more.  ``crash``: what a crashing worker wrote.  ``job``: the one in hand, 0 before the
    first.  ``early``: the first outcome in it that is not good.  ``address``: where rank 0 is to be met.
    ``tell_cpus``: processors are told, not left to the environment.  ``environment``: what steers the transport, as rank 0 says.
    """

    node: Crew
    host: str
    key: PoolKey
    where: list[Place]
    number: int = 0
    ranks: dict[int, Rank] = field(default_factory=dict[int, Rank])
    """By process id."""
    dead: str = ""
    crash: str = ""
    job: int = 0
    early: m.Outcome | None = None
    so_far: m.Outcome | None = None
    first_gone: int = 0
    """The worker whose channel ended first, 0 for none."""
    address: str = "127.0.0.1"
    tell_cpus: bool = False
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def start(self, orders: list[m.StartPool], start_s: float) -> None:
        """Have the workers started and make their world.

        Raises `Died` naming who is missing or does not fit, `NoWorld` where workers make no world of it.
        """
        self.node.start_pool(orders)
        until = time.monotonic() + start_s
        self._await_hellos(until, start_s)
        self._assign_ranks()
        self._await_ready(until + start_s, start_s)

    def run(self, job: m.Job, limit_s: float, grace_s: float, stop_at: float | None = None) -> m.Outcome:
        """Give the job to every rank and wait for all their outcomes: the first that is not good, or rank 0's.

        ``limit_s``: for all of them, what they wait for their turn left out; ``grace_s``: for the others once one ended early.
        ``stop_at`` (``time.monotonic``): work that has said what it measured so far is cut short then (`TimeUp`).  Raises `Died`
        when a rank is gone, stopped or late.
        """
        self.job, self.early, self.so_far = job.number, None, None
        for rank in self.ranks.values():
            rank.outcome = None
            rank.parts.clear()
            device = self.where[rank.rank].device
            self.node.send(m.To(rank.pid, msgspec.structs.replace(job, device="cpu" if device.startswith("cpu") else device)))
        until = time.monotonic() + limit_s
        first, away = self.in_order()[0], turnstile.Away(turnstile.MOST_TIMES * limit_s)
        while any(r.outcome is None for r in self.ranks.values()):
            cut = stop_at if self.so_far and so_far.stands(self.so_far) and not self.early else None
            heard = self.hear(until if cut is None else min(until, cut))
            until += away.spent(first.phase, now := time.monotonic())
            if cut is not None and time.monotonic() >= cut:
                raise TimeUp
            match heard:
                case None if now >= until:
                    raise Died(f"no end after {limit_s:.0f} s")
                case m.From(pid, m.Outcome() as outcome) if pid in self.ranks and outcome.job == job.number:
                    self.ranks[pid].outcome = outcome
                    if outcome.status not in GOOD:
                        self.early = self.early or outcome
                        until = min(until, time.monotonic() + grace_s)
                case m.From(pid, m.Gather() | m.Share() as said) if pid in self.ranks:
                    self.pass_on(self.ranks[pid], said)
                case m.From(pid, m.SoFar(part, number)) if pid in self.ranks and number == job.number:
                    self.so_far = so_far.join(self.so_far, part)
                case m.WorkerGone(pid) if pid in self.ranks:
                    raise Died(self.blame(heard))
                case m.Stopped(pid, _, phase) if pid in self.ranks:
                    raise Died(f"{self.ranks[pid]} is stopped (SIGSTOP or a debugger) in phase {phase!r}")
                case _:
                    pass
        outcomes = [outcome for _, outcome in self.outcomes()]
        if any(o.broken for o in outcomes):
            self.dead = "a worker asked to be replaced"
        if len({(o.status, o.reason) for o in outcomes}) > 1:
            self.dead = "its ranks did not end the case together"  # a message of one may wait for another
        return self.early or outcomes[0]

    def in_order(self) -> list[Rank]:
        """The workers by rank."""
        return sorted(self.ranks.values(), key=lambda r: r.rank)

    def outcomes(self) -> list[tuple[Rank, m.Outcome]]:
        """The ranks that have ended the case, in order, and how."""
        return [(rank, rank.outcome) for rank in self.in_order() if rank.outcome]

    def note_the_dead(self) -> None:
        """Hear what happened since the last case; a worker that left meanwhile is no fault of the next case."""
        until = time.monotonic()
        while (heard := self.node.hear(until)) is not None:
            if isinstance(heard, m.WorkerGone | m.Stopped) and heard.pid in self.ranks:
                self.dead = f"{self.ranks[heard.pid]} was gone before the case began"

    def pass_on(self, sender: Rank, said: m.Gather | m.Share) -> None:
        """The hub of the ranks' `gather` and `from_root`."""
        if said.job != self.job:
            return
        if isinstance(said, m.Share):
            for rank in self.ranks.values():
                if rank.pid != sender.pid and not rank.outcome:
                    self.node.send(m.To(rank.pid, m.Shared(said.value, self.job)))
            return
        sender.parts.append(said.value)
        if all(r.parts for r in self.ranks.values()):
            in_order = self.in_order()
            self.node.send(m.To(in_order[0].pid, m.Gathered([r.parts.popleft() for r in in_order], self.job)))

    def hear(self, until: float) -> m.FromAgent | None:
        """What is said next (as `Conversation.hear`); which worker went first is noted, and in which phase each is."""
        heard = self.node.hear(until)
        if isinstance(heard, m.Closed) and heard.pid in self.ranks:
            self.first_gone = self.first_gone or heard.pid
        if isinstance(heard, m.InPhase) and heard.pid in self.ranks:
            self.ranks[heard.pid].phase = heard.phase[:PHASE_LENGTH]
        return heard

    def blame(self, gone: m.WorkerGone) -> str:
        """Who is gone, how and when, in words: of several the one that went first, whoever is heard of first."""
        until = time.monotonic() + 2.0
        while self.first_gone not in (0, gone.pid) and (heard := self.node.hear(until)) is not None:
            if isinstance(heard, m.WorkerGone) and heard.pid == self.first_gone:
                gone = heard
        rank = self.ranks.get(gone.pid) or Rank(gone.pid, gone.rank, self.host)
        how = (gone.how == "ended" and self._launcher_tells(gone.pid)) or gone.how
        if gone.oom and re.search(r"SIGKILL|signal 9\b", how):
            how += " (out of memory? the kernel's OOM killer struck on this node meanwhile)"
        self.crash = gone.stack
        full = "; is shared memory full? (df /dev/shm)" if re.search(r"SIGBUS|signal 7\b", how) else ""
        return f"{rank} {how} in phase {gone.phase!r}{full}"

    # -- the steps

    def _await_hellos(self, until: float, start_s: float) -> None:
        while len(self.ranks) < self.key.ranks:
            heard = self.hear(until)
            match heard:
                case None:
                    raise Died(f"{self._missing()} never connected within {start_s:.0f} s")
                case m.From(pid, m.Hello() as hello) if hello.pool == self.number:
                    self.ranks[pid] = Rank(pid, hello.rank, hello.host)
                    if hello.code != code.digest():
                        raise Died(f"{self.ranks[pid]} runs other code ({hello.code}, here {code.digest()})")
                case m.AgentFailed(_, reason):
                    raise Died(reason)
                case m.LauncherGone(index, how, tail):
                    said = exit_string(tail) and f", {exit_string(tail)}"
                    raise Died(f"{self._missing(index)} never connected: its command {how}{said}{quote(tail)}")
                case m.WorkerGone():
                    raise Died(self.blame(heard))
                case _:
                    pass

    def _missing(self, index: int | None = None) -> str:
        if index is not None and self.key.world != "mpi":
            return self.named([index])
        missing = sorted(set(range(self.key.ranks)) - {r.rank for r in self.ranks.values()})
        return self.named(missing)

    def lost(self, ranks: Sequence[Rank]) -> str:
        """Ranks that went with their node, and what they did when they were last heard of."""
        phases = ", ".join(sorted({repr(rank.phase) for rank in ranks if rank.phase}))
        return f"{self.named([r.rank for r in ranks])} went with it, last heard of in phase {phases or 'unknown'}"

    def named(self, ranks: Sequence[int]) -> str:
        """Ranks and their hosts, in words, by host: ``ranks 2, 3 on h1``."""
        by_host: dict[str, list[int]] = {}
        for rank in ranks:
            by_host.setdefault(self.where[rank].host if rank < len(self.where) else self.host, []).append(rank)
        words = [
            f"rank{'s' if len(here) > 1 else ''} {', '.join(map(str, here[:8]))}{', …' if len(here) > 8 else ''} on {host}"
            for host, here in list(by_host.items())[:8]
        ]
        return "; ".join(words)

    def _assign_ranks(self) -> None:
        """Ranks as the launcher's environment says; by order of arrival where it does not say.  Then all may go."""
        ranks = list(self.ranks.values())
        if sorted(r.rank for r in ranks) != list(range(self.key.ranks)):
            for number, rank in enumerate(ranks):
                rank.rank = number
        self.where = self.node.seated({r.pid: r.rank for r in ranks}, self.where)
        for rank in ranks:
            place = self.where[rank.rank]
            cpus = place.cpus if self.tell_cpus else ""  # on one node the environment has them
            go = m.Go(self.key.world, rank.rank, self.key.ranks, place.device, 60.0, self.address, cpus)
            self.node.send(m.To(rank.pid, go))

    def _await_ready(self, until: float, start_s: float) -> None:
        ready: dict[int, m.Ready] = {}
        while len(ready) < self.key.ranks:
            heard = self.hear(until)
            match heard:
                case None:
                    late = [str(r) for r in self.in_order() if r.pid not in ready]
                    raise NoWorld(f"{', '.join(late[:8])} did not make its {self.key.world} world within {start_s:.0f} s")
                case m.From(pid, m.Ready() as said) if pid in self.ranks:
                    ready[pid] = said
                case m.From(pid, m.Gather() | m.Share() as said) if pid in self.ranks:
                    self.pass_on(self.ranks[pid], said)
                case m.WorkerGone():
                    raise NoWorld(self.blame(heard))
                case _:
                    pass
        self._believe(ready)

    def _believe(self, ready: dict[int, m.Ready]) -> None:
        """Ranks that are really a world of one each measure nothing and look well: never believed without asking."""
        libraries = sorted({r.library for r in ready.values()})
        for said in ready.values():
            if said.size != self.key.ranks:
                raise NoWorld(
                    f"rank {said.rank} on {said.host} sees a world of {said.size}, not {self.key.ranks}: the launcher does not "
                    f"fit the MPI that mpi4py loaded ({'; '.join(libraries)}); set MPI4PY_LIBMPI or --launcher so that they agree"
                )
        if {r.rank for r in ready.values()} != set(range(self.key.ranks)) or len(libraries) > 1:
            raise NoWorld(f"ranks are not distinct or their libraries differ: {'; '.join(libraries)}")
        for pid, said in ready.items():
            self.ranks[pid].rank = said.rank
            self.ranks[pid].library = said.library
        self.where = self.node.seated({r.pid: r.rank for r in self.ranks.values()}, self.where)
        for said in ready.values():
            self.where[said.rank] = self._really(self.where[said.rank], said)
            if said.rank == 0:
                self.environment = dict(said.environment)

    def _really(self, place: Place, said: m.Ready) -> Place:
        """Where a rank is, as it says itself, or (`Site.told`) as its agent is called."""
        interface = said.environment.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
        place = msgspec.structs.replace(place, cpus=said.cpus, interface=interface)
        if said.host == place.host:
            return place
        if not hosts.is_name(said.host):
            raise Died(f"rank {said.rank} runs on a host that calls itself {shown(said.host)}, which is no name of a host")
        return msgspec.structs.replace(place, host=said.host, pci="", nic="")  # those are of this machine

    def _launcher_tells(self, pid: int) -> str:
        """How a rank ended, in the words of the launcher that is its parent (MPICH's Hydra names the process)."""
        until = time.monotonic() + 1.5
        while (heard := self.node.hear(until)) is not None:
            if isinstance(heard, m.LauncherGone):
                named = re.search(rf"PID {process_id(pid)} ", heard.tail)
                if named and (said := exit_string(heard.tail)):
                    words, _, number = said.rpartition(" (signal ")
                    return f"was killed by signal {number.rstrip(')')} ({words})"
                if named and (exited := re.search(r"EXIT CODE: (\d+)", heard.tail)):
                    return f"exited with {exited[1]}"
                said = exit_string(heard.tail)  # perhaps of a peer that went the same way
                return f"ended (its launcher {heard.how}{': ' if said else ''}{said})"
        return ""
