"""CUDA C kernels run on the processor.

The ``.cu`` files are compiled by g++ behind ``tests/cuda_shim`` and started by the real launch code, with a stand-in for CuPy.
This file, run as a program, does that in a process of its own, in a fork for each source: an access outside of an array ends it.
"""

import ctypes
import json
import math
import mmap
import os
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

from kernels import cuda, latency

SHIM = Path(__file__).parent / "cuda_shim" / "shim.hpp"
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-x", "c++")
SANITIZERS = ("-fsanitize=alignment,signed-integer-overflow,bounds", "-fsanitize-undefined-trap-on-error")
UNITS = 2
OPS = ("write", "copy", "scale", "add", "triad")
PAGE = mmap.PAGESIZE

MUTANTS = {
    "stream": (
        ("a pair too few", "at + u * THREADS < pairs", "at + u * THREADS + 1 < pairs"),
        ("a pair too many", "at + u * THREADS < pairs", "at + u * THREADS <= pairs"),
        ("a short chunk taken for a whole one", "from + CHUNK <= pairs", "from + CHUNK <= pairs + 1"),
        ("no chunk is whole, and the last one is lost", "if (WHOLE || at", "if (WHOLE && at"),
        ("odd last element lost", "if (n % 2 &&", "if (n % 2 == 2 &&"),
        ("odd last element everywhere", "if (n % 2 &&", "if ("),
        ("chunks stepped over", "from += gridDim.x * CHUNK", "from += (gridDim.x + 1) * CHUNK"),
        ("chunks done twice", "gridDim.x * CHUNK", "gridDim.x * CHUNK / 2"),
        ("scalar forgotten", "return __dmul_rn(s, b);", "return b;"),
        ("rounded once instead of twice", "__dadd_rn(b, __dmul_rn(s, c))", "fma(s, c, b)"),
        ("first operand twice", "y[u] = c[at", "y[u] = b[at"),
        ("half a pair", "r.y = Op::apply(x[u].y", "r.y = Op::apply(x[u].x"),
        ("half the pairs summed", "total.y += x[u].y;", ""),
        ("no barrier", "__syncthreads();", ""),
        ("half the sums", "half = THREADS / 2", "half = THREADS / 4"),
        ("sums misplaced", "sums[blockIdx.x]", "sums[0]"),
    ),
    "cache": (
        ("too many at once", "(UNROLL - 1) * step < n", "(UNROLL - 2) * step < n"),
        ("the rest lost", "for (; i < n; i += step)", "for (; i + step < n; i += step)"),
        ("one too many", "for (; i < n; i += step)", "for (; i <= n; i += step)"),
        ("a round lost", "round < rounds", "round < rounds - 1"),
        ("one window for all", "data + blockIdx.x * n", "data"),
        ("parts do not come round", "part + 1 < gridDim.x ? part + 1 : 0", "part + 1"),
        ("a word of four lost", "+ v.z + v.w", "+ v.z + v.z"),
        ("warps do not come round", "(threadIdx.x + 32 * round) % THREADS", "threadIdx.x + 32 * round"),
        ("no barrier", "__syncthreads();", ""),
    ),
    "chase": (
        ("a step too many", "i < steps", "i <= steps"),
        ("a step too few", "i < steps", "i + 1 < steps"),
        ("does not move", "at = reinterpret_cast<const unsigned long long*>(*at)", "at = at"),
        ("does not go on", "cell[0] = reinterpret_cast<unsigned long long>(at);", ""),
        ("does not count", "cell[1] += steps;", ""),
        ("forgets what it counted", "cell[1] += steps;", "cell[1] = steps;"),
    ),
    "sgemm": (
        ("a step of K lost", "k < K; k += STEP", "k + STEP < K; k += STEP"),
        ("last element of K lost", "if (k + 2 < K)", "if (k + 3 < K)"),
        ("an element of K too many", "if (k + 3 < K)", "if (k + 2 < K)"),
        ("reads past K", "if (k < K) v =", "v ="),
        ("rows of A not clamped", "least(m0 + row, M - 1)", "(m0 + row)"),
        ("rows of B not clamped", "least(n0 + row, N - 1)", "(n0 + row)"),
        ("last row not written", "if (m >= M)", "if (m >= M - 1)"),
        ("a row too many", "if (m >= M)", "if (m > M)"),
        ("last column not written", "if (n + j < N)", "if (n + j < N - 1)"),
        ("a column too many", "if (n + j < N)", "if (n + j <= N)"),
        ("last four columns not written", "if (n < N)", "if (n + 4 < N)"),
        ("four columns too many", "if (n < N)", "if (n <= N)"),
        ("rounded twice instead of once", "fmaf(x[i], y[j], sums[i][j])", "x[i] * y[j] + sums[i][j]"),
        ("no barrier before the first step", "store(0);\n    __syncthreads();", "store(0);"),
        ("no barrier between steps", "store(1 - buffer);\n        __syncthreads();", "store(1 - buffer);"),
        ("one buffer", "store(1 - buffer)", "store(buffer)"),
        ("buffers not swapped", "buffer = 1 - buffer;", ""),
        ("upper half of a tile twice", "row + at + TILE / 2", "row + at"),
        ("columns of a group mixed up", "inside / rows * TILE", "inside % rows * TILE"),
        ("groups overlap", "/ group * GROUP", "/ group * (GROUP - 1)"),
        ("operands swapped", "sgemm<false>(a, b, c", "sgemm<false>(b, a, c"),
    ),
}


# --------------------------------------------------------------------------------------------------------------------------
# a stand-in for CuPy that runs kernels behind the shim


BUILT = {}


def build(name, texts, folder):
    """One library of several texts of a source, each in a namespace of its own; ``BUILT`` then tells where each is."""
    path = folder / f"{name}.so"
    parts = [f'#include "{SHIM}"\n']
    for number, text in enumerate(texts):
        launchers = "".join(f"LAUNCHER(v{number}, {kernel})\n" for kernel in cuda.kernels_in(text))
        inside = text.replace('extern "C" ', "")
        parts.append(f'namespace v{number} {{\n#line 1 "{name}.cu {number}"\n{inside}\n}}\n{launchers}')
        BUILT[text] = path, f"v{number}"
    command = ["g++", *FLAGS, *SANITIZERS, "-", "-o", str(path)]
    said = subprocess.run(command, input="".join(parts), capture_output=True, text=True, check=False, timeout=100)
    assert said.returncode == 0, said.stderr


class Kernel:
    """What ``RawModule.get_function`` gives: passes integers and floats as CuPy does, 8 bytes each."""

    def __init__(self, code, name, backwards):
        path, space = BUILT[code]
        self.function = getattr(ctypes.CDLL(str(path)), f"launch_{space}_{name}")
        self.backwards = backwards

    def compile(self):
        pass

    def __call__(self, grid, block, args):
        assert len(grid) == len(block) == 1
        values = [ctypes.c_double(a) if isinstance(a, float) else ctypes.c_longlong(a) for a in args]
        kinds = "".join("d" if isinstance(a, float) else "l" for a in args).encode()
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        status = self.function(grid[0], block[0], pointers, kinds, int(self.backwards))
        assert status == 0, ("", "arguments do not fit", "threads did not meet at a barrier", "impossible launch")[status]


class Entered:
    """A device or a stream: notes that it was entered."""

    def __init__(self, log, what):
        self.log, self.what = log, what

    def __enter__(self):
        self.log.append(self.what)

    def __exit__(self, *_):
        pass


def stand_in(backwards=False):
    """A module with the parts of CuPy that the launch code uses; ``log`` holds the devices and streams that were entered."""
    cupy = ModuleType("cupy")
    cupy.log = log = []

    class Module:
        def __init__(self, code, options):
            assert options == cuda.OPTIONS
            self.code = code

        def get_function(self, name):
            return Kernel(self.code, name, backwards)

    def shared(tensor):
        array = tensor.numpy()
        return SimpleNamespace(array=array, data=SimpleNamespace(ptr=tensor.data_ptr()), T=SimpleNamespace(array=array.T))

    cupy.RawModule = Module
    cupy.asarray = shared
    cupy.matmul = lambda a, b, out: np.matmul(a.array, b.array, out=out.array)
    cupy.cuda = SimpleNamespace(
        Device=lambda index: Entered(log, ("device", index)),
        Stream=SimpleNamespace(from_external=lambda handle: Entered(log, ("stream", handle.__cuda_stream__()[1]))),
        ExternalStream=lambda pointer, index: Entered(log, ("external", pointer, index)),
        cublas=SimpleNamespace(getVersion=lambda handle: 130100 if handle == 7 else None),
        get_cublas_handle=lambda: 7,
    )
    return cupy


def pretend(setattr_, cupy, current=lambda index: 4711):
    """Put the stand-in in CuPy's place, on a device with two multiprocessors that only the launch code sees."""
    cuda._kernel.cache_clear()
    cuda._stream.cache_clear()
    setattr_(torch.cuda, "current_device", lambda: 0)
    setattr_(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=current(index)))
    setattr_(cuda, "_units", lambda device: UNITS)
    return cupy


# --------------------------------------------------------------------------------------------------------------------------
# the cases; each raises AssertionError if a kernel is wrong

KEPT = []
random = np.random.default_rng(5)


def guarded(values):
    """A copy whose last byte lies as close before an inaccessible page as alignment to 16 allows; a tensor, and its slack."""
    values = np.ascontiguousarray(values)
    size = -(-values.nbytes // 16) * 16
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + (pages + 1) * PAGE):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), PAGE, 0) == 0
    whole = np.frombuffer(memory, np.uint8, size, (pages + 1) * PAGE - size)
    whole[:] = 0xFF  # NaN, and -1
    array = whole[: values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    KEPT.append((memory, whole))
    return torch.from_numpy(array), whole[values.nbytes :]


def same(got, expected):
    """Bit for bit."""
    got = np.ascontiguousarray(got)
    assert got.dtype == expected.dtype
    assert got.tobytes() == np.ascontiguousarray(expected).tobytes()


def untouched(*slacks):
    assert all((slack == 0xFF).all() for slack in slacks)


def streamed(op, n, blocks=None):
    (b, _), (c, _) = guarded(random.standard_normal(n)), guarded(random.standard_normal(n))
    out, slack = guarded(np.full(n, np.nan))
    s, x, y = 1 / 3, b.numpy(), c.numpy()
    inputs = {"write": (s,), "copy": (b,), "scale": (b, s), "add": (b, c), "triad": (b, c, s)}[op]
    if blocks:
        run = cuda.launcher("stream", f"stream_{op}", blocks, cuda.STREAM_THREADS, "cpu", out, *inputs, n)
    else:
        run = cuda.stream(op, out, b, c, s)
    run()
    same(out.numpy(), {"write": np.full(n, s), "copy": x, "scale": s * x, "add": x + y, "triad": x + s * y}[op])
    untouched(slack)


def read_by_numpy(b, blocks):
    """The sums in the kernel's own order."""
    threads, pairs = cuda.STREAM_THREADS, b.size // 2
    chunks = -(-pairs * 2 // cuda.CHUNK)
    padded = np.zeros(chunks * cuda.CHUNK)
    padded[: pairs * 2] = b[: pairs * 2]
    total = np.zeros((blocks, threads, 2))
    for chunk, values in enumerate(padded.reshape(chunks, cuda.CHUNK // threads // 2, threads, 2)):
        for step in values:
            total[chunk % blocks] += step
    sums = total[..., 0] + total[..., 1]
    if b.size % 2:
        sums[0, 0] += b[-1]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def summed(n, blocks):
    b, _ = guarded(random.standard_normal(n))
    out, slack = guarded(np.full(blocks or cuda.readers(n, "cpu"), np.nan))
    cuda.stream("read", out, b, out, 0.0)()
    same(out.numpy(), read_by_numpy(b.numpy(), out.numel()))
    assert math.isclose(math.fsum(out), math.fsum(b), abs_tol=1e-9)
    untouched(slack)


def cached(level, words, rounds):
    """``words``: for each block with l1, together with l2."""
    blocks = cuda.cache_blocks(level, "cpu")
    n = words * blocks if level == "l1" else words
    data, _ = guarded(random.integers(-(1 << 31), 1 << 31, n * 4, dtype=np.int64).astype(np.int32))
    sums, slack = guarded(np.zeros(blocks, np.int32))
    cuda.cache_read(level, data, sums, rounds)()
    by_word = data.numpy().reshape(n, 4).astype(np.int64).sum(1)
    owner = np.arange(n) // words if level == "l1" else np.arange(n) // cuda.CACHE_THREADS % blocks
    parts = np.array([by_word[owner == block].sum() for block in range(blocks)])
    turns = [[block if level == "l1" else (block + turn) % blocks for turn in range(rounds)] for block in range(blocks)]
    expected = np.array([sum(int(parts[i]) for i in turn) for turn in turns])
    same(sums.numpy(), (expected & 0xFFFFFFFF).astype(np.uint32).view(np.int32))
    assert (int(sums.sum()) - rounds * int(data.sum(dtype=torch.int64))) % (1 << 32) == 0
    untouched(slack)


def chased(nodes, stride, steps):
    memory, _ = guarded(np.zeros(nodes * stride // 8, np.int64))
    order = latency.link(memory, stride, torch.Generator().manual_seed(nodes))
    assert set(order.tolist()) == {memory.data_ptr() + i * stride for i in range(nodes)}
    cell, slack = guarded(np.array([int(order[0]), 5]))
    run = cuda.chase(memory, cell, steps)
    for turn in (1, 2, 3):
        run()
        assert cell.tolist() == [int(order[turn * steps % nodes]), 5 + turn * steps]
    untouched(slack)


def fused(a, b, c):
    """a·b + c in float32, rounded once: an exact product, and a sum rounded to odd in float64, which rounds on as the exact one.

    (Boldo & Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE
    Transactions on Computers 57 (2008).)
    """
    p, c = a.astype(np.float64) * b, c.astype(np.float64)
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)  # TwoSum: exact
    even = (s.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(s, toward), s).astype(np.float32)


def multiplied(m, n, k):
    (a, _), (b, _) = (guarded(random.standard_normal(shape).astype(np.float32)) for shape in ((m, k), (n, k)))
    c, slack = guarded(np.full((m, n), np.nan, np.float32))
    cuda.matmul("simt", "fp32", a, b, c)()
    expected = np.zeros((m, n), np.float32)
    for i in range(k):
        expected = fused(a.numpy()[:, i, None], b.numpy()[None, :, i], expected)
    same(c.numpy(), expected)
    untouched(slack)


SIZES = (1, 2, 3, 2046, 2047, 2048, 2049, 2050, 4097, 10007)
CASES = {
    "stream": {
        **{f"{op} {n}": (streamed, op, n) for op in OPS for n in SIZES},
        **{f"{op} 10007 in {blocks} blocks": (streamed, op, 10007, blocks) for op in OPS for blocks in (1, 2, 3, 7)},
        **{f"read {n}": (summed, n, None) for n in SIZES},
        **{f"read {n} in {blocks} blocks": (summed, n, blocks) for n in (10007, 12288) for blocks in (1, 3)},
    },
    "cache": {
        **{f"l1 {words} x {rounds}": (cached, "l1", words, rounds) for words in (1, 1023, 3075, 4096, 5125) for rounds in (1, 3)},
        **{f"l2 {words} x {rounds}": (cached, "l2", words, rounds) for words in (1, 4096, 20483) for rounds in (1, 6)},
    },
    "chase": {
        f"{nodes} nodes, {stride} apart, {steps} steps": (chased, nodes, stride, steps)
        for nodes, stride in ((1, 8), (7, 8), (64, 128))
        for steps in (1, 15, 16, 17, 100)
    },
    "sgemm": {
        f"{m}x{n}x{k}": (multiplied, m, n, k)
        for m, n, k in (
            (1, 1, 1),
            (128, 128, 16),
            (40, 36, 64),
            (130, 71, 33),
            (129, 132, 20),
            (66, 34, 35),
            (1030, 130, 4),
            (65, 193, 18),
        )
    },
}


def outcome(cases):
    """``right``, or what came of the first case that is not, found out in a fork.

    ``wrong`` and the case; ``crashed`` (an access where there is nothing, an overflow, no end); ``error`` and the traceback.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        said, case = "right", ""
        try:
            for case in cases:
                function, *arguments = cases[case]
                function(*arguments)
        except AssertionError:
            said = f"wrong: {case}"
        except Exception:  # noqa: BLE001 (told to the parent)
            said = f"error: {case}: {traceback.format_exc()}"
        os.write(theirs, said.encode()[:PAGE])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode()
    return "crashed" if os.WIFSIGNALED(os.waitpid(child, 0)[1]) else said


def mutated(name, old, new):
    """A source with one thing changed, everywhere it stands."""
    text = cuda.source(name)
    assert old in text, f"{name}.cu has no {old!r}"
    return text.replace(old, new)


def all_outcomes(folder, what):
    """By source, and by label: the outcome of each text, threads running forwards, then backwards.

    ``what``: ``right`` (the sources as they are) or ``mutants``.
    """
    torch.set_num_threads(1)
    texts = {name: {label: mutated(name, old, new) for label, old, new in MUTANTS[name]} for name in cuda.SOURCES}
    if what == "right":
        texts = {name: {"as it is": cuda.source(name)} for name in cuda.SOURCES}
    with ThreadPoolExecutor(2) as pool:
        by_length = sorted(texts, key=lambda name: -len(texts[name]))
        list(pool.map(lambda name: build(name, texts[name].values(), folder), by_length))
    source = cuda.source

    def tried(name, text):
        cuda.source = lambda _: text
        try:
            for backwards in (False, True):
                sys.modules["cupy"] = pretend(setattr, stand_in(backwards))
                if (said := outcome(CASES[name])) != "right":
                    return said
        finally:
            cuda.source = source
        return "right"

    return {name: {label: tried(name, text) for label, text in labelled.items()} for name, labelled in texts.items()}


if __name__ == "__main__":
    json.dump(all_outcomes(Path(sys.argv[2]), sys.argv[1]), sys.stdout)
