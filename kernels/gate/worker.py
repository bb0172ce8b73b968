"""Compiling in processes of their own: a compiler that crashes or hangs costs one entry, and the parent's environment no facts.

A worker (``python -m kernels.gate.worker MODULE``) reads one JSON line for each job and answers with one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from clustergauge.errors import UsageError
from kernels.gate.entry import Entry
from kernels.gate.facts import Facts

ROOT = Path(__file__).parents[2]
SLOWEST_S = 300.0
"""A compilation that takes longer is ended."""
_CHANGE_CODE = ("TRITON_", "MLIR_", "LLVM_", "PTXAS_", "AMDGCN_", "NVPTX_", "DISABLE_", "ALLOW_LHS_", "USE_IR_", "CUDA_", "HIP_")
"""Prefixes of variables that would change what is compiled, or how."""


class Job(msgspec.Struct, frozen=True):
    """One entry, by its id, for one target."""

    entry: str
    target: str


class Answer(msgspec.Struct, frozen=True):
    """The facts, or why there are none."""

    facts: Facts | None = None
    error: str = ""


def load_entries(module: str) -> list[Entry]:
    """What the function ``entries`` of a module declares.  Raises `UsageError` if an id is twice on one target."""
    found: list[Entry] = importlib.import_module(module).entries()
    seen: set[tuple[str, str]] = set()
    for entry in found:
        for target in entry.targets:
            if (entry.id, target) in seen:
                raise UsageError(f"{module}: {entry.id!r} is declared twice for {target}")
            seen.add((entry.id, target))
    return found


def compile_all(module: str, jobs: Sequence[Job], workers: int, done: Callable[[int], None] = lambda _: None) -> list[Answer]:
    """The answers in the order of the jobs.  ``done`` is told how many there are so far."""
    answers: dict[int, Answer] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)

    def work() -> None:
        with contextlib.ExitStack() as stack:
            worker: _Worker | None = None
            with contextlib.suppress(queue.Empty):
                while True:
                    index = waiting.get_nowait()
                    if worker is None:
                        worker = stack.enter_context(_Worker(module))
                    answers[index] = worker.ask(jobs[index])
                    if worker.ended:
                        worker = None
                    done(len(answers))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers.get(index, Answer(error="no worker took it")) for index in range(len(jobs))]


class _Worker:
    """A process that compiles."""

    def __init__(self, module: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_CHANGE_CODE)}
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernels.gate.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            cwd=ROOT,
            env=environment,
        )
        self.ended = False

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def ask(self, job: Job) -> Answer:
        assert self.process.stdin
        assert self.process.stdout
        alarm = threading.Timer(SLOWEST_S, self.process.kill)
        alarm.start()
        try:
            self.process.stdin.write(msgspec.json.encode(job) + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            late = not alarm.is_alive()
            alarm.cancel()
        if line.endswith(b"\n"):
            return msgspec.json.decode(line, type=Answer)
        self.ended = True
        if late:
            return Answer(error=f"the compiler was not done after {SLOWEST_S:.0f} s")
        code = self.process.wait()
        self.said.seek(0)
        last = (self.said.read()[-2000:].decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        return Answer(
            error=f"the compiler died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'}): {last[:200]}"
        )


def _serve(module: str) -> None:
    # Compilers print: what goes to standard output goes nowhere, and the answers go where it went.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        from kernels.gate.compile import CompileError, compile_entry
        from kernels.gate.facts import Unreadable
        from kernels.gate.targets import TARGETS

        known = {(entry.id, target): entry for entry in load_entries(module) for target in entry.targets}
        for line in sys.stdin.buffer:
            job = msgspec.json.decode(line, type=Job)
            try:
                answer = Answer(facts=compile_entry(known[job.entry, job.target], TARGETS[job.target]))
            except CompileError as error:
                answer = Answer(error=f"does not compile: {error}")
            except Unreadable as error:
                answer = Answer(error=f"unreadable: {error}")
            out.write(msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    _serve(sys.argv[1])
