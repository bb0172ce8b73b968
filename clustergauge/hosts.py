"""Names of hosts as people and Slurm write them: ``a,b``, ``node[01-64]``, host files; and what this one calls itself.

An IPv6 address is a name, too, with or without brackets around it (``[2001:db8::1]``); it is kept without, as ssh takes it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from clustergauge import addresses
from clustergauge.errors import UsageError

MOST_HOSTS = 100_000
"""A longer list is a mistake, or meant to fill memory."""
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}@)?[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
"""A host, with or without a user.  Never begins with ``-``: a remote command would take it for an option."""
_USER = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}@)?", re.ASCII)
_PIECE = re.compile(r"\[([0-9,-]*)\]")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def own() -> str:
    """This host's name: ``CLUSTERGAUGE_HOST`` (so that several agents can live on one machine), or what the kernel says."""
    return os.environ.get("CLUSTERGAUGE_HOST") or os.uname().nodename


def scratch_folder(token: str) -> Path:
    """The scratch folder of the agent that a run (``token``) has on this host: workers that MPI started find it by themselves."""
    return Path("/tmp") / f"clustergauge-{token}-{hashlib.sha256(own().encode()).hexdigest()[:8]}"  # noqa: S108


def expand(text: str) -> list[str]:
    """The hosts of a list, in its order, each once: ``node[01-03,7],login`` has five.

    Raises `UsageError` for whatever is not such a list.
    """
    return list(_expand(text))


@functools.lru_cache(64)
def _expand(text: str) -> tuple[str, ...]:
    """A run over ten thousand nodes names the same few lists in each of its cases."""
    names: list[str] = []
    for word in _split(text):
        names += _expanded(word, text)
        if len(names) > MOST_HOSTS:
            raise UsageError(f"hosts {text[:60]!r}: more than {MOST_HOSTS}")
    return tuple(dict.fromkeys(_checked(name, text) for name in names))


def spans(device: str) -> bool:
    """Whether a device stands for several nodes: all (``cpu:nodes``), or a group of them."""
    return device.endswith(":nodes") or is_group(device)


def is_group(device: str) -> bool:
    """Whether it stands for one of the disjoint groups of nodes (``cpu:group1``)."""
    return device.partition(":")[2].startswith("group")


def lost(name: str) -> str:
    """How the reason of a case begins that failed because a node was lost."""
    return f"node {name} is lost"


def went_with(reason: str, name: str) -> bool:
    """Whether a case failed because this node was lost, and nothing in it had failed before."""
    return bool(name) and reason.startswith(f"{lost(name)}: ")


def tells_of_lost(reason: str, names: Iterable[str]) -> bool:
    """Whether a case failed because one of these nodes was lost: no fault of the others'."""
    return any(lost(name) in reason for name in names)


def is_name(text: str) -> bool:
    """Whether it can be the name of a host, and nothing that a script could take for something else."""
    return bool(text) and (_NAME.fullmatch(text) is not None or _address(text) == text)


def compress(names: Iterable[str]) -> str:
    """The shortest list that `expand` takes, in the same order: ``node[01-03]`` for node01, node02, node03."""
    words: list[str] = []
    for (prefix, width, suffix), members in groupby(map(_taken_apart, names), key=lambda part: part[:3]):
        numbers = [number for *_, number in members]
        if not width or len(numbers) == 1:
            words += [f"{prefix}{number:0{width}d}{suffix}" if width else prefix for number in numbers]
            continue
        ranges: list[list[int]] = []
        for number in numbers:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        inner = ",".join(f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in ranges)
        words.append(f"{prefix}[{inner}]{suffix}")
    return ",".join(words)


def ordered(names: Iterable[str]) -> list[str]:
    """By `order`, so that `compress` has the least to say."""
    return sorted(names, key=order)


def order(name: str) -> tuple[str, str, int, int]:
    """What names are sorted by: what stands around their last number, then that: ``n2`` before ``n10``."""
    prefix, width, suffix, number = _taken_apart(name)
    return prefix, suffix, number, width


def read_file(path: Path) -> list[str]:
    """The hosts of a file: one a line, its first word; what MPI adds (``slots=2``, ``:2``) and ``#`` comments are left out.

    Raises `UsageError`, naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --hostfile {path}: {error}") from None
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                names += expand(_without_slots(words[0]))
            except UsageError as error:
                raise UsageError(f"{path} line {number}: {error}") from None
    if not names:
        raise UsageError(f"--hostfile {path} names no host")
    return list(dict.fromkeys(names))


def wanted(hosts: str, hostfile: str, by_srun: bool, environment: Mapping[str, str]) -> list[str]:
    """The hosts that the command line asks for; empty for this machine alone.

    ``by_srun``: agents are started by srun, so that inside an allocation its nodes (``SLURM_JOB_NODELIST``) are meant.
    """
    if hosts and hostfile:
        raise UsageError("--hosts and --hostfile: give one of them")
    if hosts:
        return expand(hosts)
    if hostfile:
        return read_file(Path(hostfile))
    if by_srun and (allocated := environment.get("SLURM_JOB_NODELIST", "")):
        return expand(allocated)
    return []


def _checked(name: str, text: str) -> str:
    """The name as it is kept.  Raises `UsageError` if it is none."""
    if _NAME.fullmatch(name):
        return name
    if address := _address(name):
        return address
    port = "; a port goes into --remote 'ssh -p 22 {host}'" if ":" in name else ""
    raise UsageError(f"hosts {text[:60]!r}: {name[:60]!r} is not the name of a host (write a,b or node[01-64]{port})")


def _address(name: str) -> str:
    """An IPv6 address in the one way to write it, with its user before it; empty if it is none."""
    user, at, host = name.rpartition("@")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        return f"{user}{at}{addresses.ipv6(host)}" if _USER.fullmatch(user + at) else ""
    except ValueError:
        return ""


def _without_slots(word: str) -> str:
    """``n1:4`` and ``[::1]:4`` without how many ranks go there; the colons of a bare address are its own."""
    host = re.sub(r":[0-9]+$", "", word)
    return host if ":" not in host or host.endswith("]") else word


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    words = [""]
    depth = 0
    for character in text.strip():
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise UsageError(f"hosts {text[:60]!r}: brackets do not match")
        if character == "," and not depth:
            words.append("")
        else:
            words[-1] += character
    if depth or not all(words):
        raise UsageError(f"hosts {text[:60]!r}: {'brackets do not match' if depth else 'a name is empty'}")
    return words


def _expanded(word: str, text: str) -> list[str]:
    """``node[1-2]-[a]`` and the like, every bracket in turn."""
    match = _PIECE.search(word)
    if not match:
        return [word]
    values: list[str] = []
    for part in match[1].split(","):
        ends = _RANGE.fullmatch(part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not ends or last < first or last - first >= MOST_HOSTS:
            raise UsageError(f"hosts {text[:60]!r}: {part[:30]!r} is not a number or a rising range (write [01-64])")
        values += [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
    if len(values) > MOST_HOSTS:
        raise UsageError(f"hosts {text[:60]!r}: more than {MOST_HOSTS}")
    rest = _expanded(word[match.end() :], text)
    if len(values) * len(rest) > MOST_HOSTS:
        raise UsageError(f"hosts {text[:60]!r}: more than {MOST_HOSTS}")
    return [f"{word[: match.start()]}{value}{end}" for value in values for end in rest]


def _taken_apart(name: str) -> tuple[str, int, str, int]:
    """Prefix, width and value of the last number of the short name, suffix; width 0 where there is none."""
    short, dot, domain = name.partition(".")
    match = re.fullmatch(r"(.*?)([0-9]{1,9})([^0-9]*)", short)
    if not match or "@" in name:
        return name, 0, "", 0
    return match[1], len(match[2]), f"{match[3]}{dot}{domain}", int(match[2])
