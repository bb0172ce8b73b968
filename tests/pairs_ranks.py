"""Ranks for test_pairs: sweeps of pairs as the timing loop takes them, with or without a planted fault.

``pairs_ranks.py OUT WORLD CASES``: as `over_mpi_ranks`.  Faults: ``none``, ``flip`` (what rank 2 receives from rank 1 has one
wrong bit), ``other`` (rank 1 sends what rank 3 would).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import numpy as np

from clustergauge.clocks import WallClock
from clustergauge.measure import Plan, Sampler
from clustergauge.probe import Context, Wrong
from clustergauge.world import Mpi, TorchDistributed
from collectives import exact
from collectives.pairs import pairs


class Hub:
    """A control channel of files: what is said in turn ``n`` lies in ``n.<rank>`` and ``n.root``."""

    def __init__(self, rank, size, folder):
        self.rank, self.size, self.folder, self.turn = rank, size, folder, 0

    def _say(self, name, value):
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(value))
        part.rename(self.folder / name)

    def _hear(self, name):
        while not (self.folder / name).exists():
            time.sleep(0.002)
        return json.loads((self.folder / name).read_text())

    def gather(self, value):
        self.turn += 1
        self._say(f"{self.turn}.{self.rank}", value)
        return [self._hear(f"{self.turn}.{r}") for r in range(self.size)] if self.rank == 0 else None

    def from_root(self, value):
        self.turn += 1
        if self.rank == 0:
            self._say(f"{self.turn}.root", value)
        return self._hear(f"{self.turn}.root")


def plant(fault, work, rank, size):
    """Spoil the case on this rank."""
    transport = work.reset.__self__._transport
    if fault == "other" and rank == 1:
        wrong = exact.encode(exact.contribution("fp32", 3, size, exact.PERIOD), "fp32")
        sent = transport.sent if isinstance(transport.sent, np.ndarray) else transport.sent.numpy()
        exact.fill(sent, wrong[: len(sent)])
    if fault == "flip" and rank == 2:
        steps = work.reset.__self__._sources

        def spoiled(run, source):
            def call():
                run()
                if source == 1:
                    transport.received[7] ^= 1

            return call

        work.run = [spoiled(run, source) for run, source in zip(work.run, steps, strict=True)]


def measure(world, fault, case):
    """One sweep: what came of it on this rank."""
    context = Context(world=world, device="cpu", seed=1, scratch=Path())
    work = pairs.function(context, **case)
    plant(fault, work, world.rank, world.size)
    said = {"status": "ok", "reason": "", "settings": context.settings, "workload": msgspec.to_builtins(work.workload)}
    try:
        measured = Sampler(work, WallClock(), world, Plan(budget_s=0.01)).measure()
    except Wrong as wrong:
        return said | {"status": "wrong", "reason": str(wrong), "rank": wrong.rank}
    return said | {"series": context.series, "samples": measured.samples_s, "cut": measured.warmup_cut}


def main():
    out, kind, cases = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if kind == "mpi":
        hub = Hub(0, 0, out)
        world = Mpi(hub)
        hub.rank, hub.size = world.rank, world.size
    else:
        rank, size = map(int, kind.split(":")[1:])
        world = TorchDistributed(Hub(rank, size, out), rank, size, "cpu", 30.0)
    outcomes = [measure(world, fault, case) for fault, case in cases]
    (out / f"{world.rank}.json").write_text(json.dumps(outcomes))
    world.close()


if __name__ == "__main__":
    main()
