"""One node as the supervisor sees it: its agent's process, the channel to it, and what comes over it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clustergauge import code, messages as m, processes
from clustergauge.control import ChannelError, Listener
from clustergauge.conversation import SEND_S, Conversation, Died, Site
from clustergauge.model import Machine

AGENT_START_S = 30.0
AGENT_END_S = 14.0
"""How long an agent may take to end its pool and itself: its own limit for processes that will not go, and a margin."""
SOCKET_PATH = 107
"""Bytes of the longest path of a Unix socket (``sun_path`` in unix(7) has 108, the last is zero)."""
_SOCKET = "supervisor.sock"


class Node(Conversation):
    """This machine's agent, started by us.  `start` once, `close` once.  Raises `Died` if there is no place for its sockets."""

    def __init__(self) -> None:
        self.scratch = _scratch()
        super().__init__()
        key = self.scratch / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(32))
        self._listener = Listener(str(self.scratch / _SOCKET), key.read_bytes(), self._ears.add)
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self, targets: Sequence[str] = ()) -> Machine:
        """Start the agent; what it says of its machine, with what its preflight found (``targets``: folders of storage cases).

        Raises `Died` if it does not come up.
        """
        processes.adopt_orphans()
        with (self.scratch / "agent.log").open("wb") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "clustergauge.agent", str(self.scratch)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "CLUSTERGAUGE_SCRATCH": str(self.scratch),
                    "PYTHONPATH": code.python_path(),
                    "CLUSTERGAUGE_TARGETS": "\n".join(targets),
                },
                start_new_session=True,
            )
        until = time.monotonic() + AGENT_START_S
        while True:
            heard = self.inbox.next(time.monotonic() + 0.1)
            if heard and isinstance(heard.message, m.AgentHello):
                break
            if self._agent.poll() is not None or time.monotonic() > until:
                raise Died(f"the node agent did not start: {self._agent_words()}") from None
        if heard.message.code != code.digest():
            raise Died(f"the agent on {heard.message.host} runs other code ({heard.message.code}, here {code.digest()})")
        self._channel = heard.channel
        self._channel.limit_sending(SEND_S)
        self.site = Site(heard.message.machine, self.scratch)
        return heard.message.machine

    def close(self, ask: bool = True) -> list[str]:
        """End the agent and everything it started; what the kernel would not release, in words.

        ``ask``: the agent is told to leave in good order and given the time; otherwise it is killed at once.
        """
        survivors: list[str] = []
        try:
            if ask and self._channel and self._agent:
                with contextlib.suppress(ChannelError):
                    self._channel.send(m.Quit())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._agent.wait(AGENT_END_S)
        finally:
            if self._agent:
                mark = f"CLUSTERGAUGE_SCRATCH={self.scratch}"  # orphans that we inherited from the agent bear it too
                survivors = processes.end_all(lambda: processes.marked(os.getpid(), mark), grace_s=0.0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._agent.wait(1)
            self._listener.close()
            self._ears.close()
            if self._channel:
                self._channel.close()
            shutil.rmtree(self.scratch, ignore_errors=True)
        return survivors

    def _agent_state(self) -> str:
        agent = self._agent and processes.read(self._agent.pid)
        return f" ({agent.describe()})" if agent else ""

    def _agent_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.scratch / "agent.log").read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"


def _scratch() -> Path:
    """A folder for sockets, phases and stacks: where temporary files go, in /tmp if a socket's path would be too long there."""
    usual = ""
    try:
        usual = tempfile.gettempdir()
        longest = os.path.join(os.fsencode(usual), b"clustergauge-........", _SOCKET.encode())  # noqa: PTH118 (bytes)
        return Path(tempfile.mkdtemp(prefix="clustergauge-", dir=usual if len(longest) <= SOCKET_PATH else "/tmp"))  # noqa: S108
    except OSError as error:
        raise Died(f"no folder for sockets (TMPDIR {usual[:40] or 'and /tmp'}, {len(usual)} characters): {error}") from None
