"""Proof of path: planted counters of every kind of link are proven, contradicted or unproven; gloo over lo is proven for real."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import accept, exits, inventory, path, run as running
from clustergauge.collective_bytes import of_each, predicted
from clustergauge.messages import Facts, Outcome
from clustergauge.model import Counters, Finding, Link, Machine, Measurement, Nic, Place, Planned, Record, Series, Workload
from clustergauge.supervise import CaseResult, Patience, Supervisor
from collectives.pairs import steps as plan
from reports import terminal
from tests import made
from tests.made_up import loaded

SIZE = 1 << 26
RUNS = 100
IB = Nic(name="mlx5_0", kind="infiniband", state="active")
ROCE = Nic(name="mlx5_0", kind="roce", state="active")
EFA = Nic(name="rdmap0s31", kind="other", state="active")
ETH = Nic(name="eth0", kind="ethernet", state="up")


def record(
    hosts: dict[str, int],
    moved: dict[str, float],
    collective: str = "all_reduce",
    backend: str = "nccl",
    runs: int = RUNS,
    size: int = SIZE,
    device: str = "cpu:0",
    settings: dict[str, Any] | None = None,
    **params: Any,
) -> Record:
    """A record of ranks on hosts (name → number).  ``moved``: port → bytes sent and received, in units of S × runs."""
    places = [Place(rank=rank, host=host) for rank, host in enumerate(h for h, n in hosts.items() for _ in range(n))]
    counters = {f"{port}.{way}_bytes": round(share * size * runs) for port, share in moved.items() for way in ("tx", "rx")}
    return made.record(
        collective,
        [1e-3] * 30,
        Workload(message_bytes=size, collective=collective, bound="network"),
        ranks=len(places),
        placement=places,
        device=device,
        settings=settings or {},
        counters=Counters(path=counters | ({"runs": runs} if runs else {})),
        size=size,
        **params,
        **({"backend": backend} if backend else {}),
    )


def node(host: str, *nics: Nic, gpus: int = 0, nvlink: bool = False) -> Machine:
    links = [Link(a=0, b=b, kind="nvlink" if nvlink else "pcie") for b in range(1, gpus)]
    return made.machine(gpus=gpus, host=host, machine_id=host, nics=list(nics), links=links)


def state(record: Record, *machines: Machine) -> str:
    found = path.proof(record, machines)
    assert found
    return found.state


# -- what must move


@pytest.mark.parametrize(
    ("collective", "groups", "algorithm", "least", "most"),
    [
        ("all_reduce", [1, 1], "RING", 2, 2),
        ("all_reduce", [1] * 8, "RING", 14, 14),  # 2(n−1)/n·S for each of n
        ("all_reduce", [1] * 8, "TREE", 14, 14),
        ("all_reduce", [8, 8], "RING", 3.75, 3.75),  # 2(n−1)/n·S out of each host
        ("all_reduce", [8, 8], "TREE", 2, 2),
        ("all_reduce", [1] * 8, "NVLS", 8, 14),
        ("all_reduce", [1] * 8, "", 8, 15),
        ("all_gather", [1] * 4, "RING", 3, 3),
        ("reduce_scatter", [2, 2], "RING", 1.5, 1.5),
        ("reduce_scatter", [2, 2], "PAT", 1, 6),
        ("broadcast", [1] * 4, "RING", 3, 3),
        ("all_to_all", [1] * 4, "", 3, 3),
        ("all_to_all", [2, 2], "", 2, 2),
        ("gather", [1] * 4, "", 0.75, 3),
    ],
)
def test_the_bytes_of_a_collective_follow_from_its_algorithm(
    collective: str, groups: list[int], algorithm: str, least: float, most: float
) -> None:
    said = {"nccl_algorithm": algorithm, "nccl_protocol": "SIMPLE"}
    found = predicted(collective, 1000, groups, "nccl", said)
    assert found == pytest.approx((1000 * least, 1000 * most))


@pytest.mark.parametrize(
    ("collective", "groups", "counted"),
    [
        ("all_reduce", [1] * 3, 4.007),
        ("all_gather", [1] * 3, 2.004),
        ("reduce_scatter", [1] * 3, 4.007),
        ("broadcast", [1] * 3, 2.002),
        ("reduce", [1] * 3, 2.671),
        ("all_to_all", [1] * 3, 2.003),
        ("gather", [1] * 3, 0.668),
        ("all_reduce", [2, 2], 3.006),
        ("all_gather", [2, 2], 1.503),
        ("reduce_scatter", [2, 2], 3.006),
        ("broadcast", [2, 2], 2.004),
        ("reduce", [2, 2], 2.004),
        ("all_to_all", [2, 2], 2.003),
        ("scatter", [2, 2], 0.501),
    ],
)
def test_what_gloo_moved_between_network_namespaces_lies_within_the_bounds(
    collective: str, groups: list[int], counted: float
) -> None:
    """Counted once, in units of S: torch 2.13, ranks of each group in a namespace of their own, at the ends of virtual wires."""
    found = predicted(collective, 1, groups, "gloo", {})
    assert found
    assert path.LEAST * found.least <= counted <= path.MOST["tcp"] * found.most


def test_protocols_move_flags_too_and_an_unknown_one_widens_the_bounds() -> None:
    def of(protocol: str) -> tuple[float, float] | None:
        return predicted("all_reduce", 1200, [1, 1], "nccl", {"nccl_algorithm": "RING", "nccl_protocol": protocol})

    assert [of("SIMPLE"), of("LL128"), of("LL"), of("")] == [(2400, 2400), (2560, 2560), (4800, 4800), (2400, 4800)]


def test_of_an_unknown_operation_nothing_is_predicted() -> None:
    assert predicted("barrier", 1000, [1, 1], "nccl", {}) is None


@given(
    st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "all_to_all", "gather"]),
    st.lists(st.integers(1, 16), min_size=2, max_size=20),
    st.sampled_from(["mpi", "gloo", "nccl"]),
    st.sampled_from(["", "RING", "TREE", "NVLS", "COLLNET_CHAIN", "PAT"]),
)
def test_bounds_are_positive_and_in_order(collective: str, groups: list[int], backend: str, algorithm: str) -> None:
    found = predicted(collective, 1 << 20, groups, backend, {"nccl_algorithm": algorithm})
    assert found
    assert 0 < found.least <= found.most


# -- gloo: the interface it was told


GLOO = {"torch_distributed_backend": "gloo", "env.GLOO_SOCKET_IFNAME": "lo"}


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (2.0, "proven"),
        (2 * 0.971, "proven"),
        (2 * 1.06, "proven"),
        (2 * 0.96, "unproven"),
        (2 * 0.6, "unproven"),
        (2 * 0.4, "contradicted"),
        (2 * 1.2, "unproven"),
    ],
)
def test_gloo_is_held_against_the_interface_it_was_told(moved: float, expected: str) -> None:
    assert state(record({"h": 2}, {"h/lo": moved}, backend="gloo", settings=GLOO)) == expected


def test_the_words_name_interface_and_share() -> None:
    assert str(path.proof(record({"h": 2}, {"h/lo": 2.04}, backend="gloo", settings=GLOO))) == (
        "lo, proven (102 % of predicted bytes)"
    )
    wrong = record({"h": 2}, {"h/lo": 2, "h/eth0": 0.004}, backend="gloo", settings=GLOO | {"env.GLOO_SOCKET_IFNAME": "eth0"})
    assert str(path.proof(wrong)) == "eth0, contradicted (it moved 0.2 % of the predicted bytes, lo moved 100 %)"


def test_a_bond_carries_what_it_is_told_and_counts_once_where_nothing_is() -> None:
    moved = {"h/lo": 0.0, "h/eth0": 1.0, "h/eth1": 1.0, "h/stacked.bond0": 2.0}
    assert state(record({"h": 2}, moved, backend="gloo", settings=GLOO | {"env.GLOO_SOCKET_IFNAME": "bond0"})) == "proven"
    assert state(record({"h": 2}, moved, backend="gloo", settings={"torch_distributed_backend": "gloo"})) == "proven"


@pytest.mark.parametrize("runs", [0, -3])
def test_without_the_number_of_runs_nothing_is_proven(runs: int) -> None:
    what = record({"h": 2}, {"h/lo": 2.0}, backend="gloo", settings=GLOO)
    counters = {k: v for k, v in what.counters.path.items() if k != "runs"} | ({"runs": runs} if runs else {})
    assert state(made_with(what, counters)) == "unproven"


def made_with(what: Record, counters: dict[str, Any]) -> Record:
    return msgspec.structs.replace(what, counters=Counters(path=counters))


def test_small_messages_lone_ranks_failed_cases_and_records_without_counters_are_not_asked() -> None:
    what = record({"h": 2}, {"h/lo": 2.0}, backend="gloo", settings=GLOO)
    assert path.proof(what)
    assert path.proof(record({"h": 2}, {"h/lo": 2.0}, size=path.LEAST_BYTES - 1)) is None
    for more in ({"ranks": 1}, {"status": "wrong"}, {"counters": Counters()}, {"workload": None}):
        assert path.proof(msgspec.structs.replace(what, **more)) is None


# -- hosts joined by a network


PAIR = {"a": 1, "b": 1}


def both(shares: dict[str, float]) -> dict[str, float]:
    return {f"{host}/{port}": share for host in PAIR for port, share in shares.items()}


@pytest.mark.parametrize(
    ("nic", "moved", "expected"),
    [
        (IB, {"mlx5_0:1": 1.01, "eth0": 0.0}, "proven"),
        (IB, {"mlx5_0:1": 0.001, "eth0": 1.03}, "contradicted"),  # TCP instead of InfiniBand
        (IB, {"mlx5_0:1": 1.01, "ib0": 1.0}, "unproven"),  # TCP over InfiniBand
        (IB, {"mlx5_0:1": 0.0, "eth0": 0.0}, "unproven"),  # counters that stand still
        (IB, {"eth0": 0.0}, "unproven"),  # no counters
        (IB, {"mlx5_0:1": 1.5, "eth0": 0.0}, "unproven"),  # other traffic
        (EFA, {"rdmap0s31:1": 1.0, "eth0": 0.0}, "proven"),
        (EFA, {"rdmap0s31:1": 0.0, "eth0": 1.0}, "unproven"),
        (ROCE, {"mlx5_0:1": 1.0, "eth0": 0.0}, "proven"),
        (ROCE, {"mlx5_0:1": 0.0, "eth0": 1.0}, "unproven"),  # RDMA over Ethernet is there, nobody said that it is used
        (ETH, {"eth0": 1.05, "lo": 0.0}, "proven"),
        (ETH, {"eth0": 0.1, "lo": 5.0}, "contradicted"),
    ],
)
def test_nccl_between_hosts_takes_the_best_network_there_is(nic: Nic, moved: dict[str, float], expected: str) -> None:
    what = record(PAIR, both(moved), settings={"nccl_algorithm": "RING", "nccl_protocol": "SIMPLE"})
    assert state(what, node("a", nic, ETH), node("b", nic, ETH)) == expected


def test_roce_that_the_user_named_must_be_used() -> None:
    said = {"nccl_algorithm": "RING", "nccl_protocol": "SIMPLE", "env.NCCL_IB_HCA": "mlx5"}
    what = record(PAIR, both({"mlx5_0:1": 0.0, "eth0": 1.0}), settings=said)
    assert state(what, node("a", ROCE), node("b", ROCE)) == "contradicted"


@pytest.mark.parametrize("said", [{"env.NCCL_IB_DISABLE": "1"}, {"env.NCCL_NET": "Socket"}])
def test_tcp_that_the_user_asked_nccl_for_is_no_contradiction(said: dict[str, str]) -> None:
    what = record(
        PAIR, both({"mlx5_0:1": 0.0, "eth0": 1.03}), settings={"nccl_algorithm": "RING", "nccl_protocol": "SIMPLE"} | said
    )
    assert state(what, node("a", IB), node("b", IB)) == "proven"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "contradicted"),
        ({"env.UCX_TLS": "rc,sm"}, "contradicted"),
        ({"env.UCX_TLS": "tcp,sm"}, "proven"),
        ({"env.OMPI_MCA_btl": "tcp,self"}, "proven"),
    ],
)
def test_mpi_over_tcp_beside_infiniband_is_contradicted_unless_asked_for(said: dict[str, str], expected: str) -> None:
    what = record(PAIR, both({"mlx5_0:1": 0.0001, "eth0": 1.03}), backend="mpi", settings=said)
    assert state(what, node("a", IB), node("b", IB)) == expected


def test_a_host_that_moved_nothing_is_named() -> None:
    moved = {"a/eth0": 1.4, "b/eth0": 1.4, "c/eth0": 1.4, "d/eth0": 0.001}
    found = path.proof(record(dict.fromkeys("abcd", 1), moved, backend="mpi"))
    assert found
    assert (found.state, found.reason) == ("contradicted", "d moved 0.1 % of its bytes")


# -- one host among many


EIGHT = dict.fromkeys((f"n{i}" for i in range(8)), 1)
"""A ring of eight moves 1.75·S out of each."""
DOWN = msgspec.structs.replace(IB, state="down")


def eight(fabric: float, ethernet: float, backend: str, n7: tuple[float, float] | None = None) -> Record:
    """What every host moves over InfiniBand and over Ethernet, and n7 if it differs."""
    shares = dict.fromkeys(EIGHT, (fabric, ethernet)) | ({"n7": n7} if n7 else {})
    moved = {f"{host}/{port}": share for host, of in shares.items() for port, share in zip(("mlx5_0:1", "eth0"), of, strict=True)}
    return record(EIGHT, moved, backend=backend, settings=RING if backend == "nccl" else {})


@pytest.mark.parametrize("backend", ["nccl", "mpi"])
def test_one_port_that_is_down_does_not_make_tcp_what_was_meant(backend: str) -> None:
    found = path.proof(eight(0.0, 1.76, backend), [node(h, DOWN if h == "n7" else IB, ETH) for h in EIGHT])
    assert found
    assert (found.state, found.path) == ("contradicted", "InfiniBand or RoCE")
    assert found.reason.startswith("it moved 0.0 % of the predicted bytes, eth0 moved 1")
    assert found.reason.endswith("n7's mlx5_0 is down")


def test_hosts_most_of_which_have_no_fabric_were_meant_for_tcp() -> None:
    few = [node(h, IB if h in ("n0", "n1", "n2") else DOWN if h == "n3" else ETH, ETH) for h in EIGHT]
    assert state(eight(0.0, 1.76, "mpi"), *few) == "proven"
    half = [node("a", IB, ETH), node("b", ETH)]
    assert state(record(PAIR, both({"mlx5_0:1": 0.0, "eth0": 1.02}), backend="mpi"), *half) == "proven"
    half[1] = node("b", DOWN, ETH)
    assert state(record(PAIR, both({"mlx5_0:1": 0.0, "eth0": 1.02}), backend="mpi"), *half) == "contradicted"


@pytest.mark.parametrize(("backend", "shares"), [("nccl", (17, 83)), ("mpi", (30, 145))])
def test_a_host_that_goes_another_way_is_named_with_its_interface(backend: str, shares: tuple[int, int]) -> None:
    """MPI does not say its algorithm, so what a host must move is S at the least."""
    what = eight(1.75, 0.01, backend, n7=(0.30, 1.45))
    found = path.proof(what, [node(h, IB, ETH) for h in EIGHT])
    assert found
    assert found.state == "contradicted"
    assert found.reason == f"n7 moved {shares[0]} % of its bytes, eth0 moved {shares[1]} %"


def test_hosts_that_go_another_way_are_counted() -> None:
    hosts = dict.fromkeys((f"n{i}" for i in range(64)), 1)
    moved = {
        f"{h}/{port}": share for h in hosts for port, share in (("mlx5_0:1", 0.2 if h in ("n8", "n9") else 1.97), ("eth0", 0))
    }
    found = path.proof(record(hosts, moved, settings=RING), [node(h, IB, ETH) for h in hosts])
    assert found
    assert (found.state, found.reason) == ("contradicted", "n8 moved 10 % of its bytes (1 more like it)")


def test_a_host_that_is_short_of_its_bytes_leaves_all_unproven_though_it_is_little_of_the_sum() -> None:
    hosts = dict.fromkeys((f"n{i}" for i in range(64)), 1)
    moved = {f"{h}/{port}": share for h in hosts for port, share in (("mlx5_0:1", 1.2 if h == "n9" else 1.99), ("eth0", 0.0))}
    found = path.proof(record(hosts, moved | {"n9/eth0": 0.77}, settings=RING), [node(h, IB, ETH) for h in hosts])
    assert found
    assert (found.state, found.reason) == ("unproven", "n9 moved 61 % of its bytes")
    assert found.share
    assert found.share > path.LEAST


def test_gloo_is_held_against_the_interface_of_each_host() -> None:
    names = {"a": "eth0", "b": "ens3", "c": "ens3"}
    places = [Place(rank=rank, host=host, interface=name) for rank, (host, name) in enumerate(names.items())]
    what = record(dict.fromkeys(names, 1), {f"{h}/{name}": 4 / 3 for h, name in names.items()}, backend="gloo")
    what = msgspec.structs.replace(what, placement=places, settings=GLOO | {"env.GLOO_SOCKET_IFNAME": "eth0"})
    assert str(path.proof(what)) == "eth0, ens3, proven (100 % of predicted bytes)"


@pytest.mark.parametrize("groups", [[1, 1], [1] * 5, [2, 3, 1], [8, 8]])
@pytest.mark.parametrize(
    "collective", ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "all_to_all", "gather", "scatter"]
)
@pytest.mark.parametrize("backend", ["mpi", "gloo", "nccl"])
@pytest.mark.parametrize("algorithm", ["", "RING", "NVLS"])
def test_what_each_must_move_is_no_more_than_what_all_must(
    collective: str, groups: list[int], backend: str, algorithm: str
) -> None:
    said = {"nccl_algorithm": algorithm, "nccl_protocol": "LL128"}
    total = predicted(collective, 1 << 20, groups, backend, said)
    each = of_each(collective, 1 << 20, groups, backend, said)
    assert total
    assert len(each) == len(groups)
    assert all(min(ends) >= 0 and max(ends) > 0 for ends in each)
    assert min(sum(tx for tx, _ in each), sum(rx for _, rx in each)) <= total.least * 1.000001


# -- sweeps over pairs


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


# -- inside a host


MEMORY = {"h/lo": 0.001, "h/eth0": 0.0}


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (MEMORY, "proven"),
        (MEMORY | {"h/lo": 2.0}, "contradicted"),  # TCP over the loop instead of shared memory
        (MEMORY | {"h/eth0": 0.5}, "unproven"),  # something else
        (MEMORY | {"h/eth0": 90.0}, "unproven"),
        ({"h/eth0": 0.0}, "unproven"),  # the loop was not counted
    ],
)
def test_ranks_that_share_memory_move_nothing_over_ports(moved: dict[str, float], expected: str) -> None:
    assert state(record({"h": 2}, moved, backend="mpi"), node("h", ETH)) == expected


def test_a_port_that_is_not_counted_leaves_memory_unproven() -> None:
    what = record({"h": 2}, MEMORY, backend="mpi")
    assert state(what, node("h", IB)) == "unproven"
    assert state(record({"h": 2}, MEMORY | {"h/mlx5_0:1": 0.0}, backend="mpi"), node("h", IB)) == "proven"


RING = {"nccl_algorithm": "RING", "nccl_protocol": "SIMPLE", "torch_distributed_backend": "nccl"}


def gpus(shares: dict[str, float], nvlink: float, params: str = "default", said: dict[str, str] | None = None) -> Record:
    moved = {f"h/{port}": share for port, share in shares.items()}
    moved |= {f"h/gpu{n}.nvlink": nvlink for n in range(4)}
    own = {"collective": "all_reduce", "backend": "", "path": params}  # as `nccl_path` has them: no backend among its parameters
    return record({"h": 4}, moved, device="cuda:all", settings=RING | (said or {}), **own)


@pytest.mark.parametrize(
    ("of", "each", "others", "expected"),
    [
        ("default", 1.5, 0.0, "proven"),
        ("nvlink", 1.46, 0.0, "proven"),
        ("default", 1.5 * 1.2, 0.0, "proven"),
        ("default", 0.01, 0.0, "contradicted"),  # shared memory instead of NVLink
        ("default", 0.0, 6.0, "contradicted"),  # the network instead
        ("default", 0.0, 0.0, "unproven"),  # counters that stand still
        ("p2p_off", 0.001, 0.0, "proven"),
        ("p2p_off", 1.5, 0.0, "contradicted"),
        ("net", 0.0, 6.0, "proven"),
        ("net", 1.5, 0.0, "contradicted"),
    ],
)
def test_every_forced_path_of_nccl_is_held_against_its_links(of: str, each: float, others: float, expected: str) -> None:
    assert state(gpus({"lo": others, "eth0": 0.0}, each, of), node("h", ETH, gpus=4, nvlink=True)) == expected


def test_an_adapter_that_does_not_count_its_own_circle_proves_nothing() -> None:
    machine = node("h", IB, gpus=4, nvlink=True)
    assert state(gpus({"lo": 0.0, "mlx5_0:1": 0.01}, 0.0, "net"), machine) == "unproven"
    assert state(gpus({"lo": 0.0, "mlx5_0:1": 6.0}, 0.0, "net"), machine) == "proven"


def test_nvlink_with_an_unknown_algorithm_is_proven_for_what_any_must_move() -> None:
    what = gpus({"lo": 0.0}, 1.25, said={"nccl_algorithm": "", "nccl_protocol": ""})
    found = path.proof(what, [node("h", gpus=4, nvlink=True)])
    assert str(found) == "NVLink, proven (125 % of predicted bytes at least)"


def test_nvlink_across_hosts_is_known_by_its_name_in_the_log() -> None:
    moved = {f"{host}/{port}": share for host in PAIR for port, share in (("gpu0.nvlink", 1.0), ("mlx5_0:1", 0.001))}
    what = record(PAIR, moved, settings=RING | {"nccl_transports": "P2P/MNNVL ×4"})
    assert state(what, node("a", IB), node("b", IB)) == "proven"


# -- verdict and report


def test_a_contradicted_path_makes_the_number_invalid_and_the_run_broken() -> None:
    what = record({"h": 2}, {"h/lo": 2.0}, backend="mpi")
    (verdict,) = accept.judge([what], standards=accept.Standards(machines=[node("h", ETH)]))
    assert (verdict.verdict, verdict.reason) == (
        "invalid",
        "another path: meant for memory of the host, but lo moved 100 % of the predicted bytes",
    )
    assert exits.exit_code([what], [verdict]) == exits.BROKEN


def test_one_launch_of_several_on_another_path_is_enough() -> None:
    launches = [record({"h": 2}, {"h/lo": share}, backend="gloo", settings=GLOO) for share in (2.0, 0.1)]
    assert [v.verdict for v in accept.judge(launches)] == ["invalid"]


def test_the_report_says_under_a_case_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    what = record({"node-017": 2}, {"node-017/lo": 2.0}, backend="gloo", settings=GLOO)
    page = terminal.page_of(loaded(what), accept.judge([what]), 120)
    assert "  path: lo, proven (100 % of predicted bytes)" in text_of(page)


def test_the_report_has_a_row_for_a_link_that_trained_down() -> None:
    finding = Finding(name="link/mlx5_3:1", state="warning", detail="mlx5_3:1 trained down", remedy="replace it", fails=True)
    machine = made.machine(findings=[finding])
    page = terminal.page_of(loaded(machines=(machine,)), inventory.trained_down([machine]), 120)
    lines = text_of(page)
    assert any(line.startswith("link/mlx5_3:1") and line.endswith("FAIL") for line in lines), lines
    assert "  mlx5_3:1 trained down; replace it" in lines


def text_of(page: Any) -> list[str]:
    return [line.plain for line in page.lines]


# -- what a record keeps of it


def kept(size: int, ranks: int = 2) -> dict[str, Any]:
    planned = made.planned(record({"h": ranks}, {}))
    work = Workload(message_bytes=size, collective="all_reduce")
    outcome = Outcome("ok", workload=work, measurement=Measurement(clock="wall", cache="none"), runs=7)
    result = CaseResult(outcome, Facts({}, {}, {"h/lo.tx_bytes": 5}), [])
    return running._path(planned, result)  # pyright: ignore[reportPrivateUsage]


def test_counters_are_kept_for_large_cases_of_several_ranks() -> None:
    assert kept(path.LEAST_BYTES) == {"h/lo.tx_bytes": 5, "runs": 7}
    assert kept(path.LEAST_BYTES - 1) == {}
    assert kept(path.LEAST_BYTES, ranks=1) == {}


# -- for real


@pytest.fixture(scope="module")
def measured() -> Any:
    """A real all-reduce of 4 MiB by two gloo ranks over the loop of this machine, as its record."""
    supervisor = Supervisor(patience=Patience(start_s=120))
    machine = supervisor.start()
    planned = Planned(
        case="all_reduce/backend=gloo/dtype=fp32/size=4MiB",
        probe="all_reduce",
        module="collectives.operations",
        params={"backend": "gloo", "dtype": "fp32", "size": 1 << 22},
        device="cpu:0",
        ranks=2,
        world="torch",
        budget_s=0.3,
    )
    try:
        result = supervisor.run(planned, 1, 1 << 20)
    finally:
        supervisor.close()
    assert result.outcome.status == "ok", result.outcome
    return running._record(made.run([]), machine, planned, made.STARTED, result), machine  # pyright: ignore[reportPrivateUsage]


def test_gloo_over_the_loop_of_this_machine_is_proven(measured: tuple[Record, Machine]) -> None:
    """Counters, no timing.  Others may use the loop at the same time: more than predicted is said to be other traffic."""
    what, machine = measured
    found = path.proof(what, [machine])
    assert found
    assert found.path == "lo"
    assert found.share is not None
    assert found.share >= path.LEAST
    if "other traffic" in found.reason:
        pytest.skip(f"others use the loop of this machine: {found}")
    assert found.state == "proven"


def test_the_same_bytes_contradict_another_interface(measured: tuple[Record, Machine]) -> None:
    what, machine = measured
    others = sorted(
        {k.partition("/")[2].removesuffix(".tx_bytes") for k in what.counters.path if k.endswith(".tx_bytes")} - {"lo"}
    )
    if not others:
        pytest.skip("this machine has no interface but its loop")
    for name in others:
        told = msgspec.structs.replace(
            what, placement=[msgspec.structs.replace(place, interface=name) for place in what.placement]
        )
        assert state(told, machine) == "contradicted"
