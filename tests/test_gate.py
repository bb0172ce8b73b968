"""The code gate: rules and golden facts catch planted defects in what is really compiled; and its command."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace

import msgspec
import pytest

from kernels.gate import golden, table
from kernels.gate.__main__ import gate, main
from kernels.gate.compile import CompileError, compile_entry, disassemble, reason, triton_version
from kernels.gate.entry import Descriptor, Entry, Pointer
from kernels.gate.facts import Unreadable
from kernels.gate.golden import Golden
from kernels.gate.table import Report, Row
from kernels.gate.targets import TARGETS
from kernels.gate.worker import Answer
from kernels.triton import matmul_tiles
from tests.gate_entries import SOUND, double, double_kernel, product, tile_kernel


@pytest.fixture(scope="module")
def sound():
    """Facts of the sound kernel on sm90, compiled in this process."""
    return compile_entry(double("sound"), TARGETS["sm90"])


@pytest.fixture(scope="module")
def report(tmp_path_factory, sound):
    """The gate over this module's entries, with golden facts of which some are wrong on purpose."""
    folder = tmp_path_factory.mktemp("golden")
    more = msgspec.structs.replace(sound, registers=sound.registers + 8)
    kept = {f"double {name}": {"sm90": sound} for name in ("sound", "gone", "narrow", "no product", "no tensor copy")}
    golden.save(Golden(triton_version(), kept | {"double changed": {"sm90": more}}), folder)
    return gate("tests.gate_entries", ["sm80", "sm89", "sm90"], [], folder, update=False, workers=2)


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
            double("", arguments={"out_ptr": Pointer("fp32", size), "in_ptr": Pointer("fp32", size), "n": 4096}), AMD
        )

    AMD = TARGETS["gfx942"]  # noqa: N806 (a constant of this test)
    assert compiled(1 << 30) == compiled((1 << 31) - 1) != compiled(1 << 31)


@pytest.mark.parametrize(("target", "default", "other"), [("sm90", 3, 2), ("gfx942", 2, 3)])
def test_stages_that_a_launch_leaves_open_are_the_targets_own(target, default, other):
    config = matmul_tiles.Config(64, 64, 32, 4, 2)

    def compiled(stages):
        return compile_entry(replace(product("", target, config), stages=stages), TARGETS[target])

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
    assert compile_entry(double("sound"), TARGETS["sm90"]) == sound
    assert (driver._active, dict(double_kernel.device_caches), knobs.nvidia.dump_ptxas_log) == before
    assert list(tmp_path.iterdir()) == []


def test_a_compile_error_is_one_line_without_paths():
    with pytest.raises(CompileError, match="missing 1 required positional argument: 'n'"):
        compile_entry(double("", arguments={"out_ptr": Pointer("fp32"), "in_ptr": Pointer("fp32")}), TARGETS["sm90"])
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
            assert (module, workers) == ("tests.gate_entries", 3)
            spilled = msgspec.structs.replace(sound, spilled_bytes=4)
            return [Answer(spilled if job.entry in bad else sound) for job in jobs]

        monkeypatch.setattr("kernels.gate.__main__.compile_all", compiled)
        return main(["--entries", "tests.gate_entries", "--golden", str(tmp_path), "--jobs", "3", "--kernel", "double", *given])

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
        (["--entries", "tests.gate_entries", "--kernel", "triple"], "no kernel 'triple': there are double, product"),
        (
            ["--entries", "tests.gate_entries", "--kernel", "double", "--target", "sm120"],
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
