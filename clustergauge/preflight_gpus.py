"""What is wrong with the accelerators before anything is measured: missing ones, foreign users, settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clustergauge import nvml, sysfs
from clustergauge.model import GPUS_UNUSABLE, Finding, Gpu, Machine


def ok(name: str, detail: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(name=name, state="ok", detail=detail)


def warning(name: str, detail: str, remedy: str) -> Finding:
    """Something wrong, and what to do about it."""
    return Finding(name=name, state="warning", detail=detail, remedy=remedy)


def unknown(name: str, detail: str) -> Finding:
    """Something this machine would not say."""
    return Finding(name=name, state="unknown", detail=detail)


def gpus(machine: Machine, root: Path = sysfs.ROOT) -> Iterator[Finding]:
    """All findings on the accelerators; none where there are none."""
    yield from gpus_missing(machine, root, len(nvml.all_devices()), nvml.problem())
    nvidia = {device.uuid: device for device in nvml.devices()}
    for gpu in machine.gpus:
        yield gpu_settings(gpu)
        yield gpu_processes(gpu, nvidia[gpu.uuid].processes() if gpu.uuid in nvidia else _amd_processes(root))


def gpus_missing(machine: Machine, root: Path, shown: int, problem: str) -> Iterator[Finding]:
    """GPUs that are in the machine and cannot be used.  ``shown``: how many NVML shows; ``problem``: why it shows none.

    The driver's list in /proc is that of this container, unlike the bus, which shows every device of the host.
    """
    held = len(sysfs.entries(root / "proc/driver/nvidia/gpus"))
    if held and not shown and problem:
        remedy = "load the driver that fits its library (a reboot does after an upgrade), and see nvidia-smi"
        yield warning(GPUS_UNUSABLE, f"the driver holds {held} GPUs, none can be opened ({problem})", remedy)
    elif held > shown:
        remedy = "if a batch system keeps the others from you, all is well; else see dmesg for Xid, nvidia-smi for the driver"
        yield warning("gpus", f"the driver holds {held} GPUs, {shown} can be opened", remedy)
    elif not machine.gpus and (on_bus := sum(map(_is_nvidia, sysfs.entries(root / "sys/bus/pci/devices")))):
        why = problem or "CUDA_VISIBLE_DEVICES hides them"
        remedy = "check the driver (nvidia-smi, dmesg), the container's --gpus, and CUDA_VISIBLE_DEVICES"
        yield warning("gpus", f"{on_bus} NVIDIA GPUs on the bus, none usable: {why}", remedy)


def _is_nvidia(device: Path) -> bool:
    """Display and 3D controllers of NVIDIA."""
    return sysfs.text(device / "vendor") == "0x10de" and (sysfs.text(device / "class") or "").startswith("0x03")


def _amd_processes(root: Path) -> list[int] | None:
    """Process ids that compute on any AMD GPU; the compute driver keeps a folder for each."""
    folder = root / "sys/class/kfd/kfd/proc"
    return [int(entry.name) for entry in sysfs.entries(folder, "[0-9]*")] if folder.exists() else None


def gpu_processes(gpu: Gpu, processes: list[int] | None) -> Finding:
    """Whether somebody else computes on a GPU."""
    name = f"gpu{gpu.index}_processes"
    if processes is None:
        return unknown(name, "the driver does not say who uses the GPU")
    if processes:
        listed = ", ".join(map(str, sorted(processes)[:8])) + (" …" if len(processes) > 8 else "")
        detail = f"{len(processes)} other processes compute on GPU {gpu.index} (pid {listed})"
        return warning(name, detail, "end them or wait (numbers are the host's; nvidia-smi shows their names)")
    return ok(name, "nobody else computes here")


def gpu_settings(gpu: Gpu) -> Finding:
    """Settings of a GPU that forbid measuring or change it."""
    name, at = f"gpu{gpu.index}_settings", f"-i {gpu.pci or gpu.index}"
    troubles = [
        (gpu.compute_mode == "prohibited", "compute mode is prohibited: nothing can run", f"nvidia-smi {at} -c DEFAULT"),
        (gpu.mig is True, "is divided (MIG): cases would see a slice of it", f"nvidia-smi {at} -mig 0"),
        (gpu.ecc is False, "error correction is off: flipped bits go unseen", f"nvidia-smi {at} -e 1, then reset it"),
        (gpu.persistence is False, "persistence is off: the first use of every case is slow", f"nvidia-smi {at} -pm 1"),
    ]
    found = [(detail, remedy) for wrong, detail, remedy in troubles if wrong]
    if found:
        return warning(name, "; ".join(d for d, _ in found), "; ".join(r for _, r in found) + " (as root)")
    if not gpu.compute_mode:
        return unknown(name, "compute mode is not known")
    return ok(name, f"compute mode {gpu.compute_mode}")
