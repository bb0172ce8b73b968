"""Probe ``cache``: what it reads, counts and refuses; that no load can be left out unnoticed; the native and Triton kernels."""

import contextlib
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from clustergauge import processor
from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from kernels import buffers, cache, native, working_sets
from kernels.native import caches
from tests import interpreted

KIB = 1 << 10
CORES = len(native.processors())
MUTANTS = (
    ("a pass lost", "range(passes)", "range(passes - 1)", ("each", "together")),
    ("a pass too many", "range(passes)", "range(passes + 1)", ("each", "together")),
    ("the first tile lost", "range(0, n, BLOCK)", "range(BLOCK, n, BLOCK)", ("each",)),
    ("the last tile lost", "range(0, n, BLOCK)", "range(0, n - BLOCK, BLOCK)", ("each",)),
    ("one set for all", "program.to(tl.int64) * n", "0", ("each",)),
    ("sets overlap", "program.to(tl.int64) * n", "program.to(tl.int64) * (n - 16)", ("each",)),
    ("the same tile again", "own + start)", "own)", ("each",)),
    ("parts do not come round", "(program + turn) % programs", "program + turn", ("together",)),
    ("tiles skipped", "programs * BLOCK)", "2 * programs * BLOCK)", ("together",)),
    ("tiles read twice", "programs * BLOCK)", "(programs - 1) * BLOCK)", ("together",)),
    ("sums forgotten", "total += tl.load(", "total = tl.load(", ("one", "each", "together")),
    ("sums of 16 bits", "total.to(tl.int64)", "total.to(tl.int16)", ("one", "each", "together")),
    ("a sum misplaced", "sums_ptr + program", "sums_ptr", ("each", "together")),
)


def cases() -> dict[str, Callable[[], object]]:
    """What the process that interprets runs, by name."""

    def mutant(old: str, new: str, kinds: tuple[str, ...]) -> list[list[str]]:
        with interpreted.planted("cache", old, new):
            return [interpreted.case("cache", cores=c, size=(1024 if c == "together" else 64) * KIB) for c in kinds]

    sizes = [(cores, kib) for cores in ("one", "each", "together") for kib in (16, 48, 64)] + [("together", 1024)]
    right = {f"{c} {kib}": partial(interpreted.case, "cache", cores=c, size=kib * KIB) for c, kib in sizes}
    large = {"too large": partial(interpreted.case, "cache", cores="each", size=1024 * KIB + cache.UNIT)}
    return {**right, **large, **{name: partial(mutant, *how) for name, *how in MUTANTS}}


@pytest.fixture(scope="module")
def found():
    with interpreted.found_by("tests.test_cache") as found:
        yield found


needs_llvmlite = pytest.mark.skipif(native.available() != "", reason=native.available() or "available")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Runs of a few passes."""
    monkeypatch.setattr(cache, "PER_CORE", 64 * KIB)


@pytest.fixture
def outcome(tmp_path):
    def run(cores, size, backend="native", llc_bytes=1 << 40):
        params = {"backend": backend, "cores": cores, "size": size}
        job = Job("cache", "kernels.cache", "cache", params, "cpu", 0.02, 1, llc_bytes=llc_bytes)
        return execute(job, cache.cache, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def plant(monkeypatch):
    """Puts a wrong reader in the place of the right one: ``wrong(data, sums, passes)``, as numpy arrays."""

    def planting(wrong):
        monkeypatch.setattr(
            cache, "_call", lambda backend, cores, data, sums, passes: lambda: wrong(data.numpy(), sums.numpy(), passes)
        )

    return planting


# -- what is measured


@needs_llvmlite
@pytest.mark.parametrize(("cores", "sets"), [("one", 1), ("each", CORES)])
@pytest.mark.parametrize(("kib", "passes"), [(16, 5), (48, 1), (64, 1), (1024, 1)])
def test_a_set_is_read_as_often_as_is_counted(outcome, cores, sets, kib, passes):
    done = outcome(cores, kib * KIB)
    assert (done.status, done.reason) == ("ok", "")
    assert done.workload.bytes_read == passes * sets * kib * KIB
    assert (done.workload.bytes_written, done.workload.bound) == (0, "memory")
    assert (done.measurement.clock, done.measurement.cache) == ("wall", "hot")
    assert (done.settings["passes"], done.settings["processors"]) == (passes, sets)
    assert done.settings.get("cache_level", "") == processor.cache_level(
        kib * KIB, native.processors()[: None if sets > 1 else 1]
    )
    assert "huge_page_share" in done.settings


@needs_llvmlite
def test_a_set_that_no_cache_holds_is_called_cold(outcome):
    assert outcome("one", 64 * KIB, llc_bytes=16 * KIB).measurement.cache == "cold"
    assert outcome("one", 64 * KIB, llc_bytes=16 * KIB + 1).measurement.cache == "hot"


def test_the_ladder_goes_from_16_kib_to_256_mib():
    assert tuple(n << 10 for n in (16, 64, 256, 1024, 4096, 16384, 65536, 262144)) == working_sets.LADDER


def test_of_a_gpu_only_what_it_tells_is_recorded(tmp_path, monkeypatch):
    """No GPU here: its L2 is made up."""

    def said(words, *, past_l1=False, second=64 * KIB):
        monkeypatch.setattr(buffers, "l2_bytes", lambda device: second)
        ctx = Context(Serial(), "cuda:0", 1, tmp_path)
        working_sets.describe(ctx, torch.zeros(words, dtype=torch.int32), 4 * words, (), past_l1=past_l1)
        return ctx.settings

    assert said(16 * KIB, past_l1=True) == {"l2_bytes": 64 * KIB, "cache_level": "L2"}
    assert said(16 * KIB) == {"l2_bytes": 64 * KIB}  # whether L1 holds it is not known
    assert said(16 * KIB + 1) == {"l2_bytes": 64 * KIB, "cache_level": "memory"}
    assert said(16 * KIB, past_l1=True, second=None) == {"l2_bytes": None}


@pytest.mark.parametrize(("total", "cores"), [(16 * KIB, 1), (48 * KIB, 2), (1 << 40, 132), (256 << 20, 132)])
def test_passes_are_odd_so_that_a_sum_keeps_every_bit_of_every_word(total, cores):
    assert cache._passes(total, cores) % 2 == 1


@pytest.mark.parametrize("size", [0, 8 * KIB, 24 * KIB, 16 * KIB + 256, (4 << 30) + 16 * KIB])
def test_sizes_that_are_no_whole_tiles_are_refused(size):
    with pytest.raises(UsageError, match=f"size {size}: working sets are multiples of 16KiB, at most 4GiB"):
        cache.cache.needs_of({"backend": "native", "cores": "one", "size": size})


@needs_llvmlite
def test_cores_of_a_processor_do_not_read_together(outcome):
    done = outcome("together", 64 * KIB)
    assert (done.status, "has a meaning on a GPU alone" in done.reason) == ("skipped", True)


def test_without_a_gpu_triton_is_for_the_interpreter(outcome):
    assert outcome("each", 64 * KIB, backend="triton").reason == "Triton kernels run on a processor in the interpreter only"


# -- planted errors


def right(data, sums, passes):
    sums[:] = 0
    sums[0] = np.array(passes * int(data.sum(dtype=np.int64)) % 2**32, np.uint32).view(np.int32)


@needs_llvmlite
def test_the_stand_in_for_the_planted_errors_is_right(outcome, plant):
    plant(right)
    assert outcome("each", 48 * KIB).status == "ok"


@needs_llvmlite
@pytest.mark.parametrize(
    "wrong",
    [
        lambda data, sums, passes: right(data, sums, passes - 1),
        lambda data, sums, passes: right(data, sums, passes + 1),
        lambda data, sums, passes: right(data[:-1], sums, passes),
        lambda data, sums, passes: right(data[1:], sums, passes),
        lambda data, sums, passes: right(data[::2], sums, 2 * passes),
        lambda data, sums, passes: right(np.append(data, data[5]), sums, passes),
        lambda data, sums, passes: None,
        lambda data, sums, passes: sums.fill(0),
    ],
    ids=["a pass lost", "a pass more", "last word lost", "first word lost", "half of it twice", "one twice", "nothing", "zeros"],
)
def test_a_load_left_out_or_done_twice_is_caught(outcome, plant, wrong):
    plant(wrong)
    done = outcome("each", 16 * KIB)
    assert (done.status, done.measurement) == ("wrong", None)
    assert re.fullmatch(r"the sum of \d+ words read 5 times is [0-9a-f]{8}, got [0-9a-f]{8} \(modulo 2\^32\)", done.reason)


@needs_llvmlite
@pytest.mark.parametrize("kept", [slice(0, 1), slice(-1, None), slice(None)], ids=["first", "last", "all"])
def test_words_kept_from_an_earlier_run_are_caught_by_the_exact_pass(outcome, plant, kept):
    remembered = []

    def wrong(data, sums, passes):
        remembered.append(data.copy())
        stale = data.copy()
        stale[kept] = remembered[0][kept]
        right(stale, sums, passes)

    plant(wrong)
    assert outcome("one", 16 * KIB).status == "wrong"


@needs_llvmlite
def test_the_exact_pass_leaves_memory_as_it_was(tmp_path):
    work = cache.cache.function(Context(Serial(), "cpu", 1, tmp_path), backend="native", cores="one", size=16 * KIB)
    watch = work.reset.__self__
    before = watch.data.clone()
    work.exact()
    work.run()
    work.check()
    assert torch.equal(watch.data, before)
    watch.sums[0] += 1
    with pytest.raises(Wrong):
        work.check()


# -- the native kernel


@pytest.fixture
def make():
    teams = []

    def making(threads):
        here = native.processors()
        teams.append(native.Team([here[i % len(here)] for i in range(threads)]))
        return teams[-1]

    yield making
    for team in teams:
        team.close()


@needs_llvmlite
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("times", [1, 2, 3, 1001])
def test_each_thread_leaves_the_sum_of_its_own_part_in_32_bits(make, threads, times):
    team = make(threads)
    for blocks in (1, 2, 5):
        words = threads * blocks * caches.BLOCK // 4
        whole = team.array(words // 2 + 64).view(np.int32)
        whole[:] = np.random.default_rng(blocks).integers(-(1 << 31), 1 << 31, whole.size)
        data, sums = whole[:words], np.zeros(threads, np.int32)
        caches.passes(team, data, sums, times)()
        expected = times * data.reshape(threads, -1).sum(axis=1, dtype=np.int64)
        assert (sums.astype(np.int64) % 2**32).tolist() == (expected % 2**32).tolist()


@needs_llvmlite
def test_every_word_counts_once_in_every_pass(make):
    team = make(2)
    data, sums = team.array(256).view(np.int32), np.zeros(2, np.int32)
    run = caches.passes(team, data, sums, 5)
    for place in range(data.size):
        data[:] = 0
        data[place] = 1
        run()
        assert sums.tolist() == ([5, 0] if place < 256 else [0, 5])


@needs_llvmlite
def test_what_does_not_fit_a_team_is_refused(make):
    team = make(2)
    data, sums = team.array(256).view(np.int32), np.zeros(2, np.int32)
    for words, several, times in [(data[:-64], sums, 1), (data[4:], sums, 1), (data, sums[:1], 1), (data, sums, 0)]:
        with pytest.raises(ValueError, match="do not fit 2 threads"):
            caches.passes(team, words, several, times)


@needs_llvmlite
@pytest.mark.parametrize(
    ("cpu", "register", "loads"),
    [("x86-64", "xmm", 16), ("haswell", "ymm", 8), ("skylake-avx512", "zmm", 4), ("znver4", "zmm", 4), ("neoverse-n1", "q", 16)],
)
def test_loads_stay_in_the_loop_and_are_as_wide_as_the_registers(cpu, register, loads):
    from llvmlite import binding

    from kernels.native import code

    triple = "aarch64-unknown-linux-gnu" if register == "q" else "x86_64-unknown-linux-gnu"
    code.host()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    text = re.search(r"(?ms)^passes:.*?\.cfi_endproc", machine.emit_assembly(binding.parse_assembly(code.text(triple))))[0]
    if register == "q":
        inside = re.findall(r"\bldp\s+q\d+, q\d+, \[x", text) * 2 + re.findall(r"\bldr\s+q\d+, \[x", text)
    else:
        inside = re.findall(rf"v?padd[dq]\s+\d*\(%r\w+\), (?:%{register}\d+, )?%{register}", text)
        inside += re.findall(rf"v?movdq[au]\w*\s+\d*\(%r[^s]\w*\), %{register}", text)
    assert len(inside) == loads
    assert "rsp" not in "".join(re.findall(r"v?movdq\w+.*", text))


# -- the Triton kernel


@pytest.mark.parametrize(
    "name", [*(f"{cores} {kib}" for cores in ("one", "each", "together") for kib in (16, 48, 64)), "together 1024"]
)
def test_triton_reads_are_verified(found, name):
    assert found[name] == interpreted.VERIFIED


def test_what_is_too_large_for_the_interpreter_is_skipped(found):
    assert found["too large"] == ["skipped", "too large for the interpreter: up to 1MiB fits", "not timed"]


@pytest.mark.parametrize("name", [name for name, *_ in MUTANTS])
def test_a_planted_error_in_the_triton_kernel_is_caught(found, name):
    assert all(interpreted.caught(outcome) for outcome in found[name])


@pytest.mark.parametrize(("variant", "load"), [("each", "ld.global.v4"), ("together", "ld.global.cg.v4")])
def test_the_compiler_keeps_every_load_in_both_loops_and_turns_the_parts(variant, load):
    """Numbers cannot show a load that was moved out of the passes, or that all passes read the same parts."""
    from kernels.gate import compile as gate
    from kernels.gate.entries import jit
    from kernels.gate.targets import TARGETS
    from kernels.triton import cache as kernel

    entry = next(entry for entry in kernel.gate_entries() if entry.variant == variant)
    function = jit(entry.function)
    with gate._settings(), gate._offline(TARGETS["sm90"]) as driver, contextlib.redirect_stdout(None):
        arguments = {name: gate._argument(value) for name, value in entry.arguments.items()}
        made = function.run(grid=(1,), warmup=True, **arguments, **entry.constants, num_warps=entry.warps)
        function.device_caches.pop(driver.device, None)
    ptx = made.asm["ptx"]
    labels = {found[1]: found.start() for found in re.finditer(r"(?m)^(\$L__\w+):", ptx)}
    jumps = [(labels[found[1]], found.start()) for found in re.finditer(r"\bbra(?:\.uni)?\s+(\$L__\w+);", ptx)]
    loops = {low: high for low, high in sorted(jumps) if low < high}
    at = [found.start() for found in re.finditer(re.escape(load), ptx)]
    assert len(at) == ptx.count("ld.global") == 4
    around = [[(low, high) for low, high in sorted(loops.items()) if low < place < high] for place in at]
    assert [len(each) for each in around] == [2] * 4
    (outer, *_), *_ = around
    assert (re.search(r"\brem\.[su]32", ptx[slice(*outer)]) is not None) == (variant == "together")


def test_tiles_divide_the_set():
    from kernels.triton import cache as kernel

    assert [kernel.tile(n) for n in (8192, 4096, 12288, 1 << 20)] == [8192, 4096, 4096, 8192]
    with pytest.raises(ValueError, match="5000 elements are not whole tiles of 4096"):
        kernel.tile(5000)


def test_native_needs_llvmlite_and_says_why_it_cannot_work(outcome, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: "no code for this processor")
    assert outcome("one", 64 * KIB).reason == "no code for this processor"
    with pytest.raises(Skip):
        cache._refuse_unfit(Context(Serial(), "cpu", 1, None), "native", "one", 64 * KIB)
