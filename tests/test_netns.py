"""Hosts with networks of their own on one machine (``tests/faults/netns.sh``): real links, really cut.  Needs root."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
import time

import pytest

from tests import nodes

SCRIPT = str(nodes.FAULTS / "netns.sh")


def _why_not() -> str:
    """Why this machine cannot have network namespaces; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare") if not shutil.which(name)]
    if missing:
        return f"{' and '.join(missing)} not installed (iproute2, util-linux)"
    name = f"cgtry{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"ip netns add: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


pytestmark = pytest.mark.skipif(bool(WHY_NOT := _why_not()), reason=WHY_NOT or "-")


def lab(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([SCRIPT, *words], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


@pytest.fixture
def hosts(request):
    """Three hosts c0, c1, c2: (their lab's environment, the remote command, this machine's address).

    Between them there is IPv4, or as the fixture's parameter says IPv6, alone.
    """
    family = getattr(request, "param", "4")
    environment = {"LAB": f"cgn{secrets.token_hex(2)}", "FAMILY": family}
    try:
        lab(environment, "up", "c0", "c1", "c2")
        remote = f"env LAB={environment['LAB']} FAMILY={family} {SCRIPT} ssh {{host}}"
        yield environment, remote, lab(environment, "address")
    finally:
        lab(environment, "down")


def cut_after(environment: dict[str, str], host: str, seconds: float) -> threading.Thread:
    def cut() -> None:
        time.sleep(seconds)
        lab(environment, "cut", host)

    thread = threading.Thread(target=cut)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("hosts", ["6"], indirect=True)
def test_hosts_that_have_ipv6_alone_are_found_by_the_route_and_called_by_their_addresses(hosts):
    _, remote, address = hosts
    names = [address.replace("::fe", f"::{number}") for number in (1, 2, 3)]
    fleet = nodes.fleet(names, remote, address="")
    assert not fleet.left_out, fleet.left_out
    supervisor, crew = nodes.team_of(fleet)
    try:
        assert [(site.name, site.address, site.interface) for site in crew.sites] == [(name, name, "eth0") for name in names]
        for world in ("torch", "mpi"):
            result = nodes.run(supervisor, "well", world, ranks=3, nodes=3, timeout_s=20)
            assert result.outcome.status == "ok", result
            assert [place.host for place in result.where] == names
    finally:
        supervisor.close()
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []


@pytest.mark.parametrize("hosts", ["4", "6"], indirect=True)
@pytest.mark.parametrize("world", ["torch", "mpi"])
@pytest.mark.slow
def test_a_link_that_is_cut_within_a_case_costs_its_node_and_the_case(hosts, world):
    environment, remote, address = hosts
    fleet = nodes.fleet(("c0", "c1", "c2"), remote, address)
    assert not fleet.left_out, fleet.left_out
    supervisor, crew = nodes.team_of(fleet)
    try:
        whole = nodes.run(supervisor, "well", world, ranks=3, nodes=3, timeout_s=20)
        assert whole.outcome.status == "ok", whole
        assert [place.host for place in whole.where] == ["c0", "c1", "c2"]
        if world == "torch":
            assert whole.environment["GLOO_SOCKET_IFNAME"] == "eth0"
            assert [place.interface for place in whole.where] == ["eth0"] * 3
        cutting = cut_after(environment, "c2", 1.0)
        result = nodes.run(supervisor, "hang", world, "run", ranks=3, nodes=3, timeout_s=60)
        cutting.join()
        assert result.outcome.status == "error"
        assert "node c2 is lost" in result.outcome.reason
        assert (
            "rank 2 on c2 went with it, last heard of in phase 'measure', the others were in phase 'measure'"
            in result.outcome.reason
        )
        assert "rank 0 on c0, pid" in result.log
        assert list(crew.lost) == ["c2"]
        after = nodes.run(supervisor, "well", world, ranks=2, timeout_s=20)
        assert after.outcome.status == "ok", after
        assert [place.host for place in after.where] == ["c0", "c1"]
    finally:
        supervisor.close()
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []  # on the host that cannot be reached neither


OPENMPI = os.environ.get("CLUSTERGAUGE_TEST_OPENMPI", "")


@pytest.mark.skipif(not OPENMPI, reason="CLUSTERGAUGE_TEST_OPENMPI does not name the folder of an Open MPI")
@pytest.mark.parametrize("how", ["kill", "exit0", "raise", "stop", "cut"])
def test_the_clusters_own_mpi_over_nodes_and_its_faults(hosts, tmp_path, monkeypatch, how):
    """Open MPI in place of the MPICH that comes along: by ``--launcher`` and ``MPI4PY_LIBMPI``."""
    environment, remote, address = hosts
    agent = tmp_path / "agent.sh"
    way = remote.replace("{host}", '"$host" "$*"')
    skip = "while case $1 in -*) true ;; *) false ;; esac; do shift; done"
    agent.write_text(f"#!/bin/sh\n{skip}\nhost=$1\nshift\nexec {way}\n")
    agent.chmod(0o700)
    monkeypatch.setenv("MPI4PY_LIBMPI", f"{OPENMPI}/lib/libmpi.so.40")
    monkeypatch.setenv("OMPI_MCA_mpi_yield_when_idle", "1")
    launcher = f"{OPENMPI}/bin/mpirun --allow-run-as-root --prtemca plm_ssh_agent {agent} --host {{hosts}} -n {{ranks}}"
    fleet = nodes.fleet(("c0", "c1", "c2"), remote, address, launcher=f"{launcher} --map-by ppr:{{per_node}}:node:oversubscribe")
    assert not fleet.left_out, fleet.left_out
    supervisor, crew = nodes.team_of(fleet)
    try:
        whole = nodes.run(supervisor, "well", "mpi", ranks=3, nodes=3, timeout_s=20)
        assert whole.outcome.status == "ok", whole
        assert whole.library.startswith("Open MPI")
        assert whole.environment["MPI4PY_LIBMPI"] == f"{OPENMPI}/lib/libmpi.so.40"
        cutting = cut_after(environment, "c2", 1.0) if how == "cut" else None
        result = nodes.run(supervisor, "hang" if cutting else how, "mpi", "run", ranks=3, nodes=3, timeout_s=40)
        assert result.outcome.status == "error"
        assert ("rank 2: RuntimeError" if how == "raise" else "rank 2 on c2") in result.outcome.reason
        if cutting:
            cutting.join()
            assert list(crew.lost) == ["c2"]
        left = len(crew.sites)
        assert nodes.run(supervisor, "well", "mpi", ranks=left, nodes=left, timeout_s=20).outcome.status == "ok"
    finally:
        supervisor.close()
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []


@pytest.mark.slow
def test_a_link_that_is_cut_before_its_case_costs_the_node_alone(hosts):
    """Node-local cases: the others do not notice."""
    environment, remote, address = hosts
    fleet = nodes.fleet(("c0", "c1"), remote, address, start_s=20)
    try:
        assert nodes.run(fleet.supervisors["c1"], "well", "serial", ranks=1, nodes=1).outcome.status == "ok"
        cutting = cut_after(environment, "c1", 1.0)
        result = nodes.run(fleet.supervisors["c1"], "hang", "serial", ranks=1, nodes=1, timeout_s=60)
        cutting.join()
        assert result.outcome.status == "error"
        assert "the agent of c1 died" in result.outcome.reason
        assert "rank 0 on c1 went with it, last heard of in phase 'measure'" in result.outcome.reason
        assert nodes.run(fleet.supervisors["c0"], "well", "serial", ranks=1, nodes=1).outcome.status == "ok"
    finally:
        fleet.close()
    assert nodes.workers_left(fleet.desk.token) == []
