"""The code gate: facts are read exactly, rules and golden facts catch planted defects, and kernels that were forgotten are named.

This module is also one that declares entries (``--entries tests.test_gate``): some are sound, the others defective on purpose.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from types import ModuleType

import msgspec
import pytest
import triton
import triton.language as tl

from clustergauge.errors import UsageError
from kernels.gate import facts, golden, rules, table
from kernels.gate.__main__ import gate, main
from kernels.gate.compile import CompileError, compile_entry, disassemble, reason, triton_version
from kernels.gate.entries import SHAPES, entries as shipped, jit, undeclared
from kernels.gate.entry import Descriptor, Entry, Expects, Pointer, named
from kernels.gate.facts import Facts, Unreadable
from kernels.gate.golden import Golden
from kernels.gate.table import Report, Row
from kernels.gate.targets import TARGETS, tensor_instruction
from kernels.gate.worker import Answer, Job, compile_all, load_entries
from kernels.triton import attention_tiles, matmul, matmul_tiles, normalise

# --------------------------------------------------------------------------------------------------------------------------
# kernels to compile


@triton.jit
def _twice(value):
    return value + value


@triton.jit
def double_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):  # noqa: N803 (as the field writes)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, _twice(tl.load(in_ptr + at, mask=at < n)), mask=at < n)


@triton.jit
def tile_kernel(tile, out_ptr):
    rows = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out_ptr + rows, tile.load([0, 0]))


@triton.jit
def descriptor_kernel(out_ptr, in_ptr):
    tile = tl.make_tensor_descriptor(in_ptr, [64, 64], [64, 1], [64, 64])
    rows = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out_ptr + rows, tile.load([0, 0]))


def _double(variant, targets=("sm90",), **changes):
    given = {"out_ptr": Pointer("fp32"), "in_ptr": Pointer("fp32"), "n": 4096}
    return replace(Entry("double", variant, double_kernel, given, {"BLOCK": 1024}, 4, 3, targets, config="plain"), **changes)


def _product(variant, target, config, dtype="bf16"):
    given = {"a_ptr": Pointer(dtype), "b_ptr": Pointer(dtype), "c_ptr": Pointer(dtype), "M": 8192, "N": 8192, "K": 8192}
    given |= {"a_scale_ptr": None, "b_scale_ptr": None}
    fixed = matmul.constants(config, dtype, 8192)
    expects = Expects(tensor=dtype)
    return Entry(
        "product", variant, matmul.matmul_kernel, given, fixed, config.warps, config.stages, (target,), expects, str(config)
    )


@dataclass(frozen=True)
class _Crashing(Entry):
    """Takes the compiler's process with it."""

    @property
    def constants(self):
        os.kill(os.getpid(), signal.SIGKILL)

    @constants.setter
    def constants(self, value):
        pass


def entries():
    """Sound and defective ones."""
    wide = Expects(wide=frozenset({"loads", "stores"}))
    return [
        _double("sound", ("sm90", "sm89"), expects=wide),
        _double("changed"),
        _double("new"),
        _double("narrow", arguments={"out_ptr": Pointer("fp32"), "in_ptr": Pointer("fp32"), "n": 4095}, expects=wide),
        _double("no product", expects=Expects(tensor="bf16")),
        _double("no tensor copy", expects=Expects(bulk=True)),
        _double("odd warps", warps=3),
        _Crashing(**{**vars(_double("crash")), "constants": {}}),
        _double("after the crash", ("sm89",)),
        _product("spills", "sm90", matmul_tiles.Config(128, 256, 64, 4, 3)),
        _product("too large", "sm80", matmul_tiles.Config(128, 256, 64, 8, 5)),
    ]


# --------------------------------------------------------------------------------------------------------------------------
# facts, read from what compilers wrote

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'matmul_kernel' for 'sm_90a'
ptxas info    : Function properties for matmul_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 176 registers, used 1 barriers
ptxas info    : Compile time = 97.835 ms
"""
SPILLING_LOG = """ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
insufficient register resources for the wgmma pipeline in the function 'matmul_kernel'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'matmul_kernel' for 'sm_90a'
ptxas info    : Function properties for matmul_kernel
    776 bytes stack frame, 1980 bytes spill stores, 1976 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 776 bytes cumulative stack size
"""
SASS = """	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
	.section	.text.matmul_kernel,"ax",@progbits
.text.matmul_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0230*/              @!P1 IMAD.IADD R0, R0, 0x1, -R7 ;
        /*0240*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;
        /*0ff0*/                   LDGSTS.E.BYPASS.128 [R4+0x18000], desc[UR18][R10.64], P0 ;
        /*1010*/              @P0  LDGSTS.E.BYPASS.LTC128B.128 [R4+0x19000], desc[UR18][R12.64] ;
        /*1020*/                   LDGSTS.E.LTC128B.64 [R4], desc[UR18][R12.64] ;
        /*1030*/                   LDGSTS.E [R4], desc[UR18][R12.64] ;
        /*1040*/                   LDGDEPBAR ;
        /*1050*/              @!P2 LDG.E.128 R4, desc[UR18][R12.64] ;
        /*1060*/                   LDG.E.64 R4, desc[UR18][R12.64] ;
        /*1070*/                   LDG.E R4, desc[UR18][R12.64] ;
        /*1080*/             @UP0  LDG.E.U16 R4, desc[UR18][R12.64] ;
        /*1090*/                   LDG.E.S8.CONSTANT R4, desc[UR18][R12.64] ;
        /*10a0*/                   LDG.E.ENL2.256.CONSTANT R4, R8, desc[UR18][R12.64] ;
        /*10b0*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*10c0*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, !UPT ;
        /*10d0*/                   UTMALDG.2D [UR16], [UR4], desc[UR18] ;
        /*10e0*/                   UTMASTG.2D [UR16], [UR4] ;
        /*10f0*/                   STG.E.128 desc[UR18][R2.64], R24 ;
        /*1100*/                   STL.128 [R1+0x10], R24 ;
        /*1110*/                   EXIT ;
"""
GEN_AMD = """	.text
matmul_kernel:
	s_load_dwordx4 s[0:3], s[0:1], 0x0
	buffer_load_dwordx4 v[4:7], v17, s[12:15], 0 offen
	buffer_load_dwordx4 v8, s[12:15], 0 offen lds ; 16 bytes to LDS
	global_load_lds_dwordx4 v[2:3], off
	buffer_load_dwordx4 v[8:11], v18, s[12:15], 0 offen ; not lds
	global_load_dword v1, v[2:3], off
	global_load_ushort v1, v[2:3], off
	global_load_short_d16_hi v1, v[2:3], off
	buffer_load_ubyte v1, v2, s[0:3], 0 offen
	v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
	v_mfma_f32_32x32x8_bf16 v[0:15], v[20:21], v[22:23], v[0:15]
	ds_read_b128 v[0:3], v4
	buffer_store_dwordx2 v[4:5], v17, s[12:15], 0 offen
	s_endpgm
	.amdhsa_private_segment_fixed_size 0
	.amdgpu_metadata
---
amdhsa.kernels:
  - .agpr_count:     0
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 24
    .sgpr_count:     32
    .sgpr_spill_count: 1
    .vgpr_count:     180
    .vgpr_spill_count: 2
"""
SOUND = Facts(warps=8, registers=176, spilled_bytes=0, shared_bytes=147456)


def test_facts_of_nvidia_are_counted_by_instruction_and_width():
    assert facts.nvidia(8, 147456, 0, LOG, "", SASS) == Facts(
        warps=8,
        registers=176,
        spilled_bytes=0,
        shared_bytes=147456,
        tensor={"HGMMA.64x256x16.F32.BF16": 2},
        loads={8: 1, 16: 1, 32: 1, 64: 1, 128: 1, 256: 1},
        stores={128: 1},
        copies={"LDGSTS 128": 2, "LDGSTS 32": 1, "LDGSTS 64": 1, "UTMALDG": 1, "UTMASTG": 1},
    )


def test_a_move_that_is_spelled_like_a_product_is_none():
    sass = "        /*0240*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;\n"
    assert facts.nvidia(8, 0, 0, LOG, "", sass).tensor == {}


@pytest.mark.parametrize(
    "operation",
    [
        "HMMA.16816.F32",
        "IMMA.16832.S8.S8.SAT",
        "QMMA.16832.F32.E4M3.E4M3",
        "DMMA.8x8x4",
        "IGMMA.64x128x32.S8.S8",
        "QGMMA.64x256x32",
    ],
)
def test_every_kind_of_product_is_seen(operation):
    assert facts.nvidia(8, 0, 0, LOG, "", f"        /*0240*/ {operation} R3, R4 ;").tensor == {operation: 1}


def test_products_into_tensor_memory_carry_the_kind_that_only_ptx_tells():
    sass = "        /*1460*/                   UTCHMMA gdesc[UR6], gdesc[UR10], tmem[UR8], tmem[UR34], idesc[UR35], !UPT ;\n" * 3
    ptx = "\ttcgen05.mma.cta_group::1.kind::tf32 [ %r1 + 0 ], %rd1, %rd2, %r3, %p1;\n" * 3
    assert facts.nvidia(8, 0, 256, LOG, ptx, sass).tensor == {"UTCHMMA kind::tf32": 3}


def test_spills_and_advisories_are_read_from_the_log():
    found = facts.nvidia(4, 0, 0, SPILLING_LOG, "", SASS)
    assert (found.spilled_bytes, found.stack_bytes, found.registers) == (1980, 776, 255)
    assert found.advisories == (
        "(C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient register resources "
        "for the wgmma pipeline in the function '…'",
    )


def test_spills_of_a_function_that_is_not_inlined_count_too():
    more = "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
    found = facts.nvidia(4, 0, 0, LOG + more, "", SASS)
    assert (found.spilled_bytes, found.stack_bytes) == (12, 16)


def test_advisories_have_no_path_and_no_line_and_are_said_once():
    log = "ptxas /tmp/tmpab12.ptx, line 77; warning : Instruction 'x' is deprecated\n" + (
        "ptxas-blackwell /tmp/tmpcd34.ptx, line 9; warning : Instruction 'y' is deprecated\n"
    )
    assert facts.advisories(log) == ("Instruction '…' is deprecated",)
    assert facts.advisories(LOG) == ()


@pytest.mark.parametrize(
    ("log", "sass", "what"),
    [
        ("", SASS, "no spills in the log"),
        (LOG.replace("Used", "used"), SASS, "no registers in the log"),
        (LOG + LOG, SASS, "more than one place with registers"),
        (LOG, "", "no instruction in the SASS"),
    ],
)
def test_what_is_missing_is_unreadable_and_not_zero(log, sass, what):
    with pytest.raises(Unreadable, match=what):
        facts.nvidia(8, 0, 0, log, "", sass)


def test_facts_of_amd_are_counted_by_instruction_and_width():
    assert facts.amd(8, 49152, GEN_AMD) == Facts(
        warps=8,
        registers=180,
        spilled_bytes=12,
        shared_bytes=49152,
        stack_bytes=24,
        tensor={"v_mfma_f32_32x32x8_bf16": 2},
        loads={8: 1, 16: 2, 32: 1, 128: 2},
        stores={64: 1},
        copies={"load_lds 128": 2},
    )


@pytest.mark.parametrize("name", ["vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"])
def test_amd_metadata_that_is_missing_is_unreadable(name):
    with pytest.raises(Unreadable, match=f"no {name} in the metadata"):
        facts.amd(8, 0, GEN_AMD.replace(f".{name}:", ".other:"))


def test_amd_assembly_without_an_instruction_is_unreadable():
    with pytest.raises(Unreadable, match="no instruction"):
        facts.amd(8, 0, ".amdgpu_metadata" + GEN_AMD.partition(".amdgpu_metadata")[2])


# --------------------------------------------------------------------------------------------------------------------------
# rules


def _problems(target, expects=None, **changes):
    entry = _double("", expects=expects or Expects())
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


# --------------------------------------------------------------------------------------------------------------------------
# golden facts


def test_golden_facts_come_back_as_they_were_kept(tmp_path):
    kept = Golden(
        "3.7.1", {"b x": {"sm80": facts.nvidia(4, 9, 0, SPILLING_LOG, "", SASS)}, "a": {"sm90": SOUND, "gfx942": SOUND}}
    )
    path = golden.save(kept, tmp_path)
    assert path.name == "triton-3.7.1.json"
    assert golden.load("3.7.1", tmp_path) == kept
    assert sum("registers" in line for line in path.read_text(encoding="utf-8").splitlines()) == 3
    assert json.loads(path.read_bytes())["triton"] == "3.7.1"
    assert golden.versions(tmp_path) == ["3.7.1"]
    assert golden.load("3.9.0", tmp_path) is None


def test_an_empty_golden_file_is_one_too(tmp_path):
    golden.save(Golden("3.7.1", {}), tmp_path)
    assert golden.load("3.7.1", tmp_path) == Golden("3.7.1", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a golden file"),
        ('{"triton": "3.7.1", "facts": {"a": {"sm90": {"warps": 4}}}}', "missing required field"),
        ('{"triton": "3.7.1", "facts": {}, "more": 1}', "unknown field"),
        ('{"triton": "3.9.0", "facts": {}}', "is of triton 3.9.0, not 3.7.1"),
    ],
)
def test_a_golden_file_that_is_none_is_the_users_mistake(tmp_path, text, said):
    (tmp_path / "triton-3.7.1.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        golden.load("3.7.1", tmp_path)


def test_a_version_cannot_lead_out_of_the_folder(tmp_path):
    assert golden.path_of("../../x", tmp_path).parent == tmp_path
    assert golden.path_of("3.7.1+git12ab", tmp_path).name == "triton-3.7.1+git12ab.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registers": 184}, "registers 184, golden 176"),
        ({"tensor": {"HMMA.16816.F32": 4}}, "tensor 4×HMMA.16816.F32, golden none"),
        ({"loads": {32: 2, 128: 4}}, "loads 2×32 + 4×128, golden none"),
        ({"advisories": ("slow", "slower")}, "advisories slow; slower, golden none"),
        ({"tmem_columns": 256}, "tmem columns 256, golden 0"),
        ({"shared_bytes": 0}, "shared bytes 0, golden 147456"),
    ],
)
def test_a_difference_is_said_in_words(change, words):
    assert golden.differences(msgspec.structs.replace(SOUND, **change), SOUND) == [words]


def test_every_fact_is_compared():
    other = Facts(9, 9, 9, 9, 9, 9, 9, {"a": 1}, {1: 1}, {1: 1}, {"a": 1}, ("a",))
    assert len(golden.differences(other, SOUND)) == len(Facts.__struct_fields__) == 12


# --------------------------------------------------------------------------------------------------------------------------
# compiled for real


@pytest.fixture(scope="module")
def sound():
    """Facts of the sound kernel on sm90, compiled in this process."""
    return compile_entry(_double("sound"), TARGETS["sm90"])


@pytest.fixture(scope="module")
def report(tmp_path_factory, sound):
    """The gate over this module's entries, with golden facts of which some are wrong on purpose."""
    folder = tmp_path_factory.mktemp("golden")
    more = msgspec.structs.replace(sound, registers=sound.registers + 8)
    kept = {f"double {name}": {"sm90": sound} for name in ("sound", "gone", "narrow", "no product", "no tensor copy")}
    golden.save(Golden(triton_version(), kept | {"double changed": {"sm90": more}}), folder)
    return gate("tests.test_gate", ["sm80", "sm89", "sm90"], [], folder, update=False, workers=2)


@pytest.fixture(scope="module")
def said(report):
    """The problems of each row, by variant."""
    return {row.entry.partition(" ")[2]: list(row.problems) for row in report.rows if row.target != "sm89"}


def test_a_sound_kernel_has_the_facts_that_can_be_counted_by_hand(sound):
    """1024 elements of 4 bytes by 128 threads: two accesses of 16 bytes each."""
    assert (sound.warps, sound.spilled_bytes, sound.shared_bytes, sound.tensor) == (4, 0, 0, {})
    assert (sound.loads, sound.stores) == ({128: 2}, {128: 2})
    assert 8 <= sound.registers <= 64


def test_a_sound_kernel_is_as_golden_where_there_is_golden_and_passes_by_the_rules_elsewhere(report):
    found = {row.target: row for row in report.rows if row.entry == "double sound"}
    assert [found[name].problems for name in ("sm89", "sm90")] == [(), ()]
    assert [found[name].golden for name in ("sm89", "sm90")] == [False, True]


def test_changed_registers_are_caught(said, sound):
    assert said["changed"] == [f"registers {sound.registers}, golden {sound.registers + 8}"]


def test_an_entry_that_is_not_golden_is_caught(said):
    assert said["new"] == ["not among the golden facts: look at it and keep it with --update"]


def test_a_golden_entry_that_is_shipped_no_longer_is_caught(report):
    assert report.problems == ("double gone, sm90: golden, but no longer compiled (drop it with --update)",)


def test_a_configuration_that_spills_is_caught(said):
    [problem] = said["spills"]
    assert re.fullmatch(r"\d{3,} bytes of registers spilled", problem)


def test_products_that_wait_for_one_another_are_told_by_the_compiler(report):
    [row] = [row for row in report.rows if row.entry == "product spills"]
    assert row.facts
    assert "wgmma.mma_async instructions are serialized" in row.facts.advisories[0]


def test_a_configuration_over_shared_memory_is_caught(said):
    assert said["too large"] == ["196608 bytes of shared memory, sm80 has 166912"]


def test_a_kernel_without_a_product_is_caught(said):
    assert said["no product"] == ["no tensor-core instruction for bf16 (found: none)"]


def test_a_kernel_without_a_tensor_copy_is_caught(said):
    assert said["no tensor copy"] == ["no tensor copy (TMA)"]


def test_loads_that_a_ragged_size_narrows_are_caught(said):
    assert said["narrow"][:2] == ["loads of 4 bytes where 16 are expected", "stores of 4 bytes where 16 are expected"]
    assert any(line.startswith("loads ") and line.endswith("golden 2×128") for line in said["narrow"])


def test_a_configuration_that_does_not_compile_is_caught_and_says_why(said):
    assert said["odd warps"] == ["does not compile: AssertionError: num_warps must be a power of 2"]


def test_a_compiler_that_dies_costs_its_entry_alone(report, said):
    [problem] = said["crash"]
    assert problem.startswith("the compiler died (SIGKILL)")
    assert [row.problems for row in report.rows if row.entry == "double after the crash"] == [()]


def test_the_report_counts_what_fails_and_renders_it(report):
    assert report.failures == 10
    shown = table.text(report)
    assert shown.splitlines()[0].split() == [*" ".join(table.HEAD).split(), "verdict"]
    assert "product too large, sm80: 196608 bytes of shared memory, sm80 has 166912" in shown.splitlines()
    assert shown.splitlines()[-1] == "1 as golden · 2 by the rules alone · 10 FAIL"
    assert json.loads(table.as_json(report))["problems"] == list(report.problems)


@pytest.mark.parametrize("target", ["sm90", "sm80", "gfx942"])
def test_a_descriptor_is_a_tensor_copy_where_the_target_has_one(target):
    entry = Entry(
        "tile", "", tile_kernel, {"tile": Descriptor("fp16", (64, 64)), "out_ptr": Pointer("fp16")}, {}, 4, 1, (target,)
    )
    assert compile_entry(entry, TARGETS[target]).copies == ({"UTMALDG": 1} if target == "sm90" else {})


def test_tensors_beyond_2_gib_are_addressed_otherwise_on_amd():
    """As a launch does: its buffer instructions reach 2 GiB."""

    def compiled(size):
        return compile_entry(
            _double("", arguments={"out_ptr": Pointer("fp32", size), "in_ptr": Pointer("fp32", size), "n": 4096}), AMD
        )

    AMD = TARGETS["gfx942"]  # noqa: N806 (a constant of this test)
    assert compiled(1 << 30) == compiled((1 << 31) - 1) != compiled(1 << 31)


@pytest.mark.parametrize(("target", "default", "other"), [("sm90", 3, 2), ("gfx942", 2, 3)])
def test_stages_that_a_launch_leaves_open_are_the_targets_own(target, default, other):
    config = matmul_tiles.Config(64, 64, 32, 4, 2)

    def compiled(stages):
        return compile_entry(replace(_product("", target, config), stages=stages), TARGETS[target])

    assert compiled(None) == compiled(default) != compiled(other)


def test_a_disassembler_that_hangs_leaves_the_facts_unread(monkeypatch):
    monkeypatch.setattr("kernels.gate.compile.SLOWEST_TOOL_S", 0)
    with pytest.raises(Unreadable, match="nvdisasm was not done after 0 s"):
        disassemble(b"")


def test_compiling_leaves_nothing_behind(sound, monkeypatch, tmp_path):
    from triton import knobs
    from triton.runtime.driver import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    before = driver._active, dict(double_kernel.device_caches), knobs.nvidia.dump_ptxas_log
    assert compile_entry(_double("sound"), TARGETS["sm90"]) == sound
    assert (driver._active, dict(double_kernel.device_caches), knobs.nvidia.dump_ptxas_log) == before
    assert list(tmp_path.iterdir()) == []


def test_a_compile_error_is_one_line_without_paths():
    with pytest.raises(CompileError, match="missing 1 required positional argument: 'n'"):
        compile_entry(_double("", arguments={"out_ptr": Pointer("fp32"), "in_ptr": Pointer("fp32")}), TARGETS["sm90"])
    assert reason(
        RuntimeError("`ptxas` failed with error code 255\n`ptxas` stderr:\nptxas /tmp/a/b.ptx, line 3; error : no\n")
    ) == ("RuntimeError: ptxas b.ptx, line 3; error : no")
    assert reason(ValueError("")) == "ValueError: no word"


# --------------------------------------------------------------------------------------------------------------------------
# the command


@pytest.fixture
def command(tmp_path, monkeypatch, sound):
    """Runs the command on this module's entries; those in ``bad`` spill, the others compile to the sound facts."""

    def run(*given, bad=()):
        def compiled(module, jobs, workers, done):
            assert (module, workers) == ("tests.test_gate", 3)
            spilled = msgspec.structs.replace(sound, spilled_bytes=4)
            return [Answer(spilled if job.entry in bad else sound) for job in jobs]

        monkeypatch.setattr("kernels.gate.__main__.compile_all", compiled)
        return main(["--entries", "tests.test_gate", "--golden", str(tmp_path), "--jobs", "3", "--kernel", "double", *given])

    return run


def test_update_keeps_what_passes_of_what_was_asked_for(tmp_path, capsys, sound, command):
    stale = {"double gone": {"sm90": SOUND, "sm80": SOUND}, "other kept": {"sm90": SOUND}, "double changed": {"sm90": SOUND}}
    golden.save(Golden(triton_version(), stale), tmp_path)
    assert command("--target", "sm90", "--update", bad=("double changed",)) == 3
    kept = golden.load(triton_version(), tmp_path)
    assert kept
    same = ("crash", "narrow", "new", "odd warps", "sound")
    assert kept.facts == {
        "double gone": {"sm80": SOUND},
        "other kept": {"sm90": SOUND},
        **{f"double {name}": {"sm90": sound} for name in same},
    }
    out = capsys.readouterr().out
    assert "kept 5 as golden in" in out
    assert "double changed, sm90: 4 bytes of registers spilled" in out
    assert out.splitlines()[-1] == "5 as golden · 3 FAIL"


def test_update_keeps_nothing_of_targets_without_golden_facts(tmp_path, capsys, command):
    assert command("--target", "sm89", "--update") == 0
    assert golden.load(triton_version(), tmp_path) == Golden(triton_version(), {})
    assert "2 by the rules alone" in capsys.readouterr().out


def test_a_spill_fails_even_where_it_is_golden(tmp_path, capsys, sound, command):
    golden.save(Golden(triton_version(), {"double sound": {"sm90": msgspec.structs.replace(sound, spilled_bytes=4)}}), tmp_path)
    assert command("--target", "sm90", bad=("double sound",)) == 3
    assert "double sound, sm90: 4 bytes of registers spilled" in capsys.readouterr().out


def test_without_golden_facts_for_this_triton_only_the_rules_apply_and_it_says_so(tmp_path, capsys, command):
    golden.save(Golden("1.2.3", {}), tmp_path)
    assert command("--target", "sm89") == 0
    out = capsys.readouterr().out
    assert f"no golden facts for triton {triton_version()} (there are: 1.2.3): only the rules apply" in out
    assert out.splitlines()[-1] == "2 by the rules alone"
    assert command("--target", "sm89", bad=("double sound",)) == 3


def test_a_folder_of_golden_facts_that_is_not_there_is_the_users_mistake(tmp_path, capsys, command):
    assert command("--target", "sm89", "--golden", str(tmp_path / "none")) == 2
    told = f"kernels.gate: no folder of golden facts {tmp_path / 'none'} (--update makes one)\n"
    assert capsys.readouterr() == ("", told)


def test_a_full_disk_under_stdout_is_said_in_one_line(capsys, command, monkeypatch):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert command("--target", "sm89") == 3
    assert capsys.readouterr().err == "kernels.gate: cannot write to stdout: No space left on device\n"


def test_the_interpreter_is_no_hindrance(command, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command("--target", "sm89") == 0
    assert "TRITON_INTERPRET" not in os.environ


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--target", "sm75"], "no target 'sm75': there are sm80, sm89, sm90, sm100, sm120, gfx942, gfx950"),
        (["--entries", "tests.test_gate", "--kernel", "triple"], "no kernel 'triple': there are double, product"),
        (
            ["--entries", "tests.test_gate", "--kernel", "double", "--target", "sm120"],
            "nothing to compile: no entry of double for sm120",
        ),
    ],
)
def test_a_name_that_is_none_is_wrong_usage(given, said, capsys):
    assert main(given) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "257"])
def test_a_number_of_processes_that_is_none_is_wrong_usage(jobs, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--jobs", jobs])
    assert ended.value.code == 2
    assert "not a number of processes" in capsys.readouterr().err


def test_markdown_is_a_table_with_advisories_below():
    made = msgspec.structs.replace(SOUND, tensor={"A|B": 2}, copies={"LDGSTS 128": 36, "UTMALDG": 3}, advisories=("slow",))
    rows = (
        Row("matmul bf16", "sm100", "big", made, (), golden=True),
        Row("x", "sm90", "", None, ("does not compile",), golden=False),
    )
    assert table.markdown(Report("3.7.1", rows)).splitlines() == [
        "# Triton kernels as they are compiled",
        "",
        "What the compiler makes of the Triton kernels for each target, without a GPU: the configuration each gets, but not with "
        "every type, mask and length that a launch may bring. Made with triton 3.7.1 by "
        "`python -m kernels.gate --format markdown`.",
        "",
        "1 as golden · 1 FAIL",
        "",
        "| kernel | target | configuration | tensor core | regs | spilled | shared | TMEM | loads | stores | copies |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| matmul bf16 | sm100 | big | 2 A\\|B | 176 | 0 | 147456 B, 63 % | 0 | – | – | 36 LDGSTS 16 B, 3 UTMALDG |",
        "| x | sm90 |  | – | – | – | – | – | – | – | – |",
        "",
        "- matmul bf16, sm100: slow",
        "",
        "- x, sm90: does not compile",
    ]


# --------------------------------------------------------------------------------------------------------------------------
# what is shipped


def test_every_configuration_of_matmul_and_every_operation_on_memory_is_declared():
    declared = {(entry.id, target) for entry in load_entries("kernels.gate.entries") for target in entry.targets}
    everywhere = {"fp32", "tf32", "fp16", "bf16", "int8"}
    for name, dtypes in (
        ("sm80", everywhere),
        ("sm89", everywhere | {"fp8", "fp8_fast"}),
        ("sm90", everywhere | {"fp8", "fp8_fast"}),
        ("sm100", everywhere | {"fp8", "fp8_fast"}),
        ("sm120", everywhere | {"fp8", "fp8_fast"}),
        ("gfx942", everywhere),  # its e4m3 is another
        ("gfx950", (everywhere | {"fp8", "fp8_fast"}) - {"tf32"}),  # has no such instruction
    ):
        by_tensor = {"tf32", "fp16", "bf16", "fp8", "fp8_fast"} if name in {"sm90", "sm100"} else set()
        assert {(entry, target) for entry, target in declared if entry.startswith("matmul ") and target == name} == {
            (f"matmul {named(f'{dtype}, {shape}' if shape else dtype, number)}", name)
            for dtype in dtypes
            for shape, (m, n, k) in SHAPES.items()
            if dtype not in by_tensor or "ragged" in shape or m < 8192
            for number, _ in enumerate(matmul_tiles.candidates(name.replace("sm", "sm_"), dtype, n, k, m), 1)
        }
    for op in ("read", "write", "copy", "scale", "add", "triad"):
        assert {(f"memory {op}", target) for target in TARGETS} <= declared
        assert (f"memory {op}, 4 GiB", "gfx950") in declared


def test_every_kernel_is_declared_on_every_target():
    everything = shipped()
    assert undeclared(everything) == []
    by_kernel = {(jit(e.function).fn.__name__, name) for e in everything for name in e.targets}
    assert by_kernel == {(kernel, name) for kernel, _ in by_kernel for name in TARGETS}


@pytest.mark.parametrize("op", ["softmax", "rmsnorm"])
def test_the_longest_rows_that_are_held_and_both_passes_of_longer_ones_are_declared(op):
    columns = {e.variant.partition(" ")[2] for e in shipped() if e.kernel == op}
    assert columns >= {str(normalise.LONGEST), "131072", "131071", "1000"}


def test_attention_is_declared_for_each_dtype_mask_and_kind_of_length():
    for target in TARGETS:
        for kernel in ("forward", "keys", "queries"):
            for size in ("D64", "D128"):
                said = {e.variant for e in shipped() if e.kernel == f"attention_{kernel}" and target in e.targets}
                kinds = ("bf16 {} causal", "bf16 {} full", "bf16 {} causal ragged", "bf16 {} full ragged", "fp16 {} causal")
                assert {kind.format(size) for kind in kinds} <= said


def test_every_candidate_is_compiled_wherever_a_launch_may_choose_it():
    """On each target with each kind of shape, mask and length of the first of them."""
    compiled = {(entry.id, name): entry.config for entry in shipped() for name in entry.targets}
    tuned = {key: config for key, config in compiled.items() if ", candidate " in key[0]}
    for (entry, name), config in tuned.items():
        first = entry.partition(", candidate ")[0]
        assert compiled[first, name] != config
    for name, (dtype, (m, n, k)) in itertools.product(TARGETS, itertools.product(("bf16", "int8"), SHAPES.values())):
        for config in matmul_tiles.candidates(name.replace("sm", "sm_"), dtype, n, k, m)[1:]:
            assert any(entry.startswith(("matmul ", "matmul_tma ")) for (entry, _), c in tuned.items() if c == str(config))
    for name, family in (("sm80", "sm_80"), ("sm90", "sm_9"), ("sm100", "sm_10")):
        for head_dim, tiles in attention_tiles.OTHERS[family].items():
            for kernel, tile in tiles.items():
                said = {e for (e, target), config in tuned.items() if target == name and config == str(tile)}
                kinds = ("bf16 {}", "bf16 {} ragged", "fp16 {}")
                if kernel != "decode":
                    kinds = ("bf16 {} causal", "bf16 {} full", "bf16 {} causal ragged", "bf16 {} full ragged", "fp16 {} causal")
                wanted = {f"attention_{kernel} {named(kind.format(f'D{head_dim}'), 2)}" for kind in kinds}
                assert wanted <= said


def test_a_candidate_that_cannot_run_fails_the_gate(monkeypatch):
    monkeypatch.setitem(matmul_tiles.OTHERS["sm_80"], "bf16", (matmul_tiles.Config(128, 256, 64, 8, 5),))
    (entry,) = (e for e in shipped() if e.id == "matmul bf16, candidate 2" and e.targets == ("sm80",))
    (said,) = rules.problems(entry, TARGETS["sm80"], compile_entry(entry, TARGETS["sm80"]))
    assert said.endswith("bytes of shared memory, sm80 has 166912")


def test_only_fp32_products_need_no_tensor_core():
    assert {e.variant.partition(",")[0] for e in shipped() if e.kernel == "matmul" and not e.expects.tensor} == {"fp32"}


def test_a_kernel_that_was_forgotten_is_named_and_a_part_of_one_is_not():
    module = ModuleType("tests.test_gate")
    module.double_kernel, module.tile_kernel, module._twice = double_kernel, tile_kernel, _twice
    assert undeclared([], [module]) == ["tests.test_gate.double_kernel", "tests.test_gate.tile_kernel"]
    assert undeclared([_double("")], [module]) == ["tests.test_gate.tile_kernel"]
    assert undeclared(shipped(), [matmul]) == []


def test_an_entry_declared_twice_is_refused(monkeypatch):
    monkeypatch.setattr("tests.test_gate.entries", lambda: [_double("a"), _double("a", ("sm80", "sm90"))])
    with pytest.raises(UsageError, match="'double a' is declared twice for sm90"):
        load_entries("tests.test_gate")


def test_golden_facts_are_kept_for_the_installed_triton_and_obey_the_rules():
    if triton_version() not in golden.versions():
        pytest.skip(f"no golden facts for triton {triton_version()}")
    kept = golden.load(triton_version())
    assert kept
    assert {name for by_target in kept.facts.values() for name in by_target} == {"sm80", "sm90", "sm100", "gfx942"}
    by_id = {(entry.id, name): entry for entry in shipped() for name in entry.targets}
    for entry, by_target in kept.facts.items():
        for name, made in by_target.items():
            assert (entry, name) in by_id
            assert rules.problems(by_id[entry, name], TARGETS[name], made) == []


def test_shipped_kernels_compile_to_their_golden_facts():
    """Some of them, of every kind of target: the command compiles all."""
    kept = golden.load(triton_version())
    if kept is None:
        pytest.skip(f"no golden facts for triton {triton_version()}")
    jobs = [
        Job("matmul_tma bf16", "sm90"),
        Job("matmul bf16", "gfx942"),
        Job("memory triad", "sm100"),
        Job("memory read", "sm80"),
    ]
    for job, answer in zip(jobs, compile_all("kernels.gate.entries", jobs, 1), strict=True):
        assert (job, answer.error) == (job, "")
        assert (job, golden.differences(answer.facts, kept.facts[job.entry][job.target])) == (job, [])
