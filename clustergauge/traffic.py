"""Bytes that every interface, InfiniBand or RoCE port and NVLink of this machine has moved, read before and after every case.

Names: ``eth0.tx_bytes``, ``mlx5_0:1.rx_bytes``, ``gpu0.nvlink.tx_bytes``.  What rests on other interfaces (a bridge, a bond) is
named ``stacked.bond0``: its bytes are theirs too.  What cannot be read, was reset or has reached its end is absent, never zero.
Quick, without root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clustergauge import nvml, sysfs

DIRECTIONS = ("tx", "rx")

Sources = tuple[tuple[str, ...], tuple[str, ...], int]
"""Counters that add up to the bytes sent, and to those received, in units of so many bytes."""

HARDWARE: tuple[Sources, ...] = (
    # EFA: payload by kind of operation; kernel, drivers/infiniband/hw/efa/efa_verbs.c
    (("send_bytes", "rdma_write_bytes", "rdma_read_resp_bytes"), ("recv_bytes", "rdma_write_recv_bytes", "rdma_read_bytes"), 1),
    (("send_bytes", "rdma_read_resp_bytes"), ("recv_bytes", "rdma_read_bytes"), 1),  # EFA drivers before RDMA write
    # Broadcom: RoCE alone; drivers/infiniband/hw/bnxt_re/hw_counters.c
    (("tx_roce_only_bytes",), ("rx_roce_only_bytes",), 1),
    # Alibaba eRDMA: drivers/infiniband/hw/erdma/erdma_verbs.c
    (("hw_tx_bytes_cnt",), ("hw_rx_bytes_cnt",), 1),
    (("tx_bytes",), ("rx_bytes",), 1),
)
"""Of ``hw_counters`` of a port, the most exact first; the first whose files all are there counts."""
STANDARD: Sources = (("port_xmit_data",), ("port_rcv_data",), 4)
"""Of ``counters``: octets divided by 4 (kernel, Documentation/ABI/stable/sysfs-class-infiniband).  mlx5 counts RoCE there too."""
_ENDS = ((1 << 32) - 1, (1 << 64) - 1)
"""InfiniBand counters stop at their highest value."""

_THROUGHPUT = {"tx": 138, "rx": 139}
"""``NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_*``: KiB of payload."""
_PACKET_BYTES = {"tx": 202, "rx": 204}
"""``NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES`` and ``…RCV_BYTES``: of one link, packets whole; what NVLink 5 counts."""
_ALL_LINKS = 0xFFFFFFFF
"""Scope of a field that means the sum of all links."""
_LONGS = (2, 3)
"""``nvmlValueType_t`` of unsigned long and unsigned long long."""


def read(root: Path = sysfs.ROOT, gpus: Sequence[nvml.Device] | None = None) -> dict[str, int]:
    """The counters now, in bytes.  ``gpus``: instead of asking NVML."""
    found: dict[str, int] = {}
    for port in sysfs.entries(root / "sys/class/net"):
        name = f"stacked.{port.name}" if sysfs.entries(port, "lower_*") else port.name
        for way in DIRECTIONS:
            _put(found, f"{name}.{way}_bytes", sysfs.number(port / "statistics" / f"{way}_bytes"))
    for port in sysfs.entries(root / "sys/class/infiniband", "*/ports/[0-9]*"):
        for way, value in zip(DIRECTIONS, _of_port(port), strict=True):
            _put(found, f"{port.parent.parent.name}:{port.name}.{way}_bytes", value)
    for device in nvml.devices() if gpus is None else gpus:
        for way in DIRECTIONS:
            _put(found, f"gpu{device.index}.nvlink.{way}_bytes", _of_nvlinks(device, way))
    return found


def moved(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was moved between two readings; counters that fell are absent."""
    return {name: after[name] - old for name, old in before.items() if after.get(name, -1) >= old}


def _put(found: dict[str, int], name: str, value: int | None) -> None:
    if value is not None and value >= 0:
        found[name] = value


def _of_port(port: Path) -> tuple[int | None, int | None]:
    for sent, received, unit in HARDWARE:
        if all((port / "hw_counters" / name).exists() for name in (*sent, *received)):
            return _sum(port / "hw_counters", sent, unit), _sum(port / "hw_counters", received, unit)
    sent, received, unit = STANDARD
    return _sum(port / "counters", sent, unit), _sum(port / "counters", received, unit)


def _sum(folder: Path, names: Sequence[str], unit: int) -> int | None:
    total = 0
    for name in names:
        value = sysfs.number(folder / name)
        if value is None or value < 0 or value in _ENDS:
            return None
        total += value * unit
    return total


def _of_nvlinks(device: nvml.Device, way: str) -> int | None:
    """Bytes of all NVLinks of a GPU; ``None`` if it has none or does not count."""
    kib = _field(device, _THROUGHPUT[way], _ALL_LINKS)
    if kib is not None:
        return kib << 10
    links = [n for n in range(nvml.MOST_LINKS) if device.ask("nvmlDeviceGetNvLinkState", n) == 1]
    counts = [_field(device, _PACKET_BYTES[way], n) for n in links]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _field(device: nvml.Device, field: int, scope: int) -> int | None:
    answer: Any = device.ask("nvmlDeviceGetFieldValues", [(field, scope)])
    if answer is None or answer is nvml.NOT_OFFERED:
        return None
    value = answer[0]
    return nvml.as_int(value.value.ullVal) if value.nvmlReturn == 0 and value.valueType in _LONGS else None
