"""All ranks at once on real files: whose bytes are read, what is caught, who is named, and that nothing is left behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from clustergauge import accept, metrics, warnings
from clustergauge.model import Place
from clustergauge.plan import Wish, load_suite, plan
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from storage_io import checkpoint, memory, parallel as module, workspace
from storage_io.errors import StorageError
from storage_io.parallel import parallel, prepare
from storage_io.pattern import BASE_BYTES, STAMP_EVERY, Pattern, aligned
from storage_io.ranks import add_up, partners
from storage_io.shared import LAYOUTS
from tests import made, nodes
from tests.faults.parallel_ranks import APART, SIZE, SLOW_S
from tests.on_disk import (
    ROOT,
    context,
    data_file,
    end,
    flip,
    fraction,
    has_device,
    measuring,
    mounted,
    names,
    needs_root,
    refuse_direct,
)
from tests.planted_cases import supervised

SMALL = (4 << 20) + 4096  # the last block is a short one
BLOCK = 1 << 20


@pytest.fixture(autouse=True)
def small_trial(monkeypatch):
    monkeypatch.setattr(module, "TRIAL_BYTES", 1 << 20)


@contextlib.contextmanager
def prepared(target, layout, op, size=SMALL, depth=2):
    """One rank alone, which reads what it wrote itself."""
    ctx = context(target)
    work = prepare(ctx, layout, op, BLOCK, depth, size, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


# -- whose bytes


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=24))
def test_every_rank_is_read_by_one_other_of_another_host_where_there_are_enough(hosts):
    found = partners(hosts)
    assert sorted(found) == list(range(len(hosts)))
    if len(hosts) > 1:
        assert all(of != rank for rank, of in enumerate(found))
    fullest = max(map(hosts.count, hosts))
    same = sum(hosts[of] == hosts[rank] for rank, of in enumerate(found))
    least = max(0, 2 * fullest - len(hosts))
    assert same == least


def test_on_one_host_the_next_rank_is_read_and_over_two_that_of_the_other():
    assert partners(["a"] * 3) == [1, 2, 0]
    assert partners(["a", "a", "b", "b"]) == [2, 3, 0, 1]


def test_counters_count_together_or_not_at_all():
    assert add_up([{"read": 1}, {"read": 2}]) == {"read": 3}
    assert add_up([{"read": 1}, {}]) == {}


ONE, SAME, OTHER = Pattern(7), Pattern(7), Pattern(8)


@settings(deadline=None)
@given(st.integers(0, 2 * BASE_BYTES // STAMP_EVERY), st.integers(1, 3))
def test_data_made_by_one_process_is_known_by_another_wherever_it_begins(start, blocks):
    got = aligned(blocks * STAMP_EVERY)
    ONE.fill(got, 3, 2, start * STAMP_EVERY)
    SAME.verify(got, "file", 3, 2, start * STAMP_EVERY)
    for wrong in (OTHER, SAME):
        with pytest.raises(Wrong, match="differs at byte"):
            wrong.verify(got, "file", 3, 2, (start + (wrong is SAME)) * STAMP_EVERY)


def test_what_begins_in_the_middle_is_what_is_there():
    row = STAMP_EVERY // 8
    whole, part = aligned(4 * STAMP_EVERY), aligned(2 * STAMP_EVERY)
    ONE.fill(whole, 3, 2, BASE_BYTES - 2 * STAMP_EVERY)
    SAME.fill(part, 3, 2, BASE_BYTES - STAMP_EVERY)
    assert np.array_equal(whole[row : 3 * row], part)


# -- one rank


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("op", "way"), [("write", "written"), ("read", "read")])
def test_bytes_are_transferred_verified_and_removed(tmp_path, layout, op, way):
    with prepared(tmp_path, layout, op) as (work, ctx):
        for _ in range(2):
            work.reset()
            work.run()
            work.note()
        work.check()
        assert (work.workload.bytes_read, work.workload.bytes_written) == ((SMALL, 0) if op == "read" else (0, SMALL))
        assert work.workload.bound == "storage"
        assert (work.max_iterations, work.sync) == (1, True)
        assert ctx.settings["engine"] == "pwritev/preadv, 2 threads a rank"
        assert ctx.settings["block_bytes"] == BLOCK
        assert ctx.settings["direct_reason"]
        unit, took = ctx.series["rank_seconds"]
        assert (unit, len(took)) == ("s", 2)
        if has_device(ctx):
            assert ctx.device_bytes[f"asked_{way}"] == 2 * SMALL
            assert fraction(ctx, way) >= 0.95


def test_the_sync_is_inside_a_write_after_its_last_block(tmp_path, monkeypatch):
    calls = []
    with prepared(tmp_path, "n_to_1", "write") as (work, _):
        work.reset()
        for name in ("pwritev", "fdatasync"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (real(*args), calls.append(name))[0])
        work.run()
        assert calls == ["pwritev"] * 5 + ["fdatasync"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flipped_bit_on_the_disk_is_found_in_what_is_read_and_in_what_was_written(tmp_path, layout):
    with prepared(tmp_path, layout, "read") as (work, _):
        work.reset()
        was = flip(data_file(tmp_path), 5000)
        work.run()
        words = f"/data-0 differs at byte 5000: expected {was:#04x}, got {was ^ 4:#04x}; .*; written by rank 0 on "
        with pytest.raises(Wrong, match=words):
            work.note()
    with prepared(tmp_path, layout, "write") as (work, _):
        work.reset()
        work.run()
        work.note()
        flip(data_file(tmp_path), SMALL - 1)
        with pytest.raises(Wrong, match=f"/data-0 differs at byte {SMALL - 1}: "):
            work.check()


@pytest.mark.parametrize("op", ["write", "read"])
def test_a_run_that_did_nothing_is_caught(tmp_path, op):
    with prepared(tmp_path, "n_to_n", op) as (work, _):
        work.reset()
        words = "got 0xa5" if op == "read" else "sample 0 lies where file 0, block 0, sample 1 belongs"
        with pytest.raises(Wrong, match=words):
            work.check()


def test_what_was_truncated_cannot_be_read_back(tmp_path):
    with prepared(tmp_path, "n_to_n", "write") as (work, _):
        work.reset()
        work.run()
        os.truncate(data_file(tmp_path), 4096)
        with pytest.raises(Wrong, match=r"^what rank 0 on \S+ wrote cannot be read back: cannot read \S+/data-0 at byte 4096: "):
            work.note()


def test_what_is_read_back_is_not_what_was_read_back_before(tmp_path, monkeypatch):
    with prepared(tmp_path, "n_to_n", "write", BLOCK, 1) as (work, _):
        work.reset()
        work.run()
        work.note()
        work.check()
        with monkeypatch.context() as lying:
            lying.setattr(os, "preadv", lambda _, views, __: len(views[0]))
            with pytest.raises(Wrong, match="expected 0x00, got 0xa5"):
                work.check()


@pytest.mark.parametrize("op", ["write", "read"])
def test_what_the_kernel_would_not_drop_before_a_run_is_told(tmp_path, monkeypatch, op):
    refuse_direct(monkeypatch)
    left = [8192, 0]
    with prepared(tmp_path, "n_to_n", op) as (work, ctx):
        monkeypatch.setattr(module.DataFile, "drop", lambda _: left.pop(0) if left else None)
        for _ in range(2):
            work.reset()
            work.run()
            work.note()
        assert ctx.settings["page_cache_left_bytes"] == 8192


def test_what_does_not_fit_is_skipped_in_words(tmp_path, monkeypatch):
    bare = Context(world=Serial(), device="cpu", seed=1, scratch=tmp_path)
    with pytest.raises(Skip, match="no target folder"):
        prepare(bare, "n_to_n", "read", BLOCK, 1, SMALL)
    with pytest.raises(Skip, match="4097B is not a whole number of 4 KiB blocks"):
        prepare(context(tmp_path), "n_to_n", "read", BLOCK, 1, 4097)
    with pytest.raises(Skip, match="5000B is not a whole number of 4 KiB blocks"):
        prepare(context(tmp_path), "n_to_n", "read", 5000, 1, SMALL)
    with pytest.raises(Skip, match=r"^3 blocks of 1MiB at a time are more than 2MiB; take a smaller --set depth=…$"):
        prepare(context(tmp_path), "n_to_n", "write", 1 << 20, 3, 2 << 20)
    with pytest.raises(Skip, match="must stay free"):
        prepare(context(tmp_path), "n_to_n", "read", BLOCK, 1, SMALL, spare=1 << 60)
    with pytest.raises(StorageError, match=r"^cannot write to .*/nowhere: no such file or directory$"):
        prepare(context(tmp_path / "nowhere"), "n_to_n", "read", BLOCK, 1, SMALL, spare=0)
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(Skip, match="1 buffer of 64MiB need"):
        prepare(context(tmp_path), "n_to_n", "read", BLOCK, 1, 64 << 20, spare=0)
    assert names(tmp_path) == []


@needs_root
def test_a_small_file_system_is_refused_and_memory_proves_nothing(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=6m", "tmpfs") as target:
        with pytest.raises(Skip, match="has 6 MiB free, the files need 8 MiB"):
            prepare(context(target), "n_to_n", "read", BLOCK, 1, 8 << 20, spare=0)
        with prepared(target, "n_to_n", "read", 4 << 20) as (work, ctx):
            work.reset()
            work.run()
            work.check()
            assert not ctx.settings["direct"]
            assert ctx.device_bytes.get("read", 0) == 0


def test_planned_over_nodes_where_other_storage_is_not(tmp_path):
    (tmp_path / "s.toml").write_text(
        'title = "t"\n[[cases]]\nprobe = "parallel"\nlayout = "n_to_1"\nop = "read"\nblock = "1MiB"\ndepth = 8\nsize = "1GiB"\n'
        '[[cases]]\nprobe = "checkpoint"\nmodel = "llama3-8b"\nformat = "raw"\nop = "save"\nranks = "all"\nsize = "1GiB"\n'
    )
    probes = {"parallel": parallel, "checkpoint": checkpoint.checkpoint}
    found = plan(load_suite(tmp_path / "s.toml"), probes, made.machine(cores=4), Wish(nodes=3, targets=("/t",)))
    assert {(p.case.partition("/")[0], p.device, p.ranks, p.nodes, p.skip) for p in found} == {
        ("parallel", "cpu:nodes", 12, 3, ""),
        ("checkpoint", "cpu:0", 4, 1, ""),
    }
    (without,) = plan(load_suite(tmp_path / "s.toml"), probes, made.machine(), Wish(globs=["parallel/*"]))
    assert without.skip == "no target folder"
    assert without.case == "parallel/layout=n_to_1/op=read/block=1MiB/depth=8/size=1GiB"


def test_listing_imports_nothing_heavy():
    code = "import sys, storage_io.parallel; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_files_go_with_a_terminated_worker_and_are_swept_after_a_killed_one(tmp_path, number):
    params = {"layout": "n_to_1", "op": "read", "block": "1MiB", "depth": 8, "size": 8 << 20}
    with measuring(tmp_path, "storage_io.parallel", "parallel", **params) as process:
        end(process, number)
    assert len(names(tmp_path)) == (number == signal.SIGKILL)
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", "lock", ".clustergauge-0123456789abcde", "../.clustergauge-0123456789abcdef"])
def test_a_run_folder_of_another_process_is_one_of_ours_by_its_name(tmp_path, name):
    with pytest.raises(ValueError, match="is no run folder"):
        workspace.folder_of(tmp_path, name)


# -- several ranks, for real


@pytest.fixture(scope="module")
def supervisor():
    with supervised() as owner:
        yield owner


def run(supervisor, target, layout, op, fault, budget_s=0.05, ranks=2, nodes=1):
    params = {"layout": layout, "op": op, "fault": fault}
    fields = {"case": "parallel_ranks", "probe": "parallel_ranks", "module": "tests.faults.parallel_ranks", "params": params}
    fields |= {"device": "cpu:nodes" if nodes > 1 else "cpu:0", "ranks": ranks, "nodes": nodes, "world": "torch"}
    planned = made.planned(made.record(), **fields, budget_s=budget_s, timeout_s=30.0, target=str(target))
    return supervisor.run(planned, seed=1, llc_bytes=1 << 20).outcome


def record_of(outcome, ranks=2):
    fields = {name: getattr(outcome, name) for name in ("measurement", "settings", "device_bytes")}
    places = [Place(rank=rank, host=f"node-{rank}") for rank in range(ranks)]
    return made.record(work=outcome.workload, **fields, ranks=ranks, placement=places)


@pytest.mark.parametrize(
    ("ranks", "layout", "op"), [(3, "n_to_1", "write"), (3, "n_to_n", "read"), (2, "n_to_n", "write"), (2, "n_to_1", "read")]
)
@pytest.mark.slow
def test_ranks_transfer_at_once_and_count_together(supervisor, tmp_path, layout, op, ranks):
    outcome = run(supervisor, tmp_path, layout, op, "none", ranks=ranks)
    assert outcome.status == "ok", outcome
    assert outcome.workload.bytes_read + outcome.workload.bytes_written == ranks * SIZE
    samples = outcome.measurement.samples_s
    assert len(outcome.measurement.series["rank_seconds"].values) == ranks * len(samples)
    assert (outcome.settings["nodes"], outcome.settings["read_on_own_node"]) == (1, ranks)
    found = {metric.name: metric for metric in metrics.derive([record_of(outcome, ranks)])}
    rate = [m for m in metrics.derive([record_of(outcome, ranks)]) if m.name == "bandwidth"]
    assert [metric.unit for metric in rate] == ["B/s"]
    if outcome.device_bytes:
        assert outcome.device_bytes["asked_written" if op == "write" else "asked_read"] % (ranks * SIZE) == 0
        assert found["device_fraction"].value >= 0.95
    assert names(tmp_path) == []


QUESTION = re.escape("is the target one file system on all nodes?")


@pytest.mark.parametrize(
    ("layout", "op", "fault", "status", "words"),
    [
        ("n_to_n", "write", "full", "error", r"^rank 1: StorageError: cannot write \S+/data-1: no space left on device$"),
        ("n_to_1", "read", "refuses", "skipped", r"^rank 1: this rank's disk is not there$"),
        ("n_to_n", "write", "lazy", "wrong", r"^rank 0: \S+/data-1 differs at byte 24: .*; written by rank 1 on \S+$"),
        ("n_to_1", "read", "lazy", "wrong", r"^rank 1: \S+/data-0 differs at byte 0: .* got 0xa5.*; written by rank 0 on \S+$"),
        (
            "n_to_1",
            "write",
            "flip",
            "wrong",
            rf"^rank 0: \S+/data-0 differs at byte {2 * SIZE - 5}: .*; written by rank 1 on \S+$",
        ),
        ("n_to_n", "read", "flip", "wrong", rf"^rank 1: \S+/data-0 differs at byte {SIZE - 5}: .*; written by rank 0 on \S+$"),
        ("n_to_n", "read", "missing", "error", rf"^rank 1: StorageError: rank 0's file \S+/data-0 is not there: {QUESTION}$"),
        ("n_to_1", "read", "missing", "error", rf"^rank \d: StorageError: the ranks' file \S+/data-0 is not there: {QUESTION}$"),
        (
            "n_to_n",
            "read",
            "apart",
            "skipped",
            rf"^rank 1: rank 1's file \S+/data-1 is not there: {QUESTION} \(here \S+, on rank 0's ",
        ),
        (
            "n_to_1",
            "write",
            "unmounted",
            "error",
            rf"^rank 1: StorageError: the ranks' file \S+ is not there: {QUESTION} .* nfs4\)$",
        ),
    ],
)
@pytest.mark.slow
def test_the_rank_that_failed_is_named_and_nothing_is_left(supervisor, tmp_path, layout, op, fault, status, words):
    (tmp_path / APART).mkdir()
    outcome = run(supervisor, tmp_path, layout, op, fault)
    assert outcome.status == status, outcome
    assert re.search(words, outcome.reason), outcome.reason
    assert names(tmp_path) == [APART]
    assert names(tmp_path / APART) == []


@pytest.mark.slow
def test_the_rank_that_died_is_named_and_what_is_left_can_be_swept(supervisor, tmp_path):
    outcome = run(supervisor, tmp_path, "n_to_n", "write", "dies")
    assert outcome.status == "error"
    assert outcome.reason.startswith("rank 1 on "), outcome.reason
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.slow
def test_the_slow_rank_is_named(supervisor, tmp_path):
    outcome = run(supervisor, tmp_path, "n_to_1", "write", "slow", budget_s=1.0)
    assert outcome.status == "ok", outcome
    assert max(outcome.measurement.samples_s) >= SLOW_S
    found = {doubt.name: doubt for doubt in warnings.doubts([record_of(outcome)])}
    assert found["slow storage of a rank"].detail.startswith("rank 1 on node-1 takes ")


@pytest.mark.slow
def test_reads_that_the_cache_of_one_rank_answered_are_invalid(supervisor, tmp_path):
    outcome = run(supervisor, tmp_path, "n_to_n", "read", "cached")
    assert outcome.status == "ok", outcome
    assert (outcome.settings["direct"], outcome.settings["direct_reason"]) == (False, "planted")
    if not outcome.device_bytes:
        pytest.skip("nothing is counted here")
    (verdict,) = accept.judge([record_of(outcome)])
    assert verdict.verdict == "invalid"
    assert verdict.reason.startswith("cached: the device moved ")


@pytest.mark.slow
def test_where_the_device_cannot_be_seen_it_is_unproven(supervisor, tmp_path):
    outcome = run(supervisor, tmp_path, "n_to_n", "read", "none")
    record = record_of(outcome)
    far = msgspec.structs.replace(record, settings=record.settings | {"fs_type": "lustre"})
    found = {doubt.name: doubt for doubt in warnings.doubts([far])}
    assert found["unproven"].detail == "lustre: what its servers read from their caches cannot be seen from here"
    assert [v.verdict for v in accept.judge([far])] != ["invalid"]


# -- over nodes


def over_two_nodes(target, layout, op, remote=nodes.REMOTE, ranks=4):
    fleet = nodes.fleet(("na", "nb"), remote=remote)
    try:
        assert not fleet.left_out, fleet.left_out
        supervisor, _ = nodes.team_of(fleet)
        try:
            return run(supervisor, target, layout, op, "none", ranks=ranks, nodes=2)
        finally:
            supervisor.close()
    finally:
        fleet.close()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_over_nodes_each_rank_reads_of_the_other_node(tmp_path, ranks):
    outcome = over_two_nodes(tmp_path, "n_to_1", "read", ranks=ranks)
    assert outcome.status == "ok", outcome
    assert (outcome.settings["nodes"], outcome.settings["read_on_own_node"]) == (2, 0)
    assert outcome.workload.bytes_read == ranks * SIZE
    assert names(tmp_path) == []


@needs_root
@pytest.mark.slow
def test_nodes_that_share_no_folder_are_told_so(tmp_path):
    """Each node has a file system of its own where the target is, in a mount namespace."""
    target = tmp_path / "target"
    target.mkdir()
    outcome = over_two_nodes(target, "n_to_n", "write", nodes.own_disks(tmp_path, target))
    assert outcome.status == "skipped", outcome
    words = rf"^rank 2: rank 2's file \S+/data-2 is not there: {QUESTION} \(here tmpfs, on rank 0's tmpfs\)$"
    assert re.search(words, outcome.reason), outcome.reason
    assert names(target) == []
