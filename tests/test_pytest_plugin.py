"""The fixture ``gauge``, in a project that is not this one and has the library alone; and its verdicts on a made-up clock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clustergauge import clocks, marker, pytest_plugin
from clustergauge.model import Workload
from clustergauge.probe import Work

ROOT = Path(__file__).resolve().parents[1]
PROJECT = """
import sys
import pytest

KERNEL = []

def run():
    KERNEL[:] = [sum(range(100))]

def right():
    assert KERNEL == [4950], "not the sum"

@pytest.mark.gauge(ops=100, floor="1 OP/s", budget_s=0.05)
def test_above_its_floor(gauge):
    gauge(run, check=right, reset=KERNEL.clear)

@pytest.mark.gauge(bytes=800, floor="900 EB/s", budget_s=0.05)
def test_below_its_floor(gauge):
    gauge(run, check=right)

@pytest.mark.gauge(limit="10 s", budget_s=0.05)
def test_within_its_limit(gauge):
    gauge(run, check=right)

@pytest.mark.gauge(ops=100, floor="1 OP/s", budget_s=0.05)
def test_wrong(gauge):
    gauge(lambda: None, check=right, reset=KERNEL.clear)

@pytest.mark.gauge(budget_s=0.05)
def test_without_a_threshold(gauge):
    gauge(run, check=lambda: KERNEL == [4950])

@pytest.mark.gauge(floor="1 FLOP/s")
def test_a_floor_without_work(gauge):
    gauge(run, check=right)

@pytest.mark.gauge(ops=100, floor="1 OP/s")
def test_never_called(gauge):
    pass

@pytest.mark.gauge(ops=100, floor="1 OP/s")
def test_without_the_fixture():
    pass

@pytest.mark.gauge(ops=100, floor="1 OP/s")
def test_skipped_before(gauge):
    pytest.skip("no such device")

def test_nothing_heavy_was_imported():
    assert not {"torch", "mpi4py", "kernels"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A project, and beside it the library as if installed: the package, and the entry points that pyproject declares."""
    base = tmp_path_factory.mktemp("elsewhere")
    site, project = base / "site", base / "project"
    metadata = site / "clustergauge-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    project.mkdir()
    (site / "clustergauge").symlink_to(ROOT / "clustergauge")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items()) for group, points in declared.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: clustergauge\nVersion: 0.1.0\n")
    (project / "test_mine.py").write_text(PROJECT)
    return site, project


def outcomes(elsewhere, *words):
    """Of a run of pytest in that project: outcome and message by test, and the output."""
    site, project = elsewhere
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CLUSTERGAUGE"))}
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--strict-markers",
        "--junit-xml=x.xml",
        *words,
    ]
    done = subprocess.run(
        command, cwd=project, env=environment | {"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=100
    )
    found = {}
    for case in ET.parse(project / "x.xml").iter("testcase"):  # what our own pytest wrote
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        said = [p.get("value") for p in case.iter("property") if p.get("name") == "gauge"]
        found[case.get("name")] = (bad.get("message", "") if bad is not None else "", said[0] if said else "")
    assert found, done.stdout + done.stderr
    return found, done.stdout


def test_a_kernel_of_another_project_is_measured_checked_and_held_against_its_threshold(elsewhere):
    found, output = outcomes(elsewhere)
    assert found["test_above_its_floor"][0] == ""
    assert found["test_above_its_floor"][1].startswith("pass: compute ")
    failed, said = found["test_below_its_floor"]
    assert "FAIL: bandwidth " in failed
    assert "asked for at least 900 EB/s" in said
    assert found["test_within_its_limit"][1].startswith("pass: time ")
    assert "wrong: not the sum" in found["test_wrong"][0]
    assert found["test_without_a_threshold"] == ("", found["test_without_a_threshold"][1])
    assert found["test_without_a_threshold"][1].startswith("unreferenced: time ")
    line = r"^test_mine.py::test_a_floor_without_work: gauge: a floor in FLOP/s needs flops=…, the work of one call$"
    assert re.search(line, output, re.MULTILINE)  # nothing of ours around it
    assert "pytest_plugin.py" not in output.partition("warnings summary")[0]
    for name in ("test_never_called", "test_without_the_fixture"):
        assert f"test_mine.py::{name}: gauge was never called: nothing was measured" in output
    assert "test_skipped_before: gauge" not in output
    assert found["test_nothing_heavy_was_imported"][0] == ""
    assert "test_mine.py::test_above_its_floor  pass: compute " in output


@pytest.mark.parametrize("words", [("--gauge-check-only",), ("-n", "1")])
def test_where_timing_means_nothing_kernels_are_checked_once(elsewhere, words):
    found, output = outcomes(elsewhere, *words, "-k", "floor or wrong")
    checked = ("", "not measured: checked once, not timed")
    assert found["test_above_its_floor"] == found["test_below_its_floor"] == checked
    assert "wrong: not the sum" in found["test_wrong"][0]
    assert "test_below_its_floor  not measured: checked once, not timed" in output


# -- verdicts, on a clock that shows what is planted (an accelerator's has no other way to be here)


class Planted:
    """A clock whose samples take turns between two times."""

    name = "cuda_event"
    tick_s, max_calls, started_s = 1e-9, 1, 0.0

    def __init__(self, times=(0.99e-3, 1.01e-3), exposed=0):
        self.times, self.exposed, self.reading, self.taken = times, 0, 0.0, 0
        self.growth = exposed

    def now(self):
        self.reading += 1e-3
        return self.reading

    def settle(self):
        pass

    def time(self, calls):
        for call in calls:
            call()
        self.taken += 1
        self.exposed += self.growth
        return self.times[self.taken % len(self.times)]

    def owned(self):
        return nullcontext()


def judged(monkeypatch, floor, **clock):
    """The verdict on 10⁹ operations in a millisecond."""
    asked_for = []
    monkeypatch.setattr(clocks, "clock_for", lambda kind, device: asked_for.append((kind, device)) or Planted(**clock))
    work = Work(run=lambda: None, check=lambda: None, workload=Workload(flops=10**9), clock="device")
    asked = marker.Asked(work.workload, "compute", floor, "FLOP/s", "at least this", "cuda:0", 0.2)
    gauged = pytest_plugin._measured(work, asked)
    assert asked_for == [("device", "cuda:0")]  # the accelerator's own clock
    return gauged


@pytest.mark.parametrize(("floor", "verdict"), [(0.8e12, "pass"), (1.0e12, "inconclusive"), (1.2e12, "FAIL")])
def test_the_whole_interval_decides(monkeypatch, floor, verdict):
    assert judged(monkeypatch, floor).verdict == verdict


def test_samples_that_may_hold_the_time_of_launching_fail_nothing(monkeypatch):
    gauged = judged(monkeypatch, 1.2e12, exposed=1)
    assert gauged.verdict == "inconclusive"
    assert "may hold the time of launching" in gauged.reason
    assert judged(monkeypatch, 0.8e12, exposed=1).verdict == "pass"


def node(*args, **given):
    """A test with a marker."""

    class Node:
        nodeid, user_properties, config = "t.py::t", [], SimpleNamespace(getoption=lambda name: False)

        def get_closest_marker(self, name):
            return SimpleNamespace(args=args, kwargs=given)

    return Node()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"flop": 1}, "gauge takes flops"),
        ({"flops": 1.5}, "whole number"),
        ({"bytes": np.int64(-1)}, "whole number"),
        ({"flops": 1, "ops": 1}, "flops or ops"),
        ({"flops": 1, "floor": 7}, "write '700 TFLOP/s'"),
        ({"flops": 1, "floor": "7 GHz"}, "unknown unit"),
        ({"flops": 1, "floor": "7 ms"}, "a rate is a floor, a time a limit"),
        ({"flops": 1, "limit": "7 FLOP/s"}, "a rate is a floor, a time a limit"),
        ({"flops": 1, "floor": "0 FLOP/s"}, "more than 0"),
        ({"flops": 1, "floor": "7 GB/s"}, "needs bytes="),
        ({"flops": 1, "floor": "7 FLOP/s", "limit": "1 s"}, "not both"),
        ({"device": "gpu"}, "write 'cpu' or 'cuda:0'"),
        ({"dtype": "float32"}, "there are fp64"),
        ({"budget_s": 0}, "must be seconds"),
    ],
)
def test_a_marker_that_makes_no_sense_is_refused(given, words):
    with pytest.raises(pytest.UsageError, match=words):
        marker.read(node(**given))


def test_what_cannot_be_measured_here_is_one_line(monkeypatch):
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setitem(sys.modules, "torch", torch)
    marker.require("t.py::t", "cuda:0", print)
    marker.require("t.py::t", "", print)
    with pytest.raises(pytest.UsageError, match=r"^t\.py::t: gauge: device='cuda:1': torch sees 1 GPUs here$"):
        marker.require("t.py::t", "cuda:1", print)
    with pytest.raises(pytest.UsageError, match="are functions"):
        marker.require("t.py::t", "cpu", print, None)
    monkeypatch.setitem(sys.modules, "torch", None)
    marker.require("t.py::t", "cpu", print)
    with pytest.raises(pytest.UsageError, match="timed by torch, which is not installed"):
        marker.require("t.py::t", "cuda:0", print)


def test_a_marker_is_read_in_bare_units():
    asked = marker.read(node(flops=np.prod([1, 2]), bytes=3, floor="700 TFLOP/s", device="cuda:1"))
    assert (asked.metric, asked.bound, asked.unit, asked.device) == ("compute", 7e14, "FLOP/s", "cuda:1")
    assert asked.workload == Workload(flops=2, bytes_read=3, bound="compute")


def test_a_process_that_uses_a_gpu_must_say_where_the_kernel_runs(monkeypatch):
    class Torch:
        class cuda:
            is_initialized = staticmethod(lambda: True)

    monkeypatch.setitem(sys.modules, "torch", Torch)
    with pytest.raises(pytest.UsageError, match="say device="):
        marker.read(node())
    assert marker.read(node(device="cpu")).device == "cpu"


def test_a_warning_says_that_nothing_was_shown(monkeypatch):
    class Node:
        nodeid, user_properties, config = "t", [], None
        get_closest_marker = staticmethod(lambda name: None)

    said = pytest_plugin.Gauged("inconclusive", "the bound lies inside")
    monkeypatch.setattr(pytest_plugin, "_only_check", lambda config: False)
    monkeypatch.setattr(pytest_plugin, "_measured", lambda work, asked: said)
    with pytest.warns(pytest_plugin.GaugeWarning, match="the bound lies inside"):
        assert pytest_plugin.Gauge(Node())(lambda: None, check=lambda: None) is said


@pytest.mark.parametrize("said", [False, np.False_, np.array(False), 0, []])
def test_a_check_that_returns_what_is_false_in_whichever_way_fails(said):
    with pytest.raises(pytest.fail.Exception, match="wrong: the check returned "):
        pytest_plugin.Gauge(node(budget_s=0.02))(lambda: None, check=lambda: said)


@pytest.mark.parametrize("said", [None, True, np.True_, 5])
def test_a_check_that_returns_nothing_or_what_is_true_is_content(said):
    assert pytest_plugin.Gauge(node(budget_s=0.02))(lambda: None, check=lambda: said).verdict == "unreferenced"


def test_a_tracer_sees_the_kernel_once_and_is_in_none_of_its_times():
    """As coverage is one, or a debugger: it would be called for every line of a kernel that is timed."""
    tracers, profilers = [], []

    def run():
        tracers.append(sys.gettrace())
        profilers.append(sys.getprofile())

    def tracer(frame, event, arg):
        return None

    def profiler(frame, event, arg):
        return None

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(tracer)
    sys.setprofile(profiler)
    try:
        pytest_plugin.Gauge(node(budget_s=0.02))(run, check=lambda: None)
        after = sys.gettrace(), sys.getprofile()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    assert after == (tracer, profiler)
    assert len(tracers) > 10
    assert (tracers[0], profilers[0]) == (tracer, profiler)
    assert {*tracers[1:], *profilers[1:]} == {None}
