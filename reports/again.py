"""The line to paste that measures one case of a run again, or what is missing in a run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping
from typing import NoReturn

from clustergauge.model import Run
from clustergauge.valid import printable

_NODES = ("hosts", "hostfile", "remote", "remote-root", "address")
_KEPT = ("suite", "set", "device", "ranks", "duration", "launcher", *_NODES, "target", "topology", "probes", "output")
"""Flags that decide which cases there are and how they run, in the order in which they are given again."""
_TRUSTED = ("launcher", *_NODES, "target", "probes", "output")
"""Those of them that a run folder may not decide for who goes on with its cases (`trust`)."""
_OTHER = ("k", "launches", "max-time", "resume", "rerun-failed", "accept", "baseline", "ceilings", "format", "turns")
_SWITCHES = ("dry-run", "confirming", "cross-check")
_DEFAULTS = {"suite": "quick", "device": "auto", "output": "results"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def again(run: Run, case: str, broken: bool) -> list[str]:
    """The command that measures ``case`` again, in parts to be joined by blanks, quoted for a shell.

    It holds what the run's own command said about suite, axes, device, ranks, launcher, nodes, target, probes.  ``broken``: the
    case was wrong or an error.  Empty where no command is sure to reach the case.
    """
    given = _given(run.command)
    parts = ["run_suite.py run"]
    if earlier := given["rerun-failed"]:
        # Its cases were taken from another run, whatever the suite; -k does not choose among them.
        source = run.run_id if broken else earlier[-1]
        if source == "latest":
            return []
        parts.append(_part("--rerun-failed", source))
        kept = _TRUSTED
    else:
        parts.append(_part("-k", glob_of(case, (p.case for p in run.planned))))
        kept = _KEPT
    parts += _said(given, kept)
    if given["cross-check"] and not given["rerun-failed"]:
        parts.append("--cross-check")
    return parts


def resuming(run: Run) -> str:
    """The command that goes on with a run."""
    return " ".join(["run_suite.py run", _part("--resume", run.run_id), *_said(_given(run.command), _TRUSTED)])


def confirming(run: Run, cases: Iterable[str]) -> str:
    """The command that measures these cases again on the host of a run, in fresh launches that confirm what is suspected."""
    known = [p.case for p in run.planned]
    chosen = list(dict.fromkeys(cases))
    parts = again(run, chosen[0], broken=False) or ["run_suite.py run", ""]
    if parts[1].startswith("--rerun-failed"):  # -k does not choose among those
        return " ".join([parts[0], "--confirming", *parts[1:]])
    return " ".join([parts[0], "--confirming", *(_part("-k", glob_of(case, known)) for case in chosen), *parts[2:]])


def glob_of(case: str, others: Iterable[str]) -> str:
    """What ``-k`` must be given to choose this case: signs of globs stand for themselves, and it chooses no longer id."""
    glob = "".join(f"[{c}]" if c in "*?[" else c for c in case)
    if glob == case and any(case in other and case != other for other in others):
        # A plain word would mean "anywhere in the id".
        place = next((i for i, c in enumerate(case) if c.isalnum()), 0)
        glob = f"{case[:place]}[{case[place]}]{case[place + 1 :]}"
    return f"[-]{glob[1:]}" if glob.startswith("-") else glob


def _said(given: Mapping[str, list[str]], names: Iterable[str]) -> list[str]:
    """Flags as a command gave them, but for what holds anyway."""
    parts: list[str] = []
    for name in names:
        flag = "-o" if name == "output" else f"--{name}"
        values = given[name] if name in ("set", "target", "probes") else given[name][-1:]
        parts += [_part(flag, value) for value in values if value != _DEFAULTS.get(name)]
    return parts


def _part(flag: str, value: str) -> str:
    text = printable(value)
    return shlex.quote(f"{flag}={text}") if text.startswith("-") else f"{flag} {shlex.quote(text)}"


def _given(command: list[str]) -> dict[str, list[str]]:
    """Values by flag, as the command line understands them (``--suite=full``, ``--sui full``)."""
    parser = _Parser(add_help=False)
    parser.add_argument("verb", nargs="?")
    parser.add_argument("-k", action="append", default=[])
    parser.add_argument("-o", "--output", action="append", default=[])
    for name in _SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    for name in (*_KEPT, *_OTHER):
        if name not in ("k", "output"):
            parser.add_argument(f"--{name}", dest=name, action="append", default=[])
    try:
        found = vars(parser.parse_known_args(command[1:])[0])
    except ValueError:
        found = {}
    lists = {name: list(found.get(name, [])) for name in (*_KEPT, *_OTHER)}
    return lists | {name: [""] * bool(found.get(name.replace("-", "_"))) for name in _SWITCHES}
