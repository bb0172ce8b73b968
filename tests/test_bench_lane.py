"""The benchmark lane, driven as its users drive it: what pytest-benchmark's own options do to our cases."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from clustergauge import machine, plan, processes
from clustergauge.conversation import Died
from clustergauge.model import Gpu, Workload
from tests import made
from tests.bench import conftest
from tests.bench.lane import Lane, Tape, describe

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
title = "benched"
budget_s = 0.1
timeout_s = 20
[[cases]]
probe = "benched"
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "benched.toml"
    path.write_text(SUITE)
    return path


def environment():
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # it is no worker of our xdist
    return own | {"PYTHONPATH": str(ROOT)}


def lane(suite, *words):
    """Outcome by case (``right``: ``PASSED``), and the output."""
    options = [f"--bench-suite={suite}", "--bench-probes=tests.faults.bench_probe"]
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        str(ROOT / "tests/bench"),
        "-v",
        "-p",
        "no:cacheprovider",
        *options,
        *words,
    ]
    done = subprocess.run(command, cwd=suite.parent, env=environment(), capture_output=True, text=True, timeout=110)
    output = done.stdout + done.stderr
    found = re.findall(r"how=(\w+)@cpu:0\](?: (PASSED|FAILED|SKIPPED|ERROR)|)", output)
    found += [(how, word) for word, how in re.findall(r"\] (PASSED|FAILED|SKIPPED|ERROR) \S*how=(\w+)@cpu:0\]", output)]
    return {how: word for how, word in found if word}, output


def test_samples_go_through_the_timer_to_the_last_bit():
    tape, samples = Tape(), [0.1, 3e-9, 1 / 3]
    tape.load(samples)
    rounds = []
    for _ in samples:
        start = tape()
        rounds.append(tape() - start)
    assert rounds == samples
    with pytest.raises(IndexError):
        tape()


@pytest.fixture(scope="module")
def measured(suite):
    """What became of every case, measured once, and the document; kept for comparison too."""
    document = suite.parent / "out.json"
    found, output = lane(suite, f"--benchmark-json={document}", "--benchmark-autosave")
    return found, output, json.loads(document.read_text())


def test_our_samples_are_in_the_books_with_what_they_mean_and_bad_cases_are_not(measured):
    found, output, document = measured
    bad = dict.fromkeys(("wrong", "mute", "crash", "absurd"), "FAILED")
    assert found == {"right": "PASSED", **bad, "skip": "SKIPPED", "target": "SKIPPED"}
    assert "wrong: element 3 is 4, not 5" in output
    assert "error: the case returned what no record can hold: workload.bytes_read is -1" in output
    assert "Traceback" not in output
    assert "exited with 7" in output
    assert "no meaning here" in output
    assert "no target folder" in output
    (bench,) = document["benchmarks"]
    assert bench["group"] == "benched"
    assert bench["params"] == {"case": "benched/how=right@cpu:0"}
    about, data = bench["extra_info"], bench["stats"]["data"]
    time = about["metrics"]["time"]["value"]
    assert len(data) == bench["stats"]["rounds"] > 5
    assert statistics.median(data) == pytest.approx(time, rel=1e-12)
    assert about["metrics"]["bandwidth"]["value"] == pytest.approx(1000 / time, rel=1e-12)
    assert about["clock"] == "wall"
    assert about["machine"] == document["machine_info"]["clustergauge"]
    assert about["machine"]["cores"] > 0


@pytest.mark.parametrize(("flops", "impossible"), [(156 * 10**12, False), (10**15, True)])
def test_the_fraction_of_a_ceiling_is_told_and_what_lies_above_it_is_impossible(flops, impossible):
    """An A100 that is made up: its dense bf16 peak is 312 TFLOP/s."""
    record = made.record(work=Workload(flops=flops, dtype="bf16", bound="compute"), device="cuda:0")
    gpu = Gpu(index=0, name="NVIDIA A100-SXM4-80GB", uuid="GPU-0", arch="sm_80", sm_clock_max_mhz=1410.0)
    about, problem = describe(record, msgspec.structs.replace(made.machine(), gpus=[gpu]))
    assert about["ceiling"]["metric"] == "compute"
    assert about["ceiling"]["fraction"] == pytest.approx(flops / about["ceiling"]["value"])
    assert about["ceiling"]["value"] == pytest.approx(312e12, rel=0.01)
    assert bool(problem) == impossible


def test_disabled_each_case_runs_once_and_is_checked(suite, tmp_path):
    found, output = lane(suite, "--benchmark-disable", f"--benchmark-json={tmp_path / 'out.json'}", "-k", "right or wrong")
    assert found == {"right": "PASSED", "wrong": "FAILED"}
    assert "wrong: element 3 is 4, not 5" in output
    assert not (tmp_path / "out.json").exists() or not json.loads((tmp_path / "out.json").read_text())["benchmarks"]


def test_a_case_that_is_only_checked_runs_once_and_has_no_time(suite):
    planned = plan.plan(plan.load_suite(suite), plan.load_probes(["tests.faults.bench_probe"]), machine.describe(), plan.Wish())
    only = Lane(planned, machine.describe())
    try:
        record, _ = only.measure("benched/how=right@cpu:0", check_only=True)
    finally:
        only.close()
    assert (record.status, record.reason) == ("verified", "checked once, not timed")
    assert record.measurement is None
    assert record.settings["runs"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_told_to_end_it_leaves_no_process_and_no_file(suite, number):
    command = [sys.executable, "-P", "-m", "pytest", str(ROOT / "tests/bench"), "-p", "no:cacheprovider", "-k", "right"]
    command += [f"--bench-suite={suite}", "--bench-probes=tests.faults.bench_probe", "--bench-duration=100s"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short name: sockets lie in it
        session = subprocess.Popen(command, cwd=suite.parent, env=environment() | {"TMPDIR": folder}, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not any(b"measure" in path.read_bytes() for path in Path(folder).glob("*/phase.*")) and time.monotonic() < until:
            time.sleep(0.05)
        session.send_signal(number)
        assert session.wait(60) == pytest.ExitCode.INTERRUPTED
        assert list(Path(folder).iterdir()) == []
        assert processes.bearing(f"TMPDIR={folder}") == []


def test_skipped_nothing_is_started(suite):
    found, _ = lane(suite, "--benchmark-skip")
    assert set(found.values()) == {"SKIPPED"}


def test_saved_runs_are_compared(suite, measured):
    found, output = lane(suite, "--benchmark-compare", "-k", "right")
    assert found == {"right": "PASSED"}
    assert "(0001_" in output
    assert "(NOW)" in output


@pytest.mark.slow
def test_under_xdist_cases_are_checked_only(suite):
    found, output = lane(suite, "-n", "1", "-k", "right or wrong")
    assert found == {"right": "PASSED", "wrong": "FAILED"}
    assert "Rounds" not in output


def test_what_pytest_benchmark_remarks_is_no_error(suite, tmp_path):
    found, output = lane(suite, f"--benchmark-json={tmp_path / 'out.json'}", "-k", "target")
    assert found == {"target": "SKIPPED"}
    assert "Not saving anything, no benchmarks have been run!" in output
    assert "Traceback" not in output


def test_a_mistake_is_one_line(suite):
    found, output = lane(suite, "--bench-target=/no/such")
    assert found == {}
    assert output.splitlines()[-2:] == ["ERROR: --bench-target /no/such: no such folder", ""]
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"bench_launcher": "/opt/nope/mpirun"}, "--bench-launcher '/opt/nope/mpirun': there is no program"),
        ({"bench_target": ""}, "--bench-target: nothing is given"),
        ({"bench_duration": ""}, "--bench-duration: nothing is given (a variable that is not set?); to do without, leave it out"),
        ({"bench_case": ["x", ""]}, "--bench-case: nothing is given"),
        ({"bench_duration": "-1"}, "--bench-duration: not a duration: '-1'"),
        ({"bench_suite": "nothing"}, "--bench-suite 'nothing': there are accept, "),
        ({"bench_suite": "no/such"}, "no suite file no/such"),
        ({"bench_case": ["nothing"]}, "no case matches 'nothing'"),
        ({"bench_probes": ["nosuch"]}, "cannot import probe module 'nosuch'"),
    ],
)
def test_mistakes_are_named_by_the_flags_of_the_lane(option, said, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    none = {"bench_suite": "quick", "bench_case": [], "bench_device": "cpu", "bench_duration": None, "bench_ranks": None}
    none |= {"bench_launcher": None, "bench_target": None, "bench_probes": []}
    given = SimpleNamespace(**none | option)
    config = SimpleNamespace(stash=pytest.Stash(), option=given, invocation_params=SimpleNamespace(dir=ROOT))
    with pytest.raises(pytest.UsageError) as told:
        conftest._lane(config)
    assert str(told.value).startswith(said)


def test_probes_of_the_folder_that_pytest_was_called_in_are_found(tmp_path):
    own = (ROOT / "tests/faults/bench_probe.py").read_text().replace('"benched"', '"own"')
    (tmp_path / "own_probe_of_mine.py").write_text(own)
    (tmp_path / "own.toml").write_text(SUITE.replace('probe = "benched"', 'probe = "own"'))
    _, output = lane(tmp_path / "own.toml", "--bench-probes=own_probe_of_mine", "--collect-only")
    assert "test_case[own/how=right@cpu:0]" in output


class Dead:
    """A node that does not come up."""

    def start(self, targets):
        raise Died("the node agent did not start: no room")

    def close(self, ask):
        return []


def test_where_no_worker_can_be_started_a_case_is_an_error_and_says_so(suite):
    planned = plan.plan(plan.load_suite(suite), plan.load_probes(["tests.faults.bench_probe"]), machine.describe(), plan.Wish())
    dead = Lane(planned, machine.describe())
    dead._supervisor._make = Dead
    record, _ = dead.measure("benched/how=right@cpu:0", check_only=False)
    assert (record.status, record.reason) == ("error", "the node agent did not start: no room")
    dead.close()


def test_what_the_supervisor_notes_is_told_at_the_end():
    lines: list[str] = []
    reporter = SimpleNamespace(section=lines.append, write_line=lines.append)
    stash = pytest.Stash()
    conftest.pytest_terminal_summary(reporter, SimpleNamespace(stash=stash))
    assert lines == []
    stash[conftest._LANE] = noted = Lane([], made.machine())
    noted.notes.append("could not be ended: pid 7 python, state D")
    conftest.pytest_terminal_summary(reporter, SimpleNamespace(stash=stash))
    assert lines == ["clustergauge", "could not be ended: pid 7 python, state D"]


def test_plain_pytest_leaves_the_lane_alone():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-k", "test_case", "--ignore-glob=tests/test_*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert "test_cases.py" not in done.stdout
