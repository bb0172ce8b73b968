"""The bytes that a collective must move, of all hosts together and of each."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from clustergauge import path
from clustergauge.collective_bytes import of_each, predicted


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
