"""A run folder may come from anywhere: it never chooses what is executed, imported or written to.  The command line does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clustergauge import code, launch
from clustergauge.errors import UsageError
from clustergauge.model import Planned, Run


@dataclass(frozen=True)
class Said:
    """What the command line says of its own accord.

    ``way``: how nodes are reached, as a run keeps it (``hosts``, ``remote``, ``remote_root``).  ``targets``: where storage cases
    may write; ``named``: whether the user named them.  ``modules``: our own probes; ``probes``: others that are named.
    """

    launcher: str
    way: Mapping[str, str]
    targets: Sequence[str]
    named: bool
    modules: Sequence[str]
    probes: Sequence[str]


def check(run: Run, planned: Sequence[Planned], said: Said) -> None:
    """Whether the command line says itself all that going on with cases of a run would do.  Raises `UsageError` if not."""
    launcher = str(run.settings.get("launcher", ""))
    if launcher != said.launcher:
        raise UsageError(f"that run used --launcher {launcher!r}: say so again, if you mean it")
    for name in ("hosts", "remote", "remote_root"):
        if run.settings.get(name, "") != said.way.get(name, ""):
            then = f"that run used --{name.replace('_', '-')} {run.settings.get(name, '')!r}"
            raise UsageError(f"{then}, not {said.way.get(name, '')!r}: say it again, if you mean it")
    known = {*said.modules, *said.probes}
    wrote = {p.target for p in run.planned}
    if said.named and (unused := [target for target in said.targets if target not in wrote]):
        raise UsageError(f"--target {unused[0]}: that run did not write to it")
    for p in planned:
        if p.module not in known:
            raise UsageError(f"that run used probes of {p.module!r}: say --probes {p.module} again, if you mean it")
        if odd := [name for name, value in p.env.items() if not launch.is_choice(name, value)]:
            raise UsageError(f"that run set {odd[0]!r} in the environment of its workers: start a new run")
        if p.target and p.target not in said.targets:
            raise UsageError(f"that run wrote to {p.target!r}: say --target again, if you mean it")
    if run.settings.get("probes", "") != code.digest_of(said.probes):
        raise UsageError("that run used other probes, or other code of them, than --probes names now: start a new run")
