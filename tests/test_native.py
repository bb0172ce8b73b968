"""Native kernels: right to the last bit and the last element, the code they become, and threads that leave no trace."""

import gc
import itertools
import os
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from kernels import native
from kernels.native import code

OPS = tuple(code.OPS)
WRITING = tuple(op for op in OPS if op != "read")
BLOCK = code.PER_BLOCK
COUNTS = (1, 7, 8, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 9, 100_003)
GUARD = 64
ALLOWED = os.sched_getaffinity(0)
S = 3.1
"""Not exact in binary: products are rounded, so that a fused multiplication and addition would show."""

needs_llvmlite = pytest.mark.skipif(native.available() != "", reason=native.available() or "available")


@pytest.fixture
def make():
    """Teams of any number of threads, on whatever processors there are."""
    teams = []

    def making(threads):
        here = sorted(os.sched_getaffinity(0))
        teams.append(native.Team([here[i % len(here)] for i in range(threads)]))
        return teams[-1]

    yield making
    for team in teams:
        team.close()


@pytest.fixture
def values():
    random = np.random.default_rng(1)

    def some(team, count):
        array = team.array(count)
        array[:] = random.standard_normal(count)
        return array

    return some


def right(op, sources):
    b, c = (*sources, None, None)[:2]
    return {
        "write": lambda: S,
        "copy": lambda: b,
        "scale": lambda: S * b,
        "add": lambda: b + c,
        "triad": lambda: b + S * c,
    }[op]()


# -- results


@needs_llvmlite
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("op", WRITING)
def test_every_element_is_written_to_the_last_bit_and_none_beyond(make, values, op, threads):
    team = make(threads)
    for count in COUNTS:
        sources = [values(team, count) for _ in code.OPS[op]]
        whole = team.array(count + GUARD)
        whole[:] = np.nan
        expected = whole.copy()
        expected[:count] = right(op, sources)
        before = [source.copy() for source in sources]
        team.call(op, whole[:count], sources, S)()
        assert whole.tobytes() == expected.tobytes(), count
        assert all(np.array_equal(source, kept) for source, kept in zip(sources, before, strict=True))


@needs_llvmlite
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_each_thread_leaves_the_sum_of_its_own_part(make, threads):
    team = make(threads)
    for count in COUNTS:
        source = team.array(count + GUARD)
        source[:] = np.nan  # beyond the end
        source[:count] = np.random.default_rng(count).integers(-512, 512, count)
        edges = [count // BLOCK * thread // threads * BLOCK for thread in range(threads)] + [count]
        sums = np.full(threads, np.nan)
        team.call("read", sums, [source[:count]], S)()
        assert sums.tolist() == [source[low:high].sum() for low, high in itertools.pairwise(edges)]


@needs_llvmlite
def test_a_call_can_be_repeated_and_sees_what_its_sources_hold_now(make, values):
    team = make(2)
    b, out = values(team, 1000), team.array(1000)
    run = team.call("scale", out, [b], S)
    for _ in range(300):
        b += 1
        run()
        assert np.array_equal(out, S * b)


@needs_llvmlite
def test_a_call_keeps_its_arrays_alive(make, values):
    team = make(2)
    b, out = values(team, 10_000), team.array(10_000)
    kept = weakref.ref(b)
    run = team.call("copy", out, [b], S)
    del b
    gc.collect()
    run()
    assert np.array_equal(out, kept())
    del run
    gc.collect()
    assert kept() is None


# -- what does not fit


@needs_llvmlite
def test_arrays_that_do_not_fit_are_refused(make):
    team = make(2)
    a, b, short, sums = team.array(64), team.array(64), team.array(32), np.zeros(2)
    for op, out, sources, words in [
        ("copy", a, [], "copy reads 1 arrays, got 0"),
        ("write", a, [b], "write reads 0 arrays, got 1"),
        ("add", a, [b, short], r"lengths \[64, 64, 32\]"),
        ("copy", short, [b], r"lengths \[32, 64\]"),
        ("read", np.zeros(3), [b], r"lengths \[3, 64\]"),
        ("copy", a[1:33], [short], "multiple of 64 bytes"),
        ("copy", short, [b[1:33]], "multiple of 64 bytes"),
        ("read", sums, [b[1:]], "multiple of 64 bytes"),
        ("copy", short, [b[::2]], "contiguous"),
        ("copy", a, [b.view(np.int64)], "contiguous float64, got int64"),
        ("copy", a.reshape(8, 8), [b], "shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            team.call(op, out, sources, S)
    with pytest.raises(ValueError, match="a team needs a processor"):
        native.Team([])


def test_what_is_missing_is_named(monkeypatch):
    asked = native.available.__wrapped__
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert asked() == "native kernels need 64-bit Linux"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert asked() == "native kernels need llvmlite 0.45 or newer"

    def refuse(name):
        raise RuntimeError("no such target\nand more")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(code, "address", refuse)
    assert asked() == "llvmlite makes no code for this processor: no such target"

    def broken(name):
        raise ImportError("libLLVM.so.20: cannot open shared object file\nand more")

    monkeypatch.setattr("importlib.import_module", broken)
    assert asked() == "llvmlite is here and cannot be imported: libLLVM.so.20: cannot open shared object file"


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    script = "import sys, kernels.native; print([m for m in ('llvmlite', 'torch', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- the code


def assembly(triple, cpu, ahead=code.AHEAD):
    from llvmlite import binding

    code.host()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    text = machine.emit_assembly(binding.parse_assembly(code.text(triple, ahead)))
    return {op: re.search(rf"(?ms)^{op}:.*?\.cfi_endproc", text)[0] for op in [*OPS, "share"]}


@needs_llvmlite
@pytest.mark.parametrize(
    ("triple", "cpu", "store", "in_a_block"),
    [
        ("x86_64-unknown-linux-gnu", "x86-64", r"movntp[sd]\s+%xmm", 16),
        ("x86_64-unknown-linux-gnu", "haswell", r"vmovntp[sd]\s+%ymm", 8),
        ("x86_64-unknown-linux-gnu", "skylake-avx512", r"vmovntp[sd]\s+%ymm", 8),
        ("x86_64-unknown-linux-gnu", "znver4", r"vmovntp[sd]\s+%ymm", 8),
        ("aarch64-unknown-linux-gnu", "neoverse-n1", r"stnp\s+q", 8),
        ("aarch64-unknown-linux-gnu", "neoverse-v2", r"stnp\s+q", 8),
    ],
)
def test_on_every_processor_blocks_are_stored_past_the_caches_and_nothing_is_fused(triple, cpu, store, in_a_block):
    text, lines = assembly(triple, cpu), code.PER_BLOCK * code.ITEM // code.LINE
    for op in OPS:
        assert len(re.findall(store, text[op])) == (in_a_block if op in WRITING else 0), op
        assert not re.search(r"fn?m(add|sub|la|ls)", text[op]), op
        assert len(re.findall(r"prefetcht0|prfm", text[op])) == lines * (op != "read") * len(code.OPS[op]), op
    assert re.search(r"sfence|dmb\s+ish\b", text["share"])


@needs_llvmlite
def test_lines_are_asked_for_ahead_only_where_that_was_seen_to_help():
    text = assembly("x86_64-unknown-linux-gnu", "znver3", code.AHEAD_ON["znver3"])
    assert not [op for op in OPS if "prefetch" in text[op]]
    assert code.ahead() in {code.AHEAD, *code.AHEAD_ON.values()}


# -- memory


@needs_llvmlite
def test_arrays_are_zero_aligned_and_asked_onto_huge_pages(make):
    array = make(2).array(1 << 19)
    assert not array.any()
    assert array.ctypes.data % native.HUGE == 0
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        assert "hg" in mapping(array.ctypes.data)["VmFlags"].split()


@needs_llvmlite
def test_memory_is_given_back_with_the_last_view(make):
    team = make(2)
    array = team.array(1 << 20)
    at, view = array.ctypes.data, array[5:]
    team.call("write", array, [], S)()
    del array
    gc.collect()
    assert mapping(at)
    assert view[-1] == S
    del view
    gc.collect()
    assert not mapping(at)


def mapping(at):
    """The fields of the mapping that holds an address; empty if none does."""
    for text in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", text)
        if span and int(span[1], 16) <= at < int(span[2], 16):
            return dict(re.findall(r"(?m)^(\w+):\s+(.*)$", text))
    return {}


# -- threads


def allowed(tid):
    return re.search(r"(?m)^Cpus_allowed_list:\s+(.*)$", Path(f"/proc/self/task/{tid}/status").read_text())[1]


@needs_llvmlite
def test_threads_are_pinned_and_the_caller_is_let_go_again(make):
    team = make(3)
    assert [allowed(thread.native_id) for thread in team._threads] == [str(cpu) for cpu in team.processors[1:]]
    team.array(1000)
    assert os.sched_getaffinity(0) == ALLOWED


@needs_llvmlite
@pytest.mark.parametrize("place", [0, 1])
def test_a_processor_that_cannot_be_had_is_named_and_no_thread_stays(place):
    here, threads = min(os.sched_getaffinity(0)), threading.active_count()
    with pytest.raises(RuntimeError, match="cannot pin a thread to processor 8000: "):
        native.Team([8000, here] if place == 0 else [here, 8000])
    assert threading.active_count() == threads
    assert os.sched_getaffinity(0) == ALLOWED


@needs_llvmlite
def test_a_closed_team_has_no_threads_and_can_be_closed_again(make):
    threads = threading.active_count()
    team = make(5)
    assert threading.active_count() == threads + 4
    team.close()
    team.close()
    assert threading.active_count() == threads


@needs_llvmlite
def test_a_process_has_one_team_and_a_fork_another(monkeypatch):
    team = native.team()
    assert native.team() is team
    assert team.processors == tuple(native.processors())
    assert set(team.processors) <= os.sched_getaffinity(0)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    other = native.team()
    assert other is not team
    other.close()
    native._team.cache_clear()
    team.close()


@needs_llvmlite
def test_a_process_ends_while_its_threads_sleep():
    script = "import time\nfrom kernels import native\nnative.team().array(9)\ntime.sleep(0.05)"
    assert subprocess.run([sys.executable, "-c", script], timeout=30).returncode == 0
