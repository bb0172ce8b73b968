"""What came of a case, and how it is found out when it went wrong: stacks and states of all ranks, and who is to blame."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from clustergauge import messages as m
from clustergauge.model import Place
from clustergauge.pool import GOOD, Crew, Pool
from clustergauge.team import Team, process_id

UNKNOWN = m.Facts({"unknown": "the node agent did not answer"}, {})
"""What is known of the health of a node that says nothing: not that it is well."""


@dataclass(frozen=True)
class CaseResult:
    """What came of one case.

    ``log``: stacks, states and last words of all ranks; empty unless something went wrong.  ``seconds``: from handing out the job
    to its end, without the start of workers.  ``environment``: what steered the transport.  ``files``: what libraries wrote when
    they hung, as it stands.  ``so_far``: what work that runs for its whole budget had said before its end (see `so_far`).
    """

    outcome: m.Outcome
    facts: m.Facts
    where: list[Place]
    library: str = ""
    log: str = ""
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=dict[str, str])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    so_far: m.Outcome | None = None


MOST_NAMED = 16
"""Ranks that a reason names one by one; the log has all."""


def failed(reason: str, log: str = "", where: list[Place] | None = None, facts: m.Facts | None = None) -> CaseResult:
    """An error for this reason."""
    return CaseResult(m.Outcome("error", reason), facts or m.Facts({}, {}), where or [], log=log)


class Autopsy:
    """What is known of a case that did not end as it should.  ``outcome``: of the case; ``lines``: for its log; ``files``: what
    libraries wrote.

    The first rank that ended early is the result of the case: that its peers waited for it in vain is no news.  But where it
    failed with an error and a peer died, either may have caused the other, and both are named.
    """

    def __init__(self, pool: Pool, reason: str) -> None:
        self.files: dict[str, bytes] = {}
        self._pool = pool
        self._late = reason.startswith("no end after")
        self.outcome = pool.early or m.Outcome("error", reason)
        if self.outcome.status == "error" and pool.early and not self._late:
            self._add(f"; then {reason}")
        self.lines = [reason, *(f"{rank}: {o.reason}\n{o.detail}" for rank, o in pool.outcomes() if o.status not in GOOD)]
        if pool.crash:
            self.lines += ["", "what the dead rank wrote while crashing:", pool.crash]

    def look(self, node: Crew, within_s: float) -> None:
        """Have the stacks and states of all ranks collected, on all nodes.  Raises `Died`, as `Conversation.ask` does."""
        inspected = node.ask(m.Inspect(), m.Inspected, within_s)
        named = 0
        for worker in inspected.workers:
            rank = self._pool.ranks.get(worker.pid)
            self.lines += ["", f"{rank}, pid {process_id(worker.pid)}, phase {worker.phase}, state {worker.state}", worker.stack]
            if rank and rank.outcome is None and self._late and not self._pool.early:
                named += 1
                if named <= MOST_NAMED:
                    self._add(f"; {rank} in phase {worker.phase!r} (state {worker.state})")
        if named > MOST_NAMED:
            self._add(f"; and {named - MOST_NAMED} more")
        self.lines += ["", "last words of the workers:", inspected.tail]
        self.files = inspected.files
        if isinstance(node, Team) and node.lost:
            self._name_the_lost(node, inspected)

    def say(self, why: str, alone: bool) -> None:
        """The agent could not be asked.  ``alone``: it is that of another machine, the only one of this pool."""
        self.lines.append(why)
        if alone:
            self._add(f"; {self._pool.lost([rank for rank in self._pool.in_order() if rank.outcome is None])}")

    def _name_the_lost(self, team: Team, inspected: m.Inspected) -> None:
        """Ranks on nodes that are lost are named, with the phase in which they were last seen, and that of the others."""
        here = {worker.pid for worker in inspected.workers}
        gone = [rank for rank in self._pool.in_order() if rank.pid not in here and team.is_lost(rank.pid)]
        if not gone:
            return
        phases = ", ".join(sorted({repr(w.phase) for w in inspected.workers if w.pid in self._pool.ranks}))
        lost = "; ".join(f"node {name} is lost: {why}" for name, why in team.lost.items())
        if lost not in self.outcome.reason:
            self._add(f"; {lost}")
        self._add(f": {self._pool.lost(gone)}, the others were in phase {phases or 'unknown'}")

    def _add(self, words: str) -> None:
        self.outcome = msgspec.structs.replace(self.outcome, reason=self.outcome.reason + words)
