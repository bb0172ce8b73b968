"""The benchmark lane, driven as its users drive it: what pytest-benchmark's own options do to our cases."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clustergauge import machine, plan
from clustergauge.model import Gpu, Workload
from tests import made
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
        "-W",
        "default",
        *options,
        *words,
    ]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # it is no worker of our xdist
    environment = own | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=suite.parent, env=environment, capture_output=True, text=True, timeout=110)
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
    assert found == {"right": "PASSED", "wrong": "FAILED", "crash": "FAILED", "skip": "SKIPPED", "target": "SKIPPED"}
    assert "wrong: element 3 is 4, not 5" in output
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
    only = Lane(planned)
    try:
        record, _ = only.measure("benched/how=right@cpu:0", check_only=True)
    finally:
        only.close()
    assert (record.status, record.reason) == ("verified", "checked once, not timed")
    assert record.measurement is None
    assert record.settings["runs"] == 1


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


def test_a_launcher_that_can_start_nothing_is_a_usage_error(suite):
    found, output = lane(suite, "--bench-launcher=/opt/nope/mpirun", "--collect-only")
    assert found == {}
    assert "there is no program /opt/nope/mpirun here" in output


@pytest.mark.slow
def test_an_unknown_suite_is_a_usage_error(tmp_path):
    found, output = lane(tmp_path / "nosuch.toml")
    assert found == {}
    assert "no suite file" in output


def test_plain_pytest_leaves_the_lane_alone():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-k", "test_case", "--ignore-glob=tests/test_*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert "test_cases.py" not in done.stdout
