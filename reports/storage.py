"""What the targets of storage cases lie on: a line each, from what their records say of them."""

from __future__ import annotations

from collections.abc import Iterator

from clustergauge.loading import LoadedRun
from clustergauge.model import Record
from clustergauge.valid import printable
from reports.layout import LONGEST, fit

HOSTS = 3
"""More hosts, or folders, than this are counted."""


def lines(loaded: LoadedRun, most: int = LONGEST) -> Iterator[str]:
    """``/scratch: xfs on /dev/nvme0n1 (Samsung SSD 980), 931.5 GiB free, rw,noatime``, for every kind of device behind a target.

    A target whose name holds a symbolic link is followed by the folder itself in brackets.  Both are shortened in the middle to
    ``most`` cells, so that they leave room for the rest.  The hosts are named where they differ; ``free`` is the least that a
    case found.  A target of which no record tells is named as such.
    """
    where = {(p.case, p.device, p.launch): p.target for p in loaded.run.planned}
    kinds: dict[str, dict[tuple[str, str], list[Record]]] = {target: {} for target in where.values() if target}
    for record in loaded.records:
        target = where.get((record.case, record.device, record.launch))
        if target and record.settings.get("fs_type"):
            kinds[target].setdefault(_described(record), []).append(record)
    for target, found in kinds.items():
        name = fit(printable(target), most)
        if not found:
            yield f"{name}: nothing is known of it, for no case came to a number there"
        for (place, options), records in found.items():
            free = [count for r in records if isinstance(count := r.settings.get("free_bytes"), int)]
            least = [f"{min(free) / 2**30:.1f} GiB free"] if free else []
            hosts = [f"on {_hosts(loaded, records)}"] if len(found) > 1 else []
            yield printable(f"{name}{_itself(records, most)}: {', '.join(filter(None, [place, *hosts, *least, options]))}")


def _described(record: Record) -> tuple[str, str]:
    said = {name: str(record.settings.get(name, "")) for name in ("fs_type", "fs_source", "device_model", "fs_options")}
    source = f" on {said['fs_source']}" if said["fs_source"] not in ("", "none", said["fs_type"]) else ""
    model = f" ({said['device_model']})" if said["device_model"] else ""
    return f"{said['fs_type']}{source}{model}", said["fs_options"]


def _itself(records: list[Record], most: int) -> str:
    found = sorted({str(r.settings["folder"]) for r in records if r.settings.get("folder")})
    names = (fit(printable(folder), most // len(found)) for folder in found)
    return f" ({', '.join(names) if len(found) <= HOSTS else f'{len(found)} folders'})" if found else ""


def _hosts(loaded: LoadedRun, records: list[Record]) -> str:
    names = list(dict.fromkeys(loaded.machines[r.machine_id].host for r in records if r.machine_id in loaded.machines))
    return ", ".join(names) if len(names) <= HOSTS else f"{names[0]} … {names[-1]} ({len(names)})"
