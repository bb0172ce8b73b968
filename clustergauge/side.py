"""One side of a comparison of two trees: a checkout that measures with its own code, a fresh set of processes for each launch.

What it can do and what came of it is learned as a person would learn it: from its own ``run_suite.py``, by flags that have long
existed, and from the run folders that it leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import msgspec

from clustergauge import folder, loading, processes
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from clustergauge.model import Scalar
from clustergauge.revision import Tree
from clustergauge.valid import printable

Letter = Literal["A", "B"]
LETTERS: tuple[Letter, ...] = ("A", "B")
ENDING_S = 30.0
"""What an interrupted launch may take to end its workers by itself."""
_REFUSED = re.compile(r"cases\[(\d+)\]")


class Listed(msgspec.Struct, frozen=True):
    """What matters of a case that ``list`` tells of; a revision may say more, or less, than this one would."""

    case: str
    probe: str
    params: dict[str, Scalar]
    device: str = ""
    budget_s: float = 2.0
    timeout_s: float = 60.0
    skip: str = ""


class Unable(RuntimeError):
    """A side could not measure; the text names it, and says what it said."""


@dataclass
class Call:
    """A ``run_suite.py`` under way.  ``before``: the run folders that were there when it began."""

    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    before: list[Path]
    _told: bool = False

    def wait(self) -> tuple[int, bytes, str]:
        """Its end: exit code, what it printed, what it said on stderr."""
        code = self.process.wait()
        self.out.seek(0)
        self.err.seek(0)
        return code, self.out.read(), self.err.read().decode(errors="replace")

    def tell_to_end(self) -> None:
        """Ask it to end, as a person would, and once."""
        if not self._told:
            self._told = True
            self.process.terminate()

    def end(self) -> None:
        """Have it end; whatever does not is killed, to the last descendant."""
        process = self.process
        if process.poll() is not None:
            return
        with processes.undisturbed():
            self.tell_to_end()
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                processes.end_all(lambda: processes.descendants(process.pid), grace_s=0.5)
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Side:
    """``words``: flags that both sides are called with.  ``cwd``: where from.  ``output``: where its run folders go."""

    letter: Letter
    tree: Tree
    cwd: Path
    words: tuple[str, ...]
    output: Path

    def cases(self, suite: str, *words: str) -> list[Listed]:
        """The cases of a suite on this machine, once for each device.  Raises `UsageError` and `Unable`."""
        return self._listed(*self._call("list", "--suite", suite, *words, "--format", "json"))

    def able(self, wanted: Sequence[Listed]) -> list[Listed]:
        """What this side says of those of the cases that it knows: a probe, an axis or a value may be newer than it is."""
        left = list({case.case: case for case in wanted}.values())
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "suite.toml"
            while left:
                path.write_text(suite_of(left), encoding="utf-8")
                code, said, complaint = self._call("list", "--suite", str(path), "--format", "json")
                refused = _REFUSED.search(complaint)
                if code != 2 or not refused or not 0 < int(refused[1]) <= len(left):
                    return self._listed(code, said, complaint)
                del left[int(refused[1]) - 1]
        return []

    def takes_turns(self) -> bool:
        """Whether its runs can take turns with another's: ``run --turns`` is newer than the first comparisons."""
        code, said, complaint = self._call("run", "--help")
        self._refuse(code, complaint)
        return b"--turns" in said

    @contextlib.contextmanager
    def launched(self, suite: Path, *words: str) -> Generator[Call]:
        """A run of a suite file in fresh processes, under way; left before it has ended, it is ended, with all its processes."""
        with self._called("run", "--suite", str(suite), "--launches", "1", "-o", str(self.output), *words) as call:
            yield call

    def measured(self, call: Call) -> LoadedRun:
        """Wait for a run that was launched, and read what it left.  Raises `Unable`."""
        before = call.before
        code, _, complaint = call.wait()
        if code == 2:  # of words that are ours, and cases that it listed
            raise Unable(f"{self}: its run_suite.py refused to measure: {_last(complaint)}")
        self._refuse(code, complaint, (0, 1, 3, 4))
        new = [path for path in self._runs() if path not in before]
        if len(new) != 1:
            raise Unable(f"{self}: it left no run: {_last(complaint)}")
        try:
            loaded = loading.load(new[0])
        except UsageError as error:
            raise Unable(f"{self}: its run cannot be read: {error}") from None
        if loaded.run.interrupted or not loaded.run.finished:
            raise Unable(f"{self}: a launch was cut short: {_last(complaint)}")
        return loaded

    def __str__(self) -> str:
        return f"{self.letter} = {self.tree.name}"

    def _listed(self, code: int, said: bytes, complaint: str) -> list[Listed]:
        self._refuse(code, complaint)
        try:
            return msgspec.json.decode(said, type=list[Listed])
        except msgspec.MsgspecError as error:
            raise Unable(f"{self}: what it lists cannot be read: {error}") from None

    def _runs(self) -> list[Path]:
        return sorted(path.parent for path in self.output.glob(f"*/{folder.RUN}"))

    def _refuse(self, code: int, complaint: str, well: Iterable[int] = (0,)) -> None:
        if code == 2:
            raise UsageError(f"{self}: {_last(complaint)}")
        if code not in well:
            ended = processes.how_it_ended(-code if code < 0 else code << 8)
            raise Unable(f"{self}: its run_suite.py {ended}: {_last(complaint)}")

    def _call(self, *words: str) -> tuple[int, bytes, str]:
        with self._called(*words) as call:
            return call.wait()

    @contextlib.contextmanager
    def _called(self, *words: str) -> Generator[Call]:
        """Its own ``run_suite.py`` by our interpreter, under way.

        Ours to end: it has a session of its own, so a Ctrl-C of the terminal reaches it through us alone, and once.
        """
        command = [sys.executable, str(self.tree.root / "run_suite.py"), words[0], *self.words, *words[1:]]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            before = self._runs()
            with processes.held() as let_go:  # between its start and the `try` a Ctrl-C would leave it to itself
                process = subprocess.Popen(
                    command,
                    cwd=self.cwd,
                    env=os.environ | {"NO_COLOR": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=processes.die_with_parent,  # noqa: PLW1509 (there are no threads here)
                )
                call = Call(process, out, err, before)
                try:
                    let_go()
                    yield call
                finally:
                    call.end()


@dataclass(frozen=True)
class Bench:
    """Both sides, and the cases that both can measure.  ``gone``, ``new``: those that only A, only B can.

    ``in_turns``: both sides are launched at once and measure by turns (`turnstile`), so that what disturbs meets both.
    """

    sides: dict[Letter, Side]
    cases: dict[str, Listed]
    gone: list[str]
    new: list[str]
    folder: Path
    in_turns: bool = False
    codes: dict[Letter, str] = field(default_factory=dict[Letter, str])

    def launch(self, first: Letter, cases: Sequence[str]) -> dict[Letter, LoadedRun]:
        """One launch of these cases on each side: by turns if both can, or else the second after the ``first``.

        Raises `UsageError` and `Unable`, also where a side's code is no longer what it was.
        """
        path = self.folder / "suite.toml"
        path.write_text(suite_of(self.cases[case] for case in cases), encoding="utf-8")
        order = LETTERS if first == LETTERS[0] else LETTERS[::-1]
        if not self.in_turns:
            return {side: self._alone(side, path) for side in order}
        with contextlib.ExitStack() as stack:
            turns = stack.enter_context(tempfile.TemporaryDirectory(prefix="clustergauge-turns-"))
            calls: dict[Letter, Call] = {}
            try:
                with processes.held():  # until both can be ended
                    for side in order:
                        calls[side] = stack.enter_context(self.sides[side].launched(path, "--turns", turns))
                loaded = {side: self._measured(side, calls[side]) for side in _as_they_end(calls)}
            except BaseException:
                for call in calls.values():  # both at once: who goes on measuring delays the other's end
                    call.tell_to_end()
                raise
        return {side: loaded[side] for side in order}

    def _alone(self, letter: Letter, suite: Path) -> LoadedRun:
        with self.sides[letter].launched(suite) as call:
            return self._measured(letter, call)

    def _measured(self, letter: Letter, call: Call) -> LoadedRun:
        loaded = self.sides[letter].measured(call)
        if self.codes.setdefault(letter, loaded.run.code) != loaded.run.code:
            raise Unable(f"{self.sides[letter]}: its code changed while it was measured: leave the tree alone meanwhile")
        return loaded


def bench(a: Side, b: Side, suite: Path, words: Sequence[str], output: Path, together: bool = True) -> Bench:
    """What the suite ``suite`` (of B's tree, or any file) and ``words`` (``-k``, ``--set``) mean for both sides.

    What is measured is what B lists, on both sides for as long as B says; what A lists itself tells only what is gone.
    ``together``: processes of both may hold this machine's devices at once.
    """
    wanted = [case for case in b.cases(str(suite), *words) if not case.skip]
    known = {(case.case, case.device) for case in a.able(wanted) if not case.skip}
    runnable = {(case.case, case.device) for case in wanted}
    try:
        before = a.cases(str(b.tree.place_of(suite, a.tree)), *words)
    except (UsageError, Unable):  # it has none of these cases, or knows one of these words not yet
        before = []
    return Bench(
        sides={"A": a, "B": b},
        cases={case.case: case for case in wanted if (case.case, case.device) in known},
        gone=list(dict.fromkeys(c.case for c in before if not c.skip and (c.case, c.device) not in runnable)),
        new=list(dict.fromkeys(c.case for c in wanted if (c.case, c.device) not in known)),
        folder=output,
        in_turns=together and a.takes_turns() and b.takes_turns(),
    )


def suite_of(cases: Iterable[Listed]) -> str:
    """A suite file of these very cases, a table for each."""
    lines = ["schema = 1", 'title = "cases of a comparison of two trees"']
    for case in {case.case: case for case in cases}.values():
        lines += ["", "[[cases]]", f"probe = {_toml(case.probe)}"]
        lines += [f"budget_s = {float(case.budget_s)}", f"timeout_s = {float(case.timeout_s)}"]
        lines += [f"{_toml(axis)} = {_toml(value)}" for axis, value in case.params.items()]
    return "\n".join([*lines, ""])


def _as_they_end(calls: Mapping[Letter, Call]) -> Iterator[Letter]:
    """The sides in the order in which their runs end: of one that failed we hear at once, not when the other is through."""
    with contextlib.ExitStack() as stack:
        ends: dict[int, Letter] = {}
        try:
            for side, call in calls.items():
                ends[handle := os.pidfd_open(call.process.pid)] = side
                stack.callback(os.close, handle)
        except (AttributeError, OSError):  # before Linux 5.3
            yield from calls
            return
        while ends:
            for handle in select.select([*ends], [], [])[0]:
                yield ends.pop(handle)


def _toml(value: Scalar) -> str:
    """As JSON writes it, but for what TOML wants otherwise: no surrogates, and no bare DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _last(complaint: str) -> str:
    """The last thing it said, which is why it ended."""
    lines = [line for line in complaint.splitlines() if line.strip()] or ["it said nothing"]
    return printable(lines[-1]).removeprefix("run_suite.py: ")[:300]
