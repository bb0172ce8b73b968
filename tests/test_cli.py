"""The command line as people use it: real processes, real signals, real full disks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_suite
from tests.command_line import called

ROOT = Path(__file__).parent.parent
SUITE = """
title = "planned faults"
budget_s = 0.2
timeout_s = 3
[[cases]]
probe = "misbehave"
how = {how}
world = "serial"
phase = "run"
"""


AGAIN = ("--probes", "tests.faults.misbehaving")
"""What a run folder does not get to decide."""


def start(*words: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_suite.py"), *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def suite(*words: str, **more) -> subprocess.CompletedProcess[str]:
    process = start(*words, **more)
    out, err = process.communicate(timeout=100)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def words_of(folder: Path, *how: str) -> list[str]:
    """A run of planned faults into a folder."""
    path = folder / "faults.toml"
    path.write_text(SUITE.format(how=json.dumps(how)))
    return ["--suite", str(path), *AGAIN, "-o", str(folder / "results")]


@pytest.fixture
def faulty(tmp_path):
    """Words of a run of planned faults into ``tmp_path``."""
    return lambda *how: words_of(tmp_path, *how)


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    """A folder with a run in which all was well, only to be read, and how it ended."""
    folder = tmp_path_factory.mktemp("well")
    return folder, suite(*words_of(folder, "well"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a run that Ctrl-C ended in its second case of three, only to be read; how it ended, and who lived on."""
    folder = tmp_path_factory.mktemp("stopped")
    process = start(*words_of(folder, "well", "hang", "raise"))
    wait_for(lambda: (folder / "results").exists() and records(folder), 30)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return folder, subprocess.CompletedProcess([], process.returncode, out, err), living(str(folder))


def copied(folder: Path, to: Path) -> None:
    """The results of a folder, to be changed."""
    shutil.copytree(folder / "results", to / "results", symlinks=True)


def test_a_full_disk_under_stdout_is_said_to_be_that():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = subprocess.run(
            [sys.executable, "run_suite.py", "schema"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (3, "run_suite.py: cannot write to stdout: No space left on device\n")


def only_run(tmp_path: Path) -> Path:
    (path,) = [p for p in (tmp_path / "results").iterdir() if (p / "run.json").exists()]
    return path


def records(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (only_run(tmp_path) / "records.jsonl").read_text().splitlines()]


def living(mark: str) -> list[str]:
    """Commands of processes whose environment or command line holds ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in text and int(entry.name) != os.getpid():
                found.append(text[:200].decode(errors="replace"))
    return found


def loaded_by(code: str) -> set[str]:
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, run_suite\ntry:\n  {code}\nexcept SystemExit: pass\nprint('|'.join(sys.modules), file=sys.stderr)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(out.stderr.splitlines()[-1].split("|"))


def test_help_loads_nothing_heavy():
    loaded = loaded_by("run_suite.main(['--help'])")
    assert not loaded & {"torch", "triton", "numpy", "scipy", "rich", "msgspec", "mpi4py", "pynvml"}


def test_list_answers_without_device_libraries():
    loaded = loaded_by("run_suite.main(['list'])")
    assert not loaded & {"torch", "triton", "mpi4py", "scipy", "cupy"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--suit", "quick"], "unrecognized arguments: --suit quick"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["rnu"], "unknown verb 'rnu' (there are run, list, "),
        (["compare", "latest"], "compare needs two runs or more: compare A B"),
        (["-k", ""], "-k: an empty glob chooses nothing"),
        (["--probes", "../x"], "cannot import probe module '../x'"),
        (["--probes", ""], "cannot import probe module ''"),
        (["--probes", "tests.faults.broken"], "cannot import probe module 'tests.faults.broken': ZeroDivisionError: planned"),
        (["--probes", "os"], "the module 'os' defines no probe"),
        (["--rerun-failed", "x", "-k", "y"], "--rerun-failed takes its cases from the run"),
        (["--suite", "nothing"], "unknown suite 'nothing' (there are "),
        (["--suite", "no/such.toml"], "no suite file no/such.toml"),
        (["--set", "size=huge"], "not a size: 'huge'"),
        (["--set", "size"], "write AXIS=VALUE"),
        (["-k", "nothing-like-this"], "no case matches 'nothing-like-this'"),
        (["-o", "/proc/results"], "/proc/results"),
        (["-o", __file__], "test_cli.py"),
        (["--target", "/no/such/folder"], "--target /no/such/folder: no such folder"),
        (["--max-time", "soon"], "not a duration: 'soon'"),
        (["--launches", "0"], "must be a number from 1 to 100000, not '0'"),
        (["--launches", "many"], "must be a number from 1 to 100000, not 'many'"),
        (["--resume", "x", "--suite", "full"], "--resume takes its cases from the run"),
        (["--probes", "no_such_module"], "cannot import probe module 'no_such_module'"),
        (["--accept", "no-such.toml"], "cannot read no-such.toml"),
        (["--resume", "no-such-run"], "no-such-run"),
        (["report", "no-such-run"], "no-such-run"),
        (["report"], "RUN"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(words, said):
    done = called(*words)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_glob_that_chooses_nothing_beside_one_that_does_is_told():
    done = called("list", "-k", "matmul/*", "-k", "sequental")
    assert (done.returncode, done.stderr) == (0, "note: no case matches -k 'sequental'\n")
    assert called("list", "-k", "matmul/*", "-k", "sequential").stderr == ""
    left = called("list", "-k", "random", "-k", "small_files", "--suite", "full", "--set", "depth=33")
    assert left.stderr.splitlines() == [
        "note: --set depth=33 leaves out small_files (depth: any whole number from 1 to 32)",
        "note: no case matches -k 'small_files'",
    ]


@pytest.mark.parametrize(
    ("verb", "flag"),
    [("run", flag) for flag in ("--accept", "--baseline", "--hosts", "--hostfile", "--topology", "--ceilings", "--max-time")]
    + [("run", "--launcher"), ("run", "--resume"), ("run", "-o"), ("list", "--hosts"), ("report", "--accept")]
    + [("fleet", "--expect"), ("fleet", "--lists"), ("compare", "--threshold"), ("compare", "--against")],
)
def test_a_variable_that_nobody_set_is_no_wish_to_do_without(verb, flag, capsys):
    more = {"run": ["--dry-run"], "report": ["latest"], "fleet": ["latest"]}.get(verb, [])
    assert run_suite.main([verb, *more, flag, ""]) == 2
    assert f"argument {flag}: nothing is given" in capsys.readouterr().err
    if flag.startswith("--"):
        assert run_suite.main([verb, *more, f"{flag}="]) == 2


def test_faults_are_survived_named_and_counted(tmp_path, faulty):
    done = suite(*faulty("well", "raise", "kill", "wrong", "skip"))
    assert done.returncode == 3, done.stderr
    assert [r["status"] for r in records(tmp_path)] == ["ok", "error", "error", "wrong", "skipped"]
    assert "RuntimeError: planned failure" in done.stdout
    assert "killed by SIGKILL in phase 'measure'" in done.stdout
    assert "again: run_suite.py run -k" in done.stdout
    assert living(str(tmp_path)) == []
    logs = list((only_run(tmp_path) / "logs").iterdir())
    assert any("planned failure" in log.read_text() for log in logs)


def test_a_case_that_returns_what_no_record_can_hold_is_an_error(tmp_path, faulty):
    done = suite(*faulty("steer", "well"))
    assert done.returncode == 3, done.stderr
    assert [r["status"] for r in records(tmp_path)] == ["error", "ok"]
    assert "the case returned what no record can hold" in done.stdout
    assert "\x1b" not in done.stdout


def test_json_is_one_document_and_nothing_else(tmp_path, faulty):
    done = suite(*faulty("well", "raise"), "--format", "json")
    document = json.loads(done.stdout)
    assert [r["status"] for r in document["records"]] == ["ok", "error"]
    assert {"run", "records", "verdicts"} <= set(document)
    again = called("report", str(only_run(tmp_path)), "--format", "json")
    assert json.loads(again.stdout) == document


def test_report_and_verify_show_the_run_again(tmp_path, well):
    folder, first = well
    assert first.returncode == 0, first.stderr
    assert suite("report", str(only_run(folder))).stdout == first.stdout
    assert called("report", "latest", "-o", str(folder / "results")).stdout == first.stdout
    copied(folder, tmp_path)
    path = str(only_run(tmp_path))
    said = suite("verify", path)
    assert (said.returncode, "its only verdict and exit code 0 follow from the records" in said.stdout) == (0, True), said
    file = only_run(tmp_path) / "records.jsonl"
    file.write_text(file.read_text().replace('"launch":0', '"launch":1'))
    done = called("verify", path)
    assert done.returncode == 2
    assert "records.jsonl" in done.stdout + done.stderr
    assert called("report", path).returncode == 2


def test_head_may_hang_up(tmp_path, faulty):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} run_suite.py {' '.join(faulty('well'))} | head -n 1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("words", [["list"], ["schema"], ["report", "latest"], ["report", "latest", "--format", "json"]])
def test_a_closed_stdout_is_no_failure(well, words):
    where = [] if words == ["schema"] else ["-o", str(well[0] / "results")]
    line = " ".join([sys.executable, "run_suite.py", *words, *where])
    done = subprocess.run(["bash", "-c", f"{line} >&-"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("switch", ["-P", "-I", "-OO"])
def test_switches_of_the_interpreter_change_nothing(switch):
    done = subprocess.run([sys.executable, switch, "run_suite.py", "list"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("case ")


def test_a_plan_can_be_had_as_json():
    cases = json.loads(called("list", "--format", "json").stdout)
    assert json.loads(called("--dry-run", "--format", "json").stdout) == cases
    assert {"case", "device", "skip"} <= set(cases[0])


def test_files_of_the_current_folder_do_not_stand_in_for_libraries(tmp_path):
    for name in ("random", "msgspec", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('hijacked {name}')")
    words = ["-k", "normalise/backend=torch/*softmax*", "--set", "shape=64x64", "--format", "json"]
    words += ["-o", str(tmp_path / "results")]
    done = suite(*words, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert {r["status"] for r in json.loads(done.stdout)["records"] if r["device"] == "cpu:0"} == {"ok"}, done


def test_resume_with_nothing_missing_changes_nothing(well):
    folder, _ = well
    before = {file: file.read_bytes() for file in only_run(folder).rglob("*") if file.is_file()}
    done = called("--resume", "latest", *AGAIN, "-o", str(folder / "results"))
    assert done.returncode == 0
    assert "nothing is missing" in done.stderr
    assert {file: file.read_bytes() for file in only_run(folder).rglob("*") if file.is_file()} == before


def test_what_a_probe_may_not_return_is_named(tmp_path, faulty):
    called(*faulty("nothing", "number", "nan", "surrogate", "well"))
    reasons = [r["reason"] for r in records(tmp_path)]
    assert "returned NoneType, not a Work: is a return missing?" in reasons[0]
    assert "returned int, not a Work" in reasons[1]
    assert "ValidationError" in reasons[2]
    assert reasons[3] == "not ? text"
    assert [r["status"] for r in records(tmp_path)] == ["error", "error", "error", "skipped", "ok"]


def test_ctrl_c_keeps_and_reports_what_was_measured(stopped):
    folder, ended, left = stopped
    assert ended.returncode == 130, ended.stderr
    assert "misbehave" in ended.stdout
    assert [r["status"] for r in records(folder)] == ["ok"]
    assert left == []
    assert json.loads((only_run(folder) / "run.json").read_text())["interrupted"] is True


def test_resume_measures_only_what_is_missing(tmp_path, stopped):
    copied(stopped[0], tmp_path)
    first = records(tmp_path)
    done = suite("--resume", "latest", *AGAIN, "-o", str(tmp_path / "results"))
    assert done.returncode == 3, done.stderr
    assert [r["status"] for r in records(tmp_path)] == ["ok", "error", "error"]
    assert records(tmp_path)[: len(first)] == first


def test_kill_9_loses_the_case_in_flight_at_most_and_leaves_nobody(tmp_path, faulty):
    process = start(*faulty("well", "hang"), env={"CLUSTERGAUGE_TEST": str(tmp_path)})
    wait_for(lambda: (tmp_path / "results").exists() and records(tmp_path), 30)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=10)
    wait_for(lambda: not living(f"CLUSTERGAUGE_TEST={tmp_path}"), 10)
    assert [r["status"] for r in records(tmp_path)] == ["ok"]
    done = suite("--resume", "latest", *AGAIN, "-o", str(tmp_path / "results"))
    assert done.returncode == 3, done.stderr
    assert [r["status"] for r in records(tmp_path)] == ["ok", "error"]


def test_max_time_starts_no_more_cases_and_says_how_to_go_on(tmp_path, faulty):
    done = suite(*faulty("well", "print"), "--max-time", "1ms")
    assert "2 cases not reached in the time given" in done.stderr
    assert done.returncode == 4
    assert "--resume" in done.stderr
    done = suite("--resume", "latest", *AGAIN, "-o", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path)) == 2


def test_a_run_that_goes_on_is_judged_by_what_it_was_begun_with(tmp_path, faulty):
    """The line that says how to go on names no --accept: without it all would be well."""
    asked = tmp_path / "asked.toml"
    asked.write_text('[[criteria]]\ncase = "misbehave"\nmetric = "time"\nunit = "ns"\nlimit = 1e-3\nsource = "planted"\n')
    done = suite(*faulty("well"), "--max-time", "1ms", "--accept", str(asked))
    assert done.returncode == 4, done.stderr
    path, results = only_run(tmp_path), ("-o", str(tmp_path / "results"))
    shutil.copytree(path, tmp_path / "killed")
    done = suite("--resume", "latest", *AGAIN, *results)
    assert done.returncode == 1, done
    assert "source: planted" in done.stdout
    assert (path / "acceptance.toml").read_text() == asked.read_text()
    for name in ("verdicts.json", "acceptance.toml", "SHA256SUMS"):
        (tmp_path / "killed" / name).unlink()
    done = called("--resume", str(tmp_path / "killed"), *AGAIN, *results)
    assert (done.returncode, "was begun with --accept, of which nothing is kept: say it again" in done.stderr) == (2, True), done


def test_a_run_folder_does_not_choose_what_is_executed_imported_or_written_to(tmp_path, stopped):
    copied(stopped[0], tmp_path)
    path, results = only_run(tmp_path), ("-o", str(tmp_path / "results"))
    done = called("--resume", "latest", *results)
    assert done.returncode == 2
    assert "say --probes tests.faults.misbehaving again" in done.stderr
    (path / "SHA256SUMS").unlink()
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text.replace('"launcher": ""', f'"launcher": "touch {tmp_path}/hacked"'))
    done = called("--resume", "latest", *AGAIN, *results)
    assert done.returncode == 2
    assert "that run used --launcher" in done.stderr
    (path / "run.json").write_text(text.replace('"target": ""', '"target": "/etc"'))
    done = called("--resume", "latest", *AGAIN, *results)
    assert done.returncode == 2
    assert "that run wrote to '/etc'" in done.stderr
    assert not (tmp_path / "hacked").exists()


def test_only_the_failed_cases_run_again(tmp_path, faulty):
    called(*faulty("well", "raise"))
    done = called("--rerun-failed", "latest", *AGAIN, "-o", str(tmp_path / "results"), "--format", "json")
    assert [r["case"].split("/")[1] for r in json.loads(done.stdout)["records"]] == ["how=raise"]


def test_launches_that_confirm_are_two_and_say_so(tmp_path, faulty):
    done = called(*faulty("well"), "--confirming", "--format", "json")
    assert [(r["launch"], r["confirms"]) for r in json.loads(done.stdout)["records"]] == [(0, True), (1, True)]


def test_launches_are_fresh_processes(tmp_path, faulty):
    done = called(*faulty("well"), "--launches", "2", "--format", "json")
    assert [r["launch"] for r in json.loads(done.stdout)["records"]] == [0, 1]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_line_and_leaves_a_readable_run(tmp_path, faulty):
    small = tmp_path / "results"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        done = suite(*faulty("well", "print", "well", "raise"), "--launches", "40")
        assert done.returncode in (2, 3)
        assert "Traceback" not in done.stderr
        assert "No space left" in done.stderr
        assert living(str(tmp_path)) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_another_package_called_kernels_does_not_get_in(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise RuntimeError('the wrong kernels')")
    done = suite(
        "-k",
        "matmul/*fp32/shape=256",
        "--set",
        "shape=256",
        "-o",
        str(tmp_path / "r"),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "the wrong kernels" not in done.stdout + done.stderr


def wait_for(what, within_s: float) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if what():
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_a_run_remembers_its_topology_and_a_broken_one_stops_it_at_once(tmp_path, faulty):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[[leaf]]\nname = 'l1'\nhosts = ['*', 'node[1-4]']\n")
    bad.write_text("[[leaf]]\nname = 'l1'\nhosts = ['node[4-1]']\n")
    done = called(*faulty("well"), "--topology", str(good))
    assert done.returncode == 0, done.stderr
    (folder,) = (p for p in (tmp_path / "results").iterdir() if p.name != "latest")
    assert '"node[1-4]"' in json.loads((folder / "run.json").read_text())["settings"]["topology"]
    for words in (("report", "latest"), ("run", "--suite", "quick")):
        for file, said in ((bad, f"{bad}: leaf[0].hosts[0]: "), (tmp_path / "none.toml", "cannot read")):
            done = called(*words, "--topology", str(file), "-o", str(tmp_path / "results"))
            assert done.returncode == 2
            assert said in done.stderr
    assert called("report", "latest", "--topology", str(good), "-o", str(tmp_path / "results")).returncode == 0
    done = called("--resume", "latest", *AGAIN, "--topology", str(good), "-o", str(tmp_path / "results"))
    assert done.returncode == 2
    assert "--resume takes the topology from the run" in done.stderr


def test_a_topology_of_other_hosts_is_the_users_mistake_and_said_before_anything_is_measured(tmp_path, faulty):
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text("[[leaf]]\nname = 'l1'\nhosts = ['other[1-4]', 'spare*']\n[[leaf]]\nname = 'l2'\nhosts = ['last']\n")
    here = os.uname().nodename
    said = f"{elsewhere}: none of the hosts that it names is measured: it has other[1-4], spare*, last; measured are"
    for words, measured in (
        (faulty("well"), here),
        ([*faulty("well"), "--remote", "false {host}", "--hosts", "na,nb,nc"], "na, nb, nc"),
    ):
        done = called(*words, "--topology", str(elsewhere))
        assert done.returncode == 2
        assert done.stderr == f"run_suite.py: {said} {measured} (write them there as they are called here)\n"
        assert not (tmp_path / "results").exists()
    assert called(*faulty("well")).returncode == 0
    for words in (("report", "latest"), ("fleet", "latest")):
        done = called(*words, "-o", str(tmp_path / "results"), "--topology", str(elsewhere))
        assert done.returncode == 2
        assert done.stderr.startswith(f"run_suite.py: {said} {here}")
