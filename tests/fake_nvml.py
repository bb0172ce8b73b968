"""A mock of nvidia-ml-py (the module ``pynvml``), because no GPU is on the machines these tests run on.

It answers in the shapes that nvidia-ml-py documents: numbers, lists, structures with the documented field names, and `NVMLError`
with ``value`` set to the ``nvmlReturn_t``.  It proves that answers are understood, not that a driver gives them.  Functions it
does not define are missing, as in an older package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from clustergauge import health, nvml

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, GPU_IS_LOST, INVALID_ARGUMENT = 3, 4, 10, 15, 2


class NVMLError(Exception):
    """As ``pynvml.NVMLError``."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return {9: "Driver Not Loaded", GPU_IS_LOST: "GPU is lost"}.get(self.value, f"error {self.value}")


@dataclass
class Card:
    """One GPU.  ``refuse``: function → error it raises; ``lost``: every function raises GPU_IS_LOST."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111-0000-0000-0000-000000000000"
    bus: str = "00000000:17:00.0"
    cpus: int = 0xFF
    ecc: list[int] = field(default_factory=lambda: [0, 0])
    rows: tuple[int, int, int, int] = (0, 0, 0, 0)
    retired: dict[int, list[int]] = field(default_factory=lambda: {0: [], 1: []})
    reasons: int = 0x1
    width: int = 16
    links: dict[int, list[int]] = field(default_factory=dict)
    """Link → its four error counters."""
    down: set[int] = field(default_factory=set)
    wires: dict[int, str] = field(default_factory=dict)
    """Link → bus of the GPU at its other end; a link that is not named leads to a switch."""
    switched: bool = False
    """Whether its links lead to a switch, over which it reaches every other GPU."""
    fields: dict[tuple[int, int], int] = field(default_factory=dict)
    """Field and scope → value (an unsigned long long); others are not supported."""
    pids: list[int] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)
    millijoule: int = 5_000_000
    mode: int = 0
    refuse: dict[str, int] = field(default_factory=dict)
    lost: bool = False


class FakeNvml:
    """The module.  Give it to `install`."""

    NVMLError = NVMLError

    def __init__(self, *cards: Card, init_error: int = 0) -> None:
        self.cards = list(cards)
        self.init_error = init_error
        self.watched: list[Card] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answer = _ANSWERS.get(name)
        if answer is None:
            raise AttributeError(name)

        def call(card: Card, *arguments: Any) -> Any:
            if card.lost:
                raise NVMLError(GPU_IS_LOST)
            if name in card.refuse:
                raise NVMLError(card.refuse[name])
            return answer(card, *arguments)

        return call

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        return self.cards[index]

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"575.57.08"  # bytes, as older packages answer

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 12090

    def nvmlEventSetCreate(self) -> list[Card]:  # noqa: N802
        return []

    def nvmlDeviceRegisterEvents(self, card: Card, kinds: int, events: list[Card]) -> None:  # noqa: N802
        if "nvmlDeviceRegisterEvents" in card.refuse:
            raise NVMLError(card.refuse["nvmlDeviceRegisterEvents"])
        assert kinds == 8
        events.append(card)

    def nvmlEventSetWait(self, events: list[Card], timeout_ms: int) -> SimpleNamespace:  # noqa: N802
        assert timeout_ms == 0, "a reading must not wait"
        if "nvmlEventSetWait" in events[0].refuse:
            raise NVMLError(events[0].refuse["nvmlEventSetWait"])
        if not events[0].xids:
            raise NVMLError(TIMEOUT)
        return SimpleNamespace(eventType=8, eventData=events[0].xids.pop(0))


def _link_state(card: Card, link: int) -> int:
    if link not in card.links:
        raise NVMLError(INVALID_ARGUMENT)
    return 0 if link in card.down else 1


def _p2p(card: Card, other: Card, index: int) -> int:
    wired = (card.switched and other.switched) or other.bus in card.wires.values()
    return {0: 0, 2: 0 if wired else 5}[index]


def _fields(card: Card, wanted: list[tuple[int, int]]) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            nvmlReturn=0 if key in card.fields else NOT_SUPPORTED,
            valueType=3,
            value=SimpleNamespace(ullVal=card.fields.get(key, 0)),
        )
        for key in wanted
    ]


_ANSWERS: dict[str, Callable[..., Any]] = {
    "nvmlDeviceGetName": lambda c: c.name,
    "nvmlDeviceGetUUID": lambda c: c.uuid,
    "nvmlDeviceGetPciInfo": lambda c: SimpleNamespace(busId=c.bus.encode(), domain=0),
    "nvmlDeviceGetCudaComputeCapability": lambda c: (9, 0),
    "nvmlDeviceGetMemoryInfo": lambda c: SimpleNamespace(total=85520809984, free=1, used=2),
    "nvmlDeviceGetCpuAffinity": lambda c, words: [c.cpus >> 64 * n & (1 << 64) - 1 for n in range(words)],
    "nvmlDeviceGetMaxClockInfo": lambda c, kind: {1: 1980}[kind],
    "nvmlDeviceGetClockInfo": lambda c, kind: {1: 1755, 2: 2619}[kind],
    "nvmlDeviceGetEnforcedPowerLimit": lambda c: 700_000,
    "nvmlDeviceGetPowerUsage": lambda c: 412_345,
    "nvmlDeviceGetTemperature": lambda c, sensor: {0: 61}[sensor],
    "nvmlDeviceGetTotalEnergyConsumption": lambda c: c.millijoule,
    "nvmlDeviceGetEccMode": lambda c: [1, 1],
    "nvmlDeviceGetMigMode": lambda c: [0, 1],
    "nvmlDeviceGetPersistenceMode": lambda c: 1,
    "nvmlDeviceGetComputeMode": lambda c: c.mode,
    "nvmlDeviceGetComputeRunningProcesses": lambda c: [SimpleNamespace(pid=p, usedGpuMemory=None) for p in c.pids],
    "nvmlDeviceGetTotalEccErrors": lambda c, kind, counter: c.ecc[kind] if counter == 1 else 0,
    "nvmlDeviceGetRemappedRows": lambda c: c.rows,
    "nvmlDeviceGetRetiredPages": lambda c, cause: c.retired[cause],
    "nvmlDeviceGetPcieReplayCounter": lambda c: 0,
    "nvmlDeviceGetCurrPcieLinkWidth": lambda c: c.width,
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda c: 5,
    "nvmlDeviceGetCurrentClocksEventReasons": lambda c: c.reasons,
    "nvmlDeviceGetViolationStatus": lambda c, policy: SimpleNamespace(referenceTime=9, violationTime={1: 0}[policy]),
    "nvmlDeviceGetTopologyCommonAncestor": lambda c, other: 10 if c.bus[:10] == other.bus[:10] else 50,
    "nvmlDeviceGetP2PStatus": _p2p,
    "nvmlDeviceGetNvLinkRemotePciInfo": lambda c, link: SimpleNamespace(busId=c.wires.get(link, "00000000:C1:00.0").encode()),
    "nvmlDeviceGetFieldValues": _fields,
    "nvmlDeviceGetNvLinkState": _link_state,
    "nvmlDeviceGetNvLinkErrorCounter": lambda c, link, counter: c.links[link][counter],
}


def install(monkeypatch: pytest.MonkeyPatch, *cards: Card, init_error: int = 0) -> None:
    """Have ``import pynvml`` find the mock, and everything that was read before forgotten (also after the test)."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", FakeNvml(*cards, init_error=init_error))
    forget()


def forget() -> None:
    """Load NVML anew when it is next asked for."""
    nvml._load.cache_clear()
    nvml.devices.cache_clear()
    health._gpus.cache_clear()
