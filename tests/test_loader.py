"""The loader on real files with real workers: shuffled, cold, verified, and gone afterwards."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustergauge import accept, metrics
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Skip, Wrong
from clustergauge.world import Serial
from storage_io import dataset, layout, loader as module, memory, workspace
from storage_io.dataset import SAMPLE_BYTES, DataSet
from storage_io.errors import StorageError
from storage_io.loader import loader, prepare
from tests import made
from tests.on_disk import ROOT, alive, context, end, files, flip, fraction, has_device, measuring, names, slow

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
SIZE = 12 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of four, 27 of them; 12 steps and more with one worker; shards of 30 samples; a small proof of direct I/O."""
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "SHARD_SAMPLES", 30)
    monkeypatch.setattr(module, "PROBE_BYTES", 1 << 20)


@contextlib.contextmanager
def prepared(target, kind, workers=1, compute=0):
    ctx = context(target, 1e-6)
    work = prepare(ctx, kind, workers, compute, SIZE, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


def place(work, target, step=3, number=2):
    """The file of a sample of the next epoch, and where it begins there."""
    epochs = work.run.__self__
    file, at = epochs._data._place(epochs._order.batches[step][number])
    (folder,) = target.glob(".clustergauge-*")
    return folder / f"data-{file}", at


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shards", "files"])
def test_an_epoch_is_shuffled_cold_and_verified(tmp_path, kind, workers):
    with prepared(tmp_path, kind, workers) as (work, ctx):
        steps = 4 + 8 * workers
        assert len(files(tmp_path)) == (109 if kind == "files" else 4)
        assert sum(path.stat().st_size for path in files(tmp_path)) == 109 * SAMPLE_BYTES
        orders = []
        for _ in range(2):
            work.reset()
            orders.append(work.run.__self__._order.batches)
            work.run()
            work.note()
        work.check()
        flat = [[sample for batch in order for sample in batch] for order in orders]
        assert flat[0] != flat[1]
        assert all(len(set(order)) == len(order) == 4 * steps for order in flat)
        assert flat[0] != sorted(flat[0])
        assert work.steps == steps == ctx.settings["verified_batches"]
        assert (work.workload.samples, work.workload.bytes_read) == (4, 4 * SAMPLE_BYTES)
        assert len(ctx.series["later_steps"][1]) == 2
        if has_device(ctx):
            assert ctx.device_bytes["asked_read"] == 2 * steps * 4 * SAMPLE_BYTES
            assert fraction(ctx, "read") >= 0.95


def test_a_case_is_measured_as_a_worker_does_and_its_utilisation_is_below_one(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    params = {"layout": "shards", "workers": 1, "compute": 5, "size": SIZE}
    job = Job("x", "storage_io.loader", "loader", params, "cpu", budget_s=0.1, seed=1, target=str(tmp_path))
    outcome = execute(job, loader, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    assert names(tmp_path) == []
    record = made.record(work=outcome.workload, measurement=outcome.measurement, settings=outcome.settings)
    found = {metric.name: metric.value for metric in metrics.derive([record])}
    assert 0 < found["utilisation"] < 1  # a sleep is never shorter than asked
    assert 0 < found["samples"] < 4 / 0.005


def test_the_declared_computing_is_slept_once_a_step(tmp_path, monkeypatch):
    slept = []
    with prepared(tmp_path, "shards", 1, compute=36) as (work, ctx):
        assert ctx.settings["compute_s"] == 0.036
        work.reset()
        monkeypatch.setattr(time, "sleep", slept.append)
        work.run()
        monkeypatch.undo()
        assert slept == [0.036] * work.steps


# -- wrong


@pytest.mark.parametrize("kind", ["shards", "files"])
def test_a_flipped_bit_is_found_and_the_file_named(tmp_path, kind):
    with prepared(tmp_path, kind) as (work, _):
        work.reset()
        path, at = place(work, tmp_path)
        flip(path, at + 5000)
        work.run()
        with pytest.raises(Wrong, match=f"{path} differs at byte {at + 5000}: expected"):
            work.check()


def test_a_sample_in_the_place_of_another_is_told(tmp_path, monkeypatch):
    with prepared(tmp_path, "shards", 0) as (work, _):
        work.reset()
        first, second = work.run.__self__._order.batches[1][:2]
        real = DataSet.__getitem__
        monkeypatch.setattr(DataSet, "__getitem__", lambda data, sample: real(data, second if sample == first else sample))
        work.run()
        with pytest.raises(Wrong, match=r"lies where file \d+, block \d+, sample 0 belongs"):
            work.check()


def test_an_epoch_that_did_nothing_is_caught(tmp_path):
    with prepared(tmp_path, "shards") as (work, _):
        work.reset()
        with pytest.raises(Wrong, match="of 12 batches 0 came"):
            work.check()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_short_file_is_one_sentence_whichever_process_meets_it(tmp_path, workers):
    with prepared(tmp_path, "files", workers) as (work, _):
        work.reset()
        path, _ = place(work, tmp_path)
        os.truncate(path, 8192)
        with pytest.raises(StorageError) as caught:
            work.run()
        assert str(caught.value) == f"cannot read {path}: the file ends at byte 8192"


def test_too_few_files_that_may_be_open_are_one_sentence(tmp_path):
    with prepared(tmp_path, "shards", 2) as (work, _):
        work.reset()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = os.dup(0)  # the least that is free
        os.close(most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        try:
            with pytest.raises(StorageError) as caught:
                work.run()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    words = f"a batch did not come from its worker: at most {most} files may be open at once; raise it (ulimit -n)"
    assert str(caught.value) == words


def test_of_many_shards_some_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "OPEN_MOST", 2)
    with prepared(tmp_path, "shards", 0) as (work, _):
        data = work.run.__self__._data
        assert len(data.files) == 4
        for _ in range(3):
            work.reset()
            work.run()
            work.check()
            assert len(data._open) == 2
        links = [Path(f"/proc/self/fd/{number}").readlink() for number in data._open.values()]
        assert links == [data.path(file) for file in data._open]


def test_an_epoch_that_the_cache_answered_is_invalid(tmp_path):
    with prepared(tmp_path, "shards") as (work, ctx):
        if not has_device(ctx):
            pytest.skip("nothing is counted here")
        work.reset()
        with subprocess.Popen(["cat", *map(str, files(tmp_path))], stdout=subprocess.PIPE) as other:
            assert len(other.stdout.read()) == 109 * SAMPLE_BYTES
            work.run()
            work.note()
        assert fraction(ctx, "read") < 0.05
        (verdict,) = accept.judge([made.record(work=work.workload, device_bytes=ctx.device_bytes, settings=ctx.settings)])
        assert (verdict.verdict, verdict.reason) == ("invalid", "cached: the device moved 0% of the bytes")


# -- as much as memory holds, and not begun where there is no sense


@pytest.mark.slow
def test_what_memory_does_not_hold_is_verified_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 5 * 4 * SAMPLE_BYTES)
    with prepared(tmp_path, "shards") as (work, ctx):
        assert ctx.settings["verified_batches"] == 5
        work.reset()
        work.run()
        epochs = work.run.__self__
        assert len(epochs._held) == len(epochs._keep) == 5
        work.check()
        assert epochs._held == []


def test_what_has_no_meaning_is_skipped_in_words(tmp_path, monkeypatch):
    with pytest.raises(Skip, match=r"^1MiB are 9 samples of 112KiB, too few for 20 batches of 4; take a larger --set size=…$"):
        prepare(context(tmp_path), "shards", 2, 0, 1 << 20, spare=0)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: 257 << 20)
        with pytest.raises(Skip, match="7 batches of 448KiB do not fit memory, which has 1 MiB free"):
            prepare(context(tmp_path), "shards", 1, 0, SIZE, spare=0)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "stopwatch", slow(4.0))
        with pytest.raises(
            Skip, match=r"^writing [\d.]+ MiB to begin with would take \d+ s \(at most 10 s; take a smaller --set size=…\)$"
        ):
            prepare(context(tmp_path), "files", 1, 0, SIZE, spare=0)
    with pytest.raises(Skip, match="must stay free"):
        prepare(context(tmp_path), "shards", 1, 0, SIZE, spare=1 << 60)
    assert names(tmp_path) == []
    assert layout.patience(context(tmp_path)) == 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_files_and_workers_go_with_a_terminated_worker_and_are_swept_after_a_killed_one(tmp_path, number):
    params = {"layout": "shards", "workers": 1, "compute": 0, "size": 96 << 20}
    with measuring(tmp_path, "storage_io.loader", "loader", **params) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        end(process, number)
    assert alive(map(int, children)) == []
    assert len(names(tmp_path)) == (number == signal.SIGKILL)
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []


def test_listing_imports_nothing_heavy():
    code = "import sys, storage_io.loader; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
