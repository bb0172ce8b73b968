"""Cases held against fio: what is believed of its output, whose turn it is, and that its files and processes go."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from clustergauge import cross_check, metrics, processes, readings
from clustergauge.cross_check import Turns
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.model import Measurement, Series, Workload
from clustergauge.probe import Peer, Work
from clustergauge.worker import load_probe
from clustergauge.world import Serial
from reports.details import details
from reports.rows import Row
from storage_io import fio
from storage_io.fio import Pattern, bytes_per_second
from tests import made
from tests.on_disk import ROOT, alive, names

needs_fio = pytest.mark.skipif(not fio.installed(), reason="fio is not installed")


def printed(**job):
    fields = {"error": 0, "read": {"io_bytes": 3000, "runtime": 2}, "write": {"io_bytes": 1000, "runtime": 1}}
    return ("fio: a warning\n" + json.dumps({"fio version": "fio-3", "jobs": [fields | job]}, indent=1)).encode()


# -- what it prints


def test_bytes_of_both_ways_over_the_longer_time():
    assert bytes_per_second(printed()) == 2e6


@pytest.mark.parametrize(
    "job",
    [
        {"error": 5},
        {"read": {"io_bytes": 0, "runtime": 0}, "write": {"io_bytes": 0, "runtime": 0}},
        {"read": {"io_bytes": -1, "runtime": 1}},
        {"read": {"io_bytes": 1.5, "runtime": 1}},
        {"read": {"io_bytes": "1", "runtime": 1}},
        {"read": None},
    ],
)
def test_a_job_that_failed_or_tells_nonsense_is_not_believed(job):
    with pytest.raises(ValueError, match=r"."):
        bytes_per_second(printed(**job))


@given(st.binary() | st.binary().map(lambda tail: b"{\n" + tail))
def test_no_output_upsets_the_parser(output):
    with pytest.raises(ValueError, match=r"."):
        bytes_per_second(output)


def test_two_jobs_are_not_one():
    with pytest.raises(ValueError, match="jobs"):
        bytes_per_second(json.dumps({"jobs": [json.loads(printed()[15:])["jobs"][0]] * 2}, indent=1).encode())


def test_the_pattern_is_said_to_fio():
    words = Pattern("randrw", 4096, 32, 1 << 28, "end", 70).words(Path("/x:y/data-1"), 1.0)
    assert {"--rw=randrw", "--bs=4096", "--iodepth=32", "--ioengine=libaio", "--rwmixread=70", "--end_fsync=1"} <= set(words)
    assert {"--filename=/x\\:y/data-1", "--direct=1", "--overwrite=1", f"--size={1 << 28}", "--runtime=1"} <= set(words)
    words = Pattern("read", 1 << 20, 1, 1 << 28).words(Path("/x/data-0"), 1.0)
    assert "--ioengine=psync" in words
    assert not [word for word in words if word.startswith(("--overwrite", "--end_fsync", "--fdatasync", "--rwmixread"))]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no such option >&2; exit 1", "exit code 1: no such option"),
        ("echo hello", "no result in what it printed"),
        ("echo '{'; echo '}'", "Object missing required field `jobs`"),
        ("kill -9 $$", "exit code -9: no word of why"),
        ("exec sleep 60", "no end after 1 s"),
    ],
)
def test_a_fio_that_fails_is_one_line(tmp_path, monkeypatch, script, said):
    (tmp_path / "fio").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "fio").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(fio, "GRACE_S", 1.0)
    with pytest.raises(OSError, match=f"^{said}$"):
        fio.run(Pattern("read", 4096, 1, 4096), tmp_path / "x", 0.0)


# -- turns


class Clock:
    """Every run takes a fourth of a second of it, and so does every look."""

    time_s = 0.0

    def now(self):
        self.time_s += 0.25
        return self.time_s

    def time(self, calls):
        for call in calls:
            call()
        return 0.25


def test_turns_alternate_and_keep_seconds_of_a_step():
    order = []
    work = Work(run=lambda: order.append("we"), workload=Workload(), check=lambda: None, steps=5)
    turns = Turns(work, Clock(), Peer("it", lambda seconds: (order.append("it"), seconds / 10)[1]))
    turns.take(3)
    assert order == ["it", *["we"] * 4, "it", "it", *["we"] * 4, *["we"] * 4, "it"]  # the first does not count
    assert turns.own_s == [0.05] * 3
    assert turns.peer_s == [0.1] * 3


def test_slow_turns_are_fewer(monkeypatch):
    monkeypatch.setattr(cross_check, "ALLOWED_S", 0.4)
    turns = Turns(Work(run=lambda: None, workload=Workload()), Clock(), Peer("it", lambda _: 1.0))
    turns.take(9)
    assert len(turns.own_s) == len(turns.peer_s) == 1


# -- cases


def executed(target, monkeypatch, module, name, **params):
    monkeypatch.setattr("storage_io.workspace.require_space", lambda *_: None)
    monkeypatch.setattr(Turns.take, "__defaults__", (2,))
    job = Job("x", module, name, params, "cpu", budget_s=0.05, seed=1, target=str(target), cross_check=True)
    return execute(job, load_probe(module, name), Serial(), target, lambda _: None)


@needs_fio
@pytest.mark.parametrize(
    ("module", "name", "params"),
    [
        ("storage_io.sequential", "sequential", {"op": "read", "depth": 8, "size": 16 << 20}),
        ("storage_io.random_io", "random", {"op": "mixed", "block": "4KiB", "depth": 1, "size": 16 << 20}),
        ("storage_io.flush", "flush", {"size": 16 << 20}),
    ],
)
@pytest.mark.slow
def test_a_case_takes_turns_with_fio(tmp_path, monkeypatch, module, name, params):
    assert load_probe(module, name).needs_of(params).peer
    outcome = executed(tmp_path, monkeypatch, module, name, **params)
    assert outcome.status == "ok", outcome.reason
    if not outcome.settings["direct"]:
        assert outcome.settings["cross_check"] == "not held against fio without direct I/O: their caches would be compared"
        return
    assert outcome.settings["cross_check"].startswith("fio-")
    series = outcome.measurement.series
    assert len(series["own_s"].values) == len(series["peer_s"].values) == 2
    assert min(series["own_s"].values + series["peer_s"].values) > 0
    if outcome.device_bytes:  # those of fio, our child, are not among them
        assert outcome.device_bytes["read"] + outcome.device_bytes["written"] < 3 * (
            outcome.device_bytes["asked_read"] + outcome.device_bytes["asked_written"]
        )
    assert names(tmp_path) == []


def test_without_fio_the_record_says_so_and_the_case_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(fio, "installed", lambda: "")
    outcome = executed(tmp_path, monkeypatch, "storage_io.flush", "flush", size=16 << 20)
    assert (outcome.status, outcome.settings["cross_check"]) == ("ok", "fio is not installed")
    assert "peer_s" not in outcome.measurement.series


def test_a_case_that_no_program_is_asked_to_do_says_so(tmp_path, monkeypatch):
    outcome = executed(tmp_path, monkeypatch, "storage_io.metadata", "metadata", op="stat", layout="one", files=100)
    assert (outcome.status, outcome.settings["cross_check"]) == ("ok", "no program is asked to do the same")
    assert not load_probe("storage_io.metadata", "metadata").needs_of({"op": "stat", "layout": "one", "files": 1000}).peer


def test_a_fio_that_fails_takes_nothing_from_the_case(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("exit code 1: it broke")

    monkeypatch.setattr(fio, "run", fail)
    monkeypatch.setattr(fio, "installed", lambda: shutil.which("true"))
    outcome = executed(tmp_path, monkeypatch, "storage_io.flush", "flush", size=16 << 20)
    assert outcome.status == "ok"
    if outcome.settings["direct"]:
        assert outcome.settings["cross_check"] == "fio failed: exit code 1: it broke"
    assert "own_s" not in outcome.measurement.series


# -- what comes of it


def checked(own, peer, **settings):
    series = {"own_s": Series(unit="s", values=own), "peer_s": Series(unit="s", values=peer)}
    measured = Measurement(clock="wall", cache="none", samples_s=[1.0] * 30, series=series if own else {})
    return made.record("disk", work=Workload(bytes_read=1, bound="storage"), measurement=measured, settings=settings)


def said(record):
    row = Row(record.case, "", "m1", {}, [record], [], "unreferenced", metrics=metrics.derive([record]))
    return ["".join(part if isinstance(part, str) else part[0] for part in line) for line in details(row)]


def test_the_ratio_is_that_of_the_rates_with_its_spread():
    record = checked([2.0, 1.0, 1.0], [1.0, 1.0, 1.5], cross_check="fio-3.33")
    assert readings.over_peer(record) == [0.5, 1.0, 1.5]
    assert said(record) == ["  over fio-3.33: 1.00 (0.50 to 1.50 in 3 turns of each)"]
    assert next(m for m in metrics.derive([record]) if m.name == "over_peer").unit == "1"
    assert said(checked([], [], cross_check="fio is not\x1b installed")) == ["  no cross-check: fio is not� installed"]
    assert said(checked([], [])) == []


@needs_fio
@pytest.mark.slow
def test_fio_and_its_file_go_with_a_killed_worker(tmp_path):
    (tmp_path / "s.toml").write_text(
        'title = "t"\nbudget_s = 0.1\n[[cases]]\nprobe = "random"\nop = "write"\nblock = "4KiB"\ndepth = 1\nsize = "16MiB"\n'
    )
    (tmp_path / "target").mkdir()
    words = ["run", "--suite", "s.toml", "--target", "target", "--cross-check", "--format", "json"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "run_suite.py"), *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        until = time.monotonic() + 100
        while not (pids := fio_in(tmp_path / "target")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        if not pids:
            pytest.skip("it was not held against fio: no direct I/O here")
        worker = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(worker, signal.SIGKILL)
        out, err = process.communicate(timeout=100)
    (record,) = json.loads(out)["records"]
    assert (record["status"], process.returncode) == ("error", 3), err
    assert "killed by SIGKILL" in record["reason"]
    assert alive(pids) == []
    assert names(tmp_path / "target") == []


def fio_in(folder):
    """The fio processes started for files of the folder, eldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_text(errors="replace")
        except OSError:
            continue
        if Path(text.split("\0")[0]).name == "fio" and f"--filename={folder}/" in text:
            found.append(int(entry.parts[2]))
    return sorted(found)


def huge_pages(pid):
    """KiB of the process that lie on transparent huge pages."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("AnonHugePages:"))


@needs_fio
def test_fio_has_its_memory_on_huge_pages_as_we_have(tmp_path):
    """Else, on a disk that takes few segments at a time, ours looked nearly three times as fast."""
    chosen = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    glibc = platform.libc_ver()
    if not chosen.exists() or "[never]" in chosen.read_text():
        pytest.skip("this kernel gives no huge pages")
    if glibc[0] != "glibc" or tuple(map(int, glibc[1].split("."))) < (2, 35):
        pytest.skip("this C library does not ask for them")
    (tmp_path / "x").write_bytes(bytes(16 << 20))
    seen: list[int] = []
    ended = threading.Event()

    def look():
        while not ended.is_set():
            seen.append(max((huge_pages(p.pid) for p in processes.descendants(os.getpid()) if p.name == "fio"), default=0))
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        fio.run(Pattern("read", 1 << 20, 8, 16 << 20), tmp_path / "x", 1.0)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    finally:
        ended.set()
        watcher.join()
    assert max(seen) >= 2048 * 2  # of 8 MiB those that hold whole huge pages


@pytest.mark.parametrize("before", ["", "glibc.malloc.check=1"])
def test_what_the_user_asks_of_the_c_library_stays(monkeypatch, before):
    monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert fio.environment()["GLIBC_TUNABLES"].split(":") == [*filter(None, [before]), "glibc.malloc.hugetlb=1"]
    assert fio.environment()["PATH"] == os.environ["PATH"]


def test_there_is_one_note_without_fio(tmp_path):
    (tmp_path / "s.toml").write_text('title = "t"\n[[cases]]\nprobe = "flush"\nbudget_s = 0.1\n')
    (tmp_path / "bin").mkdir()
    env = os.environ | {"PATH": str(tmp_path / "bin")}
    words = [sys.executable, str(ROOT / "run_suite.py"), "run", "--suite", "s.toml", "--cross-check"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fio is not installed") == 1
    assert shutil.which("fio", path=env["PATH"]) is None
