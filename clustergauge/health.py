"""Error counters and states of this machine, read before and after every case: what grew or changed meanwhile.

Quick, without root, and nothing of it inside a timed region.  Three kinds of silence are told apart: a part that is not here or
does not count is absent; what the machine offers and could not be read is unknown; what was read twice and is the same is well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clustergauge import nvml, sysfs
from clustergauge.gpu_health import GpuHealth
from clustergauge.model import Scalar

NET_ERRORS = (
    "rx_errors",
    "rx_crc_errors",
    "rx_fifo_errors",
    "rx_missed_errors",
    "tx_errors",
    "tx_dropped",
    "tx_carrier_errors",
)
"""Of ``/sys/class/net/*/statistics``.  ``rx_dropped`` is not among them: it counts frames nobody listens for, on any network."""
PORT_ERRORS = (
    "symbol_error",
    "link_error_recovery",
    "link_downed",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_xmit_discards",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
)
"""Of ``/sys/class/infiniband/*/ports/*/counters`` (InfiniBand specification, PortCounters)."""
PORT_HARDWARE_ERRORS = (
    "local_ack_timeout_err",
    "out_of_sequence",
    "packet_seq_err",
    "rx_icrc_encapsulated",
    "roce_adp_retrans_to",
    "rx_drops",
    "rdma_read_wr_err",
    "rdma_write_wr_err",
    "retrans_timeout_events",
    "impaired_remote_conn_events",
    "unresponsive_remote_events",
)
"""Of ``hw_counters``: what retransmission hides from every program (the last six: EFA).  Congestion marks are not errors."""
PCIE = {"pcie_width": "current_link_width", "pcie_speed": "current_link_speed"}
"""States of a network device's PCIe link (Documentation/ABI/testing/sysfs-bus-pci); `links` says which change is a fault."""
AER = ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal")
"""PCIe error reports of a device; each file ends in a line with their total."""

Reader = Callable[[Path], int | str | None]


def read(root: Path = sysfs.ROOT) -> dict[str, Any]:
    """A snapshot: counters as numbers, states as words, ``None`` for what this machine offers and could not be read."""
    found: dict[str, Any] = {name: reader(path) for name, path, reader in _sources(root)}
    for gpu in _gpus():
        found |= {f"gpu{gpu.device.index}.{name}": value for name, value in gpu.read().items()}
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Scalar]:
    """What happened between two snapshots; empty if nothing did and everything could be read.

    Counters: by how much they grew (a counter that fell was reset, and shows both values).  States: ``before → after``.
    ``unknown``: the names, comma-separated, of what could not be read in one of the two.
    """
    found: dict[str, Scalar] = {}
    unknown: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "absent"), after.get(name, "absent")
        if name.partition(".")[2].startswith("xid_"):
            old, new = (0 if value == "absent" else value for value in (old, new))  # the first of its kind
        if old is None or new is None:
            unknown.append(name)
        elif old != new:
            rose = isinstance(old, int) and isinstance(new, int) and new > old
            found[name] = new - old if rose else f"{old} → {new}"
    if unknown:
        found["unknown"] = ",".join(unknown)
    return found


# --------------------------------------------------------------------------------------------------------------------------
# where to look


def _sources(root: Path) -> list[tuple[str, Path, Reader]]:
    """Name, file and reader of everything this machine offers.  Ports come and go, so they are looked up every time."""
    return [*_net(root), *_infiniband(root), *_fixed(root)]


def _net(root: Path) -> list[tuple[str, Path, Reader]]:
    found: list[tuple[str, Path, Reader]] = []
    for port in sysfs.entries(root / "sys/class/net"):
        if not (port / "device").exists():
            continue  # bridges, tunnels and loops
        found += [(f"{port.name}.{name}", port / "statistics" / name, sysfs.number) for name in NET_ERRORS]
        found.append((f"{port.name}.state", port / "operstate", sysfs.text))
        found += _if_there(f"{port.name}.carrier_changes", port / "carrier_changes", sysfs.number)
        for name in AER:
            found += _if_there(f"{port.name}.{name}", port / "device" / name, _aer_total)
        for name, file in PCIE.items():
            found += _if_there(f"{port.name}.{name}", port / "device" / file, sysfs.text)
    return found


def _infiniband(root: Path) -> list[tuple[str, Path, Reader]]:
    found: list[tuple[str, Path, Reader]] = []
    for port in sysfs.entries(root / "sys/class/infiniband", "*/ports/[0-9]*"):
        name = f"{port.parent.parent.name}:{port.name}"
        for folder, counters in (("counters", PORT_ERRORS), ("hw_counters", PORT_HARDWARE_ERRORS)):
            for counter in counters:  # drivers have different ones
                found += _if_there(f"{name}.{counter}", port / folder / counter, sysfs.number)
        found += [(f"{name}.{state}", port / state, sysfs.text) for state in ("state", "phys_state", "rate")]
        for state, file in PCIE.items():
            found += _if_there(f"{name}.{state}", port.parent.parent / "device" / file, sysfs.text)
    return found


@functools.cache
def _gpus() -> list[GpuHealth]:
    return [GpuHealth(device) for device in nvml.devices()]


@functools.cache
def _fixed(root: Path) -> list[tuple[str, Path, Reader]]:
    """What does not come and go while an agent lives."""
    found: list[tuple[str, Path, Reader]] = []
    for controller in sysfs.entries(root / "sys/devices/system/edac/mc", "mc[0-9]*"):
        found.append((f"memory.{controller.name}.corrected", controller / "ce_count", sysfs.number))
        found.append((f"memory.{controller.name}.uncorrected", controller / "ue_count", sysfs.number))
    cpus = root / "sys/devices/system/cpu"
    kinds = [k for k in ("core", "package") if sysfs.entries(cpus, f"cpu[0-9]*/thermal_throttle/{k}_throttle_count")]
    found += [(f"cpu.{kind}_throttle", cpus, functools.partial(_throttle, kind)) for kind in kinds]
    if _machine_checks(root / "proc/interrupts") is not None:
        found.append(("cpu.machine_checks", root / "proc/interrupts", _machine_checks))
    found += _if_there("memory.oom_kills", root / "proc/vmstat", _oom_kills)
    return found


def _if_there(name: str, path: Path, reader: Reader) -> list[tuple[str, Path, Reader]]:
    return [(name, path, reader)] if path.exists() else []


# --------------------------------------------------------------------------------------------------------------------------
# readers of more than one number


def _throttle(kind: str, folder: Path) -> int | None:
    """Thermal throttle events summed over processors: one of a package counts once for each processor of it."""
    counts = [sysfs.number(path) for path in folder.glob(f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _machine_checks(path: Path) -> int | None:
    """Machine check exceptions, the ``MCE`` line of /proc/interrupts (``MCP`` counts polls, which are no errors)."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.lstrip().startswith(b"MCE:"):
                    return sum(int(word) for word in line.split()[1:] if word.isdigit())
    except OSError:
        pass
    return None


def _oom_kills(path: Path) -> int | None:
    value = sysfs.pairs(sysfs.text(path), " ").get("oom_kill", "")
    return int(value) if value.isdigit() else None


def _aer_total(path: Path) -> int | None:
    last = (sysfs.text(path) or "").rpartition("\n")[2].split()
    return int(last[1]) if len(last) == 2 and last[0].startswith("TOTAL_ERR") and last[1].isdigit() else None
