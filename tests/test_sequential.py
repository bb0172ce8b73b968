"""The sequential probe on real files: what it proves, what it catches, and that nothing is left behind."""

import contextlib
import errno
import lzma
import os
import resource
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from storage_io import datafile, memory, workspace
from storage_io.errors import StorageError
from storage_io.evidence import process_io
from storage_io.mounts import describe
from storage_io.sequential import BLOCK_BYTES, prepare, sequential, sequential_blocks
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

SIZE = (8 << 20) + 4096  # the last block is a short one


@contextlib.contextmanager
def prepared(target, op, depth=1, size=SIZE):
    ctx = context(target)
    work = prepare(ctx, op, depth, size, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


@pytest.fixture
def no_direct(monkeypatch):
    refuse_direct(monkeypatch)


@pytest.fixture
def any_space(monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)


# -- sound


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize(("op", "way"), [("write", "written"), ("read", "read")])
def test_a_file_is_transferred_verified_and_removed(tmp_path, op, way, depth):
    with prepared(tmp_path, op, depth) as (work, ctx):
        assert data_file(tmp_path).stat().st_size == SIZE
        for _ in range(3):
            work.reset()
            work.run()
        work.check()
        assert work.max_iterations == 1
        assert (work.workload.bytes_read, work.workload.bytes_written) == ((SIZE, 0) if op == "read" else (0, SIZE))
        assert work.workload.bound == "storage"
        assert ctx.settings["block_bytes"] == BLOCK_BYTES
        assert ctx.settings["engine"].endswith(f"{depth} thread" + "s" * (depth > 1))
        assert 0 <= ctx.settings["buffer_on_huge_pages"] <= 1
        assert isinstance(ctx.settings["direct"], bool)
        assert ctx.settings["direct_reason"]
        if has_device(ctx):
            other = "written" if op == "read" else "read"
            assert ctx.device_bytes[f"asked_{way}"] == 3 * SIZE
            assert ctx.device_bytes[f"asked_{other}"] == 0
            assert fraction(ctx, way) >= 0.95


@pytest.mark.parametrize("op", ["write", "read"])
def test_a_case_is_measured_as_a_worker_does(tmp_path, op, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    params = {"op": op, "depth": 8, "size": SIZE}
    job = Job("x", "storage_io.sequential", "sequential", params, "cpu", budget_s=0.1, seed=1, target=str(tmp_path))
    outcome = execute(job, sequential, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    assert len(outcome.measurement.samples_s) >= 3
    assert names(tmp_path) == []


@pytest.mark.parametrize(("op", "block", "count"), [("write", 64 << 10, 129), ("read", 4 << 20, 3)])
def test_blocks_may_have_another_size(tmp_path, op, block, count):
    ctx = context(tmp_path)
    work = prepare(ctx, op, min(8, count), SIZE, spare=0, block=block)
    try:
        assert len(work.run.__self__._back.places) == count
        assert ctx.settings["block_bytes"] == block
        work.reset()
        work.run()
        work.check()
    finally:
        work.close()


@pytest.mark.parametrize("block", [4096, 3 * 4096, BLOCK_BYTES])
@pytest.mark.parametrize("depth", [1, 8])
def test_what_is_written_is_nowhere_the_same_and_cannot_be_compressed(tmp_path, block, depth):
    work = prepare(context(tmp_path), "write", depth, SIZE, spare=0, block=block)
    try:
        work.reset()
        work.run()
        work.check()
        os.sync()
        written = data_file(tmp_path).read_bytes()
    finally:
        work.close()
    assert len({written[at : at + 4096] for at in range(0, SIZE, 4096)}) == SIZE // 4096
    for record in (128 << 10, 1 << 20):  # as ZFS and Btrfs compress
        assert len(zlib.compress(written[:record], 1)) > 0.99 * record
        assert len(lzma.compress(written[:record], preset=0)) > 0.99 * record


def test_a_file_larger_than_memory_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: memory.SPARE + (40 << 20))
    with prepared(tmp_path, "write", 8, 64 << 20) as (work, _):
        work.reset()
        work.run()
        work.check()


def test_the_default_block_has_the_ids_it_always_had():
    assert next(sequential.cases(op=["read"], depth=[8], size=[256 << 20])).id == "sequential/op=read/depth=8/size=256MiB"
    (case,) = sequential_blocks.cases(op=["read"], block=["64KiB"], depth=[8], size=[256 << 20])
    assert case.id == "sequential_blocks/op=read/block=64KiB/depth=8/size=256MiB"


@pytest.mark.parametrize("depth", [1, 8])
def test_the_sync_is_inside_a_write_after_its_last_block(tmp_path, monkeypatch, depth):
    calls = []
    for name in ("pwritev", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (real(*args), calls.append(name))[0])
    with prepared(tmp_path, "write", depth) as (work, _):
        work.reset()
        calls.clear()
        work.run()
        assert calls == ["pwritev"] * 9 + ["fdatasync"]


# -- wrong


@pytest.mark.parametrize("depth", [1, 8])
def test_a_flipped_bit_is_found_in_a_read_and_named(tmp_path, depth):
    at = 5 * BLOCK_BYTES + 4567
    with prepared(tmp_path, "read", depth) as (work, _):
        path = data_file(tmp_path)
        work.reset()
        was = flip(path, at)
        work.run()
        with pytest.raises(
            Wrong, match=f"{path} differs at byte {at}: expected {was:#04x}, got {was ^ 4:#04x}; .*wrong in this part: 1$"
        ):
            work.check()
        with pytest.raises(Wrong, match="differs at byte"):
            work.reset()  # and no later sample can hide it


def test_a_flipped_bit_is_found_in_a_write_and_named(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        work.run()
        work.check()
        flip(data_file(tmp_path), SIZE - 1)  # in the short block
        with pytest.raises(Wrong, match=f"data-0 differs at byte {SIZE - 1}"):
            work.check()


def test_an_earlier_write_that_went_wrong_is_found_before_the_next(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        work.run()
        for offset in range(0, SIZE, BLOCK_BYTES):
            flip(data_file(tmp_path), offset + 99)
        with pytest.raises(Wrong, match="differs at byte"):
            work.reset()


def test_a_write_that_did_nothing_is_caught_as_stale(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        with pytest.raises(Wrong, match=r"file 0, block 0, sample 0 lies where file 0, block 0, sample 1 belongs"):
            work.check()


@pytest.mark.parametrize("depth", [1, 8])
def test_a_write_of_the_memory_of_another_is_told_as_such(tmp_path, monkeypatch, depth):
    real, others = os.pwritev, []

    def write(descriptor, views, offset):
        others.append(bytes(views[0]))
        return real(descriptor, [others[-2] if len(others) == 5 else others[-1]], offset)

    with prepared(tmp_path, "write", depth, 8 << 20) as (work, ctx):
        if ctx.settings["direct"]:
            work.run.__self__._file.go_buffered("a copy lies anywhere in memory")
        work.reset()
        with monkeypatch.context() as faulty:
            faulty.setattr(os, "pwritev", write)
            work.run()
        with pytest.raises(Wrong, match=r"file 0, block \d+, sample 1 lies where file 0, block \d+, sample 1 belongs"):
            work.check()


def test_a_later_write_that_did_nothing_is_caught_as_stale(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        for _ in range(2):
            work.reset()
            work.run()
        work.reset()
        with pytest.raises(Wrong, match=r"file 0, block 0, sample 2 lies where file 0, block 0, sample 3 belongs"):
            work.check()


def test_a_read_that_did_nothing_is_caught(tmp_path):
    with prepared(tmp_path, "read") as (work, _):
        work.reset()
        work.run()
        work.reset()
        with pytest.raises(Wrong, match=r"^nothing of .*/data-0 was read$"):
            work.check()


@pytest.mark.parametrize("depth", [1, 8])
def test_a_read_that_says_it_is_done_and_is_not_is_caught(tmp_path, monkeypatch, depth):
    with prepared(tmp_path, "read", depth) as (work, _):
        work.reset()
        with monkeypatch.context() as lying:
            lying.setattr(os, "preadv", lambda _, views, __: len(views[0]))
            work.run()
        with pytest.raises(Wrong, match=r"differs at byte \d+: expected 0x.., got 0xa5"):
            work.check()


@pytest.mark.parametrize("op", ["write", "read"])
def test_what_is_read_back_is_not_what_was_read_back_before(tmp_path, monkeypatch, op):
    with prepared(tmp_path, op) as (work, _):
        work.reset()
        work.run()
        work.check()
        if op == "read":
            work.reset()
            work.run()
        with monkeypatch.context() as lying:
            lying.setattr(os, "preadv", lambda _, views, __: len(views[0]))
            with pytest.raises(Wrong, match="differs at byte 16: expected 0x00, got 0xa5"):
                work.check()


@pytest.mark.parametrize("depth", [1, 8])
def test_each_lane_reads_into_one_block_of_memory_and_what_it_holds_is_verified(tmp_path, monkeypatch, depth):
    real, used = os.preadv, set()

    def read(descriptor, views, offset):
        used.add(np.frombuffer(views[0], np.uint8).ctypes.data)
        done = real(descriptor, views, offset)
        views[0][77] ^= 4  # on its way: the file has it right
        return done

    with prepared(tmp_path, "read", depth) as (work, _):
        work.reset()
        with monkeypatch.context() as faulty:
            faulty.setattr(os, "preadv", read)
            work.run()
        assert 1 <= len(used) <= depth
        with pytest.raises(Wrong, match=r"differs at byte \d+: .*wrong in this part: 1$"):
            work.check()


# -- direct, buffered, cached


def test_a_refused_flag_is_labelled_and_measured_buffered(tmp_path, no_direct):
    for op, way in (("write", "written"), ("read", "read")):
        with prepared(tmp_path, op, 8) as (work, ctx):
            for _ in range(2):
                work.reset()
                work.run()
            work.check()
            assert ctx.settings["direct"] is False
            assert ctx.settings["direct_reason"] == "the file system refuses direct I/O"
            if has_device(ctx):  # the sync is inside the run, the cache is dropped before it
                assert fraction(ctx, way) >= 0.95
                assert "page_cache_left_bytes" not in ctx.settings


@pytest.mark.parametrize("op", ["write", "read"])
def test_without_direct_io_what_is_verified_comes_from_the_device_too(tmp_path, no_direct, op):
    with prepared(tmp_path, op, 8) as (work, ctx):
        work.reset()
        work.run()
        before = process_io()
        work.check()
        after = process_io()
        if has_device(ctx):
            assert after[0] - before[0] >= 0.95 * SIZE


def test_a_read_cached_on_purpose_shows_in_the_counters(tmp_path, no_direct):
    with prepared(tmp_path, "read") as (work, ctx):
        work.reset()
        with subprocess.Popen(["cat", str(data_file(tmp_path))], stdout=subprocess.PIPE) as other:
            assert len(other.stdout.read()) == SIZE  # a child's bytes are not ours before it is waited for
            work.run()
            work.check()
        assert ctx.device_bytes["asked_read"] == SIZE
        assert fraction(ctx, "read") < 0.05


def test_a_refusal_at_the_first_transfer_falls_back(tmp_path, monkeypatch):
    real = datafile.DataFile.write_at

    def refuse(file, offset, view):
        if file.direct:
            raise StorageError("cannot write", OSError(errno.EINVAL, "Invalid argument"))
        real(file, offset, view)

    monkeypatch.setattr(datafile.DataFile, "write_at", refuse)
    with prepared(tmp_path, "write") as (work, ctx):
        work.reset()
        work.run()
        work.check()
        assert ctx.settings["direct"] is False
        assert ctx.settings["direct_reason"] == "the file system refuses direct transfers"


@pytest.mark.parametrize("counters", [None, (0, 0)])
def test_where_nothing_is_counted_there_are_no_device_bytes_instead_of_zeros(tmp_path, monkeypatch, counters):
    monkeypatch.setattr(datafile, "process_io", lambda: counters)
    with prepared(tmp_path, "read") as (work, ctx):
        work.reset()
        work.run()
        work.check()
        if ctx.settings["fs_type"] == "tmpfs":
            pytest.skip("the temporary folder is memory, which is another case")
        assert ctx.settings["direct_reason"] == "no page was cached; the kernel counts no device bytes here"
        assert ctx.settings["device_counters"] is False
        assert ctx.device_bytes == {}


def test_direct_io_is_not_believed_without_any_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(datafile, "process_io", lambda: None)
    monkeypatch.setattr(datafile, "cached_bytes", lambda *_: None)
    with prepared(tmp_path, "read") as (_, ctx):
        assert ctx.settings["direct"] is False
        assert "nothing shows that it happens" in ctx.settings["direct_reason"]


@needs_root
def test_tmpfs_is_never_taken_for_a_device(tmp_path):
    with mounted(tmp_path / "ram", "-t", "tmpfs", "-o", "size=32m", "none") as target:
        for op, way in (("write", "written"), ("read", "read")):
            with prepared(target, op, 8) as (work, ctx):
                work.reset()
                work.run()
                work.check()
                assert ctx.settings["fs_type"] == "tmpfs"
                assert ctx.settings["direct"] is False
                assert ctx.settings["direct_reason"] in (
                    "the file system takes direct I/O but goes through the page cache",  # since Linux 6.6
                    "the file system refuses direct I/O",
                )
                assert fraction(ctx, way) == 0
                assert ctx.settings["page_cache_left_bytes"] >= SIZE


@needs_root
def test_a_file_system_without_direct_io_is_labelled(tmp_path, any_space):
    with mounted(tmp_path / "ram", "-t", "ramfs", "none") as target, prepared(target, "write") as (work, ctx):
        work.reset()
        work.run()
        work.check()
        assert ctx.settings["direct_reason"] == "the file system refuses direct I/O"


@needs_root
def test_a_file_system_that_does_not_tell_its_size_is_refused(tmp_path):
    with mounted(tmp_path / "ram", "-t", "ramfs", "none") as target, pytest.raises(Skip, match="does not say how much is free"):
        prepare(context(target), "write", 1, SIZE, spare=0)


# -- failures, in one sentence, with nothing left behind


@needs_root
@pytest.mark.parametrize("op", ["write", "read"])
def test_a_full_file_system_is_one_sentence(tmp_path, any_space, op):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m", "none") as target:
        with pytest.raises(StorageError) as caught:
            prepare(context(target), op, 1, SIZE)
        words = rf"cannot allocate {SIZE} bytes for {target}/\.clustergauge-[0-9a-f]{{16}}/data-0: no space left on device"
        assert caught.match(f"^{words}$")
        assert caught.value.errno == errno.ENOSPC
        assert names(target) == []


@pytest.mark.parametrize("depth", [1, 8])
def test_a_limit_on_file_size_is_one_sentence(tmp_path, depth):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with prepared(tmp_path, "write", depth) as (work, _):
        work.reset()
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES, hard))
        try:
            with pytest.raises(StorageError) as caught:
                work.run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.match(rf"^cannot write {data_file(tmp_path)} at byte \d+: file too large$")
        if depth == 1:
            assert f"at byte {BLOCK_BYTES}:" in str(caught.value)


def test_a_case_that_fails_says_what_it_wrote_to(tmp_path, any_space, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwritev", fails)
    params = {"op": "write", "depth": 1, "size": SIZE // 4096 * 4096}
    job = Job("x", "storage_io.sequential", "sequential", params, "cpu", budget_s=0.1, seed=1, target=str(tmp_path))
    outcome = execute(job, sequential, Serial(), tmp_path, lambda _: None)
    assert (outcome.status, outcome.measurement) == ("error", None)
    assert outcome.reason.endswith("data-0 at byte 0: input/output error")
    assert outcome.settings == {name: value for name, value in describe(tmp_path).items() if name != "free_bytes"} | {
        "free_bytes": outcome.settings["free_bytes"]
    }


@needs_root
def test_a_read_only_target_is_one_sentence(tmp_path):
    (tmp_path / "real").mkdir()
    with mounted(tmp_path / "ro", "--bind", "-o", "ro", str(tmp_path / "real")) as target:
        with pytest.raises(StorageError) as caught:
            prepare(context(target), "write", 1, SIZE, spare=0)
        assert str(caught.value) == f"cannot write to {target}: read-only file system"


@needs_root
def test_a_forbidden_target_is_one_sentence(tmp_path):
    os.seteuid(65534)
    try:
        with pytest.raises(StorageError) as caught:
            prepare(context(tmp_path), "write", 1, SIZE, spare=0)
    finally:
        os.seteuid(0)
    assert str(caught.value) == f"cannot write to {tmp_path}: permission denied"


def test_a_missing_target_is_one_sentence(tmp_path):
    with pytest.raises(StorageError, match=r"^cannot write to .*/nowhere: no such file or directory$"):
        prepare(context(tmp_path / "nowhere"), "write", 1, SIZE, spare=0)


@needs_root
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
def test_a_failing_device_is_one_sentence(tmp_path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    with mounted(tmp_path / "disk", "-t", "ext4", "-o", "loop", str(image)) as target:
        work = prepare(context(target), "read", 1, SIZE, spare=0)
        try:
            work.reset()
            path = data_file(target)
            os.truncate(image, 0)  # the device is gone behind the file system
            with pytest.raises(StorageError) as caught:
                work.run()
            assert caught.match(rf"^cannot read {path} at byte 0: input/output error$")
        finally:
            with contextlib.suppress(StorageError):
                work.close()


@pytest.mark.parametrize("planted", [OSError(errno.EDQUOT, "Disk quota exceeded"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_is_left_when_preparing_ends_early(tmp_path, monkeypatch, planted):
    def fail(*_):
        raise planted

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises((StorageError, KeyboardInterrupt, SystemExit)):
        prepare(context(tmp_path), "write", 8, SIZE, spare=0)
    assert names(tmp_path) == []


@pytest.mark.parametrize("op", ["write", "read"])
def test_a_terminated_worker_leaves_nothing(tmp_path, op):
    with measuring(tmp_path, "storage_io.sequential", "sequential", op=op, depth=8, size=8 << 20) as process:
        assert data_file(tmp_path)
        assert end(process) == 143
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_is_swept_by_the_next_and_a_living_ones_is_not(tmp_path):
    with measuring(tmp_path, "storage_io.sequential", "sequential", op="write", depth=8, size=8 << 20) as process:
        living = names(tmp_path)
        assert len(living) == 1
        work = prepare(context(tmp_path), "read", 1, SIZE, spare=0)
        work.close()
        assert names(tmp_path) == living
        process.kill()
        process.wait(30)
    assert names(tmp_path) == living
    prepare(context(tmp_path), "read", 1, SIZE, spare=0).close()
    assert names(tmp_path) == []


# -- what is not even begun


def test_what_has_no_meaning_is_skipped_in_words(tmp_path, monkeypatch):
    with pytest.raises(Skip, match="no target folder"):
        prepare(Context(world=Serial(), device="cpu", seed=1, scratch=tmp_path), "read", 1, SIZE)
    for size in (0, 100, 4097):
        with pytest.raises(Skip, match="not a whole number of 4 KiB blocks"):
            prepare(context(tmp_path), "read", 1, size)
    for block, words in ((0, "0B"), (512, "512B"), (6 << 10, "6KiB")):
        for op in ("read", "write"):
            with pytest.raises(Skip, match=f"^{words} is not a whole number of 4 KiB blocks$"):
                prepare(context(tmp_path), op, 1, 1 << 20, spare=0, block=block)
    with pytest.raises(Skip, match=r"^9 blocks of 1MiB at a time are more than 8MiB; take a smaller --set depth=…$"):
        prepare(context(tmp_path), "read", 9, 8 << 20)
    with pytest.raises(Skip, match=r"must stay free"):
        prepare(context(tmp_path), "read", 1, SIZE, spare=1 << 60)
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(Skip, match="a buffer of 4KiB, and 4KiB to verify it, need more memory than the 100 MiB available"):
        prepare(context(tmp_path), "read", 1, 4096, spare=0, block=4096)
    monkeypatch.setattr(memory, "available", lambda: memory.SPARE + (255 << 20))
    with pytest.raises(Skip, match="a buffer of 128MiB, and 128MiB to verify it, need more memory than the 511 MiB available"):
        prepare(context(tmp_path), "read", 8, 128 << 20, block=16 << 20, spare=0)
    assert names(tmp_path) == []


def test_listing_imports_nothing_heavy():
    code = "import sys, storage_io.sequential; print({'torch', 'numpy', 'mpi4py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
