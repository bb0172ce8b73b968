"""Helper processes of a case, spoken to by lines: one to each, then one back from each.

They are the worker's: the kernel kills them when the thread that started them is gone (``PR_SET_PDEATHSIG``), they leave when
their input ends, and `Crew.close` kills them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from clustergauge import code, processes

END_S = 10.0
"""How long the end of a killed helper is waited for: it may hang in the kernel."""


class Crew:
    """Helpers that were started and have answered.  ``pids``: for what the kernel counts of them.  ``said``: what they said.

    ``who``: what one of them is called.  Raises ``RuntimeError`` where one does not start.
    """

    who = "a helper process"

    def __init__(self, starts: Sequence[Callable[[], subprocess.Popen[str]]]) -> None:
        self._helpers: list[subprocess.Popen[str]] = []
        try:
            for start in starts:
                self._helpers.append(start())
            self.said = [self._answer(helper) for helper in self._helpers]
        except BaseException:
            self.close()
            raise
        self.pids = [helper.pid for helper in self._helpers]

    def close(self) -> None:
        """Kill the helpers, whatever they do, and wait until they are gone."""
        for helper in self._helpers:
            helper.kill()
        for helper in self._helpers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(END_S)
            for pipe in (helper.stdin, helper.stdout):
                if pipe:
                    with contextlib.suppress(OSError):  # what it was to be told and did not read
                        pipe.close()
        self._helpers = []

    def _all(self, commands: Sequence[str]) -> list[str]:
        """Tell each helper its command, then wait for the answers of all."""
        for helper, command in zip(self._helpers, commands, strict=True):
            assert helper.stdin
            with contextlib.suppress(BrokenPipeError):  # its answer will be missing, and says more
                helper.stdin.write(command + "\n")
                helper.stdin.flush()
        return [self._answer(helper) for helper in self._helpers]

    def _answer(self, helper: subprocess.Popen[str]) -> str:
        """What a helper says after ``ok``.  Raises what it met, or ``RuntimeError`` where it says nothing that is known."""
        assert helper.stdout
        word, _, rest = helper.stdout.readline().rstrip("\n").partition(" ")
        if word == "ok":
            return rest
        if error := self._met(word, rest.encode("ascii", "replace").decode("unicode_escape", "replace")):
            raise error
        with contextlib.suppress(subprocess.TimeoutExpired):
            helper.wait(END_S)
        ended = helper.returncode
        how = "does not answer" if ended is None else processes.how_it_ended(-ended if ended < 0 else ended << 8)
        raise RuntimeError(f"{self.who} {how if ended is None or ended >= 0 else f'was {how}'}")

    def _met(self, word: str, rest: str) -> Exception | None:
        """What a helper met, by its word for it; ``None`` for a word that is none."""
        raise NotImplementedError


def start_python(module: str, words: Sequence[object], descriptors: Sequence[int] = ()) -> subprocess.Popen[str]:
    """A module of ours as a process that is spoken to by lines; ``descriptors``: what it inherits under the same numbers."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=tuple(descriptors),
        env=os.environ | {"PYTHONPATH": code.python_path(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


# --------------------------------------------------------------------------------------------------------------------------
# the helper's side


def belongs_to(parent: int) -> bool:
    """End with the process that started this one; whether it is still there."""
    processes.die_with_parent()
    return os.getppid() == parent  # it may have died before the kernel knew whom to tell


def serve(commands: Mapping[str, Callable[..., object]], words: Callable[[Exception], str]) -> None:
    """Do what each line of stdin says, a command and whole numbers, and answer ``ok``, or the ``words`` for what was met.

    What there are no words for is raised.
    """
    for line in sys.stdin:
        command, *numbers = line.split()
        try:
            commands[command](*map(int, numbers))
        except Exception as error:
            if not (said := words(error)):
                raise
            say(said)
        else:
            say("ok")


def say(line: str) -> None:
    """Answer.  Names of files may hold anything: what is no plain character is escaped, as `Crew` expects it."""
    sys.stdout.write(line.encode("unicode_escape").decode("ascii") + "\n")
    sys.stdout.flush()
