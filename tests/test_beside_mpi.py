"""The tool that puts the suite beside a loop in C: its judgement on planted pairs, and one real run where there is a compiler."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "beside_mpi.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("beside_mpi", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def document(size, suite, c):
    pairs = [{"suite": suite, "c": c, "suite_loop": suite, "c_loop": c}] * 9
    return {"library": "MPI of paper", "ranks": 2, "results": [{"size": size, "pairs": pairs, "overhead_s": 4e-7}]}


@pytest.mark.parametrize(
    ("size", "suite", "c", "met"),
    [
        (8, 1.5e-6, 1.0e-6, True),
        (1024, 1.7e-6, 1.0e-6, False),
        (2**16, 9.0, 1.0, True),  # nothing is asked between the two
        (2**20, 1.02e-3, 1.0e-3, True),
        (2**26, 1.05, 1.0, False),
    ],
)
def test_goals_are_held_against_pairs(tool, size, suite, c, met):
    lines, good = tool.table(document(size, suite, c))
    assert good is met
    assert ("MISSED" in "\n".join(lines)) is not met


def test_a_row_has_both_times_their_ratio_and_its_spread(tool):
    lines, _ = tool.table(document(8, 1.5e-6, 1.2e-6))
    assert lines[3] == "      8B samples    1.50 µs   1.20 µs   0.800 (0.80 … 0.80)         300 ns  ≤ 600 ns more: met"


def test_few_pairs_are_refused():
    done = subprocess.run([sys.executable, str(TOOL), "--pairs", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "fewer than 9 pairs say little" in done.stderr


def test_without_a_compiler_it_says_so():
    done = subprocess.run([sys.executable, str(TOOL), "--mpicc", "/nowhere/mpicc"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs /nowhere/mpicc and a C compiler (cc): nothing was measured" in done.stderr


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler")
@pytest.mark.slow
def test_it_takes_nine_pairs_of_both(tmp_path):
    out = tmp_path / "pairs.json"
    command = [sys.executable, str(TOOL), "--sizes", "8B,1KiB", "--budget", "0.002", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode in (0, 1), done.stderr
    assert "the call among one rank" in done.stdout
    for result in json.loads(out.read_text())["results"]:
        assert len(result["pairs"]) == 9
        assert all(pair[name] > 0 for pair in result["pairs"] for name in ("suite", "c", "suite_loop", "c_loop"))
