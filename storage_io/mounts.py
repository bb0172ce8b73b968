"""What a folder lies on: file system, mount options, device; as the kernel says, for the record of a storage case."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from clustergauge.model import Scalar
from clustergauge.probe import Context

LONGEST_OPTION = 64


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``.  ``device``: ``major:minor``; ``options``: of the mount and of the file system."""

    device: str
    point: str
    type: str
    source: str
    options: str


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts, in the kernel's order; lines that are not of the documented shape (proc(5)) are left out."""
    mounts: list[Mount] = []
    for line in text.split("\n"):
        before, separator, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if separator and len(left) >= 6 and len(right) >= 3:
            options = dict.fromkeys([*left[5].split(","), *right[2].split(",")])
            mounts.append(Mount(left[2], _unescape(left[4]), right[0], _unescape(right[1]), ",".join(options)))
    return mounts


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """The mount that an absolute path without symbolic links lies on: the longest mount point, of equal ones the last mounted."""
    found = None
    for mount in mounts:
        inside = mount.point == "/" or path == mount.point or path.startswith(mount.point + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def describe(folder: Path) -> dict[str, Scalar]:
    """For the record: ``fs_type``, ``fs_options``, ``fs_source``, ``device_model``, ``device_rotational``, ``device_cached``,
    ``free_bytes``.

    What the kernel doesn't say is absent; options that are long paths (overlayfs has some) are left out.
    """
    stat = os.statvfs(folder)
    said: dict[str, Scalar] = {"free_bytes": stat.f_bavail * stat.f_frsize}
    mount = mount_of(str(folder.resolve()), parse_mountinfo(_read(Path("/proc/self/mountinfo"))))
    if mount:
        options = ",".join(option for option in mount.options.split(",") if len(option) <= LONGEST_OPTION)
        said |= {"fs_type": mount.type, "fs_options": options, "fs_source": mount.source}
        disk = _disk(Path("/sys/dev/block", mount.device))
        model, rotational = _read(disk / "device/model").strip(), _read(disk / "queue/rotational").strip()
        if model:
            said["device_model"] = model
        if rotational in ("0", "1"):
            said["device_rotational"] = rotational == "1"
        if behind := cached(disk):
            said["device_cached"] = behind
    return said


def tell(ctx: Context, folder: Path) -> None:
    """Record what `describe` says; early in a case, so that one which fails tells of its target, too."""
    for name, value in describe(folder).items():
        ctx.set(name, value)


def cached(disk: Path) -> str:
    """Why what the kernel counts of a disk (a folder of ``/sys``) need not leave memory, in words; empty where nothing says so.

    A loop device transfers to and from a file through the page cache, unless it was set up for direct I/O; some disks are memory.
    What volumes are made of is looked at, too.
    """
    if _read(disk / "loop/dio").strip() == "0":
        return f"{disk.name} is the file {_read(disk / 'loop/backing_file').strip()}, through the page cache"
    if re.fullmatch(r"(ram|zram)[0-9]+", disk.name, re.ASCII):
        return f"{disk.name} is memory"
    parts = sorted((disk / "slaves").iterdir()) if (disk / "slaves").is_dir() else []
    return next(filter(None, (cached(_disk(part)) for part in parts)), "")


def _disk(device: Path) -> Path:
    """Of a disk or a partition."""
    device = device.resolve()
    return device.parent if (device / "partition").exists() else device


def _unescape(text: str) -> str:
    r"""Octal escapes (``\040``) as the characters they stand for."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
