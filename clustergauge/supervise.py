"""The supervisor: hands cases to pools of workers, watches them, ends them, and keeps what they said.

It imports no device library, so nothing a case does can hang or crash it.  One pool lives at a time; after a failure it is
ended to the last process and the next case gets a fresh one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from clustergauge import hosts, launch, messages as m, so_far
from clustergauge.autopsy import UNKNOWN, Autopsy, CaseResult, failed
from clustergauge.conversation import Conversation, Died, Gone, NoWorld, Silent, Site
from clustergauge.errors import UsageError
from clustergauge.launch import Means, PoolKey, key_of, places, start_message
from clustergauge.model import Machine, Place, Planned
from clustergauge.node import Node
from clustergauge.output import quote
from clustergauge.pins import Pins
from clustergauge.pool import Crew, Pool, TimeUp
from clustergauge.remote import Desk
from clustergauge.spread import orders, seats
from clustergauge.sweep import SWEEP_S, sweep
from clustergauge.team import Lost, Team

STARTS_TRIED = 2
"""How often in a row a pool may fail to start before its remaining cases are given up."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds: ``start_s`` for a pool to start, ``peer_grace_s`` for ranks to go on after one of them ended early, ``answer_s``
    for an agent to answer."""

    start_s: float = 60.0
    peer_grace_s: float = 5.0
    answer_s: float = 10.0


class Supervisor:
    """Owner of one node, or of a team of them, and of at most one pool.

    ``notes``: what a person should hear at the end of the run.
    """

    def __init__(
        self,
        means: Means | None = None,
        patience: Patience | None = None,
        sweep: Sequence[str] = (),
        make: Callable[[], Crew] = Node,
        desk: Desk | None = None,
        pins: Pins | None = None,
    ) -> None:
        """``means``: how workers are started.  ``sweep``: command that removes what killed workers left in the target that is
        appended to it.  ``make``: the node, again whenever it has failed; of this machine unless the ``desk`` of remote ones is
        given too.  ``pins``: what kernels were tuned to in this run, on this node or another.
        """
        self.means = means or Means()
        self.patience = patience or Patience()
        self.sweep = sweep
        self._make = make
        self._desk = desk
        self.pins = pins or Pins()
        self._lone = True
        self._starts_failed: list[str] = []
        self.targets: list[str] = []
        self.notes: list[str] = []
        self.node: Crew | None = None
        self.machine: Machine | None = None
        self.pool: Pool | None = None
        self._retired: dict[str, str] = {}
        self._failed_starts: dict[PoolKey, list[str]] = {}
        self._pools = desk.pools if desk else itertools.count(1)
        self._jobs = itertools.count(1)
        self._unswept = ""
        self._mpi_stood = False
        self._token = secrets.token_hex(8)

    def start(self, targets: Sequence[str] = ()) -> Machine:
        """Start the agent of this node; what it says of the machine.  ``targets``: folders of storage cases, for its preflight.

        Raises `Gone` if it does not come up; after two times it is not tried again.
        """
        self.targets = list(targets) or self.targets
        if self.given_up:
            raise Gone(f"{self.given_up}; not tried again")
        node = self._make()
        try:
            self.machine = node.start(self.targets)
        except Died as died:
            node.close(ask=False)
            self._starts_failed.append(str(died))
            raise Gone(str(died)) from None
        self.node = node
        self._starts_failed.clear()
        return self.machine

    @property
    def given_up(self) -> str:
        """Why the node is not tried again; empty where it is there, or may come back."""
        return self._starts_failed[-1] if len(self._starts_failed) >= STARTS_TRIED else ""

    def hand_over(self) -> Crew:
        """The node, with its pool ended: no longer ours.  Raises `Died` if it cannot be had any more."""
        if self.node and self.pool:
            self._end_pool(self.node, self.pool)
        if self.node is None:
            self.start()
        node, self.node = self.node, None
        assert node
        return node

    def take(self, node: Crew) -> None:
        """Be the owner of nodes that are there already.  Raises `Died` where none is left."""
        self._make = lambda: node
        self._lone = not isinstance(node, Team)
        self.machine = node.start()
        self.node = node

    def quit(self) -> None:
        """From another thread: the agent is told to end the case in hand and itself."""
        node = self.node
        if isinstance(node, Conversation | Team):
            with contextlib.suppress(Died):
                node.send(m.Quit())

    def close(self, ask: bool = True) -> None:
        """End the pool, the agent and everything they started.  ``ask``: an agent that is well; otherwise it is killed."""
        node, pool, self.node, self.pool = self.node, self.pool, None, None
        if node:
            self._note_survivors(node.close(ask), pool)
        self._sweep()

    def run(self, planned: Planned, seed: int, llc_bytes: int, stop_at: float | None = None) -> CaseResult:
        """Run one case to its end, whatever that is.  Never raises for what the case or its processes did.

        ``stop_at`` (``time.monotonic``): work that says what it has measured so far (a burn-in) is cut short then.
        """
        key = key_of(planned)
        tried = self._failed_starts.setdefault(key, [])
        if len(tried) >= STARTS_TRIED:
            return failed(f"{tried[-1]}; not tried again", where=self._meant(key))
        try:
            if reason := self._why_retired(key):
                return failed(reason)
            node, pool = self._ensure_pool(key)
            tried.clear()
        except (Died, UsageError, ValueError) as error:  # the last: no processor or GPU to place a rank on
            tried.append(self._told(error))
            return failed(tried[-1], where=self._meant(key))
        job = m.Job(
            planned.case,
            planned.module,
            planned.probe,
            planned.params,
            planned.device,
            planned.budget_s,
            seed,
            planned.target,
            planned.interpret,
            llc_bytes,
            next(self._jobs),
            planned.check_only,
            self.pins.known() if planned.tunes else {},
            planned.cross_check,
            planned.room,
        )
        began = time.monotonic()
        self._unswept = planned.target
        try:
            result = self._run_in(node, pool, planned, job, stop_at)
            self._unswept = ""
            if planned.tunes:
                self.pins.learn(result.outcome.settings, job.pins)
        except TimeUp:
            assert pool.so_far
            outcome = so_far.cut_short(pool.so_far, "the time was up", planned.budget_s)
            result = CaseResult(outcome, self._facts(node), pool.where, environment=pool.environment)
            if self.node is node:
                self._end_pool(node, pool)
        except Silent as silent:
            self._close_silent()
            result = failed(self._told(silent), where=pool.where, facts=UNKNOWN)
        except Died as died:
            result = self._autopsy(node, pool, self._told(died))
            self._sweep()
        if result.outcome.status in ("wrong", "error") and pool.so_far and so_far.stands(pool.so_far):
            result = dataclasses.replace(result, outcome=so_far.broken_off(result.outcome, pool.so_far, planned.budget_s))
        return dataclasses.replace(result, seconds=time.monotonic() - began, so_far=pool.so_far)

    def interrupted(self, planned: Planned) -> CaseResult | None:
        """What the case in hand has measured when Ctrl-C ends it; ``None`` where it has said nothing worth keeping."""
        node, pool = self.node, self.pool
        if not node or not pool or not pool.so_far or not so_far.stands(pool.so_far):
            return None
        outcome = so_far.cut_short(pool.so_far, "interrupted", planned.budget_s)
        return CaseResult(outcome, self._facts(node), pool.where, environment=pool.environment)

    # -- pools

    def _ensure_pool(self, key: PoolKey) -> tuple[Crew, Pool]:
        """The pool this case needs, started afresh unless the living one will do."""
        if self.node and self.pool:
            try:
                self.pool.note_the_dead()
            except Lost:
                self._end_pool(self.node, self.pool)
                raise
            except Died as died:
                self.notes.append(f"started again: {died}")
                self.close()
        if self.node and self.pool and (self.pool.key != key or self.pool.dead):
            self._end_pool(self.node, self.pool)
        if self.node is None:
            self.start()
        assert self.node
        assert self.machine
        if self.pool is None:
            number = next(self._pools)
            orders = self._orders(key, self.node.sites, number)
            sites = self.node.sites
            host = hosts.compress(site.machine.host for site in sites)
            self.pool = Pool(
                self.node,
                host,
                key,
                self._seats(key),
                number,
                address=sites[0].address or "127.0.0.1",
                tell_cpus=self._desk is not None,
            )
            try:
                self.pool.start(orders, self.patience.start_s)
            except Died as died:
                if isinstance(died, NoWorld) and key.world == "mpi" and not self._mpi_stood:
                    self._note_unlike()
                raise (Gone if isinstance(died, Gone) else Died)(self._failed_start(self.node, self.pool, str(died))) from None
            self._mpi_stood = self._mpi_stood or key.world == "mpi"
        return self.node, self.pool

    def _told(self, error: Exception) -> str:
        """Why a case failed, in words; where the one other node that is ours went, they begin with that (`hosts.went_with`)."""
        name = self.machine.node if self._lone and self.machine and isinstance(error, Gone) else ""
        return f"{hosts.lost(name)}: {error}" if name else str(error)

    def _note_unlike(self) -> None:
        """Not a single MPI world was made, and the user chose the launcher, the library or both: what that takes, said once."""
        if note := launch.unlike(self.means.launcher, os.environ):
            self.notes += [note] if note not in self.notes else []

    def _orders(self, key: PoolKey, sites: list[Site], number: int) -> list[m.StartPool]:
        """What the agents are told to start the pool; its workers know whose run they are of (`at_work`)."""
        run = {"CLUSTERGAUGE_RUN": self._desk.token if self._desk else self._token}
        return [msgspec.structs.replace(order, env=order.env | run) for order in self._made_orders(key, sites, number)]

    def _made_orders(self, key: PoolKey, sites: list[Site], number: int) -> list[m.StartPool]:
        users_own = self.means.launcher and key.world == "mpi"
        if self._desk and (isinstance(self.node, Team) or users_own):
            return orders(key, sites, self.means, number)
        return [start_message(key, s.machine, s.scratch, self.means, number) for s in sites]

    def _seats(self, key: PoolKey) -> list[Place]:
        """Where each rank goes."""
        if isinstance(self.node, Team):
            return seats(key, self.node.sites)
        return places(key, self.machine) if self.machine else []

    def _meant(self, key: PoolKey) -> list[Place]:
        """Where the ranks of a pool that did not start were to be: all of its nodes fail with it; empty where none is left."""
        try:
            return self._seats(key) if self.node else []
        except (UsageError, ValueError):
            return []

    def _failed_start(self, node: Crew, pool: Pool, reason: str) -> str:
        """End a pool that did not start; the reason with the last words of its workers."""
        with contextlib.suppress(Died):
            inspected = node.ask(m.Inspect(), m.Inspected, self.patience.answer_s)
            if "last words" not in reason:
                reason += quote(inspected.tail)
        self._end_pool(node, pool)
        return reason

    def _end_pool(self, node: Crew, pool: Pool) -> None:
        """End the pool's processes, with an agent that cannot do it if need be; what then still lives is noted."""
        try:
            ended = node.ask(m.EndPool(2.0), m.PoolEnded, self.patience.answer_s + 5.0)
        except Silent:
            self._close_silent()
        except Died:
            self.close()
        else:
            self.pool = None
            node.inbox.forget()  # the agent says nothing of a pool after its end
            self._note_survivors(ended.survivors, pool)

    def _close_silent(self) -> None:
        """An agent that did not answer once may answer late for ever: the next case gets a fresh one."""
        self.notes.append("the node agent did not answer and was replaced")
        self.close(ask=False)

    def _note_survivors(self, survivors: list[str], pool: Pool | None) -> None:
        """Processes that the kernel will not release are noted, and the GPUs that they hold are retired."""
        self.notes += [f"could not be ended: {text}" for text in survivors]
        for text in survivors:
            pid = re.match(r"pid (\d+) ", text)
            rank = pool.ranks.get(int(pid[1])) if pool and pid else None
            for place in pool.where if pool else []:
                if place.device.startswith("cuda") and (rank is None or rank.rank == place.rank):
                    self._retired.setdefault(place.device, text)

    def _why_retired(self, key: PoolKey) -> str:
        """Why a pool must not be started: one of its GPUs is held by a process that could not be ended; empty if it may."""
        devices = [p.device for p in self._seats(key)] if self._retired else []
        return next((f"{d} was retired: {self._retired[d]}" for d in devices if d in self._retired), "")

    def _sweep(self) -> None:
        """Sweep the target of a case whose workers died."""
        target, self._unswept = self._unswept, ""
        if not self.sweep or not target:
            return
        if self._desk is None:
            note = sweep(self.sweep, target)
        elif self.node is None:
            note = f"{target} was not swept: its node's agent is gone"
        else:
            try:
                note = self.node.ask(m.Sweep(list(self.sweep), target), m.Swept, self.patience.answer_s + SWEEP_S).note
            except Died:
                note = f"{target} was not swept: its node's agent is gone"
        if note:
            self.notes.append(note)

    # -- cases

    def _run_in(self, node: Crew, pool: Pool, planned: Planned, job: m.Job, stop_at: float | None) -> CaseResult:
        """One case in a living pool.  Raises as `Pool.run`."""
        node.ask(m.Begin(), m.Began, self.patience.answer_s)
        outcome = pool.run(job, planned.timeout_s + planned.budget_s, self.patience.peer_grace_s, stop_at)
        library = pool.in_order()[0].library
        return CaseResult(outcome, self._facts(node), pool.where, library, outcome.detail, environment=pool.environment)

    def _facts(self, node: Crew) -> m.Facts:
        """What the node says of the case."""
        try:
            return node.ask(m.Finish(), m.Facts, self.patience.answer_s)
        except Silent:
            self._close_silent()
        except Died as died:
            self.notes.append(f"started again: {died}")
            self.close()
        return UNKNOWN

    def _autopsy(self, node: Crew, pool: Pool, reason: str) -> CaseResult:
        """Find out what happened (`Autopsy`) and end the pool."""
        found = Autopsy(pool, reason)
        try:
            found.look(node, self.patience.answer_s)
            facts = node.ask(m.Finish(), m.Facts, self.patience.answer_s)
            self._end_pool(node, pool)
        except Died as died:
            facts = UNKNOWN
            found.say(str(died), alone=self._desk is not None and not isinstance(node, Team))
            if isinstance(died, Silent):
                self._close_silent()
            else:
                self.close()
        return CaseResult(
            found.outcome, facts, pool.where, log="\n".join(found.lines), environment=pool.environment, files=found.files
        )
