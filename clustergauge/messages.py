"""What supervisor, node agents and workers say to each other over `control`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from clustergauge.free import Free
from clustergauge.model import Json, Machine, Measurement, Scalar, Status, Workload


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages: tagged with the name of its class."""


Pid = Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
"""A process id: proc(5), ``pid_max``.  A larger one could stand for another node's worker (`team.worker_id`)."""
Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
"""Which of the commands of a pool."""


# -- what a remote agent reads before anything else, on its standard input


class Summons(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of JSON, which no command line and no environment ever holds.

    ``key``: hexadecimal.  ``addresses``: where the supervisor listens, to be tried in turn.  ``name``: of the node as the user
    calls it; empty where one line goes to all (srun): then Slurm's name of it.  ``token``: names the scratch folders of this run,
    no secret.  ``targets``: folders of storage cases.  ``environment``: of the supervisor, what steers MPI and NCCL.  ``end``: do
    nothing but end what an earlier agent of this run left here.
    """

    key: str
    addresses: list[tuple[str, int]]
    token: str
    name: str = ""
    targets: list[str] = []
    environment: dict[str, str] = {}
    end: bool = False


# -- worker to supervisor (through the agent)


class Hello(Message, frozen=True):
    """First words of a worker, before it touches MPI or a device.

    ``rank``: as the launcher's environment says, or −1.  ``pool``: the number of the pool it was started for.
    """

    pool: int
    pid: Pid
    host: str
    rank: int
    code: str
    python: str


class Ready(Message, frozen=True):
    """The worker's world stands: what it really is, as its own library says.

    ``cpus``: the processors that the kernel lets it use now, as a kernel list.
    """

    rank: int
    size: int
    host: str
    pid: Pid
    library: str = ""
    cpus: str = ""
    environment: dict[str, str] = {}
    """Variables that steer the transport (`launch.STEERING`), where there are several ranks."""


class Gather(Message, frozen=True):
    """This rank's part of a gather to rank 0, within the job of that number (0: while the world is made)."""

    value: Json
    job: int = 0


class Share(Message, frozen=True):
    """Rank 0's value, to be given to every other rank, within the job of that number."""

    value: Json
    job: int = 0


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
    sampled: tuple[float, float] | None = None
    """Where samples were taken: from the first to the last decision about them, on the clock of this rank's host that
    ``time.monotonic`` reads; for the agent there, whose sensors are read by the same clock."""
    runs: int = 0
    """How often the work ran on this rank, warm-up and calibration included; 0: not known."""
    broken: bool = False
    """The process should not be used again (a device error, memory exhausted)."""
    job: int = 0
    """The number of the `Job` that ended."""


class SoFar(Message, frozen=True):
    """What work that runs for its whole budget has measured since it said so last, from rank 0 (see `so_far`).

    ``outcome``: as it would be if the case ended here; its measurement holds only the samples since.
    """

    outcome: Outcome
    job: int


FromWorker = Hello | Ready | Gather | Share | Outcome | SoFar


# -- supervisor to worker (through the agent)


class Job(Message, frozen=True):
    """One case to execute.  ``number``: counts from 1; whatever is said within the case carries it.

    ``check_only``: every callable once, then the checks; nothing is timed.  ``pins``: what was tuned in this run (`pins`).
    ``cross_check``: hold it against another program.  ``room``: there was room for it on its target when the run began.
    """

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
    number: int = 0
    check_only: bool = False
    pins: dict[str, str] = {}
    cross_check: bool = False
    room: bool = False


class Gathered(Message, frozen=True):
    """All ranks' values, to rank 0."""

    values: list[Json]
    job: int = 0


class Shared(Message, frozen=True):
    """Rank 0's value, to the other ranks."""

    value: Json
    job: int = 0


class Leave(Message, frozen=True):
    """Nothing more to do: end."""


class Go(Message, frozen=True):
    """Every worker of the pool is here: make the world.

    ``address``: of rank 0's node, where it is to be met.  ``cpus``: the processors to keep to, as a kernel list; empty: as the
    environment says.
    """

    world: str
    rank: int
    size: int
    device: str
    timeout_s: float
    address: str = "127.0.0.1"
    cpus: str = ""


ToWorker = Go | Job | Gathered | Shared | Leave


# -- supervisor to agent


class Request(Message, frozen=True, kw_only=True):
    """What is answered.  ``number``: the answer carries it too, so that a late one is not taken for that of the next request."""

    number: int = 0


class StartPool(Message, frozen=True):
    """Start worker processes: one command (a launcher that starts all ranks), or one per rank; none where another node's
    launcher starts them here too.

    ``drop``: names of environment variables begin so that workers must not inherit.  ``number``: of the pool; workers say it in
    their `Hello`, so that a late one of an earlier pool is known.  ``mark``: a variable (``NAME=value``) in the environment of
    workers that are no descendants of this agent, by which it finds them to end them.  ``files``: programs (name, text) that
    the commands need in the agent's scratch folder.
    """

    commands: list[list[str]]
    env: dict[str, str]
    rank_env: list[dict[str, str]]
    drop: list[str] = []
    number: int = 0
    mark: str = ""
    files: dict[str, str] = {}


class EndPool(Request, frozen=True):
    """End every process of the pool: ask, then kill."""

    grace_s: float


class Inspect(Request, frozen=True):
    """Collect stacks, states and phases of all workers of the pool."""


class Begin(Request, frozen=True):
    """A case begins: note health counters and the time."""


class Finish(Request, frozen=True):
    """A case ended: answer with `Facts`."""


class Sweep(Request, frozen=True):
    """Remove what killed workers left in the target of storage cases: a command, to which the target is appended."""

    command: list[str]
    target: str


class Meet(Request, frozen=True):
    """Find out who shares a target of storage cases (see `meeting`): make a mark in it, look for marks, or remove one's own."""

    step: Literal["mark", "look", "clear"]
    target: str
    mark: str


class To(Message, frozen=True):
    """Pass a message on to a worker (by process id)."""

    pid: int
    body: ToWorker


class Quit(Message, frozen=True):
    """The run is over: end the pool and yourself."""


Question = Inspect | Begin | Finish | EndPool | Sweep | Meet
"""What has an `Answer`."""
ToAgent = StartPool | Question | To | Quit


# -- agent to supervisor


class Answer(Message, frozen=True, kw_only=True):
    """What answers a `Request`, with its number."""

    number: int = 0


class AgentHello(Message, frozen=True):
    """First words of an agent: its node.

    ``name``: as the user calls it.  ``scratch``: its folder there.  ``address``, ``interface``: by which it reaches the
    supervisor; empty on the supervisor's own machine.  ``free``: by target, of those that answered.
    """

    host: str
    pid: Pid
    code: str
    machine: Machine
    name: str = ""
    scratch: str = ""
    address: str = ""
    interface: str = ""
    free: dict[str, Free] = {}


class From(Message, frozen=True):
    """A worker said something."""

    pid: Pid
    body: FromWorker


class Closed(Message, frozen=True):
    """A worker's channel ended just now; `WorkerGone` follows once it is known how.  The first to go is at fault, and finding out
    how takes longer for one than for another."""

    pid: Pid


class WorkerGone(Message, frozen=True):
    """A worker's process or channel ended.  ``how``: ``killed by SIGKILL``, ``exited with 0``, ``closed its channel``.

    ``oom``: the kernel's OOM killer struck somewhere on the node since the case began.
    """

    pid: Pid
    rank: int
    phase: str
    how: str
    stack: str = ""
    oom: bool = False


class LauncherGone(Message, frozen=True):
    """A command of the pool ended.  ``index``: which; ``tail``: its last words."""

    index: Index
    how: str
    tail: str


class WorkerState(Message, frozen=True):
    """One worker as the node sees it.  ``state``: the kernel's letter (``T`` is stopped)."""

    pid: Pid
    rank: int
    host: str
    phase: str
    state: str
    stack: str


class Inspected(Answer, frozen=True):
    """Answer to `Inspect`.  ``files``: what libraries wrote for the case of a hang (NCCL's flight recorder), by name."""

    workers: list[WorkerState]
    tail: str
    files: dict[str, bytes] = {}


class Stopped(Message, frozen=True):
    """A worker of the pool is stopped (SIGSTOP, a debugger)."""

    pid: Pid
    rank: int
    phase: str


class InPhase(Message, frozen=True):
    """A worker is in another phase than when it was last looked at: what is known of it if its node is lost."""

    pid: Pid
    phase: str


class Began(Answer, frozen=True):
    """Answer to `Begin`."""


class Facts(Answer, frozen=True):
    """Answer to `Finish`: what the node's counters and sensors say of the case.  ``path``: bytes moved, by port (see `traffic`);
    the supervisor puts the host before it.
    """

    health: dict[str, Scalar]
    telemetry: dict[str, Scalar]
    path: dict[str, int] = {}


class PoolEnded(Answer, frozen=True):
    """Answer to `EndPool`: every process is gone but those in ``survivors`` (``pid 12 python, state D in nfs_wait``)."""

    survivors: list[str]


class Swept(Answer, frozen=True):
    """Answer to `Sweep`: why the target was not swept, empty if it was."""

    note: str


class Met(Answer, frozen=True):
    """Answer to `Meet`: the marks that are there, to a look."""

    marks: list[str]


class AgentFailed(Message, frozen=True):
    """The agent could not do what it was told."""

    what: Literal["start"]
    reason: str


FromAgent = (
    AgentHello
    | From
    | Closed
    | WorkerGone
    | LauncherGone
    | Inspected
    | Stopped
    | InPhase
    | Began
    | Facts
    | PoolEnded
    | Swept
    | Met
    | AgentFailed
)
