"""A worker process: connects to its agent, makes its world, and executes one case after the other.

``python -m clustergauge.worker`` (``python -m mpi4py -m clustergauge.worker`` under MPI).  Everything it needs to know comes from
the environment that its agent gave it (``CLUSTERGAUGE_*``) and from the channel.  What libraries print goes to a pipe that the
agent drains; results go over the channel only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import mmap
import os
import platform
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from clustergauge import code, hosts, launch, messages as m, placement, pools, processes, turnstile
from clustergauge.control import Channel, ChannelError, connect, decode
from clustergauge.execute import execute
from clustergauge.model import Json
from clustergauge.probe import Probe, probes_in
from clustergauge.world import Mpi, Serial, TorchDistributed, World

OWN_FOLDERS = ("kernels", "collectives", "storage_io")
"""Names that other packages use too: what is imported under them must come from our checkout."""
_PHASE_BYTES = 64
_T = TypeVar("_T", m.Gathered, m.Shared)


class Phase:
    """What this process is doing, in memory shared with the agent: noting it costs no system call and wakes nobody."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"start".ljust(_PHASE_BYTES, b"\0"))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _PHASE_BYTES)

    def __call__(self, text: str) -> None:
        """Note a new phase."""
        self._memory[:] = text.encode("ascii", "replace")[:_PHASE_BYTES].ljust(_PHASE_BYTES, b"\0")


class Mouth:
    """The worker's side of the channel; also the `Hub` of its world."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.rank = 0
        self.job = 0
        self._heard: queue.SimpleQueue[m.ToWorker] = queue.SimpleQueue()
        self._decoder: msgspec.json.Decoder[m.ToWorker] = msgspec.json.Decoder(m.ToWorker)
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def _listen(self) -> None:
        """Blocked in the kernel while a case runs.  When the agent is gone there is nobody left to work for."""
        try:
            while True:
                for body in self.channel.receive():
                    self._heard.put(decode(body, self._decoder))
        except ChannelError:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3.0)
            os._exit(1)

    def hear(self) -> m.ToWorker:
        """Wait for the next message."""
        return self._heard.get()

    def say(self, message: m.FromWorker) -> None:
        """Send a message to the supervisor."""
        self.channel.send(message)

    def say_so_far(self, outcome: m.Outcome) -> None:
        """What the case in hand has measured since this was called last."""
        self.say(m.SoFar(outcome, self.job))

    def gather(self, value: Json) -> list[Json] | None:
        """See `world.Hub`."""
        self.say(m.Gather(value, self.job))
        return self._answer(m.Gathered).values if self.rank == 0 else None

    def from_root(self, value: Json) -> Json:
        """See `world.Hub`."""
        if self.rank == 0:
            self.say(m.Share(value, self.job))
            return value
        return self._answer(m.Shared).value

    def _answer(self, kind: type[_T]) -> _T:
        """The answer within this job.  Told to leave meanwhile, this process does, by way of every ``finally``."""
        while True:
            message = self.hear()
            if isinstance(message, m.Leave):
                sys.exit(0)
            if isinstance(message, kind) and message.job == self.job:
                return message


def launcher_rank() -> int:
    """This process's rank as its launcher's environment says (MPICH, Open MPI, Slurm, our own), or −1."""
    for name in ("CLUSTERGAUGE_RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[name])
    return -1


def make_world(go: m.Go, mouth: Mouth) -> World:
    """The world the supervisor asked for."""
    mouth.rank = go.rank
    if go.world == "mpi":
        world = Mpi(mouth)
        mouth.rank = world.rank
        return world
    if go.world == "torch":
        return TorchDistributed(mouth, go.rank, go.size, go.device, go.timeout_s, go.address)
    if go.device.startswith("cuda"):  # from a folder on the network it may take long: not to count against the first case
        with contextlib.suppress(ImportError, OSError):  # whoever needs it says so
            importlib.import_module("torch")
    return Serial()


def load_probe(module_name: str, probe_name: str) -> Probe:
    """The probe, from our own checkout.  Raises ``ImportError`` if another package of that name came first."""
    module = importlib.import_module(module_name)
    top = module_name.partition(".")[0]
    if top in OWN_FOLDERS and not Path(module.__file__ or "").resolve().is_relative_to(code.ROOT / top):
        raise ImportError(f"{module_name} was imported from {module.__file__}, not from {code.ROOT}")
    for probe in probes_in(module):
        if probe.name == probe_name:
            return probe
    raise ImportError(f"{module_name} defines no probe {probe_name!r}")


def serve(mouth: Mouth, world: World, phase: Callable[[str], None], scratch: Path) -> None:
    """Execute cases until told to leave.  What was meant for this rank within a case that it has left is not for it any more."""
    turns = turnstile.asked_for()
    while True:
        phase("idle")
        message = mouth.hear()
        if isinstance(message, m.Leave):
            return
        if not isinstance(message, m.Job):
            continue
        mouth.job = message.number
        phase("import")
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=scratch))
        try:
            probe = load_probe(message.module, message.probe)
            gc.freeze()  # libraries stay: to look through them for garbage takes a fifth of a second, several times a case
            outcome = execute(message, probe, world, folder, phase, mouth.say_so_far, turns)
        except ImportError as error:
            outcome = m.Outcome("error", f"cannot import the probe: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if not outcome.broken:  # such a process is replaced, and with it goes what it holds
            phase("empty pools")
            outcome = _emptied(outcome)
        phase("report")
        mouth.say(msgspec.structs.replace(outcome, job=message.number))


def _emptied(outcome: m.Outcome) -> m.Outcome:
    """The outcome, once libraries have given back the memory of the case; where they cannot, this process is to be replaced."""
    try:
        pools.empty()
    except Exception:  # noqa: BLE001 (whatever a broken device raises)
        return msgspec.structs.replace(outcome, broken=True)
    return outcome


def bind(rank: int, cpus: str = "") -> str:
    """Keep to this rank's processors: ``cpus``, or what ``CLUSTERGAUGE_CPUS`` has for it (a kernel list a rank, ``;`` between).

    Returns the processors that it really keeps to now, as a kernel list: a control group of the launcher may forbid ours.
    """
    lists = os.environ.get("CLUSTERGAUGE_CPUS", "").split(";")
    wanted = placement.parse_cpus(cpus or (lists[rank] if 0 <= rank < len(lists) else ""))
    if wanted and os.sched_getaffinity(0) != wanted:
        for thread in Path("/proc/self/task").iterdir():  # those that a library started meanwhile, too
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), wanted)
    return placement.format_cpus(os.sched_getaffinity(0))


def _leave(_number: int, _frame: object) -> NoReturn:
    """SIGTERM: leave by way of every ``finally``, so that the case cleans up."""
    sys.exit(143)


def main() -> int:
    """Entry point of the process."""
    sys.path.extend(filter(None, os.environ.get("CLUSTERGAUGE_PATH", "").split(os.pathsep)))
    given = os.environ.get("CLUSTERGAUGE_SCRATCH")  # not where another node's launcher started us
    scratch = Path(given) if given else hosts.scratch_folder(os.environ["CLUSTERGAUGE_RUN"])
    os.environ.setdefault("TMPDIR", str(scratch))
    phase = Phase(scratch / f"phase.{os.getpid()}")
    stacks = (scratch / f"stack.{os.getpid()}").open("w")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    signal.signal(signal.SIGTERM, _leave)
    processes.die_with_parent()
    rank = launcher_rank()
    bind(rank)
    phase("connect")
    mouth = Mouth(connect(str(scratch / "agent.sock"), (scratch / "key").read_bytes()))
    host = hosts.own()
    pool = int(os.environ.get("CLUSTERGAUGE_POOL", "-1"))
    mouth.say(m.Hello(pool, os.getpid(), host, rank, code.digest(), platform.python_version()))
    go = mouth.hear()
    if isinstance(go, m.Leave):
        return 0
    assert isinstance(go, m.Go), go
    phase(f"make {go.world} world")
    bind(rank, go.cpus)
    world = make_world(go, mouth)
    cpus = bind(world.rank, go.cpus)  # again: the environment may have named another rank
    environment = launch.told(os.environ) if world.size > 1 else {}
    mouth.say(m.Ready(world.rank, world.size, host, os.getpid(), getattr(world, "library", ""), cpus, environment))
    serve(mouth, world, phase, scratch)
    phase("leave")
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
