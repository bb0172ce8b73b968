"""From a suite file to the cases of a run: suite × probes × axes × devices × launches, each with why it would be skipped."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from clustergauge import ranges, targets, toml
from clustergauge.cross_check import ALLOWED_S
from clustergauge.errors import UsageError
from clustergauge.forecast import beyond
from clustergauge.globs import matches
from clustergauge.model import Machine, Planned, Scalar
from clustergauge.placement import too_many
from clustergauge.probe import Case, Needs, Probe, probes_in
from clustergauge.units import format_size
from clustergauge.valid import printable

DeviceChoice = Literal["auto", "cpu", "cuda"]
GLOO_RANKS = 8
"""Most torch.distributed ranks on CPU: each is a process with all of torch in memory."""
CUDA_CACHE_BYTES = 256 << 20
"""Last-level cache assumed for accelerators: the largest known (MI300X, 256 MB Infinity Cache)."""
CPU_CACHE_BYTES = 64 << 20
"""Last-level cache assumed for a processor that does not tell."""
CACHES_EXCEEDED = 4
"""A working set so many times the last-level cache is not served by it (STREAM's own rule)."""
MEMORY_MOST = 0.8
"""Of a device's memory, for what a case streams: probes ask as much of what is free when they run."""
CPU_TORCH = "this torch is built for CPUs only: TORCH_BACKEND=auto sh tools/install.sh brings the one that fits this machine"


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[cases]]`` table of a suite file; the remaining keys are axes of the probe.

    ``first_of``: an axis; of its values only the first that can run here is taken (sizes that must exceed a cache, say).
    """

    probe: str
    first_of: str = ""
    device: Literal["any", "cpu", "cuda"] = "any"
    budget_s: float | None = None
    timeout_s: float | None = None
    axes: dict[str, list[Scalar]] = {}


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A suite file."""

    title: str
    cases: list[Selection]
    schema: int = 1
    budget_s: float = 2.0
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Wish:
    """What the user asked for beside the suite."""

    globs: Sequence[str] = ()
    device: DeviceChoice = "auto"
    values: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    targets: Sequence[str] = ()
    """Where storage cases write (`targets.parse`); with several of a kind, each has every case of that kind."""
    launches: int = 1
    ranks: int | None = None
    duration_s: float | None = None
    """Seconds of measuring for each case, instead of what the suite says."""
    cross_check: bool = False
    """Hold storage cases against another program that does the same."""
    nodes: int = 1
    """How many nodes cases of several ranks are to span, each with the ranks of one."""


def load_suite(path: Path) -> Suite:
    """Read a suite file.  Every mistake in it is a `UsageError` naming file and field."""
    try:
        raw = toml.parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"no suite file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read suite {path}: {error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    tables: Any = raw.get("cases")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in cast("list[object]", tables)):
        raise UsageError(f"{path}: needs [[cases]] tables")
    shaped = [_shaped(table) for table in cast("list[dict[str, Any]]", tables)]
    try:
        suite = msgspec.convert(raw | {"cases": shaped}, Suite)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from None
    if suite.schema != 1:
        raise UsageError(f"{path}: schema {suite.schema} is not known (this version reads 1)")
    for where, table in [("", suite), *((f"cases[{number}].", selection) for number, selection in enumerate(suite.cases, 1))]:
        for name in ("budget_s", "timeout_s"):
            value = getattr(table, name)
            if value is not None and not 0 < value < 1e7:
                raise UsageError(f"{path}: {where}{name} must be a positive number of seconds")
    return suite


def _shaped(table: dict[str, Any]) -> dict[str, Any]:
    """A ``[[cases]]`` table with its axes apart, each as a list."""
    known = set(Selection.__struct_fields__) - {"axes"}
    axes: dict[str, Any] = {
        key: value if isinstance(value, list) else [value] for key, value in table.items() if key not in known
    }
    return {key: value for key, value in table.items() if key in known} | {"axes": axes}


def load_probes(modules: Iterable[str]) -> dict[str, Probe]:
    """Import the probe modules; by name of the probe.  Two probes of one name are an error."""
    found: dict[str, Probe] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever is wrong with the user's module)
            why = " ".join(str(error).split())
            raise UsageError(f"cannot import probe module {name!r}: {type(error).__name__}: {why[:300]}") from None
        if not probes_in(module):
            raise UsageError(f"the module {name!r} defines no probe")
        for probe in probes_in(module):
            if probe.name in found:
                raise UsageError(f"probe {probe.name!r} is defined by both {found[probe.name].module} and {name}")
            found[probe.name] = probe
    return found


def plan(suite: Suite, probes: Mapping[str, Probe], machine: Machine, wish: Wish) -> list[Planned]:
    """The cases of a run in the order they will run (grouped so that worker pools start rarely), launch by launch."""
    kinds = {wish.device} if wish.device != "auto" else {"cuda" if on_gpus(machine) else "cpu"}
    ranges.refuse_unknown(wish.values, probes)
    cases: list[Planned] = []
    for number, selection in enumerate(suite.cases, 1):
        if selection.probe not in probes:
            raise UsageError(f"cases[{number}]: unknown probe {selection.probe!r} (there are {', '.join(probes)})")
        if selection.device == "cpu" and "cpu" not in kinds:
            continue
        if selection.device == "cuda" and wish.device == "cpu":
            continue
        cases += _expand(number, selection, suite, probes[selection.probe], machine, wish, kinds)
    chosen = list({(c.case, c.device): c for c in reversed(cases)}.values())[::-1]  # asked for twice, measured once
    if not chosen:
        whole = f"no case matches {' '.join(wish.globs)!r}" if wish.globs else "the suite has no case for this device"
        why = "; ".join(left_out(suite, probes, wish)) or ("see: run_suite.py list" if wish.globs else "")
        raise UsageError(f"{whole} ({why})" if why else whole)
    order = {"serial": 0, "torch": 1, "mpi": 2}
    chosen.sort(key=lambda c: (order[c.world], c.interpret, c.ranks, c.device, sorted(c.env.items())))
    return [msgspec.structs.replace(c, launch=launch) for launch in range(wish.launches) for c in chosen]


def on_gpus(machine: Machine) -> bool:
    """Whether cases are for its GPUs, where nobody says for which: it has some, and its torch is built for them."""
    return bool(machine.gpus) and not _cpu_build(machine)


def left_out(suite: Suite, probes: Mapping[str, Probe], wish: Wish) -> list[str]:
    """What each ``--set`` leaves out, in words: probes that were asked for and know none of its values, and values of which no
    such probe knows any."""
    found: list[str] = []
    for axis, given in wish.values.items():
        asked = {
            probe.name: probe
            for selection in suite.cases
            if axis in (probe := probes[selection.probe]).axes
            and any(_wanted(case, wish) for case in probe.cases(**_as_asked(selection, probe, wish, axis)))
        }
        of_each = {name: f"{name} ({axis}: {ranges.words(axis, probe.axes[axis])})" for name, probe in asked.items()}
        knowing = {name: probe for name, probe in asked.items() if ranges.wished(probe, axis, given)}
        if lacking := [words for name, words in of_each.items() if name not in knowing]:
            found.append(f"--set {axis}={','.join(given)} leaves out {', '.join(lacking)}")
        foreign = [each for each in given if not any(ranges.wished(probe, axis, [each]) for probe in knowing.values())]
        if knowing and foreign:
            found.append(f"no case has {axis}={','.join(foreign)}: {', '.join(of_each[name] for name in knowing)}")
    return found


def _values(selection: Selection, probe: Probe, wish: Wish) -> dict[str, list[Scalar]]:
    """The values of the axes that a table or ``--set`` names.  Of the latter those that the probe does not know are another's."""
    own = ranges.values(probe, selection.axes, "cases")
    return own | {axis: ranges.wished(probe, axis, given) for axis, given in wish.values.items() if axis in probe.axes}


def _as_asked(selection: Selection, probe: Probe, wish: Wish, but: str) -> dict[str, list[Scalar]]:
    """The same as if ``--set`` had not named this axis, nor others with values that the probe does not know."""
    own = ranges.values(probe, selection.axes, "cases")
    found = own | {axis: some for axis, some in _values(selection, probe, wish).items() if some and axis != but}
    return {axis: some for axis, some in found.items() if axis in probe.axes}


def _expand(
    number: int, selection: Selection, suite: Suite, probe: Probe, machine: Machine, wish: Wish, kinds: set[str]
) -> list[Planned]:
    """The cases of one table."""
    if selection.first_of and selection.first_of not in probe.axes:
        raise UsageError(f"cases[{number}].first_of: probe {probe.name!r} has no axis {selection.first_of!r}")
    for axis, given in ranges.values(probe, selection.axes, f"cases[{number}]").items():
        if not given:
            raise UsageError(
                f"cases[{number}]: {axis} = []: without a value there is no case (leave it out for all that are known)"
            )
        for value in given:
            if axis in probe.axes and not ranges.knows(probe, axis, value):
                known = ranges.words(axis, probe.axes[axis])
                raise UsageError(f"cases[{number}]: {axis}={value}: probe {probe.name!r} knows {known}")
    try:
        cases = list(probe.cases(**_values(selection, probe, wish)))
    except ValueError as error:
        raise UsageError(f"cases[{number}]: {error}") from None
    planned: list[Planned] = []
    for case in cases:
        on_targets = [replace(case, params=targets.params_for(case.params, target, wish.targets)) for target in wish.targets]
        if any(_wanted(one, wish) for one in (case, *on_targets)):
            needs = probe.needs_of(case.params)
            fit = targets.fitting(wish.targets, needs.objects) if needs.target else ()
            placed = {target: replace(case, params=targets.params_for(case.params, target, fit)) for target in fit}
            for target, one in placed.items() if placed else [("", case)]:
                if _wanted(one, wish):
                    planned += _on_devices(one, needs, target, selection, suite, machine, wish, kinds)
    return _first_that_run(planned, selection.first_of) if selection.first_of else planned


def _wanted(case: Case, wish: Wish) -> bool:
    return not wish.globs or any(matches(glob, case.id) for glob in wish.globs)


def _first_that_run(planned: list[Planned], axis: str) -> list[Planned]:
    """Of cases that differ only in ``axis`` the first that can run, or the last if none can."""
    chosen: dict[tuple[object, ...], Planned] = {}
    for case in planned:
        same = (case.device, *((name, value) for name, value in case.params.items() if name != axis))
        if same not in chosen or chosen[same].skip:
            chosen[same] = case
    return list(chosen.values())


def _on_devices(
    case: Case, needs: Needs, target: str, selection: Selection, suite: Suite, machine: Machine, wish: Wish, kinds: set[str]
) -> list[Planned]:
    """The case on every device it concerns: each GPU alone, or the one processor, or all ranks together."""
    kind = "cpu" if needs.target else needs.device if needs.device != "any" else selection.device
    unused = kind == "any" and wish.device == "auto" and bool(machine.gpus) and _cpu_build(machine)
    kind = min(kinds) if kind == "any" else kind
    budget_s = wish.duration_s or selection.budget_s or suite.budget_s
    if wish.device not in ("auto", kind) and not needs.target:
        return []
    nodes = wish.nodes if needs.world != "serial" and (needs.shared or not needs.target) else 1
    own = _ranks(needs, kind, machine, wish)
    interpret = needs.interpreter and kind == "cpu"
    if kind == "cuda":
        devices = ["cuda:all"] if needs.world != "serial" else [f"cuda:{gpu.index}" for gpu in machine.gpus] or ["cuda:0"]
    else:
        devices = ["cpu:0"]
    if nodes > 1:
        devices = [f"{kind}:nodes"]
    return [
        Planned(
            case=case.id,
            probe=case.probe,
            module=case.module,
            params=dict(case.params),
            device=device,
            ranks=own * nodes,
            world=needs.world,
            interpret=interpret,
            tunes=needs.tunes and not interpret,
            env=dict(needs.env),
            target=target,
            budget_s=budget_s,
            beyond_s=beyond(needs.moves, own, budget_s),
            timeout_s=(selection.timeout_s or suite.timeout_s) + (2 * ALLOWED_S if wish.cross_check and needs.target else 0),
            nodes=nodes,
            instead=CPU_TORCH if unused else "",
            cross_check=wish.cross_check and needs.target,
            peer=needs.peer,
            skip=_why_not(needs, target, device, own, nodes, machine)
            or _too_small(needs, interpret, cache_bytes(device, machine))
            or _too_large(needs, interpret, device, machine),
        )
        for device in devices
    ]


def cache_bytes(device: str, machine: Machine) -> int:
    """The last-level cache that a cold case on this device must defeat."""
    return CUDA_CACHE_BYTES if device.startswith("cuda") else machine.cpu.llc_bytes or CPU_CACHE_BYTES


def _too_small(needs: Needs, interpret: bool, cache: int) -> str:
    """Why the caches would serve the case, in words; empty where nothing is timed, or nothing is to be streamed."""
    if interpret or not needs.working_set or needs.working_set >= CACHES_EXCEEDED * cache:
        return ""
    return f"{format_size(needs.working_set)} is below {CACHES_EXCEEDED} × the last-level cache of {format_size(cache)}"


def _too_large(needs: Needs, interpret: bool, device: str, machine: Machine) -> str:
    """Why no such device holds what the case streams, in words: at run time it is asked how much of it is free."""
    own = next((gpu.memory_bytes for gpu in machine.gpus if device == f"cuda:{gpu.index}"), None)
    there = own if device.startswith("cuda") else machine.memory_bytes
    if interpret or not there or needs.working_set <= MEMORY_MOST * there:
        return ""
    return f"needs {format_size(needs.working_set)} of memory, {format_size(there >> 20 << 20)} is all there is"


def _cpu_build(machine: Machine) -> bool:
    return machine.versions.get("torch", "").endswith("+cpu")


def _ranks(needs: Needs, kind: str, machine: Machine, wish: Wish) -> int:
    if needs.world == "serial":
        return 1
    if wish.ranks:
        return wish.ranks
    if kind == "cuda":
        return max(1, len(machine.gpus))
    return machine.cpu.cores if needs.world == "mpi" else min(machine.cpu.cores, GLOO_RANKS)


def _why_not(needs: Needs, target: str, device: str, own: int, nodes: int, machine: Machine) -> str:
    """Why the case cannot run here, in words; empty if it can.  ``own``: ranks on each node; ``machine``: one of them."""
    kind = device.partition(":")[0]
    if needs.target and needs.objects and not target:
        return "no object store: name one with --target s3://bucket/prefix"
    if needs.target and not target:
        return "no target folder"
    if needs.refused:
        return needs.refused
    if kind == "cuda" and not machine.gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return "no GPU" if hidden is None else f"no GPU (CUDA_VISIBLE_DEVICES is {printable(hidden)[:40]!r}: does it hide them?)"
    if kind == "cuda" and "torch" in needs.modules and _cpu_build(machine):
        return CPU_TORCH
    if needs.nvlink and not all(link.kind == "nvlink" for link in machine.links):
        return "no NVLink between all GPUs"
    if own * nodes < needs.ranks:
        what, there = ("GPU", len(machine.gpus)) if kind == "cuda" else ("core", machine.cpu.cores)
        if own < there:
            return f"needs {needs.ranks} ranks, {own} was asked for (--ranks)"
        return f"needs {needs.ranks} ranks, here is {own} {what}"
    if needs.world != "serial" and (reason := too_many(needs.world, kind, own, machine)):
        return reason
    for module in needs.modules:
        if importlib.util.find_spec(module) is None:
            return f"the package {module} is not installed"
    if kind == "cuda" and needs.arch:
        alone = [gpu for gpu in machine.gpus if device == f"cuda:{gpu.index}"]
        for gpu in alone or machine.gpus:
            if gpu.arch.startswith("sm_") and gpu.arch[3:].isdigit() and int(gpu.arch[3:]) < needs.arch:
                return f"needs sm_{needs.arch}, {gpu.name} is {gpu.arch}"
    return ""
