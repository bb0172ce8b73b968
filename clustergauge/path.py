"""Proof of path: whether the bytes of a collective went where they were meant to go, by the counters of every port.  Pure.

A record says how often the work ran and what every interface, port and NVLink moved meanwhile (`traffic`).  From the collective,
its size and the algorithm follows how many bytes had to move.  *proven*: the path moved as many, within the bounds of headers and
of other traffic.  *contradicted*: it moved so few that they went another way: the number is of another path, and invalid.
*unproven*: counters are missing, or too much else moved.  Memory that ranks share has no counter: there the proof is that all
ports of the host were counted, and none moved the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from clustergauge.collective_bytes import Bytes, predicted
from clustergauge.model import Machine, Record, Scalar

LEAST_BYTES = 1 << 20
"""Messages smaller than this are not asked for proof: what else moves is as much."""
LEAST = 0.97
"""Of the bytes that must move: counters of Ethernet ports agreed with a ring of gloo within 0.2 %."""
MOST = {"tcp": 1.10, "fabric": 1.10, "nvlink": 1.25}
"""Of the bytes that may move, headers included: TCP/IP and Ethernet take 94 of 1514 B and acknowledgements some more; InfiniBand
30 of 1054 to 4126 B; NVLink packets a quarter at most."""
ELSEWHERE = 0.5
"""A path that moved less than this part of what must move was not the path; another that moved as much was."""
SILENT = 0.03
"""All ports together below this part: the bytes went through memory."""
Medium = Literal["tcp", "fabric", "nvlink", "memory"]
State = Literal["proven", "contradicted", "unproven"]
WORDS: dict[Medium, str] = {"tcp": "Ethernet", "fabric": "InfiniBand or RoCE", "nvlink": "NVLink", "memory": "memory of the host"}


@dataclass(frozen=True)
class Proof:
    """``path``: the way that was meant.  ``share``: bytes that it moved, of those that had to; ``None`` where unknown."""

    state: State
    path: str
    reason: str
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.path}, {self.state} ({self.reason})"


class _Way(NamedTuple):
    """The way that was meant.  ``port``: the one interface that may carry it, empty: any of its medium.  ``firm``: if the bytes
    were not there, that contradicts it."""

    medium: Medium
    port: str = ""
    firm: bool = True


class _Moved(NamedTuple):
    """Bytes of one port of one host."""

    host: str
    port: str
    tx: int
    rx: int


def proof(record: Record, machines: Iterable[Machine] = ()) -> Proof | None:
    """What the counters of a record prove of its path; ``None`` where no proof is asked.  ``machines``: those of the run.

    Asked for: collectives of several ranks with messages of `LEAST_BYTES` and more that were measured, with their counters.
    """
    work = record.workload
    if record.status != "ok" or not work or not work.collective or record.ranks < 2 or work.message_bytes < LEAST_BYTES:
        return None
    if not record.counters.path:
        return None
    machines = tuple(machines)
    hosts = Counter(place.host for place in record.placement)
    way = _meant(record, {m.host: m for m in machines}, list(hosts))
    between = list(hosts)
    if work.collective == "send_recv":  # between the first rank and the last; the others have nothing to do
        between = list(dict.fromkeys(place.host for place in (record.placement[:1] + record.placement[-1:])))
    name = way.port or WORDS[way.medium]
    runs = record.counters.path.get("runs")
    if not isinstance(runs, int) or runs < 1:
        return Proof("unproven", name, "how often the work ran is not known")
    groups = [hosts[host] for host in between] if len(between) > 1 else [1] * record.ranks
    needed = _needed(record, work.collective, work.message_bytes, groups)
    if needed is None:
        return Proof("unproven", name, f"what {work.collective} must move is not known")
    needed = Bytes(needed.least * runs, needed.most * runs)
    moved = _moved(record.counters.path)
    if way.medium == "memory":
        return _in_memory(name, moved, needed, _uncounted(record, machines, hosts, moved))
    return _over(way, name, moved, needed, between)


def _needed(record: Record, collective: str, size: int, groups: Sequence[int]) -> Bytes | None:
    if collective != "send_recv":
        return predicted(collective, size, groups, _backend(record), record.settings)
    ways = {"pingpong": 1, "unidirectional": 1, "bidirectional": 2}.get(str(record.params.get("mode", "")))
    return Bytes(ways * size, ways * size) if ways and record.probe == "send_recv" else None


# --------------------------------------------------------------------------------------------------------------------------
# where it was meant to go


def _backend(record: Record) -> str:
    """``mpi``, ``gloo`` or ``nccl``; empty where the record does not say."""
    said = record.settings.get("torch_distributed_backend") or record.params.get("backend")
    return said if isinstance(said, str) and said in ("mpi", "gloo", "nccl") else ""


def _meant(record: Record, machines: Mapping[str, Machine], hosts: Sequence[str]) -> _Way:
    """The way that the parts of the hosts and the libraries' environment ask for."""
    said, backend, several = record.settings, _backend(record), len(hosts) > 1
    fabric = bool(hosts) and all(_fabric(machines.get(host)) for host in hosts)
    # an Ethernet port with RDMA may not be meant for it, unless somebody says so
    sure = any(said.get(name) for name in ("env.NCCL_IB_HCA", "env.UCX_NET_DEVICES")) or said.get("env.NCCL_NET") == "IB"
    sure = sure or (fabric and all("infiniband" in _fabric(machines[host]) for host in hosts))
    if backend == "gloo":
        port = str(said.get("env.GLOO_SOCKET_IFNAME", "")).partition(",")[0]
        return _Way("tcp", port)
    if backend == "nccl":
        forced = record.params.get("path", "default")
        if forced == "nvlink":
            return _Way("nvlink")
        if forced == "p2p_off" and not several:
            return _Way("memory")
        if several and "P2P/MNNVL" in str(said.get("nccl_transports", "")):
            return _Way("nvlink", firm=False)
        if several or forced == "net":
            # an adapter sends what is for itself in a circle that not every one counts at its port
            tcp = not fabric or said.get("env.NCCL_IB_DISABLE") == "1" or said.get("env.NCCL_NET") == "Socket"
            return _Way("tcp") if tcp else _Way("fabric", firm=several and sure)
        links = machines[hosts[0]].links if hosts and hosts[0] in machines else []
        if links and all(link.kind == "nvlink" for link in links):
            return _Way("nvlink")
        return _Way("memory")
    if not several:
        return _Way("nvlink", firm=False) if record.device.startswith("cuda") else _Way("memory")
    return _Way("fabric", firm=sure) if fabric and not _asked_tcp(said) else _Way("tcp")


def _fabric(machine: Machine | None) -> list[str]:
    """Kinds of the ports with verbs that are active: ``infiniband``, ``roce``, ``other`` (EFA)."""
    return [nic.kind for nic in machine.nics if nic.state == "active"] if machine else []


def _asked_tcp(said: Mapping[str, Scalar]) -> bool:
    """Whether the user asked MPI for TCP."""
    transports = str(said.get("env.UCX_TLS", ""))
    layers = [str(said.get(name, "")) for name in ("env.OMPI_MCA_btl", "env.FI_PROVIDER")]
    own = bool(transports) and not any(word in transports for word in ("rc", "ud", "dc", "ib", "all", "^"))
    return own or any("tcp" in layer for layer in layers)


# --------------------------------------------------------------------------------------------------------------------------
# where it went


def _moved(path: Mapping[str, Scalar]) -> list[_Moved]:
    """The ports that were counted in both directions."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for key, value in path.items():
        host, between, name = key.partition("/")
        port, _, what = name.rpartition(".")
        if between and what in ("tx_bytes", "rx_bytes") and isinstance(value, int) and value >= 0:
            found.setdefault((host, port), {})[what] = value
    return [_Moved(*key, both["tx_bytes"], both["rx_bytes"]) for key, both in found.items() if len(both) == 2]


def _ends(moved: Iterable[_Moved]) -> tuple[int, int]:
    """Of bytes sent and bytes received, all ports together, the lesser and the greater."""
    ports = list(moved)
    tx, rx = sum(m.tx for m in ports), sum(m.rx for m in ports)
    return min(tx, rx), max(tx, rx)


def _medium(port: str) -> Medium:
    return "nvlink" if port.endswith(".nvlink") else "fabric" if ":" in port else "tcp"


def _carries(way: _Way, port: str) -> bool:
    if way.port:
        return port.removeprefix("stacked.") == way.port
    return _medium(port) == way.medium and not port.startswith("stacked.")


def _over(way: _Way, name: str, moved: Sequence[_Moved], needed: Bytes, hosts: Sequence[str]) -> Proof:
    """Whether the ports of a way moved what had to move."""
    own = [m for m in moved if _carries(way, m.port) and not (m.port == "lo" and len(hosts) > 1)]
    if not own:
        return Proof("unproven", name, "no port of it counts its bytes")
    if silent := [host for host in hosts if not any(m.host == host for m in own)]:
        return Proof("unproven", name, f"{silent[0]} does not count its bytes")
    low, high = _ends(own)
    share = low / needed.least
    busy = max(own, key=lambda m: m.tx + m.rx).port.removesuffix(".nvlink")
    name = busy if way.medium == "tcp" and not way.port and high > ELSEWHERE * needed.least else name
    other = _elsewhere([m for m in moved if m not in own and not m.port.startswith("stacked.")], needed)
    part = 0.1 * needed.least / len(hosts)
    quiet = [h for h in hosts if len(hosts) > 1 and _ends(m for m in own if m.host == h)[1] < part]
    if high == 0 and not other and way.medium != "tcp":
        return Proof("unproven", name, "its counters stand still, and no other port moved the bytes", share)
    if high < ELSEWHERE * needed.least or quiet:
        alone = f"{quiet[0]} moved next to nothing" if quiet and high >= ELSEWHERE * needed.least else ""
        reason = f"{alone or f'it moved {_percent(share)} of the predicted bytes'}{f', {other}' if other else ''}"
        return Proof("contradicted" if way.firm else "unproven", name, reason, share)
    if share < LEAST:
        return Proof("unproven", name, f"{_percent(share)} of the predicted bytes{f', {other}' if other else ''}", share)
    if low > MOST[_medium(own[0].port)] * needed.most:
        return Proof("unproven", name, f"{low / needed.most:.3g} times the predicted bytes: other traffic", share)
    if other and way.medium == "fabric":
        return Proof("unproven", name, f"{_percent(share)} of the predicted bytes, but {other} too", share)
    reason = f"{_percent(share)} of predicted bytes"
    return Proof("proven", name, reason if needed.most <= needed.least else f"{reason} at least", share)


def _in_memory(name: str, moved: Sequence[_Moved], needed: Bytes, uncounted: str) -> Proof:
    """Whether ports moved none of the bytes, and all were counted."""
    counted = [m for m in moved if not m.port.startswith("stacked.")]
    other = _elsewhere(counted, needed, LEAST)
    if other and _ends(counted)[0] <= max(MOST.values()) * needed.most:
        return Proof("contradicted", name, f"{other} of the predicted bytes")
    share = _ends(counted)[1] / needed.least
    if uncounted or not counted:
        return Proof("unproven", name, f"{uncounted or 'no port'} is not counted")
    if share > SILENT:
        return Proof("unproven", name, f"ports of the host moved {_percent(share)} of the predicted bytes")
    return Proof("proven", name, f"ports of the host moved {_percent(share)} of the predicted bytes")


def _elsewhere(moved: Sequence[_Moved], needed: Bytes, least: float = ELSEWHERE) -> str:
    """The port, or all NVLinks together, that moved ``least`` of what must move, or more; empty if none did."""
    named: dict[str, list[_Moved]] = {}
    for m in moved:
        named.setdefault("NVLink" if _medium(m.port) == "nvlink" else m.port, []).append(m)
    sums = {name: _ends(those)[0] for name, those in named.items()}
    port, most = max(sums.items(), key=lambda item: item[1], default=("", 0))
    return f"{port} moved {_percent(most / needed.least)}" if most >= least * needed.least else ""


def _uncounted(record: Record, machines: Iterable[Machine], hosts: Iterable[str], moved: Sequence[_Moved]) -> str:
    """A way out of memory that the host has and does not count; empty if there is none."""
    counted = {(m.host, m.port) for m in moved}
    for machine in machines:
        if machine.host in hosts:
            if record.device.startswith("cuda") and any(link.kind == "nvlink" for link in machine.links):
                missing = [gpu.index for gpu in machine.gpus if (machine.host, f"gpu{gpu.index}.nvlink") not in counted]
                if missing:
                    return f"NVLink of gpu{missing[0]}"
            for nic in machine.nics:
                if nic.state == "active":
                    names = {nic.name, f"{nic.name}:1"}
                    if not any((machine.host, name) in counted for name in names):
                        return nic.name
    return "" if any(port == "lo" for _, port in counted) else "lo"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"
