"""How the GPUs of this machine reach each other, as NVML tells: NVLink, or what they share on the PCI bus."""

from __future__ import annotations

from collections.abc import Sequence

from clustergauge import nvml
from clustergauge.model import Link

ANCESTORS = {0: "internal", 10: "single switch", 20: "several switches", 30: "host bridge", 40: "node", 50: "system"}
"""``nvmlGpuTopologyLevel_t``: what two GPUs share on the PCI bus, the nearest first."""
P2P = {
    0: "ok",
    1: "the chipset does not support it",
    2: "the GPU does not support it",
    3: "the I/O hub does not support it",
    4: "disabled in the registry",
    5: "not supported",
}
"""``nvmlGpuP2PStatus_t``."""
_READ, _NVLINK = 0, 2
"""``NVML_P2P_CAPS_INDEX_*``."""


def nvlinks(device: nvml.Device) -> list[bool] | None:
    """Whether each NVLink of a GPU is up; empty where it has none, ``None`` where one would not say."""
    states = [device.ask("nvmlDeviceGetNvLinkState", n) for n in range(nvml.MOST_LINKS)]
    known = [state for state in states if isinstance(state, int)]  # numbers beyond the last link are refused
    late = states[len(known) :]
    return None if any(isinstance(state, int) for state in late) else [state == 1 for state in known]


def between(devices: Sequence[nvml.Device]) -> list[Link]:
    """How every two GPUs reach each other, as NVML tells."""
    return [_link(a, b) for n, a in enumerate(devices) for b in devices[n + 1 :]]


def _link(a: nvml.Device, b: nvml.Device) -> Link:
    ancestor = nvml.as_int(a.ask("nvmlDeviceGetTopologyCommonAncestor", b.handle))
    peer = nvml.as_int(a.ask("nvmlDeviceGetP2PStatus", b.handle, _READ))
    wired = nvml.as_int(a.ask("nvmlDeviceGetP2PStatus", b.handle, _NVLINK))
    direct, up = _direct(a, b.pci), nvlinks(a)
    over_nvlink = direct > 0 or wired == 0
    # over a switch every link of a GPU leads to every other
    lanes = direct or (sum(up) if up is not None and wired == 0 else None)
    return Link(
        a=a.index,
        b=b.index,
        kind="nvlink" if over_nvlink else "" if wired is None and up is None else "pcie",
        lanes=lanes if over_nvlink else None,
        ancestor=ANCESTORS.get(ancestor, "") if ancestor is not None else "",
        p2p=P2P.get(peer, "unknown") if peer is not None else "",
    )


def _direct(a: nvml.Device, pci: str) -> int:
    """NVLinks that are up and lead straight to the GPU at this address."""
    count = 0
    for number in range(nvml.MOST_LINKS):
        if a.ask("nvmlDeviceGetNvLinkState", number) == 1:
            other = nvml.pci_address(a.ask("nvmlDeviceGetNvLinkRemotePciInfo", number))
            count += other == pci != ""
    return count
