"""Ranks for test_all_reduce: take a few samples of all_reduce cases as the timing loop does, with or without a planted fault.

``all_reduce_ranks.py OUT WORLD CASES``: every rank writes what came of each case to OUT/<rank>.json.  WORLD is ``mpi`` (ranks
started by mpiexec) or ``torch:RANK:SIZE``.  CASES: pairs of a fault and the parameters.  Faults: ``none``, ``flip`` (rank 1 gets
one wrong bit), ``nothing`` (rank 1's calls leave its buffer alone), ``stale`` (ranks sum once and then no more), ``missing``
(rank 1 contributes zeros).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec

from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Mpi, TorchDistributed
from collectives.all_reduce import all_reduce

SAMPLES = 3


class Hub:
    """As much of a control channel as making a world takes: rank 0's word, left in a file."""

    def __init__(self, rank, folder):
        self.rank, self.path = rank, folder / "from_root"

    def gather(self, value):
        raise NotImplementedError

    def from_root(self, value):
        if self.rank == 0:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(value))
            part.rename(self.path)
        while not self.path.exists():
            time.sleep(0.001)
        return json.loads(self.path.read_text())


class FaultyComm:
    """MPI's communicator with a planted fault in Allreduce."""

    def __init__(self, comm, fault):
        self.comm, self.fault, self.calls = comm, fault, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Allreduce(self, send, receive, op):  # noqa: N802
        self.calls += 1
        bad = self.comm.rank == 1
        if self.fault == "stale" and self.calls > 1:
            return
        if self.fault == "missing" and bad:
            send = [send[0] * 0, *send[1:]]
        self.comm.Allreduce(send, [receive[0].copy(), *receive[1:]] if self.fault == "nothing" and bad else receive, op)
        if self.fault == "flip" and bad:
            receive[0][len(receive[0]) // 2] ^= 1


def faulty_all_reduce(fault, rank):
    """A faulty call for torch.distributed.all_reduce's place."""
    import torch
    import torch.distributed as dist

    real, calls, bad = dist.all_reduce, [], rank == 1

    def faulty(tensor, op):
        calls.append(1)
        if fault == "stale" and len(calls) > 1:
            return
        if fault == "missing" and bad:
            tensor.zero_()
        real(tensor.clone() if fault == "nothing" and bad else tensor, op=op)
        if fault == "flip" and bad:
            tensor.view(torch.int32)[len(tensor) // 2] ^= 1

    return faulty


def measure(world, case):
    """Samples of one case, checked at the end as every rank must take part to the last: what came of it."""
    context = Context(world=world, device="cpu", seed=1, scratch=Path())
    said = {"status": "ok", "reason": "", "settings": context.settings}
    try:
        work = all_reduce.function(context, **case)
    except Skip as reason:
        return said | {"status": "skipped", "reason": str(reason)}
    iterations = min(3, work.max_iterations or 3)
    for _ in range(SAMPLES):
        work.reset()
        if work.sync:
            world.barrier()
        for step in range(iterations):
            work.last = step % len(work.runs)
            work.runs[work.last]()
    try:
        work.check()
    except Wrong as wrong:
        said |= {"status": "wrong", "reason": str(wrong)}
    return said | {"iterations": iterations, "loop": work.loop, "workload": msgspec.to_builtins(work.workload)}


def with_fault(world, fault, case):
    """The same with a planted fault, taken out again afterwards."""
    if fault == "none":
        return measure(world, case)
    if case["backend"] == "mpi":
        comm = world.comm
        world.comm = FaultyComm(comm, fault)
        try:
            return measure(world, case)
        finally:
            world.comm = comm
    with mock.patch("torch.distributed.all_reduce", faulty_all_reduce(fault, world.rank)):
        return measure(world, case)


def main():
    out, kind, cases = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if kind == "mpi":
        world = Mpi(Hub(0, out))
    else:
        rank, size = map(int, kind.split(":")[1:])
        world = TorchDistributed(Hub(rank, out), rank, size, "cpu", 30.0)
    outcomes = [with_fault(world, fault, case) for fault, case in cases]
    (out / f"{world.rank}.json").write_text(json.dumps(outcomes))
    world.close()


if __name__ == "__main__":
    main()
