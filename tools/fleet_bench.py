"""How long a fleet takes to judge: makes runs of so many nodes, then reads and judges them.

    python tools/fleet_bench.py 1000 200            # nodes, cases; 10 samples each; in a temporary folder
    python tools/fleet_bench.py 10000 200 FOLDER    # made there (what is there already is not), and kept

Prints seconds (and those of processors, which tell more on a busy machine), and the most memory that all its processes held
together (what they share counted once: PSS).  One node in a hundred is planted 10 % slow, and must be found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clustergauge import blame, reduce, sums
from clustergauge.model import Cpu, Machine, Measurement, Place, Planned, Record, Run, Scalar, Workload
from clustergauge.probe import Case

SAMPLES = 10
STARTED = "2026-01-01T00:00:00Z"
EVERY_S = 0.2
"""How often memory is looked at."""


def make(parent: Path, cases: int, node: int) -> Path:
    """The folder of one node's run."""
    rng = random.Random(node)  # noqa: S311 (made-up figures)
    run_id, machine_id, host = f"run-{node:05d}", f"m{node:05d}", f"node-{node:05d}"
    speed = (0.9 if is_slow(node) else 1.0) * (1 + 0.004 * rng.gauss(0, 1))
    planned: list[Planned] = []
    records: list[bytes] = []
    for number in range(cases):
        params: dict[str, Scalar] = {"backend": "torch", "shape": str(number)}
        case = Case("matmul", "", params).id
        planned.append(Planned(case=case, probe="matmul", module="kernels.matmul", params=params, device="cpu:0"))
        samples = [1e-3 / speed * (1 + 0.01 * rng.gauss(0, 1)) for _ in range(SAMPLES)]
        record = Record(
            run_id=run_id,
            case=case,
            probe="matmul",
            params=params,
            machine_id=machine_id,
            status="ok",
            started=STARTED,
            placement=[Place(rank=0, host=host)],
            workload=Workload(flops=10**9, dtype="fp32", bound="compute"),
            measurement=Measurement(
                clock="wall", cache="cold", samples_s=samples, sample_start_s=[i * 1e-3 for i in range(SAMPLES)], digest="ab"
            ),
            settings={"threads": 2},
        )
        records.append(msgspec.json.encode(record) + b"\n")
    machine = Machine(
        machine_id=machine_id, host=host, cpu=Cpu(model="made up", cores=2, threads=2, allowed="0-1"), memory_bytes=1 << 34
    )
    run = Run(run_id=run_id, started=STARTED, finished=STARTED, command=["made"], suite="made", code="made", planned=planned)
    files = {
        "run.json": msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n",  # as `store` writes them
        f"machines/{machine_id}.json": msgspec.json.format(msgspec.json.encode(machine), indent=2) + b"\n",
        "records.jsonl": b"".join(records),
        "records.sha256": b"".join(hashlib.sha256(line).hexdigest().encode() + b"\n" for line in records),
    }
    path = parent / run_id
    if path.exists():
        return path
    for folder in ("machines", "logs"):
        (path / folder).mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "SHA256SUMS").write_bytes(sums.text(path))
    return path


def is_slow(node: int) -> bool:
    """Which nodes are planted slow."""
    return node % 100 == 7


class Memory:
    """The most memory that this process and its children held at once, in bytes, as far as was looked."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Look at it again and again meanwhile."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.most = max(self.most, sum(map(_held, _family())))


def _family() -> list[int]:
    """This process and its children."""
    found = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def _processor_s() -> float:
    """Seconds that this process and its children that ended have run."""
    return sum(os.times()[:4])


def main() -> int:
    """Make, read, judge, say."""
    words = sys.argv[1:]
    nodes, cases = (int(word) for word in (*words[:2], *("1000", "200")[len(words) :]))
    with contextlib.ExitStack() as stack:
        folder = Path(words[2] if len(words) > 2 else stack.enter_context(tempfile.TemporaryDirectory()))
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            paths = list(pool.map(partial(make, folder, cases), range(nodes), chunksize=16))
        memory = Memory()
        with memory.watched():
            began, spent = time.monotonic(), _processor_s()
            part = reduce.read(paths)
            read, spent_reading = time.monotonic(), _processor_s() - spent
            fleet = blame.judge(part)
            ended = time.monotonic()
    found = {n.host for n in fleet.nodes if n.state != "good"}
    planted = {f"node-{node:05d}" for node in range(nodes) if is_slow(node)}
    print(  # noqa: T201
        f"{nodes} nodes x {cases} cases x {SAMPLES} samples: read in {read - began:.1f} s ({spent_reading:.1f} s of processors), "
        f"judged in {ended - read:.1f} s, "
        f"at most {memory.most / 2**30:.2f} GiB; found {len(found & planted)} of {len(planted)}, {len(found - planted)} others"
    )
    return 0 if planted <= found else 1


if __name__ == "__main__":
    sys.exit(main())
