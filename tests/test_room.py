"""Room in a target: a plan says of a case what the case itself would, and a target that fills meanwhile is no reason to skip."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import msgspec
import pytest

from clustergauge import plan as planning, ranges, targets
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import NoRoom, Probe, Room, Skip, Wrong
from clustergauge.world import Serial
from storage_io import checkpoint, fio, ranks, room, workspace
from tests import made
from tests.on_disk import ROOT, context, mounted, names, needs_root
from verbs.cases import probe_modules

MIB = 1 << 20
PROBES = planning.load_probes(probe_modules())
CASES = {
    "sequential": {"op": "write", "depth": 1, "size": 16 * MIB},
    "sequential_blocks": {"op": "read", "block": "4KiB", "depth": 1, "size": 16 * MIB},
    "random": {"op": "write", "block": "4KiB", "depth": 1, "size": 32 * MIB},
    "flush": {"size": 16 * MIB},
    "metadata": {"op": "stat", "layout": "many", "files": 1000},
    "small_files": {"op": "read", "depth": 1, "size": 128 << 10},
    "under_write": {"block": "4KiB", "depth": 1, "size": 512 * MIB},
    "checkpoint": {"model": "llama3-8b", "format": "raw", "op": "save", "ranks": "one", "size": 256 * MIB},
    "loader": {"layout": "files", "workers": 0, "compute": 0, "size": 256 * MIB},
    "parallel": {"layout": "n_to_n", "op": "read", "block": "1MiB", "depth": 1, "size": 16 * MIB},
}
SUITE = """
title = "room"
budget_s = 0.1
[[cases]]
probe = "sequential"
op = "read"
depth = 1
size = "4MiB"
[[cases]]
probe = "flush"
[[cases]]
probe = "metadata"
op = "stat"
layout = "one"
files = 1000
"""


# -- a plan knows what has no meaning, and what a case takes


@pytest.mark.parametrize("name", sorted(set(CASES) - {"metadata", "checkpoint"}))
def test_what_has_no_meaning_is_refused_beforehand_in_the_words_of_the_case(tmp_path, name):
    params = CASES[name] | {"size": 10_000}
    words = PROBES[name].needs_of(params).refused
    assert words.startswith("10000B ")
    with pytest.raises(Skip) as said:
        PROBES[name].function(context(tmp_path), **params)
    assert str(said.value) == words
    assert PROBES[name].needs_of(CASES[name]).refused == ""


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        (
            "sequential",
            {"depth": 17, "size": 16 * MIB},
            "17 blocks of 1MiB at a time are more than 16MiB; take a smaller --set depth=…",
        ),
        ("sequential", {"size": 4096}, "4KiB is less than a block of 1MiB; take a larger --set size=…"),
        (
            "sequential_blocks",
            {"block": "3MiB", "depth": 7},
            "7 blocks of 3MiB at a time are more than 16MiB; take a smaller --set depth=…",
        ),
        ("sequential_blocks", {"block": "3MiB", "depth": 6}, ""),
        ("parallel", {"depth": 17}, "17 blocks of 1MiB at a time are more than 16MiB; take a smaller --set depth=…"),
        (
            "under_write",
            {"block": "1MiB", "depth": 32, "size": 16 * MIB},
            "32 blocks of 1MiB at a time are more than 16MiB; take a smaller --set depth=…",
        ),
        (
            "object_store",
            {"op": "get", "concurrency": 32, "size": 64 * MIB},
            "32 parts of 8MiB at a time are more than 64MiB; take a smaller --set concurrency=…",
        ),
        (
            "object_store",
            {"op": "put", "concurrency": 64, "size": 8 * MIB},
            "64 objects of 8MiB are more than 64MiB; take a smaller --set size=…",
        ),
        ("small_files", {"depth": 32, "size": 4 * MIB}, "32 files of 4MiB are more than 64MiB; take a smaller --set size=…"),
    ],
)
def test_fewer_in_flight_than_the_case_says_is_known_beforehand(name, params, words):
    assert PROBES[name].needs_of(CASES.get(name, {}) | params).refused == words


@pytest.mark.parametrize("path", sorted((ROOT / "suites").glob("*.toml")), ids=lambda path: path.stem)
def test_no_case_of_a_suite_is_without_a_meaning(path):
    for selection in planning.load_suite(path).cases:
        probe = PROBES[selection.probe]
        for case in probe.cases(**ranges.values(probe, selection.axes, path.name)):
            assert probe.needs_of(case.params).refused == "", case.id


def of_folders(probe: Probe) -> bool:
    needs = probe.needs_of(next(probe.cases()).params)
    return needs.target and not needs.objects


def test_every_storage_probe_says_what_it_takes():
    assert {name for name, probe in PROBES.items() if of_folders(probe)} == set(CASES)
    for name in CASES:
        for case in PROBES[name].cases():
            took = PROBES[name].needs_of(case.params).room
            assert took.files > 0, case.id
            assert took.bytes > 0, case.id


@pytest.mark.parametrize("peer", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_case_asks_for(tmp_path, monkeypatch, name, peer):
    asked = []

    def refuse(_target, need, files, _spare=None):
        asked.append((need, files))
        raise NoRoom("full")

    monkeypatch.setattr(workspace, "require_space", refuse)
    monkeypatch.setattr(checkpoint, "require_space", refuse)
    with pytest.raises(NoRoom, match="full"):
        PROBES[name].function(replace(context(tmp_path), cross_check=peer), **CASES[name])
    assert asked[-1] == PROBES[name].needs_of(CASES[name]).room.of(peer=peer)
    assert names(tmp_path) == []


def test_ranks_take_theirs_each_and_a_peer_a_file_more():
    assert Room(10, 2, beside=5).of() == (10, 2)
    assert Room(10, 2, beside=5).of(3, peer=True) == (45, 9)
    assert Room(10, 2).of(3, peer=True) == (30, 6)
    assert fio.room(10, writes=False).of(peer=True) == (10, 1)


# -- foreseen and promised


def planned(target, name="flush", **more):
    record = made.record(name, **CASES[name])
    return made.planned(record, module=PROBES[name].module, target=str(target), **more)


def free(monkeypatch, size):
    total = 100 << 30
    found = os.statvfs_result((1, 1, total, size, size, 1000, 1000, 1000, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)


def test_what_the_case_would_say_is_said_beforehand(tmp_path, monkeypatch):
    plan = [planned(tmp_path), planned(tmp_path, "under_write")]
    free(monkeypatch, (10 << 30) + 100 * MIB)  # a tenth, and what flush takes
    assert room.foreseen(plan, PROBES)[0] == plan[0]
    with pytest.raises(NoRoom) as said:
        PROBES["under_write"].function(context(tmp_path), **CASES["under_write"])
    assert room.foreseen(plan, PROBES)[1].skip == str(said.value)
    assert [p.room for p in room.promised(plan, PROBES)] == [True, False]
    assert [p.skip for p in room.promised(plan, PROBES)] == ["", ""]


def test_a_folder_that_is_yet_to_be_made_is_asked_of_the_one_that_it_will_be_in(tmp_path, monkeypatch):
    asked = []
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: (asked.append(path), real(path))[1])
    target = tmp_path / "not/yet"
    (found,) = room.foreseen([planned(target)], PROBES)
    assert asked == [tmp_path]
    assert not found.skip or found.skip.startswith(f"{target} has ")
    assert names(tmp_path) == []


@needs_root
def test_what_cannot_be_written_to_is_foreseen(tmp_path):
    (tmp_path / "real").mkdir()
    with mounted(tmp_path / "ro", "--bind", "-o", "ro", str(tmp_path / "real")) as target:
        for folder in (target, target / "results"):
            (found,) = room.foreseen([planned(folder)], PROBES)
            assert found.skip == f"cannot write to {folder}: read-only file system"
        with pytest.raises(OSError, match=f"^cannot write to {target}: read-only file system$"):
            PROBES["flush"].function(context(target), **CASES["flush"])


def test_what_cannot_be_known_is_left_as_it_is(tmp_path, monkeypatch):
    free(monkeypatch, 0)
    odd = [
        planned("s3://bucket/x"),
        planned(""),
        planned(tmp_path, skip="no GPU"),
        planned(tmp_path, params={"size": "much"}),
        planned(tmp_path, params={"other": 1}),
        msgspec.structs.replace(planned(tmp_path), probe="nobody's"),
    ]
    assert room.foreseen(odd, PROBES) == odd
    assert room.promised(odd, PROBES) == odd

    def hang(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", hang)
    assert room.foreseen([planned(tmp_path)], PROBES) == [planned(tmp_path)]


@pytest.mark.parametrize("params", [{}, {"target": "/x"}])
def test_a_case_of_several_targets_is_known_by_its_own_parameters(tmp_path, monkeypatch, params):
    free(monkeypatch, 0)
    (found,) = room.foreseen([planned(tmp_path, params=CASES["flush"] | params)], PROBES)
    assert found.skip.startswith(f"{tmp_path} has 0 MiB free, the files need 16 MiB and ")
    assert targets.own_params(found.params) == CASES["flush"]


# -- a promise that is broken


def outcome(tmp_path, promise):
    job = Job("x", "storage_io.flush", "flush", CASES["flush"], "cpu", 0.1, seed=1, target=str(tmp_path), room=promise)
    return execute(job, PROBES["flush"], Serial(), tmp_path, lambda _: None)


def test_a_target_that_has_filled_since_the_run_began_is_an_error(tmp_path, monkeypatch):
    free(monkeypatch, MIB)
    words = f"{tmp_path} has 1 MiB free, the files need 16 MiB and 10 GiB must stay free"
    found = outcome(tmp_path, promise=False)
    assert (found.status, found.reason) == ("skipped", words)
    found = outcome(tmp_path, promise=True)
    assert (found.status, found.reason) == ("error", f"TargetFilled: {words}; there was room when the run began")
    assert names(tmp_path) == []


class Second:
    """The world of the second of two ranks: what rank 0 decided comes to it."""

    rank = 1

    def gather(self, _value):
        return None

    def from_root(self, _value):
        return self.said


@pytest.mark.parametrize(("kind", "raised"), [("no room", NoRoom), ("skip", Skip), ("wrong", Wrong), ("error", OSError)])
def test_ranks_hear_why_one_of_them_gives_up(kind, raised):
    world = Second()
    world.said = [kind, 0, "full"]
    with pytest.raises(raised, match="full") as told:
        ranks.together(world, lambda: None)
    assert type(told.value) is raised or kind == "error"
    assert told.value.rank == 0
    assert ranks._kind(raised("full")) == kind


# -- all of it


def suite(tmp_path, *words):
    (tmp_path / "s.toml").write_text(SUITE)
    command = [sys.executable, str(ROOT / "run_suite.py"), *words, "--suite", str(tmp_path / "s.toml")]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)


@needs_root
def test_a_full_target_is_listed_as_it_is_run(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64m", "none") as target:
        where = ("--target", str(target), "--format", "json")
        listed = json.loads(suite(tmp_path, "list", *where).stdout)
        assert json.loads(suite(tmp_path, "run", "--dry-run", *where).stdout) == listed
        assert [p["skip"].partition(",")[0] for p in listed] == [f"{target} has 64 MiB free"] * 3
        document = json.loads(suite(tmp_path, "run", *where).stdout)
        assert {r["case"]: r["reason"] for r in document["records"]} == {p["case"]: p["skip"] for p in listed}
        assert names(target) == []
        assert "nothing would run · 3 would be skipped" in suite(tmp_path, "list", "--target", str(target)).stdout


@contextlib.contextmanager
def eaten(target):
    """All that is free goes to another file once a case has its own."""
    over = threading.Event()

    def eat():
        while not any(path.stat().st_size for path in target.glob(".clustergauge-*/data-0")):  # once it is allocated
            if over.wait(0.01):
                return
        with (target / "hog").open("wb") as hog:
            size, step = 0, 1 << 30
            while step >= MIB:
                try:
                    os.posix_fallocate(hog.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2

    thread = threading.Thread(target=eat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@needs_root
def test_a_target_that_fills_while_the_run_goes_does_not_pass(tmp_path):
    """The case at work has its space and ends well; the others had been promised theirs."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 << 30)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as target:
        with eaten(target):
            done = suite(tmp_path, "run", "--target", str(target), "-o", str(tmp_path / "results"))
        assert (target / "hog").stat().st_size > 1 << 30
        (line,) = [line for line in done.stdout.splitlines() if "ok (no criterion)" in line]
        assert line.startswith("1 ok (no criterion) · 2 error · "), done.stdout
        assert "TargetFilled" in done.stdout
        assert done.returncode == 3, done.stderr
        assert [name for name in names(target) if name.startswith(".")] == []
