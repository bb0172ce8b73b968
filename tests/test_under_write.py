"""Reads beside a writer, on real files: both are counted, both are verified, and the writer leaves with its worker."""

import contextlib
import os
import resource
import signal

import pytest

from clustergauge import metrics, processes
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Wrong
from clustergauge.world import Serial
from storage_io import beside, workspace
from storage_io.errors import StorageError
from storage_io.under_write import prepare, under_write
from tests import made
from tests.on_disk import alive, context, end, flip, fraction, has_device, measuring, names

SIZE = 16 << 20


@contextlib.contextmanager
def prepared(target, depth=1):
    before = processes.descendants(os.getpid())  # libraries that other tests use keep a process for good
    ctx = context(target, 0.05)
    work = prepare(ctx, 4096, depth, SIZE, spare=0)
    try:
        yield work, ctx, work.run.__self__._writer
    finally:
        work.close()
    assert names(target) == []
    assert {p.pid for p in processes.descendants(os.getpid())} <= {p.pid for p in before}


@pytest.mark.parametrize("depth", [1, 8])
def test_reads_and_writes_are_counted_apart_and_both_from_the_device(tmp_path, depth):
    with prepared(tmp_path, depth) as (work, ctx, writer):
        for _ in range(3):
            work.reset()
            assert writer.written() >= SIZE
            work.run()
            work.note()
        work.check()
        still = writer.written()
        assert len(ctx.series["beside_bytes"][1]) == 3
        assert sum(ctx.series["beside_bytes"][1]) <= still
        if has_device(ctx):
            assert ctx.device_bytes["asked_read"] == 3 * ctx.settings["transfers_per_sample"] * 4096
            assert ctx.device_bytes["asked_written"] == still
            assert fraction(ctx, "read") >= 0.95
            assert fraction(ctx, "read") < 1.05  # what is read back is not counted for the sample
            assert fraction(ctx, "written") >= 0.95


def test_a_case_is_measured_as_a_worker_does_with_both_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    params = {"block": "4KiB", "depth": 8, "size": SIZE}
    job = Job("x", "storage_io.under_write", "under_write", params, "cpu", budget_s=0.5, seed=1, target=str(tmp_path))
    outcome = execute(job, under_write, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    assert len(outcome.measurement.series["beside_bytes"].values) == len(outcome.measurement.samples_s)
    record = made.record(measurement=outcome.measurement, work=outcome.workload)
    assert {"iops", "latency_p50"} <= {metric.name for metric in metrics.derive([record])}
    assert names(tmp_path) == []


def test_a_flipped_bit_is_found_in_what_the_writer_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "SPOT_CHECKS", SIZE >> 20)
    with prepared(tmp_path) as (work, *_):
        work.reset()
        work.run()
        (path,) = tmp_path.glob(".clustergauge-*/data-1")
        work.run.__self__._stop()
        flip(path, (7 << 20) + 4321)
        with pytest.raises(Wrong, match=f"{path} differs at byte {(7 << 20) + 4321}"):
            work.note()


def test_a_pass_that_was_lost_is_told_as_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "SPOT_CHECKS", SIZE >> 20)
    with prepared(tmp_path) as (work, _, writer):
        work.reset()
        work.run()
        work.run.__self__._stop()
        writer._done[0] += 1
        with pytest.raises(Wrong, match=r"file 1, block \d+, sample \d+ lies where file 1, block \d+, sample \d+ belongs"):
            writer.verify()


def test_a_writer_that_fails_is_one_sentence(tmp_path):
    with prepared(tmp_path) as (work, _, writer):
        resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (1 << 20, -1))
        with pytest.raises(StorageError, match=r"^cannot write .*/data-1: file too large$"):
            work.reset()


def test_a_killed_writer_is_named(tmp_path):
    with prepared(tmp_path) as (work, _, writer):
        work.reset()
        os.kill(writer.pid, signal.SIGKILL)
        work.run()
        with pytest.raises(RuntimeError, match=r"^the writer beside was killed by SIGKILL$"):
            work.note()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_writer_ends_with_its_worker(tmp_path, number):
    with measuring(tmp_path, "storage_io.under_write", "under_write", block="4KiB", depth=8, size=SIZE) as process:
        own = [p.pid for p in processes.descendants(process.pid)]
        assert len(own) == 1
        end(process, number)
        assert alive(own) == []
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []
