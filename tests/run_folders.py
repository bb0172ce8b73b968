"""A small sound run for the tests of the run folder: documents by hand, and a folder that holds them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from clustergauge.model import Cpu, Machine, Measurement, Planned, Record, Run, Workload
from clustergauge.store import RunFolder

RUN_ID = "20261123-063000-7f3c"


def a_run(launches: int = 4, **changes: object) -> Run:
    """A run of one case in so many launches."""
    planned = [
        Planned(case="spin/ns=100", probe="spin", module="probes", params={"ns": 100}, device="cpu:0", launch=launch)
        for launch in range(launches)
    ]
    run = Run(run_id=RUN_ID, started="2026-11-23T06:30:00Z", command=["run"], suite="quick", code="c0de", planned=planned)
    return msgspec.structs.replace(run, **changes)


def a_machine(**changes: object) -> Machine:
    """A machine."""
    cpu = Cpu(model="a CPU", cores=2, threads=4, allowed="0-3")
    return msgspec.structs.replace(Machine(machine_id="m1", host="node-017", cpu=cpu, memory_bytes=1 << 34), **changes)


def a_record(launch: int = 0, **changes: object) -> Record:
    """A record that answers one launch of `a_run`."""
    record = Record(
        run_id=RUN_ID,
        case="spin/ns=100",
        probe="spin",
        params={"ns": 100},
        launch=launch,
        machine_id="m1",
        status="ok",
        started="2026-11-23T06:30:01Z",
        workload=Workload(bound="latency"),
        measurement=Measurement(clock="wall", cache="none", samples_s=[1e-7, 1.5e-7, 2e-7], warmup_cut=1),
        settings={"threads": 4, "engine": "é"},
    )
    return msgspec.structs.replace(record, **changes)


def fill(
    parent: Path,
    records: int = 3,
    finished: bool = True,
    run: Run | None = None,
    record: Callable[[int], Record] = a_record,
) -> Path:
    """The folder of `a_run` with so many records, closed."""
    run = run or a_run()
    with RunFolder.create(parent, run) as folder:
        folder.write_machine(a_machine())
        for launch in range(records):
            folder.append(record(launch))
        if finished:
            folder.finish(msgspec.structs.replace(run, finished="2026-11-23T06:31:00Z"))
    return folder.path


@contextmanager
def in_memory() -> Iterator[Path]:
    """A temporary folder where syncing costs nothing, if this machine has such a place: for what is done a thousand times."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def files_of(path: Path) -> dict[str, bytes]:
    """Content of every file of the folder but its lock."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(path)): p.read_bytes() for p in files}
