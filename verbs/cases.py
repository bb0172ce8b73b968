"""Which cases the flags choose, with which probes and on which targets; and what a run folder may not decide for them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge import flags
from clustergauge.errors import UsageError
from clustergauge.globs import matches
from verbs.asked import suite_path
from verbs.said import OK, ROOT, say

if TYPE_CHECKING:
    from clustergauge.fleet import Fleet
    from clustergauge.model import Planned, Run
    from clustergauge.plan import Wish
    from clustergauge.probe import Probe

REACH = [sys.executable, "-P", "-m", "storage_io.object_space", "check"]
FOLDERS = ("kernels", "collectives", "storage_io")


def way_of(fleet: Fleet | None) -> dict[str, str]:
    """Which nodes and how they are reached, for the settings of a run."""
    return way_to(fleet.desk.names, fleet.desk.remote, fleet.desk.install.root) if fleet else {}


def way_to(names: Sequence[str], remote: str, root: Path) -> dict[str, str]:
    """The same by names, remote command and where this checkout is on the nodes."""
    from clustergauge import hosts

    found = {"hosts": hosts.compress(names), "remote": remote} if names else {}
    return found | ({"remote_root": str(root)} if names and root != ROOT else {})


def planned_for(options: argparse.Namespace, output: Path, fleet: Fleet | None) -> list[Planned]:
    """The cases the flags ask for, on this machine or on the nodes."""
    from clustergauge import machine, plan, plan_nodes

    sys.path.extend(python_path(options))
    probes = probes_of(options)
    suite, wish = plan.load_suite(suite_path(options.suite)), _wish(options, None if fleet else output)
    if fleet:
        fleet.meet(wish.targets)
        planned = plan_nodes.plan_nodes(suite, probes, fleet.machines, fleet.desk.names, wish, shared=fleet.shared)
    else:
        planned = plan.plan(suite, probes, machine.describe_apart(), wish)
    for words in plan.left_out(suite, probes, wish):
        say(f"note: {words}")
    ids = {p.case for p in planned}
    for glob in wish.globs:
        if not any(matches(glob, case) for case in ids):
            say(f"note: no case matches -k {glob!r}")
    return planned


def _wish(options: argparse.Namespace, output: Path | None) -> Wish:
    from clustergauge.plan import Wish

    values: dict[str, list[str]] = {}
    for text in options.values:
        axis, equals, given = text.partition("=")
        if not equals or not axis or not given:
            raise UsageError(f"--set {text}: write AXIS=VALUE, for example --set size=1GiB")
        values.setdefault(axis, []).extend(given.split(","))
    if "" in options.globs:
        raise UsageError("-k: an empty glob chooses nothing; leave it out to choose everything")
    return Wish(
        options.globs,
        options.device,
        values,
        targets_of(options, output),
        options.launches,
        options.ranks,
        flags.duration("--duration", options.duration),
        options.cross_check,
    )


def targets_of(options: argparse.Namespace, output: Path | None) -> tuple[str, ...]:
    """The folders and object stores of storage cases; of nodes, which have folders of their own (no ``output``), those named."""
    from clustergauge import targets

    if not options.targets:
        return (targets.plain(output),) if output else ()
    return targets.parse(options.targets, local=output is not None)


def reach_objects(planned: Sequence[Planned]) -> None:
    """Ask an object store that cases need, once and in a process that may hang: what is wrong with it is said before all else."""
    from clustergauge import object_url, reach

    target = next((p.target for p in planned if not p.skip and object_url.is_url(p.target)), "")
    if target and (problem := reach.problem(REACH, target)):
        raise UsageError(f"--target {target}: {problem}")


def failed_cases(options: argparse.Namespace, output: Path, fleet: Fleet | None) -> list[Planned]:
    """The cases of an earlier run that were wrong or an error."""
    from clustergauge import store

    if options.globs or options.values or options.suite != "quick" or options.launches > 1 or options.cross_check:
        raise UsageError("--rerun-failed takes its cases from the run: leave out -k, --suite, --set, --launches, --cross-check")
    loaded = store.load(store.find_run(options.rerun_failed, output))
    failed = {(r.case, r.device, r.launch) for r in loaded.records if r.status in ("wrong", "error")}
    if not failed:
        raise UsageError(f"no case of {loaded.run.run_id} was wrong or an error")
    planned = [p for p in loaded.run.planned if (p.case, p.device, p.launch) in failed]
    check_trust(loaded.run, planned, options, output, way_of(fleet))
    return planned


def check_trust(run: Run, planned: Sequence[Planned], options: argparse.Namespace, output: Path, way: Mapping[str, str]) -> None:
    """See `trust`: nothing that a run folder says is done unless this command line says it too."""
    from clustergauge import trust

    sys.path.extend(python_path(options))
    targets = targets_of(options, None if way else output)
    said = trust.Said(options.launcher, way, targets, bool(options.targets), probe_modules(), options.probes)
    trust.check(run, planned, said)


def show_plan(planned: list[Planned], options: argparse.Namespace, fleet: Fleet | None) -> int:
    """What would run, on stdout."""
    from reports import listing
    from storage_io import room

    listing.show(room.foreseen(planned, probes_of(options), fleet.free() if fleet else None), options.format)
    return OK


def probes_of(options: argparse.Namespace) -> dict[str, Probe]:
    """All that there are, ours and the caller's, by name."""
    from clustergauge import plan

    return plan.load_probes([*probe_modules(), *options.probes])


def probe_modules() -> list[str]:
    """The modules of our own probes."""
    return [name for folder in FOLDERS for name in importlib.import_module(folder).PROBES]


def python_path(options: argparse.Namespace) -> list[str]:
    """The caller's folder, where `--probes` wants something of it: nothing else there may stand in for a library."""
    return [str(Path.cwd())] if options.probes else []
