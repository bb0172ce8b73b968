"""Calls of MPI as from C: real ones, each in a process of its own, alone in its world."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BEGIN = """
import array, os, sys, threading
from mpi4py import MPI
from clustergauge import compiled
from collectives import bare

word, sum_ = array.array("i", [3]), array.array("i", [0])
at = [one.buffer_info()[0] for one in (word, sum_)]
number, self_ = bare.handle(MPI.INT), bare.handle(MPI.COMM_SELF)
good = bare.Call("MPI_Allreduce", (*at, 1, number, bare.handle(MPI.SUM), self_))
bad = bare.Call("MPI_Bcast", (at[0], 1, number, 7, self_))
"""


def alone(program: str) -> subprocess.CompletedProcess[str]:
    """What a program says, and how it ends."""
    words = [sys.executable, "-c", BEGIN + program]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_it_does_what_the_library_does_and_leaves_nothing_behind():
    done = alone(
        """
keep = object()
call = bare.function([good], keep)
before = sys.getrefcount(None)
for _ in range(10_000):
    assert call() is None
assert abs(sys.getrefcount(None) - before) < 1000
assert sum_[0] == 3
assert call.__self__[-1] is keep
print("well")
"""
    )
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr


def test_an_error_is_raised_as_mpi4py_raises_it_and_what_comes_after_is_not_called():
    done = alone(
        """
both = bare.function([bad, good], None)
for _ in range(2):
    try:
        both()
    except MPI.Exception as error:
        print(error.Get_error_class() == MPI.ERR_ROOT, sum_[0])
bare.function([good, good], None)()
print(sum_[0])
"""
    )
    assert (done.stdout, done.returncode) == ("True 0\nTrue 0\n3\n", 0), done.stderr


def test_others_work_while_it_waits():
    """It waits for a message that nobody sends; a thread that finds the interpreter's lock held would never end it."""
    done = alone(
        """
status = bytes(bare.STATUS_BYTES)
kept = array.array("b", status)
wait = bare.function([bare.Call("MPI_Recv", (at[1], 1, number, 0, 5, self_, kept.buffer_info()[0]))], kept)
threading.Timer(0.3, os._exit, (7,)).start()
wait()
"""
    )
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(
    "obstacle",
    [
        'name = "MPI_No_such_function"',
        'sys.modules["llvmlite"] = None',
        'compiled.PROCESSORS = ("one of tomorrow",)',
    ],
)
def test_where_no_code_can_be_made_mpi4py_is_left(obstacle):
    done = alone(f'name = "MPI_Allreduce"\n{obstacle}\nprint(bare.function([bare.Call(name, good.arguments)], None))')
    assert (done.stdout, done.returncode) == ("None\n", 0), done.stderr
