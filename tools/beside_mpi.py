"""All-reduce as the suite times it beside a loop in C: same MPI, same ranks, same buffers, one process, taking turns.

    .venv/bin/python tools/beside_mpi.py                                     # 9 pairs at 8 B, 1 KiB, 1 MiB and 64 MiB, two ranks
    .venv/bin/python tools/beside_mpi.py --mpicc /opt/openmpi/bin/mpicc --mpiexec /opt/openmpi/bin/mpiexec --pairs 21

Needs a C compiler, which nothing else here does: the loop is built in a temporary folder with the mpicc that came with the MPI.
Samples (ranks meet before each; the maximum over ranks, the median) stand beside samples, the mean of a loop of calls beside the
mean of a loop.  Ratios are of C's time to the suite's, pair by pair: their median, and the least and the most.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from array import array
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clustergauge import stats
from clustergauge.clocks import WallClock
from clustergauge.measure import LOOPS, Plan, Sampler
from clustergauge.probe import Context
from clustergauge.units import format_size, format_time, parse_size
from clustergauge.world import Mpi
from collectives.operations import all_reduce

LEAST_PAIRS = 9
BANDWIDTH_FROM, BANDWIDTH_GOAL = 2**20, 0.97
"""From this size on, the share of C's bandwidth that is asked for."""
LATENCY_TO, LATENCY_GOAL_S = 2**10, 0.6e-6
"""Up to this size, the seconds more than C that are allowed."""
SOURCE = r"""
#include <mpi.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Seconds of each of `samples` samples of `calls` calls: poison, meet, call.  Returns 0, or MPI's error. */
int beside(MPI_Fint comm_, void *send, void *receive, int count, int samples, int calls, double *seconds) {
    MPI_Comm comm = MPI_Comm_f2c(comm_);
    for (int sample = 0; sample < samples; sample++) {
        memset(receive, 255, (size_t)count * sizeof(float));
        int failed = MPI_Barrier(comm);
        double start = now();
        for (int call = 0; call < calls; call++)
            failed |= MPI_Allreduce(send, receive, count, MPI_FLOAT, MPI_SUM, comm);
        seconds[sample] = now() - start;
        if (failed)
            return failed;
    }
    return 0;
}
"""


class Hub:
    """The control channel, over MPI: nothing is timed while it talks."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def gather(self, value: Any) -> list[Any] | None:
        """All ranks' values on rank 0."""
        said = json.dumps(value).encode()
        lengths = array("i", [0] * self.comm.size)
        self.comm.Allgather(array("i", [len(said)]), lengths)
        heard = bytearray(sum(lengths))
        self.comm.Gatherv(said, [heard, list(lengths), None, self._byte()] if self.comm.rank == 0 else None)
        if self.comm.rank:
            return None
        ends = [sum(lengths[: rank + 1]) for rank in range(self.comm.size)]
        return [json.loads(heard[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def from_root(self, value: Any) -> Any:
        """Rank 0's value."""
        said = json.dumps(value).encode() if self.comm.rank == 0 else b""
        length = array("i", [len(said)])
        self.comm.Bcast(length)
        heard = bytearray(said or length[0])
        self.comm.Bcast(heard)
        return json.loads(heard)

    @staticmethod
    def _byte() -> Any:
        from mpi4py import MPI

        return MPI.BYTE


class Pairing:
    """One size on one rank: the suite's work, and C on the same buffers.  C takes as many samples and calls as the suite took."""

    def __init__(self, world: Mpi, library: Any, size: int, budget_s: float) -> None:
        context = Context(world=world, device="cpu", seed=1, scratch=Path())
        self.world, self.library, self.count = world, library, size // 4
        self.work = all_reduce.function(context, "mpi", "fp32", size)
        self.plan = Plan(budget_s=budget_s)
        self.overhead = 0.0
        run: Any = self.work.runs[0]
        bound = run.args[:2] if isinstance(run, functools.partial) else run.__self__[-1]
        self.send, self.receive = (ctypes.c_void_p(spec[0].address) for spec in bound)
        self.shape = [1, 1, 1]
        self.suite()

    def pair(self, suite_first: bool) -> dict[str, float]:
        """Times of one turn each, the maximum over ranks: ``suite``, ``c`` for samples, ``suite_loop``, ``c_loop`` for loops."""
        return self.suite() | self.c() if suite_first else self.c() | self.suite()

    def suite(self) -> dict[str, float]:
        """As a case is measured, its output checked."""
        sampler = Sampler(self.work, WallClock(), self.world, self.plan)
        measured = sampler.measure()
        loop = sampler.loop_mean()
        self.overhead = sampler.overhead() or 0.0
        self.shape = self.world.from_root([len(measured.samples_s), measured.iterations_per_sample, sampler.loop_calls])
        exact: Any = self.work.check
        exact()
        return {"suite": stats.median(measured.samples_s), "suite_loop": loop} if measured.samples_s else {}

    def c(self) -> dict[str, float]:
        """The same in C."""
        samples, calls, loop_calls = self.shape
        return {"c": self._c(samples, calls), "c_loop": self._c(LOOPS, loop_calls)}

    def _c(self, samples: int, calls: int) -> float:
        """Seconds of a call: the median of samples, each the maximum over ranks (on rank 0; elsewhere its own)."""
        seconds = (ctypes.c_double * samples)()
        failed = self.library.beside(self.world.comm.py2f(), self.send, self.receive, self.count, samples, calls, seconds)
        if failed:
            raise RuntimeError(f"MPI_Allreduce in C failed with {failed}")
        everybody = self.world.gather(list(seconds)) or [list(seconds)]
        return stats.median([max(of_ranks) / calls for of_ranks in zip(*everybody, strict=True)])


def rank_main(library: str, out: str, sizes: list[int], pairs: int, budget_s: float) -> None:
    """One rank: all pairs of all sizes; rank 0 writes them down."""
    from mpi4py import MPI

    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[MPI.COMM_WORLD.rank % len(processors)]})
    world = Mpi(Hub(MPI.COMM_WORLD.Dup()))
    loaded = ctypes.CDLL(library)
    loaded.beside.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int] * 3, ctypes.POINTER(ctypes.c_double)]
    results: list[dict[str, Any]] = []
    for size in sizes:
        pairing = Pairing(world, loaded, size, budget_s)
        pairing.c()  # both have run once
        turns = [pairing.pair(suite_first=turn % 2 == 0) for turn in range(pairs)]
        results.append({"size": size, "pairs": turns, "overhead_s": pairing.overhead})
    if world.rank == 0:
        Path(out).write_text(json.dumps({"library": world.library, "ranks": world.size, "results": results}), encoding="utf-8")
    world.close()


def table(document: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines for people, and whether all goals are met."""
    lines = [
        f"{document['library']}, {document['ranks']} ranks; times of a call, medians of pairs; ratio: C's time / the suite's",
        "",
    ]
    lines.append(f"{'size':>8} {'':8} {'suite':>9} {'C':>9}  {'ratio':>6} (least … most)  {'more than C':>12}  goal")
    met = True
    for result in document["results"]:
        for name, suite, c in (("samples", "suite", "c"), ("loop", "suite_loop", "c_loop")):
            pairs = [(pair[suite], pair[c]) for pair in result["pairs"]]
            ratios = sorted(theirs / own for own, theirs in pairs)
            more = stats.median([own - theirs for own, theirs in pairs])
            goal, good = "", True
            if result["size"] >= BANDWIDTH_FROM:
                goal, good = f"≥ {BANDWIDTH_GOAL} of C", stats.median(ratios) >= BANDWIDTH_GOAL
            elif result["size"] <= LATENCY_TO:
                goal, good = f"≤ {format_time(LATENCY_GOAL_S)} more", more <= LATENCY_GOAL_S
            met &= good
            own, theirs = (format_time(stats.median(list(side))) for side in zip(*pairs, strict=True))
            spread = f"({ratios[0]:.2f} … {ratios[-1]:.2f})"
            word = f"{goal}: {'met' if good else 'MISSED'}" if goal else ""
            lines.append(
                f"{format_size(result['size']):>8} {name:8} {own:>9} {theirs:>9}  {stats.median(ratios):6.3f} {spread:15} "
                f"{format_time(more):>12}  {word}"
            )
        lines.append(f"{'':8} {'alone':8} {format_time(result['overhead_s']):>9}  the call among one rank: Python and MPI's own")
    return lines, met


def main() -> int:
    """Build the loop, start the ranks, print the table.  1: a goal was missed; 2: it could not be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--sizes", default="8B,1KiB,1MiB,64MiB", help="with commas between")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help=f"turns of each, {LEAST_PAIRS} at least")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds of one turn")
    parser.add_argument("--ranks", type=int, default=2)
    scripts = Path(sysconfig.get_path("scripts"))
    parser.add_argument("--mpicc", default=str(scripts / "mpicc"))
    parser.add_argument("--mpiexec", default=str(scripts / "mpiexec"), help="command line that starts ranks; -n RANKS is added")
    parser.add_argument("--json", type=Path, help="also write all pairs there")
    given = parser.parse_args()
    if given.pairs < LEAST_PAIRS:
        parser.error(f"--pairs {given.pairs}: fewer than {LEAST_PAIRS} pairs say little")
    try:
        sizes = [parse_size(size) for size in given.sizes.split(",")]
    except ValueError as error:
        parser.error(f"--sizes: {error}")
    if not shutil.which(given.mpicc) or not (shutil.which("cc") or shutil.which("gcc")):
        print(f"beside_mpi: needs {given.mpicc} and a C compiler (cc): nothing was measured", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="beside-") as folder:
        source, library, out = (Path(folder) / name for name in ("beside.c", "libbeside.so", "pairs.json"))
        source.write_text(SOURCE, encoding="utf-8")
        subprocess.run([given.mpicc, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        work = json.dumps([str(library), str(out), sizes, given.pairs, given.budget])
        command = [*shlex.split(given.mpiexec), "-n", str(given.ranks), sys.executable, "-m", "mpi4py", __file__, "--rank", work]
        done = subprocess.run(command, env=os.environ | {"MPI4PY_RC_THREAD_LEVEL": "funneled"})
        if done.returncode or not out.exists():
            print(f"beside_mpi: the ranks ended with {done.returncode} and no result", file=sys.stderr)
            return 2
        document = json.loads(out.read_text(encoding="utf-8"))
    if given.json:
        given.json.write_text(json.dumps(document), encoding="utf-8")
    lines, met = table(document)
    print("\n".join(lines))
    return 0 if met else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank_main(*json.loads(sys.argv[2]))
    else:
        sys.exit(main())
