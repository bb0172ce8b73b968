"""The checks of matrix products: what is right passes, and every planted error is caught."""

import hashlib
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge.probe import Wrong
from kernels import products

TYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


pytestmark = pytest.mark.usefixtures("one_thread")


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
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    return (a.to(wide) @ b.to(wide).T).to(a.dtype)


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


@pytest.mark.parametrize(
    ("dtype", "error"), [("fp64", 2**-43), ("fp32", 2**-14), ("tf32", 2**-12), ("fp16", 2**-9), ("bf16", 2**-6)]
)
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
        c.view(BITS[c.itemsize])[41, 17] ^= 1 << bit

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
        other.view(BITS[c.itemsize])[41, 17] ^= flip
        assert products.digest(other) != digest
    assert products.digest(c.flip(0).contiguous()) != digest
    assert products.digest(c.flip(1).contiguous()) != digest


def test_a_digest_is_the_same_everywhere():
    sums = torch.tensor([3, 12, 3, 5, 7])  # rows, then columns, of 0 1 2 / 3 4 5
    known = hashlib.blake2b(sums.numpy().tobytes(), digest_size=16).hexdigest()
    assert products.digest(torch.arange(6, dtype=torch.int32).reshape(2, 3)) == known


# -- fp64: a reference without error


def exactly(a, b):
    """a·bᵀ in rational numbers."""
    left, right = ([[Fraction(x) for x in row] for row in matrix.tolist()] for matrix in (a, b))
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in right] for row in left]


@settings(max_examples=40, deadline=None)
@given(*(st.integers(1, 6),) * 2, st.integers(1, 40), st.integers(0, 1000), st.integers(-300, 300), st.booleans())
def test_the_reference_of_fp64_is_the_exact_product_rounded_once(m, n, k, seed, exponent, cancelling):
    a, b = operands("fp64", m, n, 2 * k, seed)
    a *= 2.0**exponent
    if cancelling:  # the sum is far smaller than its terms
        a[:, k:] = -a[:, :k]
        b[:, k:] = b[:, :k]
        b[:, -1] += 2.0**-40
    got = products.exact_product(a, b).tolist()
    magnitude = exactly(a.abs(), b.abs())
    for i, row in enumerate(exactly(a, b)):
        for j, exact in enumerate(row):
            assert abs(Fraction(got[i][j]) - exact) <= abs(exact) / 2**53 + magnitude[i][j] / 2**60


@given(st.integers(1, 30), st.integers(0, 1000))
def test_slices_sum_to_the_matrix_and_have_few_bits(bits, seed):
    matrix = operands("fp64", 3, 3, 5, seed)[0]
    slices = list(products._slices(matrix, bits))
    exact = [[Fraction(0)] * 5 for _ in range(3)]
    for sliced in slices:
        exact = [[x + Fraction(y) for x, y in zip(*rows, strict=True)] for rows in zip(exact, sliced.tolist(), strict=True)]
    assert exact == [[Fraction(x) for x in row] for row in matrix.tolist()]
    unit = 2.0 ** math.frexp(float(matrix.abs().max()))[1]
    for sliced in slices:
        unit *= 2.0**-bits
        whole = sliced / unit
        assert bool((whole == whole.round()).all())
        assert float(whole.abs().max()) <= 2**bits


def test_rows_of_fp64_are_held_against_that_reference():
    a, b, c, _ = case("fp64")
    precision = products.Precision(0.0, 2.0**-53)
    products.check_rows(a, b, products.exact_product(a, b), precision, list(range(96)))
    with pytest.raises(Wrong, match="row "):
        products.check_rows(a, b, c, precision, list(range(96)))


def test_operands_that_were_overwritten_end_the_slicing_too():
    a, b, c, precision = case("fp64", 8, 8, 8)
    for value in (math.nan, math.inf):
        a[0, 0] = value
        with pytest.raises(Wrong, match="row 0"):
            products.check_rows(a, b, c, precision, [0])


def test_fp64_summed_in_fp32_or_by_terms_of_fp32_is_caught_by_every_check():
    a, b, _, precision = case("fp64")

    def in_single(*_):
        return (a.float() @ b.float().T).double()

    with pytest.raises(Wrong, match="row 0, column"):
        products.check_rows(a, b, in_single(), precision, [0])
    with pytest.raises(Wrong, match=r"row \d+, column"):
        products.check_whole(a, b, in_single(), precision, generator())
    c = torch.empty(96, 80, dtype=torch.float64)
    with pytest.raises(Wrong, match="small integers: row 0"):
        products.check_exact(a, b, c, lambda: c.copy_(in_single()), generator())


@pytest.mark.parametrize("k", [16, 4096, 1 << 17])
def test_the_integers_of_fp64_use_its_bits_and_sums_still_fit(k):
    a, b = torch.empty(4, k, dtype=torch.float64), torch.empty(4, k, dtype=torch.float64)
    c = torch.empty(4, 4, dtype=torch.float64)
    products.check_exact(a, b, c, lambda: c.copy_(product(a, b)), generator())
    assert float(a.abs().max() * b.abs().max()) * k <= 2**53
    assert float(a.abs().max()) > 2**10
    assert bool((c.abs() > 2**24).any())


# -- fp8: quantised operands, scales, and sums that lose bits


def quantised(m=64, n=48, k=256):
    a, b = (torch.empty(rows, k, dtype=torch.float8_e4m3fn) for rows in (m, n))
    scale = products.quantise(a, generator(1)) * products.quantise(b, generator(2))
    return a, b, scale, products.PRECISION["fp8"]


def scaled(a, b, scale):
    return (a.float() @ b.float().T * scale).bfloat16()


def truncated(a, b, scale, step=32, bits=13):
    """As tensor cores of Hopper sum: ``step`` products and the sum aligned to the largest of them, and cut after ``bits``."""
    left, right = a.double() * scale, b.double()
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for start in range(0, a.shape[1], step):
        terms = left[:, None, start : start + step] * right[None, :, start : start + step]
        terms = torch.cat([terms, total[..., None]], dim=2)
        unit = torch.exp2(terms.abs().amax(2, keepdim=True).log2().floor() - bits)
        total = ((terms / unit).trunc() * unit).sum(2)
    return total.bfloat16()


def test_quantised_data_uses_the_range_and_its_scale_is_a_power_of_two():
    values = torch.empty(64, 300, dtype=torch.float8_e4m3fn)
    scale = products.quantise(values, generator())
    assert math.frexp(scale)[0] == 0.5
    assert products.E4M3_MOST / 2 <= float(values.float().abs().max()) <= products.E4M3_MOST
    assert 0.95 < float((values.float() * scale).std()) < 1.05
    given = torch.empty(64, 300).normal_(generator=generator())
    assert bool(((values.float() * scale - given).abs() <= given.abs() / 16 + scale / 512).all())  # no value was cut off


@pytest.mark.parametrize(("m", "n", "k"), [(64, 48, 256), (16, 16, 16), (8, 8, 32768)])
def test_right_fp8_products_pass_every_check(m, n, k):
    a, b, scale, precision = quantised(m, n, k)
    c = scaled(a, b, scale)
    products.check_rows(a, b, c, precision, list(range(m)), scale)
    products.check_whole(a, b, c, precision, generator(), scale)
    products.check_exact(a, b, c, lambda: c.copy_(scaled(a, b, scale)), generator(), scale)


@pytest.mark.parametrize("k", [256, 4096, 32768])
def test_fp8_sums_that_tensor_cores_cut_short_pass_and_shorter_ones_do_not(k):
    a, b, scale, precision = quantised(8, 8, k)
    c = truncated(a, b, scale)
    products.check_rows(a, b, c, precision, list(range(8)), scale)
    products.check_whole(a, b, c, precision, generator(), scale)
    with pytest.raises(Wrong):
        products.check_rows(a, b, truncated(a, b, scale, bits=6), precision, list(range(8)), scale)


def test_small_integers_in_fp8_are_exact_even_where_sums_are_cut_short():
    a, b, scale, _ = quantised(32, 32, 1024)
    c = torch.empty(32, 32, dtype=torch.bfloat16)
    products.check_exact(a, b, c, lambda: c.copy_(truncated(a, b, scale)), generator(), scale)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda a, b, scale: scaled(a, b, 2 * scale), "row"),
        (lambda a, b, scale: scaled(a, b, 1.0), "row"),
        (lambda a, b, scale: scaled(a[:, :-1], b[:, :-1], scale), "small integers"),
        (lambda a, b, scale: scaled(a, b.roll(1, 0), scale), "row"),
        (lambda a, b, scale: scaled(a.roll(1, 0), b, scale), "row"),
        (lambda a, b, scale: torch.zeros(64, 48, dtype=torch.bfloat16), "row"),
    ],
)
def test_planted_errors_of_fp8_are_caught(wrong, reason):
    a, b, scale, precision = quantised()
    c = wrong(a, b, scale)
    if reason == "row":
        with pytest.raises(Wrong, match="row 0, column"):
            products.check_rows(a, b, c, precision, [0], scale)
        with pytest.raises(Wrong, match=r"row \d+"):
            products.check_whole(a, b, c, precision, generator(), scale)
    with pytest.raises(Wrong, match="small integers"):
        products.check_exact(a, b, c, lambda: c.copy_(wrong(a, b, scale)), generator(), scale)
