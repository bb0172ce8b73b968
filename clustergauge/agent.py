"""The node agent: starts this node's workers, passes their messages on, watches them, and ends them.

``python -m clustergauge.agent SCRATCH`` on the supervisor's machine, ``-`` elsewhere (see `summons`).  One a node, started by
the supervisor, which it outlives only until every worker has ended.  It imports no device library, and its loop sleeps until
something happens.
"""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from clustergauge import (
    addresses,
    code,
    health,
    hosts,
    machine,
    marks,
    messages as m,
    preflight,
    processes,
    summons,
    telemetry,
    traffic,
    watch,
)
from clustergauge.control import Channel, ChannelError, Ears, Heard, Listener, connect
from clustergauge.output import TAIL_BYTES, Command
from clustergauge.sweep import sweep

STATE_CHECK_S = 1.0
"""How often the kernel is asked whether a worker is stopped, and the worker's memory for its phase."""
SEND_S = 4.0
"""How long a worker may leave a message untaken: then it is stuck, and the agent must not be."""


@dataclass(frozen=True)
class Ended:
    """A child of the agent was collected."""

    pid: int
    status: int


@dataclass
class Worker:
    """One worker process as its agent knows it."""

    pid: int
    rank: int
    channel: Channel
    stopped: bool = False
    phase: str = ""
    deaf: bool = False


class Agent:
    """The state of one node."""

    def __init__(self, scratch: Path, boss: Channel, name: str = "") -> None:
        """``scratch``: its folder, with the ``key`` of its workers.  ``boss``: to the supervisor.  ``name``: of the node."""
        self.scratch = scratch
        self.name = name
        self.key = (scratch / "key").read_bytes()
        self.events: queue.Queue[Any] = queue.Queue()
        self.workers: dict[int, Worker] = {}
        self.by_channel: dict[Channel, Worker] = {}
        self.exits: dict[int, str] = {}
        self.commands: list[Command] = []
        self.health_before: dict[str, Any] = {}
        self.traffic_before: dict[str, int] = {}
        self.began = 0.0
        self.sampled: list[telemetry.Window] = []
        self.pool = 0
        self.mark = ""
        self.states_at = 0.0
        self.oom_kills = 0
        self.children = threading.Event()
        self.sidecar = telemetry.Sidecar()
        self.worker_ears: Ears[m.FromWorker] = Ears(msgspec.json.Decoder(m.FromWorker), self.events)
        self.boss_ears: Ears[m.ToAgent] = Ears(msgspec.json.Decoder(m.ToAgent), self.events)
        self.listener = Listener(str(scratch / "agent.sock"), self.key, self.worker_ears.add)
        self.boss = boss

    def run(self) -> None:
        """Serve until the supervisor says so or is gone."""
        processes.adopt_orphans()
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()
        self.sidecar.start()
        self.children.set()
        host = machine.describe()
        targets = list(filter(None, os.environ.get("CLUSTERGAUGE_TARGETS", "").split("\n")))
        folders = [Path(target) for target in targets] or [self.scratch]
        host = msgspec.structs.replace(host, findings=preflight.findings(host, folders, self.scratch))
        address = addresses.own_end(self.boss.sock)
        interface = addresses.interface_of(address) if address else ""
        about = (host, self.name, str(self.scratch), address, interface, preflight.free_in(targets))
        self.boss.send(m.AgentHello(host.host, os.getpid(), code.digest(), *about))
        self.boss_ears.add(self.boss)
        try:
            while self._step():
                pass
        except ChannelError:
            pass  # the supervisor is gone: end as if told to
        finally:
            self.end_pool(grace_s=2.0)
            self.sidecar.stop()
            self.listener.close()

    def _step(self) -> bool:
        if self.workers and time.monotonic() >= self.states_at:
            self._report_states()
            self.states_at = time.monotonic() + STATE_CHECK_S
        try:
            event = self.events.get(timeout=max(0.0, self.states_at - time.monotonic()) if self.workers else None)
        except queue.Empty:
            return True
        if isinstance(event, Ended):
            self._child_ended(event)
        elif event.channel is self.boss:
            if event.message is None or isinstance(event.message, m.Quit):
                return False
            self._obey(event.message)
        else:
            self._worker_said(event)
        return True

    # -- the supervisor's wishes

    def _obey(self, message: m.ToAgent) -> None:
        match message:
            case m.To(pid, body):
                if worker := self.workers.get(pid):
                    self._pass_on(worker, body)
            case m.StartPool():
                self._start_pool(message)
            case m.EndPool(grace_s):
                self.boss.send(m.PoolEnded(self.end_pool(grace_s), number=message.number))
            case m.Begin():
                self.health_before = health.read()
                self.oom_kills = watch.oom_kills()
                self.traffic_before = traffic.read()
                self.began = time.monotonic()
                self.sampled.clear()
                self.boss.send(m.Began(number=message.number))
            case m.Finish():
                said = self.sidecar.facts((self.began, time.monotonic()), self.sampled)
                moved = traffic.moved(self.traffic_before, traffic.read())
                changes = health.changes(self.health_before, health.read())
                self.boss.send(m.Facts(changes, said, moved, number=message.number))
            case m.Inspect():
                watch.ask_for_dumps(self.scratch)
                states = self._inspect()
                self.boss.send(m.Inspected(states, self._tail(), watch.kept_files(self.scratch), number=message.number))
            case m.Sweep(command, target):
                self.boss.send(m.Swept(sweep(command, target), number=message.number))
            case m.Meet(step, target, mark):
                self.boss.send(m.Met(marks.take(step, target, mark), number=message.number))
            case m.Quit():
                pass

    def _start_pool(self, pool: m.StartPool) -> None:
        self.exits.clear()
        self.oom_kills = watch.oom_kills()
        self.pool, self.mark = pool.number, pool.mark
        for name, text in pool.files.items():
            program = self.scratch / name
            program.touch(0o700)
            program.write_text(text)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(tuple(pool.drop))}
        env = inherited | pool.env | {"CLUSTERGAUGE_POOL": str(pool.number)}
        for command, extra in zip(pool.commands, pool.rank_env, strict=True):
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=env | extra,
                    cwd=self.scratch,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                self.boss.send(m.AgentFailed("start", f"cannot start {command[0]}: {getattr(error, 'strerror', error)}"))
                return
            started = Command(process)
            self.commands.append(started)
            threading.Thread(target=started.drain, name="drain", daemon=True).start()
        self.children.set()

    def end_pool(self, grace_s: float) -> list[str]:
        """End all processes of the pool; returns those the kernel would not release."""
        for worker in self.workers.values():
            if not worker.deaf:
                worker.channel.limit_sending(0.05)  # one that does not even take this is stuck, and will be killed
                self._pass_on(worker, m.Leave())
        until = time.monotonic() + grace_s
        while self.workers and self._processes() and time.monotonic() < until:
            time.sleep(0.02)  # workers that are well leave when told to; only the others are signalled
        survivors = processes.end_all(self._processes, grace_s)
        for worker in self.workers.values():
            worker.channel.hang_up()
        self.workers.clear()
        self.by_channel.clear()
        self.commands.clear()
        self.mark = ""
        return survivors

    def _processes(self) -> list[processes.Process]:
        """All processes of the pool that still live: our descendants, and what another node's launcher started here."""
        found = [p for p in processes.descendants(os.getpid()) if p.pid != self.sidecar.pid]
        return found + (processes.bearing(self.mark) if self.mark else [])

    def _pass_on(self, worker: Worker, body: m.ToWorker) -> None:
        try:
            worker.channel.send(body)
        except ChannelError:  # its end is reported by its reader, who hears it now if not before
            worker.deaf = True
            worker.channel.hang_up()

    def _inspect(self) -> list[m.WorkerState]:
        return watch.inspect(self.scratch, [(w.pid, w.rank) for w in self.workers.values()])

    # -- what workers and the kernel say

    def _worker_said(self, event: Heard[m.FromWorker]) -> None:
        worker = self.by_channel.get(event.channel)
        message = event.message
        if message is None:
            if worker:
                self._worker_gone(worker, event.reason)
        elif worker:
            if isinstance(message, m.Outcome) and message.sampled:
                self.sampled.append(message.sampled)
            self.boss.send(m.From(worker.pid, message))
        elif isinstance(message, m.Hello) and message.pool == self.pool:
            event.channel.limit_sending(SEND_S)
            worker = Worker(message.pid, message.rank, event.channel)
            self.workers[worker.pid] = worker
            self.by_channel[event.channel] = worker
            self.boss.send(m.From(worker.pid, message))
        else:
            event.channel.hang_up()  # of an earlier pool, or it spoke before its Hello

    def _worker_gone(self, worker: Worker, reason: str) -> None:
        del self.by_channel[worker.channel]
        self.workers.pop(worker.pid, None)
        self.boss.send(m.Closed(worker.pid))
        how = self._how(worker.pid, "takes no messages" if worker.deaf else reason)
        oom = watch.oom_kills() > self.oom_kills
        phase, stack = watch.phase(self.scratch, worker.pid), watch.stack(self.scratch, worker.pid)
        self.boss.send(m.WorkerGone(worker.pid, worker.rank, phase, how, stack, oom))

    def _how(self, pid: int, reason: str) -> str:
        """How a worker ended; its channel closes a moment before the kernel tells its parent."""
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            if pid in self.exits:
                return self.exits[pid]
            process = processes.read(pid)
            if process is None and not any(c.process.pid == pid for c in self.commands):
                return "ended"  # its parent is a launcher, which alone learns how
            time.sleep(0.02)
        return "ended" if processes.read(pid) is None else reason

    def _child_ended(self, event: Ended) -> None:
        for index, command in enumerate(self.commands):
            if command.process.pid == event.pid:
                self.boss.send(m.LauncherGone(index, processes.how_it_ended(event.status), command.words()[-4096:]))

    def _report_states(self) -> None:
        for worker in self.workers.values():
            if (phase := watch.phase(self.scratch, worker.pid)) != worker.phase:
                worker.phase = phase
                self.boss.send(m.InPhase(worker.pid, phase))
            process = processes.read(worker.pid)
            if process and process.state == "T" and not worker.stopped:
                worker.stopped = True
                self.boss.send(m.Stopped(worker.pid, worker.rank, watch.phase(self.scratch, worker.pid)))

    def _reap(self) -> None:
        """The only place that collects children (a thread): sleeps in the kernel until one ends."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                self.children.wait()
                self.children.clear()
                continue
            self.exits[pid] = processes.how_it_ended(status)
            self.events.put(Ended(pid, status))

    def _tail(self) -> str:
        return "".join(c.words() for c in self.commands)[-TAIL_BYTES:]


def _leave(_number: int, _frame: object) -> NoReturn:
    """SIGTERM: end the pool, then leave."""
    sys.exit(143)


def main() -> int:
    """Entry point; the scratch folder with the key is the only argument, or ``-``: what a remote agent needs is on its input."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides; its end is our signal
    signal.signal(signal.SIGTERM, _leave)
    if sys.argv[1] == "-":
        return _remote(summons.read())
    scratch = Path(sys.argv[1])
    try:
        Agent(scratch, connect(str(scratch / "supervisor.sock"), (scratch / "key").read_bytes())).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _remote(told: m.Summons) -> int:
    """An agent that the supervisor started over the network."""
    if told.end:
        summons.end_earlier(hosts.scratch_folder(told.token))
        return 0
    os.environ.update(told.environment)
    boss = _called(told)
    name = told.name or os.environ.get("SLURMD_NODENAME", "") or hosts.own()
    scratch = summons.own_folder(told.token, name)
    os.environ |= {"CLUSTERGAUGE_SCRATCH": str(scratch), "CLUSTERGAUGE_TARGETS": "\n".join(told.targets)}
    key = scratch / "key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(32))
    try:
        Agent(scratch, boss, name).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _called(told: m.Summons) -> Channel:
    """The supervisor, by the first of its addresses that leads there."""
    said: list[str] = []
    for address in told.addresses:
        try:
            return connect(address, bytes.fromhex(told.key))
        except ChannelError as error:
            said.append(str(error))
    sys.exit(f"{hosts.own()}: {'; '.join(said)}")


if __name__ == "__main__":
    sys.exit(main())
