"""The code gate of the CUDA C sources: facts are read exactly, every kernel compiles well, and one that got worse is noticed."""

import sys

import pytest

from clustergauge.errors import UsageError
from kernels.cuda import nvrtc
from tests.cuda_on_cpu import mutated

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function chase:
  REG:22 STACK:16 SHARED:64 LOCAL:8 CONSTANT[0]:376 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function count:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = """
		Function : chase
	.headerflags	@"EF_CUDA_SM90"
        /*0130*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
        /*0140*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0150*/                   LD.E.64 R2, desc[UR4][R2.64] ;
        /*0160*/                   STL.64 [R1+0x8], R2 ;
        /*0170*/                   LDL.LU.64 R2, [R1+0x8] ;
        /*0180*/                   STG.E desc[UR4][R4.64], R2 ;
		..........
		Function : count
        /*0010*/                   LDG.E.U8 R2, desc[UR4][R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ;
"""


def test_facts_are_read_from_what_cuobjdump_prints():
    chase, count = nvrtc.read(USAGE, CODE, "sm_90a")
    assert chase == nvrtc.Facts("chase", "sm_90a", registers=22, shared=64, stack=24, local=2, generic=1, load=16, store=4)
    assert count == nvrtc.Facts("count", "sm_90a", registers=8, shared=0, stack=0, local=0, generic=0, load=1, store=0)
    assert chase.problems() == [
        "chase on sm_90a: 24 bytes of stack, 2 accesses to it (spilled registers)",
        "chase on sm_90a: 1 accesses to memory of an unknown kind",
        "chase on sm_90a: loads and stores of 16 and 4 bytes instead of 8 and 8",
    ]
    assert nvrtc.table([count]) == (
        "kernel  arch    registers  shared  stack  local  generic  load  store\n"
        "count   sm_90a          8       0      0      0        0     1      0\n"
    )


def test_without_nvrtc_the_gate_says_what_to_install(monkeypatch, capsys):
    for name in ("cuda", "cuda.bindings", "cuda.bindings.nvrtc"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="pip install 'cuda-bindings>=13' 'nvidia-cuda-nvrtc>=13'"):
        nvrtc.version()
    assert nvrtc.main() == 2
    assert "pip install" in capsys.readouterr().err


@pytest.fixture(scope="module")
def compiler():
    try:
        nvrtc.version()
        nvrtc._cuobjdump("--version")
    except UsageError as error:
        pytest.skip(str(error))
    return nvrtc


@pytest.mark.parametrize(
    "arch", [name if name == "sm_90a" else pytest.param(name, marks=pytest.mark.slow) for name in nvrtc.ARCHITECTURES]
)
def test_every_kernel_compiles_for_every_architecture_without_spills_and_as_wide_as_it_should(compiler, arch):
    found = compiler.facts((arch,))
    assert [problem for facts in found for problem in facts.problems()] == []
    assert {(f.kernel, f.arch) for f in found} == {(kernel, arch) for kernel in nvrtc.WIDTH}


@pytest.mark.parametrize(
    ("name", "old", "new", "word"),
    [
        ("sgemm", "__launch_bounds__(THREADS, 1)", "__launch_bounds__(THREADS, 3)", "spilled"),
        ("stream", "UNROLL = 4;", "UNROLL = 4;\nstruct Pair { double x, y; };\n#define double2 Pair", "instead of 16"),
        ("chase", "__builtin_assume(__isGlobal(at));", "", "unknown kind"),
    ],
)
def test_a_kernel_that_got_worse_is_noticed(compiler, name, old, new, word):
    cubin = compiler.compile_source(mutated(name, old, new), name, "sm_90a")
    assert any(word in problem for facts in compiler.inspect(cubin, "sm_90a") for problem in facts.problems())


def test_what_does_not_compile_is_an_error_with_the_compilers_words(compiler):
    with pytest.raises(ValueError, match=r"(?s)broken.cu for sm_80: .*undefined_name"):
        compiler.compile_source('extern "C" __global__ void k(int* a) { *a = undefined_name; }', "broken", "sm_80")
    with pytest.raises(UsageError, match="does not know sm_1"):
        compiler.compile_source("", "nothing", "sm_1")
