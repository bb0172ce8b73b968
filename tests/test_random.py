"""The random probe on real files: engines move what they say, lies of a disk are found, helpers leave with their worker."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clustergauge import processes
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from storage_io import helpers, layout, memory, random_io, scattered, workspace
from storage_io.batch import WRITE, Batch
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.evidence import process_io
from storage_io.helpers import LARGE, Helpers
from storage_io.latencies import MOST, Latencies
from storage_io.random_io import prepare, random
from storage_io.scattered import LEAST, MIX
from tests.on_disk import (
    ROOT,
    alive,
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

SIZE = 16 << 20
BLOCK = 4096


@contextlib.contextmanager
def prepared(target, op="read", depth=1, block=BLOCK, size=SIZE, budget_s=0.1):
    ctx = context(target, budget_s)
    work = prepare(ctx, op, block, depth, size, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []
    assert children() == []


def children():
    return [p for p in processes.descendants(os.getpid()) if "storage_io.helpers" in command(p.pid)]


def command(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def sampled(work, times=1):
    for _ in range(times):
        work.reset()
        work.run()
        work.note()


# -- sound


@pytest.mark.parametrize("depth", [1, 8, 40])
@pytest.mark.parametrize("op", ["read", "write", "mixed"])
def test_blocks_are_transferred_counted_verified_and_removed(tmp_path, op, depth):
    with prepared(tmp_path, op, depth) as (work, ctx):
        ctx.device_bytes.clear()
        sampled(work, 3)
        work.check()
        transfers = ctx.settings["transfers_per_sample"]
        reads = {"read": transfers, "write": 0, "mixed": transfers * 7 // 10}[op]
        assert work.workload.ios * work.steps == transfers >= depth
        assert work.workload.bytes_read * work.steps == reads * BLOCK
        assert work.workload.bytes_written * work.steps == (transfers - reads) * BLOCK
        assert ctx.settings["latencies"] == 3 * transfers
        unit, values = ctx.series["latency"]
        assert unit == "s"
        assert min(values) > 0
        if has_device(ctx):
            assert ctx.device_bytes["asked_read"] == 3 * reads * BLOCK
            assert ctx.device_bytes["asked_written"] == 3 * (transfers - reads) * BLOCK
            for way in {"read": ["read"], "write": ["written"], "mixed": ["read", "written"]}[op]:
                assert fraction(ctx, way) >= 0.95


def test_larger_blocks_are_whole_ones(tmp_path):
    with prepared(tmp_path, "mixed", 8, block=65536) as (work, ctx):
        assert ctx.settings["transfers_per_sample"] <= SIZE // 65536
        sampled(work, 2)
        work.check()


@pytest.mark.parametrize("depth", [1, 32])
def test_a_case_is_measured_as_a_worker_does(tmp_path, depth, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    params = {"op": "mixed", "block": "4KiB", "depth": depth, "size": SIZE}
    job = Job("x", "storage_io.random_io", "random", params, "cpu", budget_s=0.2, seed=1, target=str(tmp_path))
    outcome = execute(job, random, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    measured = outcome.measurement
    assert measured.iterations_per_sample == outcome.settings["transfers_per_sample"] / MIX
    assert outcome.settings["latencies"] == len(measured.samples_s) * outcome.settings["transfers_per_sample"]
    assert len(measured.series["latency"].values) > 0
    assert names(tmp_path) == []
    assert children() == []


def test_writes_end_with_one_sync_inside_the_run_and_reads_have_none(tmp_path, monkeypatch):
    calls = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append("fdatasync"), real(fd)))
    for op, expected in (("write", ["fdatasync"]), ("read", [])):
        with prepared(tmp_path, op) as (work, _):
            work.reset()
            calls.clear()
            work.run()
            assert calls == expected


def slept_at_first(took):
    """A stopwatch that says these seconds, one after the other, and then that a call took as long as asked for."""
    left = list(took)
    return lambda call: (call(), left.pop(0) if left else 0.1)[1]


@pytest.mark.parametrize("block", [BLOCK, LARGE])
def test_a_first_look_that_is_late_does_not_make_samples_short(tmp_path, monkeypatch, block):
    monkeypatch.setattr(scattered, "seconds", slept_at_first([9.0, 0.008]))
    with prepared(tmp_path, "read", 8, block=block, budget_s=0.8) as (_, ctx):
        assert ctx.settings["transfers_per_sample"] == 100
    monkeypatch.setattr(scattered, "seconds", slept_at_first([9.0, 9.0]))
    with prepared(tmp_path, "read", 8, block=block, budget_s=0.8) as (_, ctx):
        assert ctx.settings["transfers_per_sample"] == LEAST


@pytest.mark.parametrize(("op", "depth", "count"), [("read", 40, 40), ("mixed", 32, 40), ("mixed", 1, 10)])
def test_as_many_as_are_in_flight_are_a_sample_however_slow_the_disk(tmp_path, monkeypatch, op, depth, count):
    monkeypatch.setattr(scattered, "seconds", lambda call: (call(), 9.0)[1])
    with prepared(tmp_path, op, depth) as (_, ctx):
        assert ctx.settings["transfers_per_sample"] == count


def test_no_block_is_touched_twice_in_a_sample(tmp_path):
    with prepared(tmp_path, "mixed") as (work, _):
        batch = work.run.__self__._batch
        work.reset()
        count = work.steps * MIX
        assert len(set(batch.offsets[:count].tolist())) == count
        first = batch.offsets[:count].copy()
        work.run()
        work.reset()
        assert not np.array_equal(first, batch.offsets[:count])


# -- wrong


@pytest.mark.parametrize("depth", [1, 32])
def test_a_flipped_bit_is_found_in_a_read_and_named(tmp_path, depth):
    with prepared(tmp_path, "read", depth) as (work, _):
        work.reset()
        at = int(work.run.__self__._batch.offsets[work.steps // 2]) + 1234
        was = flip(data_file(tmp_path), at)
        work.run()
        with pytest.raises(Wrong, match=rf"data-0 differs at byte {at}: expected {was:#04x}, got {was ^ 4:#04x}; .*: 1$"):
            work.check()
        with pytest.raises(Wrong, match="differs at byte"):
            work.reset()  # and no later sample can hide it


@pytest.mark.parametrize("op", ["write", "mixed"])
def test_a_flipped_bit_is_found_in_what_was_written(tmp_path, op):
    with prepared(tmp_path, op) as (work, _):
        work.reset()
        work.run()
        batch = work.run.__self__._batch
        written = batch.offsets[: work.steps * work.workload.ios][batch.kinds[: work.steps * work.workload.ios] == WRITE]
        at = int(written[-1]) + 77
        flip(data_file(tmp_path), at)
        with pytest.raises(Wrong, match=f"data-0 differs at byte {at}"):
            work.check()


@pytest.mark.parametrize("op", ["write", "mixed"])
def test_an_earlier_write_that_went_wrong_is_found_before_the_next(tmp_path, op):
    with prepared(tmp_path, op) as (work, _):
        work.reset()
        work.run()
        for block in work.run.__self__._written().tolist():
            flip(data_file(tmp_path), block * BLOCK + 99)
        with pytest.raises(Wrong, match="differs at byte"):
            work.reset()


def test_what_is_read_back_of_a_write_is_not_what_was_written_from(tmp_path, monkeypatch):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        work.run()
        with monkeypatch.context() as lying:
            lying.setattr(os, "preadv", lambda _, views, __: len(views[0]))
            with pytest.raises(Wrong, match="got 0xa5"):
                work.check()


def test_a_lost_write_is_told_as_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwritev", os.pwritev)
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        engine = work.run.__self__._engine._engine
        engine._items = [(i, lambda *_: BLOCK, views, offset) for i, _, views, offset in engine._items]
        work.run()
        with pytest.raises(Wrong, match=r"file 0, block \d+, sample \d+ lies where file 0, block \d+, sample \d+ belongs"):
            work.check()


def test_a_misplaced_read_is_told_as_such(tmp_path):
    with prepared(tmp_path, "read") as (work, _):
        work.reset()
        engine = work.run.__self__._engine._engine
        first, second, *rest = engine._items
        engine._items = [(*first[:3], second[3]), (*second[:3], first[3]), *rest]
        work.run()
        with pytest.raises(
            Wrong, match=r"\(file 0, block \d+, sample 0 lies where file 0, block \d+, sample 0 belongs\); .*: 2$"
        ):
            work.check()


def test_a_read_that_did_nothing_is_caught(tmp_path):
    with prepared(tmp_path, "read", 8) as (work, _):
        work.reset()
        with pytest.raises(Wrong, match="got 0xa5"):
            work.check()


@pytest.mark.parametrize("depth", [1, 8])
def test_large_blocks_are_read_into_one_block_of_memory_a_lane(tmp_path, monkeypatch, depth):
    real, used = os.preadv, []

    def read(descriptor, views, offset):
        used.append(np.frombuffer(views[0], np.uint8).ctypes.data)
        return real(descriptor, views, offset)

    with prepared(tmp_path, "read", depth, block=LARGE) as (work, ctx):
        assert ctx.settings["engine"].startswith("preadv, 1 ")
        work.reset()
        with monkeypatch.context() as watched:
            watched.setattr(os, "preadv", read)
            work.run()
        assert len(used) == work.steps == ctx.settings["transfers_per_sample"]
        assert len(set(used)) <= depth
        work.check()
    with prepared(tmp_path, "mixed", depth, block=LARGE) as (_, ctx):
        assert not ctx.settings["engine"].startswith("preadv")


@pytest.mark.parametrize("place", [0, 4, -1])
@pytest.mark.parametrize("depth", [1, 8])
def test_a_flipped_bit_is_found_in_a_large_block_whichever_it_is(tmp_path, monkeypatch, depth, place):
    monkeypatch.setattr(scattered, "BUFFER_BYTES", max(3, depth) * LARGE)
    monkeypatch.setattr(scattered, "seconds", lambda call: (call(), 1e-3)[1])
    with prepared(tmp_path, "read", depth, block=LARGE) as (work, _):
        assert work.steps > 2 * depth + 5  # more than memory holds
        assert work.run.__self__._batch.content.nbytes == max(3, depth) * LARGE
        work.reset()
        at = int(work.run.__self__._batch.offsets[: work.steps][place]) + 1234
        was = flip(data_file(tmp_path), at)
        work.run()
        with pytest.raises(Wrong, match=rf"data-0 differs at byte {at}: expected {was:#04x}, got {was ^ 4:#04x}; .*: 1$"):
            work.check()
        with pytest.raises(Wrong, match="differs at byte"):
            work.reset()


@pytest.mark.parametrize("depth", [1, 8])
def test_what_was_wrong_on_its_way_into_a_large_block_is_found_where_memory_holds_it(tmp_path, monkeypatch, depth):
    real = os.preadv

    def read(descriptor, views, offset):
        done = real(descriptor, views, offset)
        views[0][77] ^= 4  # the file has it right
        return done

    for liar, words in ((read, "differs at byte"), (lambda _, views, __: len(views[0]), "got 0xa5")):
        with prepared(tmp_path, "read", depth, block=LARGE) as (work, _):
            work.reset()
            with monkeypatch.context() as faulty:
                faulty.setattr(os, "preadv", liar)
                work.run()
            with pytest.raises(Wrong, match=words):
                work.check()
    with prepared(tmp_path, "read", depth, block=LARGE) as (work, _):
        work.reset()
        with pytest.raises(Wrong, match=r"^nothing of .*/data-0 was read$"):
            work.check()


# -- direct, buffered, cached


@pytest.fixture
def no_direct(monkeypatch):
    refuse_direct(monkeypatch)


@pytest.mark.parametrize(("op", "block"), [("write", BLOCK), ("read", LARGE)])
def test_without_direct_io_what_is_read_back_comes_from_the_device_too(tmp_path, no_direct, op, block):
    with prepared(tmp_path, op, 8, block=block) as (work, ctx):
        work.reset()
        work.run()
        before = process_io()
        work.check()
        after = process_io()
        if has_device(ctx):
            assert after[0] - before[0] >= 0.95 * work.steps * block


def test_a_file_system_without_direct_io_is_served_by_threads_and_labelled(tmp_path, no_direct):
    with prepared(tmp_path, "mixed", 32) as (work, ctx):
        ctx.device_bytes.clear()
        sampled(work, 2)
        work.check()
        assert ctx.settings["direct"] is False
        assert ctx.settings["engine"].startswith("pwritev/preadv, ")
        if has_device(ctx):  # the sync is inside the run, the cache is dropped before it; what is read ahead counts too
            assert fraction(ctx, "read") >= 0.95


@needs_root
def test_tmpfs_is_never_taken_for_a_device(tmp_path):
    with mounted(tmp_path / "ram", "-t", "tmpfs", "-o", "size=64m", "none") as target, prepared(target, "read", 8) as (work, ctx):
        sampled(work)
        work.check()
        assert ctx.settings["direct"] is False
        assert fraction(ctx, "read") == 0


# -- latencies


def test_latencies_are_thinned_evenly_and_never_grow_beyond_what_a_record_holds(tmp_path):
    ctx = context(tmp_path)
    kept = Latencies(ctx)
    for start in range(0, 10 * MOST, 777):
        kept.add(np.arange(start, min(start + 777, 10 * MOST)) * 1000)
    values = ctx.series["latency"][1]
    every = ctx.settings["latency_every"]
    assert ctx.settings["latencies"] == 10 * MOST
    assert every == 16
    assert [round(v * 1e6) for v in values] == list(range(0, 10 * MOST, every))


# -- failures, in one sentence, with nothing left behind


@pytest.mark.parametrize("depth", [1, 32])
def test_a_limit_on_file_size_is_one_sentence(tmp_path, depth):
    with prepared(tmp_path, "write", depth) as (work, _):
        limit = (SIZE // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        pids = [os.getpid(), *work.run.__self__._engine.pids]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
        try:
            with pytest.raises(StorageError, match=r"^cannot write .*/data-0 at byte \d+: file too large$"):
                sampled(work, 10)
        finally:
            resource.prlimit(os.getpid(), resource.RLIMIT_FSIZE, before)


@needs_root
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
@pytest.mark.parametrize("op", ["read", "write"])
@pytest.mark.parametrize("depth", [1, 32])
def test_a_failing_device_is_one_sentence(tmp_path, op, depth):
    with contextlib.ExitStack() as stack:
        room = stack.enter_context(mounted(tmp_path / "room", "-t", "tmpfs", "-o", "size=50m", "none"))
        image = room / "image"
        with image.open("wb") as file:
            file.truncate(48 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image)], check=True)
        target = stack.enter_context(mounted(tmp_path / "disk", "-t", "ext4", "-o", "loop", str(image)))
        work = prepare(context(target, 0.1), op, BLOCK, depth, SIZE, spare=0)
        try:
            work.reset()
            path = data_file(target)
            os.truncate(image, 0)  # the device is gone behind the file system
            with contextlib.suppress(OSError), (room / "filler").open("wb") as file:
                file.write(bytes(60 << 20))  # and its place is taken
            with pytest.raises(StorageError) as caught:
                work.run()
            words = "(input/output error|no space left on device)"  # what the loop device says of a write it can't keep
            assert caught.match(rf"^cannot {op} {path} at byte \d+: {words}$")
        finally:
            with contextlib.suppress(StorageError):
                work.close()
    assert children() == []


@needs_root
def test_a_full_file_system_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m", "none") as target:
        with pytest.raises(StorageError, match=f"^cannot allocate {SIZE} bytes for .*/data-0: no space left on device$"):
            prepare(context(target), "write", BLOCK, 8, SIZE)
        assert names(target) == []


def test_a_disk_too_slow_to_begin_with_is_refused_early_in_words(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(layout, "seconds", lambda call: (call(), written.append(1), 3.0)[2])
    with pytest.raises(
        Skip, match=r"^writing 256MiB to begin with would take 48 s \(at most 10 s; take a smaller --set size=…\)$"
    ):
        prepare(context(tmp_path), "read", BLOCK, 1, 256 << 20, spare=0)
    assert len(written) == 1
    assert names(tmp_path) == []


def test_a_killed_helper_is_named_and_its_worker_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with prepared(tmp_path, "read", 40) as (work, ctx):
        assert ctx.settings["engine"].endswith(", 2 processes × 20")
        work.reset()
        _, pid = work.run.__self__._engine.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"^a helper process was killed by SIGKILL$"):
            work.run()


def test_helpers_that_cannot_start_are_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match=r"^a helper process exited with 1$"):
        prepare(context(tmp_path), "read", BLOCK, 64, SIZE, spare=0)
    assert names(tmp_path) == []


def test_an_engine_that_cannot_start_leaves_no_other_behind(tmp_path, monkeypatch):
    ended, real = [], helpers.Aio.close
    monkeypatch.setattr(helpers.Aio, "close", lambda aio: (ended.append(aio), real(aio)))
    monkeypatch.setattr(scattered, "Threads", lambda *_: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        prepare(context(tmp_path), "read", LARGE, 8, SIZE, spare=0)
    assert len(ended) == 1
    assert names(tmp_path) == []


def test_a_helper_leaves_when_it_is_spoken_to_no_more(tmp_path):
    file = DataFile(tmp_path / "data", SIZE)
    batch = Batch(16, BLOCK)
    both = Helpers(file, batch, 2, 1)
    (helper,) = both._helpers
    helper.stdin.close()
    assert helper.wait(30) == 0
    both.close()
    batch.close()
    file.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_helpers_end_with_their_worker_and_its_folder_is_swept(tmp_path, number):
    with measuring(tmp_path, "storage_io.random_io", "random", op="write", block="4KiB", depth=64, size=SIZE) as process:
        own = [p.pid for p in processes.descendants(process.pid)]
        assert own
        end(process, number)
        assert alive(own) == []
    assert len(names(tmp_path)) == (number == signal.SIGKILL)
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []


def test_what_has_no_meaning_is_skipped_in_words(tmp_path, monkeypatch):
    with pytest.raises(Skip, match="no target folder"):
        prepare(Context(world=Serial(), device="cpu", seed=1, scratch=tmp_path), "read", BLOCK, 1, SIZE)
    for block, size, words in (
        (BLOCK, 1 << 20, "1MiB is less than 16MiB; take a larger --set size=…"),
        (BLOCK, SIZE + 512, "16777728B is not a whole number of blocks of 4KiB"),
        (5000, SIZE, "5000B is not a whole number of 4 KiB blocks"),
    ):
        with pytest.raises(Skip, match=f"^{words}$"):
            prepare(context(tmp_path), "read", block, 1, size)
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(Skip, match="128 MiB of buffers need more memory than the 100 MiB available"):
        prepare(context(tmp_path), "read", BLOCK, 1, SIZE, spare=0)
    monkeypatch.setattr(memory, "available", lambda: memory.SPARE + (192 << 20) - 1)
    with pytest.raises(Skip, match=r"192 MiB of buffers need more memory than the 447 MiB available .256 MiB must stay free.$"):
        prepare(context(tmp_path), "read", 8 << 20, 8, 64 << 20, spare=0)
    for block, depth, size, most in (
        (8 << 20, 3, 16 << 20, "16MiB"),
        (16 << 20, 9, 256 << 20, "128MiB"),
        (BLOCK, 4097, SIZE, "16MiB"),
    ):
        with pytest.raises(Skip, match=f"^{depth} blocks of .* at a time are more than {most}; take a smaller --set depth=…$"):
            prepare(context(tmp_path), "read", block, depth, size, spare=0)
    assert names(tmp_path) == []


def test_listing_imports_nothing_heavy():
    code = f"import sys, {random_io.__name__}; print({{'torch', 'numpy', 'mpi4py'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
