"""What ended processes leave is swept, and other runs at work are noticed."""

import signal
import subprocess
import sys
import time

import pytest

from clustergauge import warnings
from tests import made
from tests.objects import BUCKET, MODULE, URL, Answer, data, error_of, keys, sample, uploads, work
from tests.on_disk import ROOT, end, measuring


def target():
    return str(URL)


@pytest.mark.slow
def test_sigterm_leaves_nothing(store):
    with measuring(target(), MODULE, "object_store", op="get", concurrency=4, size=1 << 20) as process:
        assert len(data(store)) > 0
        assert end(process) == 143
    assert keys(store) == []


def test_what_a_killed_process_left_the_next_one_sweeps(tmp_path, store, proxy):
    with measuring(target(), MODULE, "object_store", op="get", concurrency=4, size=1 << 20) as process:
        left = keys(store)
        folder = next(key for key in left if key.endswith(".owner")).removesuffix(".owner")
        store.create_multipart_upload(Bucket=BUCKET, Key=f"{folder}/data-7")
        with work(tmp_path, "put", 4096):
            assert set(left) <= set(keys(store))  # it lives
        assert uploads(store) == [f"{folder}/data-7"]
        end(process, signal.SIGKILL)
    assert set(left) <= set(keys(store))
    done = subprocess.run(
        [sys.executable, "-m", "storage_io.workspace", target()], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (keys(store), uploads(store)) == ([], [])


def test_a_process_that_cannot_be_looked_up_is_left_alone_for_a_day(tmp_path, store, monkeypatch):
    from storage_io import object_space

    key = URL.key(f"{object_space._owner()}/{'a' * 16}")
    store.put_object(Bucket=BUCKET, Key=f"{key}.owner", Body=b"another-boot 1 1 1\n")
    store.put_object(Bucket=BUCKET, Key=f"{key}/data-1", Body=b"x")
    with work(tmp_path, "put", 4096):
        pass
    assert len(keys(store)) == 2
    later = time.time() + 90_000
    monkeypatch.setattr(object_space.time, "time", lambda: later)
    with work(tmp_path, "put", 4096):
        pass
    assert keys(store) == []


# -- other runs at work


def run_of(monkeypatch, name):
    """From now on this process is of another run."""
    monkeypatch.setenv("CLUSTERGAUGE_RUN", name)


def mark(store, name="0" * 16):
    store.put_object(Bucket=BUCKET, Key=URL.key(f"clustergauge-at-work/{name}"), Body=b"")


def other_runs(tmp_path):
    with work(tmp_path, "put", 4096) as (_, ctx):
        pass
    return ctx.settings.get("other_runs")


def test_a_run_under_the_same_prefix_is_noticed_and_its_own_cases_are_not(tmp_path, store, monkeypatch):
    run_of(monkeypatch, "one")
    with measuring(target(), MODULE, "object_store", op="get", concurrency=4, size=1 << 20) as process:
        assert other_runs(tmp_path) is None
        run_of(monkeypatch, "two")
        assert other_runs(tmp_path) == "1, by its mark"
        end(process, signal.SIGKILL)
    assert sum("at-work" in key for key in keys(store)) == 1
    assert other_runs(tmp_path) is None  # swept with the rest
    assert keys(store) == []
    record = made.record(settings={"other_runs": "1, by its mark"})
    (doubt,) = [d for d in warnings.doubts([record]) if d.name == "target in use"]
    assert doubt.detail == "other runs of ClusterGauge were at work in the target: 1, by its mark"


@pytest.mark.slow
def test_a_mark_that_a_killed_run_of_another_host_left_does_not_count_for_long(tmp_path, store, monkeypatch):
    from storage_io import object_space

    mark(store)
    mark(store, "1" * 16)
    mark(store, "1" * 15 + "2")
    assert other_runs(tmp_path) == "2, by their marks"
    monkeypatch.setattr(object_space, "FRESH_S", 4.0)
    monkeypatch.setattr(object_space.time, "time", lambda: 0.0)  # our clock has no part in it
    time.sleep(5.1)
    mark(store, "1" * 16)
    assert other_runs(tmp_path) == "1, by its mark"
    assert len(keys(store)) == 3  # which are not ours to delete


@pytest.mark.parametrize("name", ["0" * 15, "0" * 17, "g" * 16, "0" * 16 + "/x", "٣" * 16])
def test_what_is_no_mark_is_nobody_at_work(tmp_path, store, name):
    mark(store, name)
    assert other_runs(tmp_path) is None


def test_a_run_that_comes_and_goes_between_samples_is_recorded(tmp_path, store, monkeypatch):
    from storage_io import object_store

    monkeypatch.setattr(object_store, "LOOK_S", 0.0)
    with work(tmp_path, "put", 4096) as (made_work, ctx):
        sample(made_work)
        assert "other_runs" not in ctx.settings
        mark(store)
        sample(made_work)
        store.delete_object(Bucket=BUCKET, Key=URL.key(f"clustergauge-at-work/{'0' * 16}"))
        sample(made_work)
        made_work.check()
        assert ctx.settings["other_runs"] == "1, by its mark"
        assert ctx.settings["retries"] == 0
    assert keys(store) == []


@pytest.mark.parametrize("answer", [Answer(200, b"", {"ETag": '"00"'}), error_of(403, "AccessDenied")])
def test_a_store_in_which_no_mark_can_be_made_proves_nothing_and_costs_nothing(tmp_path, store, proxy, answer):
    mark(store)
    proxy.before = lambda method, path, *_: answer if method == "PUT" and "at-work" in path else None
    with work(tmp_path, "put", 4096) as (made_work, ctx):
        sample(made_work)
        made_work.check()
    assert "other_runs" not in ctx.settings
