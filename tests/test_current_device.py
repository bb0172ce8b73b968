"""The GPU of a case is the current one from the beginning.  There may be none here: what is noted is what torch was asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from clustergauge import worker
from clustergauge.execute import execute
from clustergauge.messages import Go, Job
from clustergauge.model import Workload
from clustergauge.probe import Work, probe
from clustergauge.world import Serial


@pytest.fixture
def events(monkeypatch):
    """What happened, in order: the device that torch was told to work on, and the probe's own steps."""
    noted = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: noted.append(str(device)))
    return noted


def checked(events, device, tmp_path):
    @probe("noted")
    def noted(ctx):
        events.append("prepare")
        return Work(run=lambda: events.append("run"), check=lambda: None, workload=Workload())

    job = Job("noted", __name__, "noted", {}, device, 0.1, 1, check_only=True)
    return execute(job, noted, Serial(), tmp_path, lambda _: None)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:3"])
def test_it_is_the_current_one_before_the_probe_prepares(events, tmp_path, device):
    assert checked(events, device, tmp_path).status == "verified"
    assert events == [device, "prepare", "run"]


def test_a_processor_asks_torch_for_nothing(events, tmp_path):
    assert checked(events, "cpu", tmp_path).status == "verified"
    assert events == ["prepare", "run"]


def test_a_device_that_cannot_be_had_costs_the_case_its_reason(events, tmp_path, monkeypatch):
    def refuse(device):
        raise RuntimeError(f"CUDA error: invalid device ordinal ({device})")

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    said = checked(events, "cuda:9", tmp_path)
    assert (said.status, said.broken) == ("error", True)
    assert "invalid device ordinal (cuda:9)" in said.reason
    assert events == []


def test_a_probe_that_does_without_torch_may(events, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails from here on
    assert checked(events, "cuda:0", tmp_path).status == "verified"


@pytest.mark.parametrize(("device", "imported"), [("cuda:3", ["torch"]), ("cpu:0", [])])
@pytest.mark.parametrize("fails", [None, ImportError("no torch"), OSError("no libcudart")])
def test_a_worker_of_a_gpu_imports_torch_before_it_is_ready(monkeypatch, device, imported, fails):
    asked = []

    def import_module(name):
        asked.append(name)
        if fails:
            raise fails

    monkeypatch.setattr(worker.importlib, "import_module", import_module)
    go = Go("serial", 0, 1, device, 60.0)
    assert isinstance(worker.make_world(go, SimpleNamespace(rank=0)), Serial)
    assert asked == imported
