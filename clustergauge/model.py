"""What is written down: plain, immutable data with strict parsing.  No device library, no file, no clock.

Everything that leaves a process or reaches a disk is one of these structures.  They reject unknown fields and wrong
types with the path of the offender (``msgspec.ValidationError``).  A record holds facts only; rates, warnings and verdicts
are derived from it on reading (`metrics`, `warnings`, `accept`).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA = "1.0"
"""Version of every document of a run folder: ``major.minor``; a reader refuses a newer major."""

Scalar = str | int | float | bool | None
Json = Any
"""What JSON can carry."""
Status = Literal["ok", "wrong", "error", "skipped", "verified"]
Outcome = Literal["pass", "FAIL", "inconclusive", "unreferenced", "not measured", "invalid"]
Device = Literal["cpu", "cuda"]
DTYPES = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all plain data: immutable, unknown fields refused."""


# --------------------------------------------------------------------------------------------------------------------------
# one case


class Workload(Data, frozen=True, kw_only=True):
    """The work of ONE iteration of a case, counted by the probe's author; what turns a time into a rate.

    ``flops``/``ops``: floating-point / integer operations (a multiply-add is two).  ``bytes_read``/``bytes_written``: as STREAM
    counts them for memory, application bytes for storage.  ``ios``: storage operations (transfers, files, or calls on metadata,
    as the probe says).  ``samples``: of a data set.  ``message_bytes``: S of nccl-tests.  ``collective``: name of the operation,
    which selects the factor of bus bandwidth.  ``bound``: what limits it, which selects the headline rate.
    """

    flops: int = 0
    ops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    ios: int = 0
    samples: int = 0
    message_bytes: int = 0
    collective: str = ""
    dtype: str = ""
    bound: Literal["", "compute", "memory", "network", "storage", "latency"] = ""


class Series(Data, frozen=True, kw_only=True):
    """A named list of values beside the samples (latencies of a storage run, bandwidth of each pair)."""

    unit: str
    values: list[float]


class Measurement(Data, frozen=True, kw_only=True):
    """Raw times of one case in one launch.

    An iteration is one run of the case, or one of the equal steps that a run takes (a load of a pointer chase).
    ``samples_s``: seconds of one iteration (a sample's time over ``iterations_per_sample``), in the order taken, the maximum
    over ranks; the first ``warmup_cut`` of them are warm-up.  ``sample_start_s``: start of each sample, seconds since the
    first.  ``loop_mean_s``: mean seconds of a call in one unsynchronised loop, comparable with OSU and nccl-tests.
    ``arrival_skew_s``: for each sample, seconds between the first and the last rank to begin it (see `sync`; the error of the
    clocks is the setting ``clock_error_s``).  ``stop_reason``: ``converged``, ``budget`` (time ended first), ``samples`` (as
    many as a record keeps) or ``interrupted``: of work that was to run for its whole budget, what was measured and checked before
    it was cut short (the record's ``reason`` says by what), whatever the record's status.
    """

    clock: Literal["wall", "cuda_event", "cuda_graph"]
    cache: Literal["cold", "hot", "none"]
    warmup_cut: int = 0
    iterations_per_sample: int = 1
    samples_s: list[float] = []
    sample_start_s: list[float] = []
    loop_mean_s: float | None = None
    arrival_skew_s: list[float] = []
    stop_reason: Literal["converged", "budget", "samples", "interrupted"] = "converged"
    digest: str = ""
    series: dict[str, Series] = {}


class Place(Data, frozen=True, kw_only=True):
    """Where one rank ran.  ``interface``: the network interface that gloo was told there."""

    rank: int
    host: str
    device: str = "cpu:0"
    pci: str = ""
    cpus: str = ""
    nic: str = ""
    interface: str = ""


class Counters(Data, frozen=True, kw_only=True):
    """What the machine's own counters moved during the case.

    ``path``: of large network cases, the bytes that every interface, port and NVLink of every host moved
    (``node-1/eth0.tx_bytes``), and ``runs``, how often the work ran meanwhile (see `path`).  ``device_bytes``:
    ``read``/``written`` as the kernel counted them and ``asked_read``/``asked_written`` as the probe asked, over all runs of the
    case.  ``health``: error counters and states that changed, by name; unreadable ones are absent, never zero.
    """

    path: dict[str, Scalar] = {}
    device_bytes: dict[str, int] = {}
    health: dict[str, Scalar] = {}


class Record(Data, frozen=True, kw_only=True):
    """One case, one launch: one line of ``records.jsonl``."""

    schema: str = SCHEMA
    run_id: str
    case: str
    probe: str
    params: dict[str, Scalar]
    launch: int = 0
    confirms: bool = False
    """Of a case that would have failed and was measured again, fresh: it is judged on such launches alone."""
    machine_id: str
    device: str = "cpu:0"
    ranks: int = 1
    placement: list[Place] = []
    status: Status
    reason: str = ""
    started: str
    workload: Workload | None = None
    measurement: Measurement | None = None
    counters: Counters = Counters()
    settings: dict[str, Scalar] = {}
    telemetry: dict[str, Scalar] = {}


# --------------------------------------------------------------------------------------------------------------------------
# one machine


class Cpu(Data, frozen=True, kw_only=True):
    """The processors this process may use (not all that exist)."""

    model: str
    sockets: int | None = None
    cores: int
    """Physical cores in the allowed set."""
    threads: int
    """Logical processors in the allowed set."""
    allowed: str
    """The allowed set as a kernel list: ``0-15,32``."""
    llc_bytes: int | None = None
    """Last-level cache of all sockets together."""
    clock_max_mhz: float | None = None
    vector: str = ""
    """Widest usable vector unit: ``sse2``, ``avx2``, ``avx512``, ``amx``, ``neon``, ``sve``."""
    numa: dict[str, str] = {}
    """Memory node to its processors (kernel list)."""


class Gpu(Data, frozen=True, kw_only=True):
    """One accelerator; ``None`` and ``""`` mean unknown."""

    index: int
    name: str
    uuid: str
    pci: str = ""
    arch: str = ""
    """``sm_90``, ``gfx942``."""
    memory_bytes: int | None = None
    cpus: str = ""
    numa: int | None = None
    sm_clock_max_mhz: float | None = None
    power_limit_w: float | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    compute_mode: str = ""


class Nic(Data, frozen=True, kw_only=True):
    """One network or InfiniBand port."""

    name: str
    kind: Literal["ethernet", "infiniband", "roce", "other"]
    state: str = ""
    rate_gbit_s: float | None = None
    pci: str = ""
    numa: int | None = None


class Link(Data, frozen=True, kw_only=True):
    """How two GPUs of one machine reach each other (``a`` < ``b``, indices of `Gpu`); ``None`` and ``""`` mean unknown.

    ``lanes``: NVLinks that are up between them, directly or to their switch.  ``ancestor``: what they share on the PCI bus, as
    NVML names it.  ``p2p``: ``ok``, or why one may not read the other's memory.
    """

    a: int
    b: int
    kind: Literal["nvlink", "pcie", ""] = ""
    lanes: int | None = None
    ancestor: str = ""
    p2p: str = ""


class Finding(Data, frozen=True, kw_only=True):
    """One preflight check: what was found and what to do about it.

    ``fails``: a failed criterion, whatever is measured (a link that trained down).
    """

    name: str
    state: Literal["ok", "warning", "unknown"]
    detail: str
    remedy: str = ""
    fails: bool = False


GPUS_UNUSABLE = "gpus_unusable"
"""The finding that GPUs are there and none can be used: what is measured without them is no success (`unmeasured`)."""


class Machine(Data, frozen=True, kw_only=True):
    """What one machine is: described once per run in ``machines/<machine_id>.json``."""

    schema: str = SCHEMA
    machine_id: str
    """Stable over reboots; a digest, never the raw serial."""
    host: str
    """In a run over several the name by which it was reached; what it calls itself otherwise."""
    node: str = ""
    """What the user called it in a run over several (`Planned.hosts`): ``host``, with the user before it; empty otherwise."""
    calls_itself: str = ""
    """Its own name for itself, in a run over several, where that is another than ``host``."""
    os: str = ""
    kernel: str = ""
    virtual: str = ""
    """Hypervisor or container kind, ``""`` where none was recognised."""
    cpu: Cpu
    memory_bytes: int
    gpus: list[Gpu] = []
    nics: list[Nic] = []
    links: list[Link] = []
    """Between its GPUs, every pair once."""
    versions: dict[str, str] = {}
    """Driver, CUDA, torch, triton, MPI, Python …"""
    settings: dict[str, Scalar] = {}
    """Governor, transparent huge pages, … : what changes results without changing the parts."""
    peer_class: str = ""
    """Digest of the parts alone: machines of one class should perform alike."""
    findings: list[Finding] = []


# --------------------------------------------------------------------------------------------------------------------------
# one run


class Planned(Data, frozen=True, kw_only=True):
    """A case the run set out to measure, on one device, in one launch; ``skip``: why it will not be."""

    case: str
    probe: str
    module: str
    params: dict[str, Scalar]
    device: str
    launch: int = 0
    ranks: int = 1
    world: Literal["serial", "mpi", "torch"] = "serial"
    interpret: bool = False
    env: dict[str, str] = {}
    """Environment its workers need before they are started (see `probe.Needs`)."""
    target: str = ""
    budget_s: float = 2.0
    beyond_s: float = 0.0
    """Seconds that a storage case may take beyond its budget to lay out, read back and come to enough samples (`forecast`)."""
    timeout_s: float = 60.0
    """Seconds after which the case counts as hung."""
    skip: str = ""
    hosts: str = ""
    """The nodes it is planned for (`hosts.expand`); empty where a run has this machine alone."""
    in_turn: str = ""
    """Measured by one node after another, because they share its target: the first of those that do.  With ``skip``: left to
    others of them (`plan_nodes`)."""
    nodes: int = 1
    """How many of them one measurement spans: 1, each alone; else all in ``hosts``, with ``ranks`` in equal parts."""
    confirms: bool = False
    """Measured again, fresh, because it would fail: it is judged on such launches alone."""
    check_only: bool = False
    """Run once and checked, not timed."""
    tunes: bool = False
    """Takes the candidate that was chosen before in this run, or chooses one (see `tuning`)."""
    instead: str = ""
    """Why it is to run on the processor though there is a GPU that it was meant for."""
    cross_check: bool = False
    """Held against another program that does the same, where there is one."""
    peer: bool = False
    """Such a program is known."""
    room: bool = False
    """Its target had room for it when the run began: if it finds none, that is an error."""


class Run(Data, frozen=True, kw_only=True):
    """``run.json``: what was asked and what came of it."""

    schema: str = SCHEMA
    run_id: str
    started: str
    finished: str = ""
    """Empty while running, and for ever if the run was killed."""
    interrupted: bool = False
    command: list[str]
    suite: str
    code: str
    """Digest of the source that measured."""
    planned: list[Planned]
    settings: dict[str, Scalar] = {}
    left_out: dict[str, str] = {}
    """Nodes that were not measured, or kept out of what spans nodes, and why."""


# --------------------------------------------------------------------------------------------------------------------------
# judgement (derived, never stored in a record)


class Metric(Data, frozen=True, kw_only=True):
    """A derived number with its 95 % interval; ``low``/``high`` are ``None`` where the samples are too few to say."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    better: Literal["higher", "lower"] = "higher"


class Warning_(Data, frozen=True, kw_only=True):
    """Something a reader should know before believing a number, and what to do about it.

    ``who``: the rank it is about, if it is about one.
    """

    name: str
    detail: str
    remedy: str
    who: str = ""


class Criterion(Data, frozen=True, kw_only=True):
    """What a case must reach.  ``case`` is a glob over case ids; ``metric`` empty: the headline of the case.

    Exactly one of: ``floor`` (at least) and ``limit`` (at most), in ``unit``; ``of_ceiling``, at least this fraction of what
    physics allows; ``reference``, in ``unit``, from ``1 + lower`` to ``1 + upper`` times as much; ``of_baseline``, at least this
    fraction of a baseline run's; ``of_peers``, at least this fraction of the median of the other devices of its kind in the run.
    Of what is better when lower (times), fractions are of the speed: 0.95 allows 1/0.95 of the time.
    """

    case: str
    device: Literal["", "cpu", "cuda", "cpu:nodes", "cuda:nodes", "cpu:groups", "cuda:groups"] = ""
    """Only on devices of this kind: of one machine, over all nodes together (``cuda:nodes``), over groups of them
    (``cuda:groups``); empty: on all."""
    metric: str = ""
    unit: str = ""
    floor: float | None = None
    limit: float | None = None
    of_ceiling: float | None = None
    reference: float | None = None
    lower: float | None = None
    upper: float | None = None
    of_baseline: float | None = None
    of_peers: float | None = None
    required: bool = True
    source: str = ""


class Verdict(Data, frozen=True, kw_only=True):
    """The judgement of one case: all its launches on one device of one machine (or of a criterion that nothing answered)."""

    case: str
    device: str = ""
    machine_id: str = ""
    metric: str = ""
    verdict: Outcome
    reason: str = ""
    value: float | None = None
    unit: str = ""
    bound: float | None = None
    margin: float | None = None
    """Distance from the bound as a fraction of it; negative is worse than asked."""
    remark: str = ""
    """What the bound is made of, and what was measured before; no doubt."""
    source: str = ""


class Baseline(Data, frozen=True, kw_only=True):
    """A run that another was held against.  ``facts``: SHA-256 over its records and machines (`sums.facts`)."""

    run_id: str
    facts: str


class Judgement(Data, frozen=True, kw_only=True):
    """``verdicts.json``: what was decided when the run ended, to be held against what its records say (`judgement`).

    ``version``, ``code``: of the ClusterGauge that decided.  ``exit_code``: of the results; an interruption has its own.
    ``accept``, ``ceilings``: the files as they were named; their text lies beside it.
    """

    schema: str = SCHEMA
    run_id: str
    version: str
    code: str
    exit_code: int
    accept: str = ""
    ceilings: str = ""
    baseline: Baseline | None = None
    verdicts: list[Verdict]


class Suspect(Data, frozen=True, kw_only=True):
    """What transfers between all pairs say is slower than its peers.

    ``where``: the endpoint, ``from → to`` of a link, the leaf switch, or the host whose inside it is.  ``direction``: empty where
    the kind has none.  ``ratio``: bandwidth over that of its peers, with the interval in which it surely lies, whichever of all
    of them it is.  ``confirmed``: that interval lies below what is asked of peers.  ``note``: what cannot be told.
    """

    kind: Literal["endpoint", "link", "leaf", "node"]
    where: str
    direction: Literal["", "sends", "receives", "both"] = ""
    ratio: float
    low: float
    high: float
    confirmed: bool
    cause: Literal["", "processor"] = ""
    """What else is known of why: the rank there waited for a processor far longer than the others did (`waits`)."""
    note: str = ""


class PairFindings(Data, frozen=True, kw_only=True):
    """What one case of transfers between pairs says, all its launches together.

    ``measured`` of ``possible`` ordered pairs have a number; what has none is not fine but unknown.  ``smallest_degradation``:
    the least loss of an endpoint, as a fraction, that would have been seen nearly always; ``None`` where none could be.
    """

    case: str
    device: str = ""
    machine_id: str = ""
    endpoints: list[str]
    measured: int
    possible: int
    passes: int
    suspects: list[Suspect] = []
    smallest_degradation: float | None = None
    notes: list[str] = []
