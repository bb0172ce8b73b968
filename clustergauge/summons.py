"""How an agent comes to be on a node that is not the supervisor's: what it reads first, its folder, what was there before it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import msgspec

from clustergauge import hosts, processes
from clustergauge.messages import Summons

READ_S = 30
"""How long the line on standard input may take to come."""


def read() -> Summons:
    """The one line on standard input.  Raises ``ValueError`` for what is none; SIGALRM ends a process to which nothing comes."""
    signal.alarm(READ_S)
    line = sys.stdin.buffer.readline(1 << 20)
    signal.alarm(0)
    return msgspec.json.decode(line, type=Summons)


def own_folder(token: str, name: str) -> Path:
    """This agent's scratch folder, made afresh; what an earlier agent of the same node left here is ended first.

    Ends this process where the run knows this machine by another name already.
    """
    folder = hosts.scratch_folder(token)  # no secret, for MPI's command line bears the token: another user may have made it
    for _ in range(2):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if os.path.lexists(folder) and not _is_ours(folder):
                sys.exit(f"{hosts.own()}: {folder} belongs to another user")
            other = _name_in(folder)
            if other != name:
                sys.exit(f"{hosts.own()}: the same machine as {other}")
            end_earlier(folder)
            continue
        (folder / "agent.name").write_text(name)
        (folder / "agent.pid").write_text(str(os.getpid()))
        return folder
    sys.exit(f"{hosts.own()}: cannot make {folder}")


def _is_ours(folder: Path) -> bool:
    """Whether this user made it: everybody can make a folder of that name, and say in it what is to be killed."""
    with contextlib.suppress(OSError):
        return folder.lstat().st_uid == os.geteuid() and not folder.is_symlink()
    return False


def _name_in(folder: Path) -> str:
    """Of the node whose agent has the folder; it may be writing it just now."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if name := (folder / "agent.name").read_text():
                return name
        time.sleep(0.02)
    return ""


def end_earlier(folder: Path) -> None:
    """Kill an agent that was stopped or hung, and all of its workers; remove its folder, if it is ours."""
    if not _is_ours(folder):
        return
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "agent.pid").read_text())
        if b"clustergauge.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
            family = processes.descendants(pid)
            os.kill(pid, signal.SIGKILL)
            for process in family:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGKILL)
    mark = f"CLUSTERGAUGE_SCRATCH={folder}"
    if folder.exists():
        processes.end_all(lambda: processes.bearing(mark), grace_s=0.0)
        shutil.rmtree(folder, ignore_errors=True)
