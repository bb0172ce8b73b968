"""MPICH's launcher between nodes that have no IPv4 between them: it speaks nothing else.

The launcher starts a proxy on each node by a remote command, and the proxies call back.  With a relay on either side they call no
further than the loopback of their own node, and the bytes go by the standard input and output of the remote command.

    python -m clustergauge.relay near REACH [-OPTION…] HOST COMMAND…     where the launcher is, called by it in place of ssh
    python -m clustergauge.relay far COMMAND                             on the other node, by the remote command
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import cast

from clustergauge.code import ROOT

_CALLS = re.compile(r"(--control-port) \S+?:(\d+)\b")
"""Where a proxy of MPICH's launcher is told to call."""
_BEGIN = b"clustergauge-relay\n"
"""What comes first: a shell may have printed something before."""
_HERE = "127.0.0.1"
GRACE_S = 10.0
"""How long a proxy may live on when nobody hears it any more."""


def near(reach: str, words: Sequence[str]) -> int:
    """Have the command run on the other node, its call relayed to the launcher; the exit code of the program ``reach``."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest.pop(0)
    command = " ".join(rest[1:])
    call = _CALLS.search(command)
    if not call:
        sys.exit(f"{reach}: no command of MPICH's launcher: {command[:200]}")
    there = shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-m", "clustergauge.relay", "far", command])
    process = subprocess.Popen([reach, rest[0], there], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    told, heard = cast("io.BufferedWriter", process.stdin), cast("io.BufferedReader", process.stdout)
    while (line := heard.readline(1 << 16)) != _BEGIN:
        if not line:
            return process.wait()
        sys.stderr.buffer.write(line)
    with socket.create_connection((_HERE, int(call[2]))) as launcher:
        _in_background(lambda: _pump(launcher.recv, _writer(told.fileno())), told.close)
        _pump(heard.read1, launcher.sendall)
        with contextlib.suppress(OSError):
            launcher.shutdown(socket.SHUT_RDWR)
        return process.wait()


def far(command: str) -> int:
    """Run the proxy (shell text), and relay its call; its exit code."""
    with socket.create_server((_HERE, 0)) as listener:
        listener.settimeout(0.1)
        port = listener.getsockname()[1]
        words = _CALLS.sub(rf"\1 {_HERE}:{port}", command)
        process = subprocess.Popen(["/bin/sh", "-c", words], stdin=subprocess.DEVNULL, stdout=sys.stderr)
        sock = _accepted(listener, process)
    _writer(1)(b"\n" + _BEGIN)
    if sock is None:
        return process.wait()

    def end() -> None:
        """Nothing more comes for the proxy."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)  # what it still says may be on its way
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()

    with sock:
        _in_background(lambda: _pump(lambda size: os.read(0, size), sock.sendall), end)
        _pump(sock.recv, _writer(1))
        return process.wait()


def _accepted(listener: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket | None:
    """The proxy's call; ``None`` if it ended without."""
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            sock = listener.accept()[0]
            sock.settimeout(None)
            return sock
    return None


def _pump(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    """All bytes from one end to the other, until either is closed."""
    with contextlib.suppress(OSError):
        while data := read(1 << 16):
            write(data)


def _in_background(work: Callable[[], None], then: Callable[[], None]) -> None:
    def both() -> None:
        work()
        with contextlib.suppress(OSError):
            then()

    threading.Thread(target=both, daemon=True).start()


def _writer(descriptor: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    return write


def main() -> int:
    """Entry point."""
    side, *words = sys.argv[1:]
    return near(words[0], words[1:]) if side == "near" else far(words[0])


if __name__ == "__main__":
    sys.exit(main())
