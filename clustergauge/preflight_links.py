"""Links that trained down before anything was measured: ports, PCI slots and NVLinks below what they can, or below their peers.

Peers are ports of one board (the adapter's own id): others of the same chip may be meant for a slower network.  A port that is
narrower than a peer of the same speed lost lanes.  One that is only slower may be meant to be so, and fails where most of its
peers are faster.  One that is down may be spare: it is named, and fails where the same port of most machines is up (`inventory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clustergauge import gpu_links, links, nvml, sysfs
from clustergauge.links import Rate
from clustergauge.model import Finding, Machine
from clustergauge.preflight_gpus import ok, unknown

_FEWEST_LANES = {"SDR": 4, "DDR": 4, "QDR": 4, "FDR10": 4, "FDR": 4, "EDR": 4, "HDR": 2, "NDR": 2, "XDR": 2}
"""Lanes of an InfiniBand port that works as it is sold: since HDR a port may be split in two."""
_RESEAT = "reseat or replace cable and transceiver, look at the switch port; ibdiagnet and mlxlink show the lanes"
_SLOT = "reseat the card, look for PCIe errors in dmesg, and at the slot's settings in the firmware"
_WIRES = "see nvidia-smi nvlink --status and dmesg; reset the GPUs, then replace the one or its baseboard"


@dataclass(frozen=True)
class Port:
    """One network port.  ``board``: what its peers share; ``up``: ``None`` if it would not say."""

    name: str
    board: str
    shown: str
    rate: Rate | None
    up: bool | None
    fabric: bool = False


def findings(machine: Machine, root: Path = sysfs.ROOT, gpus: Sequence[nvml.Device] | None = None) -> list[Finding]:
    """All findings on links; none where there is no link that would tell.  ``gpus``: instead of asking NVML."""
    ports = [*fabric_ports(root), *net_ports(root)]
    slots = [*{nic.pci: nic.name for nic in reversed(machine.nics) if nic.pci}.items()]
    devices = nvml.devices() if gpus is None else gpus
    found = [*of_ports(ports)]
    for pci, name in slots:
        found += of_slot(root, pci, name, speed=True)
    for gpu in machine.gpus:  # a GPU with nothing to do runs its link slowly, but as wide as it is
        found += of_slot(root, gpu.pci, f"gpu{gpu.index}", speed=False)
    found += of_nvlinks(devices)
    looked = len(ports) + len(slots) + len(machine.gpus)
    return found or ([ok("links", f"none of {looked} ports and devices runs below its peers")] if looked else [])


def _down(name: str, detail: str, remedy: str, fails: bool = True) -> Finding:
    return Finding(name=f"link/{name}", state="warning", detail=detail, remedy=remedy, fails=fails)


# --------------------------------------------------------------------------------------------------------------------------
# network ports


def fabric_ports(root: Path) -> list[Port]:
    """InfiniBand and RoCE ports."""
    found: list[Port] = []
    for port in sysfs.entries(root / "sys/class/infiniband", "*/ports/[0-9]*"):
        device = port.parent.parent
        layer, shown = sysfs.text(port / "link_layer") or "", sysfs.text(port / "rate") or ""
        board = " ".join([layer, sysfs.text(device / "board_id") or "", _board(device / "device")])
        state = (sysfs.text(port / "state") or "").partition(":")[0]
        up = state == "4" if state.isdigit() else None
        found.append(Port(f"{device.name}:{port.name}", board, shown, links.parse_rate(shown), up, layer == "InfiniBand"))
    return found


def net_ports(root: Path) -> list[Port]:
    """Ethernet ports that are hardware, without those that are RoCE ports too."""
    verbs = {_real(device / "device") for device in sysfs.entries(root / "sys/class/infiniband")}
    found: list[Port] = []
    for port in sysfs.entries(root / "sys/class/net"):
        if not (port / "device").exists() or _real(port / "device") in verbs:
            continue
        speed, state = sysfs.number(port / "speed"), sysfs.text(port / "operstate")  # Mbit/s; -1 or an error: not known
        rate = Rate(speed / 1000, 0, "") if speed and speed > 0 else None
        shown = f"{rate.gbit_s:g} Gbit/s" if rate else ""
        found.append(Port(port.name, _board(port / "device"), shown, rate, state == "up" if state else None))
    return found


def _board(device: Path) -> str:
    return " ".join(sysfs.text(device / name) or "" for name in ("vendor", "device", "subsystem_vendor", "subsystem_device"))


def _real(path: Path) -> str:
    try:
        return str(path.resolve())
    except OSError:
        return str(path)


def of_ports(ports: Sequence[Port]) -> Iterator[Finding]:
    """Ports below what they can, or below their peers."""
    for port in ports:
        peers = [p for p in ports if p.board == port.board and p is not port] if port.board.strip() else []
        alike = [p for p in peers if p.up and p.rate]
        if port.up is None or (port.up and port.rate is None and port.fabric):
            yield unknown(f"link/{port.name}", "state or rate cannot be read")
        elif not port.up:
            up = len([p for p in peers if p.up])
            if port.fabric or 2 * up > len(peers) + 1:  # nobody has InfiniBand to leave it unplugged; Ethernet ports are spare
                others = f"{up} of its {len(peers)} peers are up" if peers else "and has no peer here"
                yield _down(port.name, f"{port.name} is down, {others}", _RESEAT, fails=False)
        elif port.rate:
            yield from _of_rate(port, port.rate, alike)


def _of_rate(port: Port, rate: Rate, alike: Sequence[Port]) -> Iterator[Finding]:
    fewest = _FEWEST_LANES.get(rate.speed, 0) if port.fabric else 0
    wider = [p for p in alike if p.rate and p.rate.lanes > rate.lanes > 0 and p.rate.speed == rate.speed]
    faster = [p for p in alike if p.rate and p.rate.gbit_s > rate.gbit_s]
    if 0 < rate.lanes < fewest:
        yield _down(port.name, f"{port.name} trained down: {port.shown}, such a port has {fewest} lanes at least", _RESEAT)
    elif wider:
        yield _down(port.name, f"{port.name} trained down: {port.shown}, {wider[0].name} has {wider[0].shown}", _RESEAT)
    elif faster:
        most = 2 * len(faster) > len(alike) + 1
        word = "trained down" if most else "is slower than a peer"
        detail = f"{port.name} {word}: {port.shown}, {len(faster)} of its {len(alike)} peers run faster ({faster[0].shown})"
        yield _down(port.name, detail, _RESEAT, fails=most)


# --------------------------------------------------------------------------------------------------------------------------
# PCI and NVLink


def of_slot(root: Path, pci: str, name: str, speed: bool) -> Iterator[Finding]:
    """A PCIe link narrower (and ``speed``: slower) than both of its ends can; a card in a lesser slot did not train down."""
    if not pci:
        return
    device = root / "sys/bus/pci/devices" / pci
    try:
        above = device.resolve().parent
    except OSError:
        return
    width, widest = (links.parse_width(sysfs.text(device / f"{which}_link_width")) for which in ("current", "max"))
    slot = links.parse_width(sysfs.text(above / "max_link_width")) or widest
    lost: list[str] = []
    if width and widest and slot and width < min(widest, slot):
        lost.append(f"x{width} of x{min(widest, slot)}")
    rate, highest = (links.parse_pcie_speed(sysfs.text(device / f"{which}_link_speed")) for which in ("current", "max"))
    bridge = links.parse_pcie_speed(sysfs.text(above / "max_link_speed")) or highest
    if speed and rate and highest and bridge and rate < min(highest, bridge):
        lost.append(f"{rate:g} of {min(highest, bridge):g} GT/s")
    if lost:
        yield _down(f"{name}.pcie", f"the PCIe link of {name} ({pci}) trained down: {', '.join(lost)}", _SLOT)


def of_nvlinks(devices: Sequence[nvml.Device]) -> Iterator[Finding]:
    """GPUs with fewer NVLinks up than others of the same name in this machine."""
    states = {device: gpu_links.nvlinks(device) for device in devices}
    for device, ups in states.items():
        most = max((sum(other) for d, other in states.items() if other is not None and d.name == device.name), default=0)
        if ups is None:
            yield unknown(f"link/gpu{device.index}.nvlink", "the driver does not say which links are up")
        elif sum(ups) < most:
            detail = f"GPU {device.index} has {sum(ups)} NVLinks up, others of its kind {most}"
            yield _down(f"gpu{device.index}.nvlink", detail, _WIRES)
