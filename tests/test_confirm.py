"""Suspects of a fleet measured again: real agents under names of their own, with a host that stays slow and one that does not."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clustergauge import blame, code, confirm, judgement, reduce
from clustergauge.confirm import Suspect
from clustergauge.store import RunFolder
from reports import fleet as page
from reports.again import confirming
from tests import made, nodes, run_folders
from tests.test_blame import judge, node
from tests.test_verdicts import loaded

SUITE = """
title = "lame"
budget_s = 1.0
timeout_s = 30
[[cases]]
probe = "lame"
"""
HOSTS = "n1,n2,n3,n4,n5-slow,n6-once,n7-gone"


def suite(tmp_path: Path, *words: str, **more) -> subprocess.CompletedProcess[str]:
    (tmp_path / "target").mkdir(exist_ok=True)
    (tmp_path / "lame.toml").write_text(SUITE)
    place = [
        "--remote",
        nodes.REMOTE,
        "--address",
        nodes.HERE,
        "--target",
        str(tmp_path / "target"),
        "--probes",
        "tests.faults.lame",
    ]
    command = [sys.executable, str(code.ROOT / "run_suite.py"), *words, *place, "-o", str(tmp_path / "r")]
    return subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=100, check=False, **more)


@pytest.mark.slow
def test_the_slow_host_is_confirmed_the_other_cleared_and_what_cannot_be_measured_stays_suspect(tmp_path):
    done = suite(tmp_path, "run", "--suite", str(tmp_path / "lame.toml"), "--hosts", HOSTS)
    assert done.returncode == 4, done.stderr  # two are suspect: no success until it is known
    (first,) = (tmp_path / "r").iterdir()
    before = first.joinpath("records.jsonl").read_bytes()
    checked = judgement.verify(first, first.parent)
    assert checked.code == 0, checked.said
    assert "n5-slow\n" in (first / "suspect.txt").read_text().replace(",", "\n")
    done = suite(tmp_path, "fleet", str(first), "--confirm")
    assert done.returncode == 2
    assert f"that run used --hosts {HOSTS!r}, not ''" in done.stderr.replace("n[1-4]", "n1,n2,n3,n4")
    done = suite(tmp_path, "fleet", str(first), "--confirm", "--hosts", HOSTS)
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stdout.split())
    assert "confirmed: n5-slow: slow at " in said
    assert "cleared: n6-once: slow at " in said
    assert "could not be measured: n7-gone: slow at " in said
    (second,) = [path for path in (tmp_path / "r").iterdir() if path != first]
    records = [json.loads(line) for line in (second / "records.jsonl").read_text().splitlines()]
    asked = {(r["placement"][0]["host"] if r["placement"] else "", r["case"]) for r in records if r["status"] == "ok"}
    assert {host for host, case in asked if case == "lame/number=1"} >= {"n5-slow", "n6-once"}
    assert len({r["machine_id"] for r in records}) < 7  # nobody else was asked
    assert all(r["confirms"] for r in records if r["status"] == "ok")
    assert first.joinpath("records.jsonl").read_bytes() == before
    again = suite(tmp_path, "fleet", str(tmp_path / "r"), "--format", "json")
    states = {n["host"]: n["state"] for n in json.loads(again.stdout)["nodes"]}
    assert (states["n5-slow"], states["n6-once"], states["n7-gone"]) == ("bad", "good", "suspect"), again.stdout


# -- nothing is started below


def a_fleet(*others):
    runs = [node(n, 1.2 if n == 5 else 1.0) for n in range(10)]
    part = reduce.joined([reduce.part_of(run) for run in (*runs, *others)])
    return runs, part, blame.judge(part)


def fresh(time: float, count: int = 2):
    run = node(5)
    records = [made.record(samples=[time] * 20, launch=n, confirms=True, machine_id="m05") for n in range(count)]
    return loaded(records, run.machines["m05"], run_id="again")


@pytest.mark.parametrize(
    ("time", "count", "word", "state"),
    [(1.2, 2, "confirmed", "bad"), (1.0, 2, "cleared", "good"), (1.2, 1, "could not be measured", "suspect")],
)
def test_a_run_of_fresh_launches_alone_goes_to_what_it_confirms(time, count, word, state):
    _, _, found = a_fleet()
    (suspect,) = confirm.suspects(found)
    again = fresh(time, count)
    _, part, after = a_fleet(again)
    (outcome,) = confirm.outcomes([suspect], part, after, [again])
    assert outcome.word == word
    assert {n.host: n.state for n in after.nodes}["node-05"] == state
    assert len(after.nodes) == 10
    assert word in page.page_of(after, 100, [outcome]).text()


def test_the_order_of_the_runs_does_not_matter():
    runs, _, _ = a_fleet()
    parts = [reduce.part_of(run) for run in (fresh(1.2), *runs)]
    nested = reduce.joined([reduce.joined(parts[:3]), reduce.joined(parts[3:])])
    assert [n.host for n in blame.judge(nested).of("bad")] == ["node-05"]
    assert nested.folders == reduce.joined(parts).folders


def test_what_broke_meanwhile_says_so_and_is_bad():
    broken = loaded([made.failed("error", "died", confirms=True, machine_id="m05")], node(5).machines["m05"], run_id="again")
    (suspect,) = confirm.suspects(a_fleet()[2])
    _, part, after = a_fleet(broken)
    (outcome,) = confirm.outcomes([suspect], part, after, [broken])
    assert (outcome.word, outcome.why) == ("could not be measured", "error: died")
    assert blame.exit_code(after) == 3


def test_a_host_that_cannot_be_had_is_told_why():
    (suspect,) = confirm.suspects(a_fleet()[2])
    silent = loaded([], node(5).machines["m05"], run_id="again")
    silent = type(silent)(msgspec.structs.replace(silent.run, left_out={"node-05": "no route"}), {}, [], silent.path, [])
    _, part, after = a_fleet(silent)
    (outcome,) = confirm.outcomes([suspect], part, after, [silent])
    assert (outcome.word, outcome.why) == ("could not be measured", "no route")


def test_only_the_suspect_cases_are_planned_on_their_hosts_as_they_were():
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"h{n}", node=f"n{n}") for n in range(3)}
    records = [made.record(shape=shape, device=f"cuda:{d}") for shape in "12" for d in (0, 1)]
    plans = [made.planned(r, hosts="n[0-2]", env={"A": "b"}, target="/x", budget_s=7.0) for r in records]
    run = loaded(records)
    run = type(run)(msgspec.structs.replace(run.run, planned=plans), machines, records, run.path, [])
    asked = [
        Suspect("m1", "h1", "matmul/shape=1", "cuda:1", 0.9, "slow"),
        Suspect("m2", "h2", "matmul/shape=1", "cuda:1", 0.9, "slow"),
        Suspect("m2", "h2", "matmul/shape=2", "", 0.9, "intermittent"),
    ]
    found = confirm.planned(run, asked)
    assert [(p.case, p.device, p.hosts, p.launch, p.confirms) for p in found] == [
        (f"matmul/shape={shape}", device, on, launch, True)
        for shape, device, on in (("1", "cuda:1", "n[1-2]"), ("2", "cuda:0", "n2"), ("2", "cuda:1", "n2"))
        for launch in (0, 1)
    ]
    assert {(p.env["A"], p.target, p.budget_s) for p in found} == {("b", "/x", 7.0)}


def test_runs_made_on_each_host_get_the_command_that_measures_again():
    record = made.record(shape="1")
    run = made.run([record, made.record(shape="12")], command=["run_suite.py", "--suite", "full", "--set", "size=1 GiB"])
    words = shlex.split(confirming(run, ["matmul/shape=1", "matmul/shape=12", "matmul/shape=1"]))
    assert words == [
        *("run_suite.py", "run", "--confirming", "-k", "[m]atmul/shape=1", "-k", "matmul/shape=12"),
        *("--suite", "full", "--set", "size=1 GiB"),
    ]
    failed = made.run([record], command=["run_suite.py", "run", "--rerun-failed", "20261123-063000-7f3c"])
    assert confirming(failed, [record.case]) == "run_suite.py run --confirming --rerun-failed 20261123-063000-7f3c"


def test_intermittent_suspects_are_measured_again_too():
    runs = [node(n) for n in range(10)]
    spiky = made.record(samples=[1.0] * 15 + [1.5] * 5, machine_id="m05")
    runs[5] = loaded([spiky], runs[5].machines["m05"], run_id="r5")
    (suspect,) = confirm.suspects(judge(*runs))
    assert (suspect.kind, suspect.host) == ("intermittent", "node-05")
    again = fresh(1.0)
    part = reduce.joined([reduce.part_of(run) for run in (*runs, again)])
    (outcome,) = confirm.outcomes([suspect], part, blame.judge(part), [again])
    assert outcome.word == "cleared"


def test_the_command_line_prints_what_to_run_on_each_host(tmp_path):
    for number in range(5):
        run = msgspec.structs.replace(run_folders.a_run(), run_id=f"20261123-06300{number}-7f3c")
        times = [1e-3 * (2 if number == 3 else 1)] * 12
        taken = msgspec.structs.replace(run_folders.a_record().measurement, samples_s=times)
        with RunFolder.create(tmp_path / "runs", msgspec.structs.replace(run, planned=run.planned[:1])) as folder:
            folder.write_machine(run_folders.a_machine(machine_id=f"m{number}", host=f"node-0{number}"))
            folder.append(run_folders.a_record(run_id=run.run_id, machine_id=f"m{number}", measurement=taken))
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "fleet", "runs", "--confirm"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        "on node-03: run_suite.py run --confirming -k spin/ns=100",
        "and then fleet again, with the new runs beside these",
    ]
    assert "suspect    node-03" in done.stdout
