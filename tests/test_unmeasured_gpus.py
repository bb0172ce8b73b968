"""GPUs that are there and were not measured are no success.  NVML is a mock (`fake_nvml`): no GPU is on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from clustergauge import between, blame, criteria, exits, machine, nvml, preflight_gpus, reduce, unmeasured
from clustergauge.loading import LoadedRun
from clustergauge.model import GPUS_UNUSABLE, Finding, Gpu, Machine, Place, Planned, Record
from clustergauge.plan import CPU_TORCH, Wish, load_probes, load_suite, plan
from clustergauge.store import RunFolder
from clustergauge.verdicts import Asked
from reports import outcome as outcomes
from tests import fake_nvml, made, run_folders
from tests.command_line import called
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
    return exits.exit_code(found, [], plans, device, [of]), unmeasured.gpus(found, plans, [of], device)


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
    assert unmeasured.gpus([disk], [made.planned(disk)], [of]) == []
    gpu = made.failed("error", "RuntimeError: driver too old", device="cuda:0")
    assert unmeasured.gpus([gpu], [made.planned(gpu)], [of]) == []  # that is an error, which is worse
    old = made.failed("skipped", "one call would take too long", device="cuda:0")
    words = "node-1: a GPU is here and not measured: one call would take too long"
    assert unmeasured.gpus([disk, old], [made.planned(disk), made.planned(old)], [of]) == [words]


def test_each_of_several_machines_answers_for_its_own_gpus():
    good = made.machine(gpus=1, node="n1")
    bad = made.machine(gpus=1, machine_id="m2", host="node-2", node="n2")
    done = made.record(device="cuda:0")
    beside = made.record(machine_id="m2")
    plans = [made.planned(done, hosts="n1"), made.planned(beside, hosts="n2", instead="why")]
    assert unmeasured.gpus([done, beside], plans, [good, bad]) == ["node-2: a GPU is here and not measured: why"]


def test_the_last_line_says_so_and_report_says_it_again(monkeypatch, tmp_path, capfd):
    of = made.machine(gpus=1, findings=[Finding(name="gpus", state="ok", detail="")])
    done = made.record()
    run = made.run([done], planned=[made.planned(done, instead=CPU_TORCH)])
    loaded = LoadedRun(run, {of.machine_id: of}, [done], tmp_path, [])
    assert outcomes.show(loaded, Asked(criteria.NOTHING), "text", say) == 4
    assert capfd.readouterr().err.splitlines()[-1] == f"run_suite.py: node-1: a GPU is here and not measured: {CPU_TORCH}"


def test_who_is_not_in_a_case_over_nodes_has_no_gpus_measured_by_it():
    machines = [made.machine(gpus=1, machine_id=f"m{n}", host=f"node-{n}", node=f"node-{n}") for n in range(3)]
    places = [Place(rank=n, host=f"node-{n}", device="cuda:0") for n in range(2)]
    together = made.record("all_reduce", device="cuda:nodes", machine_id="m0", placement=places, ranks=2)
    alone = made.failed("skipped", "no Triton", device="cuda:0", machine_id="m2")
    plans = [made.planned(together, hosts="node-[0-2]", nodes=3), made.planned(alone, hosts="node-[0-2]", skip="no Triton")]
    words = "node-2: a GPU is here and not measured: no Triton"
    assert unmeasured.gpus([together, alone], plans, machines) == [words]


def a_folder(parent: Path, number: int, instead: str = "") -> Path:
    """A run of one machine with a GPU: on its processor, and on the GPU unless that was measured there ``instead``."""
    (plan,) = run_folders.a_run(1).planned
    devices = ["cpu:0"] if instead else ["cpu:0", "cuda:0"]
    planned = [msgspec.structs.replace(plan, device=device, instead=instead) for device in devices]
    run = run_folders.a_run(run_id=f"20261123-06300{number}-7f3c", planned=planned)
    machine_id, gpu = f"m{number}", Gpu(index=0, name="NVIDIA H100 80GB HBM3", uuid=f"GPU-{number}", arch="sm_90")
    with RunFolder.create(parent, run) as folder:
        folder.write_machine(run_folders.a_machine(machine_id=machine_id, host=f"node-{number}", gpus=[gpu]))
        for device in devices:
            folder.append(run_folders.a_record(run_id=run.run_id, machine_id=machine_id, device=device))
        folder.finish(msgspec.structs.replace(run, finished="2026-11-23T06:31:00Z"))
    return folder.path


def test_fleet_says_it_and_counts_it_as_the_run_does(tmp_path):
    paths = [a_folder(tmp_path / "runs", number) for number in range(4)]
    assert called("fleet", str(tmp_path / "runs")).returncode == 0
    paths.append(a_folder(tmp_path / "runs", 5, CPU_TORCH))
    assert [called("report", str(path)).returncode for path in paths] == [0, 0, 0, 0, 4]
    done = called("fleet", str(tmp_path / "runs"), "--lists", str(tmp_path / "lists"))
    words = f"a GPU is here and not measured: {CPU_TORCH}"
    assert done.returncode == 4
    assert f"unmeasured node-5 unmeasured: {words}" in " ".join(done.stdout.split())
    assert (tmp_path / "lists" / "unmeasured.txt").read_text() == "node-5\n"
    told = {n["host"]: (n["state"], n["reason"]) for n in json.loads((tmp_path / "lists" / "nodes.json").read_text())["nodes"]}
    assert told["node-5"] == ("unmeasured", f"unmeasured: {words}")
    assert told["node-0"] == ("good", "")


def one_run(started: str, *records: Record, instead: str = "", device: str = "", **more) -> LoadedRun:
    """Of a machine with a GPU."""
    of = made.machine(**{"gpus": 1} | more)
    settings = {"device": device} if device else {}
    run = made.run(list(records), started=started, settings=settings)
    run = msgspec.structs.replace(
        run, planned=[made.planned(r, instead=instead, skip=r.reason if r.status == "skipped" else "") for r in records]
    )
    return LoadedRun(run, {of.machine_id: of}, list(records), Path("x"), [])


def states(*runs: LoadedRun) -> set[str]:
    """What its runs make of the machine, in whichever order they are read."""
    orders = (runs, runs[::-1])
    fleets = [blame.judge(reduce.joined([reduce.part_of(run) for run in order])) for order in orders]
    return {node.state for fleet in fleets for node in fleet.nodes}


def test_the_newest_run_that_says_something_of_the_gpus_counts_and_one_that_says_nothing_clears_nothing():
    gpu, beside, disk = made.record(device="cuda:0"), made.record(), made.record("sequential")
    first, second = "2026-11-23T06:30:00Z", "2026-11-23T07:30:00Z"
    assert states(one_run(first, beside, instead="why")) == {"unmeasured"}
    assert states(one_run(first, beside, instead="why"), one_run(second, gpu)) == {"good"}
    assert states(one_run(first, gpu), one_run(second, beside, instead="why")) == {"unmeasured"}
    assert states(one_run(first, beside, instead="why"), one_run(second, disk)) == {"unmeasured"}
    assert states(one_run(first, gpu), one_run(second, disk)) == {"good"}
    assert states(one_run(first, beside, instead="why"), one_run(second, beside, gpus=0)) == {"good"}  # it has none


def test_where_gpus_were_asked_for_and_all_of_it_was_skipped_no_machine_is_good():
    skipped, disk = made.failed("skipped", "no GPU", device="cuda:0"), made.record("sequential")
    run = one_run("2026-11-23T06:30:00Z", skipped, disk, device="cuda", gpus=0)
    assert exits.exit_code(run.records, [], run.run.planned, "cuda", run.machines.values()) == 4
    assert between.gpus(run) == {"m1": "nothing was measured on cuda"}
    assert states(run) == {"unmeasured"}
