"""What NCCL says of itself: logs as its user guide and source write them are understood, anything else breaks nothing; and what
is asked of it before it starts.  No NCCL ran here."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import launch, nccl_log, transport
from clustergauge.errors import UsageError
from clustergauge.model import Link, Planned
from clustergauge.plan import Selection, Suite, Wish, load_probes, plan
from collectives import nccl_path
from tests import made

HEAD = "node-01:631871:631880 [0] NCCL INFO "
LOG = """\
node-01:631871:631871 [0] NCCL INFO NCCL version 2.30.3+cuda13.0
node-01:631871:631880 [0] NCCL INFO NET/Plugin: Loaded net plugin Libfabric (v10)
node-01:631871:631880 [0] NCCL INFO Initialized NET plugin IB
node-01:631871:631880 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.11<0>
node-01:631871:631880 [0] NCCL INFO Using network IB
node-01:631871:631880 [0] NCCL INFO NCCL_P2P_DISABLE set by environment to 1
node-01:631871:631880 [0] NCCL INFO Tree 0 : -1 -> 0 -> 1/-1/-1
node-01:631871:631880 [0] NCCL INFO Ring 00 : 1 -> 0 -> 1
node-01:631871:631880 [0] NCCL INFO Channel 00/02 :    0   1
node-01:631871:631880 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
node-01:631871:631880 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read
node-01:631871:631880 [0] NCCL INFO Channel 02/0 : 0[0] -> 1[1] via P2P/CUMEM
node-01:631871:631880 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct
node-01:631871:631880 [0] NCCL INFO Channel 00/0 : 7[7] -> 8[0] [send] via NET/IB/0/GDRDMA(PCI)/Shared
node-01:631871:631880 [0] NCCL INFO Channel 01/0 : 9[1] -> 1[1] [receive] via NET/IB/1
node-01:631871:631880 [0] NCCL INFO Channel 01 : 2[b1000] -> 6[b1000] [send] via NET/Socket/0
node-01:631871:631880 [0] NCCL INFO Ring 00 : 1[0] -> 0[1] [receive] via NET/IB/0
node-01:631871:631880 [0] NCCL INFO CollNet 00/0 : 0 [send] via COLLNET/SHARP/0/GDRDMA
node-01:631871:631871 [0] NCCL INFO AllReduce: 4 Bytes -> Algo TREE proto LL channel{Lo..Hi}={0..0}
node-01:631871:631871 [0] NCCL INFO AllReduce: 33554432 Bytes -> Algo RING proto SIMPLE channel{Lo..Hi}={0..31}
node-01:631871:631871 [0] NCCL INFO AllGather: 1048576 Bytes -> Algo 1 proto 2 time 123.456001
[2026-05-05 06:16:47] node-01:631871:631871 [3] plugin/net.cc:334 NCCL WARN Failed to initialize any NET plugin
"""


def parsed(text: str) -> nccl_log.Log:
    log = nccl_log.Log()
    log.add(text)
    return log


def test_a_log_as_documented_is_understood() -> None:
    log = parsed(LOG)
    assert (log.version, log.network, log.plugin) == ("2.30.3+cuda13.0", "IB", "Libfabric (v10)")
    assert log.transports == {
        "P2P/CUMEM": 2,
        "P2P/CUMEM/read": 1,
        "SHM/direct/direct": 1,
        "NET/IB/0/GDRDMA(PCI)/Shared": 1,
        "NET/IB/1": 1,
        "NET/Socket/0": 1,
        "NET/IB/0": 1,
        "COLLNET/SHARP/0/GDRDMA": 1,
    }
    assert log.choices == {
        ("AllReduce", 4): ("TREE", "LL"),
        ("AllReduce", 33554432): ("RING", "SIMPLE"),
        ("AllGather", 1048576): ("RING", "SIMPLE"),
    }
    assert log.choice("AllReduce") == ("RING", "SIMPLE")
    assert log.choice("Broadcast") == ("", "")


@pytest.mark.parametrize(
    "line",
    [
        "AllReduce: 33554432 Bytes -> Algo RING proto SIMPLE",  # nobody's line
        HEAD + "AllReduce: -1 Bytes -> Algo RING proto SIMPLE",
        HEAD + "AllReduce: 1 Bytes -> Algo STAR proto SIMPLE",
        HEAD + "AllReduce: 1 Bytes -> Algo 9 proto 2 time 1.0",
        HEAD + "AllReduce: 1 Bytes -> Algo RING proto FAST",
        HEAD + "Channel 00/0 : 0[0] -> 1[1] via \x1b[31mP2P",
        HEAD + "Channel 00/0 : 0[0] -> 1[1]",
        HEAD + "Channel 00/0 : 0[0] -> 1[1] via " + "x" * 500,
        HEAD + "Using network \x1b[2J",
        HEAD + "NCCL version 2.30.3; rm -rf",
    ],
)
def test_a_line_that_does_not_fit_is_left_out(line: str) -> None:
    assert parsed(line) == nccl_log.Log()


def test_no_more_is_kept_than_a_record_can_hold() -> None:
    log = parsed("\n".join(f"{HEAD}Channel 00/0 : 0[0] -> 1[1] via NET/IB/{n}" for n in range(1000)))
    log.add("\n".join(f"{HEAD}AllReduce: {n} Bytes -> Algo RING proto LL" for n in range(1000)))
    assert (len(log.transports), len(log.choices)) == (nccl_log.MOST, nccl_log.MOST)


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser_and_nothing_unprintable_comes_through(text: str) -> None:
    log = parsed("\n".join([text, HEAD + text, f"{HEAD}Channel 00/0 : 0[0] -> 1[1] via {text}", f"{HEAD}Using network {text}"]))
    assert all(word.isprintable() for word in (log.version, log.network, log.plugin, *log.transports))


# -- the file


def test_the_file_is_read_as_it_grows_and_choices_are_those_of_the_case(tmp_path: Path) -> None:
    path = tmp_path / "nccl.1"
    file = transport.NcclFile(path)
    assert file.read() == nccl_log.Log(), "not there yet"
    path.write_text(LOG)
    assert file.read().choice("AllReduce") == ("RING", "SIMPLE")
    with path.open("a") as more:
        more.write(f"{HEAD}AllReduce: 1048576 Bytes -> Algo NVLS proto SIMPLE channel{{Lo..Hi}}={{0..15}}\n")
    log = file.read()
    assert log.choice("AllReduce") == ("NVLS", "SIMPLE")
    assert (log.network, log.transports["P2P/CUMEM"]) == ("IB", 2), "said once, when it connected"


def test_of_an_enormous_file_head_and_tail_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST_READ", 4000)
    path = tmp_path / "nccl.1"
    last = f"{HEAD}AllReduce: 8 Bytes -> Algo RING proto LL\n"
    path.write_text(LOG[:800] + "x\n" * 100_000 + last)
    log = transport.NcclFile(path).read()
    assert (log.version, log.choices) == ("2.30.3+cuda13.0", {("AllReduce", 8): ("RING", "LL")})


def test_a_record_says_what_was_found_and_nothing_else(tmp_path: Path) -> None:
    log = parsed(LOG)
    assert transport.settings(log, Counter({"P2P/CUMEM": 12, "SHM/direct": 3}), "all_reduce") == {
        "nccl_version": "2.30.3+cuda13.0",
        "nccl_network": "IB",
        "nccl_plugin": "Libfabric (v10)",
        "nccl_transports": "P2P/CUMEM ×12, SHM/direct ×3",
        "nccl_algorithm": "RING",
        "nccl_protocol": "SIMPLE",
    }
    assert transport.settings(nccl_log.Log(), Counter(), "all_reduce") == {}


# -- what is asked of it


def cases(gpus: int, nvlink: bool) -> list[Planned]:
    links = [Link(a=0, b=b, kind="nvlink" if nvlink else "pcie") for b in range(1, gpus)]
    suite = Suite(title="t", cases=[Selection(probe="nccl_path", axes={"dtype": ["bf16"], "size": ["1MiB"]})])
    return plan(
        suite, load_probes(["collectives.nccl_path"]), made.machine(gpus=gpus, links=links), Wish(device="cuda", launches=2)
    )


def test_every_path_has_workers_of_its_own() -> None:
    keys = [launch.key_of(p) for p in cases(4, nvlink=True)]
    assert len(keys) == 8
    assert len(set(keys)) == 8
    assert len({key.env for key in keys}) == 4


def test_cases_of_one_path_follow_each_other() -> None:
    suite = Suite(title="t", cases=[Selection(probe="nccl_path", axes={"size": [size]}) for size in ("1MiB", "1GiB")])
    machine = made.machine(gpus=2, links=[Link(a=0, b=1, kind="nvlink")])
    keys = [launch.key_of(p) for p in plan(suite, load_probes(["collectives.nccl_path"]), machine, Wish(device="cuda"))]
    assert sum(a != b for a, b in itertools.pairwise(keys)) == 3


def test_nvlink_is_not_asked_of_gpus_without_it() -> None:
    assert {p.params["path"]: p.skip for p in cases(4, nvlink=False) if "NVLink" in p.skip} == {
        "nvlink": "no NVLink between all GPUs"
    }
    assert not any("NVLink" in p.skip for p in cases(4, nvlink=True))


def test_the_environment_is_there_before_the_workers_are(tmp_path: Path) -> None:
    machine = made.machine(gpus=2)
    for planned in cases(2, nvlink=True):
        key = launch.key_of(planned)
        env = launch.start_message(key, machine, tmp_path, launch.Means()).env
        assert env | nccl_path.PATHS[str(planned.params["path"])] == env
        assert env["NCCL_DEBUG_FILE"] == str(tmp_path / "nccl-debug.%h.%p")
        assert env["NCCL_DEBUG_SUBSYS"].endswith(",TUNING")
    plain = launch.start_message(launch.PoolKey("torch", False, 2, "cuda:all", 0), machine, tmp_path, launch.Means()).env
    assert "TUNING" not in plain["NCCL_DEBUG_SUBSYS"], "nothing is noted while other cases are timed"
    cpu = launch.start_message(launch.PoolKey("torch", False, 2, "cpu:0", 0), machine, tmp_path, launch.Means()).env
    assert not any(name.startswith("NCCL_") for name in cpu)


def test_what_forces_a_path_is_all_that_a_run_folder_may_ask_for() -> None:
    for planned in cases(2, nvlink=True):
        assert all(launch.is_choice(name, value) for name, value in planned.env.items())
    for name, value in (("LD_PRELOAD", "x"), ("NCCL_NET_PLUGIN", "x"), ("NCCL_P2P_LEVEL", "/x"), ("NCCL_DEBUG_FILE", "x")):
        assert not launch.is_choice(name, value)


def test_a_run_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    import run_suite
    from verbs.cases import check_trust

    options = run_suite.make_parser().parse_args(["run", "-o", str(tmp_path)])
    bad = msgspec.structs.replace(cases(2, nvlink=True)[0], env={"LD_PRELOAD": "evil.so"})
    with pytest.raises(UsageError, match="LD_PRELOAD"):
        check_trust(made.run([]), [bad], options, tmp_path, {})
