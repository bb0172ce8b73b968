"""The health of one NVIDIA GPU: its error counters and states, read between cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clustergauge.nvml import FAULTS, MOST_LINKS, NOT_OFFERED, Device, as_int, words

_LOST = (15, 16)
"""GPU_IS_LOST, RESET_REQUIRED of ``nvmlReturn_t``."""
_TIMEOUT = 10
_XID = 0x8
"""``nvmlEventTypeXidCriticalError``."""
_MOST_XIDS = 64


class GpuHealth:
    """Reads one GPU.  XIDs are heard from the first reading on; ``xids`` counts them since."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.xids: dict[int, int] = {}
        self._events: Any = None
        self._linked: list[int] | None = None

    def read(self) -> dict[str, int | str | None]:
        """Error counters (numbers) and states (words); ``None`` for what the GPU offers and could not be read."""
        found: dict[str, int | str | None] = {}

        def put(name: str, answer: Any) -> None:
            if answer is not NOT_OFFERED:
                found[name] = answer if isinstance(answer, str) else as_int(answer)

        found["state"] = "lost" if self._lost() else "ok"
        put("ecc_corrected", self.device.ask("nvmlDeviceGetTotalEccErrors", 0, 1))
        put("ecc_uncorrected", self.device.ask("nvmlDeviceGetTotalEccErrors", 1, 1))
        self._rows(put)
        for cause, name in ((0, "retired_pages_single_bit"), (1, "retired_pages_double_bit")):
            pages = self.device.ask("nvmlDeviceGetRetiredPages", cause)
            put(name, pages if pages is NOT_OFFERED or pages is None else len(pages))
        put("pcie_replays", self.device.ask("nvmlDeviceGetPcieReplayCounter"))
        put("pcie_width", _link("x", self.device.ask("nvmlDeviceGetCurrPcieLinkWidth")))
        bits = self.device.reasons()
        put("throttle", words(bits, FAULTS) if isinstance(bits, int) else bits)
        thermal = self.device.ask("nvmlDeviceGetViolationStatus", 1)
        put("thermal_violation_ns", getattr(thermal, "violationTime", thermal))
        self._links(put)
        if self._watch():
            found |= {f"xid_{xid}": count for xid, count in self.xids.items()}
        elif self._events is not NOT_OFFERED:
            found["xid"] = None
        return found

    def _lost(self) -> bool:
        """Whether the driver has given the GPU up (it fell off the bus, or needs a reset)."""
        try:
            self.device.library.module.nvmlDeviceGetMemoryInfo(self.device.handle)
        except self.device.library.module.NVMLError as error:
            return getattr(error, "value", None) in _LOST
        return False

    def _rows(self, put: Any) -> None:
        rows = self.device.ask("nvmlDeviceGetRemappedRows")
        names = ("remapped_rows_corrected", "remapped_rows_uncorrected", "remap_pending", "remap_failed")
        for place, name in enumerate(names):
            value = rows[place] if isinstance(rows, Sequence) else rows  # pyright: ignore[reportUnknownVariableType]
            put(name, ("yes" if value else "no") if place > 1 and isinstance(value, int) else value)

    def _links(self, put: Any) -> None:
        """Sums over the NVLinks, and how many are up; nothing where there are none."""
        if self._linked is None:  # numbers beyond the last link are refused as wrong arguments
            self._linked = [n for n in range(MOST_LINKS) if isinstance(self.device.ask("nvmlDeviceGetNvLinkState", n), int)]
        if not self._linked:
            return
        states = {link: self.device.ask("nvmlDeviceGetNvLinkState", link) for link in self._linked}
        known = all(isinstance(state, int) for state in states.values())
        put("nvlinks_up", str(sum(state == 1 for state in states.values())) if known else None)
        for counter, name in ((0, "nvlink_replays"), (1, "nvlink_recoveries"), (2, "nvlink_crc_flit"), (3, "nvlink_crc_data")):
            counts = [self.device.ask("nvmlDeviceGetNvLinkErrorCounter", n, counter) for n, state in states.items() if state == 1]
            offered = [count for count in counts if count is not NOT_OFFERED]
            if offered:
                put(name, None if None in offered else sum(offered))

    def _watch(self) -> bool:
        """Collect the XIDs reported since the last call; whether that was possible."""
        if self._events is None:
            events = self.device.library.ask("nvmlEventSetCreate")
            if events is None or events is NOT_OFFERED:
                self._events = NOT_OFFERED
            else:
                try:
                    self.device.library.module.nvmlDeviceRegisterEvents(self.device.handle, _XID, events)
                    self._events = events
                except self.device.library.module.NVMLError:
                    self._events = NOT_OFFERED
        if self._events is NOT_OFFERED:
            return False
        for _ in range(_MOST_XIDS):
            try:
                event = self.device.library.module.nvmlEventSetWait(self._events, 0)
            except self.device.library.module.NVMLError as error:
                return getattr(error, "value", None) == _TIMEOUT  # nothing more
            xid = int(event.eventData)
            self.xids[xid] = self.xids.get(xid, 0) + 1
        return True


def _link(prefix: str, answer: Any) -> Any:
    return f"{prefix}{answer}" if isinstance(answer, int) else answer
