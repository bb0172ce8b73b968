"""What holds the ranks of a launch together: rank 0's seat, which knows the others, and what rank 0's session has of it.

It says a line to the session, when all seats are there or not, and hears one: the exit status with which all end, once the
session has.  It is a process of its own: where the session is killed, workers and seats still end.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from clustergauge import code
from clustergauge.control import Channel, Heard, Listener
from clustergauge.errors import UsageError
from clustergauge.launched import Launched, given
from clustergauge.placement import parse_cpus
from tests.bench import seats
from tests.bench.seats import BROKEN, GATHER_S, KEY, SOCKET, USAGE, End, Ended, Over, Refused, Sit, Start, tell

ONCE = "MPI workers ran in this launch before and ended: a launcher's processes join one world in their life (start pytest anew)"
END_S = 15.0
"""How long the hub may take to end its worker and itself."""


class Gathered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hub's line to the session.  ``cpus``: what all ranks together may use; ``problem``: why they are not together."""

    cpus: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _Status:
    """The session's last word, or that it left without one."""

    status: int


class Hub:
    """Knows the seats of all ranks, and has one world of workers started in them."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._ranks = ranks
        self._events: queue.Queue[Any] = queue.Queue()
        self._ears = seats.ears(self._events)
        self._seats: dict[int, Channel] = {}
        self._cpus: set[int] = set()
        self._asking: Channel | None = None
        self._used = False
        self._working: set[int] = set()
        self._listener = Listener(str(folder / SOCKET), (folder / KEY).read_bytes(), self._ears.add)
        threading.Thread(target=self._hear_session, name="session", daemon=True).start()
        self._session = os.getppid()

    def watch(self, launcher: int) -> None:
        """When the launcher is gone, tell the session to end; on kernels before 5.3, whose session goes on alone, don't."""
        with contextlib.suppress(AttributeError, OSError):
            select.select([os.pidfd_open(launcher)], [], [])
            os.kill(self._session, signal.SIGTERM)

    def _hear_session(self) -> None:
        line = sys.stdin.readline().strip()
        sys.stdin.read()  # to the session's own end: some launchers end all ranks when one has ended badly
        self._events.put(_Status(int(line) if line.isdecimal() else BROKEN))

    def gather(self, within_s: float) -> Gathered:
        """Wait for all seats."""
        until = time.monotonic() + within_s
        while len(self._seats) < self._ranks:
            try:
                heard = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                missing = sorted(set(range(self._ranks)) - set(self._seats))
                return Gathered(problem=f"of the {self._ranks} ranks {missing} did not come within {within_s:.0f} s")
            if isinstance(heard, _Status):
                self._events.put(heard)
                return Gathered(problem="the session is gone")
            if isinstance(heard.message, Sit):
                self._seats[heard.message.rank] = heard.channel
                self._cpus |= parse_cpus(heard.message.cpus)
        return Gathered(cpus=seats.format_cpus(self._cpus))

    def serve(self) -> int:
        """Until the session is over: its exit status."""
        while not isinstance(heard := self._events.get(), _Status):
            self._hear(heard)
        return heard.status

    def _hear(self, heard: Heard[seats.Said]) -> None:
        match heard.message:
            case Start() as asked:
                self._start(asked, heard.channel)
            case Ended() as ended:
                self._tell_end(ended)
            case End():
                self._tell_seats(End())
            case None if heard.channel is self._asking:  # killed: its workers must not outlive it
                self._asking = None
                self._tell_seats(End())
            case None:
                self._lose(heard.channel)
            case _:
                pass

    def _start(self, asked: Start, channel: Channel) -> None:
        why = ONCE if self._used else ""
        if asked.ranks != self._ranks:
            why = f"the launcher that started pytest started {self._ranks} ranks, not {asked.ranks}"
        if missing := self._ranks - len(self._seats):
            why = f"{missing} of the {self._ranks} ranks that started together are gone"
        if why:
            tell(channel, Refused(why))
            return
        self._used, self._asking, self._working = True, channel, set(self._seats)
        self._tell_seats(asked)

    def _lose(self, channel: Channel) -> None:
        for rank in [rank for rank, seat in self._seats.items() if seat is channel]:
            del self._seats[rank]
            self._tell_end(Ended(rank, 0, 1, "the process that its launcher started is gone, and its worker with it"))

    def _tell_end(self, ended: Ended) -> None:
        if self._asking and ended.rank in self._working:
            self._working.remove(ended.rank)
            tell(self._asking, ended)

    def _tell_seats(self, message: seats.Said) -> None:
        for seat in self._seats.values():
            tell(seat, message)

    def over(self, status: int) -> None:
        """No more: all ranks end with this status."""
        self._listener.close()
        self._tell_seats(Over(status))


def main(words: Sequence[str]) -> int:
    """Entry point of the process: the launch's folder, the launcher's process id, how many ranks there are."""
    folder, launcher, ranks = Path(words[0]), *map(int, words[1:])
    try:
        hub = Hub(folder, ranks)
        threading.Thread(target=hub.watch, args=(launcher,), name="launcher", daemon=True).start()
        own = threading.Thread(target=seats.sit, args=(folder, 0), name="seat", daemon=True)
        own.start()
        gathered = hub.gather(GATHER_S)
        with contextlib.suppress(BrokenPipeError):  # the session was killed meanwhile, as it will be heard
            sys.stdout.write(msgspec.json.encode(gathered).decode() + "\n")
            sys.stdout.flush()
        status = hub.serve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # before anybody is told: who is may begin anew, under the same name
    hub.over(status)
    own.join(END_S)
    return 0


# -- what the session has of it


class Ranks:
    """The ranks of this launch, as rank 0's session has them.  ``launcher``: the command that starts a worker in each."""

    def __init__(self, one: Launched) -> None:
        """Wait for all.  From now on this process has what it would have without a launcher, and all of their processors.

        Raises `UsageError` where they don't come together.
        """
        self.count = one.size
        launcher = seats.launcher(one)
        self._folder = seats.place(launcher)
        try:
            self._folder.mkdir(0o700)
        except FileExistsError:
            raise UsageError(f"{self._folder} is there already: is another pytest of this launch at work?") from None
        key = self._folder / KEY
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(32))
        self._hub = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.bench.hub", str(self._folder), str(launcher.pid), str(one.size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": code.python_path()},
            close_fds=False,  # what the launcher gave us is for its worker
            start_new_session=True,  # what a launcher does to our group must not keep it from ending the others
        )
        assert self._hub.stdout
        try:
            gathered = msgspec.json.decode(self._hub.stdout.readline() or b"{}", type=Gathered)
            if not gathered.cpus:
                raise UsageError(gathered.problem or "what holds the ranks of this launch together did not start")
        except BaseException as error:
            self.over(USAGE if isinstance(error, UsageError) else BROKEN)
            raise
        os.sched_setaffinity(0, parse_cpus(gathered.cpus))
        for name in given(os.environ):
            del os.environ[name]
        command = [sys.executable, "-P", "-m", "tests.bench.seats", str(self._folder)]
        self.launcher = f"{shlex.join(command)} -n {{ranks}}"

    def in_words(self, note: str) -> str:
        """What the supervisor notes of our launcher, by the name that the user knows."""
        named = note.replace(f"--launcher {self.launcher!r}", "the mpiexec that started pytest")
        return named.replace("leave out --launcher", "leave out that mpiexec")

    def over(self, status: int) -> None:
        """All ranks are to end with this exit status as soon as this process has."""
        assert self._hub.stdin
        with contextlib.suppress(OSError):
            self._hub.stdin.write(f"{status}\n".encode())
            self._hub.stdin.flush()
        if self._hub.poll() is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
