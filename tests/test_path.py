"""Proof of path: planted counters of every kind of link are proven, contradicted or unproven."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from clustergauge import path
from clustergauge.model import Counters, Nic, Place, Record
from tests.paths import EFA, ETH, GLOO, IB, PAIR, RING, ROCE, node, record, state

# -- gloo: the interface it was told


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
