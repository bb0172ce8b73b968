"""Processes of this node: who descends from whom, in what state, and ending all of them for certain.

Process groups and sessions are not enough: MPI launchers put their ranks into sessions of their own.  A process that calls
`adopt_orphans` stays the ancestor of everything it started, however often it forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end."""


@dataclass(frozen=True)
class Process:
    """One process; ``start`` (clock ticks since boot) tells it from a later one with the same number."""

    pid: int
    parent: int
    state: str
    start: int
    name: str

    def describe(self) -> str:
        """``pid 12 python, state D in nfs_wait``."""
        where = ""
        with contextlib.suppress(OSError):
            where = Path(f"/proc/{self.pid}/wchan").read_text().strip("0\n")
        return f"pid {self.pid} {self.name}, state {self.state}" + (f" in {where}" if where else "")


def read(pid: int) -> Process | None:
    """The process, or ``None`` if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0], int(fields[19]), name)


def descendants(root: int) -> list[Process]:
    """All living descendants of ``root``, parents before children; zombies are left out."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := read(int(entry.name))):
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [root]
    while queue:
        for process in children.get(queue.pop(), []):
            queue.append(process.pid)
            if process.state != "Z":
                found.append(process)
    return found


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant (Linux; elsewhere nothing happens)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing happens)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def how_it_ended(status: int) -> str:
    """``killed by SIGKILL``, ``exited with 3``, from a wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"killed by signal {number}"
    return f"exited with {os.WEXITSTATUS(status)}"


def marked(root: int, mark: str) -> list[Process]:
    """The living descendants of ``root`` whose environment at their start held ``mark``."""
    found: list[Process] = []
    for process in descendants(root):
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def bearing(mark: str) -> list[Process]:
    """All living processes of this user, but this one, whose environment at their start held ``mark``: not only descendants."""
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    process = read(int(entry.name))
                    found += [process] if process and process.state != "Z" else []
    return found


def end_all(find: Callable[[], list[Process]], grace_s: float, limit_s: float = 8.0) -> list[str]:
    """End every process that ``find`` finds: SIGTERM, after ``grace_s`` SIGKILL, also those that appear meanwhile.

    The caller reaps its children elsewhere; zombies count as ended.  Returns descriptions of those the kernel has not released
    after ``limit_s``.
    """
    started = time.monotonic()
    asked: set[tuple[int, int]] = set()
    while True:
        left = find()
        waited = time.monotonic() - started
        if not left:
            return []
        if waited > limit_s:
            return [p.describe() for p in left]
        for process in left:
            kill = waited >= grace_s
            if kill or (process.pid, process.start) not in asked:
                asked.add((process.pid, process.start))
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        time.sleep(0.02)


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """No signal that asks us to end is heard inside: we are about to."""
    before = [signal.signal(number, signal.SIG_IGN) for number in _ASKING]
    try:
        yield
    finally:
        for number, handler in zip(_ASKING, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Generator[Callable[[], None]]:
    """Signals that ask us to end are heard at its end, or when what it yields is called: whichever is first.

    By handlers, not by a mask: that would be one thread's, and inherited by what is started inside.
    """
    heard: list[int] = []
    handled = {number: signal.getsignal(number) for number in _ASKING}
    before = {number: handler for number, handler in handled.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, lambda number, _: heard.append(number))

    def let_go() -> None:
        while before:
            signal.signal(*before.popitem())
        if heard:
            signal.raise_signal(heard.pop())

    try:
        yield let_go
    finally:
        let_go()
