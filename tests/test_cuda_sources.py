"""Every CUDA C kernel on the processor, bit for bit against numpy; every planted error is caught."""

import ctypes
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clustergauge.code import ROOT
from kernels import cuda
from kernels.cuda import nvrtc
from tests import cuda_on_cpu
from tests.cuda_on_cpu import CASES, MUTANTS, fused, random, same


def outcomes_of(what, folder):
    """The outcomes of all sources, found out in a process of its own."""
    if not shutil.which("g++"):
        pytest.skip("no g++ on this machine: CUDA C kernels cannot be run on the processor")
    if sys.platform != "linux":
        pytest.skip("the shim needs Linux")
    said = subprocess.run(
        [sys.executable, cuda_on_cpu.__file__, what, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return outcomes_of("right", tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    return outcomes_of("mutants", tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("name", cuda.SOURCES)
def test_every_kernel_is_right_bit_for_bit_whichever_thread_runs_first(right, name):
    assert right[name]["as it is"] == "right"


@pytest.mark.parametrize(("name", "label"), [(name, label) for name in MUTANTS for label, _, _ in MUTANTS[name]])
@pytest.mark.slow
def test_a_planted_error_is_caught(mutants, name, label):
    assert mutants[name][label].partition(":")[0] in {"wrong", "crashed"}


def test_the_sources_are_all_there_and_every_kernel_is_covered():
    files = sorted(path.stem for path in (ROOT / "kernels" / "cuda").glob("*.cu"))
    assert files == sorted(cuda.SOURCES) == sorted(CASES) == sorted(MUTANTS)
    kernels = [kernel for name in cuda.SOURCES for kernel in cuda.kernels_in(cuda.source(name))]
    assert sorted(kernels) == sorted(nvrtc.WIDTH)
    assert all(cuda.source(name).count("__global__") == len(cuda.kernels_in(cuda.source(name))) for name in cuda.SOURCES)
    assert not any("#include" in cuda.source(name) for name in cuda.SOURCES)


def test_the_reference_rounds_a_fused_multiply_add_once():
    fmaf = ctypes.CDLL("libm.so.6").fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    a, b, c = random.standard_normal((3, 2000)).astype(np.float32)
    c[::3] *= np.float32(2.0**-24)
    c[1::3] = -(a[1::3] * b[1::3])
    expected = np.array([fmaf(*map(float, values)) for values in zip(a, b, c, strict=True)], np.float32)
    same(fused(a, b, c), expected)
    assert (a * b + c).tobytes() != expected.tobytes()
