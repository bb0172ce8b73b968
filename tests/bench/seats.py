"""Pytest that mpiexec started several times: rank 0 is the session, every rank is a seat for one MPI worker.

Only what a launcher started, and what that starts, can join its world.  So the workers of MPI cases are children of the ranks:

    mpiexec ─┬─ rank 0: pytest ─── hub ─── worker 0          (a hub is rank 0's seat, too: see `hub`)
             └─ rank 1: a seat ─── worker 1
    pytest ── agent ── python -m tests.bench.seats FOLDER -n 2 WORKER …

The last is to the agent what mpiexec is otherwise: it has every seat start the worker, ends when all have ended, and ends them
when it is told to.  All this goes over the hub's socket, in a folder of ours alone whose name all ranks can work out.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from clustergauge import processes
from clustergauge.control import Channel, ChannelError, Ears, connect
from clustergauge.errors import UsageError
from clustergauge.launched import Launched, given
from clustergauge.placement import format_cpus

SOCKET, KEY = "hub.sock", "key"
GATHER_S = 60.0
"""How long ranks wait for each other at the start."""
GRACE_S = 1.0
"""Between asking a worker to end and killing it: less than its agent waits before it kills what started it."""
BROKEN, USAGE = 3, 4
"""Exit statuses as pytest has them: for what went wrong inside (the session of a seat is gone), and for the user's mistake."""


_INSTEAD = {"mpi4py": "tests.bench.unaborted"}
"""What runs a worker's module in a seat, in place of what does under an mpiexec of its own."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """What hub, seats and `main` say to each other."""


class Sit(_Message, frozen=True):
    """A seat is there.  ``cpus``: the processors that the launcher lets it have, as a kernel list."""

    rank: int
    cpus: str


class Start(_Message, frozen=True):
    """Start a worker in every seat.  ``output``: the process to whose standard output it is to write.

    The environment in bytes: it need not be text.
    """

    ranks: int
    command: list[str]
    environment: list[tuple[bytes, bytes]]
    folder: str
    output: int


class End(_Message, frozen=True):
    """End the workers."""


class Ended(_Message, frozen=True):
    """A worker ended.  ``status``: its exit code, or the negative number of the signal that killed it.  ``why``: in words, where
    it never was, or its seat is gone."""

    rank: int
    pid: int
    status: int
    why: str = ""


class Refused(_Message, frozen=True):
    """No worker is started, and why."""

    why: str


class Over(_Message, frozen=True):
    """The session ended with this exit status: every rank is to end with it."""

    status: int


Said = Sit | Start | End | Ended | Refused | Over


def ears(events: queue.Queue[Any]) -> Ears[Said]:
    """What is said over channels, put on a queue."""
    return Ears(msgspec.json.Decoder(Said), events)


def tell(channel: Channel, message: Said) -> None:
    """Say it; who is gone need not hear it, and whoever reads the channel hears that."""
    with contextlib.suppress(ChannelError):
        channel.send(message)


def launcher(one: Launched) -> processes.Process:
    """What started the ranks on this host: the first ancestor that is none of them.  Raises `UsageError` if it is gone.

    A script may stand between: what a rank starts has the variable that says which rank it is.
    """
    mark = f"{one.by}={one.rank}".encode()
    process = processes.read(os.getppid())
    while process and mark in _environment(process.pid):
        process = processes.read(process.parent)
    if not process:
        raise UsageError("what started this rank is gone")
    return process


def place(started_by: processes.Process) -> Path:
    """The folder of a launch on this host."""
    return Path("/tmp") / f"clustergauge-ranks-{os.geteuid()}-{started_by.pid}-{started_by.start}"


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return []


def reach(folder: Path, within_s: float) -> Channel:
    """A channel to the hub, as soon as there is one.  Raises `UsageError` where none comes, or the folder is not ours alone."""
    until = time.monotonic() + within_s
    while True:
        try:
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
                raise UsageError(f"{folder} is not a folder of this user alone: take it away")
            return connect(str(folder / SOCKET), (folder / KEY).read_bytes())
        except (OSError, ChannelError) as error:
            if time.monotonic() > until:
                raise UsageError(f"rank 0 was not met within {within_s:.0f} s: {error}") from None
        time.sleep(0.05)


def sit(folder: Path, rank: int, within_s: float = GATHER_S) -> int:
    """Be a seat until the session is over: the exit status to end with.  Raises as `reach` does."""
    channel = reach(folder, within_s)
    processes.adopt_orphans()
    events: queue.Queue[Any] = queue.Queue()
    tell(channel, Sit(rank, format_cpus(os.sched_getaffinity(0))))
    ears(events).add(channel)
    try:
        while True:
            match events.get().message:
                case Start() as asked:
                    _start(asked, rank, channel)
                case End():
                    _end_worker()
                case Over(status):
                    return status
                case None:  # killed: a launcher may end all the others when it sees this rank end, and nobody would tidy up
                    shutil.rmtree(folder, ignore_errors=True)
                    return BROKEN
                case _:
                    pass
    finally:
        _end_worker()


def _start(asked: Start, rank: int, channel: Channel) -> None:
    """The worker gets the environment that its agent meant for it, and of ours what the launcher told us: handles, too."""
    try:
        with Path(f"/proc/{asked.output}/fd/1").open("wb") as output:
            process = subprocess.Popen(
                asked.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(asked.environment) | {os.fsencode(k): os.fsencode(v) for k, v in given(os.environ).items()},
                cwd=asked.folder,
                close_fds=False,  # ours are not inherited anyway (PEP 446)
                start_new_session=True,  # whatever it does to its group is not done to us
            )
    except (OSError, ValueError) as error:
        tell(channel, Ended(rank, 0, 1, f"cannot start {asked.command[0]}: {getattr(error, 'strerror', error)}"))
        return

    def tell_end() -> None:
        tell(channel, Ended(rank, process.pid, process.wait()))

    threading.Thread(target=tell_end, name="worker", daemon=True).start()


def _end_worker() -> None:
    processes.end_all(lambda: processes.descendants(os.getpid()), GRACE_S)


@dataclass
class _Launch:
    """What is known of the workers while they live."""

    channel: Channel
    events: queue.Queue[Any]
    left: int
    code: int = 0

    def follow(self) -> int:
        """Until all have ended: the exit code.  The first that ends badly is told, and takes the others with it."""
        while self.left:
            match self.events.get().message:
                case Ended(rank, pid, status, why):
                    self.left -= 1
                    if status and not self.code:
                        self.code = 128 - status if status < 0 else status
                        _say(f"rank {rank}, {why or f'PID {pid} {_how(status)}'}")
                        tell(self.channel, End())
                case Refused(why):
                    _say(why)
                    return 1
                case None:
                    _say("the process that held the ranks together is gone")
                    return 1
                case _:
                    pass
        return self.code


def _how(status: int) -> str:
    """In words that `clustergauge.pool` knows from MPICH's launcher."""
    if status < 0:
        return f"EXIT STRING: {signal.strsignal(-status)} (signal {-status})"
    return f"EXIT CODE: {status}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(words: Sequence[str]) -> int:
    """``FOLDER -n RANKS COMMAND …``: have a command started in every seat.  Ends when all that was started has ended."""
    folder, _, ranks, *command = words
    command = [_INSTEAD.get(word, word) for word in command]
    heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in heeded:
        signal.signal(number, signal.default_int_handler)
    events: queue.Queue[Any] = queue.Queue()
    try:
        channel = reach(Path(folder), 0.0)
        ears(events).add(channel)
        launch = _Launch(channel, events, int(ranks))
        try:
            channel.send(Start(int(ranks), command, list(os.environb.items()), str(Path.cwd()), os.getpid()))
            return launch.follow()
        except KeyboardInterrupt:
            with processes.undisturbed():
                tell(channel, End())
                launch.follow()
                return 128 + signal.SIGTERM
    except (UsageError, ChannelError) as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
