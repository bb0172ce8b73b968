"""Facts of compiled kernels are read exactly, and the golden ones are kept and compared."""

from __future__ import annotations

import json

import msgspec
import pytest

from clustergauge.errors import UsageError
from kernels.gate import facts, golden
from kernels.gate.facts import Facts, Unreadable
from kernels.gate.golden import Golden
from tests.gate_entries import SOUND

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
