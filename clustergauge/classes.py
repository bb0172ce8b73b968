"""Which machines are peers: those with the same parts, drivers, libraries and switches.  Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from clustergauge import differ
from clustergauge.model import Machine
from clustergauge.units import installed

LARGE_CLASS = 8
"""A class of so many members makes smaller ones deviants of it."""


def classes_of(machines: Mapping[str, Machine]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The class of every machine that has peers, why the others have none, and what a reader should know."""
    own = {m: _class_of(machine) for m, machine in machines.items()}
    sizes = Counter(own.values())
    large = [name for name, size in sizes.most_common() if size >= LARGE_CLASS]
    notes: list[str] = []
    if not large:
        if len(sizes) > 1:
            notes.append(f"{len(sizes)} kinds of machines, none with {LARGE_CLASS} members: each is judged by itself")
            notes += _unlike_most(machines, own, *sizes.most_common(1)[0])
        return own, {}, notes
    if len(large) > 1:
        notes.append(f"{len(large)} classes of machines (parts, drivers or libraries differ): each is judged by itself")
    first = {own[m]: machine for m, machine in reversed(list(machines.items()))}
    usual = [first[name] for name in large]
    why = {name: _deviation(machine, usual) for name, machine in first.items() if sizes[name] < LARGE_CLASS}
    peers = {m: name for m, name in own.items() if name not in why}
    return peers, {m: why[name] for m, name in own.items() if name in why}, notes


def _unlike_most(machines: Mapping[str, Machine], own: Mapping[str, str], most: str, count: int) -> list[str]:
    """In what the others differ from a class that more than half are in: too few to call them bad for it, and worth a look."""
    usual = next(machine for m, machine in machines.items() if own[m] == most)
    odd = [machine for m, machine in machines.items() if own[m] != most] if 2 * count > len(own) else []
    return [f"{machine.host} is not as most of them: {_deviation(machine, [usual])}" for machine in odd]


def _deviation(machine: Machine, usual: Sequence[Machine]) -> str:
    """In what a machine differs from the nearest of ``usual``, of each large class one, the largest first."""
    diffs = [[d for d in differ.of_machines(other, machine) if d.bars] for other in usual]
    told = [f"{d.name}: {d.b}, the others {d.a}" for d in min(diffs, key=len)[:3]]
    return "; ".join(told) or "other parts than the others"


def _class_of(machine: Machine) -> str:
    """Parts, drivers, libraries and switches: what must be equal for devices to perform alike."""
    switches = [(gpu.ecc, gpu.mig, gpu.power_limit_w, gpu.sm_clock_max_mhz) for gpu in machine.gpus]
    settings = sorted(machine.settings.items())
    versions = sorted(machine.versions.items())
    text = repr((_parts(machine), machine.kernel, switches, settings, versions))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parts(machine: Machine) -> str:
    if machine.peer_class:
        return machine.peer_class
    cpu = machine.cpu
    return repr((cpu.model, cpu.cores, cpu.threads, installed(machine.memory_bytes), [gpu.name for gpu in machine.gpus]))
