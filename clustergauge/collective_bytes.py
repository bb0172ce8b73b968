"""How many bytes a collective must move between its ranks, or between the hosts of its ranks.  Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clustergauge.model import Scalar

LL128 = 128 / 120
"""What NCCL's protocol LL128 moves for each byte; LL moves two (4 B of data, 4 B of flag)."""


class Bytes(NamedTuple):
    """The least and the most that algorithms move for one run, all ranks together."""

    least: float
    most: float


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
