"""The supervisor: hands cases to pools of workers, watches them, ends them, and keeps what they said.

It imports no device library, so nothing a case does can hang or crash it.  One pool lives at a time; after a failure it is
ended to the last process and the next case gets a fresh one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from clustergauge import messages as m
from clustergauge.launch import PoolKey, key_of, places, start_message
from clustergauge.model import Machine, Place, Planned
from clustergauge.node import Died, Node
from clustergauge.pool import Pool, quote

STARTS_TRIED = 2
"""How often in a row a pool may fail to start before its remaining cases are given up."""


@dataclass(frozen=True)
class CaseResult:
    """What came of one case.

    ``log``: stacks, states and last words of all ranks; empty unless something went wrong.  ``seconds``: from handing out the job
    to its end, without the start of workers.
    """

    outcome: m.Outcome
    facts: m.Facts
    where: list[Place]
    library: str = ""
    log: str = ""
    seconds: float = 0.0


class Supervisor:
    """Owner of one node and of at most one pool.  ``notes``: what a person should hear at the end of the run."""

    def __init__(
        self, launcher: str = "", python_path: list[str] | None = None, start_s: float = 60.0, peer_grace_s: float = 5.0
    ) -> None:
        """``start_s``: how long a pool may take to start; ``peer_grace_s``: how long ranks may go on after one failed."""
        self.launcher = launcher
        self.python_path = python_path or []
        self.start_s = start_s
        self.peer_grace_s = peer_grace_s
        self.notes: list[str] = []
        self.node: Node | None = None
        self.machine: Machine | None = None
        self.pool: Pool | None = None
        self._retired: dict[str, str] = {}
        self._failed_starts: dict[PoolKey, list[str]] = {}

    @property
    def scratch(self) -> Path:
        """Folder of the node's sockets, phases and stacks; there between `start` and `close`."""
        assert self.node
        return self.node.scratch

    def start(self) -> Machine:
        """Start the agent of this node; what it says of the machine.  Raises `Died` if it does not come up."""
        self.node = Node()
        self.machine = self.node.start()
        return self.machine

    def close(self) -> None:
        """End the pool, the agent and everything they started."""
        node, self.node, self.pool = self.node, None, None
        if node:
            self.notes += [f"could not be ended: {text}" for text in node.close()]

    def run(self, planned: Planned, seed: int, llc_bytes: int) -> CaseResult:
        """Run one case to its end, whatever that is.  Never raises for what the case or its processes did."""
        key = key_of(planned)
        tried = self._failed_starts.setdefault(key, [])
        if reason := self._retired.get(planned.device):
            return _failed(f"{planned.device} was retired: {reason}")
        if len(tried) >= STARTS_TRIED:
            return _failed(f"not tried again: {tried[-1]}")
        try:
            node, pool = self._ensure_pool(key)
            tried.clear()
        except Died as died:
            tried.append(str(died))
            return _failed(str(died))
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
        )
        began = time.monotonic()
        try:
            result = self._run_in(node, pool, planned, job)
        except Died as died:
            result = self._autopsy(node, pool, str(died))
        return dataclasses.replace(result, seconds=time.monotonic() - began)

    # -- pools

    def _ensure_pool(self, key: PoolKey) -> tuple[Node, Pool]:
        """The pool this case needs, started afresh unless the living one will do."""
        if self.node and self.pool:
            try:
                self.pool.note_the_dead()
            except Died as died:
                self.notes.append(f"started again: {died}")
                self.close()
        if self.node is None:
            self.start()
        assert self.node
        assert self.machine
        if self.pool and (self.pool.key != key or self.pool.dead):
            self._end_pool(self.node, self.pool)
        if self.pool is None:
            self.pool = Pool(self.node, self.machine.host, key, places(key, self.machine))
            order = start_message(key, self.machine, self.node.scratch, self.launcher, self.python_path)
            try:
                self.pool.start(order, self.start_s)
            except Died as died:
                raise Died(self._failed_start(self.node, self.pool, str(died))) from None
        return self.node, self.pool

    def _failed_start(self, node: Node, pool: Pool, reason: str) -> str:
        """End a pool that did not start; the reason with the last words of its workers."""
        with contextlib.suppress(Died):
            inspected = node.ask(m.Inspect(), m.Inspected, 10.0)
            if inspected and "last words" not in reason:
                reason += quote(inspected.tail)
        self._end_pool(node, pool)
        return reason

    def _end_pool(self, node: Node, pool: Pool) -> None:
        """End the pool's processes; those the kernel will not release are noted, and their GPU is retired."""
        self.pool = None
        try:
            ended = node.ask(m.EndPool(2.0), m.PoolEnded, 15.0)
        except Died:
            self.close()
            return
        node.forget()  # the agent says nothing of a pool after its end
        survivors = ended.survivors if ended else ["the agent did not answer"]
        if survivors:
            self.notes.append(f"could not be ended after its case: {'; '.join(survivors)}")
            if pool.key.device.startswith("cuda"):
                self._retired[pool.key.device] = survivors[0]

    # -- cases

    def _run_in(self, node: Node, pool: Pool, planned: Planned, job: m.Job) -> CaseResult:
        """Give the job to every rank and wait for all their outcomes.  Raises `Died` when one is gone, stopped or too late."""
        node.ask(m.Begin(), m.Began, 10.0)
        for rank in pool.ranks.values():
            rank.outcome = None
            rank.parts.clear()
            device = pool.where[rank.rank].device
            node.send(m.To(rank.pid, msgspec.structs.replace(job, device="cpu" if device.startswith("cpu") else device)))
        until = time.monotonic() + planned.timeout_s + planned.budget_s
        while any(r.outcome is None for r in pool.ranks.values()):
            heard = node.hear(until)
            match heard:
                case None:
                    raise Died(_who_hangs(pool, planned))
                case m.From(pid, m.Outcome() as outcome) if pid in pool.ranks:
                    pool.ranks[pid].outcome = outcome
                    if outcome.status == "error":
                        until = min(until, time.monotonic() + self.peer_grace_s)
                case m.From(pid, m.Gather() | m.Share() as said) if pid in pool.ranks:
                    pool.pass_on(pool.ranks[pid], said)
                case m.WorkerGone(pid) if pid in pool.ranks:
                    raise Died(pool.blame(heard))
                case m.Stopped(pid, _, phase) if pid in pool.ranks:
                    raise Died(f"{pool.ranks[pid]} is stopped (SIGSTOP or a debugger) in phase {phase!r}")
                case _:
                    pass
        facts = node.ask(m.Finish(), m.Facts, 10.0) or m.Facts({}, {})
        outcomes = [r.outcome for r in pool.in_order() if r.outcome]
        worst = next((o for o in outcomes if o.status == "error"), outcomes[0])
        if any(o.broken for o in outcomes):
            pool.dead = "a worker asked to be replaced"
        return CaseResult(worst, facts, pool.where, pool.in_order()[0].library, worst.detail)

    def _autopsy(self, node: Node, pool: Pool, reason: str) -> CaseResult:
        """Collect stacks and states of all ranks, end the pool, and say what happened."""
        lines = [reason, *(r.outcome.detail for r in pool.in_order() if r.outcome and r.outcome.detail)]
        if pool.crash:
            lines += ["", "what the dead rank wrote while crashing:", pool.crash]
        try:
            inspected = node.ask(m.Inspect(), m.Inspected, 10.0 + 2.0 * len(pool.ranks))
            for worker in inspected.workers if inspected else []:
                rank = pool.ranks.get(worker.pid)
                lines += ["", f"{rank}, pid {worker.pid}, phase {worker.phase}, state {worker.state}", worker.stack]
                if rank and rank.outcome is None and reason.startswith("no end after"):
                    reason += f"; {rank} in phase {worker.phase!r} (state {worker.state})"
            lines += ["", "last words of the workers:", inspected.tail if inspected else ""]
            facts = node.ask(m.Finish(), m.Facts, 10.0) or m.Facts({}, {})
            self._end_pool(node, pool)
        except Died as died:
            lines.append(str(died))
            facts = m.Facts({}, {})
            self.close()
        return _failed(reason, "\n".join(lines), pool.where, facts)


def _who_hangs(pool: Pool, planned: Planned) -> str:
    """At the deadline: the rank that reported an error if there is one, else only that it did not end."""
    for rank in pool.in_order():
        if rank.outcome and rank.outcome.status == "error":
            return rank.outcome.reason
    return f"no end after {planned.timeout_s + planned.budget_s:.0f} s"


def _failed(reason: str, log: str = "", where: list[Place] | None = None, facts: m.Facts | None = None) -> CaseResult:
    return CaseResult(m.Outcome("error", reason), facts or m.Facts({}, {}), where or [], log=log)
