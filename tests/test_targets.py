"""Targets of storage cases: what is refused in words, what several make of a plan, and how a report names them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import targets
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from clustergauge.model import Workload
from clustergauge.plan import Wish, load_suite, plan
from clustergauge.probe import Case, Needs, probe
from reports import storage, terminal
from reports.layout import parts_of, short_names
from tests import made
from tests.on_disk import mounted, names, needs_root

ROOT = Path(__file__).resolve().parents[1]
SUITE = 'title = "t"\nbudget_s = 0.05\n[[cases]]\nprobe = "metadata"\nop = "stat"\nlayout = "one"\nfiles = 1000\n'
CASE = "metadata/op=stat/layout=one/files=1000"


# -- refused in words


def refused(*given, local=True):
    with pytest.raises(UsageError) as caught:
        targets.parse(given, local)
    return str(caught.value)


def test_targets_are_absolute_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    assert targets.parse(["b/", str(tmp_path / "a")]) == (str(tmp_path / "b"), str(tmp_path / "a"))
    assert targets.parse([]) == ()


def test_a_folder_goes_by_one_name_however_it_is_spelled(tmp_path, monkeypatch):
    """A link keeps its name, but before a ``..`` it is followed, as the kernel does."""
    (tmp_path / "b").mkdir()
    (tmp_path / "elsewhere/a").mkdir(parents=True)
    (tmp_path / "a").symlink_to("elsewhere/a")
    monkeypatch.chdir(tmp_path / "b")
    for spelled in (f"{tmp_path}/b/", f"{tmp_path}//b/.", f"{tmp_path}/b/../b", ".", "../b", "../a/../../b"):
        assert targets.parse([spelled]) == (f"{tmp_path}/b",)
    assert targets.parse(["../a"]) == (f"{tmp_path}/a",)
    assert targets.parse(["../a/.."]) == (f"{tmp_path}/elsewhere",)
    assert targets.real(tmp_path / "a") == f"{tmp_path}/elsewhere/a"
    assert targets.real(tmp_path / "b") == ""


def test_the_same_folder_twice_is_refused_under_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (f"{tmp_path}/", f"{tmp_path}/link", f"{tmp_path}/../{tmp_path.name}"):
        assert refused(str(tmp_path), other) == f"--target {other}: the same folder as {tmp_path}"


def test_what_is_no_folder_to_write_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(f"{tmp_path}/none") == f"--target {tmp_path}/none: no such folder"
    assert refused(f"{tmp_path}/file") == f"--target {tmp_path}/file: not a folder"
    assert refused(f"{tmp_path}/file/x") == f"--target {tmp_path}/file/x: not a directory"
    assert refused(f"{tmp_path}/loop") == f"--target {tmp_path}/loop: too many levels of symbolic links"
    assert refused("") == "--target: an empty name"
    assert refused("a\nb") == "--target 'a\\nb': its name cannot be printed, and it stands in ids of cases"
    assert refused("a\udc80") == "--target 'a\\udc80': its name cannot be printed, and it stands in ids of cases"


@needs_root
def test_what_may_not_be_written_to_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    with mounted(tmp_path / "ro", "--bind", "-o", "ro", str(tmp_path / "real")) as target:
        assert refused(str(target)) == f"--target {target}: its file system is read-only"
    (tmp_path / "real").chmod(0o755)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        said = refused(str(tmp_path / "real"))
    finally:
        os.seteuid(0)
    assert said.startswith(f"--target {tmp_path}/real: ")
    assert said.endswith((": not writable", ": permission denied"))  # of itself, or of a folder on the way


def test_object_stores_are_not_taken_for_folders():
    assert targets.parse(["s3://bucket/x/", "/"]) == ("s3://bucket/x", "/")
    assert targets.fitting(("s3://bucket/x", "/"), objects=True) == ("s3://bucket/x",)
    assert targets.fitting(("s3://bucket/x", "/"), objects=False) == ("/",)
    assert refused("s3://bucket/x", "s3://bucket/x/") == "--target s3://bucket/x: the same store as s3://bucket/x"
    assert "only s3://bucket/prefix is known" in refused("gs://bucket", local=False)


def test_targets_of_other_nodes_need_not_be_here_but_differ():
    assert targets.parse(["/no/such", "/nor/this"], local=False) == ("/no/such", "/nor/this")
    assert refused("/no/such", "/no/such/", local=False) == "--target /no/such/: the same folder as /no/such"
    words = "--target /a/../b: name it without '..', which may lead elsewhere on each node"
    assert refused("/a/../b", local=False) == words


@given(st.text())
def test_any_text_is_a_path_or_refused_in_one_line(text):
    said = ""
    try:
        (found,) = targets.parse([text], local=False)
    except UsageError as error:
        found, said = "/", str(error)
    assert found.startswith("/")
    assert "\n" not in said


# -- the plan

PROBES = {
    "disk": probe("disk", needs=Needs(target=True), op=("read", "write"), size=(1024, 2048))(lambda ctx, **_: None),
    "plain": probe("plain")(lambda ctx: None),
}
TABLES = '[[cases]]\nprobe = "plain"\n[[cases]]\nprobe = "disk"\nop = "read"\nsize = ["1KiB", "2KiB"]\n'


def planned(tmp_path, *paths, tables=TABLES, **wish):
    file = tmp_path / "s.toml"
    file.write_text('title = "t"\n' + tables)
    return plan(load_suite(file), PROBES, made.machine(), Wish(targets=paths, **wish))


def test_one_target_leaves_ids_as_they_were(tmp_path):
    found = planned(tmp_path, "/scratch")
    assert [(p.case, p.target) for p in found] == [
        ("plain", ""), ("disk/op=read/size=1KiB", "/scratch"), ("disk/op=read/size=2KiB", "/scratch"),
    ]  # fmt: skip


def test_of_several_each_has_every_storage_case(tmp_path):
    found = planned(tmp_path, "/scratch", "/data", launches=2)
    alone = [p for p in found if p.launch == 0]
    assert [(p.case, p.target) for p in alone] == [
        ("plain", ""),
        *((f"disk/op=read/size={size}/target={t}", t) for size in ("1KiB", "2KiB") for t in ("/scratch", "/data")),
    ]
    assert len(found) == 2 * len(alone)
    for p in found:
        assert Case(p.probe, p.module, p.params).id == p.case
    assert targets.own_params(alone[1].params) == {"op": "read", "size": 1024}


def test_globs_choose_a_target_and_first_of_is_of_each(tmp_path):
    assert [p.target for p in planned(tmp_path, "/scratch", "/data", globs=["*target=/data"])] == ["/data", "/data"]
    first = TABLES + 'first_of = "size"\n'
    found = planned(tmp_path, "/scratch", "/data", tables=first)
    assert [p.case for p in found if p.target] == [f"disk/op=read/size=1KiB/target={t}" for t in ("/scratch", "/data")]


def test_without_a_target_a_storage_case_is_skipped(tmp_path):
    assert {p.skip for p in planned(tmp_path) if p.probe == "disk"} == {"no target folder"}


def test_no_probe_may_have_an_axis_of_that_name():
    with pytest.raises(ValueError, match="'target' is no axis of a probe"):
        probe("x", target=("a",))


# -- what is shown


def test_names_keep_the_slashes_of_a_target():
    params = {"op": "read", "size": 1 << 20, "target": "/mnt/big disk"}
    case = Case("disk", "", params).id
    assert parts_of(case, params) == ("disk", "read", "1MiB", "/mnt/big disk")
    assert short_names({case: params}) == {case: "disk/read/1MiB /mnt/big disk"}


def on(target, host="m1", **settings):
    work = Workload(bytes_read=1 << 20, bound="storage")
    return made.record("disk", op="read", target=target, work=work, machine_id=host, settings={"fs_type": "xfs", **settings})


def shown(records, **machines):
    plans = {r.case: made.planned(r, target=r.params["target"]) for r in records}
    machines = machines or {"m1": made.machine()}
    return LoadedRun(made.run(records, planned=list(plans.values())), machines, records, Path("x"), [])


def test_each_target_is_a_line_with_what_it_lies_on():
    model = {"fs_source": "/dev/nvme0n1", "device_model": "Fast 9\x1b", "fs_options": "rw,noatime"}
    run = shown([on("/scratch", free_bytes=3 << 29, **model), on("/ram", fs_source="none")])
    said = ["/scratch: xfs on /dev/nvme0n1 (Fast 9�), 1.5 GiB free, rw,noatime", "/ram: xfs"]
    assert list(storage.lines(run)) == said
    text = terminal.page_of(run, [], 120).text()
    assert all(f"target {line}\n" in text for line in said)
    assert "disk/read /scratch " in text


def test_a_target_that_is_another_device_on_each_host_has_a_line_for_each():
    records = [on("/scratch", "a", fs_source="/dev/a"), on("/scratch", "b", fs_source="/dev/b")]
    machines = {m: made.machine(machine_id=m, host=f"host-{m}") for m in "ab"}
    assert list(storage.lines(shown(records, **machines))) == [
        "/scratch: xfs on /dev/a, on host-a", "/scratch: xfs on /dev/b, on host-b",
    ]  # fmt: skip


def test_where_a_link_leads_is_said():
    assert list(storage.lines(shown([on("/scratch", folder="/mnt/nvme0")]))) == ["/scratch (/mnt/nvme0): xfs"]
    many = [on("/scratch", f"m{n}", folder=f"/mnt/{n}") for n in range(4)]
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"host-{n}") for n in range(4)}
    assert list(storage.lines(shown(many, **machines))) == ["/scratch (4 folders): xfs"]


def test_a_long_folder_behind_a_link_leaves_room_for_what_it_is():
    """On a narrow screen; a page has the whole."""
    folder, target = "/mnt/" + "very-long-name/" * 20 + "end", "/home/" + "somebody/" * 20 + "scratch"
    run = shown([on(target, folder=folder, fs_source="/dev/nvme0n1", free_bytes=3 << 29, fs_options="rw,noatime")])
    (whole,) = storage.lines(run)
    assert whole == f"{target} ({folder}): xfs on /dev/nvme0n1, 1.5 GiB free, rw,noatime"
    text = " ".join(terminal.page_of(run, [], 80).text().split())
    assert "xfs on /dev/nvme0n1, 1.5 GiB free, rw,noatime" in text
    assert "target /home/somebody/" in text
    assert "(/mnt/very-long-name/" in text
    assert "ame/end): xfs" in text
    several = [on("/scratch", f"m{n}", folder=f"/mnt/{n}{'x' * 99}") for n in range(3)]
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"host-{n}") for n in range(3)}
    assert "x): xfs" in " ".join(terminal.page_of(shown(several, **machines), [], 80).text().split())


def test_a_target_that_no_case_reached_is_not_left_out():
    record = msgspec.structs.replace(on("/gone"), settings={}, status="error", reason="x", measurement=None)
    assert list(storage.lines(shown([record]))) == ["/gone: nothing is known of it, for no case came to a number there"]


# -- all of it


def suite(*words, cwd):
    command = [sys.executable, str(ROOT / "run_suite.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_two_targets_are_measured_reported_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # a long path is cut where lines are short
    (tmp_path / "s.toml").write_text(SUITE)
    for name in ("real", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a").symlink_to("real")
    a, b = (str(tmp_path / name) for name in "ab")
    done = suite("run", "--suite", "s.toml", "--target", "./a/", "--target", "a/../b", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [r["case"] for r in document["records"]] == [f"{CASE}/target={t}" for t in (a, b)]
    assert [p["target"] for p in document["run"]["planned"]] == [a, b]
    for record in document["records"]:
        assert record["settings"]["fs_type"]
        assert record["settings"]["free_bytes"] > 0
    found = {f["name"]: f["detail"] for f in document["machines"][0]["findings"]}
    assert found["target"].startswith(a)
    assert [r["settings"].get("folder") for r in document["records"]] == [str(tmp_path / "real"), None]
    assert found["target_2"].startswith(b)
    assert names(tmp_path / "a") == names(tmp_path / "b") == []
    done = suite("run", "--resume", "latest", "--target", "a", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"run_suite.py: that run wrote to {b!r}: say --target again, if you mean it\n")
    done = suite("run", "--resume", "latest", "--target", "a", "--target", "b", "--target", ".", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"run_suite.py: --target {tmp_path}: that run did not write to it\n")
    done = suite("run", "--resume", "latest", "--target", "b", "--target", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"target{a}({tmp_path}/real):" in "".join(done.stdout.split()), done.stdout
    assert f"target{b}:" in "".join(done.stdout.split())
