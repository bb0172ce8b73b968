"""The first lines of a report: which machines, what is in them, what ran on them, and which run this is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.cells import cell_len

from clustergauge.model import Machine
from clustergauge.units import counted
from clustergauge.valid import printable
from reports.layout import LONGEST, Page, fit, fit_end, listed

FIRST = ("nvidia_driver", "amdgpu_driver", "cuda_driver", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "torch", "triton", "mpich")
"""Versions named first; the rest follow as the machine tells them."""
HOSTS = 3
"""More hosts of one kind than this are counted."""


def draw(page: Page, run_id: str, machines: Iterable[Machine]) -> None:
    """One line for each kind of machine, the run's id at the right end of the first; then versions as far as they fit."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for machine in machines:
        kinds.setdefault((parts(machine), versions(machine)), []).append(printable(machine.host[:LONGEST]))
    mark = f"run {fit(printable(run_id), 40)}"
    for number, ((hardware, software), hosts) in enumerate(kinds.items() or [(("", ""), ["no machine was reached"])]):
        room = page.width - (cell_len(mark) + 2 if number == 0 else 0)
        host = fit(_hosts(hosts), max(room // 3, room - 3 - cell_len(hardware)) if hardware else room)
        line = fit_end(" · ".join(filter(None, (host, hardware))), room)
        beside = " · ".join(filter(None, (line, software)))
        fits = cell_len(beside) <= room
        text = beside if fits else line
        tail = (" " * (page.width - cell_len(text) - cell_len(mark)), mark) if number == 0 else ()
        page.add((text[: len(host)], "bold"), text[len(host) :], *tail)
        if software and not fits:
            page.add((listed(software.split(" · "), page.width, " · "), "dim"))


def kinds(machines: Iterable[Machine]) -> list[str]:
    """One text for each kind of machine, without versions: ``node-01 … node-16 (16) · 8× NVIDIA H100 80GB HBM3``."""
    found: dict[str, list[str]] = {}
    for machine in machines:
        found.setdefault(parts(machine), []).append(printable(machine.host[:LONGEST]))
    return [" · ".join(filter(None, (_hosts(hosts), hardware))) for hardware, hosts in found.items()]


def _hosts(hosts: list[str]) -> str:
    return ", ".join(hosts) if len(hosts) <= HOSTS else f"{hosts[0]} … {hosts[-1]} ({len(hosts)})"


def parts(machine: Machine) -> str:
    """The accelerators, or the processor where there are none: ``8× NVIDIA H100 80GB HBM3``."""
    names = Counter(printable(gpu.name[:LONGEST]) or "GPU" for gpu in machine.gpus)
    place = f"in {printable(machine.virtual[:LONGEST])}" if machine.virtual else ""
    if names:
        return " · ".join(filter(None, (*(f"{number}× {name}" for name, number in names.items()), place)))
    cores = counted(machine.cpu.cores, "core")
    return " · ".join(filter(None, (" ".join(printable(machine.cpu.model[:LONGEST]).split()), cores, place)))


def versions(machine: Machine) -> str:
    """What decides results beside the parts: ``nvidia driver 570.86 · cuda driver 12.8 · torch 2.13``."""
    order = [*(name for name in FIRST if name in machine.versions), *(n for n in machine.versions if n not in FIRST)]
    found = [f"{name.replace('_', ' ')} {machine.versions[name]}" for name in order if machine.versions[name]]
    return " · ".join(" ".join(printable(text[:80]).replace(" · ", " ").split()) for text in found)
