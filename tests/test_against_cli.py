"""`compare --against REV` as people call it: a real repository with a planted slow-down, real launches, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import run_suite
from tests.command_line import called
from verbs import comparing

ROOT = Path(__file__).parent.parent
FOLDERS = ("clustergauge", "kernels", "collectives", "storage_io", "reports", "suites", "verbs")
PROBE = '''
"""Planted: calls that last as long as they are told."""

import time

from clustergauge.model import Workload
from clustergauge.probe import Work, probe

SECONDS = {"one": 0.004, "other": 0.004}


@probe("pace", what=("one", "other"))
def pace(ctx, what):
    """Sleeps."""
    return Work(run=lambda: time.sleep(SECONDS[what]), check=lambda: None, workload=Workload(ops=1000, bound="compute"))
'''
SUITE = 'title = "planted"\nbudget_s = 0.1\n[[cases]]\nprobe = "pace"\n'


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """This suite, with a probe of its own, as the only commit of a repository."""
    root = tmp_path_factory.mktemp("gate") / "repository"
    root.mkdir()
    shutil.copy(ROOT / "run_suite.py", root)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pace.py").write_text(PROBE)
    (root / "pace.toml").write_text(SUITE)
    (root / ".gitignore").write_text("__pycache__/\nresults/\n")
    for words in (["init", "-q", "."], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "base"]):
        subprocess.run(["git", "-C", root, *words], check=True)
    return root


@pytest.fixture
def repository(committed):
    """The same, as it was committed."""
    subprocess.run(["git", "-C", committed, "checkout", "-q", "."], check=True)
    shutil.rmtree(committed / "results", ignore_errors=True)
    return committed


def start(root: Path, temporary: Path, *words: str) -> subprocess.Popen[str]:
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "run_suite.py", "compare", *words],
        cwd=root,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TMPDIR": str(temporary), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def suite(root: Path, temporary: Path, *words: str) -> subprocess.CompletedProcess[str]:
    process = start(root, temporary, *words)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


MEASURE = ("--suite", "pace.toml", "--probes", "pace", "--launches", "6", "--max-time", "10m")


def worktrees(root: Path) -> list[str]:
    return subprocess.run(["git", "-C", root, "worktree", "list"], capture_output=True, text=True, check=True).stdout.splitlines()


def left_by(root: Path, temporary: Path) -> list[str]:
    """What it left behind: worktrees, temporary folders of its own, processes (known by their temporary folder)."""
    found = worktrees(root)[1:] + [path.name for path in temporary.glob("clustergauge-against-*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"TMPDIR={temporary}".encode() in environment and command:
                found.append(command.decode(errors="replace"))
    return found


@pytest.mark.timeout(420)
@pytest.mark.slow
def test_a_planted_slow_down_turns_red_and_names_its_case_and_no_other(repository, tmp_path):
    probe = repository / "pace.py"
    probe.write_text(PROBE.replace('"other": 0.004', '"other": 0.008'))
    done = suite(repository, tmp_path / "t", "--against", "HEAD", *MEASURE, "--threshold", "25%", "--format", "json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    red = [pair for pair in report["pairs"] if pair["word"] == "changed"]
    assert [pair["case"] for pair in red] == ["pace/what=other"]
    assert 0.25 < red[0]["shift"]["low"] <= red[0]["shift"]["shift"] < 1.5
    assert "afresh" in red[0]["why"]
    assert report["run_b"].endswith("and 1 uncommitted file)")
    (kept,) = (repository / "results").iterdir()
    assert json.loads((kept / "report.json").read_text()) == report
    assert "**slower**" in (kept / "report.md").read_text()
    assert len(list((kept / "a").iterdir())) >= 12
    assert left_by(repository, tmp_path / "t") == []
    assert probe.read_text() != PROBE


@pytest.mark.timeout(420)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupt_leaves_no_worktree_and_no_process(repository, tmp_path, number):
    (repository / "pace.toml").write_text(SUITE.replace("0.1", "60"))
    process = start(repository, tmp_path / "t", "--against", "HEAD", *MEASURE)
    for line in process.stderr:
        if line.startswith("launch 1 of 6"):
            break
    until = time.monotonic() + 200
    while not any((repository / "results").glob("*/a/*/machines/*.json")) and time.monotonic() < until:
        time.sleep(0.05)  # until it measures
    assert len(worktrees(repository)) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert left_by(repository, tmp_path / "t") == []


@pytest.mark.timeout(420)
@pytest.mark.slow
def test_a_tree_that_cannot_measure_is_named(repository, tmp_path):
    (repository / "clustergauge/plan.py").write_text("import this is no Python")
    done = suite(repository, tmp_path / "t", "--against", "HEAD", *MEASURE)
    assert done.returncode == 3, done.stderr
    assert "B = this tree" in done.stderr.splitlines()[-1]
    assert "SyntaxError" in done.stderr.splitlines()[-1]
    assert left_by(repository, tmp_path / "t") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "nowhere"], "--against 'nowhere': no such revision here (git fetch, or see: git log --all)"),
        (["--against", "HEAD", "latest"], "measures both sides itself: leave out the runs"),
        (["--against", "HEAD", "--launches", "3"], "--launches 3: fewer than 6 of both sides"),
        (["--against", "HEAD", "--threshold", "3"], "--threshold 3: write a percentage of up to 100%, for example 3%"),
        (["--against", "HEAD", "--threshold", "nan%"], "--threshold nan%: write a percentage"),
        (["--against", "HEAD", "--threshold", "-1%"], "argument --threshold: expected one argument"),
        (["--against", "HEAD", "--max-time", "soon"], "--max-time: not a duration: 'soon'"),
        (["--against", "HEAD", "--suite", "nothing"], "unknown suite 'nothing' (there are "),
        (["--against", "HEAD", "-k", "nothing"], "no case matches 'nothing'"),
        (["--against", "HEAD", "--target", "/no/such"], "--target /no/such: no such folder"),
        (["--against", "HEAD", "-o", "/proc/results"], "cannot make /proc/results"),
        (["a", "b", "--launches", "7"], "compare --launches goes with --against REV"),
        (["a", "b", "--suite", "quick"], "compare --suite goes with --against REV"),
        (["a"], "compare needs two runs or more"),
        ([], "compare needs two runs or more"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(repository, tmp_path, monkeypatch, words, said):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(comparing, "ROOT", repository)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    done = called("compare", *words, cwd=repository)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (repository / "results").exists()
    assert left_by(repository, tmp_path / "t") == []


def test_without_a_repository_it_says_what_it_needs(repository, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns(".git"))
    done = suite(copy, tmp_path / "t", "--against", "HEAD")
    assert done.returncode == 2
    assert "needs a git checkout of the suite" in done.stderr


def test_every_case_of_the_lane_is_one_of_the_suites_own():
    assert run_suite.main(["list", "--suite", "ci", "--device", "cpu"]) == 0
    assert run_suite.main(["list", "--suite", "ci", "--device", "cuda"]) == 0
