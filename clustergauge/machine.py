"""What this machine is: its parts, its versions and its settings.  Reads files and NVML; imports no device library but that.

What cannot be read is ``None``, empty or absent.  The root of the file system is a parameter, so that a made-up tree can stand
in for another machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence, Set as AbstractSet
from pathlib import Path

import msgspec

from clustergauge import code, devices, gpu_links, hosts, nvml, processor, sysfs
from clustergauge.errors import UsageError
from clustergauge.model import Cpu, Gpu, Machine, Nic, Scalar
from clustergauge.units import installed

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "mpi4py",
    "mpich",
    "nvidia-ml-py",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "cupy-cuda12x",
    "cupy-cuda13x",
)
"""Distributions whose versions are noted, without importing them."""
_MODULES = {"amdgpu_driver": "amdgpu", "mlx5_driver": "mlx5_core"}
_HYPERVISORS = (
    ("KVM", "KVM"),
    ("QEMU", "QEMU"),
    ("VMware", "VMware"),
    ("VirtualBox", "VirtualBox"),
    ("Xen", "Xen"),
    ("Google Compute Engine", "Google Compute Engine"),
    ("OpenStack", "OpenStack"),
    ("Bochs", "Bochs"),
    ("Parallels", "Parallels"),
)
"""What the names of system and vendor in DMI contain, and the kind that tells of."""
_CONTAINERS = ("docker", "kubepods", "containerd", "podman", "libpod", "lxc", "slurm-container")
_NO_UUID = re.compile(r"(0+|f+|03000200-0400-0500-0006-000700080009)", re.IGNORECASE)
"""Serial numbers that manufacturers left unset."""


def describe_apart(limit_s: float = 30.0, command: Sequence[str] = ()) -> Machine:
    """`describe`, in a process of its own where a GPU driver is loaded: one that hangs must not hang the supervisor.

    Raises `UsageError` if it does not answer in time.  ``command``: instead of our own.
    """
    drivers = (Path("/proc/driver/nvidia/version"), Path("/dev/kfd"))
    if not command and not any(driver.exists() for driver in drivers):
        return describe()
    try:
        words = command or [sys.executable, "-P", "-m", "clustergauge.machine"]
        done = subprocess.run(
            words, capture_output=True, timeout=limit_s, env=os.environ | {"PYTHONPATH": code.python_path()}, check=True
        )
        return msgspec.json.decode(done.stdout, type=Machine)
    except subprocess.TimeoutExpired:
        raise UsageError(f"the GPU driver did not answer within {limit_s:.0f} s: see whether nvidia-smi does, or dmesg") from None
    except (subprocess.CalledProcessError, OSError, msgspec.DecodeError) as error:
        raise UsageError(f"this machine could not be described: {error}") from None


def describe(
    root: Path = sysfs.ROOT, affinity: AbstractSet[int] | None = None, gpus: Sequence[nvml.Device] | None = None
) -> Machine:
    """Describe the machine.  ``affinity`` and ``gpus``: instead of asking the kernel and NVML."""
    cpus = processor.allowed(root, affinity)
    cpu = processor.describe(cpus, root)
    host = hosts.own() if root == sysfs.ROOT else sysfs.text(root / "proc/sys/kernel/hostname") or hosts.own()
    found, ports = devices.gpus(root, gpus), devices.nics(root)
    memory = min(filter(None, (sysfs.memory_total(root), sysfs.memory_limit(root))), default=0)
    return Machine(
        machine_id=_machine_id(root, host),
        host=host,
        os=_os(root),
        kernel=sysfs.text(root / "proc/sys/kernel/osrelease") or os.uname().release,
        virtual=virtual(root),
        cpu=cpu,
        memory_bytes=memory,
        gpus=found,
        nics=ports,
        links=gpu_links.between(nvml.devices() if gpus is None else gpus),
        versions=_versions(root),
        settings=_settings(root, cpus),
        peer_class=peer_class(cpu, memory, found, ports),
    )


def peer_class(cpu: Cpu, memory_bytes: int, gpus: Sequence[Gpu], nics: Sequence[Nic]) -> str:
    """Digest of the parts alone, memory as it was installed; of each kind of port the number and the highest rate count, so that
    one slow link does not part a machine from its peers."""
    kinds = sorted({nic.kind for nic in nics})
    parts = [
        cpu.model,
        f"{cpu.sockets} sockets, {cpu.cores} cores, {cpu.threads} threads",
        f"{installed(memory_bytes)} B",
        *sorted(f"{gpu.name} {gpu.arch}" for gpu in gpus),
        *(f"{k} {sum(n.kind == k for n in nics)} {max(n.rate_gbit_s or 0 for n in nics if n.kind == k)}" for k in kinds),
    ]
    return _digest(parts)


def virtual(root: Path = sysfs.ROOT) -> str:
    """The container and the hypervisor this process sees itself in: ``docker, KVM``; empty where none was recognised."""
    return ", ".join(filter(None, (_container(root), _hypervisor(root))))


def _container(root: Path) -> str:
    if (root / ".singularity.d").exists():
        return "apptainer"
    if kind := sysfs.text(root / "run/systemd/container"):
        return kind
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    groups = sysfs.text(root / "proc/1/cgroup") or ""
    return next((name for name in _CONTAINERS if name in groups), "")


def _hypervisor(root: Path) -> str:
    dmi = root / "sys/class/dmi/id"
    names = [sysfs.text(dmi / name) or "" for name in ("sys_vendor", "product_name", "bios_vendor", "board_vendor")]
    if names[1].endswith(".metal"):
        return ""
    for words, kind in _HYPERVISORS:
        if any(words in name for name in names):
            return kind
    if names[0] == "Microsoft Corporation" and names[1] == "Virtual Machine":
        return "Hyper-V"
    if names[0] == "Amazon EC2":
        return "Amazon EC2"
    if kind := sysfs.text(root / "sys/hypervisor/type"):
        return {"xen": "Xen"}.get(kind, kind)
    if "microsoft" in (sysfs.text(root / "proc/sys/kernel/osrelease") or "").lower():
        return "WSL"
    if kind := sysfs.text(root / "proc/device-tree/hypervisor/compatible"):
        return "KVM" if "kvm" in kind else kind
    return "virtual machine" if "hypervisor" in processor.flags(root) else ""


def _machine_id(root: Path, host: str) -> str:
    """A name that stays over reboots and tells nothing: a digest of the system's own id, else the board's, else the ports'.

    The host's name goes into the first, for images are cloned with their /etc/machine-id.  The system's id comes before the
    board's, for only root may read that, and root's runs are to compare with everybody's.
    """
    if (own := sysfs.text(root / "etc/machine-id")) and re.fullmatch(r"[0-9a-f]{32}", own):
        return _digest(["machine-id", own, host])
    board = sysfs.text(root / "sys/class/dmi/id/product_uuid")
    if board and not _NO_UUID.fullmatch(board) and not _NO_UUID.fullmatch(board.replace("-", "")):
        return _digest(["board", board.lower()])
    ports = [p for p in sysfs.entries(root / "sys/class/net") if (p / "device").exists()]
    addresses = [sysfs.text(p / "address") or "" for p in ports if sysfs.number(p / "addr_assign_type") == 0]
    return _digest(["ports", host, *sorted(addresses)])


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(["clustergauge", *parts]).encode()).hexdigest()[:16]


def _os(root: Path) -> str:
    fields = sysfs.pairs(sysfs.text(root / "etc/os-release") or sysfs.text(root / "usr/lib/os-release"), "=")
    return fields.get("PRETTY_NAME", "").strip("\"'") or platform.system()


def _versions(root: Path) -> dict[str, str]:
    found = {"python": platform.python_version()} | nvml.driver_versions()
    for name, module in _MODULES.items():
        if version := sysfs.text(root / "sys/module" / module / "version"):
            found[name] = version
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _settings(root: Path, cpus: set[int]) -> dict[str, Scalar]:
    """What changes results without changing the parts; unknown ones are absent."""
    found = processor.settings(cpus, root)
    for name, path in (("thp", "enabled"), ("thp_defrag", "defrag")):
        if choice := sysfs.chosen(sysfs.text(root / "sys/kernel/mm/transparent_hugepage" / path)):
            found[name] = choice
    if (balancing := sysfs.number(root / "proc/sys/kernel/numa_balancing")) is not None:
        found["numa_balancing"] = balancing != 0
    if source := sysfs.text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"):
        found["clocksource"] = source
    if (limit := sysfs.memory_limit(root)) is not None:
        found["memory_limit_bytes"] = limit
    if hidden := len(nvml.all_devices()) - len(nvml.devices()):
        found["gpus_hidden"] = hidden
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(describe()))
