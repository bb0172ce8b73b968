"""Whole runs over several nodes, by the command line: what they keep, and what they come to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from clustergauge import code
from tests import nodes


def cli(tmp_path, *words: str, text: str = "") -> tuple[int, str, list[dict], dict]:
    """Run the command line over nodes: exit code, what it said, records, run.  ``text``: of the suite, named here."""
    (tmp_path / "nodes.toml").write_text(text or nodes.SUITE)
    words = (*(("--suite", str(tmp_path / "nodes.toml")) if text else ()), *words)
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.misbehaving"]
    command += ["--remote", nodes.REMOTE, "--address", nodes.HERE, "-o", str(tmp_path), *words]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=110)
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return done.returncode, done.stdout + done.stderr, records, json.loads((folder / "run.json").read_text())


def test_a_run_over_nodes_keeps_what_fails_out_of_the_next_tier_and_can_be_resumed(tmp_path):
    suite = ["--suite", str(tmp_path / "nodes.toml"), "--hosts", "na,nb,nc-sick", "--ranks", "1"]
    status, said, records, run = cli(tmp_path, *suite)
    assert status == 3, said
    local = {(r["placement"][0]["host"], r["params"]["how"]): r["status"] for r in records if r["params"]["world"] == "serial"}
    assert local == {(h, c): "ok" for h in ("na", "nb", "nc-sick") for c in ("well", "sick")} | {("nc-sick", "sick"): "wrong"}
    assert len({r["machine_id"] for r in records if r["params"]["world"] == "serial"}) == 3
    (together,) = [r for r in records if r["device"] == "cpu:nodes"]
    assert together["status"] == "ok"
    assert [place["host"] for place in together["placement"]] == ["na", "nb"]
    assert list(run["left_out"]) == ["nc-sick"]
    assert "planned on this node only" in run["left_out"]["nc-sick"]
    assert "nc-sick" in said
    assert said.index("\n3 nodes · ") > said.index("run folder: ")  # the fleet stands at the end
    assert "bad        nc-sick\n  failed on cpu:0 in misbehave/" in said
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    assert (folder / "bad.txt").read_text() == "nc-sick\n"
    assert {n["host"]: n["state"] for n in json.loads((folder / "nodes.json").read_text())["nodes"]}["na"] == "good"
    assert "nodes.json" in (folder / "SHA256SUMS").read_text()
    status, said, again, _ = cli(tmp_path, "--resume", "latest", "--hosts", "na,nb,nc-sick")
    assert again == records  # nothing was missing
    status, said, again, _ = cli(tmp_path, "--resume", "latest", "--hosts", "na,nb")
    assert status == 2
    assert "that run used --hosts 'na,nb,nc-sick'" in said


def test_a_node_whose_agent_is_killed_is_unmeasured_wherever_it_is_told(tmp_path):
    """Nobody knows whether it is bad: it is in no list of bad ones, and all that judge the run agree."""
    text = nodes.SUITE.replace('how = ["well", "sick"]', 'how = ["lose", "well"]')
    status, said, records, run = cli(tmp_path, "--hosts", "na,nb,nc-sick", "--ranks", "1", text=text)
    assert status == 3, said  # a case broke
    names = {r["machine_id"]: r["placement"][0]["host"] for r in records if r["params"]["world"] == "serial"}
    told = {(names[r["machine_id"]], r["params"]["how"]): r for r in records if r["params"]["world"] == "serial"}
    lost = told.pop(("nc-sick", "lose"))
    assert {r["status"] for r in told.values()} == {"ok"}  # its agent was started again
    assert len(told) == 5
    assert lost["status"] == "error"
    assert lost["reason"].startswith("node nc-sick is lost: the agent of nc-sick died (")
    assert "rank 0 on nc-sick went with it" in lost["reason"]
    assert run["left_out"] == {"nc-sick": lost["reason"]}
    (together,) = [r for r in records if r["device"] == "cpu:nodes"]
    assert [place["host"] for place in together["placement"]] == ["na", "nb"]
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    lists = {name: (folder / f"{name}.txt").read_text() for name in ("bad", "suspect", "unmeasured")}
    assert lists == {"bad": "", "suspect": "", "unmeasured": "nc-sick\n"}
    nodes_ = {n["host"]: n for n in json.loads((folder / "nodes.json").read_text())["nodes"]}
    assert {host: n["state"] for host, n in nodes_.items()} == {"na": "good", "nb": "good", "nc-sick": "unmeasured"}
    assert nodes_["nc-sick"]["reason"].startswith("lost on cpu:0 in misbehave/")
    assert "unmeasured nc-sick\n  lost on cpu:0 in misbehave/" in said
    for verb in ("report", "fleet"):
        command = [sys.executable, str(code.ROOT / "run_suite.py"), verb, "latest", "-o", str(tmp_path)]
        done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 3
        assert "2 good · 1 unmeasured" in done.stdout
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "report", "latest", "--format", "json", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert {n["host"]: n["state"] for n in json.loads(done.stdout)["fleet"]["nodes"]} == {
        h: n["state"] for h, n in nodes_.items()
    }
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "verify", "latest", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_node_that_cannot_be_had_is_no_success_though_all_it_owes_is_its_share_of_what_spans_nodes(tmp_path):
    words = ["--suite", str(tmp_path / "nodes.toml"), "--hosts", "na,nb,gone1", "--ranks", "1", "-k", "*world=torch*"]
    status, said, records, _ = cli(tmp_path, *words)
    assert [r["status"] for r in records if r["device"] == "cpu:nodes"] == ["ok"]
    assert "over 2 of 3 nodes (without gone1)" in said
    assert status == 4, said
    for verb in ("report", "fleet"):
        command = [sys.executable, str(code.ROOT / "run_suite.py"), verb, "latest", "-o", str(tmp_path)]
        assert subprocess.run(command, cwd=code.ROOT, capture_output=True, timeout=60, check=False).returncode == 4


@pytest.mark.slow
def test_what_fails_is_measured_afresh_on_each_node_and_over_all(tmp_path):
    """Nothing takes a nanosecond: all of it fails a first time, and is confirmed by two fresh launches where it failed."""
    (tmp_path / "never.toml").write_text(
        '[[criteria]]\ncase = "misbehave/*"\nmetric = "time"\nlimit = 1\nunit = "ns"\nsource = "x"\n'
    )
    words = ["--suite", str(tmp_path / "nodes.toml"), "--hosts", "na,nb", "--ranks", "1", "-k", "*how=well*"]
    status, said, records, run = cli(tmp_path, *words, "--accept", str(tmp_path / "never.toml"))
    assert status == 1, said
    places: dict[tuple[str, str], list[tuple[int, bool]]] = {}
    for record in (r for r in records if r["status"] == "ok"):
        where = record["device"] if record["device"] == "cpu:nodes" else record["placement"][0]["host"]
        places.setdefault((where, record["params"]["world"]), []).append((record["launch"], record.get("confirms", False)))
    assert places[("na", "serial")] == places[("nb", "serial")] == [(0, False), (1, True), (2, True)]
    assert places[("cpu:nodes", "torch")] == [(0, False), (1, True), (2, True)]
    assert {p["hosts"] for p in run["planned"] if p.get("confirms") and p.get("nodes", 1) == 1} == {"na", "nb"}
    assert run["finished"]
    assert not run.get("interrupted")


def test_ctrl_c_ends_everything_on_all_nodes_and_keeps_what_was_measured(tmp_path):
    text = nodes.SUITE.replace('how = ["well", "sick"]', 'how = ["well", "hang"]').replace("timeout_s = 20", "timeout_s = 300")
    (tmp_path / "nodes.toml").write_text(text)
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.misbehaving", "--ranks", "1"]
    command += [
        "--remote",
        nodes.REMOTE,
        "--address",
        nodes.HERE,
        "-o",
        str(tmp_path),
        "--suite",
        str(tmp_path / "nodes.toml"),
        "--hosts",
        "na,nb",
    ]
    running = subprocess.Popen(command, cwd=code.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout
    while "[2/" not in (line := running.stdout.readline()):  # both have measured the first case, and hang in the next
        assert line, "it ended early"
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    said = running.stdout.read()
    running.stdout.close()
    assert running.wait(60) == 130, said
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [(r["params"]["how"], r["status"]) for r in records] == [("well", "ok")] * 2
    assert nodes.workers_left(str(tmp_path)) == []
