"""Accelerators and network ports of this machine: NVIDIA through NVML, AMD and NICs from /sys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from clustergauge import nvml, sysfs
from clustergauge.model import Gpu, Nic
from clustergauge.placement import format_cpus, read_list

LEAST_VRAM = 8 << 30
"""An AMD GPU with less memory of its own is a display adapter of the processor, not an accelerator."""
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PORT_STATES = {"1": "down", "2": "init", "3": "armed", "4": "active", "5": "active_defer"}
"""``ib_port_state`` of the kernel."""


def gpus(root: Path = sysfs.ROOT, found: Sequence[nvml.Device] | None = None) -> list[Gpu]:
    """The accelerators that CUDA (or ROCm) programs see.  ``found``: instead of asking NVML."""
    nvidia = nvml.devices() if found is None else found
    highest = max(read_list(root / "sys/devices/system/cpu/possible"), default=1023)
    return [_nvidia(device, root, highest) for device in nvidia] or _amd(root)


def _nvidia(device: nvml.Device, root: Path, highest: int) -> Gpu:
    pci = device.pci
    return Gpu(
        index=device.index,
        name=device.name,
        uuid=device.uuid,
        pci=pci,
        arch=device.arch,
        memory_bytes=device.memory_bytes,
        cpus=format_cpus(device.cpus(highest) or _beside(root, pci)),
        numa=_numa(root, pci),
        sm_clock_max_mhz=device.sm_clock_max_mhz,
        power_limit_w=device.power_limit_w,
        ecc=device.ecc,
        mig=device.mig,
        persistence=device.persistence,
        compute_mode=device.compute_mode,
    )


def _amd(root: Path) -> list[Gpu]:
    """AMD GPUs as the compute driver (kfd) lists them; what it does not say is unknown.

    Properties as in the kernel's ``kfd_topology.c``: ``location_id`` is bus, device and function in 8, 5 and 3 bits;
    ``gfx_target_version`` is major, minor and stepping in decimal pairs.
    """
    found: list[Gpu] = []
    for node in sysfs.entries(root / "sys/class/kfd/kfd/topology/nodes", "[0-9]*"):
        properties = {
            name: int(value)
            for name, value in sysfs.pairs(sysfs.text(node / "properties"), " ").items()
            if value.isascii() and value.isdigit()
        }
        place, version = properties.get("location_id", 0), properties.get("gfx_target_version", 0)
        pci = f"{properties.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
        folder = root / "sys/bus/pci/devices" / pci
        memory = sysfs.number(folder / "mem_info_vram_total")
        if not properties.get("simd_count") or memory is None or memory < LEAST_VRAM:
            continue
        unique, clock = properties.get("unique_id"), properties.get("max_engine_clk_fcompute")
        limit = next((sysfs.number(path) for path in sysfs.entries(folder, "hwmon/hwmon*/power1_cap")), None)
        found.append(
            Gpu(
                index=len(found),
                name=sysfs.text(folder / "product_name") or "AMD GPU",
                uuid=f"GPU-{unique:016x}" if unique else pci,
                pci=pci,
                arch=f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else "",
                memory_bytes=memory,
                cpus=format_cpus(_beside(root, pci)),
                numa=_numa(root, pci),
                sm_clock_max_mhz=float(clock) if clock else None,
                power_limit_w=None if limit is None else limit / 1e6,
            )
        )
    return found


def _beside(root: Path, pci: str) -> set[int]:
    return read_list(root / "sys/bus/pci/devices" / pci / "local_cpulist") if pci else set()


def _numa(root: Path, pci: str) -> int | None:
    node = sysfs.number(root / "sys/bus/pci/devices" / pci / "numa_node") if pci else None
    return None if node is None or node < 0 else node


# --------------------------------------------------------------------------------------------------------------------------
# network


def nics(root: Path = sysfs.ROOT) -> list[Nic]:
    """Network ports that are hardware (or a hypervisor's), and InfiniBand and RoCE ports; bridges, tunnels and loops are not."""
    verbs = _verbs(root)
    fabric = {nic.pci for nic in verbs if nic.pci and nic.kind == "infiniband"}
    found: list[Nic] = []
    for port in sysfs.entries(root / "sys/class/net"):
        if not (port / "device").exists():
            continue
        pci = _pci_of(port / "device")
        kind, wireless = sysfs.text(port / "type"), (port / "wireless").exists()
        if kind == "32" and pci in fabric:
            continue  # IP over the InfiniBand port that is listed already
        speed = sysfs.number(port / "speed")  # Mbit/s; -1 or an error where there is no link or no such thing
        found.append(
            Nic(
                name=port.name,
                kind="infiniband" if kind == "32" else "ethernet" if kind == "1" and not wireless else "other",
                state=sysfs.text(port / "operstate") or "",
                rate_gbit_s=speed / 1000 if speed and speed > 0 else None,
                pci=pci,
                numa=_numa(root, pci),
            )
        )
    return found + verbs


def _verbs(root: Path) -> list[Nic]:
    found: list[Nic] = []
    for device in sysfs.entries(root / "sys/class/infiniband"):
        ports = sysfs.entries(device / "ports", "[0-9]*")
        for port in ports:
            pci = _pci_of(device / "device")
            layer = sysfs.text(port / "link_layer")
            rate = re.match(r"([0-9]{1,6}(?:\.[0-9]+)?) Gb/sec", sysfs.text(port / "rate") or "")
            number, _, word = (sysfs.text(port / "state") or "").partition(":")
            found.append(
                Nic(
                    name=device.name if len(ports) == 1 else f"{device.name}:{port.name}",
                    kind="infiniband" if layer == "InfiniBand" else "roce" if layer == "Ethernet" else "other",
                    state=_PORT_STATES.get(number, word.strip().lower()),
                    rate_gbit_s=float(rate[1]) if rate else None,
                    pci=pci,
                    numa=_numa(root, pci),
                )
            )
    return found


def _pci_of(device: Path) -> str:
    """The PCI address of a device, or of the one it hangs on (virtio); empty if there is none."""
    try:
        parts = device.resolve().parts
    except OSError:
        return ""
    return next((part for part in reversed(parts) if _PCI.fullmatch(part)), "")
