"""What NCCL says of itself in its debug file: version, network, how ranks reach each other, algorithm and protocol.  Pure.

Lines as in NCCL's user guide (troubleshooting/logging.rst) and its source (init.cc, enqueue.cc, transport/*.cc), from 2.8 on:

    node-01:631:631 [0] NCCL INFO NCCL version 2.30.3+cuda13.0
    node-01:631:642 [0] NCCL INFO NET/Plugin: Loaded net plugin Libfabric (v10)
    node-01:631:642 [0] NCCL INFO Using network IB
    node-01:631:642 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
    node-01:631:642 [0] NCCL INFO Channel 01/0 : 7[7] -> 8[0] [send] via NET/IB/0/GDRDMA
    node-01:631:631 [0] NCCL INFO AllReduce: 33554432 Bytes -> Algo RING proto SIMPLE channel{Lo..Hi}={0..31}

The file is what a library wrote, so nothing in it is trusted: what does not fit is left out, and no more than `MOST` of a kind is
kept.  The last of these lines is written by rank 0 alone.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

MOST = 64
"""Different transports, and choices, that are kept."""
MOST_LINE = 500
ALGORITHMS = ("TREE", "RING", "COLLNET_DIRECT", "COLLNET_CHAIN", "NVLS", "NVLS_TREE", "PAT")
PROTOCOLS = ("LL", "LL128", "SIMPLE")
"""In the order of the numbers that NCCL before 2.25 writes instead."""

_INFO = re.compile(r"\[[0-9]{1,4}\] NCCL INFO (.*)", re.ASCII)
_VERSION = re.compile(r"NCCL version ([0-9][A-Za-z0-9.+-]{0,40})", re.ASCII)
_NETWORK = re.compile(r"Using network ([A-Za-z0-9][A-Za-z0-9 ._/-]{0,60}?)\.?", re.ASCII)
_PLUGIN = re.compile(r"NET/Plugin: Loaded net plugin ([A-Za-z0-9][A-Za-z0-9 ._/-]{0,60}) \(v([0-9]{1,3})\)", re.ASCII)
_CHANNEL = re.compile(
    r"(?:Channel|Ring) [0-9]{1,4}(?:/[0-9]{1,3})? : [0-9]{1,7}\[[0-9a-f]{1,16}\] -> [0-9]{1,7}\[[0-9a-f]{1,16}\]"
    r"(?: \[(?:send|receive)\])? via ([A-Za-z0-9][A-Za-z0-9 ._/()\[\]-]{0,80})",
    re.ASCII,
)
_COLLNET = re.compile(
    r"CollNet [0-9]{1,4}/[0-9]{1,3} : [0-9]{1,7} \[(?:send|receive)\] via (COLLNET/[A-Za-z0-9._/-]{1,60})", re.ASCII
)
_CHOICE = re.compile(
    r"([A-Za-z]{1,30}): ([0-9]{1,18}) Bytes -> Algo ([A-Z_]{1,20}|[0-9]) proto ([A-Z0-9]{1,10})(?: .*)?", re.ASCII
)


@dataclass
class Log:
    """What the log of one rank holds.

    ``transports``: connections by kind (``P2P/CUMEM``, ``SHM/direct``, ``NET/IB/0/GDRDMA``).  ``choices``: operation and bytes,
    as NCCL counts them, to algorithm and protocol; the last choice of each counts.
    """

    version: str = ""
    network: str = ""
    plugin: str = ""
    transports: Counter[str] = field(default_factory=Counter[str])
    choices: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict[tuple[str, int], tuple[str, str]])

    def add(self, text: str) -> None:
        """Take in whole lines."""
        for line in text.split("\n"):
            found = _INFO.search(line.rstrip("\r")) if len(line) <= MOST_LINE else None
            if found:
                self._add(found[1])

    def _add(self, words: str) -> None:
        if match := _VERSION.fullmatch(words):
            self.version = match[1]
        elif match := _NETWORK.fullmatch(words):
            self.network = match[1]
        elif match := _PLUGIN.fullmatch(words):
            self.plugin = f"{match[1]} (v{match[2]})"
        elif match := _CHANNEL.fullmatch(words) or _COLLNET.fullmatch(words):
            if match[1] in self.transports or len(self.transports) < MOST:
                self.transports[match[1]] += 1
        elif match := _CHOICE.fullmatch(words):
            algorithm, protocol = _named(match[3], ALGORITHMS), _named(match[4], PROTOCOLS)
            key = match[1], int(match[2])
            if algorithm and protocol and (key in self.choices or len(self.choices) < MOST):
                self.choices[key] = algorithm, protocol

    def choice(self, operation: str) -> tuple[str, str]:
        """Algorithm and protocol of the largest message of an operation (``AllReduce``); empty where none was logged."""
        sizes = [size for name, size in self.choices if name == operation]
        return self.choices[operation, max(sizes)] if sizes else ("", "")


def _named(word: str, names: tuple[str, ...]) -> str:
    if word.isdigit():
        return names[int(word)] if int(word) < len(names) else ""
    return word if word in names else ""


def kinds(transports: Counter[str]) -> str:
    """The transports in a line, the most frequent first: ``P2P/CUMEM ×32, NET/IB/0 ×4``."""
    return ", ".join(f"{name} ×{count}" for name, count in transports.most_common(MOST))
