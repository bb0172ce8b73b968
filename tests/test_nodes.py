"""Several nodes, all real but for the network: agents, workers and launchers on this machine, under names of their own.

``tests/faults/remote.sh`` stands in for ssh; `test_netns` has the same over hosts with networks of their own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from clustergauge import code
from clustergauge.agent import STATE_CHECK_S
from tests import nodes
from tests.test_addresses import needs_ipv6

NAMES = ("na", "nb")


@pytest.fixture(scope="module")
def team():
    """Two nodes under one supervisor."""
    fleet = nodes.fleet(NAMES)
    assert not fleet.left_out, fleet.left_out
    supervisor, crew = nodes.team_of(fleet)
    yield supervisor, crew, fleet.desk
    supervisor.close()
    fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []


@pytest.mark.parametrize(("world", "each"), [("mpi", 2), ("torch", 1)])
def test_a_pool_spans_nodes(team, world, each):
    supervisor, crew, _ = team
    result = nodes.run(supervisor, "well", world, ranks=2 * each)
    assert result.outcome.status == "ok", result
    assert [(place.rank, place.host) for place in result.where] == list(enumerate(["na"] * each + ["nb"] * each))
    assert not crew.lost


@needs_ipv6
def test_nodes_may_have_no_ipv4_between_them():
    """All is called over the loopback's IPv6 address, ranks meet there, and MPI's launcher, which has none, is relayed."""
    fleet = nodes.fleet(NAMES, address="[::1]")
    assert not fleet.left_out, fleet.left_out
    supervisor, crew = nodes.team_of(fleet)
    try:
        assert [(site.address, site.interface) for site in crew.sites] == [("::1", "lo")] * 2
        for world in ("torch", "mpi"):
            result = nodes.run(supervisor, "well", world)
            assert result.outcome.status == "ok", result
            assert [place.host for place in result.where] == list(NAMES)
        result = nodes.run(supervisor, "kill", "mpi")
        assert "rank 1 on nb" in result.outcome.reason
    finally:
        supervisor.close()
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []


def test_nodes_are_who_we_called_whatever_they_call_themselves():
    """Everything of a node bears the name that the user gave it: places, ports, words; its own is kept beside that."""
    fleet = nodes.fleet(NAMES, remote="env CLUSTERGAUGE_HOST=its-own-{host} sh -c {command}")
    try:
        assert not fleet.left_out, fleet.left_out
        assert {n: (x.host, x.node, x.calls_itself) for n, x in fleet.machines.items()} == {
            name: (name, name, f"its-own-{name}") for name in NAMES
        }
        alone = nodes.run(fleet.supervisors["na"], "well", "mpi", nodes=1)
        assert [place.host for place in alone.where] == ["na", "na"], alone
        supervisor, _ = nodes.team_of(fleet)
        try:
            for world in ("torch", "mpi"):
                result = nodes.run(supervisor, "well", world)
                assert [place.host for place in result.where] == list(NAMES), result
                assert {port.partition("/")[0] for port in result.facts.path} == set(NAMES)
            assert "rank 1 on nb" in nodes.run(supervisor, "kill", "torch").outcome.reason
        finally:
            supervisor.close()
    finally:
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []


FAULTS = [
    ("raise", "run", "rank 1: RuntimeError: planned failure"),
    ("kill", "run", "rank 1 on nb"),
    ("exit0", "run", "rank 1 on nb"),
    ("stop", "run", "rank 1 on nb is stopped (SIGSTOP or a debugger) in phase 'measure'"),
    ("hang", "check", "rank 1 on nb in phase 'check'"),
]


@pytest.mark.parametrize(
    ("world", "how", "phase", "words"),
    sorted([("mpi" if n % 2 else "torch", *fault) for n, fault in enumerate(FAULTS[:-1])], key=lambda row: row[0] == "mpi")
    + [pytest.param("torch", *FAULTS[-1], marks=pytest.mark.slow)]  # to see that one hangs takes longest
    + [pytest.param("torch" if n % 2 else "mpi", *fault, marks=pytest.mark.slow) for n, fault in enumerate(FAULTS)],
)
def test_the_rank_at_fault_is_named_with_its_host(team, world, how, phase, words):
    supervisor, crew, desk = team
    result = nodes.run(supervisor, how, world, phase)
    assert result.outcome.status == "error"
    assert words in result.outcome.reason
    if how == "hang":
        assert "rank 0 on na, pid" in result.log  # the stacks of all ranks of all nodes
        assert "rank 1 on nb, pid" in result.log
    assert not crew.lost
    if how in ("kill", "stop"):
        assert nodes.workers_left(desk.token, 10, ("clustergauge.worker", "mpiexec")) == []


def test_the_key_is_in_no_command_line_and_no_environment(team):
    _, _, desk = team
    key = desk._key.hex()
    seen = [nodes._command(p.pid) + nodes._trace(p.pid) for p in nodes._all()]
    assert any("clustergauge.agent -" in text for text in seen)
    assert not any(key in text for text in seen)


@pytest.mark.slow
def test_an_agent_that_is_lost_costs_its_node_and_the_case(team):
    """The last test of this team: an agent is killed while a case runs on both nodes."""
    fleet = nodes.fleet(("na", "nb", "nc"))
    supervisor, crew = nodes.team_of(fleet)
    try:
        assert nodes.run(supervisor, "well", "torch", ranks=3, nodes=3).outcome.status == "ok"
        scratch = next(site.scratch for site in crew.sites if site.name == "nc")
        victim = int((scratch / "agent.pid").read_text())
        killing = threading.Thread(target=kill_in_phase, args=(victim, scratch, b"check"))
        killing.start()
        result = nodes.run(supervisor, "hang", "torch", "check", ranks=3, nodes=3, timeout_s=60)
        killing.join()
        assert result.outcome.status == "error"
        assert "node nc is lost" in result.outcome.reason
        assert "rank 2 on nc went with it, last heard of in phase 'check', the others were in phase" in result.outcome.reason
        assert list(crew.lost) == ["nc"]
        assert nodes.run(supervisor, "well", "torch", ranks=2).outcome.status == "ok"
    finally:
        supervisor.close()
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []


def kill_in_phase(agent: int, scratch: Path, phase: bytes) -> None:
    """Kill an agent once its worker has been in a phase for longer than it takes the agent to notice."""
    until = time.monotonic() + 40
    while time.monotonic() < until and not any(f.read_bytes().startswith(phase + b"\0") for f in scratch.glob("phase.*")):
        time.sleep(0.1)
    time.sleep(2.5 * STATE_CHECK_S)
    os.kill(agent, signal.SIGKILL)


@pytest.mark.slow
def test_nodes_that_cannot_be_had_are_named_and_the_rest_go_on():
    """One whose command fails, and one that never says a word."""
    began = time.monotonic()
    fleet = nodes.fleet(("na", "gone1", "silent1"), start_s=25)
    try:
        assert list(fleet.machines) == ["na"]
        assert fleet.machines["na"].host == "na"
        assert "Could not resolve hostname gone1" in fleet.left_out["gone1"]
        assert "did not call within 25 s" in fleet.left_out["silent1"]
        assert nodes.run(fleet.supervisors["na"], "well", "serial", ranks=1, nodes=1).outcome.status == "ok"
    finally:
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []
    assert time.monotonic() > began


def test_a_remote_command_that_never_reads_what_it_is_told_holds_up_nobody(monkeypatch):
    """What it is told is more than a pipe holds: whoever wrote it waited for ever, and the deadline never came."""
    for name in ("UCX_LONG_A", "UCX_LONG_B"):
        monkeypatch.setenv(name, "x" * 100_000)
    fleet = nodes.fleet(("silent1",), start_s=1.0)
    try:
        assert "did not call within 1 s" in fleet.left_out["silent1"]
    finally:
        fleet.close()


def test_a_node_with_other_code_is_left_out(tmp_path):
    for folder in code.FOLDERS:
        (tmp_path / folder).mkdir()
        for file in (code.ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                (tmp_path / file.relative_to(code.ROOT)).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file.relative_to(code.ROOT)).write_bytes(file.read_bytes())
    (tmp_path / "kernels" / "other.py").write_text("# other code\n")
    (tmp_path / ".venv").symlink_to(code.ROOT / ".venv")
    fleet = nodes.fleet(("na",), root=str(tmp_path))
    fleet.close()
    assert "it runs other code" in fleet.left_out["na"]
    assert f"make {tmp_path} there the same as {code.ROOT} here" in fleet.left_out["na"]
    assert code.digest() in fleet.left_out["na"]


def test_one_machine_under_two_names_is_measured_once():
    fleet = nodes.fleet(("na", "na2"), remote="env CLUSTERGAUGE_NAME={host} " + str(nodes.FAULTS / "remote.sh") + " na")
    fleet.close()
    assert len(fleet.machines) == 1
    assert len(fleet.left_out) == 1
