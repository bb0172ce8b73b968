"""The description of a machine, on made-up machines whose parts are known."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clustergauge import machine, nvml, processor, sysfs, valid
from clustergauge.errors import UsageError
from clustergauge.model import Machine
from tests import fake_nvml
from tests.fake_nvml import NO_PERMISSION, NOT_SUPPORTED, Card
from tests.trees import pci, port, processors, write


@pytest.fixture(autouse=True)
def _no_gpu_left_behind() -> Iterator[None]:
    yield
    fake_nvml.forget()


def two_sockets(root: Path) -> None:
    """2 sockets × 4 cores × 2 threads; siblings are numbered n and n + 8; two caches a socket."""
    processors(
        root,
        cores=[[n, n + 8] for n in range(8)],
        sockets={cpu: cpu % 8 // 4 for cpu in range(16)},
        nodes={0: "0-3,8-11", 1: "4-7,12-15", 2: ""},
        caches=[("0-1,8-9", "16384K"), ("2-3,10-11", "16384K"), ("4-5,12-13", "16M"), ("6-7,14-15", "16384K")],
        flags="sse2 avx2 avx512f amx_tile",
        max_khz=dict.fromkeys(range(16), 3_700_000),
    )
    write(root, "proc/meminfo", "MemTotal:       263000000 kB\nMemFree: 1 kB\nMemAvailable: 262000000 kB\n")
    write(root, "proc/sys/kernel/hostname", "node-017\n")
    write(root, "proc/sys/kernel/osrelease", "6.8.0-60-generic\n")
    write(root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    write(root, "etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\n')


def test_this_machine_is_described_and_believed() -> None:
    found = machine.describe()
    valid.check_machine(found)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Machine) == found
    assert found.cpu.threads == len(os.sched_getaffinity(0))
    assert 1 <= found.cpu.cores <= found.cpu.threads
    assert found.memory_bytes > 0
    assert machine.describe().machine_id == found.machine_id


def test_two_sockets_with_threads_are_counted(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    found = machine.describe(tmp_path, set(range(16)))
    cpu = found.cpu
    assert (cpu.sockets, cpu.cores, cpu.threads, cpu.allowed) == (2, 8, 16, "0-15")
    assert cpu.llc_bytes == 4 * 16384 << 10
    assert cpu.numa == {"0": "0-3,8-11", "1": "4-7,12-15"}
    assert (cpu.model, cpu.vector, cpu.clock_max_mhz) == ("Made-up CPU", "amx", 3700.0)
    assert (found.host, found.os, found.kernel) == ("node-017", "Ubuntu 24.04.2 LTS", "6.8.0-60-generic")
    assert found.memory_bytes == 263000000 << 10
    assert (found.gpus, found.nics, found.virtual) == ([], [], "")


def test_only_the_allowed_and_online_processors_count(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    write(tmp_path, "sys/devices/system/cpu/online", "0-13\n")
    write(tmp_path, "sys/devices/system/cpu/offline", "14-15\n")
    found = machine.describe(tmp_path, {0, 8, 1, 15})
    assert (found.cpu.sockets, found.cpu.cores, found.cpu.threads, found.cpu.allowed) == (1, 2, 3, "0-1,8")
    assert found.cpu.llc_bytes == 16384 << 10
    assert found.cpu.numa == {"0": "0-1,8"}
    assert found.settings["cpus_offline"] == "14-15"
    assert found.settings["cpus_not_allowed"] == "2-7,9-13"


def test_kinds_of_cores_are_each_counted_once(tmp_path: Path) -> None:
    processors(
        tmp_path,
        cores=[[0, 1], [2, 3], [4], [5], [6], [7]],
        caches=[("0-7", "24576K")],
        max_khz={0: 5_100_000, 1: 5_100_000, 4: 3_900_000},
    )
    cpu = machine.describe(tmp_path, set(range(8))).cpu
    assert (cpu.cores, cpu.threads, cpu.llc_bytes, cpu.clock_max_mhz) == (6, 8, 24576 << 10, 5100.0)


def test_the_last_level_is_the_highest_that_any_core_has(tmp_path: Path) -> None:
    processors(tmp_path, cores=[[0], [1], [2]], caches=[("0-1", "8192K")])
    write(tmp_path, "sys/devices/system/cpu/cpu2/cache/index2/level", "2\n")
    write(tmp_path, "sys/devices/system/cpu/cpu2/cache/index2/size", "2048K\n")
    assert machine.describe(tmp_path, {0, 1, 2}).cpu.llc_bytes == 8192 << 10


def test_the_cache_that_holds_a_set_is_found_and_shared_room_is_shared(tmp_path: Path) -> None:
    processors(tmp_path, cores=[[0, 4], [1], [2], [3]], caches=[("0-1,4", "8192K"), ("2-3", "4096K")])

    def level(kib: int, *cpus: int) -> str:
        return processor.cache_level(kib << 10, cpus, tmp_path)

    assert [level(kib, 0) for kib in (16, 32, 33, 8192, 8193)] == ["L1", "L1", "L3", "L3", "memory"]
    assert [level(kib, 0, 1) for kib in (32, 4096, 4097)] == ["L1", "L3", "memory"]
    assert [level(kib, 0, 4) for kib in (16, 17)] == ["L1", "L3"]  # two threads of one core
    assert [level(kib, 0, 2) for kib in (4096, 4097)] == ["L3", "memory"]  # the farthest that one of them needs
    assert level(16, 0, 7) == ""  # of processor 7 nothing is known
    assert level(16) == ""
    assert processor.caches(3, tmp_path) == [(1, 32 << 10, {3}), (3, 4096 << 10, {2, 3})]


def test_caches_of_instructions_and_of_unknown_size_hold_nothing(tmp_path: Path) -> None:
    processors(tmp_path, cores=[[0]])
    for number, field, content in ((1, "type", "Instruction"), (2, "size", "?")):
        folder = f"sys/devices/system/cpu/cpu0/cache/index{number}"
        for name, usual in {"level": "2", "type": "Unified", "size": "1024K", field: content}.items():
            write(tmp_path, f"{folder}/{name}", usual + "\n")
    assert processor.cache_level(64 << 10, [0], tmp_path) == "memory"


def test_what_the_kernel_does_not_say_is_unknown(tmp_path: Path) -> None:
    found = machine.describe(tmp_path, {0, 1, 2})
    cpu = found.cpu
    assert (cpu.cores, cpu.threads, cpu.allowed) == (3, 3, "0-2")
    assert (cpu.sockets, cpu.llc_bytes, cpu.clock_max_mhz, cpu.vector, cpu.numa) == (None, None, None, "", {})
    assert (found.settings, found.virtual) == ({}, "")
    valid.check_machine(found)


def test_arm_parts_have_their_names(tmp_path: Path) -> None:
    block = "Features\t: fp asimd sve sve2\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
    write(tmp_path, "proc/cpuinfo", f"processor\t: 0\n{block}\nprocessor\t: 1\n{block}")
    cpu = machine.describe(tmp_path, {0, 1}).cpu
    assert (cpu.model, cpu.vector) == ("Arm Neoverse-V2", "sve")


@pytest.mark.parametrize(
    ("flags", "vector"),
    [("sse2", "sse2"), ("sse2 avx avx2", "avx2"), ("sse2 avx2 avx512f", "avx512"), ("asimd fp", "neon"), ("fp", "")],
)
def test_the_widest_vector_unit_is_named(tmp_path: Path, flags: str, vector: str) -> None:
    processors(tmp_path, cores=[[0]], flags=flags)
    assert machine.describe(tmp_path, {0}).cpu.vector == vector


# -- control groups


def test_limits_of_version_2_hold_from_any_level(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    write(tmp_path, "proc/self/cgroup", "0::/kubepods/pod1/c1\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/cpu.max", "250000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/c1/cpu.max", "400000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/c1/memory.max", f"{8 << 30}\n")
    found = machine.describe(tmp_path, set(range(16)))
    assert found.settings["cpu_quota"] == 2.5
    assert found.memory_bytes == found.settings["memory_limit_bytes"] == 8 << 30
    assert found.cpu.threads == 16, "a quota limits time, not processors"


def test_limits_of_version_1_are_read_where_the_container_sees_them(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    write(tmp_path, "proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{4 << 30}\n")
    found = machine.describe(tmp_path, set(range(16)))
    assert (found.settings["cpu_quota"], found.memory_bytes) == (1.5, 4 << 30)


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n3:cpu:/\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert sysfs.cpu_quota(tmp_path) is None
    assert sysfs.memory_limit(tmp_path) is None


# -- names and classes


def test_the_id_is_stable_secret_and_names_a_file(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    first = machine.describe(tmp_path, {0}).machine_id
    assert first == machine.describe(tmp_path, {1}).machine_id
    assert valid.is_file_name(first)
    assert "0123456789abcdef"[:8] not in first
    write(tmp_path, "proc/sys/kernel/hostname", "node-018")
    assert machine.describe(tmp_path, {0}).machine_id != first, "images are cloned with their machine-id"


@pytest.mark.parametrize("own", ["", "uninitialized", "not hex"])
def test_without_an_id_of_the_system_the_board_or_the_ports_name_the_machine(tmp_path: Path, own: str) -> None:
    def name() -> str:
        return machine.describe(tmp_path, {0}).machine_id

    two_sockets(tmp_path)
    write(tmp_path, "etc/machine-id", own)
    port(tmp_path, "eth0", pci(tmp_path, "0000:01:00.0"), address="52:54:00:00:00:01", addr_assign_type="0")
    by_ports = name()
    write(tmp_path, "sys/class/dmi/id/product_uuid", "00000000-0000-0000-0000-000000000000\n")
    assert name() == by_ports, "an unset serial number is none"
    write(tmp_path, "sys/class/net/eth0/address", "52:54:00:00:00:02")
    assert name() != by_ports
    before = name()
    port(tmp_path, "vnet0", pci(tmp_path, "0000:02:00.0"), address="02:00:00:00:00:09", addr_assign_type="1")
    assert name() == before, "an address drawn by chance names nothing"
    write(tmp_path, "sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8052-b4c04f4d3233\n")
    by_board = name()
    write(tmp_path, "proc/sys/kernel/hostname", "renamed")
    assert name() == by_board


def test_a_class_is_of_the_parts_alone(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    port(tmp_path, "eth0", pci(tmp_path, "0000:01:00.0"), speed="100000")
    port(tmp_path, "eth1", pci(tmp_path, "0000:02:00.0"), speed="100000")

    def peers() -> str:
        return machine.describe(tmp_path, set(range(16))).peer_class

    first = peers()
    write(tmp_path, "proc/sys/kernel/hostname", "node-018")
    write(tmp_path, "etc/machine-id", "f" * 32)
    write(tmp_path, "proc/meminfo", "MemTotal:       262900000 kB\n")
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    assert peers() == first
    write(tmp_path, "sys/class/net/eth1/speed", "25000")
    assert peers() == first, "a slow link makes a bad peer, not another class"
    write(tmp_path, "sys/class/net/eth0/speed", "25000")
    assert peers() != first
    write(tmp_path, "sys/class/net/eth0/speed", "100000")
    write(tmp_path, "proc/meminfo", "MemTotal:       131000000 kB\n")
    assert peers() != first


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, ""),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": "", "sys/class/dmi/id/sys_vendor": "QEMU"}, "podman, QEMU"),
        ({".singularity.d/labels.json": ""}, "apptainer"),
        ({"proc/1/cgroup": "0::/kubepods.slice/pod1"}, "kubepods"),
        ({"sys/class/dmi/id/product_name": "KVM"}, "KVM"),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "p5.48xlarge"}, "Amazon EC2"),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "m7i.metal"}, ""),
        ({"sys/class/dmi/id/sys_vendor": "Microsoft Corporation", "sys/class/dmi/id/product_name": "Virtual Machine"}, "Hyper-V"),
        ({"sys/class/dmi/id/sys_vendor": "Dell Inc.", "sys/class/dmi/id/product_name": "PowerEdge XE9680"}, ""),
        ({"sys/hypervisor/type": "xen"}, "Xen"),
        ({"proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2"}, "WSL"),
        ({"proc/cpuinfo": "processor: 0\nflags: sse2 hypervisor\n"}, "virtual machine"),
    ],
)
def test_containers_and_hypervisors_are_recognised(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    assert machine.virtual(tmp_path) == kind


def test_settings_that_change_results_are_noted(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    for cpu in range(16):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "performance\n")
    write(tmp_path, "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate\n")
    write(tmp_path, "sys/devices/system/cpu/smt/control", "on\n")
    write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "1\n")
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write(tmp_path, "proc/sys/kernel/numa_balancing", "1\n")
    assert machine.describe(tmp_path, set(range(16))).settings == {
        "cpu_governor": "performance,powersave",
        "cpu_frequency_driver": "intel_pstate",
        "smt": "on",
        "cpu_turbo": False,
        "thp": "madvise",
        "numa_balancing": True,
    }


# -- ports


def test_ports_are_hardware_with_their_state_rate_and_place(tmp_path: Path) -> None:
    ib = pci(tmp_path, "0000:19:00.0", under="0000:15:01.0", numa_node="1")
    port(tmp_path, "eth0", pci(tmp_path, "0000:01:00.0", numa_node="-1"), speed="25000")
    port(tmp_path, "eth1", pci(tmp_path, "0000:01:00.1"), operstate="down", speed="-1")
    port(tmp_path, "ib0", ib, kind="32")
    write(tmp_path, "sys/class/net/lo/operstate", "unknown")
    for name, layer, state, rate in (
        ("mlx5_0", "InfiniBand", "4: ACTIVE", "400 Gb/sec (4X NDR)"),
        ("mlx5_1", "Ethernet", "1: DOWN", "40 Gb/sec (4X QDR)"),
    ):
        folder = f"sys/class/infiniband/{name}"
        for file, content in (("link_layer", layer), ("state", state), ("rate", rate)):
            write(tmp_path, f"{folder}/ports/1/{file}", content + "\n")
    (tmp_path / "sys/class/infiniband/mlx5_0/device").symlink_to(tmp_path / ib)
    found = [(n.name, n.kind, n.state, n.rate_gbit_s, n.pci, n.numa) for n in machine.describe(tmp_path, {0}).nics]
    assert found == [
        ("eth0", "ethernet", "up", 25.0, "0000:01:00.0", None),
        ("eth1", "ethernet", "down", None, "0000:01:00.1", None),
        ("mlx5_0", "infiniband", "active", 400.0, "0000:19:00.0", 1),
        ("mlx5_1", "roce", "down", 40.0, "", None),
    ]


# -- accelerators


def test_a_gpu_is_described_as_its_driver_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processors(tmp_path, cores=[[n] for n in range(72)])
    pci(tmp_path, "0000:17:00.0", numa_node="1")
    fake_nvml.install(monkeypatch, Card(cpus=0xFF << 64 | 0x3, mode=3))
    found = machine.describe(tmp_path, {0})
    gpu = found.gpus[0]
    assert (gpu.index, gpu.name, gpu.pci, gpu.arch) == (0, "NVIDIA H100 80GB HBM3", "0000:17:00.0", "sm_90")
    assert (gpu.memory_bytes, gpu.cpus, gpu.numa) == (85520809984, "0-1,64-71", 1)
    assert (gpu.sm_clock_max_mhz, gpu.power_limit_w, gpu.compute_mode) == (1980.0, 700.0, "exclusive_process")
    assert (gpu.ecc, gpu.mig, gpu.persistence) == (True, False, True)
    assert found.versions["nvidia_driver"] == "575.57.08"
    assert found.versions["cuda_driver"] == "12.9"
    valid.check_machine(found)


def test_what_a_gpu_will_not_say_is_unknown_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = ("MemoryInfo", "EnforcedPowerLimit", "CpuAffinity", "MigMode", "MaxClockInfo", "ComputeMode", "PersistenceMode")
    card = Card(refuse={f"nvmlDeviceGet{name}": NO_PERMISSION for name in refused} | {"nvmlDeviceGetEccMode": NOT_SUPPORTED})
    pci(tmp_path, "0000:17:00.0", local_cpulist="4-7")
    fake_nvml.install(monkeypatch, card)
    gpu = machine.describe(tmp_path, {0}).gpus[0]
    assert (gpu.name, gpu.arch, gpu.cpus) == ("NVIDIA H100 80GB HBM3", "sm_90", "4-7")
    assert (gpu.memory_bytes, gpu.power_limit_w, gpu.sm_clock_max_mhz, gpu.numa) == (None, None, None, None)
    assert (gpu.ecc, gpu.mig, gpu.persistence, gpu.compute_mode) == (None, None, None, "")


def test_gpus_hidden_from_cuda_are_hidden_here_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(monkeypatch, *(Card(uuid=f"GPU-{n}", bus=f"00000000:{n}7:00.0") for n in range(4)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    found = machine.describe(tmp_path, {0})
    assert [(g.index, g.uuid) for g in found.gpus] == [(0, "GPU-2"), (1, "GPU-0")]
    assert found.settings["gpus_hidden"] == 2


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2, 0", [2, 0]),
        ("0,7,1", [0]),
        ("0,-1,1", [0]),
        ("GPU-bb", [1]),
        ("GPU-b", []),
        ("GPU-bc,GPU-aa", [2, 0]),
        ("1,1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(wish: str | None, chosen: list[int]) -> None:
    assert nvml.visible(["GPU-aa", "GPU-bb", "GPU-bc"], wish) == chosen


def test_a_driver_that_does_not_load_leaves_no_gpus_and_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(monkeypatch, Card(), init_error=9)
    assert machine.describe(tmp_path, {0}).gpus == []
    assert nvml.problem() == "Driver Not Loaded"


def test_amd_accelerators_are_listed_and_display_adapters_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(monkeypatch, init_error=9)
    nodes = "sys/class/kfd/kfd/topology/nodes"
    write(tmp_path, f"{nodes}/0/properties", "cpu_cores_count 96\nsimd_count 0\n")
    place = 0x2B << 8 | 0 << 3
    properties = f"simd_count 1216\ngfx_target_version 90402\nlocation_id {place}\ndomain 0\nunique_id 81985529216486895\n"
    write(tmp_path, f"{nodes}/1/properties", properties + "max_engine_clk_fcompute 2100\n")
    write(tmp_path, f"{nodes}/2/properties", f"simd_count 4\ngfx_target_version 100306\nlocation_id {0x30 << 8}\ndomain 0\n")
    folder = pci(tmp_path, "0000:2b:00.0", numa_node="1", local_cpulist="48-95", mem_info_vram_total=str(192 << 30))
    write(tmp_path, f"{folder}/product_name", "AMD Instinct MI300X\n")
    write(tmp_path, f"{folder}/hwmon/hwmon5/power1_cap", "750000000\n")
    pci(tmp_path, "0000:30:00.0", mem_info_vram_total=str(512 << 20))
    found = machine.describe(tmp_path, {0})
    (gpu,) = found.gpus
    assert "gpus_hidden" not in found.settings
    assert (gpu.index, gpu.name, gpu.arch, gpu.pci) == (0, "AMD Instinct MI300X", "gfx942", "0000:2b:00.0")
    assert (gpu.uuid, gpu.memory_bytes, gpu.cpus, gpu.numa) == ("GPU-0123456789abcdef", 192 << 30, "48-95", 1)
    assert (gpu.power_limit_w, gpu.sm_clock_max_mhz, gpu.ecc) == (750.0, 2100.0, None)


def test_a_driver_that_hangs_does_not_hang_us_and_is_named() -> None:
    with pytest.raises(UsageError, match="the GPU driver did not answer within 0 s: see whether nvidia-smi does"):
        machine.describe_apart(0.2, [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(UsageError, match="this machine could not be described"):
        machine.describe_apart(20, [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UsageError, match="this machine could not be described"):
        machine.describe_apart(20, [sys.executable, "-c", "print('{}')"])


def test_a_machine_described_in_another_process_is_the_same() -> None:
    apart = machine.describe_apart(20, [sys.executable, "-m", "clustergauge.machine"])
    assert apart.machine_id == machine.describe().machine_id
