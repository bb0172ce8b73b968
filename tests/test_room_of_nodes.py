"""Room in the targets of nodes: each says what is free in its own, and a plan names those that would refuse a case."""

from __future__ import annotations

import errno
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from clustergauge import free, messages as m, preflight
from clustergauge.free import MOST, Free
from reports import listing
from storage_io import room
from tests import made, nodes
from tests.on_disk import ROOT, mounted, needs_root
from tests.test_room import CASES, MIB, PROBES

GIB = 1 << 30
PLENTY = Free(100 * GIB, 50 * GIB, 1000, 1000)
FULL = Free(100 * GIB, 64 * MIB, 1000, 1000)
WHY = "/x has 64 MiB free, the files need 16 MiB and 10 GiB must stay free"


# -- what a node says


def test_a_node_says_what_its_file_system_does(tmp_path):
    found, stat = preflight.free_in([str(tmp_path)])[str(tmp_path)], os.statvfs(tmp_path)
    assert (found.size, found.files) == (stat.f_blocks * stat.f_frsize, stat.f_files)
    assert 0 < found.free < found.size
    assert found.refused == 0


@needs_root
def test_a_node_says_why_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    names = [str(tmp_path / name) for name in ("none", "file", "file/below", "ro")]
    with mounted(tmp_path / "ro", "--bind", "-o", "ro", str(tmp_path / "real")):
        found = preflight.free_in(names)
    why = [errno.ENOENT, errno.ENOTDIR, errno.ENOTDIR, errno.EROFS]
    assert found == {name: Free(refused=number) for name, number in zip(names, why, strict=True)}


def test_of_a_target_that_does_not_answer_nothing_is_said(monkeypatch):
    over = threading.Event()

    def ask(path):
        if path.name == "broken":
            raise OSError(errno.EIO, "Input/output error")
        if path.name == "hangs":
            over.wait()
        return PLENTY

    monkeypatch.setattr(preflight, "_free", ask)
    monkeypatch.setattr(preflight, "within", functools.partial(preflight.within, seconds=0.2))
    try:
        assert preflight.free_in(["/hangs", "/there", "/broken"]) == {"/there": PLENTY}
    finally:
        over.set()


def test_a_store_without_an_end_is_as_large_as_can_be_said(monkeypatch):
    endless = SimpleNamespace(f_frsize=4096, f_blocks=2**64 - 1, f_bavail=2**64 - 1, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: endless)
    found = free.measured(Path("/x"))
    assert found == Free(MOST, MOST)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Free) == found


@pytest.mark.parametrize(
    "said",
    [{"size": -1}, {"free": MOST + 1}, {"free": 2**70}, {"files": 1.5}, {"size": "much"}, {"refused": 5000}, {"more": 1}],
)
def test_what_cannot_be_is_not_heard(said):
    hello = msgspec.to_builtins(m.AgentHello("na", 7, "c", made.machine(), "na", "/s", "::1", "", {"/x": PLENTY}))
    assert msgspec.convert(hello, m.AgentHello).free == {"/x": PLENTY}
    hello["free"]["/x"] |= said
    with pytest.raises(msgspec.ValidationError, match=r"\$\.free"):
        msgspec.json.decode(json.dumps(hello), type=m.AgentHello)


# -- what a plan makes of it


def planned(where, name="flush", **more):
    return made.planned(made.record(name, **CASES[name]), module=PROBES[name].module, target="/x", hosts=where, **more)


def test_those_that_would_refuse_a_case_are_named_and_the_others_keep_it():
    case = planned("n[1-5]", in_turn="n1")
    said = {"n1": {"/x": PLENTY}, "n2": {"/x": FULL}, "n3": {"/y": FULL}, "n4": {"/x": FULL}}  # n5 never came
    found = room.foreseen([case], PROBES, said)
    assert [(p.hosts, p.skip, p.in_turn) for p in found] == [
        ("n1", "", "n1"),
        ("n[2,4]", f"n[2,4]: {WHY}", ""),
        ("n[3,5]", "", "n1"),
    ]
    assert [msgspec.structs.replace(p, hosts=case.hosts, skip="", in_turn="n1") for p in found] == [case] * 3
    shown = " ".join(listing.page_of(found, 120).text().split())
    assert f"n[2,4]: {WHY}" in shown
    assert "1 would be skipped" in shown
    kept = room.promised([case], PROBES, said)
    assert [(p.hosts, p.room, p.skip) for p in kept] == [("n1", True, ""), ("n[2-5]", False, "")]


def test_each_kind_of_refusal_is_told():
    said = {
        "a": {"/x": Free(refused=errno.EROFS)},
        "b": {"/x": Free(100 * GIB, 50 * GIB, 1000, 2)},
        "c": {"/x": Free()},
        "d": {"/x": Free(refused=errno.ENOENT)},
    }
    assert [p.skip for p in room.foreseen([planned("a,b,c,d")], PROBES, said)] == [
        "a: cannot write to /x: read-only file system",
        "b: /x has 2 inodes free, 3 are needed",
        "c: the file system of /x does not say how much is free",
        "d: cannot write to /x: no such file or directory",
    ]


def test_where_all_say_the_same_or_nothing_a_case_stays_whole():
    for case in (planned("n[1-3]"), planned("n[1-3]", skip="left to n1"), planned("n[1-3]", in_turn="n1")):
        for said in ({}, {name: {"/x": PLENTY} for name in ("n1", "n2", "n3")}):
            assert room.foreseen([case], PROBES, said) == [case]
            (kept,) = room.promised([case], PROBES, said)
            assert kept == msgspec.structs.replace(case, room=bool(said) and not case.skip)


def test_what_spans_nodes_is_refused_by_what_one_says_of_the_target_that_they_share():
    case = planned("n[1-3]", "parallel", nodes=3, ranks=6, device="cpu:nodes")
    need = PROBES["parallel"].needs_of(CASES["parallel"]).room.of(6)[0]
    said = {"n2": {"/x": FULL}, "n3": {"/x": FULL}}
    (found,) = room.foreseen([case], PROBES, said)
    assert (found.hosts, found.nodes) == ("n[1-3]", 3)
    assert found.skip == f"n[1-3]: /x has 64 MiB free, the files need {need >> 20} MiB and 10 GiB must stay free"
    (kept,) = room.promised([case], PROBES, {"n3": {"/x": PLENTY}})
    assert kept.room is True
    assert room.foreseen([case], PROBES, {}) == [case]


# -- all of it

SUITE = """
title = "room"
budget_s = 0.1
[[cases]]
probe = "flush"
"""


@needs_root
@pytest.mark.slow
def test_a_plan_over_nodes_says_which_has_no_room(tmp_path):
    """Each has a file system of its own at the target; that of the second is small."""
    target = tmp_path / "target"
    target.mkdir()
    remote = nodes.own_disks(tmp_path, target, '$([ "$2" = nb ] && echo 64m || echo 16g)')
    (tmp_path / "s.toml").write_text(SUITE)
    where = ["--hosts", "na,nb", "--remote", remote, "--address", nodes.HERE, "--target", str(target)]

    def document(*words):
        command = [sys.executable, str(ROOT / "run_suite.py"), *words, "--suite", str(tmp_path / "s.toml"), *where]
        return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100).stdout)

    listed = document("list", "--format", "json")
    assert {p["hosts"]: p["skip"].partition(",")[0] for p in listed} == {"na": "", "nb": f"nb: {target} has 64 MiB free"}
    ran = document("run", "--format", "json", "-o", str(tmp_path / "results"))
    assert {p["hosts"]: (p["skip"], p["room"]) for p in ran["run"]["planned"]} == {"na": ("", True), "nb": ("", False)}
    host = {machine["machine_id"]: machine["node"] for machine in ran["machines"]}
    said = {host[r["machine_id"]]: r["reason"] for r in ran["records"]}
    assert said == {p["hosts"]: p["skip"].removeprefix("nb: ") for p in listed}
