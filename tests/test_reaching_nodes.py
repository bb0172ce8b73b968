"""How ranks and agents get to other nodes: who is dealt what, and the commands that start it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from clustergauge import messages as m
from clustergauge.conversation import Site
from clustergauge.errors import UsageError
from clustergauge.launch import Install, Means, PoolKey, passed_on
from clustergauge.remote import Desk, remote_words
from clustergauge.spread import orders, over_nodes, reach, seats
from tests import made


def sites(count: int, cores: int = 4) -> list[Site]:
    return [
        Site(made.machine(host=f"n{i}", cores=cores), Path(f"/tmp/s{i}"), f"n{i}", f"10.0.0.{i}", "eth0") for i in range(count)
    ]


def test_ranks_are_dealt_in_blocks_and_bound_on_their_own_node():
    key = PoolKey("torch", False, 6, "cpu:nodes", 0)
    dealt = seats(key, sites(3))
    assert [(p.rank, p.host) for p in dealt] == [(0, "n0"), (1, "n0"), (2, "n1"), (3, "n1"), (4, "n2"), (5, "n2")]
    assert dealt[0].cpus == dealt[2].cpus == dealt[4].cpus
    made_orders = orders(key, sites(3), Means(remote="ssh {host}", token="token"), 7)
    assert [[e["CLUSTERGAUGE_RANK"] for e in order.rank_env] for order in made_orders] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert [order.env["CLUSTERGAUGE_SCRATCH"] for order in made_orders] == ["/tmp/s0", "/tmp/s1", "/tmp/s2"]
    assert {order.env["GLOO_SOCKET_IFNAME"] for order in made_orders} == {"eth0"}
    with pytest.raises(UsageError, match="5 ranks cannot be dealt equally"):
        seats(PoolKey("torch", False, 5, "cpu:nodes", 0), sites(3))


def test_one_command_starts_all_mpi_ranks_and_each_is_told_its_run_by_name():
    key = PoolKey("mpi", False, 4, "cpu:nodes", 0)
    first, second = orders(key, sites(2), Means(remote="ssh -p 22 {host}", token="token"), 7)
    assert second.commands == []
    assert first.mark == second.mark == "CLUSTERGAUGE_JOB=token-7"
    (command,) = first.commands
    assert command[1:6] == ["-launcher", "ssh", "-launcher-exec", "/tmp/s0/reach", "-hosts"]
    assert command[6:11] == ["n0,n1", "-ppn", "2", "-n", "4"]
    assert "CLUSTERGAUGE_RUN=token" in command
    assert not [word for word in command if word.startswith(("CLUSTERGAUGE_SCRATCH", "TMPDIR", "CLUSTERGAUGE_CPUS"))]
    assert 'exec ssh -p 22 "$host" "$*"' in first.files["reach"]


def test_mpi_ranks_are_started_over_ipv6_by_a_relay_and_addresses_go_by_other_names(tmp_path):
    there = [
        Site(made.machine(host=f"n{i}"), tmp_path, name, f"fd00::{i}", "eth0")
        for i, name in enumerate(("n0", "u@fd00::1", "::2"))
    ]
    key = PoolKey("mpi", False, 3, "cpu:nodes", 0)
    first = orders(key, there, Means(remote="ssh {host}", token="token"), 7)[0]
    (command,) = first.commands
    relay = str(tmp_path / "relay")
    assert command[1:9] == [
        "-localhost",
        "127.0.0.1",
        "-launcher",
        "ssh",
        "-launcher-exec",
        relay,
        "-hosts",
        "n0,240.0.0.1,240.0.0.2",
    ]
    assert f'-m clustergauge.relay near {tmp_path / "reach"} "$@"' in first.files["relay"]
    program = tmp_path / "reach"
    program.write_text(reach("echo {host}", [site.name for site in there]))
    for called, host in (("n0", "n0"), ("240.0.0.1", "u@fd00::1"), ("240.0.0.2", "::2")):
        said = subprocess.run(["sh", str(program), "-x", called, "run"], capture_output=True, text=True, check=True).stdout
        assert said == f"{host} run\n"


def test_the_users_launcher_must_say_where_its_hosts_go():
    two = sites(2)
    said = over_nodes("mpirun --host {hosts} -n {ranks} --map-by ppr:{per_node}:node", 4, 2, two, Install())
    assert said == ["mpirun", "--host", "n0,n1", "-n", "4", "--map-by", "ppr:2:node"]
    with pytest.raises(UsageError, match=r"must say \{hosts\}"):
        over_nodes("mpirun -n {ranks}", 4, 2, two, Install())
    assert over_nodes("mpirun -n {ranks}", 2, 2, two[:1], Install()) == ["mpirun", "-n", "2"]
    srun = over_nodes("srun --mpi=pmix", 4, 2, two, Install())
    assert srun[:5] == ["srun", "--mpi=pmix", "--nodes=2", "--nodelist=n[0-1]", "--ntasks=4"]
    assert over_nodes("srun -n {ranks} -N {nodes}", 4, 2, two, Install()) == ["srun", "-n", "4", "-N", "2"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("ssh {host}", ["ssh", "n1", "run 'a b'"]),
        ("ssh root@{host} -- bash -lc {command} x", ["ssh", "root@n1", "--", "bash", "-lc", "run 'a b'", "x"]),
    ],
)
def test_the_remote_command_gets_the_words_as_ssh_would(template, words):
    assert remote_words(template, "n1", "run 'a b'") == words


@pytest.mark.parametrize("template", ["ssh", "", "ssh '{host}", "rsh {hosts}"])
def test_a_remote_command_without_a_host_is_the_users_mistake(template):
    with pytest.raises(UsageError, match="--remote"):
        Desk(["n1"], template)


def test_what_reaches_a_node_for_mpi_quotes_what_it_passes_on(tmp_path):
    """The program is run: options for ssh are dropped, the host goes where the template says, the rest is one argument."""
    show = tmp_path / "show it.sh"
    show.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    show.chmod(0o700)
    program = tmp_path / "reach"
    program.write_text(reach(f"'{show}' 'a  b' u@{{host}} -c {{command}}"))
    said = subprocess.run(["sh", str(program), "-x", "n 1", "run", "x;y"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["<a  b>", "<u@n 1>", "<-c>", "<run x;y>"]


def test_only_what_steers_transports_goes_to_other_nodes():
    told = {
        "PATH": "/bin",
        "NCCL_DEBUG": "INFO",
        "MPI4PY_LIBMPI": "/x",
        "SECRET": "no",
        "OMPI_COMM_WORLD_RANK": "3",
        "HOME": "/h",
    }
    assert passed_on(told) == {"PATH": "/bin", "NCCL_DEBUG": "INFO", "MPI4PY_LIBMPI": "/x"}


def test_a_summons_refuses_what_it_does_not_know():
    line = msgspec.json.encode(m.Summons("00", [("h", 1), ("::1", 2)], "t"))
    assert msgspec.json.decode(line, type=m.Summons).addresses == [("h", 1), ("::1", 2)]
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line[:-1] + b',"more":1}', type=m.Summons)
