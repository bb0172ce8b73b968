"""States of links: strict parsing; what trained down is found and fails, what only looks like it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import accept, exits, gpu_links, health, inventory, links, nvml, preflight_links, verdicts
from clustergauge.links import Rate
from clustergauge.model import Counters, Finding, Link, Machine, Nic
from tests import fake_nvml, made
from tests.fabric import adapter, ethernet
from tests.fake_nvml import Card
from tests.trees import pci, write


@pytest.fixture(autouse=True)
def _no_gpu_left_behind() -> Iterator[None]:
    yield
    fake_nvml.forget()


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100 Gb/sec (4X EDR)", Rate(100, 4, "EDR")),
        ("200 Gb/sec (2X NDR)", Rate(200, 2, "NDR")),
        ("2.5 Gb/sec (1X SDR)", Rate(2.5, 1, "SDR")),
        ("40 Gb/sec (4X FDR10)", Rate(40, 4, "FDR10")),
        ("400 Gb/sec (8X HDR)", Rate(400, 8, "HDR")),
        ("10 Gb/sec (4X)", Rate(10, 4, "")),
        ("25 Gb/sec", Rate(25, 0, "")),
        *((text, None) for text in ("", None, "0 Gb/sec", "100", "100 Gb/sec (4X EDR) x", "-5 Gb/sec", "1e3 Gb/sec", "100 Gb/s")),
    ],
)
def test_rates_are_parsed_strictly(text: str | None, rate: Rate | None) -> None:
    assert links.parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "speed"),
    [("16.0 GT/s PCIe", 16), ("2.5 GT/s PCIe", 2.5), ("8 GT/s", 8), ("Unknown", None), ("Unknown speed", None), ("", None)],
)
def test_pcie_speeds_are_parsed_strictly(text: str, speed: float | None) -> None:
    assert links.parse_pcie_speed(text) == speed


@pytest.mark.parametrize(
    ("text", "width"), [("16", 16), ("x8", 8), ("0", None), ("255", None), ("63", None), ("x", None), (None, None)]
)
def test_widths_are_parsed_strictly(text: str | None, width: int | None) -> None:
    assert links.parse_width(text) == width


@given(st.text(max_size=40))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (links.parse_rate, links.parse_pcie_speed, links.parse_width):
        parse(text)
    links.fell({"a.rate": text, "b.pcie_width": f"{text} → {text}"})


# -- ports


def found(root: Path, **more: object) -> dict[str, bool]:
    """Findings that are no praise: name → whether it fails."""
    machine = made.machine(**more)  # type: ignore[arg-type]
    return {f.name: f.fails for f in preflight_links.findings(machine, root, []) if f.state == "warning"}


def test_a_port_with_half_the_lanes_of_its_peer_fails(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0")
    adapter(tmp_path, "mlx5_1", rate="200 Gb/sec (2X NDR)")
    assert found(tmp_path) == {"link/mlx5_1:1": True}
    (finding,) = preflight_links.findings(made.machine(), tmp_path, [])
    assert finding.detail == "mlx5_1:1 trained down: 200 Gb/sec (2X NDR), mlx5_0:1 has 400 Gb/sec (4X NDR)"


@pytest.mark.parametrize(
    ("rate", "fails"),
    [
        ("25 Gb/sec (1X EDR)", True),
        ("50 Gb/sec (2X EDR)", True),
        ("50 Gb/sec (1X HDR)", True),
        ("100 Gb/sec (2X HDR)", False),
        ("200 Gb/sec (2X NDR)", False),
        ("100 Gb/sec (4X EDR)", False),
    ],
)
def test_a_port_alone_fails_with_fewer_lanes_than_such_ports_are_sold_with(tmp_path: Path, rate: str, fails: bool) -> None:
    adapter(tmp_path, "mlx5_0", rate=rate)
    assert found(tmp_path) == ({"link/mlx5_0:1": True} if fails else {})


def test_lanes_of_ethernet_say_nothing(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", rate="25 Gb/sec (1X EDR)", layer="Ethernet")
    assert found(tmp_path) == {}


def test_a_slower_port_fails_where_most_of_its_board_are_faster_and_is_named_where_not(tmp_path: Path) -> None:
    for number in range(3):
        adapter(tmp_path, f"mlx5_{number}")
    adapter(tmp_path, "mlx5_3", rate="200 Gb/sec (4X HDR)")
    assert found(tmp_path) == {"link/mlx5_3:1": True}
    for number in (1, 2):
        write(tmp_path, f"sys/class/infiniband/mlx5_{number}/ports/1/rate", "200 Gb/sec (4X HDR)\n")
    assert found(tmp_path) == {f"link/mlx5_{number}:1": False for number in (1, 2, 3)}


def test_fewer_lanes_of_a_faster_kind_are_no_loss(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", rate="100 Gb/sec (4X EDR)")
    adapter(tmp_path, "mlx5_1", rate="100 Gb/sec (2X HDR)")
    assert found(tmp_path) == {}


def test_ports_of_another_board_or_layer_are_no_peers(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0")
    adapter(tmp_path, "mlx5_1", rate="200 Gb/sec (2X NDR)", board="MT_0000000834")
    adapter(tmp_path, "mlx5_2", rate="200 Gb/sec (2X NDR)", layer="Ethernet")
    assert found(tmp_path) == {}


@pytest.mark.parametrize(
    ("ups", "words"), [(0, "and has no peer here"), (1, "1 of its 1 peers are up"), (2, "2 of its 2 peers are up")]
)
def test_an_infiniband_port_that_is_down_is_named(tmp_path: Path, ups: int, words: str) -> None:
    adapter(tmp_path, "mlx5_9", state="1: DOWN", rate="10 Gb/sec (4X SDR)")
    for number in range(ups):
        adapter(tmp_path, f"mlx5_{number}")
    assert found(tmp_path) == {"link/mlx5_9:1": False}
    (finding,) = preflight_links.findings(made.machine(), tmp_path, [])
    assert finding.detail == f"mlx5_9:1 is down, {words}"


def test_an_ethernet_port_that_is_down_is_named_among_many_and_is_spare_beside_one(tmp_path: Path) -> None:
    for number, state in enumerate(("1: DOWN", "4: ACTIVE")):
        adapter(tmp_path, f"mlx5_{number}", state=state, layer="Ethernet")
    board = pci(tmp_path, "0000:09:00.0", vendor="0x8086", device="0x1592")
    ethernet(tmp_path, "eth9", 0, 0, device=board, state="down")
    assert found(tmp_path) == {}
    adapter(tmp_path, "mlx5_2", layer="Ethernet")
    assert found(tmp_path) == {"link/mlx5_0:1": False}


def test_a_port_that_is_down_where_most_machines_have_it_up_fails() -> None:
    def machines(*states: str, kind: str = "infiniband") -> list[Machine]:
        nics = [Nic(name="mlx5_0", kind=kind, state=state) for state in states]  # type: ignore[arg-type]
        return [made.machine(host=f"n{i}", machine_id=f"m{i}", nics=[nic]) for i, nic in enumerate(nics)]

    (verdict,) = inventory.trained_down(machines(*["active"] * 7, "down"))
    assert (verdict.verdict, verdict.machine_id, verdict.case) == ("FAIL", "m7", "link/mlx5_0")
    assert verdict.reason == "n7's mlx5_0 is down, on 7 of 8 machines it is active; look at cable and switch port"
    assert inventory.trained_down(machines("active", "down")) == []  # which of two is meant to be?
    assert inventory.trained_down(machines("down", "down", "active")) == []  # spare
    assert inventory.trained_down(machines("active", "active", "")) == []  # not known
    assert inventory.trained_down(machines("up", "up", "down", kind="ethernet")) == []


def test_a_state_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", rate="?")
    assert [f.state for f in preflight_links.findings(made.machine(), tmp_path, [])] == ["unknown"]


def test_ethernet_ports_are_held_against_their_peers(tmp_path: Path) -> None:
    for number, speed in enumerate(("100000", "100000", "25000")):
        board = pci(tmp_path, f"0000:0{number + 1}:00.0", vendor="0x8086", device="0x1592")
        ethernet(tmp_path, f"eth{number}", 0, 0, speed=speed, device=board)
    assert found(tmp_path) == {"link/eth2": True}


def test_a_port_with_rdma_over_ethernet_is_named_once(tmp_path: Path) -> None:
    for number, (rate, speed) in enumerate((("100 Gb/sec (4X EDR)", "100000"),) * 2 + (("25 Gb/sec (1X EDR)", "25000"),)):
        bus = f"0000:0{number + 1}:00.0"
        adapter(tmp_path, f"mlx5_{number}", rate=rate, layer="Ethernet", bus=bus)
        ethernet(tmp_path, f"eth{number}", 0, 0, speed=speed, device=f"sys/devices/pci0000:00/{bus}")
    assert found(tmp_path) == {"link/mlx5_2:1": True}


def test_a_machine_without_links_has_no_finding_and_a_sound_one_says_so(tmp_path: Path) -> None:
    assert preflight_links.findings(made.machine(), tmp_path, []) == []
    adapter(tmp_path, "mlx5_0")
    assert [f.state for f in preflight_links.findings(made.machine(), tmp_path, [])] == ["ok"]


# -- PCI

LESSER = {"max_link_width": "8", "max_link_speed": "16.0 GT/s PCIe"}
GEN5 = {"max_link_width": "16", "max_link_speed": "32.0 GT/s PCIe"}


@pytest.mark.parametrize(
    ("card", "slot", "detail"),
    [
        ({"current_link_width": "8", "current_link_speed": "32.0 GT/s PCIe"}, GEN5, "x8 of x16"),
        ({"current_link_width": "16", "current_link_speed": "16.0 GT/s PCIe"}, GEN5, "16 of 32 GT/s"),
        ({"current_link_width": "16", "current_link_speed": "32.0 GT/s PCIe"}, GEN5, ""),
        ({"current_link_width": "8", "current_link_speed": "16.0 GT/s PCIe"}, LESSER, ""),
        ({"current_link_width": "0", "current_link_speed": "Unknown"}, GEN5, ""),
        ({}, {}, ""),
    ],
    ids=["narrow", "slow", "sound", "lesser slot", "virtual function", "no such files"],
)  # fmt: skip
def test_a_card_below_itself_and_its_slot_fails(tmp_path: Path, card: dict[str, str], slot: dict[str, str], detail: str) -> None:
    pci(tmp_path, "0000:16:01.0", **slot)
    pci(tmp_path, "0000:17:00.0", under="0000:16:01.0", **GEN5, **card)
    nics = [Nic(name="mlx5_0", kind="infiniband", state="active", pci="0000:17:00.0")]
    warned = [f for f in preflight_links.findings(made.machine(nics=nics), tmp_path, []) if f.state == "warning"]
    assert [(f.name, f.fails) for f in warned] == ([("link/mlx5_0.pcie", True)] if detail else [])
    assert all(f.detail.endswith(f"trained down: {detail}") for f in warned)


def test_a_gpu_that_idles_slowly_did_not_train_down_but_a_narrow_one_did(tmp_path: Path) -> None:
    pci(tmp_path, "0000:17:00.0", **GEN5, current_link_width="16", current_link_speed="2.5 GT/s PCIe")
    gpus = [msgspec.structs.replace(made.machine(gpus=1).gpus[0], pci="0000:17:00.0")]
    machine = msgspec.structs.replace(made.machine(), gpus=gpus)
    assert [f.state for f in preflight_links.findings(machine, tmp_path, [])] == ["ok"]
    write(tmp_path, "sys/devices/pci0000:00/0000:17:00.0/current_link_width", "8\n")
    assert [f.fails for f in preflight_links.findings(machine, tmp_path, [])] == [True]


# -- NVLink

FOUR = {n: [0, 0, 0, 0] for n in range(4)}
BUSES = ("00000000:17:00.0", "00000000:2A:00.0")


def test_gpus_over_a_switch_reach_each_other_with_all_their_links(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml.install(monkeypatch, *(Card(bus=b, uuid=b, links=FOUR, switched=True) for b in BUSES))
    assert gpu_links.between(nvml.devices()) == [Link(a=0, b=1, kind="nvlink", lanes=4, ancestor="system", p2p="ok")]


def test_gpus_joined_by_wires_count_those_that_lead_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [Card(bus=b, uuid=b, links=FOUR, wires={0: o, 1: o}) for b, o in (BUSES, BUSES[::-1])]
    fake_nvml.install(monkeypatch, *cards)
    assert [(link.kind, link.lanes) for link in gpu_links.between(nvml.devices())] == [("nvlink", 2)]


def test_gpus_without_nvlink_have_what_they_share_on_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml.install(monkeypatch, *(Card(bus=b, uuid=b) for b in ("00000000:17:00.0", "00000000:17:00.1")))
    assert gpu_links.between(nvml.devices()) == [Link(a=0, b=1, kind="pcie", ancestor="single switch", p2p="ok")]


def test_what_nvml_does_not_offer_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = dict.fromkeys(("nvmlDeviceGetP2PStatus", "nvmlDeviceGetTopologyCommonAncestor"), 3)
    fake_nvml.install(monkeypatch, *(Card(bus=b, uuid=b, refuse=refuse) for b in BUSES))
    (link,) = gpu_links.between(nvml.devices())
    assert (link.lanes, link.ancestor, link.p2p) == (None, "", "")


def test_a_gpu_with_fewer_links_up_than_its_peers_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(
        monkeypatch,
        Card(links=FOUR),
        Card(uuid="b", links=FOUR, down={3}),
        Card(uuid="c", name="another", links=FOUR, down={0, 1}),
    )
    warned = preflight_links.findings(made.machine(), tmp_path)
    assert [(f.name, f.fails, f.detail) for f in warned] == [
        ("link/gpu1.nvlink", True, "GPU 1 has 3 NVLinks up, others of its kind 4")
    ]  # fmt: skip


# -- verdicts


def test_a_finding_that_fails_is_a_failed_criterion_whatever_was_measured(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", rate="25 Gb/sec (1X EDR)")
    other = [Finding(name="governor", state="warning", detail="powersave", remedy="change it")]
    machine = made.machine(findings=[*preflight_links.findings(made.machine(), tmp_path, []), *other])
    found = verdicts.judge([made.record()], [], {"m1": machine})
    assert [(v.case, v.machine_id, v.verdict) for v in found] == [
        ("matmul", "m1", "unreferenced"),
        ("link/mlx5_0:1", "m1", "FAIL"),
    ]
    assert exits.exit_code([made.record()], found) == exits.FAILED


@pytest.mark.parametrize(
    ("name", "change", "fails"),
    [
        ("mlx5_0:1.rate", "400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)", True),
        ("mlx5_0:1.rate", "200 Gb/sec (2X NDR) → 400 Gb/sec (4X NDR)", False),
        ("mlx5_0:1.pcie_width", "16 → 8", True),
        ("eth0.pcie_speed", "16.0 GT/s PCIe → 8.0 GT/s PCIe", True),
        ("gpu0.pcie_width", "x16 → x8", True),
        ("gpu0.nvlinks_up", "18 → 17", True),
        ("mlx5_0:1.state", "4: ACTIVE → 1: DOWN", False),
        ("mlx5_0:1.link_downed", 1, False),
        ("mlx5_0:1.rate", "400 Gb/sec (4X NDR) → absent", False),
    ],
)
def test_a_link_that_trains_down_during_a_case_fails_it(name: str, change: str | int, fails: bool) -> None:
    judged = accept.judge([made.record(counters=Counters(health={name: change}))])
    assert [v.verdict for v in judged] == (["FAIL", "unreferenced"] if fails else ["unreferenced"])


def test_width_and_speed_of_a_port_are_read_before_and_after_every_case(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", bus="0000:17:00.0", port_xmit_data=0, rx_drops=0)
    folder = "sys/devices/pci0000:00/0000:17:00.0"
    write(tmp_path, f"{folder}/current_link_width", "16\n")
    write(tmp_path, f"{folder}/current_link_speed", "32.0 GT/s PCIe\n")
    before = health.read(tmp_path)
    write(tmp_path, f"{folder}/current_link_width", "8\n")
    write(tmp_path, "sys/class/infiniband/mlx5_0/ports/1/hw_counters/rx_drops", "3\n")
    assert health.changes(before, health.read(tmp_path)) == {"mlx5_0:1.pcie_width": "16 → 8", "mlx5_0:1.rx_drops": 3}
