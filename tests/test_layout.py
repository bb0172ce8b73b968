"""What each operation sends and must receive: by definition, for a fleet of ranks that only exist on paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from clustergauge import metrics
from clustergauge.model import Workload
from clustergauge.probe import Wrong
from collectives import exact
from collectives.layout import OPERATIONS, ROOT, Block, patterns, write
from tests import made

FLEET = 1024
DTYPES = list(exact.FORMATS)
MOVES = [name for name, operation in OPERATIONS.items() if not operation.sums]
ROOTED = ("reduce", "gather")


def came_from(name: str, rank: int, block: int) -> tuple[int, int]:
    """Where a block that a rank receives was sent: by whom, and as which of its blocks (MPI's definition)."""
    return {
        "all_gather": (block, 0),
        "gather": (block, 0),
        "broadcast": (ROOT, 0),
        "scatter": (ROOT, rank),
        "all_to_all": (block, rank),
    }[name]


@given(
    name=st.sampled_from(MOVES),
    dtype=st.sampled_from(DTYPES),
    ranks=st.sampled_from([2, 3, 8, FLEET]),
    length=st.sampled_from([1, 3, 64, exact.PERIOD + 5]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_what_moves_arrives_where_it_must(name, dtype, ranks, length, data):
    operation = OPERATIONS[name]
    rank = ROOT if name in ROOTED else data.draw(st.integers(0, ranks - 1))
    received = operation.receives(rank, ranks)
    assert len(received) == (ranks if name in ("all_gather", "gather", "all_to_all") else 1)
    block = data.draw(st.integers(0, len(received) - 1))
    sender, index = came_from(name, rank, block)
    sent = operation.sends(sender, ranks)[index]
    assert (received[block].bits(dtype, ranks, length) == sent.bits(dtype, ranks, length)).all()
    assert len(sent.bits(dtype, ranks, length)) == min(length, exact.PERIOD)


def numbers(bits, dtype):
    """The numbers that these bits mean."""
    if dtype == "bf16":
        return (bits.astype(np.int32) << 16).view(np.float32).astype(np.float64)
    return bits.view({"fp64": np.float64, "fp32": np.float32, "fp16": np.float16, "int32": np.int32}[dtype]).astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_a_fleet_are_the_sums_of_what_its_ranks_send(dtype):
    length, own = 50, 700  # the pattern has begun again by then
    whole, scattered = np.zeros(length), np.zeros(length)
    for rank in range(FLEET):
        for name in ("all_reduce", "reduce"):
            assert OPERATIONS[name].sends(rank, FLEET) == (Block("part", rank),)
        whole += numbers(Block("part", rank).bits(dtype, FLEET, length), dtype)
        scattered += numbers(Block("part", rank, own).bits(dtype, FLEET, length), dtype)
    assert OPERATIONS["reduce_scatter"].sends(5, FLEET) == tuple(Block("part", 5, index) for index in range(FLEET))
    for name, receiver, total in (("all_reduce", 3, whole), ("reduce", ROOT, whole), ("reduce_scatter", own, scattered)):
        (expected,) = OPERATIONS[name].receives(receiver, FLEET)
        assert (numbers(expected.bits(dtype, FLEET, length), dtype) == total).all()
        assert np.abs(total).max() <= exact.FORMATS[dtype].limit


@pytest.mark.parametrize("name", OPERATIONS)
def test_only_the_root_has_what_only_the_root_has(name):
    operation = OPERATIONS[name]
    sends, receives = ([len(f(rank, 3)) for rank in range(3)] for f in (operation.sends, operation.receives))
    assert (sends, receives) == {
        "all_reduce": ([1, 1, 1], [1, 1, 1]),
        "all_gather": ([1, 1, 1], [3, 3, 3]),
        "reduce_scatter": ([3, 3, 3], [1, 1, 1]),
        "broadcast": ([1, 0, 0], [1, 1, 1]),
        "reduce": ([1, 1, 1], [1, 0, 0]),
        "all_to_all": ([3, 3, 3], [3, 3, 3]),
        "gather": ([1, 1, 1], [3, 0, 0]),
        "scatter": ([3, 0, 0], [1, 1, 1]),
    }[name]


@pytest.mark.parametrize("name", ["all_gather", "gather", "scatter", "broadcast"])
def test_what_stays_where_it_is_in_place_is_what_is_expected_there(name):
    """The rank's own block is not moved: so it must be the one that belongs there."""
    operation, rank, ranks = OPERATIONS[name], 2 if name == "all_gather" else ROOT, 4
    send_at, receive_at = operation.shared_at(rank, ranks)
    sent = {send_at + n: block for n, block in enumerate(operation.sends(rank, ranks))}
    received = {receive_at + n: block for n, block in enumerate(operation.receives(rank, ranks))}
    shared = sent.keys() & received.keys()
    assert shared
    assert all(sent[at] == received[at] for at in shared)


@given(ranks=st.sampled_from([2, 3, 8, FLEET]), dtype=st.sampled_from(["fp32", "fp64", "int32"]), data=st.data())
@settings(max_examples=50, deadline=None)
def test_no_two_blocks_of_an_exchange_are_alike(ranks, dtype, data):
    operation = OPERATIONS["all_to_all"]
    ends = st.tuples(st.integers(0, ranks - 1), st.integers(0, ranks - 1))
    one, other = data.draw(st.lists(ends, min_size=2, max_size=2, unique=True))
    a, b = (operation.sends(rank, ranks)[to].bits(dtype, ranks, 64) for rank, to in (one, other))
    assert (a != b).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_wrong_bit_of_a_fleet_names_rank_and_element(name, dtype):
    operation, length = OPERATIONS[name], 5
    rank = ROOT if name in ROOTED else FLEET - 1
    blocks = operation.receives(rank, FLEET)
    out = np.empty(len(blocks) * length, exact.FORMATS[dtype].bits)
    write(out, blocks, dtype, FLEET, length, lambda pattern: pattern)
    exact.compare_blocks(out, length, patterns(blocks, dtype, FLEET, length), dtype, rank)
    out[-2] ^= 1
    expected = exact.decode(int(out[-2] ^ 1), dtype)
    with pytest.raises(Wrong) as caught:
        exact.compare_blocks(out, length, patterns(blocks, dtype, FLEET, length), dtype, rank)
    got = exact.decode(int(out[-2]), dtype)
    words = f"element {len(out) - 2} of {len(out)} on rank {rank}: expected {expected!r}, got {got!r} (elements wrong: 1)"
    assert str(caught.value) == words


# S, algbw and busbw of nccl-tests (src/*.cu: …GetCollByteCount, …GetBw), for fp32 in 1 ms.
# Ranks: bytes asked, S, busbw over algbw.
TABLE = {
    "all_reduce": {2: (2**20, 1048576, 1.0), 3: (2**20, 1048576, 4 / 3), 8: (2**20, 1048576, 1.75)},
    "reduce": {2: (2**20, 1048576, 1.0), 3: (2**20, 1048576, 1.0), 8: (2**20, 1048576, 1.0)},
    "broadcast": {2: (2**20, 1048576, 1.0), 3: (2**20, 1048576, 1.0), 8: (2**20, 1048576, 1.0)},
    "all_gather": {2: (2**20, 1048576, 0.5), 3: (2**20, 1048560, 2 / 3), 8: (2**20, 1048576, 0.875)},
    "reduce_scatter": {2: (2**20, 1048576, 0.5), 3: (2**20, 1048560, 2 / 3), 8: (2**20, 1048576, 0.875)},
    "all_to_all": {2: (2**20, 1048576, 0.5), 3: (2**20, 1048560, 2 / 3), 8: (2**20, 1048576, 0.875)},
    "gather": {2: (2**20, 1048576, 0.5), 3: (2**20, 1048560, 2 / 3), 8: (2**20, 1048576, 0.875)},
    "scatter": {2: (2**20, 1048576, 0.5), 3: (2**20, 1048560, 2 / 3), 8: (2**20, 1048576, 0.875)},
}


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("name", OPERATIONS)
def test_message_and_bandwidths_are_those_of_nccl_tests(name, ranks):
    asked, message, factor = TABLE[name][ranks]
    operation = OPERATIONS[name]
    length = operation.length(asked, ranks, "fp32")
    assert operation.message_bytes(length, ranks, "fp32") == message
    held = [len(f(rank, ranks)) * length * 4 for f in (operation.sends, operation.receives) for rank in range(ranks)]
    assert max(held) == message  # S is the largest buffer
    work = Workload(message_bytes=message, collective=name, bound="network")
    found = {m.name: m.value for m in metrics.derive([made.record(work=work, ranks=ranks, samples=[1e-3] * 30)])}
    assert found["algbw"] == pytest.approx(message / 1e-3, rel=1e-12)
    assert found["busbw"] == pytest.approx(message / 1e-3 * factor, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "ranks", "dtype", "length"),
    [(8, 2, "fp32", 1), (8, 3, "fp32", 0), (8, 3, "bf16", 1), (64, 2, "bf16", 16), (100, 3, "fp64", 4), (72, 3, "fp64", 2)],
)
def test_blocks_are_whole_16_bytes_where_they_reach_for_that(size, ranks, dtype, length):
    assert OPERATIONS["all_gather"].length(size, ranks, dtype) == length
