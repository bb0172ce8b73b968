"""Preflight: every planted trouble is found, every warning says what to do, and silence is unknown."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from clustergauge import machine, preflight, preflight_gpus
from clustergauge.model import Cpu, Finding, Gpu, Machine, Nic, Scalar
from tests import fake_nvml
from tests.fake_nvml import NO_PERMISSION, Card
from tests.trees import pci, write


@pytest.fixture(autouse=True)
def _no_gpu_left_behind() -> Iterator[None]:
    yield
    fake_nvml.forget()


def made_up(cores: int = 8, nics: list[Nic] | None = None, virtual: str = "", **settings: Scalar) -> Machine:
    cpu = Cpu(model="made up", cores=cores, threads=cores, allowed=f"0-{cores - 1}")
    return Machine(machine_id="m", host="h", cpu=cpu, memory_bytes=1, nics=nics or [], settings=settings, virtual=virtual)


RDMA = [Nic(name="mlx5_0", kind="infiniband")]


def test_this_machine_has_findings_each_named_once_and_every_warning_a_remedy(tmp_path: Path) -> None:
    found = preflight.findings(machine.describe(), [tmp_path], tmp_path)
    names = [f.name for f in found]
    assert len(set(names)) == len(names)
    assert {"shared_memory", "locked_memory", "open_files", "home", "target", "scratch", "load", "cpu_quota"} <= set(names)
    assert all(f.detail for f in found)
    assert all(bool(f.remedy) == (f.state == "warning") for f in found)


def states(found: list[Finding]) -> dict[str, str]:
    return {f.name: f.state for f in found}


def test_on_a_machine_that_says_nothing_nothing_is_fine(tmp_path: Path) -> None:
    found = states(preflight.findings(made_up(), [tmp_path / "gone"], tmp_path, tmp_path / "no root"))
    for name in ("shared_memory", "target_file_system", "huge_pages", "governor", "load"):
        assert found[name] == "unknown", name
    assert found["target"] == "warning"
    assert not any(name.startswith("gpu") for name in found)


# -- memory and limits


@pytest.mark.parametrize(
    ("size", "free", "state"), [(8 << 30, 8 << 30, "ok"), (64 << 20, 64 << 20, "warning"), (8 << 30, 1 << 20, "warning")]
)
def test_shared_memory_must_be_large_and_free(monkeypatch: pytest.MonkeyPatch, size: int, free: int, state: str) -> None:
    answer = SimpleNamespace(f_blocks=size >> 12, f_bavail=free >> 12, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: answer)
    found = preflight.shared_memory(Path("/dev/shm"))
    assert (found.state, bool(found.remedy)) == (state, state == "warning")


@pytest.mark.parametrize(
    ("limit", "nics", "state"), [(None, RDMA, "ok"), (8 << 20, RDMA, "warning"), (8 << 20, [], "ok"), (0, [], "ok")]
)
def test_locked_memory_matters_where_there_is_rdma(limit: int | None, nics: list[Nic], state: str) -> None:
    assert preflight.locked_memory(made_up(nics=nics), limit).state == state


@pytest.mark.parametrize(
    ("cores", "limit", "state"),
    [(2, 1024, "ok"), (2, 1023, "warning"), (128, 1024, "warning"), (128, 2048, "ok"), (128, None, "ok")],
)
def test_open_files_must_do_for_all_ranks(cores: int, limit: int | None, state: str) -> None:
    assert preflight.open_files(made_up(cores), limit).state == state


# -- folders


def test_a_home_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert preflight.home().state == "ok"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    found = preflight.home()
    assert (found.state, found.detail) == ("warning", f"{tmp_path}/gone: No such file or directory")
    monkeypatch.setenv("HOME", "/proc")  # as read-only as it gets, for root too
    assert preflight.home().state == "warning"


def test_a_folder_must_be_writable_and_have_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert preflight.folder("target", tmp_path, 1, "move").state == "ok"
    found = preflight.folder("target", tmp_path, 1 << 62, "move")
    assert (found.state, found.remedy) == ("warning", "move")
    assert preflight.folder("target", tmp_path / "gone", 1, "move").state == "warning"


def test_a_file_system_that_does_not_answer_is_unknown_and_holds_nobody_up() -> None:
    never = threading.Event()
    assert preflight.within(lambda: never.wait(60.0), seconds=0.01) is None
    never.set()


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/a /mnt/with\\040blank nfs4 rw 0 0
/dev/sdb /data ext4 rw 0 0
scratch /data lustre rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/x", "ext4"), ("/tmp/y", "tmpfs"), ("/tmpfoo", "ext4"), ("/mnt/with blank/z", "nfs4"), ("/data", "lustre")],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(tmp_path: Path, path: str, kind: str) -> None:
    write(tmp_path, "proc/self/mounts", MOUNTS)
    assert preflight.file_system(Path(path), tmp_path) == kind


def test_a_target_in_memory_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/mounts", MOUNTS)
    assert preflight.in_memory("target", Path("/tmp/target"), tmp_path).state == "warning"
    assert preflight.in_memory("target", Path("/data/target"), tmp_path).state == "ok"


# -- settings


@pytest.mark.parametrize(("thp", "state"), [("always", "ok"), ("madvise", "ok"), ("never", "warning"), (None, "unknown")])
def test_huge_pages_must_not_be_forbidden(thp: str | None, state: str) -> None:
    assert preflight.huge_pages(made_up(thp=thp)).state == state


@pytest.mark.parametrize(
    ("choice", "state"),
    [("performance", "ok"), ("powersave", "warning"), ("performance,powersave", "warning"), (None, "unknown")],
)
def test_a_clock_that_follows_the_load_is_a_warning(choice: str | None, state: str) -> None:
    assert preflight.governor(made_up(cpu_governor=choice)).state == state
    assert "hypervisor" in preflight.governor(made_up(virtual="KVM")).detail


@pytest.mark.parametrize(("limit", "state"), [(None, "ok"), (8.0, "ok"), (7.5, "warning"), (0.5, "warning")])
def test_a_quota_below_the_processors_is_a_warning(limit: float | None, state: str) -> None:
    found = preflight.quota(made_up(cpu_quota=limit))
    assert found.state == state
    assert limit != 0.5 or "bind to 1 processor (taskset" in found.remedy


@pytest.mark.parametrize(
    ("cores", "average", "state"),
    [(8, 0.1, "ok"), (8, 0.71, "warning"), (64, 3.0, "ok"), (64, 3.3, "warning"), (8, None, "unknown")],
)
def test_others_at_work_are_a_warning(cores: int, average: float | None, state: str) -> None:
    assert preflight.load(made_up(cores), average).state == state


# -- accelerators


def gpu_states(tmp_path: Path, *, root: Path | None = None) -> dict[str, str]:
    here = machine.describe(tmp_path, {0})
    return states(list(preflight_gpus.gpus(here, root or tmp_path)))


def test_a_free_gpu_is_fine_and_foreign_processes_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = Card(uuid="GPU-0"), Card(uuid="GPU-1", pids=[4711]), Card(uuid="GPU-2")
    cards[2].refuse["nvmlDeviceGetComputeRunningProcesses"] = NO_PERMISSION
    fake_nvml.install(monkeypatch, *cards)
    assert gpu_states(tmp_path) == {
        "gpu0_settings": "ok",
        "gpu0_processes": "ok",
        "gpu1_settings": "ok",
        "gpu1_processes": "warning",
        "gpu2_settings": "ok",
        "gpu2_processes": "unknown",
    }


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({"compute_mode": "default"}, "ok", "default"),
        ({"compute_mode": "exclusive_process"}, "ok", "exclusive_process"),
        ({"compute_mode": "prohibited"}, "warning", "prohibited"),
        ({"compute_mode": "default", "mig": True}, "warning", "MIG"),
        ({"compute_mode": "default", "ecc": False}, "warning", "error correction"),
        ({"compute_mode": "default", "persistence": False}, "warning", "persistence"),
        ({"compute_mode": "default", "ecc": None, "mig": None, "persistence": None}, "ok", "default"),
        ({}, "unknown", "not known"),
    ],
)
def test_settings_of_a_gpu_that_forbid_or_change_measuring_are_warnings(
    change: dict[str, object], state: str, words: str
) -> None:
    gpu = msgspec.structs.replace(Gpu(index=0, name="G", uuid="u", ecc=True, mig=False, persistence=True), **change)
    found = preflight_gpus.gpu_settings(gpu)
    assert (found.state, bool(found.remedy)) == (state, state == "warning")
    assert words in found.detail


def test_gpus_on_the_bus_without_a_driver_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = pci(tmp_path, "0000:17:00.0", vendor="0x10de")
    write(tmp_path, f"{folder}/class", "0x068000\n")  # an NVSwitch
    fake_nvml.install(monkeypatch, init_error=9)
    assert gpu_states(tmp_path) == {}
    write(tmp_path, f"{folder}/class", "0x030200\n")
    here = machine.describe(tmp_path, {0})
    (found,) = preflight_gpus.gpus(here, tmp_path)
    assert (found.state, found.detail) == ("warning", "1 NVIDIA GPUs on the bus, none usable: Driver Not Loaded")


def test_a_gpu_that_the_driver_holds_but_cannot_open_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(monkeypatch, Card())
    for address in ("0000:17:00.0", "0000:2a:00.0"):
        write(tmp_path, f"proc/driver/nvidia/gpus/{address}/information", "Model: H100\n")
    assert gpu_states(tmp_path)["gpus"] == "warning"
    (tmp_path / "proc/driver/nvidia/gpus/0000:2a:00.0/information").unlink()
    (tmp_path / "proc/driver/nvidia/gpus/0000:2a:00.0").rmdir()
    assert "gpus" not in gpu_states(tmp_path)


def test_users_of_amd_gpus_are_found(tmp_path: Path) -> None:
    amd = msgspec.structs.replace(made_up(), gpus=[Gpu(index=0, name="AMD", uuid="GPU-a", arch="gfx942")])
    assert states(list(preflight_gpus.gpus(amd, tmp_path)))["gpu0_processes"] == "unknown"
    (tmp_path / "sys/class/kfd/kfd/proc").mkdir(parents=True)
    assert states(list(preflight_gpus.gpus(amd, tmp_path)))["gpu0_processes"] == "ok"
    write(tmp_path, "sys/class/kfd/kfd/proc/4711/pasid", "1")
    assert states(list(preflight_gpus.gpus(amd, tmp_path)))["gpu0_processes"] == "warning"
