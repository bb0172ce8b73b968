"""What is wrong with this machine before anything is measured, each finding with what to do about it.

A finding is *ok*, a *warning* (with a remedy), or *unknown* where the machine would not say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from clustergauge import preflight_links, sysfs, targets
from clustergauge.free import Free, measured
from clustergauge.model import Finding, Machine
from clustergauge.preflight_gpus import gpus, ok, unknown, warning
from clustergauge.sensors import load1
from clustergauge.threads import in_threads
from clustergauge.units import about, counted

LEAST_SHM = 1 << 30
"""Data loaders, MPI and NCCL keep their exchange buffers in /dev/shm; containers start with 64 MiB."""
LEAST_TARGET = 2 << 30
LEAST_SCRATCH = 512 << 20
FILES_PER_CORE = 16
"""Pipes, sockets and mapped libraries that a rank and its agent hold open."""
PATIENCE_S = 5.0
"""How long a file system may take to answer."""

T = TypeVar("T")


def findings(machine: Machine, folders: Sequence[Path], scratch: Path, root: Path = sysfs.ROOT) -> list[Finding]:
    """All findings on this machine, in the order a reader wants them.  Needs no root and changes nothing.

    ``folders``: of the storage cases; ``scratch``: of everything temporary.
    """
    return [
        *gpus(machine, root),
        *preflight_links.findings(machine, root),
        shared_memory(root / "dev/shm"),
        locked_memory(machine, _limit(resource.RLIMIT_MEMLOCK)),
        open_files(machine, _limit(resource.RLIMIT_NOFILE)),
        home(),
        *(finding for number, target in enumerate(folders, 1) for finding in _target(number, target, root)),
        folder("scratch", scratch, LEAST_SCRATCH, "free some space there, or set TMPDIR to another folder"),
        huge_pages(machine),
        governor(machine),
        quota(machine),
        load(machine, load1(root)),
    ]


# --------------------------------------------------------------------------------------------------------------------------
# limits and memory


def shared_memory(path: Path) -> Finding:
    """Size and free space of /dev/shm."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return unknown("shared_memory", f"{path}: {error.strerror}")
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    detail = f"{about(size)} in {path}, {about(free)} free"
    if size < LEAST_SHM:
        remedy = f"mount -o remount,size=8G {path}; in a container: --shm-size=8g or --ipc=host"
        return warning("shared_memory", f"{detail}: too little for MPI, NCCL and data loaders", remedy)
    if free < LEAST_SHM // 2:
        return warning("shared_memory", f"{detail}: nearly full", f"remove what dead programs left in {path}")
    return ok("shared_memory", detail)


def locked_memory(machine: Machine, limit: int | None) -> Finding:
    """Whether memory can be pinned.  ``limit``: bytes, ``None`` for no limit.  RDMA registers all of its buffers."""
    if limit is None:
        return ok("locked_memory", "unlimited")
    detail = f"at most {about(limit)} can be locked"
    if any(nic.kind in ("infiniband", "roce") for nic in machine.nics):
        remedy = "ulimit -l unlimited (for all: 'memlock unlimited' in /etc/security/limits.conf; Slurm: PropagateResourceLimits)"
        return warning("locked_memory", f"{detail}: RDMA needs more", remedy)
    return ok("locked_memory", f"{detail}; no RDMA port here that needs more")


def open_files(machine: Machine, limit: int | None) -> Finding:
    """Whether enough files and sockets can be open.  ``limit``: ``None`` for no limit."""
    need = max(1024, FILES_PER_CORE * machine.cpu.cores)
    if limit is None or limit >= need:
        return ok("open_files", "unlimited" if limit is None else f"at most {limit}")
    return warning("open_files", f"at most {limit}: {machine.cpu.cores} ranks may need {need}", f"ulimit -n {need}")


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


# --------------------------------------------------------------------------------------------------------------------------
# folders


def home() -> Finding:
    """Whether compilers can keep their caches at home."""
    try:
        path = Path.home()
    except RuntimeError:
        return warning("home", "there is no home folder", "set HOME to a folder that can be written (compilers cache there)")
    problem = within(lambda: write_problem(path))
    if problem is None:
        return unknown("home", f"{path} did not answer within {PATIENCE_S:.0f} s")
    if problem:
        remedy = "set HOME, or TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR, to folders that can be written"
        return warning("home", f"{path}: {problem}", remedy)
    return ok("home", f"{path} can be written")


def _target(number: int, path: Path, root: Path) -> list[Finding]:
    """The findings on one of the targets; the second is called ``target_2``."""
    name = "target" if number == 1 else f"target_{number}"
    return [folder(name, path, LEAST_TARGET, "name another folder with --target"), in_memory(f"{name}_file_system", path, root)]


def folder(name: str, path: Path, least: int, remedy: str) -> Finding:
    """Whether a folder can be written and has ``least`` bytes free."""

    def look() -> tuple[str, int]:
        problem = write_problem(path)
        if problem:
            return problem, 0
        found = os.statvfs(path)
        return "", found.f_bavail * found.f_frsize

    try:
        answer = within(look)
    except OSError as error:
        return unknown(name, f"{path}: {error.strerror}")
    if answer is None:
        return unknown(name, f"{path} did not answer within {PATIENCE_S:.0f} s")
    problem, free = answer
    if problem:
        return warning(name, f"{path}: {problem}", remedy)
    if free < least:
        return warning(name, f"{path} has {about(free)} free, less than {about(least)}", remedy)
    return ok(name, f"{path} can be written, {about(free)} free")


def in_memory(name: str, target: Path, root: Path = sysfs.ROOT) -> Finding:
    """Whether the storage cases would measure memory."""
    kind = file_system(target, root)
    if not kind:
        return unknown(name, f"the file system of {target} is not known")
    if kind in ("tmpfs", "ramfs"):
        detail = f"{target} is on {kind}: storage cases would measure memory"
        return warning(name, detail, "name a folder on the storage to be measured with --target")
    return ok(name, kind)


def file_system(path: Path, root: Path = sysfs.ROOT) -> str:
    """Kind of the file system that holds a path, by the mounts of this process; empty if unknown."""
    best, kind = -1, ""
    parts = path.absolute().parts
    for line in (sysfs.text(root / "proc/self/mounts") or "").splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])).parts
        if mount == parts[: len(mount)] and len(mount) >= best:  # of two on one place the later hides the earlier
            best, kind = len(mount), fields[2]
    return kind


def free_in(names: Sequence[str]) -> dict[str, Free]:
    """What is free in targets, or why they can't be written to; of those that answer.  All are asked at once: any may hang."""
    found: dict[str, Free] = {}

    def ask(name: str) -> None:
        with contextlib.suppress(OSError):
            if (said := within(lambda: _free(Path(name)))) is not None:
                found[name] = said

    in_threads(ask, names)
    return found


def _free(target: Path) -> Free:
    try:
        if not stat.S_ISDIR(target.stat().st_mode):
            return Free(refused=errno.ENOTDIR)
    except (FileNotFoundError, NotADirectoryError) as error:
        return Free(refused=error.errno or errno.ENOENT)
    number = targets.refusal(target)
    return Free(refused=number) if number else measured(target)


def write_problem(path: Path) -> str:
    """Why a file cannot be written there; empty if it can (one is, and is gone at once)."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def within(function: Callable[[], T], seconds: float = PATIENCE_S) -> T | None:
    """The answer of something that may hang (a network file system), or ``None`` if it does not come in time."""
    answers: list[T] = []
    errors: list[OSError] = []

    def ask() -> None:
        try:
            answers.append(function())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=ask, name="preflight", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return answers[0] if answers else None


# --------------------------------------------------------------------------------------------------------------------------
# settings


def huge_pages(machine: Machine) -> Finding:
    """Transparent huge pages."""
    match machine.settings.get("thp"):
        case "always" | "madvise" as choice:
            return ok("huge_pages", str(choice))
        case "never":
            remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)"
            return warning("huge_pages", "never: memory bandwidth and latency suffer from address translation", remedy)
        case _:
            return unknown("huge_pages", "the kernel does not say")


def governor(machine: Machine) -> Finding:
    """Who decides the processors' clock."""
    choice, driver = machine.settings.get("cpu_governor"), machine.settings.get("cpu_frequency_driver", "")
    if not isinstance(choice, str):
        where = "a hypervisor decides" if machine.virtual else "the kernel does not say"
        return unknown("governor", where)
    if choice == "performance":
        return ok("governor", choice)
    detail = f"{choice}{f' ({driver})' if driver else ''}: the clock follows the load, short cases may see a low one"
    return warning("governor", detail, "cpupower frequency-set -g performance (as root)")


def quota(machine: Machine) -> Finding:
    """Whether a control group stops processes that use all processors they may run on."""
    limit = machine.settings.get("cpu_quota")
    if not isinstance(limit, int | float):
        return ok("cpu_quota", "none")
    detail = f"a control group allows {limit:g} processors' worth of time, {machine.cpu.threads} may be used"
    if limit >= machine.cpu.threads:
        return ok("cpu_quota", detail)
    remedy = f"raise the quota, or bind to {counted(max(1, int(limit)), 'processor')} (taskset -c, --cpuset-cpus)"
    return warning("cpu_quota", f"{detail}: all of them are stopped again and again", remedy)


def load(machine: Machine, average: float | None) -> Finding:
    """Whether others work here.  ``average``: the load of the last minute, before any worker was started."""
    if average is None:
        return unknown("load", "the kernel does not say")
    detail = f"{average:.2f} on average over the last minute, {counted(machine.cpu.threads, 'processor')}"
    if average > max(0.7, 0.05 * machine.cpu.threads):
        remedy = "see with top who works here (an earlier run counts for a minute); measure on an idle machine"
        return warning("load", detail, remedy)
    return ok("load", detail)
