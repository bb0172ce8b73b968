"""The checks of matrix products: what is right passes, and every planted error is caught."""

import hashlib

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge.probe import Wrong
from kernels import products

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def operands(dtype, m, n, k, seed=1):
    a, b = torch.empty(m, k, dtype=TYPES[dtype]), torch.empty(n, k, dtype=TYPES[dtype])
    products.fill(a, dtype, generator(seed))
    products.fill(b, dtype, generator(seed + 1000))
    return a, b


def product(a, b):
    """a·bᵀ, summed in float32 (or exactly), rounded to the output."""
    if a.dtype == torch.int8:
        return (a.double() @ b.double().T).to(torch.int32)
    return (a.float() @ b.float().T).to(a.dtype)


def case(dtype, m=96, n=80, k=256):
    a, b = operands(dtype, m, n, k)
    return a, b, product(a, b), products.PRECISION[dtype]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(TYPES)), *(st.integers(1, 70),) * 3, st.integers(0, 1000))
def test_right_products_pass_every_check(dtype, m, n, k, seed):
    a, b = operands(dtype, m, n, k, seed)
    c, precision = product(a, b), products.PRECISION[dtype]
    products.check_rows(a, b, c, precision, list(range(m)))
    products.check_whole(a, b, c, precision, generator(seed))
    products.check_exact(a, b, c, lambda: c.copy_(product(a, b)), generator(seed))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_long_sum_in_float32_passes(dtype):
    a, b, c, precision = case(dtype, 16, 16, 1 << 16)
    products.check_rows(a, b, c, precision, list(range(16)))
    products.check_whole(a, b, c, precision, generator())


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 2**-14), ("tf32", 2**-12), ("fp16", 2**-9), ("bf16", 2**-6)])
def test_rows_hold_every_element_to_a_few_roundings(dtype, error):
    a, b, c, precision = case(dtype)
    row, column = divmod(int(c.abs().argmax()), 80)
    c[row, column] *= 1 + error
    with pytest.raises(Wrong, match=f"row {row}, column {column}: expected "):
        products.check_rows(a, b, c, precision, [0, row])


def test_rows_hold_integers_to_the_last_digit():
    a, b, c, precision = case("int8")
    c[95, 79] += 1
    with pytest.raises(Wrong, match="row 95, column 79: expected "):
        products.check_rows(a, b, c, precision, [0, 95])


def test_rows_catch_a_sum_that_lost_one_product():
    for dtype in TYPES:
        a, b, _, precision = case(dtype)
        a[:, -1] = 1
        b[:, -1] = 1
        with pytest.raises(Wrong, match="row 0"):
            products.check_rows(a, b, product(a[:, :-1], b[:, :-1]), precision, [0])


def test_rows_catch_sums_kept_in_half_precision():
    for dtype in ("fp16", "bf16"):
        a, b, c, precision = case(dtype, 32, 32, 1024)
        total = torch.zeros_like(c)
        for step in range(0, 1024, 16):
            total += product(a[:, step : step + 16], b[:, step : step + 16])
        with pytest.raises(Wrong):
            products.check_rows(a, b, total, precision, list(range(32)))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_whole_catches_a_wrong_row_that_no_row_check_looked_at(dtype):
    a, b, c, precision = case(dtype)
    c[41] = c[40]
    products.check_rows(a, b, c, precision, [0, 95])
    with pytest.raises(Wrong, match="row 41"):
        products.check_whole(a, b, c, precision, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_whole_catches_a_single_wrong_element_and_names_it(dtype):
    a, b, c, precision = case(dtype)
    c[41, 17] = c[41, 17] + (100 if dtype != "int8" else 1)
    with pytest.raises(Wrong, match=r"row 41(, column 17|: its elements)"):
        products.check_whole(a, b, c, precision, generator())


def test_the_whole_names_the_row_of_an_error_too_even_for_the_element_bound():
    """Many errors, each within what one rounding may be off, all on the same side."""
    precision = products.Precision(2.0**-24, 2.0**-4)
    a, b, c, _ = case("fp32", 4, 4096, 64)
    signs = torch.where(torch.randint(-1, 2, (4096,), generator=generator(7)) > 0, 1.0, -1.0)
    c[2] += signs * 0.06 * c[2].abs()
    with pytest.raises(Wrong, match="row 2: its elements, summed with random signs"):
        products.check_whole(a, b, c, precision, generator(7))


@pytest.mark.parametrize("dtype", TYPES)
def test_swapped_operands_are_caught(dtype):
    a, b, _, precision = case(dtype, 64, 64, 64)
    swapped = product(b, a)
    with pytest.raises(Wrong, match=r"row \d+, column \d+: expected "):
        products.check_rows(a, b, swapped, precision, [0, 1])
    with pytest.raises(Wrong, match=r"row \d+"):
        products.check_whole(a, b, swapped, precision, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_a_tile_that_was_not_written_shows_the_poison(dtype):
    a, b, right, precision = case(dtype)
    for top, left in ((0, 0), (48, 32), (80, 64)):
        c = right.clone()
        products.poison(c)
        written = torch.ones_like(c, dtype=torch.bool)
        written[top : top + 16, left : left + 16] = False
        c[written] = right[written]
        with pytest.raises(Wrong, match=f"row {top}"):
            products.check_whole(a, b, c, precision, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_a_stale_output_is_caught_once_poisoned(dtype):
    a, b, c, precision = case(dtype)
    products.poison(c)
    with pytest.raises(Wrong, match=r"row 0, column (0|16|32|48|64): "):
        products.check_rows(a, b, c, precision, [0])
    with pytest.raises(Wrong):
        products.check_whole(a, b, c, precision, generator())


def test_poison_reaches_every_block_of_every_set():
    c = torch.zeros(3, 40, 70)
    products.poison(c)
    blocks = [c[s, i : i + 16, j : j + 16] for s in range(3) for i in range(0, 40, 16) for j in range(0, 70, 16)]
    assert [int(block.isnan().sum()) for block in blocks] == [1] * (3 * 3 * 5)


# -- the exact pass


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_caught_by_the_exact_pass(dtype, bit):
    a, b, c, _ = case(dtype)

    def run():
        c.copy_(product(a, b))
        bits = c.view(torch.int16 if c.itemsize == 2 else torch.int32)
        bits[41, 17] ^= 1 << bit

    with pytest.raises(Wrong, match=r"small integers: row 41, column 17: .* \(1 of 7680 elements differ\)"):
        products.check_exact(a, b, c, run, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_exact_pass_catches_a_run_that_does_nothing_or_half(dtype):
    a, b, c, _ = case(dtype)
    with pytest.raises(Wrong, match="row 0, column 0"):
        products.check_exact(a, b, c, lambda: None, generator())

    def half():
        c[:48] = product(a, b)[:48]

    with pytest.raises(Wrong, match="row 48"):
        products.check_exact(a, b, c, half, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_exact_pass_catches_a_run_that_kept_its_old_operands(dtype):
    a, b, c, _ = case(dtype)
    old = product(a, b)
    with pytest.raises(Wrong, match="small integers"):
        products.check_exact(a, b, c, lambda: c.copy_(old), generator())


def test_the_exact_pass_does_not_take_its_own_old_result_for_a_new_one():
    a, b, c, _ = case("fp32")
    products.check_exact(a, b, c, lambda: c.copy_(product(a, b)), generator())
    with pytest.raises(Wrong, match=r"row 0, column 0: .*, got nan"):
        products.check_exact(a, b, c, lambda: None, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_small_integers_are_minus_one_zero_and_one_and_keep_sums_small(dtype):
    for k in (16, 4096):
        values = torch.empty(64, k, dtype=TYPES[dtype])
        products.fill_ternary(values, k, generator())
        assert set(values.double().unique().tolist()) == {-1.0, 0.0, 1.0}
        assert float((values.double() @ values[1].double())[2:].abs().max()) <= 256


def test_tf32_operands_have_ten_bits_of_mantissa():
    values = operands("tf32", 64, 64, 64)[0]
    assert int((values.view(torch.int32) & 0x1FFF).count_nonzero()) == 0
    assert int((values.view(torch.int32) & 0x2000).count_nonzero()) > 1000


# -- pieces and digests


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 300), st.integers(1, 1000))
def test_pieces_cover_every_row_once(rows, width, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "PIECE", most)
        pieces = list(products._pieces(rows, width))
    assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))
    assert all((p.stop - p.start) * width <= max(most, width) for p in pieces)


@pytest.mark.parametrize("place", [(0, 0), (41, 17), (95, 79)])
def test_errors_are_found_and_named_in_every_piece(place, monkeypatch):
    monkeypatch.setattr(products, "PIECE", 1000)
    a, b, c, precision = case("fp32")
    products.check_rows(a, b, c, precision, list(range(96)))
    products.check_whole(a, b, c, precision, generator())
    c[place] += 1
    match = f"row {place[0]}, column {place[1]}: "
    with pytest.raises(Wrong, match=match):
        products.check_rows(a, b, c, precision, list(range(96)))
    with pytest.raises(Wrong, match=match):
        products.check_whole(a, b, c, precision, generator())


@pytest.mark.parametrize("dtype", TYPES)
def test_digests_tell_outputs_apart_by_one_bit_and_by_order(dtype):
    c = case(dtype)[2]
    digest = products.digest(c)
    assert products.digest(c.clone()) == digest
    assert len(digest) == 32
    for flip in (1, 1 << 14):
        other = c.clone()
        other.view(torch.int16 if c.itemsize == 2 else torch.int32)[41, 17] ^= flip
        assert products.digest(other) != digest
    assert products.digest(c.flip(0).contiguous()) != digest
    assert products.digest(c.flip(1).contiguous()) != digest


def test_a_digest_is_the_same_everywhere():
    sums = torch.tensor([3, 12, 3, 5, 7])  # rows, then columns, of 0 1 2 / 3 4 5
    known = hashlib.blake2b(sums.numpy().tobytes(), digest_size=16).hexdigest()
    assert products.digest(torch.arange(6, dtype=torch.int32).reshape(2, 3)) == known
