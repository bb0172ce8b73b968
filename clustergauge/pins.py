"""What kernels were tuned to in this run, and who tunes them: one memory for the supervisors of all nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from clustergauge.model import Machine, Planned, Record, Scalar

PREFIX = "pin."
"""Of a setting that says what was chosen; the rest of its name says for what."""
MOST = 1000
"""Pins that are kept in a run."""
MOST_OF_A_CASE = 8
LONGEST = 200
"""Characters of what is pinned, and of what it is pinned to."""


def parse(settings: Mapping[str, Scalar]) -> dict[str, str]:
    """The pins among the settings of a case; what is not printable, too long or too much is none."""
    found = {
        name.removeprefix(PREFIX): value
        for name, value in settings.items()
        if name.startswith(PREFIX)
        and isinstance(value, str)
        and all(text.isprintable() and len(text) <= LONGEST for text in (name, value))
    }
    return found if len(found) <= MOST_OF_A_CASE else {}


class Pins:
    """The first case that tunes a kernel decides.  Safe for threads.

    A worker executes nothing that a pin says: it takes those of its own candidates that a pin names, and no other.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """``records``: of a run that is resumed."""
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._turns: dict[tuple[str, str], threading.Event] = {}
        for record in records:
            self.learn(record.settings, {})

    def known(self) -> dict[str, str]:
        """All that are pinned, to give to a case."""
        with self._lock:
            return dict(self._known)

    def learn(self, settings: Mapping[str, Scalar], given: Mapping[str, str]) -> None:
        """What a case says it chose.  It replaces only what the case was ``given`` and did not take, for it was no candidate."""
        with self._lock:
            for what, chosen in parse(settings).items():
                if self._known.get(what) == given.get(what) and (what in self._known or len(self._known) < MOST):
                    self._known[what] = chosen

    def begin(self, planned: Planned, machine: Machine) -> None:
        """Of several nodes about to measure a case that tunes on devices of one model, one goes ahead, and the others wait until
        it is done; no longer than the case may take.  Several ranks do not tune."""
        if not planned.tunes or planned.world != "serial":
            return
        key = _key(planned, machine)
        with self._lock:
            first, done = key not in self._turns, self._turns.setdefault(key, threading.Event())
        if not first:
            done.wait(planned.timeout_s + planned.budget_s)

    def end(self, planned: Planned, machine: Machine) -> None:
        """The case has ended, in whatever way."""
        with self._lock:
            done = self._turns.get(_key(planned, machine))
        if done:
            done.set()


def _key(planned: Planned, machine: Machine) -> tuple[str, str]:
    kind, _, index = planned.device.partition(":")
    models = sorted({gpu.name for gpu in machine.gpus if index in (str(gpu.index), "all", "nodes")})
    return planned.case, ", ".join(models) if kind == "cuda" else machine.cpu.model
