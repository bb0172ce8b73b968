"""Memory streams as the suite times them beside loops in C, and beside torch: same sizes, one process, taking turns.

    .venv/bin/python -m tools.beside_memory [SIZE [PAIRS]]        # 256MiB an array, 11 pairs

Needs a C compiler, which nothing else here does.  C has huge pages, a thread a core, and two loops for each operation: as the
compiler vectorises it, and with non-temporal stores; the one that is the faster over all pairs counts.  Ratios are of median
times, C over ours.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from clustergauge.clocks import WallClock
from clustergauge.measure import Plan, Sampler
from clustergauge.probe import Context, Work
from clustergauge.units import parse_size
from clustergauge.world import Serial
from kernels.memory import memory

PAIRS, CALLS = 11, 5
OPS = ("copy", "scale", "add", "triad")
SOURCE = r"""
#include <immintrin.h>
#include <sys/mman.h>
#include <time.h>
#define EACH _Pragma("omp parallel for schedule(static)") for (long i = 0; i < n; i += 8)
#define LINE for (long j = i; j < i + 8; j++)

static double *array(long n) {
    long bytes = (n * 8 + (2L << 20)) & -(2L << 20);
    double *p = mmap(0, bytes + (2L << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p = (double *)(((long)p + (2L << 20) - 1) & -(2L << 20));
    madvise(p, bytes, MADV_HUGEPAGE);
    EACH LINE p[j] = 1.0;
    return p;
}

static void put(double *p, __m256d low, __m256d high) { _mm256_stream_pd(p, low); _mm256_stream_pd(p + 4, high); }

static void one(int op, int streaming, long n, double *a, const double *b, const double *c) {
    const double s = 3.0;
    const __m256d t = _mm256_set1_pd(s);
#define B0 _mm256_load_pd(b + i)
#define B1 _mm256_load_pd(b + i + 4)
#define C0 _mm256_load_pd(c + i)
#define C1 _mm256_load_pd(c + i + 4)
#define M(x) _mm256_mul_pd(t, x)
#define P(x, y) _mm256_add_pd(x, y)
    switch (op * 2 + streaming) {
    case 0: EACH LINE a[j] = b[j]; break;
    case 1: EACH put(a + i, B0, B1); break;
    case 2: EACH LINE a[j] = s * b[j]; break;
    case 3: EACH put(a + i, M(B0), M(B1)); break;
    case 4: EACH LINE a[j] = b[j] + c[j]; break;
    case 5: EACH put(a + i, P(B0, C0), P(B1, C1)); break;
    case 6: EACH LINE a[j] = b[j] + s * c[j]; break;
    case 7: EACH put(a + i, P(B0, M(C0)), P(B1, M(C1))); break;
    }
    _mm_sfence();
}

static double *a, *b, *c;
void make(long n) { a = array(n); b = array(n); c = array(n); }

void take(int op, int streaming, long n, int calls, double *seconds) {
    for (int call = 0; call < calls; call++) {
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        one(op, streaming, n, a, b, c);
        clock_gettime(CLOCK_MONOTONIC, &t1);
        seconds[call] = t1.tv_sec - t0.tv_sec + 1e-9 * (t1.tv_nsec - t0.tv_nsec);
    }
}
"""


def built(folder: Path) -> ctypes.CDLL:
    """The loops in C."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or sys.exit("no C compiler (CC)")
    source, library = folder / "loops.c", folder / "loops.so"
    source.write_text(SOURCE)
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def ours(work: Work) -> float:
    """Median seconds of a call, by the timing loop."""
    taken = Sampler(work, WallClock(), Serial(), Plan(budget_s=0.0, target=0.0)).measure().samples_s
    while len(taken) < CALLS:
        taken += Sampler(work, WallClock(), Serial(), Plan(budget_s=0.0, target=0.0)).measure().samples_s
    return median(taken)


def main() -> int:
    """Entry point."""
    size = parse_size(sys.argv[1]) if len(sys.argv) > 1 else 256 << 20
    pairs = max(PAIRS, int(sys.argv[2])) if len(sys.argv) > 2 else PAIRS
    with TemporaryDirectory() as scratch:
        library = built(Path(scratch))
        library.make(ctypes.c_long(size // 8))
        for number, op in enumerate(OPS):
            works = [
                memory.function(Context(Serial(), "cpu", 1, Path(scratch)), backend=backend, op=op, size=size)
                for backend in ("native", "torch")
            ]

            def in_c(streaming: int, op: int = number) -> float:
                took = (ctypes.c_double * CALLS)()
                library.take(op, streaming, ctypes.c_long(size // 8), CALLS, took)
                return median(took)

            sides = {
                "C": lambda: in_c(0),
                "C past the caches": lambda: in_c(1),
                "native": lambda w=works[0]: ours(w),
                "torch": lambda w=works[1]: ours(w),
            }
            took: dict[str, list[float]] = {name: [] for name in sides}
            for pair in range(pairs):
                for name in list(sides) if pair % 2 else list(sides)[::-1]:
                    took[name].append(sides[name]())
            best = min(("C", "C past the caches"), key=lambda name: median(took[name]))
            over_c = [c / native for c, native in zip(took[best], took["native"], strict=True)]
            over_torch = [other / native for other, native in zip(took["torch"], took["native"], strict=True)]
            low, _, high = quantiles(over_c, n=4)
            rate = size * (2 if number < 2 else 3) / median(took["native"]) / 1e9
            sys.stdout.write(
                f"{op:5} native {rate:5.1f} GB/s: over {best} {median(over_c):.3f} ({low:.3f} … {high:.3f}), "
                f"over torch {median(over_torch):.2f}\n"
            )
            for work in works:
                if work.close:
                    work.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
