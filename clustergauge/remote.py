"""Agents on other nodes: started by a remote command, called to order over TCP.

The supervisor listens; each agent is started by a command line of the user's choice (``ssh HOST …``, srun), reads one line on its
standard input (`messages.Summons`: where to call, and the key, which no command line and no environment ever holds), calls back,
and proves that it has the key.  No file system is shared, but the checkout must be on every node.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import secrets
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from clustergauge import addresses, code, hosts, messages as m, valid
from clustergauge.control import Channel, ChannelError, Listener, decode
from clustergauge.conversation import SEND_S, Conversation, Died, Site
from clustergauge.errors import UsageError
from clustergauge.launch import Install, Means, passed_on
from clustergauge.logs import Logs
from clustergauge.model import Machine
from clustergauge.output import quote

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=10 {host}"
"""How agents are started unless the user says otherwise: never asks for a password."""
SRUN = (
    *("--ntasks-per-node=1", "--overlap", "--wait=0", "--kill-on-bad-exit=0", "--no-kill"),
    *("--mpi=none", "--cpu-bind=none", "--input=all"),
)
"""srun(1): one task a node beside other steps, none ended because another was, no MPI, all processors, standard input to all."""
START_S = 60.0
"""How long an agent may take to call and to describe its node."""
END_S = 14.0
"""How long it may take to end its pool and itself."""
_CANNOT_CALL = "cannot connect to"
"""How `control.connect` begins to say so."""
_IN_ORDER = "closed by the other side"
"""How `control` words the end of a channel whose other side left, rather than was cut off."""


def is_srun(command: str) -> bool:
    """Whether a command line begins with srun, which starts on all nodes at once."""
    with contextlib.suppress(ValueError):
        return Path(next(iter(shlex.split(command)), "")).name == "srun"
    return False


def way(remote: str, launcher: str) -> str:
    """How agents are started: as the user says; by srun where that starts the ranks; by ssh."""
    return remote or (shlex.quote(shlex.split(launcher)[0]) if is_srun(launcher) else SSH)


def remote_words(template: str, host: str, command: str) -> list[str]:
    """The command line that runs ``command`` (shell text, as ssh takes it) on ``host``.  Raises `UsageError`."""
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"--remote {template!r} is no command ({error}): close its quotes") from None
    if not words or not any("{host}" in word for word in words):
        raise UsageError(f"--remote {template!r} must say {{host}} where the host's name goes, as in {SSH!r}")
    words = [word.replace("{host}", host) for word in words]
    if any("{command}" in word for word in words):
        return [word.replace("{command}", command) for word in words]
    return [*words, command]


@dataclass
class Desk:
    """Where remote agents call.  One a run; `close` after the last of its nodes.

    ``remote``: the command line that starts an agent.  ``address``: of this machine as the nodes reach it; empty: by the route.
    """

    names: Sequence[str]
    remote: str = SSH
    address: str = ""
    install: Install = field(default_factory=Install)
    start_s: float = START_S

    def __post_init__(self) -> None:
        """Listen.  Raises `UsageError` for a remote command that is none, where no address leads here, as `passed_on` does."""
        if not is_srun(self.remote):
            remote_words(self.remote, "host", "true")
        self._environment = passed_on(os.environ)
        self._own = [self.address.strip("[]")] if self.address else addresses.towards(self.names[:8])
        if not self._own:
            raise UsageError(
                f"it cannot be told by which address {hosts.compress(self.names)[:200]} reach this machine, for their names lead "
                "nowhere here (aliases of ssh?): say it with --address (127.0.0.1 only where all of them are this machine)"
            )
        self.token = secrets.token_hex(4)
        self.pools = itertools.count(1)
        """Numbers of pools: workers are found by them (`spread.orders`), so no two of a run have the same."""
        self._key = secrets.token_bytes(32)
        self._logs = Logs()
        self._calls: dict[str, queue.Queue[tuple[Channel, m.AgentHello]]] = {name: queue.Queue() for name in self.names}
        self._lock = threading.Lock()
        self._together: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._summoned: set[str] = set()
        self._listener = self._listening()

    def means(self, launcher: str, python_path: Sequence[str]) -> Means:
        """How workers are started on the nodes."""
        return Means(launcher, tuple(python_path), self.install, self.remote, self.token)

    def _listening(self) -> Listener:
        """At the one address that the user named, if it is of this machine and no name; at all of them otherwise."""
        if addresses.is_number(self.address.strip("[]")):
            with contextlib.suppress(OSError):  # another machine's, which passes it on
                return Listener((self._own[0], 0), self._key, self._welcome, self.start_s)
        return Listener(("", 0), self._key, self._welcome, self.start_s)

    def summon(self, name: str, targets: list[str], end: bool = False) -> subprocess.Popen[bytes]:
        """Start the agent of a node (srun: at the first call those of all); the command that does.  Raises `Died`.

        ``end``: instead of serving, it ends what an earlier one left.
        """
        if not is_srun(self.remote):
            return self._start(remote_words(self.remote, name, shlex.join(self._agent())), name, targets, end)
        with self._lock:
            first, again = self._together is None, name in self._summoned or end
            self._summoned.add(name)
            if first and not end:
                self._together = self._start(self._srun(self.names), "", targets, end)
            if self._together is not None and not again:
                return self._together
        return self._start(self._srun([name]), name, targets, end)

    def await_call(self, name: str, process: subprocess.Popen[bytes]) -> tuple[Channel, m.AgentHello]:
        """The agent's call.  Raises `Died` when its command has ended or the time is over."""
        until = time.monotonic() + self.start_s
        while True:
            ended = process.poll()
            with contextlib.suppress(queue.Empty):
                return self._calls[name].get(timeout=0.0 if ended is not None else 0.1)
            if ended is not None:
                raise Died(f"its agent did not start: the remote command exited with {ended}{self._said(name)}")
            if time.monotonic() > until:
                raise Died(f"its agent did not call within {self.start_s:.0f} s{self._said(name)}")

    def words(self, name: str) -> str:
        """What the remote command of a node printed, or that of all of them."""
        return self._logs.words(name) or self._logs.words("")

    def _said(self, name: str) -> str:
        """Its last words, and what to do where they are that it cannot call us."""
        words = quote(self.words(name))
        told = f": it was told to call {', '.join(self._own)}; --address says by which name or address nodes reach this machine"
        return words + (told if _CANNOT_CALL in words else "")

    def close(self) -> None:
        """Take no more calls and end the remote commands that are left."""
        self._listener.close()
        until = time.monotonic() + 3.0
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            if process.poll() is None:
                _end(process)
        self._logs.close()

    def _agent(self) -> list[str]:
        return ["env", f"PYTHONPATH={self.install.root}", self.install.python, "-P", "-m", "clustergauge.agent", "-"]

    def _srun(self, names: Sequence[str]) -> list[str]:
        nodes = len(names)
        count = [f"--nodes={nodes}", f"--ntasks={nodes}", f"--nodelist={hosts.compress(names)}"]
        return [*shlex.split(self.remote), *count, *SRUN, *self._agent()]

    def _start(self, words: list[str], name: str, targets: list[str], end: bool) -> subprocess.Popen[bytes]:
        told = m.Summons(
            self._key.hex(),
            [(own, int(self._listener.address[1])) for own in self._own],
            self.token,
            name,
            targets,
            self._environment,
            end,
        )
        try:
            with self._logs.open(name) as log:
                process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise Died(f"cannot start {words[0]}: {error.strerror or error}") from None
        self._started.append(process)
        # a command that never reads (a password asked for) holds up no more than itself, however much it is told
        threading.Thread(target=_tell, args=(process, msgspec.json.encode(told) + b"\n"), daemon=True).start()
        return process

    def _welcome(self, channel: Channel) -> None:
        """An agent holds the key; its first words say which node it is.  In the thread of its handshake."""
        try:
            channel.sock.settimeout(self.start_s)
            bodies: list[bytes] = []
            while not bodies:
                bodies = channel.receive()
            channel.sock.settimeout(None)
            hello = decode(bodies[0], msgspec.json.Decoder(m.AgentHello))
            self._calls[hello.name].put((channel, hello))
        except (ChannelError, OSError, KeyError):
            channel.close()


def _tell(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Write a line to a command's standard input, and close it."""
    stdin = process.stdin
    assert stdin
    for step in (lambda: stdin.write(line), stdin.close):
        with contextlib.suppress(OSError):  # it has ended: `await_call` says how
            step()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children: it began a group of processes of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


class RemoteNode(Conversation):
    """The agent of another node.  `start` once, `close` once."""

    def __init__(self, desk: Desk, name: str) -> None:
        super().__init__()
        self.name = name
        self.who = f"the agent of {name}"
        self._desk = desk
        self._targets: list[str] = []

    def start(self, targets: Sequence[str] = ()) -> Machine:
        """See `Conversation`; the same for an agent that runs other code."""
        self._targets = list(targets)
        channel, hello = self._desk.await_call(self.name, self._desk.summon(self.name, self._targets))
        self._channel = channel
        if hello.code != code.digest():
            self.close()
            raise Died(
                f"it runs other code ({hello.code}, here {code.digest()}): make {self._desk.install.root} there the same as "
                f"{code.ROOT} here, or name another checkout with --remote-root"
            )
        try:
            machine = self._believed(hello)
        except valid.Invalid as invalid:
            self.close()
            raise Died(f"what its agent says of it cannot be kept: {invalid}") from None
        channel.limit_sending(SEND_S)
        self._ears.add(channel)
        free = {target: hello.free[target] for target in self._targets if target in hello.free}
        self.site = Site(machine, Path(hello.scratch), self.name, hello.address, hello.interface, free)
        return machine

    def _believed(self, hello: m.AgentHello) -> Machine:
        """Its machine under the name by which we reach it: what it calls itself identifies nobody, and is kept beside it.

        Raises `valid.Invalid` for a description that no run can keep, and for an address that is none: others are to call there.
        """
        if not addresses.is_number(hello.address):
            raise valid.Invalid(f"address {valid.shown(hello.address)} is none")
        host, own = self.name.rpartition("@")[2], hello.machine.host
        beside = own if own != host and hosts.is_name(own) else ""
        machine = valid.clean(msgspec.structs.replace(hello.machine, host=host, node=self.name, calls_itself=beside))
        valid.check_machine(machine)
        return machine

    def close(self, ask: bool = True) -> list[str]:
        """End the agent, which ends what it started; one that is silent or does not go is killed by another, sent after it."""
        if self._channel is None:
            self._ears.close()
            return []
        gone = self._told_to_quit and _IN_ORDER in self._ended
        self._ears.queue = self.inbox.heard  # a team may have had them
        if ask and not gone:
            with contextlib.suppress(ChannelError):
                self._channel.send(m.Quit())
                gone = self.site is None or self._gone(time.monotonic() + END_S)
        self._channel.hang_up()
        self._ears.close()
        self._channel.close()
        if gone:
            return []
        try:
            self._desk.summon(self.name, self._targets, end=True).wait(END_S)
        except (Died, subprocess.TimeoutExpired):
            return [f"{self.name} cannot be reached: its agent ends by itself once it finds the connection gone"]
        return []

    def _gone(self, until: float) -> bool:
        """Whether the agent closes its end in time."""
        while (heard := self.inbox.next(until)) is not None:
            if heard.message is None and heard.channel is self._channel:
                return _IN_ORDER in heard.reason
        return False

    def _agent_words(self) -> str:
        said = quote(self._desk.words(self.name))
        return said.strip(" ()") or "it said nothing"
