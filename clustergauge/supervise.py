"""The supervisor: starts the node agent and worker pools, hands them cases, watches them, and keeps what they said.

It imports no device library, so nothing a case does can hang or crash it.  One pool lives at a time; after a failure it is
ended to the last process and the next case gets a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clustergauge import code, messages as m, processes
from clustergauge.control import Channel, ChannelError, Ears, Heard, Listener
from clustergauge.model import Machine, Place, Planned
from clustergauge.pool import PoolKey, key_of, places, start_message

AGENT_START_S = 30.0
_T = TypeVar("_T", bound=m.Message)


class Died(Exception):
    """A worker, launcher or agent failed; the text names rank, host and phase."""


@dataclass
class Rank:
    """One worker of the living pool."""

    pid: int
    rank: int
    host: str
    library: str = ""
    outcome: m.Outcome | None = None
    parts: deque[Any] = field(default_factory=deque[Any])


@dataclass
class Pool:
    """The living pool; ``dead``: why it cannot be used any more."""

    key: PoolKey
    where: list[Place]
    ranks: dict[int, Rank]
    """By process id."""
    dead: str = ""


@dataclass(frozen=True)
class CaseResult:
    """What came of one case."""

    outcome: m.Outcome
    facts: m.Facts
    where: list[Place]
    library: str = ""
    log: str = ""
    """Stacks, states and last words of all ranks; empty unless something went wrong."""


class Supervisor:
    """Owner of one agent (this node's) and of at most one pool."""

    def __init__(
        self, launcher: str = "", python_path: list[str] | None = None, start_s: float = 60.0, peer_grace_s: float = 5.0
    ) -> None:
        """``start_s``: how long a pool may take to start; ``peer_grace_s``: how long ranks may go on after one reported an error."""
        self.launcher = launcher
        self.python_path = python_path or []
        self.start_s = start_s
        self.peer_grace_s = peer_grace_s
        self.notes: list[str] = []
        self.retired: dict[str, str] = {}
        self.scratch: Path | None = None
        self.machine: Machine | None = None
        self.pool: Pool | None = None
        self.events: queue.Queue[Heard[m.FromAgent]] = queue.Queue()
        self._agent: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._listener: Listener | None = None
        self._ears: Ears[m.FromAgent] | None = None

    # -- the agent

    def start(self) -> Machine:
        """Start the agent of this node; what it says of the machine.  Raises `Died` if it does not come up."""
        processes.adopt_orphans()
        self.scratch = Path(tempfile.mkdtemp(prefix="clustergauge-"))
        key = self.scratch / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(32))
        self.events = queue.Queue()
        self._ears = Ears(msgspec.json.Decoder(m.FromAgent).decode, self.events)
        self._listener = Listener(str(self.scratch / "supervisor.sock"), key.read_bytes(), self._ears.add)
        with (self.scratch / "agent.log").open("wb") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "clustergauge.agent", str(self.scratch)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"CLUSTERGAUGE_SCRATCH": str(self.scratch), "PYTHONPATH": os.pathsep.join([str(code.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
                start_new_session=True,
            )
        until = time.monotonic() + AGENT_START_S
        while True:
            try:
                heard = self.events.get(timeout=0.1)
            except queue.Empty:
                if self._agent.poll() is not None or time.monotonic() > until:
                    raise Died(f"the node agent did not start: {self._agent_words()}") from None
                continue
            if isinstance(heard.message, m.AgentHello):
                break
        if heard.message.code != code.digest():
            raise Died(f"the agent on {heard.message.host} runs other code ({heard.message.code}, here {code.digest()})")
        self._channel = heard.channel
        self.machine = heard.message.machine
        return self.machine

    def close(self, hurry: bool = False) -> None:
        """End the pool, the agent and everything they started.  ``hurry``: kill at once."""
        try:
            if self._channel and not hurry:
                with contextlib.suppress(ChannelError):
                    self._channel.send(m.Quit())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert self._agent
                    self._agent.wait(14)
        finally:
            if self._agent:
                self.notes += [f"could not be ended: {text}" for text in self._kill_rest()]
            if self._listener:
                self._listener.close()
            if self._ears:
                self._ears.close()
            if self._channel:
                self._channel.close()
            if self.scratch:
                shutil.rmtree(self.scratch, ignore_errors=True)
            self._agent = self._channel = self._listener = self._ears = self.scratch = self.pool = None

    def _kill_rest(self) -> list[str]:
        """Kill what the agent started, orphans that we inherited from it included; survivors in words."""
        assert self._agent
        mark = f"CLUSTERGAUGE_SCRATCH={self.scratch}"
        survivors = processes.end_all(lambda: processes.marked(os.getpid(), mark), grace_s=0.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._agent.wait(1)
        return survivors

    def _agent_words(self) -> str:
        with contextlib.suppress(OSError):
            assert self.scratch
            lines = (self.scratch / "agent.log").read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"

    def _send(self, message: m.ToAgent) -> None:
        if self._channel is None:
            raise Died("the node agent is gone")
        try:
            self._channel.send(message)
        except ChannelError as error:
            raise Died(f"the node agent is gone: {error}") from None

    def _hear(self, until: float) -> m.FromAgent | None:
        """The agent's next message, ``None`` at the deadline.  Raises `Died` when the agent is gone."""
        try:
            heard = self.events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        if heard.message is None:
            if heard.channel is not self._channel:
                return self._hear(until)
            words = self._agent_words()
            self.close(hurry=True)
            raise Died(f"the node agent died ({heard.reason}): {words}")
        return heard.message

    def _ask(self, message: m.ToAgent, kind: type[_T], within_s: float) -> _T | None:
        """Send a request and wait for its answer; what else is heard meanwhile is let go."""
        self._send(message)
        until = time.monotonic() + within_s
        while (heard := self._hear(until)) is not None:
            if isinstance(heard, kind):
                return heard
        return None

    # -- pools

    def _ensure_pool(self, key: PoolKey) -> Pool:
        if self._channel is None:
            self.start()
        if self.pool and (self.pool.key != key or self.pool.dead):
            self.end_pool()
        if self.pool is None:
            self.pool = self._start_pool(key)
        return self.pool

    def _start_pool(self, key: PoolKey) -> Pool:
        assert self.machine
        assert self.scratch
        pool = Pool(key, places(key, self.machine), {})
        self._send(start_message(key, self.machine, self.scratch, self.launcher, self.python_path))
        until = time.monotonic() + self.start_s
        try:
            self._await_hellos(pool, until)
            self._assign_ranks(pool)
            self._await_ready(pool, until + self.start_s)
        except Died as died:
            said = str(died)
            raise Died(said if "last words" in said else said + self._last_words(pool)) from None
        return pool

    def _await_hellos(self, pool: Pool, until: float) -> None:
        while len(pool.ranks) < pool.key.ranks:
            heard = self._hear(until)
            match heard:
                case None:
                    raise Died(f"{self._missing(pool)} never connected within {self.start_s:.0f} s")
                case m.From(pid, m.Hello() as hello):
                    if hello.code != code.digest():
                        raise Died(f"rank {hello.rank} on {hello.host} runs other code ({hello.code}, here {code.digest()})")
                    pool.ranks[pid] = Rank(pid, hello.rank, hello.host)
                case m.AgentFailed(_, reason):
                    raise Died(reason)
                case m.LauncherGone(index, how, tail):
                    raise Died(f"{self._missing(pool, index)} never connected: its command {how}{_quote(tail)}")
                case m.WorkerGone():
                    raise Died(self._gone(pool, heard))
                case _:
                    pass

    def _missing(self, pool: Pool, index: int | None = None) -> str:
        host = self.machine.host if self.machine else "?"
        if index is not None and pool.key.world != "mpi":
            return f"rank {index} on {host}"
        missing = sorted(set(range(pool.key.ranks)) - {r.rank for r in pool.ranks.values()})
        return f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing[:8]))} on {host}"

    def _assign_ranks(self, pool: Pool) -> None:
        """Ranks as the launcher's environment says; by order of arrival where it does not say.  Then all may start."""
        ranks = list(pool.ranks.values())
        if sorted(r.rank for r in ranks) != list(range(pool.key.ranks)):
            for number, rank in enumerate(ranks):
                rank.rank = number
        for rank in ranks:
            device = pool.where[rank.rank].device if pool.where else "cpu"
            self._send(m.To(rank.pid, m.Go(pool.key.world, rank.rank, pool.key.ranks, device, 60.0)))

    def _await_ready(self, pool: Pool, until: float) -> None:
        ready: dict[int, m.Ready] = {}
        while len(ready) < pool.key.ranks:
            heard = self._hear(until)
            match heard:
                case None:
                    late = [f"rank {r.rank} on {r.host}" for r in pool.ranks.values() if r.pid not in ready]
                    raise Died(f"{', '.join(late[:8])} did not make its {pool.key.world} world within {self.start_s:.0f} s")
                case m.From(pid, m.Ready() as said):
                    ready[pid] = said
                case m.From(pid, m.Gather() | m.Share() as said):
                    self._pass_on(pool, pool.ranks[pid], said)
                case m.WorkerGone():
                    raise Died(self._gone(pool, heard))
                case _:
                    pass
        libraries = sorted({r.library for r in ready.values()})
        for said in ready.values():
            if said.size != pool.key.ranks:
                raise Died(
                    f"rank {said.rank} on {said.host} sees a world of {said.size}, not {pool.key.ranks}: the launcher does not fit the "
                    f"MPI library that mpi4py loaded ({'; '.join(libraries)}); set MPI4PY_LIBMPI or --launcher so that they agree"
                )
        if len({r.rank for r in ready.values()}) != pool.key.ranks or len(libraries) > 1:
            raise Died(f"ranks are not distinct or their libraries differ: {'; '.join(libraries)}")
        for pid, said in ready.items():
            pool.ranks[pid].rank = said.rank
            pool.ranks[pid].library = said.library

    def end_pool(self) -> None:
        """End the pool's processes; those the kernel will not release are noted, and their device is retired."""
        if self.pool is None or self._channel is None:
            self.pool = None
            return
        key, self.pool = self.pool.key, None
        ended = self._ask(m.EndPool(2.0), m.PoolEnded, 15.0)
        survivors = ended.survivors if ended else ["the agent did not answer"]
        if survivors:
            self.notes.append(f"could not be ended after its case: {'; '.join(survivors)}")
            if key.device.startswith("cuda"):
                self.retired[key.device] = survivors[0]

    # -- cases

    def run(self, planned: Planned, seed: int, llc_bytes: int) -> CaseResult:
        """Run one case to its end, whatever that is.  Never raises for what the case or its processes did."""
        if reason := self.retired.get(planned.device):
            return _failed(f"{planned.device} was retired: {reason}")
        try:
            pool = self._ensure_pool(key_of(planned))
        except Died as died:
            with contextlib.suppress(Died):
                self.pool = self.pool or Pool(key_of(planned), [], {})
                self.end_pool()
            return _failed(str(died))
        job = m.Job(
            planned.case,
            planned.module,
            planned.probe,
            planned.params,
            pool.where[0].device if pool.key.world == "serial" else planned.device.partition(":")[0],
            planned.budget_s,
            seed,
            planned.target,
            planned.interpret,
            llc_bytes,
        )
        try:
            return self._run_in(pool, planned, job)
        except Died as died:
            return self._autopsy(pool, str(died))

    def _run_in(self, pool: Pool, planned: Planned, job: m.Job) -> CaseResult:
        self._ask(m.Begin(), m.Began, 10.0)
        for rank in pool.ranks.values():
            rank.outcome = None
            rank.parts.clear()
            self._send(m.To(rank.pid, msgspec.structs.replace(job, device=pool.where[rank.rank].device)))
        until = time.monotonic() + planned.timeout_s + planned.budget_s
        while any(r.outcome is None for r in pool.ranks.values()):
            heard = self._hear(until)
            match heard:
                case None:
                    raise Died(self._hung(pool, planned))
                case m.From(pid, m.Outcome() as outcome):
                    pool.ranks[pid].outcome = outcome
                    if outcome.status == "error":
                        until = min(until, time.monotonic() + self.peer_grace_s)
                case m.From(pid, m.Gather() | m.Share() as said):
                    self._pass_on(pool, pool.ranks[pid], said)
                case m.WorkerGone(pid):
                    if pid in pool.ranks:
                        raise Died(self._gone(pool, heard))
                case m.Stopped(pid, rank, phase):
                    raise Died(f"rank {rank} on {pool.ranks[pid].host} is stopped (SIGSTOP or a debugger) in phase {phase!r}")
                case _:
                    pass
        facts = self._ask(m.Finish(), m.Facts, 10.0) or m.Facts({}, {})
        outcomes = sorted(pool.ranks.values(), key=lambda r: r.rank)
        worst = next((r.outcome for r in outcomes if r.outcome and r.outcome.status == "error"), outcomes[0].outcome)
        assert worst
        if any(r.outcome and r.outcome.broken for r in outcomes):
            pool.dead = "a worker asked to be replaced"
        return CaseResult(worst, facts, pool.where, outcomes[0].library, worst.detail)

    def _pass_on(self, pool: Pool, sender: Rank, said: m.Gather | m.Share) -> None:
        """The hub of the ranks' `gather` and `from_root`."""
        if isinstance(said, m.Share):
            for rank in pool.ranks.values():
                if rank.pid != sender.pid:
                    self._send(m.To(rank.pid, m.Shared(said.value)))
            return
        sender.parts.append(said.value)
        if all(r.parts for r in pool.ranks.values()):
            values = [r.parts.popleft() for r in sorted(pool.ranks.values(), key=lambda r: r.rank)]
            root = next(r for r in pool.ranks.values() if r.rank == 0)
            self._send(m.To(root.pid, m.Gathered(values)))

    # -- what went wrong

    def _gone(self, pool: Pool, gone: m.WorkerGone) -> str:
        rank = pool.ranks.get(gone.pid)
        number = rank.rank if rank else gone.rank
        host = rank.host if rank else (self.machine.host if self.machine else "?")
        how = gone.how
        if how == "ended" and (told := self._launcher_tells(gone.pid)):
            how = told
        self._crash_stack = gone.stack
        return f"rank {number} on {host} {how} in phase {gone.phase!r}"

    _crash_stack = ""

    def _launcher_tells(self, pid: int) -> str:
        """How a rank ended, in the words of the launcher that is its parent (MPICH's Hydra names the process)."""
        until = time.monotonic() + 1.5
        while (heard := self._hear(until)) is not None:
            if isinstance(heard, m.LauncherGone):
                if re.search(rf"PID {pid} ", heard.tail) and (text := re.search(r"EXIT STRING: (.+)", heard.tail)):
                    return f"was killed: {text[1].split(' (signal')[0]}" + (f" (signal {n[1]})" if (n := re.search(r"signal (\d+)", text[1])) else "")
                if code_ := re.search(rf"PID {pid} .*?EXIT CODE: (\d+)", heard.tail, re.DOTALL):
                    return f"exited with {code_[1]}"
                return f"ended (its launcher {heard.how})"
        return ""

    def _hung(self, pool: Pool, planned: Planned) -> str:
        failed = [r for r in pool.ranks.values() if r.outcome and r.outcome.status == "error"]
        if failed:
            assert failed[0].outcome
            return failed[0].outcome.reason
        return f"no end after {planned.timeout_s + planned.budget_s:.0f} s"

    def _autopsy(self, pool: Pool, reason: str) -> CaseResult:
        """Collect stacks and states of all ranks, end the pool, and say what happened."""
        lines = [reason]
        if self._crash_stack:
            lines += ["", "what the dead rank wrote while crashing:", self._crash_stack]
            self._crash_stack = ""
        try:
            inspected = self._ask(m.Inspect(), m.Inspected, 10.0 + 2.0 * len(pool.ranks))
            if inspected:
                if reason.startswith("no end after"):
                    waiting = [w for w in inspected.workers if w.pid in pool.ranks and pool.ranks[w.pid].outcome is None]
                    named = ", ".join(f"rank {pool.ranks[w.pid].rank} on {w.host} in phase {w.phase!r} (state {w.state})" for w in waiting[:8])
                    reason = f"{reason}: {named}"
                for worker in inspected.workers:
                    number = pool.ranks[worker.pid].rank if worker.pid in pool.ranks else worker.rank
                    lines += ["", f"rank {number} on {worker.host}, pid {worker.pid}, phase {worker.phase}, state {worker.state}", worker.stack]
                lines += ["", "last words of the workers:", inspected.tail]
            self.end_pool()
        except Died as died:
            lines.append(str(died))
            self.pool = None
        return _failed(reason, "\n".join(lines), pool.where)

    def _last_words(self, pool: Pool) -> str:
        """What a pool that did not start printed last, for the reason."""
        with contextlib.suppress(Died):
            inspected = self._ask(m.Inspect(), m.Inspected, 10.0)
            if inspected and pool.key.ranks and (words := _quote(inspected.tail)):
                return words
        return ""


def _quote(tail: str) -> str:
    """The last line somebody printed, as the end of a sentence."""
    lines = [line.strip() for line in tail.splitlines() if line.strip(" =-\t")]
    return f" (last words: {lines[-1][:200]})" if lines else ""


def _failed(reason: str, log: str = "", where: list[Place] | None = None) -> CaseResult:
    return CaseResult(m.Outcome("error", reason), m.Facts({}, {}), where or [], log=log)


