"""GPUs that are there and were not measured are no success.  NVML is a mock (`fake_nvml`): no GPU is on this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clustergauge import accept, criteria, machine, nvml, preflight_gpus
from clustergauge.loading import LoadedRun
from clustergauge.model import GPUS_UNUSABLE, Finding, Machine, Planned, Record
from clustergauge.plan import CPU_TORCH, Wish, load_probes, load_suite, plan
from clustergauge.verdicts import Asked
from reports import outcome as outcomes
from tests import fake_nvml, made
from tests.fake_nvml import Card
from tests.trees import write
from verbs.said import say

ROOT = Path(__file__).parent.parent
PROBES = load_probes(["kernels.matmul", "kernels.launch"])


@pytest.fixture(autouse=True)
def _forget():
    yield
    fake_nvml.forget()


def here(torch: str, **more) -> Machine:
    """This machine with the GPUs that NVML shows, and a torch of that version."""
    found = machine.describe()
    return msgspec.structs.replace(found, versions={**found.versions, "torch": torch}, **more)


def planned(tmp_path: Path, of: Machine, device: str = "auto") -> list[Planned]:
    path = tmp_path / "s.toml"
    path.write_text('title = "t"\n[[cases]]\nprobe = "matmul"\nbackend = "torch"\ndtype = "fp32"\nshape = "256"\n')
    return plan(load_suite(path), PROBES, of, Wish(device=device))  # type: ignore[arg-type]


def records(plans: list[Planned], of: Machine) -> list[Record]:
    """Each planned case measured, or skipped for the reason that it was planned with."""
    return [
        made.record(p.probe, case=p.case, params=p.params, device=p.device, machine_id=of.machine_id)
        if not p.skip
        else made.failed(
            "skipped", p.skip, probe=p.probe, case=p.case, params=p.params, device=p.device, machine_id=of.machine_id
        )
        for p in plans
    ]


def outcome(tmp_path: Path, of: Machine, device: str = "") -> tuple[int, list[str]]:
    plans = planned(tmp_path, of, device or "auto")
    found = records(plans, of)
    return accept.exit_code(found, [], plans, device, [of]), accept.gpus_unmeasured(found, plans, [of], device)


def test_a_torch_for_processors_beside_gpus_measures_the_processor_and_is_no_success(monkeypatch, tmp_path):
    fake_nvml.install(monkeypatch, Card(), Card(bus="00000000:65:00.0", uuid="GPU-2"))
    of = here("2.13.0+cpu")
    assert len(of.gpus) == 2
    assert [(p.device, p.skip, p.instead) for p in planned(tmp_path, of)] == [("cpu:0", "", CPU_TORCH)]
    assert outcome(tmp_path, of) == (4, [f"{of.host}: 2 GPUs are here and not measured: {CPU_TORCH}"])
    assert "TORCH_BACKEND=auto sh tools/install.sh" in CPU_TORCH


def test_a_torch_for_gpus_measures_them_and_all_is_well(monkeypatch, tmp_path):
    fake_nvml.install(monkeypatch, Card())
    assert outcome(tmp_path, here("2.13.0+cu130")) == (0, [])


def test_who_asks_for_the_processor_or_hides_the_gpus_means_it(monkeypatch, tmp_path):
    fake_nvml.install(monkeypatch, Card())
    assert outcome(tmp_path, here("2.13.0+cpu"), device="cpu") == (0, [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fake_nvml.forget()
    of = here("2.13.0+cpu")
    assert of.gpus == []
    assert outcome(tmp_path, of) == (0, [])
    write(tmp_path, "sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de")
    write(tmp_path, "sys/bus/pci/devices/0000:17:00.0/class", "0x030200")
    (finding,) = preflight_gpus.gpus_missing(of, tmp_path, len(nvml.all_devices()), nvml.problem())
    assert "CUDA_VISIBLE_DEVICES hides them" in finding.detail  # but it is said


def test_a_driver_that_holds_gpus_and_opens_none_is_no_success(monkeypatch, tmp_path):
    fake_nvml.install(monkeypatch, Card(), init_error=9)
    (tmp_path / "proc/driver/nvidia/gpus/0000:17:00.0").mkdir(parents=True)
    of = here("2.13.0+cu130")
    (finding,) = preflight_gpus.gpus_missing(of, tmp_path, len(nvml.all_devices()), nvml.problem())
    assert finding.name == GPUS_UNUSABLE
    assert finding.detail == "the driver holds 1 GPUs, none can be opened (Driver Not Loaded)"
    code, words = outcome(tmp_path, msgspec.structs.replace(of, findings=[finding]))
    assert code == 4
    assert words == [f"{of.host}: {finding.detail}; {finding.remedy}"]


def test_a_gpu_that_no_case_was_meant_for_is_not_missed_and_one_that_failed_was_tried():
    of = made.machine(gpus=1)
    disk = made.record("sequential")
    assert accept.gpus_unmeasured([disk], [made.planned(disk)], [of]) == []
    gpu = made.failed("error", "RuntimeError: driver too old", device="cuda:0")
    assert accept.gpus_unmeasured([gpu], [made.planned(gpu)], [of]) == []  # that is an error, which is worse
    old = made.failed("skipped", "one call would take too long", device="cuda:0")
    words = "node-1: a GPU is here and not measured: one call would take too long"
    assert accept.gpus_unmeasured([disk, old], [made.planned(disk), made.planned(old)], [of]) == [words]


def test_each_of_several_machines_answers_for_its_own_gpus():
    good = made.machine(gpus=1, node="n1")
    bad = made.machine(gpus=1, machine_id="m2", host="node-2", node="n2")
    done = made.record(device="cuda:0")
    beside = made.record(machine_id="m2")
    plans = [made.planned(done, hosts="n1"), made.planned(beside, hosts="n2", instead="why")]
    assert accept.gpus_unmeasured([done, beside], plans, [good, bad]) == ["node-2: a GPU is here and not measured: why"]


def test_the_last_line_says_so_and_report_says_it_again(monkeypatch, tmp_path, capfd):
    of = made.machine(gpus=1, findings=[Finding(name="gpus", state="ok", detail="")])
    done = made.record()
    run = made.run([done], planned=[made.planned(done, instead=CPU_TORCH)])
    loaded = LoadedRun(run, {of.machine_id: of}, [done], tmp_path, [])
    assert outcomes.show(loaded, Asked(criteria.NOTHING), "text", say) == 4
    assert capfd.readouterr().err.splitlines()[-1] == f"run_suite.py: node-1: a GPU is here and not measured: {CPU_TORCH}"
