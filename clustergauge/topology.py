"""Which leaf switch, rack and rail a NIC of a host belongs to: a TOML file that the site keeps.

    [[leaf]]
    name = "leaf-03"
    hosts = ["node[033-048]", "spare*"]   # ranges keep their leading zeros; * ? [!…] as in a shell
    rack = "r3"                           # optional
    nics = ["mlx5_[0-3]"]                 # optional: only these; otherwise all
    rail = "0"                            # optional

A host's short name (up to the first dot) counts where its full name is not listed, a user before it never.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Annotated

import msgspec

from clustergauge import toml
from clustergauge.errors import UsageError
from clustergauge.model import Data, Run
from clustergauge.valid import TEXT_LENGTH, printable, shown

MOST_HOSTS = 100_000
"""The most hosts that one pattern may mean: a longer range is a mistake."""
MOST_NAMED = 8
"""Hosts that a sentence names one by one."""
_RANGE = re.compile(r"\[([0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*)\]", re.ASCII)
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Leaf(Data, frozen=True, kw_only=True):
    """One leaf switch (or the part of one that ``nics`` selects) and what hangs on it."""

    name: _Text
    hosts: Annotated[list[_Text], msgspec.Meta(min_length=1)]
    nics: list[_Text] = msgspec.field(default_factory=list[_Text])
    rack: str = ""
    rail: str = ""


class Topology(Data, frozen=True, dict=True):
    """All leaves.  Equal if they were written alike."""

    leaf: Annotated[list[Leaf], msgspec.Meta(min_length=1)]
    schema: int = 1
    title: str = ""

    def find(self, host: str, nic: str = "") -> Leaf | None:
        """The leaf of a NIC of a host, ``None`` if it is in none, or in two: which of them nobody knows.

        ``nic``: empty where it is not known; then the host must be in one leaf only.
        """
        leaves = self.leaves(host)
        if nic:
            leaves = [leaf for leaf in leaves if not leaf.nics or any(_fits(pattern, nic) for pattern in leaf.nics)]
        return leaves[0] if len(leaves) == 1 else None

    def leaves(self, host: str) -> list[Leaf]:
        """All leaves that a host is in, by whichever NIC."""
        alone = host.rpartition("@")[2]
        for name in dict.fromkeys((alone, alone.partition(".")[0])):
            if numbers := self._on(name):
                return [self.leaf[n] for n in numbers]
        return []

    def unplaced(self, hosts: Iterable[str]) -> list[str]:
        """Those of the hosts that are in no leaf."""
        return [host for host in dict.fromkeys(hosts) if not self.leaves(host)]

    def text(self) -> str:
        """One line of JSON from which `of_text` makes it again: how a run remembers it."""
        return msgspec.json.encode(self).decode()

    def _on(self, host: str) -> list[int]:
        exact, globs = self._index
        return sorted({*exact.get(host, []), *(n for pattern, n in globs if fnmatch.fnmatchcase(host, pattern))})

    @cached_property
    def _index(self) -> tuple[dict[str, list[int]], list[tuple[str, int]]]:
        """Leaves by host, and the patterns that only a name can be held against."""
        exact: dict[str, list[int]] = {}
        globs: list[tuple[str, int]] = []
        for number, leaf in enumerate(self.leaf):
            for pattern in leaf.hosts:
                for host in expand(pattern):
                    if any(c in host for c in "*?["):
                        globs.append((host, number))
                    elif number not in exact.setdefault(host, []):
                        exact[host].append(number)
        return exact, globs


def parse(text: str, path: str) -> Topology:
    """A topology file.  Every mistake is a `UsageError` naming the file and the line or field (``leaf[2].hosts[0]``)."""
    try:
        topology = msgspec.convert(toml.parse(text.removeprefix("\ufeff")), Topology)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return _checked(topology, path)


def of_text(text: str) -> Topology:
    """What `Topology.text` wrote.  Raises `UsageError`."""
    try:
        topology = msgspec.json.decode(text, type=Topology)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"the run's topology cannot be read: {error}") from None
    return _checked(topology, "the run's topology")


def of_run(run: Run) -> Topology | None:
    """The topology that a run remembers; ``None`` if it was given none.  Raises `UsageError`."""
    text = run.settings.get("topology")
    return of_text(str(text)) if text else None


def racks(topology: Topology | None) -> Callable[[str], str]:
    """The rack of a host by its name, one for all of its leaves; empty where that is not known."""

    def rack_of(host: str) -> str:
        found = {leaf.rack for leaf in topology.leaves(host)} if topology else set[str]()
        return found.pop() if len(found) == 1 else ""

    return rack_of


def check_fits(topology: Topology, path: str, hosts: Sequence[str]) -> None:
    """Raises `UsageError` where the file (``path``) is of other hosts than the measured: it places none of them."""
    if hosts and len(topology.unplaced(hosts)) == len(set(hosts)):
        named = [pattern for leaf in topology.leaf for pattern in leaf.hosts]
        words = f"none of the hosts that it names is measured: it has {_listed(named)}; measured are {_listed(hosts)}"
        raise UsageError(printable(f"{path}: {words} (write them there as they are called here)"))


def notes(topology: Topology | None, hosts: Iterable[str]) -> list[str]:
    """Which measured hosts are placed nowhere, in words; empty where all are placed, or no topology is known."""
    missing = topology.unplaced(hosts) if topology else []
    words = f"in no leaf of the topology: {_listed(missing)}: which leaf they hang on is unknown, and none is blamed for them"
    return [printable(words)] if missing else []


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f", … +{more}" if more > 0 else "")


def _checked(topology: Topology, path: str) -> Topology:
    if topology.schema != 1:
        raise UsageError(f"{path}: schema {topology.schema} is not known (this version reads 1)")
    owner: dict[str, int] = {}
    for number, leaf in enumerate(topology.leaf):
        for field in ("name", "rack", "rail"):
            if not getattr(leaf, field).isprintable():
                raise UsageError(f"{path}: leaf[{number}].{field} is not printable")
        for index, pattern in enumerate(leaf.hosts):
            where = f"{path}: leaf[{number}].hosts[{index}]"
            try:
                hosts = list(expand(pattern))
            except ValueError as error:
                raise UsageError(f"{where}: {error}") from None
            for host in hosts:
                other = owner.setdefault(host, number)
                if other != number and not (leaf.nics and topology.leaf[other].nics):
                    raise UsageError(f"{where}: {shown(host)} is in leaf[{other}] too (say which nics, if it is in both)")
        for index, pattern in enumerate(leaf.nics):
            try:
                list(expand(pattern))
            except ValueError as error:
                raise UsageError(f"{path}: leaf[{number}].nics[{index}]: {error}") from None
    if len(topology.text()) > TEXT_LENGTH:
        raise UsageError(f"{path}: too long for a run to remember: write hosts as ranges, node[001-128]")
    return topology


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern with ranges means: ``node[08-10]`` is node08, node09, node10; globs stay as they are.

    Raises ``ValueError`` for a range that falls, or means more than `MOST_HOSTS`, and for brackets that do not pair.
    """
    if pattern.count("[") != pattern.count("]"):
        raise ValueError(f"{shown(pattern)}: a bracket is missing")
    for number, name in enumerate(_expand(pattern)):
        if number >= MOST_HOSTS:
            raise ValueError(f"{shown(pattern)} means more than {MOST_HOSTS} names")
        yield name


def _expand(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if not match:
        yield pattern
        return
    for number in _numbers(match[1], pattern):
        yield from (pattern[: match.start()] + number + rest for rest in _expand(pattern[match.end() :]))


def _numbers(ranges: str, pattern: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if len(last) > 9 or int(last) < int(first) or int(last) - int(first) >= MOST_HOSTS:
            raise ValueError(f"{shown(pattern)}: [{part}] is not a rising range of at most {MOST_HOSTS}")
        yield from (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))


def _fits(pattern: str, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, one) for one in expand(pattern))
