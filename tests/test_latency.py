"""Probe ``latency``: one random cycle through every line; a walk that skips, stops or strays is caught; the native loop."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Wrong
from clustergauge.world import Serial
from kernels import latency, native
from kernels.native import caches

KIB = 1 << 10

needs_llvmlite = pytest.mark.skipif(native.available() != "", reason=native.available() or "available")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Walks of a few hundred loads."""
    monkeypatch.setattr(latency, "LEAST_STEPS", 512)
    monkeypatch.setattr(latency, "MOST_STEPS", 512)


@pytest.fixture
def outcome(tmp_path):
    def run(size=16 * KIB, llc_bytes=1 << 40):
        params = {"backend": "native", "size": size}
        job = Job("latency", "kernels.latency", "latency", params, "cpu", 0.02, 1, llc_bytes=llc_bytes)
        return execute(job, latency.latency, Serial(), tmp_path, lambda _: None)

    return run


@pytest.fixture
def plant(monkeypatch):
    """Puts a wrong walker in the place of the right one: ``wrong(cell, follow, steps)``; ``follow(address)``: what lies there."""

    def planting(wrong):
        def call(backend, memory, cell, steps):
            words, base = memory.numpy(), memory.data_ptr()
            return lambda: wrong(cell.numpy(), lambda address: int(words[(address - base) // 8]), steps)

        monkeypatch.setattr(latency, "_call", call)

    return planting


# -- the cycle


def made(nodes, stride, seed=1):
    memory = torch.zeros(nodes * stride // 8, dtype=torch.int64)
    return memory, latency.link(memory, stride, torch.Generator().manual_seed(seed))


@given(st.integers(1, 700), st.sampled_from((8, 64, 128)), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_addresses_are_one_cycle_through_every_line_and_nothing_else_is_written(nodes, stride, seed):
    memory, order = made(nodes, stride, seed)
    words, base = memory.tolist(), memory.data_ptr()
    at, seen = int(order[0]), []
    for _ in range(nodes):
        seen.append(at)
        at = words[(at - base) // 8]
    assert at == seen[0]
    assert seen == order.tolist()
    assert sorted(seen) == [base + stride * node for node in range(nodes)]
    assert sum(word == 0 for word in words) == len(words) - nodes


def test_every_cycle_of_four_lines_is_drawn_about_as_often():
    """Of the (4 - 1)! = 6 cycles; 600 draws with fixed seeds."""
    drawn = {}
    for seed in range(600):
        memory, order = made(4, 64, seed)
        nodes = [(address - memory.data_ptr()) // 64 for address in order.tolist()]
        first = nodes.index(0)
        cycle = (*nodes[first:], *nodes[:first])
        drawn[cycle] = drawn.get(cycle, 0) + 1
    assert len(drawn) == 6
    assert min(drawn.values()) > 60


@given(st.integers(6, 22).map(lambda bits: 1 << bits) | st.integers(32, 1 << 22), st.sampled_from((64, 128)))
def test_a_run_never_ends_where_it_began_and_is_whole_turns(nodes, stride):
    for size in (None, nodes * stride):
        steps = latency.steps_of(size, nodes)
        assert steps % nodes
        assert steps % caches.UNROLL == 0
        assert steps >= latency.LEAST_STEPS


def test_runs_are_longer_where_loads_are_faster(monkeypatch):
    monkeypatch.undo()
    loads = [latency.steps_of(size, size // 64) for size in (16 << 10, 1 << 20, 4 << 20, 32 << 20, 1 << 30)]
    assert [round(count, -4) for count in loads] == [2100000, 1050000, 260000, 70000, 70000]
    assert latency.steps_of(None, 1 << 23) == latency.LEAST_STEPS + latency.TURN


# -- what is measured


@needs_llvmlite
@pytest.mark.parametrize("kib", [4, 16, 100, 1024])
def test_times_are_of_one_load(outcome, kib):
    done = outcome(kib * KIB)
    assert (done.status, done.reason) == ("ok", "")
    steps = done.settings["loads_per_run"]
    assert 512 < steps < 700
    assert done.measurement.iterations_per_sample % steps == 0
    assert (done.workload.bound, done.workload.bytes_read) == ("latency", 0)
    assert (done.measurement.clock, done.measurement.cache) == ("wall", "hot")
    assert (done.settings["stride_bytes"], done.settings["processors"]) == (64, 1)
    assert "huge_page_share" in done.settings
    span = done.measurement.sample_start_s[1] - done.measurement.sample_start_s[0]
    assert done.measurement.samples_s[0] * done.measurement.iterations_per_sample <= span


@needs_llvmlite
def test_a_set_that_no_cache_holds_is_called_cold(outcome):
    assert outcome(llc_bytes=4 * KIB).measurement.cache == "cold"
    assert outcome(llc_bytes=4 * KIB + 1).measurement.cache == "hot"


@needs_llvmlite
def test_all_of_a_hot_set_has_been_walked_before_it_is_timed(tmp_path):
    size = 256 * KIB
    work = latency.latency.function(Context(Serial(), "cpu", 1, tmp_path, llc_bytes=1 << 40), backend="native", size=size)
    assert int(work.reset.__self__.cell[1]) >= size // 64
    assert work.steps == latency.steps_of(size, size // 64)


@pytest.mark.parametrize(("backend", "size", "line"), [("native", 4032, 64), ("native", 5000, 64), ("cupy", 16448, 128)])
def test_sizes_that_are_no_whole_lines_are_refused(backend, size, line):
    with pytest.raises(UsageError, match=f"size {size}: at least 4KiB, in whole lines of {line} bytes"):
        latency.latency.needs_of({"backend": backend, "size": size})


def test_native_says_why_it_cannot_work(outcome, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: "no code for this processor")
    assert (outcome().status, outcome().reason) == ("skipped", "no code for this processor")


# -- planted errors


def walked(cell, follow, steps, counted=None):
    at = int(cell[0])
    for _ in range(steps):
        at = follow(at)
    cell[0] = at
    cell[1] += steps if counted is None else counted


@needs_llvmlite
def test_the_stand_in_for_the_planted_errors_is_right(outcome, plant):
    plant(walked)
    assert outcome().status == "ok"


def does_not_go_on(cell, follow, steps):
    before = int(cell[0])
    walked(cell, follow, steps)
    cell[0] = before


@needs_llvmlite
@pytest.mark.parametrize(
    "wrong",
    [
        lambda cell, follow, steps: None,
        lambda cell, follow, steps: walked(cell, follow, steps - 1, steps),
        lambda cell, follow, steps: walked(cell, follow, steps + 1, steps),
        lambda cell, follow, steps: walked(cell, follow, 0, steps),
        lambda cell, follow, steps: walked(cell, follow, steps, 0),
        lambda cell, follow, steps: walked(cell, follow, steps // 2),
        lambda cell, follow, steps: walked(cell, lambda address: address + 64, steps),
        does_not_go_on,
    ],
    ids=["nothing", "one less", "one more", "counted, not walked", "not counted", "half", "straight on", "does not go on"],
)
def test_a_walk_that_does_not_take_its_loads_is_caught(outcome, plant, wrong):
    plant(wrong)
    done = outcome()
    assert (done.status, done.measurement) == ("wrong", None)
    assert re.match(
        r"after \d+ loads from line \d+ of the cycle on: expected address [0-9a-f]+, got|\d+ loads were counted", done.reason
    )


@needs_llvmlite
def test_timed_walks_that_were_shorter_than_they_are_counted_are_caught_without_the_exact_pass(outcome, plant, monkeypatch):
    monkeypatch.setattr(latency.Walk, "exact", lambda *_: None)
    plant(lambda cell, follow, steps: walked(cell, follow, steps // 2))
    assert re.match(r"\d+ loads were counted, not \d+", outcome().reason)


def test_the_walk_is_where_its_count_leads_over_several_samples():
    memory, order = made(100, 64)
    walk = latency.Walk(memory, order)
    for loads in (7, 150, 33):
        walk.begin()
        with pytest.raises(Wrong, match=rf"^0 loads were counted, not {loads}$"):
            walk.check(loads)
        start = walk.start
        walk.cell[0], walk.cell[1] = order[(start + loads) % 100], loads
        walk.check(loads)
        with pytest.raises(Wrong, match=rf"^{loads} loads were counted, not {loads + 1}$"):
            walk.check(loads + 1)
    assert walk.start == 157 % 100


# -- the native loop


@needs_llvmlite
def test_the_native_walk_goes_on_where_it_ended():
    memory, order = made(100, 64)
    team = native.team(1)
    cell = np.array([int(order[3]), 0])
    run = caches.chase(team, memory.numpy(), cell, 48)
    for turn in range(1, 6):
        run()
        assert cell.tolist() == [int(order[(3 + 48 * turn) % 100]), 48 * turn]


@needs_llvmlite
def test_what_does_not_fit_is_refused():
    team, memory, cell = native.team(1), np.zeros(8, np.int64), np.zeros(2, np.int64)
    for steps in (0, 8, 40):
        with pytest.raises(ValueError, match=f"{steps} steps on 1 threads: multiples of 16 on one"):
            caches.chase(team, memory, cell, steps)
    two = native.Team(native.processors()[:1] * 2)
    try:
        with pytest.raises(ValueError, match="16 steps on 2 threads"):
            caches.chase(two, memory, cell, 16)
    finally:
        two.close()


@needs_llvmlite
@pytest.mark.parametrize(
    ("triple", "load"),
    [("x86_64-unknown-linux-gnu", r"movq\s+\(%(\w+)\), %(\w+)"), ("aarch64-unknown-linux-gnu", r"ldr\s+(x\d+), \[(x\d+)\]")],
)
def test_sixteen_loads_follow_each_other_and_memory_is_not_asked_for_anything_else(triple, load):
    from llvmlite import binding

    from kernels.native import code

    code.host()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(opt=3)
    text = re.search(r"(?ms)^chase:.*?\.cfi_endproc", machine.emit_assembly(binding.parse_assembly(code.text(triple))))[0]
    chain = [found for line in text.splitlines() if (found := re.fullmatch(load, line.strip())) and found[1] == found[2]]
    assert len(chain) == caches.UNROLL  # each from the register that the one before loaded
    assert len({found[1] for found in chain}) == 1
    first, last = (text.index(chain[0][0]), text.rindex(chain[0][0]))
    assert not re.search(r"st[rp]|\(%|push|\[sp", text[first:last].replace(chain[0][0], ""))
