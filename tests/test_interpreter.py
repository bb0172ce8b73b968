"""What is mended in the Triton interpreter: rounding to bfloat16 and e4m3, bit for bit; and which versions are served."""

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from clustergauge.probe import Skip
from kernels.triton import interpreter

EDGES = [
    0x00000000, 0x80000000,  # zeros
    0x00000001, 0x007FFFFF, 0x00008000, 0x00018000,  # subnormal, ties among them
    0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001,  # one, ties to even down and up, beside a tie
    0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF,  # the largest, and what overflows
    0x7F800000, 0xFF800000,  # infinities
]  # fmt: skip


def floats(bits):
    return np.array(bits, dtype=np.uint32).view(np.float32)


def assert_as_torch(values):
    expected = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    got = interpreter.narrow(values)
    numbers = ~np.isnan(values)
    assert (got[numbers] == expected[numbers]).all()
    assert np.isnan(interpreter.widen(got)[~numbers]).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200))
def test_every_float32_rounds_to_bfloat16_as_torch_rounds(bits):
    assert_as_torch(floats(bits))


def test_edges_round_to_bfloat16_as_torch_rounds():
    assert_as_torch(floats(EDGES))
    assert_as_torch(
        floats([[high << 16 | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)] for high in range(0, 1 << 16, 7)])
    )


def test_every_kind_of_nan_stays_nan():
    nans = floats([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])
    assert np.isnan(interpreter.widen(interpreter.narrow(nans))).all()


def test_every_bfloat16_widens_as_torch_widens_and_survives_the_way_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    wide = interpreter.widen(bits)
    numbers = ~np.isnan(expected)
    assert (wide.view(np.uint32)[numbers] == expected.view(np.uint32)[numbers]).all()
    assert np.isnan(wide[~numbers]).all()
    assert (interpreter.narrow(wide)[numbers] == bits[numbers]).all()


def _e4m3_by_its_definition():
    """The value of each code but NaN: sign, 4 bits of exponent (bias 7), 3 of mantissa (OCP 8-bit floating point, OFP8)."""
    codes = [code for code in range(256) if code & 0x7F != 0x7F]
    exponents, mantissas = [code >> 3 & 15 for code in codes], [code & 7 for code in codes]
    sizes = [(8 * (e > 0) + m) * 2.0 ** (max(e, 1) - 10) for e, m in zip(exponents, mantissas, strict=True)]
    return codes, [-size if code & 0x80 else size for code, size in zip(codes, sizes, strict=True)]


def test_every_e4m3_widens_as_it_is_defined_and_survives_the_way_back():
    codes, values = _e4m3_by_its_definition()
    bits = np.array(codes, dtype=np.uint8)
    assert interpreter.widen_e4m3(bits).tolist() == values
    assert (interpreter.narrow_e4m3(interpreter.widen_e4m3(bits)) == bits).all()
    assert np.isnan(interpreter.widen_e4m3(np.array([0x7F, 0xFF], dtype=np.uint8))).all()
    assert interpreter.narrow_e4m3(np.array([np.nan], dtype=np.float32)) == [0x7F]


@given(st.floats(-1000, 1000, width=32) | st.floats(-(2.0**-6), 2.0**-6, width=32))
def test_every_float32_rounds_to_the_nearest_e4m3_to_even_where_two_are_and_never_beyond_the_largest(value):
    codes, values = _e4m3_by_its_definition()
    got = int(interpreter.narrow_e4m3(np.array([value], dtype=np.float32))[0])
    nearest = min(abs(value - of_code) for of_code in values)
    among = [code for code, of_code in zip(codes, values, strict=True) if abs(value - of_code) == nearest]
    assert got in among
    assert got & 1 == 0 or all(code & 1 for code in among)


def test_the_installed_triton_is_one_that_is_served():
    import triton

    assert ".".join(triton.__version__.split(".")[:2]) in interpreter.SERVED


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "4.0.0", "3.70.1"])
def test_an_unknown_version_is_refused_by_name(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=version))
    with pytest.raises(Skip, match=f"the interpreter of triton {version} is not known here: install a version of 3.7"):
        interpreter.install()


def test_a_process_that_does_not_interpret_is_left_alone(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 must be in the environment before triton is imported"):
        interpreter.install()
