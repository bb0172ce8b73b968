"""What supervisor, node agents and workers say to each other over `control`."""

from __future__ import annotations

from typing import Literal

import msgspec

from clustergauge.model import Json, Machine, Measurement, Scalar, Status, Workload


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages: tagged with the name of its class."""


# -- worker to supervisor (through the agent)


class Hello(Message, frozen=True):
    """First words of a worker, before it touches MPI or a device.  ``rank``: as the launcher's environment says, or −1."""

    pid: int
    host: str
    rank: int
    code: str
    python: str


class Ready(Message, frozen=True):
    """The worker's world stands: what it really is, as its own library says."""

    rank: int
    size: int
    host: str
    pid: int
    library: str = ""


class Gather(Message, frozen=True):
    """This rank's part of a gather to rank 0."""

    value: Json


class Share(Message, frozen=True):
    """Rank 0's value, to be given to every other rank."""

    value: Json


class Outcome(Message, frozen=True):
    """The end of a case on one rank; rank 0 carries the measurement."""

    status: Status
    reason: str = ""
    detail: str = ""
    """A traceback, for the log of the case."""
    workload: Workload | None = None
    measurement: Measurement | None = None
    settings: dict[str, Scalar] = {}
    device_bytes: dict[str, int] = {}
    broken: bool = False
    """The process should not be used again (a device error, memory exhausted)."""


FromWorker = Hello | Ready | Gather | Share | Outcome


# -- supervisor to worker (through the agent)


class Job(Message, frozen=True):
    """One case to execute."""

    case: str
    module: str
    probe: str
    params: dict[str, Scalar]
    device: str
    budget_s: float
    seed: int
    target: str = ""
    interpret: bool = False
    llc_bytes: int = 32 << 20


class Gathered(Message, frozen=True):
    """All ranks' values, to rank 0."""

    values: list[Json]


class Shared(Message, frozen=True):
    """Rank 0's value, to the other ranks."""

    value: Json


class Leave(Message, frozen=True):
    """Nothing more to do: end."""


class Go(Message, frozen=True):
    """Every worker of the pool is here: make the world."""

    world: str
    rank: int
    size: int
    device: str
    timeout_s: float


ToWorker = Go | Job | Gathered | Shared | Leave


# -- supervisor to agent


class StartPool(Message, frozen=True):
    """Start worker processes: one command (a launcher that starts all ranks), or one per rank."""

    commands: list[list[str]]
    env: dict[str, str]
    rank_env: list[dict[str, str]]


class EndPool(Message, frozen=True):
    """End every process of the pool: ask, then kill."""

    grace_s: float


class Inspect(Message, frozen=True):
    """Collect stacks, states and phases of all workers of the pool."""


class Begin(Message, frozen=True):
    """A case begins: note health counters and the time."""


class Finish(Message, frozen=True):
    """A case ended: answer with `Facts`."""


class To(Message, frozen=True):
    """Pass a message on to a worker (by process id)."""

    pid: int
    body: ToWorker


class Quit(Message, frozen=True):
    """The run is over: end the pool and yourself."""


ToAgent = StartPool | EndPool | Inspect | Begin | Finish | To | Quit


# -- agent to supervisor


class AgentHello(Message, frozen=True):
    """First words of an agent: its node."""

    host: str
    pid: int
    code: str
    machine: Machine


class From(Message, frozen=True):
    """A worker said something."""

    pid: int
    body: FromWorker


class WorkerGone(Message, frozen=True):
    """A worker's process or channel ended.  ``how``: ``killed by SIGKILL``, ``exited with 0``, ``closed its channel``."""

    pid: int
    rank: int
    phase: str
    how: str
    stack: str = ""


class LauncherGone(Message, frozen=True):
    """A command of the pool ended.  ``index``: which; ``tail``: its last words."""

    index: int
    how: str
    tail: str


class WorkerState(Message, frozen=True):
    """One worker as the node sees it.  ``state``: the kernel's letter (``T`` is stopped)."""

    pid: int
    rank: int
    host: str
    phase: str
    state: str
    stack: str


class Inspected(Message, frozen=True):
    """Answer to `Inspect`."""

    workers: list[WorkerState]
    tail: str


class Stopped(Message, frozen=True):
    """A worker of the pool is stopped (SIGSTOP, a debugger)."""

    pid: int
    rank: int
    phase: str


class Began(Message, frozen=True):
    """Answer to `Begin`."""


class Facts(Message, frozen=True):
    """Answer to `Finish`: what the node's counters and sensors say of the case."""

    health: dict[str, Scalar]
    telemetry: dict[str, Scalar]


class PoolEnded(Message, frozen=True):
    """Answer to `EndPool`: every process is gone but those in ``survivors`` (``pid 12 python, state D in nfs_wait``)."""

    survivors: list[str]


class AgentFailed(Message, frozen=True):
    """The agent could not do what it was told."""

    what: Literal["start"]
    reason: str


FromAgent = AgentHello | From | WorkerGone | LauncherGone | Inspected | Stopped | Began | Facts | PoolEnded | AgentFailed
