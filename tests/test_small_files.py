"""The small-files probe on real files: whole, cold, verified, and gone afterwards."""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clustergauge import compiled
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Skip, Wrong
from clustergauge.world import Serial
from storage_io import layout, small_files as module, whole_reads, workspace
from storage_io.errors import StorageError
from storage_io.evidence import process_io
from storage_io.pattern import aligned
from storage_io.small_files import LEAST, prepare, small_files
from tests.on_disk import (
    context,
    end,
    files,
    flip,
    fraction,
    has_device,
    measuring,
    mounted,
    names,
    needs_root,
    refuse_direct,
    slow,
)

SIZE = 16 << 10
TOTAL = 64 * SIZE


@contextlib.contextmanager
def prepared(target, op, depth=1):
    ctx = context(target, 1e-6)
    work = prepare(ctx, op, depth, SIZE, TOTAL, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize(("op", "way"), [("write", "written"), ("read", "read")])
def test_files_are_transferred_whole_verified_and_removed(tmp_path, op, way, depth):
    with prepared(tmp_path, op, depth) as (work, ctx):
        for _ in range(3):
            work.reset()
            work.run()
        assert {path.stat().st_size for path in files(tmp_path)} == {SIZE}
        assert len(files(tmp_path)) == (LEAST if op == "write" else 64)
        work.check()
        assert work.steps == LEAST
        assert (work.workload.ios, work.workload.bytes_read + work.workload.bytes_written) == (1, SIZE)
        if has_device(ctx):
            assert ctx.device_bytes[f"asked_{way}"] == 3 * LEAST * SIZE
            assert fraction(ctx, way) >= 0.95


@needs_root
def test_what_the_kernel_will_not_drop_is_said(tmp_path):
    with mounted(tmp_path / "ram", "-t", "tmpfs", "-o", "size=64m", "none") as target, prepared(target, "read") as (work, ctx):
        work.reset()
        assert ctx.settings["page_cache_left_bytes"] == LEAST * SIZE
        work.run()
        work.check()


def test_without_direct_io_reads_are_cold_all_the_same(tmp_path, monkeypatch):
    refuse_direct(monkeypatch)
    for op, way in (("write", "written"), ("read", "read")):
        with prepared(tmp_path, op) as (work, ctx):
            for _ in range(2):
                work.reset()
                work.run()
            work.check()
            assert ctx.settings["direct"] is False
            if has_device(ctx):
                assert fraction(ctx, way) >= 0.95


@pytest.mark.parametrize("op", ["write", "read"])
def test_without_direct_io_what_is_verified_comes_from_the_device_too(tmp_path, monkeypatch, op):
    refuse_direct(monkeypatch)
    with prepared(tmp_path, op, 8) as (work, ctx):
        work.reset()
        work.run()
        before = process_io()
        work.check()
        after = process_io()
        if has_device(ctx):
            assert after[0] - before[0] >= 0.95 * LEAST * SIZE


def test_a_case_is_measured_as_a_worker_does(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    monkeypatch.setattr(module, "TOTAL_BYTES", TOTAL)
    params = {"op": "write", "depth": 8, "size": SIZE}
    job = Job("x", "storage_io.small_files", "small_files", params, "cpu", budget_s=0.1, seed=1, target=str(tmp_path))
    outcome = execute(job, small_files, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    assert outcome.measurement.iterations_per_sample == outcome.settings["files_per_sample"]
    assert names(tmp_path) == []


def test_the_sync_ends_a_write_inside_the_time(tmp_path, monkeypatch):
    calls = []
    with prepared(tmp_path, "write") as (work, _):
        group = work.run.__self__
        real = group._sync
        monkeypatch.setattr(group, "_sync", lambda: (calls.append(len(files(tmp_path))), real())[1])
        work.reset()
        work.run()
        assert calls == [LEAST]


@pytest.fixture(params=["compiled", "python"])
def by(request, monkeypatch):
    """What reads: compiled code, or Python where there can be none."""
    if request.param == "python":
        monkeypatch.setattr(compiled, "possible", lambda: False)
    return request.param


def test_files_are_read_several_times_in_a_sample_and_each_verified_once(tmp_path, by):
    with prepared(tmp_path, "read", 8) as (work, ctx):
        if not ctx.settings["direct"]:
            pytest.skip("without direct I/O each is read once")
        group = work.run.__self__
        group.count = 150
        work.reset()
        assert sorted(map(group._chosen.count, range(1, 65))) == [2] * 42 + [3] * 22
        assert [len(set(group._chosen[first : first + 64])) for first in (0, 64)] == [64, 64]
        work.run()
        work.check()
        if has_device(ctx):
            assert fraction(ctx, "read") >= 0.95
        (path,) = tmp_path.glob(f".clustergauge-*/data-{group._chosen[0]}")
        work.reset()
        flip(path, 5)
        work.run()
        with pytest.raises(Wrong, match=f"^{path} differs at byte 5"):
            work.check()


def test_samples_are_as_long_as_the_budget_asks_but_no_file_is_read_too_often(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "seconds", lambda call: (call(), 1e-12)[1])
    with prepared(tmp_path, "read", 8) as (work, ctx):
        if not ctx.settings["direct"]:
            pytest.skip("without direct I/O each is read once")
        assert work.steps == module.TIMES * 64
        work.reset()
        work.run()
        work.check()
    with prepared(tmp_path, "write", 8) as (work, _):
        assert work.steps == 64


def test_a_slow_disk_has_fewer_files_to_read_and_says_so(tmp_path, monkeypatch):
    for took, count in ((0.21, 24), (0.5, LEAST), (0.1, 64)):
        monkeypatch.setattr(layout, "stopwatch", slow(took))
        with prepared(tmp_path, "read") as (work, ctx):
            assert len(files(tmp_path)) == count
            assert ctx.settings.get("cut_to") == (None if count == 64 else count * SIZE)
            work.reset()
            work.run()
            work.check()
        with prepared(tmp_path, "write") as (_, ctx):
            assert "cut_to" not in ctx.settings


def test_without_direct_io_no_file_is_read_twice_in_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "seconds", lambda call: (call(), 1e-12)[1])
    refuse_direct(monkeypatch)
    with prepared(tmp_path, "read", 8) as (work, _):
        assert work.steps == 64


def test_a_first_look_that_is_late_does_not_make_samples_short(tmp_path, monkeypatch):
    for took, count in (([9.0, 1e-6 / 8 / 3, 1e-6 / 8], 48), ([9.0, 9.0], LEAST)):
        left = list(took)
        monkeypatch.setattr(module, "seconds", lambda call, left=left: (call(), left.pop(0))[1])
        with prepared(tmp_path, "read", 8) as (work, _):
            assert work.steps == count
            assert not left


def test_more_at_a_time_are_more_a_sample(tmp_path):
    with prepared(tmp_path, "read", 2 * LEAST) as (work, _):
        assert work.steps == 2 * LEAST
    with pytest.raises(Skip, match=r"^80 files of 16KiB are more than 1MiB; take a smaller --set size=…$"):
        prepare(context(tmp_path), "read", 80, SIZE, TOTAL, spare=0)


def test_a_record_says_what_reads(tmp_path, by):
    with prepared(tmp_path, "write", 8) as (_, ctx):
        assert ctx.settings["engine"] == "open, pwritev, close, 8 threads"
    with prepared(tmp_path, "read", 1) as (_, ctx):
        how = {"compiled": "pread, close, from compiled code", "python": "preadv, close"}[by]
        assert ctx.settings["engine"] == f"open, {how}, 1 thread"


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_every_file_is_read_once_and_each_thread_holds_its_last(tmp_path, by, depth):
    with prepared(tmp_path, "read", depth) as (work, ctx):
        group = work.run.__self__
        group.count = 64
        open_files = len(names(Path("/proc/self/fd")))
        for _ in range(3):
            work.reset()
            work.run()
            held = group._files._slots.held()
            assert 1 <= len(held) <= depth
            assert {number for _, number in held} <= set(group._chosen)
            group._files.verify()
        work.check()
        assert len(names(Path("/proc/self/fd"))) == open_files
        if has_device(ctx):
            assert ctx.device_bytes["asked_read"] == 3 * 64 * SIZE
            assert fraction(ctx, "read") >= 0.95
            assert ctx.device_bytes["read"] < 1.05 * 3 * 64 * SIZE


@pytest.mark.parametrize("depth", [1, 8])
def test_a_file_that_is_gone_ends_all_threads(tmp_path, by, depth):
    with prepared(tmp_path, "read", depth) as (work, _):
        work.reset()
        (path,) = tmp_path.glob(f".clustergauge-*/data-{work.run.__self__._chosen[3]}")
        path.unlink()
        with pytest.raises(StorageError, match=f"^cannot read {path}: no such file or directory$"):
            work.run()


def test_what_cannot_be_read_is_closed_and_named_and_ends_it(tmp_path):
    files = whole_reads.Files(SIZE, os.O_RDONLY)
    memory = aligned(SIZE)
    into = memory.ctypes.data
    (tmp_path / "short").write_bytes(b"x")
    files.load([os.fsencode(tmp_path / name) for name in ("missing", ".", "short", "short")])
    assert files.take(into) == (whole_reads.NONE_LEFT, 0, -1, 0)  # not before it is started
    files.start()
    before = names(Path("/proc/self/fd"))
    assert [files.take(into) for _ in range(3)] == [(0, errno.ENOENT, -1, 0), (1, errno.EISDIR, -1, 0), (2, 0, -1, 0)]
    assert names(Path("/proc/self/fd")) == before
    files.stop()
    assert files.take(into) == (whole_reads.NONE_LEFT, 0, -1, 0)


def test_after_a_failure_the_other_threads_find_nothing_to_read(tmp_path):
    with prepared(tmp_path, "read", 1) as (work, _):
        work.reset()
        reads = work.run.__self__._files
        Path(os.fsdecode(reads._todo[3][0])).unlink()
        with pytest.raises(StorageError, match="no such file"):
            work.run()
        assert reads._files.take(reads._slots.each[0].address) == (whole_reads.NONE_LEFT, 0, -1, 0)


def test_what_cannot_be_closed_was_not_read(tmp_path, monkeypatch):
    """The C library's close with an error after it, as a network file system may have one."""
    reason = [errno.EIO]

    def close(descriptor):
        os.close(descriptor)
        ctypes.set_errno(reason[0])
        return -1

    failing = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, use_errno=True)(close)
    real, planted = compiled.libc, f"inttoptr (i64 {ctypes.cast(failing, ctypes.c_void_p).value} to ptr)"
    with prepared(tmp_path, "read", 2) as (work, _), monkeypatch.context() as other:
        other.setattr(compiled, "libc", lambda name: planted if name == "close" else real(name))
        group = work.run.__self__
        group._files._files = whole_reads.Files(SIZE, os.O_RDONLY)
        before = names(Path("/proc/self/fd"))
        work.reset()
        with pytest.raises(StorageError, match=r"^cannot read .*/data-\d+: input/output error$"):
            work.run()
        reason[0] = errno.EINTR  # it is closed all the same
        group._files.load(0, group._chosen)
        work.run()
        work.check()
        assert names(Path("/proc/self/fd")) == before


def test_threads_that_race_for_files_get_each_once(monkeypatch):
    """With stand-ins for the system calls that take no time, so that two threads do little but take the next file.

    They wait for each other in the first two files.
    """
    count = 200_000
    opened, waiting = np.zeros(count, np.int64), np.zeros(1, np.int64)
    calls = f"""
define i32 @open(ptr %path, i32 %flags, ...) {{
entry:
  %n = load i32, ptr %path
  %early = icmp ult i32 %n, 2
  br i1 %early, label %came, label %go
came:
  %was = atomicrmw add ptr inttoptr (i64 {waiting.ctypes.data} to ptr), i64 1 monotonic
  br label %wait
wait:
  %there = load atomic i64, ptr inttoptr (i64 {waiting.ctypes.data} to ptr) monotonic, align 8
  %both = icmp uge i64 %there, 2
  br i1 %both, label %go, label %wait
go:
  ret i32 %n
}}
define i64 @pread(i32 %n, ptr %into, i64 %size, i64 %at) {{
  %cell = getelementptr i64, ptr inttoptr (i64 {opened.ctypes.data} to ptr), i32 %n
  %was = atomicrmw add ptr %cell, i64 1 monotonic
  ret i64 %size
}}
define i32 @close(i32 %n) {{
  ret i32 0
}}
"""
    there = {name: compiled.made(calls, name) for name in ("open", "pread", "close")}
    real = compiled.libc
    monkeypatch.setattr(compiled, "libc", lambda name: f"inttoptr (i64 {there[name][1]} to ptr)" if name in there else real(name))
    monkeypatch.setattr(whole_reads, "AT_ONCE", count + 1)
    files = whole_reads.Files(SIZE, os.O_RDONLY)
    files.load([n.to_bytes(4, sys.byteorder) for n in range(count)])
    taken: list[whole_reads.Taken] = []
    for turn in range(1, 31):  # without an atomic operation one in two was seen to go wrong, on an idle machine
        waiting[0] = 0
        files.start()
        threads = [threading.Thread(target=lambda: taken.append(files.take(0)), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert (opened == turn).all()
        assert sum(each.whole for each in taken) == turn * count
        assert {each.which for each in taken} == {whole_reads.NONE_LEFT}


def test_a_file_that_nobody_read_is_told(tmp_path, monkeypatch):
    with prepared(tmp_path, "read", 8) as (work, _):
        work.reset()
        with monkeypatch.context() as other:
            other.setattr(whole_reads.Files, "start", lambda self: setattr(self._next, "value", 1))
            work.run()
        with pytest.raises(Wrong, match=rf"^{LEAST - 1} files of {tmp_path}/\S+ were read, not {LEAST}$"):
            work.check()


def test_an_interrupted_or_short_read_is_gone_on_with(tmp_path, monkeypatch):
    real = whole_reads.Files.take

    def interrupted(self, into):
        taken = real(self, into)
        return taken if taken.which != whole_reads.PAUSE else (taken.last, errno.EINTR, taken.last, taken.whole - 1)

    with prepared(tmp_path, "read", 2) as (work, _):
        work.run.__self__.count = 64
        work.reset()
        with monkeypatch.context() as other:
            other.setattr(whole_reads.Files, "take", interrupted)
            work.run()
        work.check()


@pytest.mark.parametrize("op", ["write", "read"])
def test_as_many_are_read_back_at_a_time_as_the_case_has(tmp_path, monkeypatch, op):
    meeting, real = threading.Barrier(8, timeout=10), os.preadv  # broken unless eight are in at once

    def read(*args):
        meeting.wait()
        return real(*args)

    with prepared(tmp_path, op, 8) as (work, _):
        work.reset()
        work.run()
        monkeypatch.setattr(os, "preadv", read)
        work.check()
        monkeypatch.undo()


def test_what_is_read_back_is_not_what_was_read_before(tmp_path, monkeypatch):
    with prepared(tmp_path, "write", LEAST) as (work, _):
        work.reset()
        work.run()
        group = work.run.__self__
        group._back.verify(group._chosen, group._sample)
        with monkeypatch.context() as lying:
            lying.setattr(os, "preadv", lambda _, views, __: len(views[0]))
            with pytest.raises(Wrong, match="got 0xa5"):
                group._back.verify(group._chosen, group._sample)


def test_a_write_that_was_lost_is_wrong_and_no_error_of_reading(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        work.run()
        path = files(tmp_path)[5]
        os.truncate(path, 8192)
        with pytest.raises(Wrong, match=f"^{path} holds 8192 bytes, {SIZE} were written$"):
            work.check()
        path.unlink()
        with pytest.raises(Wrong, match=f"^{path} is not there, {SIZE} bytes were written$"):
            work.check()


def test_an_earlier_write_that_went_wrong_is_found_before_the_next(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        work.run()
        for path in files(tmp_path):
            flip(path, 99)
        with pytest.raises(Wrong, match="differs at byte 99"):
            work.reset()


@pytest.mark.parametrize("direct", [True, False])
def test_each_file_that_was_lost_is_missed_before_the_next_sample(tmp_path, monkeypatch, direct):
    monkeypatch.setattr(module, "SPOT_CHECKS", 1)
    if not direct:
        refuse_direct(monkeypatch)
    for lose, words in ((Path.unlink, "is not there"), (lambda path: os.truncate(path, 0), "holds 0 bytes")):
        with prepared(tmp_path, "write") as (work, _):
            for place in (0, 5, -1):
                work.reset()
                work.run()
                path = files(tmp_path)[place]
                lose(path)
                with pytest.raises(Wrong, match=f"^{path} {words}, {SIZE} (bytes )?were written$"):
                    work.reset()
                path.write_bytes(b"")
                work.run.__self__._asked = False


def test_a_file_that_cannot_be_removed_is_one_sentence(tmp_path):
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        work.run()
        group = work.run.__self__
        path = group._workspace.file(group._chosen[0])
        path.unlink()
        path.mkdir()
        group._asked = False
        with pytest.raises(StorageError, match=f"^cannot remove {path}: is a directory$"):
            work.reset()
        path.rmdir()


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("op", ["write", "read"])
def test_a_flipped_bit_is_found_and_the_file_named(tmp_path, by, op, depth):
    with prepared(tmp_path, op, depth) as (work, _):
        work.reset()
        number = work.run.__self__._chosen[5]
        (path,) = tmp_path.glob(f".clustergauge-*/data-{number}") if op == "read" else [None]
        if op == "read":
            flip(path, 8192 + 7)
        work.run()
        if op == "write":
            (path,) = tmp_path.glob(f".clustergauge-*/data-{number}")
            flip(path, 8192 + 7)
        with pytest.raises(Wrong, match=f"{path} differs at byte {8192 + 7}"):
            work.check()


@pytest.mark.parametrize("name", ["two  blanks", "a\nline", "\\x41", "ü", os.fsdecode(b"\xff")])
def test_folders_may_have_any_name(tmp_path, by, name):
    target = tmp_path / name
    target.mkdir()
    with prepared(target, "read", 8) as (work, _):
        work.reset()
        (path,) = target.glob(f".clustergauge-*/data-{work.run.__self__._chosen[-1]}")
        flip(path, 77)
        work.run()
        with pytest.raises(Wrong) as wrong:
            work.run.__self__._files.verify()
        assert str(wrong.value).startswith(f"{path} differs at byte 77: ")
        path.unlink()
        with pytest.raises(StorageError) as failed:
            work.run()
        assert str(failed.value) == f"cannot read {path}: no such file or directory"


def test_a_file_in_the_place_of_another_is_told(tmp_path):
    with prepared(tmp_path, "read") as (work, _):
        work.reset()
        group = work.run.__self__
        first, second = group._chosen[:2]
        one, two = (tmp_path / names(tmp_path)[0] / f"data-{n}" for n in (first, second))
        spare = one.rename(one.parent / "data-9999")
        two.rename(one)
        spare.rename(two)
        work.run()
        with pytest.raises(Wrong, match=f"file {second}, block 0, sample 0 lies where file {first}, block 0, sample 0 belongs"):
            work.check()


@pytest.mark.parametrize("depth", [1, 8])
def test_reads_that_did_nothing_are_caught(tmp_path, by, depth):
    with prepared(tmp_path, "read", depth) as (work, _):
        work.reset()
        with pytest.raises(Wrong, match=rf"^0 files of .* were read, not {LEAST}$"):
            work.check()


def test_a_read_that_says_it_is_done_and_is_not_is_caught(tmp_path, monkeypatch):
    with prepared(tmp_path, "read") as (work, _):
        work.reset()
        with monkeypatch.context() as lying:
            lying.setattr(whole_reads.Files, "take", lambda *_: (whole_reads.NONE_LEFT, 0, 5, LEAST))
            work.run()
        with pytest.raises(Wrong, match="got 0xa5"):
            work.check()


@pytest.mark.parametrize("depth", [1, 8])
def test_a_short_file_is_an_error_with_its_name(tmp_path, by, depth):
    with prepared(tmp_path, "read", depth) as (work, _):
        work.reset()
        (path,) = tmp_path.glob(f".clustergauge-*/data-{work.run.__self__._chosen[7]}")
        os.truncate(path, 8192)
        with pytest.raises(StorageError, match=f"^cannot read {path}: the file ends at byte 8192$"):
            work.run()


def test_a_limit_on_file_size_is_one_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with prepared(tmp_path, "write") as (work, _):
        work.reset()
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        try:
            with pytest.raises(StorageError, match=r"^cannot write .*/data-\d+: file too large$"):
                work.run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@needs_root
@pytest.mark.parametrize("depth", [1, 8])
def test_a_file_system_that_fills_meanwhile_is_one_sentence(tmp_path, depth):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=24m", "none") as target:
        with prepared(target, "write", depth) as (work, _):
            work.reset()
            (target / "hog").write_bytes(b"x" * (os.statvfs(target).f_bavail * os.statvfs(target).f_frsize - 3 * SIZE))
            with pytest.raises(StorageError, match=r"^cannot write .*/data-\d+: no space left on device$"):
                work.run()
            (target / "hog").unlink()
        assert names(target) == []


def test_what_would_take_too_long_and_what_has_no_meaning_is_skipped_in_words(tmp_path, monkeypatch):
    with pytest.raises(Skip, match="10000B is not a whole number of 4 KiB blocks"):
        prepare(context(tmp_path), "read", 1, 10_000, spare=0)
    monkeypatch.setattr(layout, "stopwatch", slow(4.0))
    with pytest.raises(Skip, match=r"^writing 64 files to begin with would take 256 s, 16 of them 64 s \(at most 10 s\)$"):
        prepare(context(tmp_path), "read", 1, SIZE, TOTAL, spare=0)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("op", ["write", "read"])
def test_files_go_with_a_terminated_worker_and_are_swept_after_a_killed_one(tmp_path, op, number):
    with measuring(tmp_path, "storage_io.small_files", "small_files", op=op, depth=8, size=4 << 20) as process:
        end(process, number)
    assert len(names(tmp_path)) == (number == signal.SIGKILL)
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []
