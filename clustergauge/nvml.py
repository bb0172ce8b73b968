"""NVIDIA GPUs as their driver tells of them, read through nvidia-ml-py: thin, typed, every value ``None`` when unreadable.

The library is loaded when it is first asked for, and stays loaded: opening it can wake a GPU.  Where it cannot be loaded there
are no devices, and `problem` says why.  Two kinds of silence are told apart: what a GPU does not offer (`NOT_OFFERED`) is no
fault; what it offers and could not be read is unknown.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_NOT_OFFERED = (3, 13, 22, 26)
"""NOT_SUPPORTED, FUNCTION_NOT_FOUND, VGPU_ECC_NOT_SUPPORTED, DEPRECATED of ``nvmlReturn_t``."""

IDLE: Final = 0x01
"""Clock event reason of a GPU with nothing to do (a bit of ``nvmlClocksEventReasons``)."""
FAULTS: Final = {0x08: "hw_slowdown", 0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake_slowdown"}
"""Clock event reasons that mean something is wrong (bits of ``nvmlClocksEventReasons``)."""
LIMITS: Final = {0x02: "applications_clocks_setting", 0x04: "sw_power_cap", 0x10: "sync_boost", 0x100: "display_clock_setting"}
"""Clock event reasons that are information: the GPU works as it is set."""
MOST_LINKS: Final = 36
"""NVLinks that any GPU has (``NVML_NVLINK_MAX_LINKS``)."""
_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


class NotOffered:
    """What `Device.ask` answers where the GPU or its driver does not have the value at all."""


NOT_OFFERED: Final = NotOffered()


@dataclass
class Library:
    """The loaded NVML."""

    module: Any

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of an NVML function, `NOT_OFFERED`, or ``None`` when it failed."""
        try:
            return getattr(self.module, function)(*arguments)
        except AttributeError:  # an nvidia-ml-py older than the function
            return NOT_OFFERED
        except self.module.NVMLError as error:
            return NOT_OFFERED if getattr(error, "value", None) in _NOT_OFFERED else None


@dataclass(eq=False)
class Device:
    """One GPU.  ``index``: as CUDA counts it in this process (see `devices`)."""

    index: int
    library: Library
    handle: Any

    def ask(self, function: str, *arguments: Any) -> Any:
        """See `Library.ask`; the device is the function's first argument."""
        return self.library.ask(function, self.handle, *arguments)

    # -- what it is

    @property
    def name(self) -> str:
        """Product name."""
        return _text(self.ask("nvmlDeviceGetName")) or "NVIDIA GPU"

    @property
    def uuid(self) -> str:
        """``GPU-…``."""
        return _text(self.ask("nvmlDeviceGetUUID")) or ""

    @property
    def pci(self) -> str:
        """As the kernel writes it: ``0000:17:00.0``."""
        return pci_address(self.ask("nvmlDeviceGetPciInfo"))

    @property
    def arch(self) -> str:
        """``sm_90``."""
        match self.ask("nvmlDeviceGetCudaComputeCapability"):
            case (int(major), int(minor)):
                return f"sm_{major}{minor}"
            case _:
                return ""

    @property
    def memory_bytes(self) -> int | None:
        """All of its memory."""
        return as_int(getattr(self.ask("nvmlDeviceGetMemoryInfo"), "total", None))

    def cpus(self, highest: int) -> set[int]:
        """The processors beside it, among 0 … ``highest``; empty if unknown."""
        words: Any = self.ask("nvmlDeviceGetCpuAffinity", highest // 64 + 1)
        with contextlib.suppress(TypeError):
            return {64 * n + bit for n, word in enumerate(words) for bit in range(64) if int(word) >> bit & 1}
        return set()

    @property
    def sm_clock_max_mhz(self) -> float | None:
        """Highest SM clock."""
        return _float(self.ask("nvmlDeviceGetMaxClockInfo", 1))

    @property
    def power_limit_w(self) -> float | None:
        """The limit in force."""
        return _thousandth(self.ask("nvmlDeviceGetEnforcedPowerLimit"))

    @property
    def ecc(self) -> bool | None:
        """Whether error correction is on."""
        return _first(self.ask("nvmlDeviceGetEccMode"))

    @property
    def mig(self) -> bool | None:
        """Whether the GPU is divided into instances."""
        return _first(self.ask("nvmlDeviceGetMigMode"))

    @property
    def persistence(self) -> bool | None:
        """Whether the driver keeps the GPU initialised between users."""
        mode = as_int(self.ask("nvmlDeviceGetPersistenceMode"))
        return None if mode is None else mode == 1

    @property
    def compute_mode(self) -> str:
        """``default``, ``exclusive_process``, ``prohibited``."""
        mode = as_int(self.ask("nvmlDeviceGetComputeMode"))
        return "" if mode is None else _COMPUTE_MODES.get(mode, str(mode))

    def processes(self) -> list[int] | None:
        """Process ids that compute on it (numbers of the host, which a container may not know)."""
        found: Any = self.ask("nvmlDeviceGetComputeRunningProcesses")
        return [int(p.pid) for p in found] if isinstance(found, list) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownMemberType]

    # -- how it does

    def reasons(self) -> Any:
        """Why the clock is where it is: bits of `FAULTS` and `LIMITS`, or what `ask` answers instead."""
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is NOT_OFFERED:  # drivers before 535
            bits = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return bits

    def sensors(self) -> dict[str, float]:
        """What can be read of ``sm_mhz memory_mhz power_w temperature_c energy_j pcie_gen reasons``."""
        found = {
            "sm_mhz": _float(self.ask("nvmlDeviceGetClockInfo", 1)),
            "memory_mhz": _float(self.ask("nvmlDeviceGetClockInfo", 2)),
            "power_w": _thousandth(self.ask("nvmlDeviceGetPowerUsage")),
            "temperature_c": _float(self.ask("nvmlDeviceGetTemperature", 0)),
            "energy_j": _thousandth(self.ask("nvmlDeviceGetTotalEnergyConsumption")),
            "pcie_gen": _float(self.ask("nvmlDeviceGetCurrPcieLinkGeneration")),  # falls when idle, so its highest counts
            "reasons": as_int(self.reasons()),
        }
        return {name: value for name, value in found.items() if value is not None}


def words(bits: int, names: Mapping[int, str]) -> str:
    """The names of the set bits, ``none`` if none of them is set."""
    return ",".join(name for bit, name in names.items() if bits & bit) or "none"


# --------------------------------------------------------------------------------------------------------------------------
# finding them


@functools.cache
def _load() -> tuple[Library | None, str]:
    try:
        module = importlib.import_module("pynvml")
        module.nvmlInit()
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    except Exception as error:  # noqa: BLE001  # NVMLError, whose class lives in what may not have been imported
        return None, " ".join(str(error).split())[:200] or type(error).__name__
    return Library(module), ""


def problem() -> str:
    """Why there is no NVML here; empty if there is."""
    return _load()[1]


def driver_versions() -> dict[str, str]:
    """``nvidia_driver`` and ``cuda_driver``, those that can be read."""
    library = _load()[0]
    if library is None:
        return {}
    found: dict[str, str] = {}
    if driver := _text(library.ask("nvmlSystemGetDriverVersion")):
        found["nvidia_driver"] = driver
    if cuda := as_int(library.ask("nvmlSystemGetCudaDriverVersion")):
        found["cuda_driver"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
    return found


def all_devices() -> list[Device]:
    """Every GPU that the driver shows, in the order of their PCI addresses."""
    library = _load()[0]
    count = as_int(library.ask("nvmlDeviceGetCount")) if library else 0
    found: list[Device] = []
    for number in range(count or 0):
        assert library
        handle = library.ask("nvmlDeviceGetHandleByIndex", number)
        if handle is not None and handle is not NOT_OFFERED:
            found.append(Device(number, library, handle))
    return found


@functools.cache
def devices() -> tuple[Device, ...]:
    """The GPUs that CUDA programs started from here see, counted as they count them under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``."""
    found = all_devices()
    chosen = visible([d.uuid for d in found], os.environ.get("CUDA_VISIBLE_DEVICES"))
    for index, number in enumerate(chosen):
        found[number].index = index
    return tuple(found[number] for number in chosen)


def visible(uuids: Sequence[str], wish: str | None) -> list[int]:
    """The places that ``CUDA_VISIBLE_DEVICES`` selects; as CUDA reads it, the list ends at the first entry that names no device.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
    """
    if wish is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (e.strip() for e in wish.split(",")):
        if entry.isascii() and entry.isdigit() and int(entry) < len(uuids):
            number = int(entry)
        else:
            matches = [n for n, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
            if len(matches) != 1:
                break
            number = matches[0]
        if number in chosen:  # CUDA refuses a device given twice
            return []
        chosen.append(number)
    return chosen


# --------------------------------------------------------------------------------------------------------------------------
# answers as values


def pci_address(answer: Any) -> str:
    """The address in an ``nvmlPciInfo_t`` as the kernel writes it: ``0000:17:00.0``; empty if there is none."""
    match = re.fullmatch(
        r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", (_text(getattr(answer, "busId", None)) or "").lower()
    )
    return f"{int(match[1], 16):04x}:{match[2]}" if match else ""


def _text(answer: Any) -> str | None:
    if isinstance(answer, bytes):  # older nvidia-ml-py
        return answer.decode("utf-8", "replace")
    return answer if isinstance(answer, str) else None


def as_int(answer: Any) -> int | None:
    """An answer that is a number, else ``None``."""
    return answer if isinstance(answer, int) and not isinstance(answer, bool) else None


def _float(answer: Any) -> float | None:
    number = as_int(answer)
    return None if number is None else float(number)


def _thousandth(answer: Any) -> float | None:
    number = as_int(answer)
    return None if number is None else number / 1000


def _first(answer: Any) -> bool | None:
    return bool(answer[0]) if isinstance(answer, list | tuple) and answer else None  # pyright: ignore[reportUnknownArgumentType]
