"""Reading the sensors of this machine once: load, clocks, temperatures, energy, memory; GPUs through NVML, AMD's through /sys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from clustergauge import nvml, processor, sysfs
from clustergauge.model import Gpu
from clustergauge.placement import read_list

CLOCKS_READ = 16
"""Most processors whose clock is read: on some kernels each reading interrupts its processor."""
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "x86_pkg_temp", "cpu-thermal", "soc_thermal")
"""Names of the drivers (hwmon) and zones whose temperatures are a processor's."""


class Sensors:
    """Where this machine's sensors are.  Found once; reading them takes about a millisecond."""

    def __init__(self, root: Path = sysfs.ROOT, devices: Sequence[nvml.Device] | None = None, amd: Sequence[Gpu] = ()) -> None:
        """``devices``: instead of asking NVML; ``amd``: GPUs whose sensors are files."""
        self.root = root
        self.gpus = nvml.devices() if devices is None else devices
        cpus = sorted(processor.allowed(root))
        paths = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus]
        paths = [path for path in paths if sysfs.number(path) is not None]
        self._clocks = paths[:: -(-len(paths) // CLOCKS_READ)] if paths else []
        self._cpuinfo = not paths and "aperfmperf" in processor.flags(root)
        """Without that flag /proc/cpuinfo repeats the nominal clock, which is no reading."""
        self._temperatures = _temperatures(root)
        others = read_list(root / "sys/devices/system/cpu/online") - set(cpus)
        self._energy = {} if others else _packages(root)
        """Where others have processors of the packages too, the counters count what they do with them."""
        self._energy_before: dict[Path, int] = {}
        self._energy_j = 0.0
        self._amd = {gpu.index: _amd(root, gpu.pci) for gpu in amd}

    def read(self) -> dict[str, float]:
        """What was readable now: ``load1``, ``memory_available_bytes``, ``cpu_mhz`` (mean), ``cpu_temperature_c`` (hottest),
        ``cpu_energy_j`` (of all packages since the first reading; absent where some processors are not ours), and for each GPU
        what `nvml.Device.sensors` says, as ``gpu0_…``."""
        found: dict[str, float | None] = {
            "load1": load1(self.root),
            "memory_available_bytes": sysfs.memory_available(self.root),
            "cpu_mhz": self._cpu_mhz(),
            "cpu_temperature_c": max((t / 1000 for path in self._temperatures if (t := sysfs.number(path))), default=None),
            "cpu_energy_j": self._cpu_energy(),
        }
        for gpu in self.gpus:
            found |= {f"gpu{gpu.index}_{name}": value for name, value in gpu.sensors().items()}
        for index, files in self._amd.items():
            for name, (path, unit) in files.items():
                value = sysfs.number(path)
                found[f"gpu{index}_{name}"] = None if value is None else value / unit
        return {name: float(value) for name, value in found.items() if value is not None}

    def _cpu_mhz(self) -> float | None:
        if self._cpuinfo:
            lines = re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", sysfs.text(self.root / "proc/cpuinfo") or "", re.MULTILINE)
            return sum(map(float, lines)) / len(lines) if lines else None
        values = [value for path in self._clocks if (value := sysfs.number(path))]
        return sum(values) / len(values) / 1000 if values else None

    def _cpu_energy(self) -> float | None:
        """Joules of all packages since the first reading; a counter that fell has wrapped at its range."""
        if not self._energy:
            return None
        for path, span in self._energy.items():
            value = sysfs.number(path)
            if value is None:
                return None
            before = self._energy_before.get(path, value)
            self._energy_j += (value - before if value >= before else value - before + span) / 1e6
            self._energy_before[path] = value
        return self._energy_j


def load1(root: Path = sysfs.ROOT) -> float | None:
    """Processes that ran or waited for a disk, the kernel's average over a minute."""
    match = re.match(r"[0-9]+\.[0-9]+", sysfs.text(root / "proc/loadavg") or "")
    return float(match[0]) if match else None


def _temperatures(root: Path) -> list[Path]:
    found: list[Path] = []
    for sensor in sysfs.entries(root / "sys/class/hwmon"):
        if sysfs.text(sensor / "name") in _CPU_SENSORS:
            found += sysfs.entries(sensor, "temp[0-9]*_input")
    for zone in sysfs.entries(root / "sys/class/thermal", "thermal_zone[0-9]*"):
        if not found and sysfs.text(zone / "type") in _CPU_SENSORS:
            found.append(zone / "temp")
    return found


def _packages(root: Path) -> dict[Path, int]:
    """Energy counters (µJ) of the processor packages with the value at which each wraps; none unless all can be read.

    Subzones (cores, DRAM, the platform as a whole) are left out, for a package holds its cores already.
    https://docs.kernel.org/power/powercap/powercap.html
    """
    found: dict[Path, int] = {}
    for zone in sysfs.entries(root / "sys/class/powercap", "intel-rapl:[0-9]*"):
        if (sysfs.text(zone / "name") or "").startswith("package"):
            span = sysfs.number(zone / "max_energy_range_uj")
            if span is None or sysfs.number(zone / "energy_uj") is None:
                return {}  # readable by root alone, since it gave away secrets (CVE-2020-8694)
            found[zone / "energy_uj"] = span
    return found


def _amd(root: Path, pci: str) -> dict[str, tuple[Path, float]]:
    """Files of an AMD GPU's sensors with what to divide them by.  https://docs.kernel.org/gpu/amdgpu/thermal.html and, for the
    energy, https://docs.kernel.org/hwmon/sysfs-interface.html"""
    folder = next(iter(sysfs.entries(root / "sys/bus/pci/devices" / pci, "hwmon/hwmon*")), None) if pci else None
    if folder is None:
        return {}
    power = next((p for p in ("power1_average", "power1_input") if (folder / p).exists()), "power1_average")
    return {
        "sm_mhz": (folder / "freq1_input", 1e6),
        "memory_mhz": (folder / "freq2_input", 1e6),
        "power_w": (folder / power, 1e6),
        "temperature_c": (folder / "temp1_input", 1e3),
        "energy_j": (folder / "energy1_input", 1e6),  # where the driver has a counter
    }
