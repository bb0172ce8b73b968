"""The inputs of collectives: exact for any order and number of ranks, and telling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge.probe import Wrong
from collectives import exact

FLOATS = {"fp64": np.float64, "fp32": np.float32, "fp16": np.float16, "bf16": np.float32, "int32": np.int32}
TORCH = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int32": torch.int32,
}


def add(a, b, dtype):
    """a + b rounded to the dtype (bf16: to nearest, ties to even, on fp32)."""
    if dtype != "bf16":
        return a + b
    bits = (a + b).astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def test_rounding_of_the_simulation_is_that_of_torch():
    a, b = np.random.default_rng(1).integers(-300, 300, (2, 10_000)).astype(np.float32)
    a, b = (torch.tensor(x).bfloat16().float().numpy() for x in (a, b))
    assert (add(a, b, "bf16") == (torch.tensor(a).bfloat16() + torch.tensor(b).bfloat16()).float().numpy()).all()


def orders(ranks):
    """Ways to sum: forwards, backwards, shuffled (each one after the other), and pairs of neighbours as in a tree."""
    yield "forwards", list(range(ranks))
    yield "backwards", list(range(ranks))[::-1]
    yield "shuffled", list(np.random.default_rng(ranks).permutation(ranks))
    yield "tree", None


@pytest.mark.parametrize("dtype", exact.FORMATS)
@pytest.mark.parametrize("ranks", [2, 3, 8, 129, 1024])
def test_every_partial_sum_is_exact_in_any_order(dtype, ranks):
    length = 1021 if ranks > 8 else exact.PERIOD
    whole = [exact.contribution(dtype, rank, ranks, length) for rank in range(ranks)]
    inputs = [values.astype(FLOATS[dtype]) for values in whole]
    expected = exact.total(dtype, ranks, length)
    for name, order in orders(ranks):
        if order is None:
            parts, truths = inputs, whole
            while len(parts) > 1:
                odd = slice(len(parts) // 2 * 2, None)
                truths = [a + b for a, b in zip(truths[::2], truths[1::2], strict=False)] + truths[odd]
                parts = [add(a, b, dtype) for a, b in zip(parts[::2], parts[1::2], strict=False)] + parts[odd]
                assert all((p == t).all() for p, t in zip(parts, truths, strict=True)), name
            running = parts[0]
        else:
            running, truth = np.zeros(length, FLOATS[dtype]), np.zeros(length, np.int64)
            for rank in order:
                running, truth = add(running, inputs[rank], dtype), truth + whole[rank]
                assert (running == truth).all(), f"{name}: a partial sum was rounded at rank {rank}"
        assert (exact.encode(expected, dtype) == exact.encode(running.astype(np.int64), dtype)).all()


@pytest.mark.parametrize("dtype", exact.FORMATS)
def test_encoding_is_that_of_torch(dtype):
    values = exact.contribution(dtype, 1, 2, 5000)
    bits = torch.tensor(values).to(TORCH[dtype]).view(getattr(torch, exact.FORMATS[dtype].bits)).numpy()
    assert (exact.encode(values, dtype) == bits).all()
    assert all(exact.decode(int(b), dtype) == v for b, v in zip(bits[:100], values[:100], strict=True))


@given(dtype=st.sampled_from(list(exact.FORMATS)), ranks=st.integers(2, 300), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_missing_doubled_or_shifted_rank_changes_the_sum(dtype, ranks, data):
    length = 2048
    mine, other = data.draw(st.permutations(range(ranks)))[:2]
    a, b = (exact.contribution(dtype, rank, ranks, length) for rank in (mine, other))
    total = exact.total(dtype, ranks, length)
    assert (a != 0).any()  # missing
    assert (a != b).any()  # the other twice in its place
    shift = data.draw(st.integers(1, length - 1))
    assert (total != np.roll(total, shift)).any()


def test_within_128_ranks_a_missing_rank_changes_every_element():
    for dtype in exact.FORMATS:
        for ranks in (2, 8, 128):
            assert all((exact.contribution(dtype, rank, ranks, exact.PERIOD) != 0).all() for rank in range(ranks))


def test_bf16_is_non_zero_on_128_rotating_ranks():
    values = np.array([exact.contribution("bf16", rank, 1024, 64) for rank in range(1024)])
    assert ((values != 0).sum(axis=0) == 128).all()
    assert ((values != 0).sum(axis=1) == 8).all()  # all ranks have their turn


def test_a_message_of_many_parts_is_filled_and_compared_to_its_last_element():
    pattern = exact.encode(exact.contribution("fp32", 1, 8, exact.PERIOD), "fp32")
    out = np.empty(2**24, np.int32)
    exact.fill(out, pattern)
    assert (out == pattern[np.arange(2**24) % exact.PERIOD]).all()
    exact.compare(out, pattern, "fp32", 0)


@pytest.mark.parametrize("length", [exact.PERIOD - 1, exact.PERIOD, 2**22 + 5, 5_000_001])
def test_all_wrong_elements_of_all_parts_are_counted_and_the_first_is_named(length):
    pattern = exact.encode(exact.total("fp32", 8, min(length, exact.PERIOD)), "fp32")
    out = np.empty(length, np.int32)
    exact.fill(out, pattern)
    wrong = sorted({7, length // 3, length - 2, length - 1})
    out[wrong] ^= 1
    with pytest.raises(Wrong, match=rf"element 7 of {length} on rank 1: .* \(elements wrong: {len(wrong)}\)"):
        exact.compare(out, pattern, "fp32", 1)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("length", [1, 4, exact.PERIOD, 3 * exact.PERIOD + 7, 5_000_001])
def test_one_wrong_bit_anywhere_is_named(library, length):
    pattern = exact.encode(exact.total("bf16", 8, min(length, exact.PERIOD)), "bf16")
    out = np.empty(length, np.int16)
    exact.fill(out, pattern)
    shared = (torch.from_numpy(out), torch.from_numpy(pattern)) if library == "torch" else (out, pattern)
    exact.compare(*shared, "bf16", 3)
    for element in {0, length // 2, length - 1}:
        out[element] ^= 1 << 9
        expected, got = exact.decode(int(pattern[element % exact.PERIOD]), "bf16"), exact.decode(int(out[element]), "bf16")
        with pytest.raises(Wrong) as caught:
            exact.compare(*shared, "bf16", 3)
        assert (
            str(caught.value)
            == f"element {element} of {length} on rank 3: expected {expected!r}, got {got!r} (elements wrong: 1)"
        )
        out[element] ^= 1 << 9
