"""How many bytes a collective must move between its ranks, or between the hosts of its ranks.  Pure arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clustergauge.model import Record, Scalar

LL128 = 128 / 120
"""What NCCL's protocol LL128 moves for each byte; LL moves two (4 B of data, 4 B of flag)."""


class Bytes(NamedTuple):
    """The least and the most that algorithms move for one run, all ranks together."""

    least: float
    most: float


class Ends(NamedTuple):
    """The least that one group of ranks sends to the others, and receives from them."""

    tx: float
    rx: float


class Needed(NamedTuple):
    """Bytes that a case must move: in all, and at the least from and to each host that has a part in it."""

    total: Bytes
    each: dict[str, Ends]

    def times(self, runs: float) -> Needed:
        """Of so many runs."""
        return Needed(
            Bytes(*(runs * n for n in self.total)), {host: Ends(tx * runs, rx * runs) for host, (tx, rx) in self.each.items()}
        )


def backend_of(record: Record) -> str:
    """``mpi``, ``gloo`` or ``nccl``; empty where the record does not say."""
    said = record.settings.get("torch_distributed_backend") or record.params.get("backend")
    return said if isinstance(said, str) and said in ("mpi", "gloo", "nccl") else ""


def needed(record: Record) -> Needed | None:
    """What one run of a record's work must move between hosts, or between ranks of one; ``None`` where it is not known."""
    assert record.workload
    collective, size = record.workload.collective, record.workload.message_bytes
    if collective == "send_recv":
        return _of_messages(record, size)
    hosts = Counter(place.host for place in record.placement)
    groups = list(hosts.values()) if len(hosts) > 1 else [1] * record.ranks
    total = predicted(collective, size, groups, backend_of(record), record.settings)
    if total is None:
        return None
    if len(hosts) == 1:  # all of it is its own
        return Needed(total, dict.fromkeys(hosts, Ends(total.least, total.least)))
    return Needed(total, dict(zip(hosts, of_each(collective, size, groups, backend_of(record), record.settings), strict=True)))


def _of_messages(record: Record, size: int) -> Needed | None:
    """Messages between ranks: what goes from host to host, or all of it where one host has all that send and receive."""
    hosts = {place.rank: place.host for place in record.placement}
    messages = _messages(record, size)
    if not messages or any(rank not in hosts for pair in messages for rank in pair):
        return None
    inside = len({hosts[rank] for pair in messages for rank in pair}) == 1
    sent, received = dict.fromkeys(hosts.values(), 0.0), dict.fromkeys(hosts.values(), 0.0)
    for (sender, receiver), count in messages.items():
        a, b = hosts[sender], hosts[receiver]
        if inside or a != b:
            sent[a] += count
            received[b] += count
    total = sum(sent.values())
    return Needed(Bytes(total, total), {h: Ends(sent[h], received[h]) for h in sent if sent[h] or received[h]}) if total else None


def _messages(record: Record, size: int) -> dict[tuple[int, int], float]:
    """Bytes from rank to rank in one run; of a sweep over pairs, one run is one of its steps.  Empty where they are not known."""
    if record.probe == "send_recv":
        first, last = record.placement[0].rank, record.placement[-1].rank  # those between them have nothing to do
        ways = {"pingpong": (0.5, 0.5), "unidirectional": (1, 0), "bidirectional": (1, 1)}.get(str(record.params.get("mode")), ())
        return {pair: part * size for pair, part in zip(((first, last), (last, first)), ways, strict=False) if part}
    steps, series = record.settings.get("steps"), record.measurement.series if record.measurement else {}
    if record.probe != "pairs" or not isinstance(steps, int) or steps < 1 or not {"pair_from", "pair_to"} <= series.keys():
        return {}
    met = Counter(zip(map(int, series["pair_from"].values), map(int, series["pair_to"].values), strict=False))
    return {pair: count * size / steps for pair, count in met.items()}


def predicted(collective: str, size: int, groups: Sequence[int], backend: str, said: Mapping[str, Scalar]) -> Bytes | None:
    """Bytes that one run sends between groups of ranks (the ranks of each host, or each rank alone); ``None`` where unknown.

    ``size``: S of nccl-tests.  Of n ranks in h groups: an all-reduce sends 2(n−1)/n·S out of every group along a ring (all rings
    of NCCL together), 2(h−1)·S along trees, and S from each where switches sum ((1 + 1/n)·S for NVLS: what it reads from the
    switch, and the n-th part that it has the switch write to all).
    An all-gather or a reduce-scatter sends (n−1)/n·S out of every group along a ring and at least (h−1)·S, a broadcast or a
    reduction (h−1)·S at least.  gloo takes rings for the first two, and sends the blocks of a gather or scatter straight: between
    network namespaces its all-reduce, all-gather, all-to-all, gather and scatter were counted within 0.2 % of this.
    ``said``: the record's settings, with ``nccl_algorithm`` and ``nccl_protocol`` where logged;
    where the algorithm is not known the bounds are those of all.
    """
    n, h, outside = sum(groups), len(groups), sum(groups[1:])
    ring = h * (n - 1) / n * size
    algorithm = str(said.get("nccl_algorithm", "")) if backend == "nccl" else "RING" if backend == "gloo" else ""
    match collective:
        case "all_reduce":
            tree = 2 * (h - 1) * size
            bounds = {"RING": Bytes(2 * ring, 2 * ring), "TREE": Bytes(tree, tree)}.get(algorithm)
            if algorithm in ("NVLS", "NVLS_TREE", "COLLNET_DIRECT", "COLLNET_CHAIN"):
                bounds = Bytes(min(h * size, tree), max((h + 1) * size, 2 * ring))
            elif bounds is None:
                bounds = Bytes(min(h * size, tree), 2 * ring + size) if backend == "nccl" else Bytes(tree, 4 * ring)
        case "all_gather" | "reduce_scatter":
            least = (h - 1) * size if algorithm in ("RING", "PAT") or backend != "nccl" else size
            known = algorithm == "RING" and (backend == "nccl" or collective == "all_gather")
            bounds = Bytes(ring, ring) if known else Bytes(least, 4 * ring)
        case "broadcast" | "reduce":
            bounds = Bytes((h - 1) * size, (h - 1) * size if algorithm == "RING" and backend == "nccl" else 2 * ring + size)
        case "all_to_all":
            exact = sum(k * (n - k) for k in groups) / n * size
            bounds = Bytes(exact, exact)
        case "gather" | "scatter":
            bounds = Bytes(outside / n * size, (1 if backend == "gloo" else h) * outside / n * size)
        case _:
            return None
    if backend != "nccl":
        return bounds
    factor = {"SIMPLE": 1.0, "LL128": LL128, "LL": 2.0}.get(str(said.get("nccl_protocol", "")))
    return Bytes(bounds.least * (factor or 1.0), bounds.most * (factor or 2.0))


def of_each(collective: str, size: int, groups: Sequence[int], backend: str, said: Mapping[str, Scalar]) -> list[Ends]:
    """What every group must send and receive in one run, whatever the algorithm; arguments as in `predicted`.

    The root is in the first group.  What a group has must leave it once where others need it, and what it needs must come once;
    along a known ring every group passes on as much as any other.
    """
    n = sum(groups)
    ring = backend == "gloo" or (backend == "nccl" and said.get("nccl_algorithm") == "RING")
    factor = {"LL128": LL128, "LL": 2.0}.get(str(said.get("nccl_protocol", "")), 1.0) if backend == "nccl" else 1.0
    around = (n - 1) / n

    def of(place: int, k: int) -> tuple[float, float]:
        own, others = k / n, (n - k) / n
        match collective:
            case "all_reduce":
                return (2 * around, 2 * around) if ring else (1, 1)
            case "all_gather":
                return (around, around) if ring else (own, others)
            case "reduce_scatter":
                return (around, around) if ring and backend == "nccl" else (others, own)
            case "all_to_all":
                return k * others, k * others
            case "broadcast":
                return (0, 1) if place else (1, 0)
            case "reduce":
                return (1, 0) if place else (0, 1)
            case "gather":
                return (own, 0) if place else (0, others)
            case "scatter":
                return (0, own) if place else (others, 0)
            case _:
                return 0, 0

    return [Ends(*(factor * size * part for part in of(place, k))) for place, k in enumerate(groups)]
