"""The flush probe on a real file: write and sync in every sample, and what is found in what came back."""

import contextlib
import errno
import os
from unittest import mock

import pytest
from hypothesis import given, settings, strategies as st

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Wrong
from clustergauge.world import Serial
from storage_io import workspace
from storage_io.errors import StorageError
from storage_io.flush import AT_ONCE, flush, prepare
from tests.on_disk import context, data_file, flip, fraction, has_device, names

SIZE = 16 << 20


@contextlib.contextmanager
def prepared(target):
    ctx = context(target, 0.1)
    work = prepare(ctx, SIZE, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    with prepared(tmp_path_factory.mktemp("journal")) as (work, _):
        yield work


def test_a_sample_is_one_block_and_its_sync(tmp_path, monkeypatch):
    calls = []
    for name in ("pwritev", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    with prepared(tmp_path) as (work, ctx):
        for _ in range(3):
            work.reset()
            calls.clear()
            work.run()
            assert calls == ["pwritev", "fdatasync"]
        work.check()
        assert work.max_iterations == 1
        assert work.workload.bytes_written == 4096
        if has_device(ctx):
            assert ctx.device_bytes["asked_written"] == 3 * 4096
            assert fraction(ctx, "written") >= 0.95


def test_it_is_measured_for_its_whole_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    job = Job("x", "storage_io.flush", "flush", {"size": SIZE}, "cpu", budget_s=0.2, seed=1, target=str(tmp_path))
    outcome = execute(job, flush, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    assert outcome.measurement.stop_reason == "budget"
    assert outcome.measurement.iterations_per_sample == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("found_by", ["check", "reset"])
def test_a_flipped_bit_is_found_in_what_was_flushed(tmp_path, found_by):
    with prepared(tmp_path) as (work, _):
        for _ in range(AT_ONCE):
            work.reset()
            work.run()
        flip(data_file(tmp_path), 5 * 4096 + 99)
        with pytest.raises(Wrong, match=f"data-0 differs at byte {5 * 4096 + 99}"):
            getattr(work, found_by)()


@given(steps=st.lists(st.booleans(), max_size=40), before_end=st.integers(0, 9), at_once=st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_blocks_are_written_in_order_round_and_round_whenever_they_are_checked(laid_out, steps, before_end, at_once):
    blocks, seen = SIZE // 4096, []
    entries = laid_out.run.__self__
    entries._first, entries._ready, entries._at = blocks - before_end, 0, 0
    real = os.pwritev
    with (
        mock.patch("storage_io.flush.AT_ONCE", at_once),
        mock.patch.object(os, "pwritev", lambda fd, views, at: (seen.append(at), real(fd, views, at))[1]),
    ):
        for checked in steps:
            laid_out.reset()
            laid_out.run()
            if checked:
                laid_out.check()
        laid_out.check()
    assert seen == [(blocks - before_end + number) % blocks * 4096 for number in range(len(steps))]


def test_a_lost_write_is_told_as_stale(tmp_path, monkeypatch):
    with prepared(tmp_path) as (work, _):
        work.reset()
        with pytest.raises(Wrong, match=r"\(file 0, block 0, sample 0 lies where file 0, block 0, sample 1 belongs\)"):
            work.check()


def test_a_sync_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with prepared(tmp_path) as (work, _):
        work.reset()
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError, match=r"^cannot sync .*/data-0: input/output error$"):
            work.run()
        monkeypatch.undo()
