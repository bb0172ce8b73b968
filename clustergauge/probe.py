"""What a probe is: a function that allocates and returns `Work`.  It never reads a clock, loops over samples, or prints.

@probe("triad", needs=Needs(modules=("torch",)), size=[2**30])
def triad(ctx: Context, size: int) -> Work:
    '''STREAM triad.  size: bytes per array.'''
    ...
    return Work(run=..., check=..., workload=Workload(bytes_read=2 * size, bytes_written=size, bound="memory"))
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clustergauge.model import Device, Scalar, Workload
from clustergauge.object_url import ObjectUrl
from clustergauge.units import format_size

if TYPE_CHECKING:
    from clustergauge.world import World

WorldKind = Literal["serial", "mpi", "torch"]


class Skip(Exception):
    """Raised while preparing: this case has no meaning here.  The text is the reason a person reads.

    ``rank``: whose, where it is not the one that raises.
    """

    def __init__(self, text: str, rank: int | None = None) -> None:
        super().__init__(text)
        self.rank = rank


class NoRoom(Skip):
    """The target has not the room that the case takes.  Where it had when the run began, that is an error of the machine."""


class Wrong(Exception):
    """Raised by a check: the output is not what it must be.  The text names element, expected and got.

    ``rank``: whose output, where it is not the one that raises.
    """

    def __init__(self, text: str, rank: int | None = None) -> None:
        super().__init__(text or "the output is wrong")  # without a word of what is wrong nothing would seem to be
        self.rank = rank


@dataclass(frozen=True)
class Moves:
    """What each rank of a storage case moves, timed or not, so that a plan can say how long it takes (`forecast`).

    ``before``: bytes until the first sample; ``sample``: bytes that one takes at least, what is read back of it included;
    ``after``: bytes that are read back at the end.  ``names``: files or objects made before, and removed at the end.
    ``patience``: times the budget that a sample takes at most, because the probe does less where it would take longer (0: as
    long as it takes).  ``share``: times the budget that a sample takes where the probe makes it so long, reading back included,
    if that is more than ``sample`` and no more than ``most`` bytes.  ``pause``: seconds of a sample in which nothing need move.
    """

    before: int = 0
    sample: int = 0
    after: int = 0
    names: int = 0
    patience: float = 0.0
    share: float = 0.0
    most: int = 0
    pause: float = 0.0


@dataclass(frozen=True)
class Room:
    """What each rank of a storage case takes of its target at once: ``bytes`` in so many ``files`` or folders.

    ``beside``: bytes of one file more that another program writes, where the case is held against one (``--cross-check``).
    Nothing in no files: the case does not say.
    """

    bytes: int = 0
    files: int = 0
    beside: int = 0

    def of(self, ranks: int = 1, peer: bool = False) -> tuple[int, int]:
        """Bytes and files of all ranks together, with what another program writes if there is one (``peer``)."""
        beside = self.beside if peer else 0
        return ranks * (self.bytes + beside), ranks * (self.files + (beside > 0))


@dataclass(frozen=True)
class Needs:
    """What a case needs before it is worth starting; declared, so that `list` can say why it would be skipped.

    ``world``: one process, MPI ranks, or torch.distributed ranks.  ``device``: where it has a meaning.  ``ranks``: at least.
    ``modules``: importable packages.  ``arch``: the lowest CUDA capability (``80`` for sm_80).  ``target``: a storage folder,
    or with ``objects`` an object store; with ``shared`` one folder for the ranks of all nodes, so that the case may span them.
    ``interpreter``: on a CPU, run under the Triton interpreter: checked, not timed.  ``working_set``: bytes that the case streams
    through and that no cache may hold; a case below 4 × the last-level cache is skipped.  ``env``: environment that libraries
    read when they start, so that such cases get workers of their own.  ``moves``, ``room``: of a storage case.
    ``nvlink``: between all GPUs.  ``tunes``: chooses among candidates (`tuning`), once for all launches and devices of a model.
    ``refused``: why a case of these parameters has no meaning anywhere, in words.  ``peer``: a program is known to do the same.
    """

    world: WorldKind = "serial"
    device: Literal["any", "cpu", "cuda"] = "any"
    ranks: int = 1
    modules: tuple[str, ...] = ()
    arch: int = 0
    target: bool = False
    objects: bool = False
    shared: bool = False
    interpreter: bool = False
    working_set: int = 0
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    moves: Moves = Moves()
    room: Room = Room()
    nvlink: bool = False
    tunes: bool = False
    refused: str = ""
    peer: bool = False


@dataclass
class Context:
    """What a probe may use.  One per case and process.

    ``device``: a torch device string (``cpu``, ``cuda:0``).  ``target``: folder for storage probes (``None`` unless needed);
    ``objects``: where those of object stores put theirs.
    ``scratch``: private folder, removed after the case.  ``interpret``: True under the Triton interpreter: keep it small.
    ``budget_s``: seconds of measuring; one run must be far shorter.  ``llc_bytes``: last-level cache to defeat.  ``pins``: what
    was tuned in this run; ``tunes``: whether to tune (`tuning`).  ``cross_check``: the work is to have a `Peer` where there is
    one.
    """

    world: World
    device: str
    seed: int
    scratch: Path
    budget_s: float = 2.0
    target: Path | None = None
    objects: ObjectUrl | None = None
    interpret: bool = False
    cross_check: bool = False
    llc_bytes: int = 32 << 20
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    tunes: bool = True
    settings: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    device_bytes: dict[str, int] = field(default_factory=dict[str, int])
    series: dict[str, tuple[str, list[float]]] = field(default_factory=dict[str, tuple[str, list[float]]])

    @property
    def kind(self) -> Device:
        """``cpu`` or ``cuda``."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    def set(self, name: str, value: Scalar) -> None:
        """Record a setting that matters to the result (engine, threads, huge pages, direct I/O)."""
        self.settings[name] = value

    def add(self, name: str, unit: str, *values: float) -> None:
        """Append values to a series of the measurement."""
        self.series.setdefault(name, (unit, []))[1].extend(values)

    def buffer_sets(self, bytes_per_set: int) -> int:
        """How many buffer sets to rotate through so that together they are at least 3 × the last-level cache."""
        return max(1, -(-3 * self.llc_bytes // max(1, bytes_per_set)))


@dataclass(frozen=True)
class Peer:
    """Another program that does the work of a case, to hold ours against (``--cross-check``).

    ``name``: with its version.  ``seconds``: runs it for about so long; the seconds of one step of the `Work` as the program
    tells them.  Raises ``OSError`` in words where it fails.
    """

    name: str
    seconds: Callable[[float], float]


@dataclass
class Work:
    """What a probe returns: something to run, and how to know that it ran right.

    ``run``: the work and nothing else, or one callable per rotating buffer set.  ``reset``: untimed, before every sample;
    must poison the output, so that a run that does nothing is caught.  ``check``: looks at the output of the last timed sample,
    raises `Wrong`; called for the last of all, and between batches for as many as time allows.  ``exact``: once per case after
    timing, on inputs whose result is exact in the dtype, through the same compiled configuration, compared bit for bit;
    raises `Wrong`.  One of the two there must be.  ``digest``: for deterministic work, a digest of the
    output; samples must agree.  ``note``: untimed, after every sample that counts, before a check of it: adds to a series what
    the sample has to say beside its time (latencies).  ``close``: releases what memory management does not.
    ``clock``: ``device`` times on the accelerator's own clock, ``graph`` a graph of the calls replayed there (short work).
    ``cache``: ``cold`` if ``run`` rotates through sets larger than the last-level cache (or a single set is), ``hot`` if it
    reuses a cached one, ``none`` where the word has no meaning.
    ``loop``: also time one unsynchronised loop of calls (collectives).  ``sync``: ranks meet untimed before each sample.
    ``whole_budget``: do not stop when the interval is narrow, and compare digests every few samples (burn-in).
    ``max_iterations``: the most runs one sample may hold (in-place work whose values grow), ``None`` for no limit.
    ``steps``: equal steps that one run takes, each after the one before (the loads of a pointer chase, a window of 64 messages, a
    round trip of two): times and ``workload`` are then of one step.  ``overhead``: the same call as ``run`` with nobody to talk
    to, timed apart: what a call costs before anything moves.
    ``sweep``: the callables are different things (transfers of different pairs), each to be timed by itself: a sample is one
    call, samples are whole passes over all callables, and at the end this is called on rank 0 with the seconds of every rank in
    every sample, ``[rank][sample]``, and with when it began, likewise, in seconds of one clock (empty where ranks did not meet),
    to put what they tell into series.
    ``peer``: what else does the same work; asked for by ``Context.cross_check``.
    ``last``, ``count``: set by the timing loop: index of the callable that ran last, and how many runs, in rotation, the latest
    sample held, for ``check``, ``digest`` and ``reset`` to look at.  Buffer sets hold the same inputs, so the digest does not
    depend on which of them ran.
    """

    run: Callable[[], object] | Sequence[Callable[[], object]]
    workload: Workload
    reset: Callable[[], object] | None = None
    check: Callable[[], object] | None = None
    exact: Callable[[], object] | None = None
    digest: Callable[[], str] | None = None
    note: Callable[[], object] | None = None
    close: Callable[[], object] | None = None
    clock: Literal["wall", "device", "graph"] = "wall"
    cache: Literal["cold", "hot", "none"] = "none"
    loop: bool = False
    sync: bool = False
    whole_budget: bool = False
    max_iterations: int | None = None
    steps: int = 1
    sweep: Callable[[Sequence[Sequence[float]], Sequence[Sequence[float]]], object] | None = None
    overhead: Callable[[], object] | None = None
    peer: Peer | None = None
    last: int = 0
    count: int = 0

    @property
    def runs(self) -> tuple[Callable[[], object], ...]:
        """The callables to rotate through; at least one."""
        return (self.run,) if callable(self.run) else tuple(self.run)


ProbeFunction = Callable[..., Work]


@dataclass(frozen=True)
class Probe:
    """A named probe with its axes; the object the decorator leaves in the module."""

    name: str
    module: str
    function: ProbeFunction
    needs: Needs | Callable[..., Needs]
    axes: Mapping[str, tuple[Scalar, ...]]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0] if self.function.__doc__ else ""

    def needs_of(self, params: Mapping[str, Scalar]) -> Needs:
        """What the case with these parameters needs."""
        return self.needs if isinstance(self.needs, Needs) else self.needs(**params)

    def cases(self, **values: Sequence[Scalar]) -> Iterator[Case]:
        """All combinations of the axes, in their declared order; ``values`` replaces the values of an axis.

        Raises ``ValueError`` naming the axis if one is unknown.
        """
        for axis in values:
            if axis not in self.axes:
                raise ValueError(f"probe {self.name!r} has no axis {axis!r} (it has {', '.join(self.axes) or 'none'})")
        for combination in itertools.product(*(tuple(values.get(axis, self.axes[axis])) for axis in self.axes)):
            yield Case(self.name, self.module, dict(zip(self.axes, combination, strict=True)))


@dataclass(frozen=True)
class Case:
    """One point of a probe's axes."""

    probe: str
    module: str
    params: Mapping[str, Scalar]

    @property
    def id(self) -> str:
        """``memory/backend=torch/op=triad/size=1GiB``: stable across runs and machines.

        An empty value is left out: the ids of a probe stay what they were when it gets an axis on which it had stood at "".
        """
        return "/".join([self.probe, *self.parts])

    @property
    def parts(self) -> list[str]:
        """``backend=torch``, ``op=triad``, …: what the id holds after the probe."""
        return [f"{k}={_show(k, v)}" for k, v in self.params.items() if v != ""]


def _show(axis: str, value: Scalar) -> str:
    return format_size(value) if axis == "size" and isinstance(value, int) else str(value)


def probe(
    name: str, *, needs: Needs | Callable[..., Needs] | None = None, **axes: Sequence[Scalar]
) -> Callable[[ProbeFunction], Probe]:
    """Declare a probe.  Each axis is a parameter of the function; an axis called ``size`` is in bytes and shown in binary units.
    Of some axes (``size``, ``depth``, …; see `ranges`) other values than those declared may be asked for.

    ``needs``: a `Needs`, or a function of the parameters that returns one.
    """

    if "target" in axes:
        raise ValueError(f"probe {name!r}: 'target' is no axis of a probe; its context has it")

    def decorate(function: ProbeFunction) -> Probe:
        return Probe(name, function.__module__, function, needs or Needs(), {axis: tuple(v) for axis, v in axes.items()})

    return decorate


def probes_in(module: object) -> list[Probe]:
    """The probes that a module defines (not those it imported), in order of definition."""
    name = getattr(module, "__name__", "")
    return [v for v in vars(module).values() if isinstance(v, Probe) and v.module == name]
