"""The rules of the code gate: what a target has no room for, and what a kernel must have."""

from __future__ import annotations

import msgspec
import pytest

from kernels.gate import rules
from kernels.gate.compile import compile_entry
from kernels.gate.entry import Entry, Expects, Pointer
from kernels.gate.targets import TARGETS, tensor_instruction
from tests.gate_entries import SOUND, descriptor_kernel, double


def _problems(target, expects=None, **changes):
    entry = double("", expects=expects or Expects())
    return rules.problems(entry, TARGETS[target], msgspec.structs.replace(SOUND, **changes))


@pytest.mark.parametrize(
    ("target", "most"),
    [
        ("sm80", 166912),
        ("sm89", 101376),
        ("sm90", 232448),
        ("sm100", 232448),
        ("sm120", 101376),
        ("gfx942", 65536),
        ("gfx950", 163840),
    ],
)
def test_shared_memory_up_to_the_limit_is_allowed(target, most):
    assert _problems(target, shared_bytes=most) == []
    assert _problems(target, shared_bytes=most + 1) == [f"{most + 1} bytes of shared memory, {target} has {most}"]


def test_tensor_memory_has_512_columns_and_only_on_sm100():
    assert _problems("sm100", tmem_columns=512) == []
    assert _problems("sm100", tmem_columns=513) == ["513 columns of tensor memory, sm100 has 512"]
    assert _problems("sm90", tmem_columns=1) == ["1 columns of tensor memory, sm90 has 0"]


@pytest.mark.parametrize(
    ("target", "warps", "registers", "fits"),
    [
        ("sm90", 8, 255, True),
        ("sm90", 16, 128, True),
        ("sm90", 16, 129, False),
        ("sm90", 12, 168, True),
        ("sm90", 12, 169, False),
        ("gfx942", 8, 256, True),
        ("gfx942", 8, 257, False),
        ("gfx942", 4, 512, True),
        ("gfx942", 6, 257, False),
        ("gfx942", 16, 128, True),
        ("gfx942", 16, 129, False),
    ],
)
def test_a_block_fits_the_register_file_or_not(target, warps, registers, fits):
    threads = warps * TARGETS[target].lanes
    size = TARGETS[target].register_file
    wrong = [f"{registers} registers × {threads} threads, a block on {target} has {size}"]
    assert _problems(target, shared_bytes=0, warps=warps, registers=registers) == ([] if fits else wrong)


def test_threads_and_registers_of_one_thread_have_limits_too():
    assert _problems("sm90", warps=33, registers=32) == ["33 warps, sm90 runs 32 in a block"]
    assert _problems("gfx942", shared_bytes=0, warps=17, registers=32) == ["17 warps, gfx942 runs 16 in a block"]
    assert _problems("sm90", warps=4, registers=256) == ["256 registers a thread, sm90 has 255"]


def test_any_spill_fails():
    assert _problems("sm90", spilled_bytes=1) == ["1 bytes of registers spilled"]


@pytest.mark.parametrize(
    ("target", "dtype", "good", "lost"),
    [
        ("sm80", "fp16", "HMMA.16816.F32", "HMMA.16816.F32.BF16"),
        ("sm80", "bf16", "HMMA.16816.F32.BF16", "HMMA.16816.F32"),
        ("sm80", "tf32", "HMMA.1688.F32.TF32", "HMMA.16816.F32"),
        ("sm80", "int8", "IMMA.16832.S8.S8.SAT", "HMMA.16816.F32"),
        ("sm80", "fp8", "HMMA.16816.F32", "IMMA.16832.S8.S8.SAT"),
        ("sm89", "fp8", "QMMA.16832.F32.E4M3.E4M3", "HMMA.16816.F32"),
        ("sm90", "fp16", "HGMMA.64x256x16.F32", "HMMA.16816.F32"),
        ("sm90", "bf16", "HGMMA.64x256x16.F32.BF16", "HMMA.16816.F32.BF16"),
        ("sm90", "tf32", "HGMMA.64x256x8.F32.TF32", "HGMMA.64x256x16.F32.BF16"),
        ("sm90", "int8", "IGMMA.64x128x32.S8.S8", "IMMA.16832.S8.S8.SAT"),
        ("sm90", "fp8", "QGMMA.64x256x32.F32.E4M3.E4M3", "HGMMA.64x256x16.F32"),
        ("sm100", "bf16", "UTCHMMA kind::f16", "HMMA.16816.F32.BF16"),
        ("sm100", "tf32", "UTCHMMA kind::tf32", "UTCHMMA kind::f16"),
        ("sm100", "int8", "IMMA.16832.S8.S8.SAT", "UTCHMMA kind::f16"),
        ("sm100", "fp8", "UTCQMMA kind::f8f6f4", "UTCHMMA kind::f16"),
        ("sm120", "bf16", "HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32"),
        ("gfx942", "fp16", "v_mfma_f32_32x32x8_f16", "v_mfma_f32_32x32x8_bf16"),
        ("gfx942", "bf16", "v_mfma_f32_32x32x8_bf16", "v_mfma_f32_32x32x8_f16"),
        ("gfx942", "tf32", "v_mfma_f32_32x32x4_xf32", "v_mfma_f32_32x32x2_f32"),
        ("gfx942", "int8", "v_mfma_i32_32x32x16_i8", "v_mfma_f32_32x32x8_f16"),
        ("gfx950", "fp8", "v_mfma_f32_32x32x16_fp8_fp8", "v_mfma_f32_32x32x16_f16"),
    ],
)
def test_each_dtype_needs_its_own_tensor_core_instruction(target, dtype, good, lost):
    expects = Expects(tensor=dtype)
    assert _problems(target, expects, shared_bytes=0, tensor={good: 4}) == []
    assert _problems(target, expects, shared_bytes=0, tensor={lost: 4}) == [
        f"no tensor-core instruction for {dtype} (found: {lost})"
    ]
    assert _problems(target, expects, shared_bytes=0) == [f"no tensor-core instruction for {dtype} (found: none)"]


def test_a_kernel_of_narrow_tiles_may_multiply_warp_by_warp():
    assert tensor_instruction(TARGETS["sm90"], "bf16", narrow=True).match("HMMA.16816.F32.BF16")
    assert tensor_instruction(TARGETS["sm90"], "bf16", narrow=True).match("HGMMA.64x16x16.F32.BF16")
    assert not tensor_instruction(TARGETS["sm90"], "bf16", narrow=True).match("HMMA.16816.F32")
    assert not tensor_instruction(TARGETS["gfx942"], "bf16", narrow=True).match("HMMA.16816.F32.BF16")


def test_accesses_narrower_than_16_bytes_fail_where_wide_ones_are_expected():
    wide = Expects(wide=frozenset({"loads", "stores"}))
    both = {"loads": {128: 4}, "stores": {128: 4, 256: 1}}
    assert _problems("sm90", wide, **both) == []
    assert _problems("sm90", wide, **{**both, "loads": {32: 1, 128: 9}}) == ["loads of 4 bytes where 16 are expected"]
    assert _problems("sm90", wide, **{**both, "copies": {"LDGSTS 64": 1}}) == ["loads of 8 bytes where 16 are expected"]
    assert _problems("sm90", wide, loads={128: 1}) == ["no stores"]
    assert _problems("sm90", wide, copies={"UTMALDG": 1, "UTMASTG": 1}) == []
    assert _problems("sm90", wide, copies={"UTMASTG": 1}) == ["no loads"]


def test_single_numbers_may_be_loaded_besides_but_no_more_of_them_than_declared():
    scaled = Expects(wide=frozenset({"loads"}), scalars=8)
    assert _problems("sm90", scaled, loads={32: 2, 128: 9}) == []
    assert _problems("gfx950", scaled, loads={64: 1, 128: 9}) == []
    assert _problems("sm90", scaled, loads={32: 2}, copies={"UTMALDG": 4}) == []
    assert _problems("sm90", scaled, loads={32: 3, 128: 9}) == ["loads of 4 bytes where 16 are expected"]
    assert _problems("sm90", scaled, loads={32: 2, 128: 9}, copies={"LDGSTS 32": 9}) == ["loads of 4 bytes where 16 are expected"]
    assert _problems("sm90", scaled, loads={32: 2}) == ["no loads"]


def test_memory_that_no_launch_would_give_fails():
    entry = Entry("made", "", descriptor_kernel, {"out_ptr": Pointer("fp16"), "in_ptr": Pointer("fp16")}, {}, 4, 1, ("sm90",))
    found = compile_entry(entry, TARGETS["sm90"])
    assert found.copies == {"UTMALDG": 1}
    [problem] = rules.problems(entry, TARGETS["sm90"], found)
    assert problem == "128 bytes of global memory a program, and no launch of ours gives it any"


def test_tensor_copies_are_expected_where_the_target_has_them():
    assert _problems("sm90", Expects(bulk=True), loads={128: 4}) == ["no tensor copy (TMA)"]
    assert _problems("sm80", Expects(bulk=True), loads={128: 4}) == []
    assert _problems("sm90", Expects(bulk=True), copies={"UTMALDG": 1}) == []
