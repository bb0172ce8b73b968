"""Health: planted faults appear by name and size, silence is told apart from health."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clustergauge import health
from tests import fake_nvml
from tests.fake_nvml import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, Card
from tests.trees import write


@pytest.fixture(autouse=True)
def _no_gpu_left_behind() -> Iterator[None]:
    yield
    fake_nvml.forget()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A node with a NIC, an InfiniBand port, two memory controllers and two processors."""
    write(tmp_path, "sys/devices/pci0000:00/0000:00:01.0/aer_dev_correctable", "RxErr 0\nBadTLP 3\nTOTAL_ERR_COR 3\n")
    for counter in health.NET_ERRORS:
        write(tmp_path, f"sys/class/net/eth0/statistics/{counter}", "0\n")
    (tmp_path / "sys/class/net/eth0/device").symlink_to("../../../devices/pci0000:00/0000:00:01.0")
    write(tmp_path, "sys/class/net/eth0/operstate", "up\n")
    write(tmp_path, "sys/class/net/eth0/carrier_changes", "2\n")
    write(tmp_path, "sys/class/net/docker0/statistics/rx_errors", "0\n")
    port = "sys/class/infiniband/mlx5_0/ports/1"
    for counter in ("symbol_error", "link_downed"):
        write(tmp_path, f"{port}/counters/{counter}", "7\n")
    write(tmp_path, f"{port}/hw_counters/packet_seq_err", "0\n")
    write(tmp_path, f"{port}/state", "4: ACTIVE\n")
    write(tmp_path, f"{port}/phys_state", "5: LinkUp\n")
    write(tmp_path, f"{port}/rate", "400 Gb/sec (4X NDR)\n")
    for controller in (0, 1):
        write(tmp_path, f"sys/devices/system/edac/mc/mc{controller}/ce_count", "10\n")
        write(tmp_path, f"sys/devices/system/edac/mc/mc{controller}/ue_count", "0\n")
    for cpu in (0, 1):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count", "4\n")
    write(tmp_path, "proc/interrupts", "  0: 5 6 timer\nMCP: 9 9 polls\nMCE: 0 1 Machine check exceptions\n")
    write(tmp_path, "proc/vmstat", "pgfault 12\noom_kill 3\n")
    return tmp_path


def test_two_readings_of_a_healthy_machine_say_nothing(tree: Path) -> None:
    before = health.read(tree)
    assert len(before) == 7 + 3 + 3 + 3 + 4 + 1 + 1 + 1, sorted(before)
    assert None not in before.values()
    assert health.changes(before, health.read(tree)) == {}


@pytest.mark.parametrize(
    ("file", "content", "name", "change"),
    [
        ("sys/class/net/eth0/statistics/rx_crc_errors", "5", "eth0.rx_crc_errors", 5),
        ("sys/class/net/eth0/carrier_changes", "4", "eth0.carrier_changes", 2),
        ("sys/class/net/eth0/operstate", "down", "eth0.state", "up → down"),
        ("sys/class/net/eth0/device/aer_dev_correctable", "RxErr 0\nTOTAL_ERR_COR 9", "eth0.aer_dev_correctable", 6),
        ("sys/class/infiniband/mlx5_0/ports/1/counters/symbol_error", "19", "mlx5_0:1.symbol_error", 12),
        ("sys/class/infiniband/mlx5_0/ports/1/hw_counters/packet_seq_err", "1", "mlx5_0:1.packet_seq_err", 1),
        ("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN", "mlx5_0:1.state", "4: ACTIVE → 1: DOWN"),
        (
            "sys/class/infiniband/mlx5_0/ports/1/rate",
            "200 Gb/sec (2X NDR)",
            "mlx5_0:1.rate",
            "400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)",
        ),
        ("sys/devices/system/edac/mc/mc1/ce_count", "12", "memory.mc1.corrected", 2),
        ("sys/devices/system/edac/mc/mc0/ue_count", "1", "memory.mc0.uncorrected", 1),
        ("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "9", "cpu.core_throttle", 5),
        ("proc/interrupts", "MCE: 2 1 Machine check exceptions\nMCP: 99 99 polls", "cpu.machine_checks", 2),
        ("proc/vmstat", "pgfault 99\noom_kill 4", "memory.oom_kills", 1),
    ],
)
def test_a_planted_fault_is_the_only_change(tree: Path, file: str, content: str, name: str, change: int | str) -> None:
    before = health.read(tree)
    write(tree, file, content)
    assert health.changes(before, health.read(tree)) == {name: change}


def test_polls_traffic_and_virtual_ports_are_not_faults(tree: Path) -> None:
    before = health.read(tree)
    write(tree, "proc/interrupts", "MCE: 0 1 Machine check exceptions\nMCP: 50 50 polls")
    write(tree, "sys/class/net/docker0/statistics/rx_errors", "8")
    write(tree, "sys/class/net/eth0/statistics/rx_dropped", "8")
    assert health.changes(before, health.read(tree)) == {}


def test_what_can_no_longer_be_read_is_unknown_and_not_zero(tree: Path) -> None:
    before = health.read(tree)
    write(tree, "sys/devices/system/edac/mc/mc0/ce_count", "not a number")
    write(tree, "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "")
    (tree / "sys/class/net/eth0/statistics/tx_errors").unlink()
    assert health.changes(before, health.read(tree)) == {"unknown": "cpu.core_throttle,eth0.tx_errors,memory.mc0.corrected"}


def test_a_port_that_is_gone_says_so(tree: Path) -> None:
    before = {"eth0.state": "up", "eth0.rx_errors": 2}
    assert health.changes(before, {}) == {"eth0.state": "up → absent", "eth0.rx_errors": "2 → absent"}


def test_a_counter_that_fell_shows_both_values() -> None:
    assert health.changes({"a.b": 9}, {"a.b": 2}) == {"a.b": "9 → 2"}


def test_on_a_machine_that_counts_nothing_there_is_nothing_to_know(tmp_path: Path) -> None:
    assert health.read(tmp_path) == {}


# -- GPUs, through the mock


def gpu_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: Card, **after: object) -> dict[str, object]:
    """What changes when the fields ``after`` of the card do."""
    fake_nvml.install(monkeypatch, before)
    first = health.read(tmp_path)
    for name, value in after.items():
        setattr(before, name, value)
    return dict(health.changes(first, health.read(tmp_path)))


@pytest.mark.parametrize(
    ("after", "change"),
    [
        ({"ecc": [3, 0]}, {"gpu0.ecc_corrected": 3}),
        ({"ecc": [0, 1]}, {"gpu0.ecc_uncorrected": 1}),
        ({"rows": (1, 0, 1, 0)}, {"gpu0.remapped_rows_corrected": 1, "gpu0.remap_pending": "no → yes"}),
        ({"rows": (0, 0, 0, 1)}, {"gpu0.remap_failed": "no → yes"}),
        ({"retired": {0: [], 1: [4096]}}, {"gpu0.retired_pages_double_bit": 1}),
        ({"width": 8}, {"gpu0.pcie_width": "x16 → x8"}),
        ({"reasons": 0x48}, {"gpu0.throttle": "none → hw_slowdown,hw_thermal_slowdown"}),
        ({"reasons": 0x80}, {"gpu0.throttle": "none → hw_power_brake_slowdown"}),
        ({"reasons": 0x4 | 0x2}, {}),
        ({"xids": [79, 48, 79]}, {"gpu0.xid_48": 1, "gpu0.xid_79": 2}),
        ({"down": {1}}, {"gpu0.nvlinks_up": "2 → 1", "gpu0.nvlink_crc_flit": "3 → 1"}),
        ({"links": {0: [0, 0, 1, 0], 1: [5, 1, 2, 0]}}, {"gpu0.nvlink_replays": 5, "gpu0.nvlink_recoveries": 1}),
    ],
)
def test_a_planted_fault_of_a_gpu_is_the_only_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: dict[str, object], change: dict[str, object]
) -> None:
    card = Card(links={0: [0, 0, 1, 0], 1: [0, 0, 2, 0]})
    assert gpu_change(monkeypatch, tmp_path, card, **after) == change


def test_what_a_gpu_does_not_offer_is_no_fault_and_what_it_refuses_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = Card(
        refuse={
            "nvmlDeviceGetTotalEccErrors": NOT_SUPPORTED,
            "nvmlDeviceGetRemappedRows": NOT_SUPPORTED,
            "nvmlDeviceGetPcieReplayCounter": NO_PERMISSION,
            "nvmlDeviceRegisterEvents": NOT_SUPPORTED,
        }
    )
    assert gpu_change(monkeypatch, tmp_path, card) == {"unknown": "gpu0.pcie_replays"}


def test_a_lost_gpu_is_named_and_its_counters_are_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = gpu_change(monkeypatch, tmp_path, Card(), lost=True, refuse={"nvmlEventSetWait": GPU_IS_LOST})
    assert found["gpu0.state"] == "ok → lost"
    assert {"gpu0.ecc_uncorrected", "gpu0.throttle", "gpu0.xid"} <= set(str(found["unknown"]).split(","))


def test_every_gpu_has_its_own_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = Card(), Card(uuid="GPU-2")
    fake_nvml.install(monkeypatch, *cards)
    first = health.read(tmp_path)
    cards[1].ecc = [0, 2]
    assert health.changes(first, health.read(tmp_path)) == {"gpu1.ecc_uncorrected": 2}
