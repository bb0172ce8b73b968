"""Made-up trees of network ports, in the formats of the kernel's Documentation/ABI and of the drivers' ``hw_counters``."""

from __future__ import annotations

from pathlib import Path

from tests.trees import pci, port, write

EFA = ("send_bytes", "recv_bytes", "rdma_write_bytes", "rdma_write_recv_bytes", "rdma_read_bytes", "rdma_read_resp_bytes")


def ethernet(root: Path, name: str, tx: int, rx: int, speed: str = "-1", device: str = "", state: str = "up") -> None:
    """An interface with its counters; ``device``: the PCI folder of one that is hardware."""
    if device:
        port(root, name, device, speed=speed, operstate=state)
    count(root, name, tx, rx)


def count(root: Path, name: str, tx: int, rx: int) -> None:
    """What an interface has moved."""
    write(root, f"sys/class/net/{name}/statistics/tx_bytes", f"{tx}\n")
    write(root, f"sys/class/net/{name}/statistics/rx_bytes", f"{rx}\n")


def adapter(
    root: Path,
    name: str,
    rate: str = "400 Gb/sec (4X NDR)",
    layer: str = "InfiniBand",
    state: str = "4: ACTIVE",
    board: str = "MT_0000000838",
    bus: str = "",
    **counters: int,
) -> str:
    """A port with verbs; counters by name (``port_…`` in ``counters``, others in ``hw_counters``).  Returns its folder."""
    folder = f"sys/class/infiniband/{name}/ports/1"
    files = {"rate": rate, "link_layer": layer, "state": state, "phys_state": "5: LinkUp" if state[0] == "4" else "2: Polling"}
    for file, content in files.items():
        write(root, f"{folder}/{file}", content + "\n")
    write(root, f"sys/class/infiniband/{name}/board_id", board + "\n")
    for counter, value in counters.items():
        write(root, f"{folder}/{'counters' if counter.startswith('port_') else 'hw_counters'}/{counter}", f"{value}\n")
    if bus:
        (root / f"sys/class/infiniband/{name}/device").symlink_to(root / pci(root, bus, vendor="0x15b3", device="0x1021"))
    return folder
