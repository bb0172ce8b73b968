"""Placement: shares are equal, inside the allowed set, and beside the GPU; kernel lists are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from clustergauge.model import Cpu, Gpu, Machine, Nic
from clustergauge.placement import format_cpus, nearest_nic, parse_cpus, place
from tests.trees import pci, processors


def made_up(allowed: str, gpus: list[Gpu] | None = None, nics: list[Nic] | None = None, **numa: str) -> Machine:
    """A machine with these processors; memory nodes as ``n0="0-7"``."""
    cpus = len(parse_cpus(allowed))
    nodes = {name[1:]: members for name, members in numa.items()}
    cpu = Cpu(model="made up", cores=cpus, threads=cpus, allowed=allowed, numa=nodes)
    return Machine(machine_id="m", host="made-up", cpu=cpu, memory_bytes=1, gpus=gpus or [], nics=nics or [])


def gpu(index: int, cpus: str = "", numa: int | None = None, pci: str = "") -> Gpu:
    return Gpu(index=index, name="G", uuid=f"GPU-{index}", cpus=cpus, numa=numa, pci=pci)


# -- kernel lists


@pytest.mark.parametrize(
    ("text", "cpus"), [("", set()), ("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("7,0-1", {0, 1, 7}), ("0-2,1-3", {0, 1, 2, 3})]
)
def test_kernel_lists_are_read(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "0 ",
        "0, 1",
        ",",
        "0,",
        ",0",
        "-1",
        "1-",
        "3-1",
        "0x1",
        "+1",
        "1.0",
        "0-15:2/4",
        "a",
        "0--1",
        "65536",
        "0-999999",
        "٣",
        "1\n",
    ],
)
def test_what_is_no_kernel_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="range"):
        parse_cpus(text)


@given(st.sets(st.integers(0, 65535), max_size=50))
def test_lists_survive_the_round_trip(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


@given(st.text(alphabet="0123456789-, ", max_size=20))
def test_any_text_is_a_set_or_an_error(text: str) -> None:
    try:
        cpus = parse_cpus(text)
    except ValueError:
        return
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_lists_are_as_short_as_the_kernel_writes_them() -> None:
    assert format_cpus([8, 3, 2, 1, 0, 10]) == "0-3,8,10"


# -- processors


def cpus_of(machine: Machine, ranks: int, sys: Path) -> list[str]:
    return [p.cpus for p in place(machine, ranks, "cpu", sys)]


def test_threads_of_a_core_stay_together(tmp_path: Path) -> None:
    processors(tmp_path, cores=[[n, n + 4] for n in range(4)])
    machine = made_up("0-7")
    assert cpus_of(machine, 4, tmp_path / "sys") == ["0,4", "1,5", "2,6", "3,7"]
    assert cpus_of(machine, 2, tmp_path / "sys") == ["0-1,4-5", "2-3,6-7"]
    assert cpus_of(machine, 3, tmp_path / "sys") == ["0,4", "1,5", "2-3,6-7"]


def test_a_thread_that_is_not_allowed_is_left_out(tmp_path: Path) -> None:
    processors(tmp_path, cores=[[n, n + 4] for n in range(4)])
    assert cpus_of(made_up("1-3,5"), 3, tmp_path / "sys") == ["1,5", "2", "3"]


def test_ranks_beyond_the_cores_share_them_in_turn(tmp_path: Path) -> None:
    assert cpus_of(made_up("2-3"), 5, tmp_path) == ["2", "2", "2", "3", "3"]


def test_ranks_fill_one_memory_node_after_the_other(tmp_path: Path) -> None:
    machine = made_up("0-7", n0="0,2,4,6", n1="1,3,5,7")
    assert cpus_of(machine, 2, tmp_path) == ["0,2,4,6", "1,3,5,7"]
    assert cpus_of(machine, 4, tmp_path) == ["0,2", "4,6", "1,3", "5,7"]


@settings(max_examples=60)
@given(st.sets(st.integers(0, 40), min_size=1), st.integers(1, 50))
def test_every_rank_has_processors_inside_the_allowed_set_and_none_is_wasted(allowed: set[int], ranks: int) -> None:
    shares = [parse_cpus(p.cpus) for p in place(made_up(format_cpus(allowed)), ranks, "cpu", Path("/nowhere"))]
    assert len(shares) == ranks
    assert all(share and share <= allowed for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if ranks <= len(allowed):
        assert set().union(*shares) == allowed
        assert sum(sizes) == len(allowed)


@pytest.mark.parametrize(("ranks", "kind"), [(0, "cpu"), (-1, "cpu"), (1, "cuda")])
def test_what_cannot_be_placed_is_an_error(ranks: int, kind: str) -> None:
    with pytest.raises(ValueError, match="cannot place"):
        place(made_up("0-3"), ranks, kind)  # type: ignore[arg-type]


# -- GPUs


def test_gpus_that_share_processors_divide_them(tmp_path: Path) -> None:
    gpus = [gpu(0, "0-7", 0), gpu(1, "0-7", 0), gpu(2, "8-15", 1), gpu(3, "8-15", 1)]
    places = place(made_up("0-15", gpus, n0="0-7", n1="8-15"), 4, "cuda", tmp_path)
    assert [(p.rank, p.device, p.cpus) for p in places] == [
        (0, "cuda:0", "0-3"),
        (1, "cuda:1", "4-7"),
        (2, "cuda:2", "8-11"),
        (3, "cuda:3", "12-15"),
    ]


def test_a_gpu_stays_inside_the_allowed_set(tmp_path: Path) -> None:
    gpus = [gpu(0, "0-7"), gpu(1, "8-15")]
    assert [p.cpus for p in place(made_up("4-7,12-13", gpus), 2, "cuda", tmp_path)] == ["4-7", "12-13"]


def test_a_gpu_with_no_allowed_processor_beside_it_takes_what_there_is(tmp_path: Path) -> None:
    gpus = [gpu(0, "0-7"), gpu(1, "64-71")]
    places = place(made_up("0-3", gpus), 2, "cuda", tmp_path)
    assert [p.cpus for p in places] == ["0-1", "2-3"]


def test_a_gpu_without_known_processors_goes_by_its_memory_node(tmp_path: Path) -> None:
    gpus = [gpu(0, "", 1), gpu(1, "not a list", 0), gpu(2)]
    places = place(made_up("0-3", gpus, n0="0-1", n1="2-3"), 2, "cuda", tmp_path)
    assert [p.cpus for p in places] == ["2-3", "0-1"]


def test_gpus_whose_processors_overlap_in_part_share_them(tmp_path: Path) -> None:
    gpus = [gpu(0, "0-3"), gpu(1, "2-5")]
    assert [p.cpus for p in place(made_up("0-7", gpus), 2, "cuda", tmp_path)] == ["0-3", "2-5"]


def test_more_ranks_than_gpus_are_dealt_again_and_more_gpus_than_cores_still_have_one(tmp_path: Path) -> None:
    gpus = [gpu(0, "0-1"), gpu(1, "0-1")]
    places = place(made_up("0-1", gpus), 4, "cuda", tmp_path)
    assert [(p.device, p.cpus) for p in places] == [("cuda:0", "0"), ("cuda:1", "0"), ("cuda:0", "1"), ("cuda:1", "1")]


# -- NICs


def nic(name: str, pci: str = "", numa: int | None = None, state: str = "active", rate: float = 400.0) -> Nic:
    return Nic(name=name, kind="infiniband", state=state, rate_gbit_s=rate, pci=pci, numa=numa)


def test_the_nic_under_the_same_switch_is_the_nearest(tmp_path: Path) -> None:
    pci(tmp_path, "0000:17:00.0", under="0000:15:01.0/0000:16:00.0")
    pci(tmp_path, "0000:18:00.0", under="0000:15:01.0/0000:16:01.0")
    pci(tmp_path, "0000:48:00.0", under="0000:45:01.0")
    near, far = nic("near", "0000:18:00.0", 0, rate=100.0), nic("far", "0000:48:00.0", 0)
    own = gpu(0, numa=0, pci="0000:17:00.0")
    assert nearest_nic(own, [far, near], tmp_path / "sys") == near
    assert nearest_nic(own, [far, nic("near", "0000:18:00.0", 0, state="down")], tmp_path / "sys") == far


def test_without_a_known_bus_the_memory_node_decides_and_equals_take_turns(tmp_path: Path) -> None:
    ports = [nic("a", numa=0), nic("b", numa=0), nic("c", numa=1)]
    chosen = [nearest_nic(gpu(n, numa=n // 2), ports, None) for n in range(4)]
    assert [n.name if n else "" for n in chosen] == ["a", "b", "c", "c"]
    places = place(made_up("0-3", [gpu(n, numa=n // 2) for n in range(4)], ports), 4, "cuda", tmp_path)
    assert [p.nic for p in places] == ["a", "b", "c", "c"]


def test_without_ports_there_is_none() -> None:
    assert nearest_nic(gpu(0), [], None) is None
    assert nearest_nic(gpu(0, numa=0), [nic("x", state="down", numa=0)], None) is None
