"""What a bad disk does, really injected, and what comes of it: the right status, words and exit code, and nothing left behind.

The whole command line runs, on a disk that `tests/faults/disk.c` makes misbehave under it (`LD_PRELOAD`; the helper processes of
the probes meet it too), on mounts of the test's own, or with somebody else at work in the target.  What single transfers do with
a failing device, a full file system or a refused flag is in the tests of each probe.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from clustergauge.probe import Skip
from storage_io import layout, sequential
from tests.on_disk import ROOT, context, mounted, names, needs_root

MIB = 1 << 20
TABLES = {
    "sequential write": 'probe = "sequential"\nop = "write"\ndepth = 4\nsize = "4MiB"',
    "sequential read": 'probe = "sequential"\nop = "read"\ndepth = 4\nsize = "4MiB"',
    "slow read": 'probe = "sequential"\nop = "read"\ndepth = 1\nsize = "4MiB"',
    "random read": 'probe = "random"\nop = "read"\nblock = "4KiB"\ndepth = 1\nsize = "16MiB"',
    "random write": 'probe = "random"\nop = "write"\nblock = "4KiB"\ndepth = 1\nsize = "16MiB"',
    "flush": 'probe = "flush"\nsize = "16MiB"',
    "small files": 'probe = "small_files"\nop = "read"\ndepth = 1\nsize = "128KiB"',
    "small files write": 'probe = "small_files"\nop = "write"\ndepth = 8\nsize = "128KiB"',
    "checkpoint": 'probe = "checkpoint"\nmodel = "llama3-8b"\nformat = "raw"\nop = "save"\nranks = "one"\nsize = "64MiB"',
}
FILE = r"/\S*/\.clustergauge-[0-9a-f]{16}/data-\d+"
AT = FILE + r" at byte \d+"
FULL, EIO = "no space left on device", "input/output error"
RUNS = r"\S*/\.clustergauge-[0-9a-f]{16}"


class Fault(NamedTuple):
    """``cases``: what is measured on it; ``status`` and ``words``: what each record says; ``code``: of the command."""

    kind: str
    cases: tuple[str, ...]
    status: str
    words: str
    code: int
    after: int = 0


LAID_OUT = 16
"""Writes of 1 MiB that lay out a file of 16 MiB."""
FAULTS = (
    Fault(
        "allocate_full",
        ("sequential read", "flush"),
        "error",
        f"cannot allocate \\d+ bytes for {FILE}: {FULL}",
        3,
    ),
    Fault("full", ("sequential write",), "error", f"cannot write {AT}: {FULL}", 3, 6),
    Fault("full", ("random write", "flush"), "error", f"cannot write {AT}: {FULL}", 3, LAID_OUT + 2),
    Fault("read_eio", ("sequential read", "random read"), "error", f"cannot read {AT}: {EIO}", 3, 8),
    Fault("read_eio", ("small files",), "error", f"cannot read {FILE}: {EIO}", 3, 2),
    Fault("write_eio", ("sequential write", "random write"), "error", f"cannot write {AT}: {EIO}", 3, 3),
    Fault("sync_eio", ("sequential write", "random write", "flush"), "error", f"cannot sync {FILE}: {EIO}", 3, 2),
    Fault("sync_eio", ("small files write", "checkpoint"), "error", f"cannot sync {FILE}: {EIO}", 3),
    Fault("syncfs_eio", ("small files write",), "error", f"cannot sync {RUNS}: {EIO}", 3),
    Fault("short_read", ("sequential read", "random read", "small files"), "ok", "", 0),
    Fault("short_write", ("sequential write", "random write", "small files write", "checkpoint"), "ok", "", 0),
    Fault("flip", ("sequential read", "random read", "small files"), "wrong", rf"{FILE} differs at byte \d+: expected 0x..,", 3),
    Fault(
        "flip",
        ("sequential write", "random write", "small files write", "flush"),
        "wrong",
        rf"{FILE} differs at byte \d+: expected 0x..,",
        3,
    ),
    Fault("lost_write", ("sequential write",), "wrong", r"sample 0 lies where .* sample 1 belongs", 3, 4),
    Fault("lost_write", ("small files write",), "wrong", rf"{FILE} holds 0 bytes, {128 << 10} were written", 3),
    Fault("lost_write", ("checkpoint",), "wrong", r"tensor \S+ differs at byte \d+ of", 3),
    Fault("lost_write", ("random write", "flush"), "wrong", r"sample 0 lies where .* sample 1 belongs", 3, LAID_OUT),
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The misbehaving disk, compiled."""
    if not (gcc := shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("shim") / "disk.so"
    source = ROOT / "tests/faults/disk.c"
    done = subprocess.run([gcc, "-shared", "-fPIC", "-Wall", "-o", path, source, "-ldl"], capture_output=True, text=True)
    if "bits/" in done.stderr or "No such file" in done.stderr:
        pytest.skip(f"no C library to compile against: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    return path


def command(tmp_path, cases, *words):
    (tmp_path / "s.toml").write_text(
        'title = "faults"\nbudget_s = 0.1\ntimeout_s = 60\n' + "".join(f"[[cases]]\n{TABLES[case]}\n" for case in cases)
    )
    script, suite, results = str(ROOT / "run_suite.py"), str(tmp_path / "s.toml"), str(tmp_path / "results")
    return [sys.executable, script, "run", "--suite", suite, "-o", results, "--format", "json", *words]


def measured(tmp_path, target, cases, *words, env=None, **more):
    """The records of a run on a target, its exit code and what it said on stderr; nothing may be left in the target."""
    done = subprocess.run(
        command(tmp_path, cases, "--target", str(target), *words),
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=os.environ | (env or {}), **more,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode, done.stderr


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def faulty(shim, kind, after=0, ms=0):
    return {"LD_PRELOAD": str(shim), "DISK_FAULT": kind, "DISK_FAULT_AFTER": str(after), "DISK_FAULT_MS": str(ms)}


# -- the matrix


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{'-'.join(f.cases).replace(' ', '_')}")
@pytest.mark.slow
def test_a_fault_of_the_disk_is_told_as_what_it_is(tmp_path, target, shim, fault):
    document, code, said = measured(tmp_path, target, fault.cases, env=faulty(shim, fault.kind, fault.after))
    assert [r["status"] for r in document["records"]] == [fault.status] * len(fault.cases), document["records"]
    for record in document["records"]:
        assert re.search(fault.words, record["reason"]), record["reason"]
        assert "\n" not in record["reason"]
        assert "Traceback" not in record["reason"]
    assert code == fault.code, said
    assert names(target) == []


# -- slow


@pytest.mark.slow
def test_a_disk_ten_times_too_slow_fails_what_is_asked_of_it(tmp_path, target, shim):
    """20 ms more for each MiB: 52 MB/s at the very most."""
    criteria = tmp_path / "accept.toml"
    criteria.write_text('[[criteria]]\ncase = "sequential/*"\nmetric = "bandwidth"\nfloor = 520\nunit = "MB/s"\n')
    document, code, said = measured(tmp_path, target, ("slow read",), "--accept", str(criteria), env=faulty(shim, "slow", ms=20))
    assert any(r["confirms"] for r in document["records"])  # what failed was measured again before it was final
    for record in document["records"]:
        assert record["status"] == "ok"
        assert min(record["measurement"]["samples_s"]) >= 4 * 0.02
    assert [v["verdict"] for v in document["verdicts"] if v["metric"] == "bandwidth"] == ["FAIL"]
    assert document["verdicts"][0]["value"] <= 4 * MIB / 0.08
    assert code == 1, said
    assert names(target) == []


@pytest.mark.parametrize("op", ["read", "write"])
def test_a_disk_too_slow_to_begin_with_is_refused_early_in_words(target, monkeypatch, op):
    written = []
    monkeypatch.setattr(layout, "seconds", lambda call: (call(), written.append(1), 3.0)[2])
    with pytest.raises(
        Skip, match=r"^writing 64MiB to begin with would take 12 s \(at most 10 s; take a smaller --set size=…\)$"
    ):
        sequential.prepare(context(target), op, 1, 64 * MIB, spare=0)
    assert len(written) == 1
    assert names(target) == []


# -- no room


@needs_root
def test_a_disk_full_at_the_start_is_skipped_with_the_figures_and_missed_where_required(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64m", "none") as target:
        criteria = tmp_path / "accept.toml"
        criteria.write_text('[[criteria]]\ncase = "sequential/*"\nmetric = "bandwidth"\nfloor = 1\nunit = "MB/s"\n')
        document, code, said = measured(tmp_path, target, ("sequential read",), "--accept", str(criteria))
        (record,) = document["records"]
        words = f"{target} has 64 MiB free, the files need 4 MiB and 2048 MiB must stay free"
        assert (record["status"], record["reason"]) == ("skipped", words)
        assert code == 4, said
        assert names(target) == []


def test_a_limit_on_file_size_is_one_sentence(tmp_path, target):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    document, code, said = measured(tmp_path, target, ("random read", "sequential read"), preexec_fn=limit)
    records = {r["probe"]: r for r in document["records"]}
    assert records["random"]["status"] == "error"
    assert re.search(rf"cannot allocate {16 * MIB} bytes for {FILE}: file too large$", records["random"]["reason"])
    assert records["sequential"]["status"] == "ok"  # which needs 4 MiB
    assert code == 3, said
    assert names(target) == []


# -- caches

CACHED = ("invalid", "cached: the device moved 0% of the bytes")


@needs_root
@pytest.mark.slow
def test_memory_is_invalid_not_fast(tmp_path):
    with mounted(tmp_path / "ram", "-t", "tmpfs", "-o", "size=8g", "none") as target:
        cases = ("sequential read", "random read", "sequential write")
        document, code, said = measured(tmp_path, target, cases)
        assert [r["status"] for r in document["records"]] == ["ok"] * 3
        assert [r["settings"]["direct"] for r in document["records"]] == [False] * 3
        assert [(v["verdict"], v["reason"]) for v in document["verdicts"]] == [CACHED] * 3
        assert code == 3, said
        assert names(target) == []


def counted(record):
    return record["settings"]["fs_type"] not in ("tmpfs", "ramfs", "overlay") and record["settings"]["device_counters"]


@pytest.mark.slow
def test_without_direct_io_a_disk_is_measured_and_labelled(tmp_path, target, shim):
    document, code, said = measured(tmp_path, target, ("sequential read", "random write"), env=faulty(shim, "no_direct"))
    for record in document["records"]:
        assert record["status"] == "ok"
        assert record["settings"]["direct_reason"] == "the file system refuses direct I/O"
    if all(map(counted, document["records"])):
        assert code == 0, said
    assert names(target) == []


def test_reads_cached_on_purpose_are_invalid(tmp_path, target, shim):
    """No direct I/O, and nothing that is dropped: what a benchmark without guards measures."""
    document, code, said = measured(tmp_path, target, ("sequential read", "random read"), env=faulty(shim, "cached"))
    assert [r["status"] for r in document["records"]] == ["ok", "ok"]
    assert all(r["settings"]["page_cache_left_bytes"] >= 4 * MIB for r in document["records"])
    assert [(v["verdict"], v["reason"]) for v in document["verdicts"]] == [
        ("invalid", "cached: the device moved 0% of the bytes")
    ] * 2
    assert code == 3, said
    assert names(target) == []


# -- somebody else in the target, or at the worker


@contextlib.contextmanager
def meanwhile(target, do):
    """``do(run folder)`` once a case has its file open and is at work; another thread."""
    over = threading.Event()
    seen = []

    def watch():
        while not over.wait(0.02):
            for folder in target.glob(".clustergauge-*"):
                if folder not in seen and (folder / "data-0").exists():
                    seen.append(folder)
                    do(folder)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_a_target_that_vanishes_midway_costs_its_cases_and_no_more(tmp_path, target):
    with meanwhile(target, lambda _: shutil.rmtree(target)):
        document, code, said = measured(tmp_path, target, ("random write", "random read"))
    first, second = (r["reason"] for r in document["records"])
    assert [r["status"] for r in document["records"]] == ["error", "error"]
    assert re.search(rf"cannot (remove|create|write|open|sync) {RUNS}\S*: no such file or directory", first), first
    assert second.endswith(f"StorageError: cannot write to {target}: no such file or directory")
    assert code == 3, said
    assert not target.exists()


@needs_root
def test_a_target_unmounted_midway_leaves_nothing_where_it_was(tmp_path):
    (tmp_path / "room").mkdir()
    with mounted(tmp_path / "ram", "-t", "tmpfs", "-o", "size=8g", "none") as target:
        with meanwhile(target, lambda _: subprocess.run(["umount", "-l", str(target)], check=True)):
            document, code, said = measured(tmp_path, target, ("random write",))
        subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)  # for the end of the test's own
    (record,) = document["records"]
    assert record["status"] == "error"
    assert re.search(rf"{RUNS}\S*: no such file or directory", record["reason"]), record["reason"]
    assert code == 3, said
    assert names(tmp_path / "ram") == []


def workers_in(folder):
    """Processes that have a file of the folder open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(f"{folder}/"):
                found.append(int(link.parts[2]))
    return sorted(set(found))


@pytest.mark.slow
def test_a_killed_worker_is_named_and_its_files_are_swept_at_once(tmp_path, target):
    killed = []

    def kill(folder):
        if not killed and (pids := workers_in(folder)):
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    with meanwhile(target, kill):
        document, code, said = measured(tmp_path, target, ("random write", "sequential read"))
    assert killed
    by_probe = {r["probe"]: r for r in document["records"]}
    assert by_probe["random"]["status"] == "error"
    assert "killed by SIGKILL" in by_probe["random"]["reason"]
    assert by_probe["sequential"]["status"] == "ok"
    assert code == 3, said
    assert names(target) == []


def test_what_a_run_killed_whole_left_is_swept_by_the_next(tmp_path, target):
    words = command(tmp_path, ("random write",), "--target", str(target), "--duration", "60s")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        until = time.monotonic() + 60
        while not (pids := [p for f in target.glob(".clustergauge-*") for p in workers_in(f)]) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGSTOP)  # it can clean up nothing
        process.kill()
        process.wait(30)
        os.kill(pids[0], signal.SIGKILL)
    assert len(names(target)) == 1
    document, code, said = measured(tmp_path, target, ("sequential read",))
    assert [r["status"] for r in document["records"]] == ["ok"]
    assert code == 0, said
    assert names(target) == []
