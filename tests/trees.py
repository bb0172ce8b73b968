"""Made-up /sys, /proc and /etc: what other machines would say of themselves."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, name: str, content: str) -> None:
    """A file of the tree, with its folders."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def processors(
    root: Path,
    cores: list[list[int]],
    sockets: dict[int, int] | None = None,
    nodes: dict[int, str] | None = None,
    caches: list[tuple[str, str]] | None = None,
    flags: str = "fpu sse2 avx2",
    model: str = "Made-up CPU",
    max_khz: dict[int, int] | None = None,
) -> None:
    """Processors by core.  ``sockets``: of each processor (0 unless named); ``caches``: last level, as (processors, size)."""
    from clustergauge.placement import format_cpus, parse_cpus

    cpus = sorted(cpu for core in cores for cpu in core)
    folder = "sys/devices/system/cpu"
    write(root, f"{folder}/online", format_cpus(cpus) + "\n")
    write(root, f"{folder}/possible", format_cpus(cpus) + "\n")
    for core in cores:
        for cpu in core:
            write(root, f"{folder}/cpu{cpu}/topology/core_cpus_list", format_cpus(core) + "\n")
            write(root, f"{folder}/cpu{cpu}/topology/physical_package_id", f"{(sockets or {}).get(cpu, 0)}\n")
            write(root, f"{folder}/cpu{cpu}/cache/index0/level", "1\n")
            write(root, f"{folder}/cpu{cpu}/cache/index0/type", "Data\n")
            write(root, f"{folder}/cpu{cpu}/cache/index0/size", "32K\n")
            write(root, f"{folder}/cpu{cpu}/cache/index0/shared_cpu_list", format_cpus(core) + "\n")
            if max_khz and cpu in max_khz:
                write(root, f"{folder}/cpu{cpu}/cpufreq/cpuinfo_max_freq", f"{max_khz[cpu]}\n")
    for shared, size in caches or []:
        for cpu in parse_cpus(shared):
            write(root, f"{folder}/cpu{cpu}/cache/index3/level", "3\n")
            write(root, f"{folder}/cpu{cpu}/cache/index3/type", "Unified\n")
            write(root, f"{folder}/cpu{cpu}/cache/index3/size", f"{size}\n")
            write(root, f"{folder}/cpu{cpu}/cache/index3/shared_cpu_list", f"{shared}\n")
    for node, members in (nodes or {}).items():
        write(root, f"sys/devices/system/node/node{node}/cpulist", f"{members}\n")
    blocks = [f"processor\t: {cpu}\nmodel name\t: {model}\nflags\t\t: {flags}\n" for cpu in cpus]
    write(root, "proc/cpuinfo", "\n".join(blocks))


def pci(root: Path, address: str, under: str = "", **files: str) -> str:
    """A PCI device, below the bridges ``under``; returns its folder."""
    folder = "/".join(filter(None, ("sys/devices/pci0000:00", under, address)))
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(root, f"{folder}/{name}", content + "\n")
    link = root / "sys/bus/pci/devices" / address
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(root / folder)
    return folder


def port(root: Path, name: str, folder: str, kind: str = "1", **files: str) -> None:
    """A network port that hangs on a PCI device."""
    for file, content in {"type": kind, "operstate": "up", **files}.items():
        write(root, f"sys/class/net/{name}/{file}", content + "\n")
    (root / f"sys/class/net/{name}/device").symlink_to(root / folder)
