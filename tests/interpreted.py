"""Cases in the Triton interpreter, which needs a process of its own: TRITON_INTERPRET=1 set before triton is imported.

A test module has ``cases()``: by name, what to call for it.  One such process for all of them (``python -m tests.interpreted
MODULE``) runs those that tests ask for, when they do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from clustergauge.code import ROOT
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.worker import load_probe
from clustergauge.world import Serial

VERIFIED = ["verified", "checked in the Triton interpreter, not timed", "not timed"]


class Found:
    """What came of the cases of a test module, by name."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __getitem__(self, name: str) -> object:
        """Runs the case now."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the interpreting process ended with {self.process.wait()} in {name}"
        value, error = json.loads(answer)
        assert not error, error
        return value


@contextlib.contextmanager
def found_by(module: str) -> Iterator[Found]:
    """The process that interprets, as long as its cases are asked for."""
    command, env = [sys.executable, "-m", "tests.interpreted", module], {**os.environ, "TRITON_INTERPRET": "1"}
    with subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Found(process)


def answer(module: str) -> None:
    """In the process that interprets: run each case whose name comes in; a line of JSON for each goes out."""
    import torch

    torch.set_num_threads(1)  # threads that wait for each other make tiny work slow where others have the cores
    out, sys.stdout = sys.stdout, sys.stderr
    cases = importlib.import_module(module).cases()
    for line in sys.stdin:
        try:
            said = cases[line.rstrip("\n")](), ""
        except Exception:  # noqa: BLE001 (told to the test)
            said = None, traceback.format_exc()
        print(json.dumps(said), file=out, flush=True)


def case(name: str, **params: object) -> list[str]:
    """What came of a case on Triton: status, reason, and whether it was timed."""
    job = Job(name, f"kernels.{name}", name, {"backend": "triton", **params}, "cpu", 0.1, 1, interpret=True)
    with tempfile.TemporaryDirectory() as scratch:
        done = execute(job, load_probe(f"kernels.{name}", name), Serial(), Path(scratch), lambda _: None)
    return [done.status, done.reason, "timed" if done.measurement else "not timed"]


@contextlib.contextmanager
def planted(room: str, old: str, new: str, rooms: tuple[str, ...] = ()) -> Iterator[None]:
    """Copies in the place of modules of kernels.triton (that one alone, or ``rooms`` in their order), ``room`` mutated."""
    import kernels.triton

    kept = {name: importlib.import_module(f"kernels.triton.{name}") for name in rooms or (room,)}
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        try:
            for name in kept:
                source = (ROOT / "kernels" / "triton" / f"{name}.py").read_text(encoding="utf-8")
                if name == room:
                    assert old in source, f"nothing to mutate: {old}"
                    source = source.replace(old, new)
                path = Path(folder) / f"{name}.py"
                path.write_text(source, encoding="utf-8")
                spec = importlib.util.spec_from_file_location(f"kernels.triton.{name}", path)
                assert spec
                assert spec.loader
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module
                spec.loader.exec_module(module)
                setattr(kernels.triton, name, module)
            yield
        finally:
            for name, module in kept.items():
                sys.modules[f"kernels.triton.{name}"] = module
                setattr(kernels.triton, name, module)


def pairwise(*axes: Iterable[object]) -> list[ParameterSet]:
    """Rows of all combinations of three axes, of which those are not slow that let every two values of two axes meet."""
    values = [list(axis) for axis in axes]
    fewest, rows = min(map(len, values)), []
    for row in itertools.product(*map(enumerate, values)):
        marks = () if sum(index for index, _ in row) % fewest == 0 else pytest.mark.slow
        rows.append(pytest.param(*(value for _, value in row), marks=marks, id="-".join(str(value) for _, value in row)))
    return rows


def caught(outcome: list[str]) -> bool:
    """Whether a planted error ended the case: a check that failed, or an address outside the tensors of the launch."""
    status, reason, _ = outcome
    return status == "wrong" or (status == "error" and "of a tensor of" in reason)


if __name__ == "__main__":
    answer(sys.argv[1])
