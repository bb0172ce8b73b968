"""Proof of path: whether the bytes of a collective went where they were meant to go, by the counters of every port.  Pure.

A record says how often the work ran and what every interface, port and NVLink moved meanwhile (`traffic`).  From the collective,
its size and the algorithm follows how many bytes had to move, in all and at every host (`collective_bytes`).  *proven*: the path
moved as many, within the bounds of headers and of other traffic, and every host its part.  *contradicted*: it moved so few, if at
one host alone, that they went another way: the number is of another path, and invalid.  *unproven*: counters are missing, or too
much else moved.  Memory that ranks share has no counter: there the proof is that all ports of the host were counted, and none
moved the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from clustergauge.collective_bytes import Bytes, Ends, Needed, backend_of, needed
from clustergauge.model import Machine, Nic, Record, Scalar

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
    """The way that was meant.  ``ports``: of each host the one interface that may carry it; where it has none, any of the medium.
    ``firm``: if the bytes were not there, that contradicts it.  ``lame``: what keeps hosts from it, in words."""

    medium: Medium
    ports: Mapping[str, str] = {}
    firm: bool = True
    lame: str = ""

    @property
    def name(self) -> str:
        """As a reader knows it."""
        return ", ".join(dict.fromkeys(self.ports.values())) or WORDS[self.medium]


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
    hosts = list(dict.fromkeys(place.host for place in record.placement))
    way = _meant(record, {m.host: m for m in machines}, hosts)
    runs = record.counters.path.get("runs")
    if not isinstance(runs, int) or runs < 1:
        return Proof("unproven", way.name, "how often the work ran is not known")
    once = needed(record)
    if once is None:
        return Proof("unproven", way.name, f"what {work.collective} must move is not known")
    must, moved = once.times(runs), _moved(record.counters.path)
    if way.medium == "memory":
        return _in_memory(way.name, moved, must.total, _uncounted(record, machines, hosts, moved))
    return _over(way, moved, must)


# --------------------------------------------------------------------------------------------------------------------------
# where it was meant to go


def _meant(record: Record, machines: Mapping[str, Machine], hosts: Sequence[str]) -> _Way:
    """The way that the parts of the hosts and the libraries' environment ask for."""
    said, backend, several = record.settings, backend_of(record), len(hosts) > 1
    able = [host for host in hosts if _fabric(machines.get(host), "active")]
    lame = [host for host in hosts if host not in able and _fabric(machines.get(host))]
    # the majority says; hosts whose ports are down were meant for them as the others are, hosts without any were not
    without = len(hosts) - len(able) - len(lame)
    fabric = len(able) >= len(lame) + without and len(able) > without
    # an Ethernet port with RDMA may not be meant for it, unless somebody says so
    sure = any(said.get(name) for name in ("env.NCCL_IB_HCA", "env.UCX_NET_DEVICES")) or said.get("env.NCCL_NET") == "IB"
    sure = sure or (fabric and all(any(n.kind == "infiniband" for n in _fabric(machines[h], "active")) for h in able))
    why = _listed([f"{host}'s {nic.name} is {nic.state or 'not active'}" for host in lame for nic in _fabric(machines[host])])
    if backend == "gloo":
        named = {place.host: place.interface for place in record.placement if place.interface}
        port = str(said.get("env.GLOO_SOCKET_IFNAME", "")).partition(",")[0]
        return _Way("tcp", named or (dict.fromkeys(hosts, port) if port else {}))
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
            return _Way("tcp") if tcp else _Way("fabric", firm=several and sure, lame=why)
        links = machines[hosts[0]].links if hosts and hosts[0] in machines else []
        if links and all(link.kind == "nvlink" for link in links):
            return _Way("nvlink")
        return _Way("memory")
    if not several:
        return _Way("nvlink", firm=False) if record.device.startswith("cuda") else _Way("memory")
    return _Way("fabric", firm=sure, lame=why) if fabric and not _asked_tcp(said) else _Way("tcp")


def _fabric(machine: Machine | None, state: str = "") -> list[Nic]:
    """The ports with verbs (InfiniBand, RoCE, EFA), all or those in a state."""
    nics = machine.nics if machine else []
    return [nic for nic in nics if nic.kind != "ethernet" and state in ("", nic.state)]


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


def _carries(way: _Way, moved: _Moved) -> bool:
    if port := way.ports.get(moved.host):
        return moved.port.removeprefix("stacked.") == port
    return _medium(moved.port) == way.medium and not moved.port.startswith("stacked.")


class _Seen(NamedTuple):
    """What a host moved over the ports that were meant, of what it must: in the direction with less, and in that with more.

    ``other``: the port that moved it instead, or as well, and how much; empty if none did.
    """

    host: str
    own: list[_Moved]
    least: float
    most: float
    other: str


def _seen(way: _Way, host: str, here: Sequence[_Moved], must: Ends, alone: bool) -> _Seen:
    own = [m for m in here if _carries(way, m) and (alone or m.port != "lo")]
    return _Seen(host, own, *_shares(own, must), _elsewhere([m for m in here if m not in own], must))


def _shares(ports: Iterable[_Moved], must: Ends) -> tuple[float, float]:
    """Of what must be moved, what the ports did together: in the direction with less, and in that with more."""
    ports = list(ports)
    sums = sum(m.tx for m in ports), sum(m.rx for m in ports)
    shares = [there / must for there, must in zip(sums, must, strict=True) if must]
    return min(shares), max(shares)


def _over(way: _Way, moved: Sequence[_Moved], must: Needed) -> Proof:
    """Whether the ports of a way moved what had to move, at every host."""
    here: dict[str, list[_Moved]] = {}
    for m in moved:
        here.setdefault(m.host, []).append(m)
    seen = [_seen(way, host, here.get(host, []), ends, len(must.each) == 1) for host, ends in must.each.items()]
    own = [m for one in seen for m in one.own]
    if not own:
        return Proof("unproven", way.name, "no port of it counts its bytes")
    if silent := [one.host for one in seen if not one.own]:
        return Proof("unproven", way.name, f"{silent[0]} does not count its bytes")
    low, high = _ends(own)
    share = low / must.total.least
    busy = max(own, key=lambda m: m.tx + m.rx).port.removesuffix(".nvlink")
    name = busy if way.medium == "tcp" and not way.ports and high > ELSEWHERE * must.total.least else way.name
    if high == 0 and not any(one.other for one in seen) and way.medium != "tcp":
        return Proof("unproven", name, "its counters stand still, and no other port moved the bytes", share)
    lost = [one for one in seen if one.most < ELSEWHERE]
    if lost or high < ELSEWHERE * must.total.least:
        reason = _told(lost, seen, f"it moved {_percent(share)} of the predicted bytes", way.lame)
        return Proof("contradicted" if way.firm else "unproven", name, reason, share)
    short = [one for one in seen if one.least < LEAST]
    if short or share < LEAST:
        return Proof("unproven", name, _told(short, seen, f"{_percent(share)} of the predicted bytes", way.lame), share)
    if low > MOST[_medium(own[0].port)] * must.total.most:
        return Proof("unproven", name, f"{low / must.total.most:.3g} times the predicted bytes: other traffic", share)
    if way.medium == "fabric" and (also := next((one for one in seen if one.other), None)):
        return Proof("unproven", name, f"{_percent(share)} of the predicted bytes, but on {also.host} {also.other} too", share)
    reason = f"{_percent(share)} of predicted bytes"
    return Proof("proven", name, reason if must.total.most <= must.total.least else f"{reason} at least", share)


def _told(bad: Sequence[_Seen], seen: Sequence[_Seen], all_alike: str, lame: str) -> str:
    """Who moved less than he must, and what did instead; ``all_alike``: what is said where it is everybody, or nobody alone."""
    worst = min(bad or seen, key=lambda one: one.least)
    more = f" ({len(bad) - 1} more like it)" if len(bad) > 1 else ""
    alone = f"{worst.host} moved {_percent(worst.least)} of its bytes{more}"
    return ", ".join(filter(None, (all_alike if len(bad) in (0, len(seen)) else alone, worst.other, lame)))


def _in_memory(name: str, moved: Sequence[_Moved], must: Bytes, uncounted: str) -> Proof:
    """Whether ports moved none of the bytes, and all were counted."""
    counted = [m for m in moved if not m.port.startswith("stacked.")]
    other = _elsewhere(counted, Ends(must.least, must.least), LEAST)
    if other and _ends(counted)[0] <= max(MOST.values()) * must.most:
        return Proof("contradicted", name, f"{other} of the predicted bytes")
    share = _ends(counted)[1] / must.least
    if uncounted or not counted:
        return Proof("unproven", name, f"{uncounted or 'no port'} is not counted")
    if share > SILENT:
        return Proof("unproven", name, f"ports of the host moved {_percent(share)} of the predicted bytes")
    return Proof("proven", name, f"ports of the host moved {_percent(share)} of the predicted bytes")


def _elsewhere(moved: Iterable[_Moved], must: Ends, least: float = ELSEWHERE) -> str:
    """The port of a host, or all its NVLinks together, that moved ``least`` of what must move, or more; empty if none did."""
    named: dict[str, list[_Moved]] = {}
    for m in moved:
        if not m.port.startswith("stacked."):
            named.setdefault("NVLink" if _medium(m.port) == "nvlink" else m.port, []).append(m)
    shares = {name: _shares(those, must)[0] for name, those in named.items()}
    port, most = max(shares.items(), key=lambda item: item[1], default=("", 0.0))
    return f"{port} moved {_percent(most)}" if most >= least else ""


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


def _listed(words: Sequence[str], most: int = 3) -> str:
    return ", ".join([*words[:most], *([f"and {len(words) - most} more"] if len(words) > most else [])])
