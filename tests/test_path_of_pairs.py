"""Proof of path of messages between pairs of ranks, and of what goes one way."""

from __future__ import annotations

import msgspec
import pytest

from clustergauge import path
from clustergauge.model import Counters, Record, Series
from collectives.pairs import steps as plan
from tests.paths import ETH, IB, PAIR, node, record, state


def sweep(ports: dict[str, dict[int, float]], backend: str = "mpi", direction: str = "uni", each: int = 1) -> Record:
    """All ordered pairs of four hosts with so many ranks ``each``; ``ports``: shares of S × passes by host number."""
    ranks, passes = 4 * each, 5
    steps = plan(ranks, direction, "one", 0)
    ends = [pair for step in steps for a, b in step for pair in ([(a, b), (b, a)] if direction == "bi" else [(a, b)])]
    series = {
        name: Series(unit="rank", values=[float(pair[at]) for pair in ends]) for at, name in enumerate(("pair_from", "pair_to"))
    }
    hosts = {f"n{i}": each for i in range(4)}
    moved = {f"n{i}/{port}": share * passes / (passes * len(steps)) for port, of in ports.items() for i, share in of.items()}
    what = record(hosts, moved, "send_recv", backend, runs=passes * len(steps), settings={"steps": len(steps)})
    assert what.measurement
    measured = msgspec.structs.replace(what.measurement, series=series)
    return msgspec.structs.replace(what, probe="pairs", measurement=measured)


@pytest.mark.parametrize(
    ("backend", "direction", "each", "share"), [("mpi", "uni", 1, 3), ("nccl", "bi", 1, 3), ("gloo", "uni", 2, 12)]
)
def test_pairs_have_a_proof_of_their_path(backend: str, direction: str, each: int, share: float) -> None:
    """Every rank sends a message to each that is not on its host."""
    fabric, ethernet = (dict.fromkeys(range(4), share * 1.01), dict.fromkeys(range(4), 0.0))
    machines = [node(f"n{i}", IB, ETH) for i in range(4)]
    if backend == "gloo":
        assert state(sweep({"eth0": fabric}, backend, direction, each), *machines) == "proven"
        return
    good = sweep({"mlx5_0:1": fabric, "eth0": ethernet}, backend, direction, each)
    assert str(path.proof(good, machines)) == "InfiniBand or RoCE, proven (101 % of predicted bytes)"
    fallen = sweep({"mlx5_0:1": ethernet, "eth0": fabric}, backend, direction, each)
    assert str(path.proof(fallen, machines)) == (
        "InfiniBand or RoCE, contradicted (it moved 0.0 % of the predicted bytes, eth0 moved 101 %)"
    )
    one = sweep({"mlx5_0:1": fabric | {2: 0.0}, "eth0": ethernet | {2: share * 1.02}}, backend, direction, each)
    found = path.proof(one, machines)
    assert found
    assert (found.state, found.reason) == ("contradicted", "n2 moved 0.0 % of its bytes, eth0 moved 102 %")


def test_of_pairs_whose_steps_are_not_known_nothing_is_predicted() -> None:
    what = sweep({"eth0": dict.fromkeys(range(4), 3.0)})
    assert state(what) == "proven"
    assert state(msgspec.structs.replace(what, settings={})) == "unproven"
    assert state(msgspec.structs.replace(what, placement=what.placement[:3])) == "unproven"


def one_way(what: Record, sender: str) -> Record:
    """With the bytes from one host to the others, and none back."""
    counters = {
        name: 0 if name.endswith("_bytes") and (name.startswith(f"{sender}/") != (".tx_" in name)) else value
        for name, value in what.counters.path.items()
    }
    return msgspec.structs.replace(what, counters=Counters(path=counters))


def test_what_goes_one_way_is_counted_where_it_leaves_and_where_it_comes() -> None:
    hosts = {"a": 2, "b": 2}
    moved = {f"{host}/{port}": share for host in hosts for port, share in (("mlx5_0:1", 0.0), ("eth0", 1.02))}
    what = one_way(record(hosts, moved, "broadcast", backend="mpi"), "a")
    assert state(what, node("a", ETH), node("b", ETH)) == "proven"
    assert state(what, node("a", IB), node("b", IB)) == "contradicted"


@pytest.mark.parametrize(("mode", "each"), [("unidirectional", 1.0), ("pingpong", 0.5), ("bidirectional", 1.0)])
def test_messages_between_two_ranks_concern_their_hosts_alone(mode: str, each: float) -> None:
    """``each``: what the first and the last host send; the one between them has nothing to do."""
    what = record(dict.fromkeys("abc", 1), {"a/eth0": each, "b/eth0": 0.0, "c/eth0": each}, "send_recv", "mpi", mode=mode)
    found = path.proof(one_way(what, "a") if mode == "unidirectional" else what)
    assert found
    assert (found.state, found.share) == ("proven", 1.0)


def test_of_messages_that_others_count_nothing_is_predicted() -> None:
    assert state(record(PAIR, {"a/eth0": 1.0, "b/eth0": 1.0}, "send_recv", "mpi")) == "unproven"


def test_a_host_that_does_not_count_is_named() -> None:
    found = path.proof(record(PAIR, {"a/eth0": 1.0}, backend="mpi"))
    assert found
    assert (found.state, found.reason) == ("unproven", "b does not count its bytes")
