"""Hypothesis strategies for documents as a sound run writes them: what they make, `store` must keep and read back unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from clustergauge.model import (
    Counters,
    Cpu,
    Finding,
    Gpu,
    Machine,
    Measurement,
    Nic,
    Place,
    Planned,
    Record,
    Run,
    Scalar,
    Series,
    Workload,
)
from clustergauge.probe import Case

PRINTABLE = "abcXYZ019 _-./=:*\"'\\<>&%µ×±éß漢字–…"
"""Whatever free text may hold unchanged, with what JSON, HTML, CSV and paths must escape."""

texts = st.text(PRINTABLE, max_size=20)
names = st.text(PRINTABLE, min_size=1, max_size=12)
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}", fullmatch=True)
words = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
counts = st.one_of(st.integers(0, 4096), st.integers(0, 2**62))
numbers = st.floats(-1e24, 1e24)
times = st.floats(1e-9, 1e6)
scalars: st.SearchStrategy[Scalar] = st.one_of(texts, st.integers(-(2**63), 2**64 - 1), numbers, st.booleans(), st.none())
moments = st.datetimes().map(lambda t: f"{t.replace(microsecond=0).isoformat()}Z")
devices = st.sampled_from(["cpu:0", "cuda:0", "cuda:7", "cuda:all"])


def mappings(values: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    """Dictionaries with printable keys."""
    return st.dictionaries(names, values, max_size=most)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A point of some probe's axes; ``size`` among them now and then."""
    params: dict[str, Scalar] = draw(st.dictionaries(words, st.one_of(names, st.integers(-9, 10**6), numbers), max_size=3))
    if draw(st.booleans()):
        params["size"] = draw(st.integers(0, 2**45))
    return Case(draw(words), draw(words), params)


workloads = st.builds(
    Workload,
    flops=counts,
    ops=counts,
    bytes_read=counts,
    bytes_written=counts,
    ios=counts,
    samples=counts,
    message_bytes=counts,
    collective=texts,
    dtype=st.sampled_from(["", "fp32", "bf16"]),
)
series = st.builds(Series, unit=names, values=st.lists(numbers, max_size=3))


@st.composite
def measurements(draw: st.DrawFn, least: int = 1) -> Measurement:
    """Raw times with at least ``least`` samples left after the warm-up."""
    samples = draw(st.lists(times, min_size=least, max_size=8))
    started = draw(st.booleans())
    return Measurement(
        clock=draw(st.sampled_from(["wall", "cuda_event", "cuda_graph"])),
        cache=draw(st.sampled_from(["cold", "hot", "none"])),
        warmup_cut=draw(st.integers(0, len(samples) - least)),
        iterations_per_sample=draw(st.integers(1, 10**9)),
        samples_s=samples,
        sample_start_s=[float(i) for i in range(len(samples))] if started else [],
        loop_mean_s=draw(st.none() | times),
        arrival_skew_s=draw(st.lists(numbers, max_size=3)),
        stop_reason=draw(st.sampled_from(["converged", "budget", "samples", "interrupted"])),
        digest=draw(texts),
        series=draw(mappings(series, 2)),
    )


@st.composite
def records(draw: st.DrawFn, planned: Planned, run_id: str, machine_id: str) -> Record:
    """A record that answers a planned case."""
    status = draw(st.sampled_from(["ok", "wrong", "error", "skipped", "verified"]))
    timed = status in ("wrong", "error")
    return Record(
        run_id=run_id,
        case=planned.case,
        probe=planned.probe,
        params=planned.params,
        launch=planned.launch,
        machine_id=machine_id,
        device=planned.device,
        ranks=planned.ranks,
        placement=[Place(rank=r, host=draw(names), cpus=draw(texts)) for r in range(draw(st.integers(0, planned.ranks)))],
        status=status,
        reason=draw(texts),
        started=draw(moments),
        workload=draw(workloads if status == "ok" else st.none() | workloads),
        measurement=draw(measurements() if status == "ok" else st.none() | measurements(0) if timed else st.none()),
        counters=Counters(path=draw(mappings(scalars)), device_bytes=draw(mappings(counts)), health=draw(mappings(scalars))),
        settings=draw(mappings(scalars)),
        telemetry=draw(mappings(scalars)),
    )


@st.composite
def plans(draw: st.DrawFn) -> Planned:
    """One planned case."""
    case = draw(cases())
    return Planned(
        case=case.id,
        probe=case.probe,
        module=case.module,
        params=dict(case.params),
        device=draw(devices),
        launch=draw(st.integers(0, 9)),
        ranks=draw(st.integers(1, 4)),
        world=draw(st.sampled_from(["serial", "mpi", "torch"])),
        interpret=draw(st.booleans()),
        target=draw(texts),
        budget_s=draw(times),
        timeout_s=draw(times),
        skip=draw(texts),
    )


runs = st.builds(
    Run,
    run_id=ids,
    started=moments,
    finished=st.just("") | moments,
    interrupted=st.booleans(),
    command=st.lists(texts, max_size=3),
    suite=texts,
    code=texts,
    planned=st.lists(plans(), min_size=1, max_size=4, unique_by=lambda p: (p.case, p.device, p.launch)),
    settings=mappings(scalars),
)
gpus = st.builds(
    Gpu, index=st.integers(0, 15), name=texts, uuid=texts, memory_bytes=st.none() | counts, ecc=st.none() | st.booleans()
)
machines = st.builds(
    Machine,
    machine_id=ids,
    host=names,
    os=texts,
    cpu=st.builds(Cpu, model=texts, cores=counts, threads=counts, allowed=texts, llc_bytes=st.none() | counts),
    memory_bytes=counts,
    gpus=st.lists(gpus, max_size=2),
    nics=st.lists(
        st.builds(Nic, name=texts, kind=st.sampled_from(["ethernet", "roce"]), rate_gbit_s=st.none() | times), max_size=2
    ),
    versions=mappings(texts),
    settings=mappings(scalars),
    findings=st.lists(st.builds(Finding, name=texts, state=st.sampled_from(["ok", "warning"]), detail=texts), max_size=2),
)


@dataclass(frozen=True)
class Filled:
    """A run, the machine it ran on, and records of some of its cases in the order they were taken."""

    run: Run
    machine: Machine
    records: list[Record]


@st.composite
def filled_runs(draw: st.DrawFn) -> Filled:
    """A whole run folder in memory."""
    run, machine = draw(runs), draw(machines)
    answered = draw(st.lists(st.sampled_from(run.planned), unique_by=lambda p: (p.case, p.device, p.launch)))
    return Filled(run, machine, [draw(records(planned, run.run_id, machine.machine_id)) for planned in answered])
