"""Bytes that ports moved, from made-up trees in the formats of kernel and drivers, and from a mock of NVML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clustergauge import nvml, traffic
from tests import fake_nvml
from tests.fabric import EFA, adapter, count, ethernet
from tests.fake_nvml import NO_PERMISSION, Card
from tests.trees import write


@pytest.fixture(autouse=True)
def _no_gpu_left_behind() -> Iterator[None]:
    yield
    fake_nvml.forget()


def test_interfaces_count_bytes_and_what_rests_on_others_says_so(tmp_path: Path) -> None:
    ethernet(tmp_path, "lo", 100, 100)
    ethernet(tmp_path, "eth0", 7, 9)
    ethernet(tmp_path, "bond0", 7, 9)
    (tmp_path / "sys/class/net/bond0/lower_eth0").mkdir()
    assert traffic.read(tmp_path, []) == {
        "lo.tx_bytes": 100,
        "lo.rx_bytes": 100,
        "eth0.tx_bytes": 7,
        "eth0.rx_bytes": 9,
        "stacked.bond0.tx_bytes": 7,
        "stacked.bond0.rx_bytes": 9,
    }


@pytest.mark.parametrize(
    ("counters", "tx", "rx"),
    [
        ({"port_xmit_data": 1000, "port_rcv_data": 500}, 4000, 2000),  # in units of four octets
        ({"port_xmit_data": 1, "port_rcv_data": 2, "tx_roce_only_bytes": 90, "rx_roce_only_bytes": 80, "tx_bytes": 5}, 90, 80),
        ({"tx_bytes": 55, "rx_bytes": 44}, 55, 44),
        ({"hw_tx_bytes_cnt": 3, "hw_rx_bytes_cnt": 4}, 3, 4),
        (dict(zip(EFA, (1, 2, 10, 20, 200, 100), strict=True)) | {"tx_bytes": 9, "rx_bytes": 9}, 111, 222),
        (dict(zip([n for n in EFA if "write" not in n], (1, 2, 200, 100), strict=True)), 101, 202),
    ],
    ids=["infiniband", "broadcom", "plain", "erdma", "efa", "efa without rdma write"],
)
def test_every_kind_of_adapter_has_its_own_counters(tmp_path: Path, counters: dict[str, int], tx: int, rx: int) -> None:
    adapter(tmp_path, "mlx5_0", **counters)
    assert traffic.read(tmp_path, []) == {"mlx5_0:1.tx_bytes": tx, "mlx5_0:1.rx_bytes": rx}


@pytest.mark.parametrize("content", ["", "N/A (no PMA)", "-1", str(2**32 - 1), str(2**64 - 1)])
def test_a_counter_that_cannot_be_read_or_has_reached_its_end_is_absent(tmp_path: Path, content: str) -> None:
    folder = adapter(tmp_path, "mlx5_0", port_xmit_data=0, port_rcv_data=1)
    write(tmp_path, f"{folder}/counters/port_xmit_data", content)
    assert traffic.read(tmp_path, []) == {"mlx5_0:1.rx_bytes": 4}


def test_what_moved_is_the_difference_and_a_counter_that_fell_or_came_is_absent(tmp_path: Path) -> None:
    for name in ("eth0", "eth1"):
        ethernet(tmp_path, name, 10, 10)
    before = traffic.read(tmp_path, [])
    count(tmp_path, "eth0", 15, 10)
    count(tmp_path, "eth1", 3, 11)
    ethernet(tmp_path, "eth2", 50, 50)
    moved = traffic.moved(before, traffic.read(tmp_path, []))
    assert moved == {"eth0.tx_bytes": 5, "eth0.rx_bytes": 0, "eth1.rx_bytes": 1}


def test_nvlinks_count_kib_of_all_links_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = 2**32 - 1
    fake_nvml.install(monkeypatch, Card(fields={(138, every): 3, (139, every): 5}), Card(uuid="GPU-2"))
    assert traffic.read(tmp_path) == {"gpu0.nvlink.tx_bytes": 3072, "gpu0.nvlink.rx_bytes": 5120}


def test_nvlinks_of_the_fifth_generation_count_bytes_link_by_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    links = {n: [0, 0, 0, 0] for n in range(3)}
    card = Card(links=links, down={2}, fields={(202, 0): 10, (202, 1): 20, (204, 0): 1})
    fake_nvml.install(monkeypatch, card)
    assert traffic.read(tmp_path) == {"gpu0.nvlink.tx_bytes": 30}, "the second link does not say what it received"


def test_a_gpu_that_will_not_tell_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(monkeypatch, Card(fields={(138, 2**32 - 1): 3}, refuse={"nvmlDeviceGetFieldValues": NO_PERMISSION}))
    assert traffic.read(tmp_path, nvml.devices()) == {}
