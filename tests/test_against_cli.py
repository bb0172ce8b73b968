"""`compare --against REV` as people call it: a real repository with a planted slow-down, real launches, real signals."""

from __future__ import annotations

import fcntl
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
from clustergauge import loading
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
SUITE = 'title = "planted"\nbudget_s = 0.3\n[[cases]]\nprobe = "pace"\n'


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


def processes_of(temporary: Path) -> dict[int, list[str]]:
    """The commands of all processes that have this temporary folder, or one inside it."""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if f"TMPDIR={temporary}".encode() in environment and command:
                found[int(entry.name)] = command.split("\0")
    return found


def left_by(root: Path, temporary: Path) -> list[object]:
    """What it left behind: worktrees, temporary files and folders, processes."""
    return [*worktrees(root)[1:], *(path.name for path in temporary.iterdir()), *processes_of(temporary).values()]


def locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def await_turns(temporary: Path) -> None:
    """Until one side measures and the other waits for its turn."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if all(any(locked(path) for path in temporary.glob(f"clustergauge-turns-*/{name}")) for name in ("door", "inside")):
            return
        time.sleep(0.05)
    raise AssertionError("nobody takes turns")


def await_line(process: subprocess.Popen[str], start: str) -> None:
    for line in process.stderr:
        if line.startswith(start):
            return
    raise AssertionError(f"it ended before it said {start!r}")


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
@pytest.mark.parametrize(("number", "measuring"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
@pytest.mark.slow
def test_an_interrupt_leaves_no_worktree_and_no_process(repository, tmp_path, number, measuring):
    (repository / "pace.toml").write_text(SUITE.replace("0.3", "600"))
    process = start(repository, tmp_path / "t", "--against", "HEAD", *MEASURE)
    await_line(process, "launch 1 of 6")
    if measuring:
        await_turns(tmp_path / "t")
    assert len(worktrees(repository)) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert left_by(repository, tmp_path / "t") == []


@pytest.mark.timeout(420)
@pytest.mark.slow
def test_what_was_measured_before_an_interrupt_stays(repository, tmp_path):
    process = start(repository, tmp_path / "t", "--against", "HEAD", *MEASURE)
    await_line(process, "launch 2 of 6")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130
    for side in "ab":
        run, *_ = sorted((repository / "results").glob(f"*/{side}/*/run.json"))
        measured = loading.load(run.parent)
        assert measured.run.finished
        assert [record.status for record in measured.records] == ["ok", "ok"]
    assert left_by(repository, tmp_path / "t") == []


@pytest.mark.timeout(420)
@pytest.mark.parametrize("letter", ["A", "B"])
@pytest.mark.slow
def test_a_side_that_is_killed_is_named_and_the_other_does_not_go_on(repository, tmp_path, letter):
    (repository / "pace.toml").write_text(SUITE.replace("0.3", "600"))
    process = start(repository, tmp_path / "t", "--against", "HEAD", *MEASURE)
    await_line(process, "launch 1 of 6")
    await_turns(tmp_path / "t")
    (killed,) = [
        pid
        for pid, (_, script, *words) in processes_of(tmp_path / "t").items()
        if script.endswith("run_suite.py") and "-o" in words and words[words.index("-o") + 1].endswith(f"/{letter.lower()}")
    ]
    os.kill(killed, signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 3
    assert err.splitlines()[-1].startswith(f"run_suite.py: {letter} = ")
    assert "its run_suite.py killed by SIGKILL" in err.splitlines()[-1]
    assert worktrees(repository)[1:] == []
    until = time.monotonic() + 60
    while (left := processes_of(tmp_path / "t")) and time.monotonic() < until:  # its agent ends what it had started
        time.sleep(0.05)
    assert left == {}


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
