"""Last words: of what was printed the line that tells something, whatever frame a launcher puts around the end of a job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clustergauge.output import exit_string, quote

ROOT = Path(__file__).parent.parent
HYDRA = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 11758 RUNNING AT vm
=   EXIT CODE: 7
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Bus error (signal 7)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
OPEN_MPI = """
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[61023,1],0]
  Exit code:    1
--------------------------------------------------------------------------
"""
FATAL = """[vm:101] *** An error occurred in MPI_Init_thread
[vm:101] *** MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,
[vm:101] ***    and potentially your MPI job)
"""
SLURM = """srun: error: node-2: task 1: Out Of Memory
srun: Terminating StepId=7.1
srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
slurmstepd: error: *** STEP 7.1 ON node-1 CANCELLED AT 2026-03-01T10:00:00 ***
"""


@pytest.mark.parametrize(
    ("tail", "line"),
    [
        ("one\ntwo\n\n", "two"),
        ("ModuleNotFoundError: No module named 'x'\n" + HYDRA, "ModuleNotFoundError: No module named 'x'"),
        ("ValueError: planned\n" + OPEN_MPI, "ValueError: planned"),
        (FATAL, "[vm:101] *** MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,"),
        (SLURM, "srun: error: node-2: task 1: Out Of Memory"),
        ("the job of a user\n----\n", "the job of a user"),
        ("x" * 300, "x" * 200),
    ],
)
def test_the_last_line_that_tells_something_is_quoted(tail, line):
    assert quote(tail) == f" (last words: {line})"


@pytest.mark.parametrize("tail", ["", "\n \n", "====\n----\n", HYDRA, OPEN_MPI])
def test_a_frame_alone_is_not_quoted(tail):
    assert quote(tail) == ""


def test_the_launcher_tells_how_a_process_ended():
    assert exit_string(HYDRA) == "Bus error (signal 7)"
    assert exit_string("YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n") == "Killed (signal 9)"
    assert exit_string("=   KILLED BY SIGNAL: 9 (Killed)\n") == "Killed (signal 9)"
    assert exit_string(OPEN_MPI) == ""


SUITE = """
title = "t"
budget_s = 0.1
[[cases]]
probe = "all_reduce"
backend = "mpi"
dtype = "fp32"
size = "8B"
"""


def test_full_shared_memory_is_named(tmp_path):
    """A mount namespace of its own, in which /dev/shm is too small for an MPI."""
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "sh", "-c"]
    small = "mount -t tmpfs -o size=256k tmpfs /dev/shm"
    try:
        if subprocess.run([*apart, small], capture_output=True, check=False).returncode:
            pytest.skip("mounting in a namespace is not allowed here")
    except FileNotFoundError:
        pytest.skip("no unshare here")
    (tmp_path / "s.toml").write_text(SUITE)
    command = f'{small} && exec "$0" "$1" --suite s.toml --ranks 2 -o results'
    done = subprocess.run(
        [*apart, command, sys.executable, str(ROOT / "run_suite.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    text = " ".join(done.stdout.split())
    # Hydra names one of the ranks that die of it, not always the one that is heard of first
    killed = r"(was killed by signal 7 \(Bus error\)|ended \(its launcher .{1,40}Bus error \(signal 7\)\))"
    assert re.search(rf"{killed} in phase 'make mpi world'; is shared memory full\? \(df /dev/shm\)", text), done
    assert "FAQ" not in text
    assert done.returncode == 3
