"""Run folders: refused where space is short, removed, swept when their owner is gone, and nobody else's touched."""

import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from clustergauge import at_work, execute as executing, warnings
from clustergauge.cross_check import Turns
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Skip
from clustergauge.worker import load_probe
from clustergauge.world import Serial
from storage_io import fio, sequential, workspace
from storage_io.errors import StorageError
from storage_io.room import SPARE_BYTES
from storage_io.workspace import FOREIGN_AGE_S, Workspace, require_space, sweep
from tests import made
from tests.on_disk import ROOT, end, flip, measuring, needs_root

NAME = ".clustergauge-0123456789abcdef"
GIB = 1 << 30


def dead(target, name=NAME, owner=None):
    """A folder as a killed owner leaves it."""
    folder = target / name
    folder.mkdir()
    (folder / "lock").write_text(f"{socket.gethostname()} 1\n" if owner is None else owner)
    (folder / "data-0").write_bytes(b"x" * 4096)
    return folder


def test_a_folder_is_private_and_goes_with_its_files(tmp_path):
    space = Workspace(tmp_path, 4096, spare=0)
    assert space.path.parent == tmp_path
    assert space.path.stat().st_mode & 0o777 == 0o700
    assert (space.path / "lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    space.file(0).write_bytes(b"x")
    space.file(12).write_bytes(b"x")
    space.close()
    assert list(tmp_path.iterdir()) == []
    space.close()  # once more does nothing


def test_a_sweeper_that_is_faster_takes_nothing_from_the_end(tmp_path, monkeypatch):
    real = workspace._empty
    monkeypatch.setattr(workspace, "_empty", lambda folder, lock: (real(folder, lock), sweep(tmp_path)))
    Workspace(tmp_path, 4096, spare=0).close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_keeps_the_folder_and_is_said(tmp_path):
    space = Workspace(tmp_path, 4096, spare=0)
    (space.path / "precious").write_text("x")
    with pytest.raises(StorageError, match=f"^cannot remove {space.path}: directory not empty$"):
        space.close()
    assert [p.name for p in space.path.iterdir()] == ["precious"]


def _failing(target, monkeypatch, plant, at):
    """What comes of a case whose folder cannot be removed; with its file, ``plant`` does something when it comes to ``at``."""
    monkeypatch.setattr(workspace, "require_space", lambda *_, **__: None)

    def phase(now):
        if now == at:
            (path,) = target.glob(".clustergauge-*/data-0")
            (path.parent / "precious").write_text("x")
            plant(path)

    job = Job("x", "storage_io.sequential", "sequential", {"op": "read", "depth": 1, "size": 1 << 20}, "cpu", 0.1, seed=1)
    job = msgspec.structs.replace(job, target=str(target))
    return execute(job, load_probe(job.module, job.probe), Serial(), target, phase)


REMAINS = r"cannot remove \S*/\.clustergauge-[0-9a-f]{16}: directory not empty"


def test_what_went_wrong_is_not_hidden_by_a_folder_that_cannot_be_removed(tmp_path, monkeypatch):
    outcome = _failing(tmp_path, monkeypatch, lambda path: flip(path, 12345), "measure")
    assert outcome.status == "wrong"
    assert re.fullmatch(rf"\S*/data-0 differs at byte 12345: expected .*; {REMAINS}", outcome.reason), outcome.reason


def test_a_folder_that_cannot_be_removed_after_a_good_case_is_an_error(tmp_path, monkeypatch):
    outcome = _failing(tmp_path, monkeypatch, lambda _: None, "measure")
    assert outcome.status == "error"
    assert re.fullmatch(f"StorageError: {REMAINS}", outcome.reason), outcome.reason


@pytest.mark.parametrize("skipped", [False, True])
def test_so_it_is_while_preparing_but_for_a_skip_which_says_that_nothing_is_wrong(tmp_path, monkeypatch, skipped):
    def fail(_ctx, file, *_, **__):
        (file.path.parent / "precious").write_text("x")
        raise Skip("too slow") if skipped else StorageError("cannot write x", OSError(5, "Input/output error"))

    monkeypatch.setattr(sequential, "lay_out", fail)
    outcome = _failing(tmp_path, monkeypatch, None, "never")
    assert outcome.status == "error"
    before = "" if skipped else "cannot write x: input/output error; "
    assert re.fullmatch(f"StorageError: {before}{REMAINS}", outcome.reason), outcome.reason


def test_the_next_run_sweeps_what_a_killed_one_left(tmp_path):
    dead(tmp_path)
    space = Workspace(tmp_path, 4096, spare=0)
    assert space.swept == [NAME]
    assert list(tmp_path.iterdir()) == [space.path]
    space.close()


def test_a_living_owner_keeps_its_folder(tmp_path):
    first = Workspace(tmp_path, 4096, spare=0)
    first.file(0).write_bytes(b"x")
    assert sweep(tmp_path) == []
    assert first.file(0).exists()
    first.close()


def test_an_owner_killed_between_two_steps_is_swept_too(tmp_path):
    (tmp_path / NAME).mkdir()  # no lock yet
    dead(tmp_path, ".clustergauge-" + "f" * 16, owner="")  # locked, not signed
    assert len(sweep(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_lock_is_ours_only_when_empty(tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "data-0").write_text("x")
    assert sweep(tmp_path) == []
    assert (tmp_path / NAME / "data-0").exists()


STRANGERS = (NAME + "0", NAME[:-1], NAME[:-1] + "G", NAME[:-1] + "٣", NAME + "\n", NAME[1:], "data-0", ".clustergauge-")


@pytest.mark.parametrize("name", STRANGERS)
def test_other_names_are_not_touched(tmp_path, name):
    folder = dead(tmp_path, name)
    assert sweep(tmp_path) == []
    assert (folder / "data-0").exists()


def test_a_file_of_our_name_is_not_touched(tmp_path):
    (tmp_path / NAME).write_text("x")
    assert sweep(tmp_path) == []
    assert (tmp_path / NAME).read_text() == "x"


def test_links_are_not_followed(tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()
    real = dead(elsewhere, "real")
    (target / NAME).symlink_to(real)  # the folder
    linked = dead(target, ".clustergauge-" + "a" * 16)  # a data file
    (linked / "data-1").symlink_to(real / "data-0")
    locked = dead(target, ".clustergauge-" + "b" * 16)  # the lock
    (locked / "lock").unlink()
    (locked / "lock").symlink_to(real / "lock")
    assert sweep(target) == [linked.name]
    assert sorted(p.name for p in real.iterdir()) == ["data-0", "lock"]
    assert (target / NAME).is_symlink()
    assert (locked / "data-0").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root")
def test_a_folder_of_another_user_is_not_touched(tmp_path):
    folder = dead(tmp_path)
    os.chown(folder, 65534, 65534)
    assert sweep(tmp_path) == []
    assert (folder / "data-0").exists()


def test_a_folder_of_another_host_is_left_for_a_day(tmp_path):
    folder = dead(tmp_path, owner="elsewhere 1\n")
    assert sweep(tmp_path) == []
    assert (folder / "data-0").exists()
    old = (folder / "lock").stat().st_mtime - FOREIGN_AGE_S - 60
    os.utime(folder / "lock", (old, old))
    assert sweep(tmp_path) == [NAME]


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "_try_lock", lambda _: None)
    dead(tmp_path)
    space = Workspace(tmp_path, 4096, spare=0)
    assert space.swept == []
    space.close()
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_a_folder_that_cannot_be_signed_is_taken_back(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=f"^cannot write to {tmp_path}: no space left on device$"):
        Workspace(tmp_path, 4096, spare=0)
    assert list(tmp_path.iterdir()) == []


def stat(free, total=100 * GIB, inodes=1000, inodes_free=1000):
    return SimpleNamespace(f_frsize=1, f_blocks=total, f_bavail=free, f_files=inodes, f_favail=inodes_free)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (stat(free=11 * GIB), None),
        (stat(free=11 * GIB - 1), "has 11 GiB free, the files need 1024 MiB and 10 GiB must stay free"),  # a tenth
        (stat(free=3 * GIB, total=4 * GIB), None),
        (stat(free=GIB + SPARE_BYTES - 1, total=4 * GIB), "has 3072 MiB free, .* and 2048 MiB must stay free"),  # 2 GiB
        (stat(free=50 * GIB, inodes_free=2), "has 2 inodes free, 3 are needed"),
        (stat(free=50 * GIB, inodes=0, inodes_free=0), None),  # btrfs: as many as you like
        (stat(free=0, total=0), "does not say how much is free"),
    ],
)
def test_space_is_asked_for_before_it_is_used(tmp_path, monkeypatch, said, reason):
    monkeypatch.setattr(os, "statvfs", lambda _: said)
    if reason is None:
        require_space(tmp_path, GIB, 1)
    else:
        with pytest.raises(Skip, match=reason):
            require_space(tmp_path, GIB, 1)


# -- other runs at work


def run_of(monkeypatch, name):
    """From now on this process is of another run."""
    monkeypatch.setenv("CLUSTERGAUGE_RUN", name)


def test_a_run_sees_others_at_work_and_not_itself(tmp_path, monkeypatch):
    run_of(monkeypatch, "one")
    (tmp_path / "precious").mkdir()
    first = Workspace(tmp_path, 4096, spare=0)
    assert at_work.others(tmp_path) == {}
    run_of(monkeypatch, "two")
    second = Workspace(tmp_path, 4096, spare=0)
    assert list(at_work.others(tmp_path).values()) == [os.geteuid()]
    first.close()
    assert at_work.others(tmp_path) == {}
    run_of(monkeypatch, "three")
    assert len(at_work.others(tmp_path)) == 1
    second.close()


def test_what_a_killed_run_left_is_nobody_at_work(tmp_path):
    dead(tmp_path)
    (tmp_path / (NAME[:-1] + "0")).mkdir()  # the mark of a node
    (tmp_path / (NAME[:-1] + "1")).symlink_to(tmp_path / NAME)
    dead(tmp_path, NAME[:-1] + "2", owner="")
    assert at_work.others(tmp_path) == {}


def test_a_folder_of_a_host_that_locks_do_not_reach_counts_while_it_is_fresh(tmp_path):
    folder = dead(tmp_path, owner="elsewhere 1\n")
    assert len(at_work.others(tmp_path)) == 1
    old = time.time() - at_work.FRESH_S - 60
    os.utime(folder, (old, old))
    assert at_work.others(tmp_path) == {}


@needs_root
def test_a_folder_of_another_user_counts_while_it_is_fresh():
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        target.chmod(0o755)
        seen = f"import os; from clustergauge.at_work import others; os.setuid(65534); print(others({folder!r}))"

        def look():
            done = subprocess.run([sys.executable, "-c", seen], cwd=ROOT, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        space = Workspace(target, 4096, spare=0)
        assert look() == str({space.path.name[: len(at_work.own())]: 0})
        old = time.time() - at_work.FRESH_S - 60
        os.utime(space.path, (old, old))
        assert look() == "{}"
        space.close()


NEEDS_FIO = pytest.mark.skipif(not fio.installed(), reason="fio is not installed")


@pytest.mark.parametrize("beside", [False, pytest.param(True, marks=NEEDS_FIO)])
def test_a_run_that_comes_and_goes_while_a_case_measures_is_recorded(tmp_path, monkeypatch, beside):
    """The other is there in the middle alone: gone before the case ends (and, ``beside``, only while a peer has its turns)."""
    now = [""]
    monkeypatch.setattr(workspace, "require_space", lambda *_, **__: None)
    monkeypatch.setattr(executing, "GLANCE_S", 0.0)
    monkeypatch.setattr(Turns, "__init__", functools.partialmethod(Turns.__init__, turn_s=0.01))
    monkeypatch.setattr(Turns.take, "__defaults__", (2,))
    meanwhile = "cross-check" if beside else "measure"
    monkeypatch.setattr(at_work, "others", lambda _: {"another": 7} if now[0] == meanwhile else {})
    params = {"op": "write", "depth": 1, "size": 1 << 20}
    job = Job("x", "storage_io.sequential", "sequential", params, "cpu", 0.1, seed=1, target=str(tmp_path), cross_check=beside)
    probe = load_probe(job.module, job.probe)
    outcome = execute(job, probe, Serial(), tmp_path, lambda phase: now.__setitem__(0, phase))
    assert outcome.status == "ok", outcome
    assert outcome.settings.get("other_runs") == "1 of user 7"


def test_a_record_says_which_runs_were_at_work_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_, **__: None)
    job = Job("x", "storage_io.flush", "flush", {"size": 16 << 20}, "cpu", budget_s=0.1, seed=1, target=str(tmp_path))

    def others():
        outcome = execute(job, load_probe(job.module, job.probe), Serial(), tmp_path, lambda _: None)
        assert outcome.status == "ok", outcome
        return outcome.settings.get("other_runs")

    assert others() is None
    with measuring(tmp_path, "storage_io.flush", "flush", size=16 << 20) as process:
        assert others() == f"1 of user {os.geteuid()}"
        end(process)
    assert others() is None
    record = made.record(settings={"other_runs": "1 of user 7"})
    (doubt,) = [d for d in warnings.doubts([record]) if d.name == "target in use"]
    assert doubt.detail == "other runs of ClusterGauge were at work in the target: 1 of user 7"
