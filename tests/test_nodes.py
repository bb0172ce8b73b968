"""Several nodes, all real but for the network: agents, workers and launchers on this machine, under names of their own.

``tests/faults/remote.sh`` stands in for ssh; `test_netns` has the same over hosts with networks of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from clustergauge import code, exits, messages as m, valid
from clustergauge.agent import STATE_CHECK_S
from clustergauge.conversation import Site
from clustergauge.errors import UsageError
from clustergauge.fleet import odd_ones
from clustergauge.launch import Install, Means, PoolKey, passed_on
from clustergauge.plan import Wish, load_probes, load_suite
from clustergauge.plan_nodes import plan_nodes, short_of_gpus
from clustergauge.remote import Desk, remote_words
from clustergauge.spread import orders, over_nodes, reach, seats
from clustergauge.team import _extremes
from tests import made, nodes
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
    sorted([("mpi" if n % 2 else "torch", *fault) for n, fault in enumerate(FAULTS)], key=lambda row: row[0] == "mpi")
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


SUITE = """
title = "nodes"
budget_s = 0.3
timeout_s = 20
[[cases]]
probe = "misbehave"
how = ["well", "sick"]
world = "serial"
phase = "run"
[[cases]]
probe = "misbehave"
how = "well"
world = "torch"
phase = "run"
"""


def cli(tmp_path, *words: str, text: str = "") -> tuple[int, str, list[dict], dict]:
    """Run the command line over nodes: exit code, what it said, records, run.  ``text``: of the suite, named here."""
    (tmp_path / "nodes.toml").write_text(text or SUITE)
    words = (*(("--suite", str(tmp_path / "nodes.toml")) if text else ()), *words)
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.misbehaving"]
    command += ["--remote", nodes.REMOTE, "--address", nodes.HERE, "-o", str(tmp_path), *words]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=110)
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return done.returncode, done.stdout + done.stderr, records, json.loads((folder / "run.json").read_text())


def test_a_run_over_nodes_keeps_what_fails_out_of_the_next_tier_and_can_be_resumed(tmp_path):
    suite = ["--suite", str(tmp_path / "nodes.toml"), "--hosts", "na,nb,nc-sick", "--ranks", "1"]
    status, said, records, run = cli(tmp_path, *suite)
    assert status == 3, said
    local = {(r["placement"][0]["host"], r["params"]["how"]): r["status"] for r in records if r["params"]["world"] == "serial"}
    assert local == {(h, c): "ok" for h in ("na", "nb", "nc-sick") for c in ("well", "sick")} | {("nc-sick", "sick"): "wrong"}
    assert len({r["machine_id"] for r in records if r["params"]["world"] == "serial"}) == 3
    (together,) = [r for r in records if r["device"] == "cpu:nodes"]
    assert together["status"] == "ok"
    assert [place["host"] for place in together["placement"]] == ["na", "nb"]
    assert list(run["left_out"]) == ["nc-sick"]
    assert "planned on this node only" in run["left_out"]["nc-sick"]
    assert "nc-sick" in said
    assert said.index("\n3 nodes · ") > said.index("run folder: ")  # the fleet stands at the end
    assert "bad        nc-sick\n  failed on cpu:0 in misbehave/" in said
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    assert (folder / "bad.txt").read_text() == "nc-sick\n"
    assert {n["host"]: n["state"] for n in json.loads((folder / "nodes.json").read_text())["nodes"]}["na"] == "good"
    assert "nodes.json" in (folder / "SHA256SUMS").read_text()
    status, said, again, _ = cli(tmp_path, "--resume", "latest", "--hosts", "na,nb,nc-sick")
    assert again == records  # nothing was missing
    status, said, again, _ = cli(tmp_path, "--resume", "latest", "--hosts", "na,nb")
    assert status == 2
    assert "that run used --hosts 'na,nb,nc-sick'" in said


def test_a_node_whose_agent_is_killed_is_unmeasured_wherever_it_is_told(tmp_path):
    """Nobody knows whether it is bad: it is in no list of bad ones, and all that judge the run agree."""
    text = SUITE.replace('how = ["well", "sick"]', 'how = ["lose", "well"]')
    status, said, records, run = cli(tmp_path, "--hosts", "na,nb,nc-sick", "--ranks", "1", text=text)
    assert status == 3, said  # a case broke
    names = {r["machine_id"]: r["placement"][0]["host"] for r in records if r["params"]["world"] == "serial"}
    told = {(names[r["machine_id"]], r["params"]["how"]): r for r in records if r["params"]["world"] == "serial"}
    lost = told.pop(("nc-sick", "lose"))
    assert {r["status"] for r in told.values()} == {"ok"}  # its agent was started again
    assert len(told) == 5
    assert lost["status"] == "error"
    assert lost["reason"].startswith("node nc-sick is lost: the agent of nc-sick died (")
    assert "rank 0 on nc-sick went with it" in lost["reason"]
    assert run["left_out"] == {"nc-sick": lost["reason"]}
    (together,) = [r for r in records if r["device"] == "cpu:nodes"]
    assert [place["host"] for place in together["placement"]] == ["na", "nb"]
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    lists = {name: (folder / f"{name}.txt").read_text() for name in ("bad", "suspect", "unmeasured")}
    assert lists == {"bad": "", "suspect": "", "unmeasured": "nc-sick\n"}
    nodes_ = {n["host"]: n for n in json.loads((folder / "nodes.json").read_text())["nodes"]}
    assert {host: n["state"] for host, n in nodes_.items()} == {"na": "good", "nb": "good", "nc-sick": "unmeasured"}
    assert nodes_["nc-sick"]["reason"].startswith("lost on cpu:0 in misbehave/")
    assert "unmeasured nc-sick\n  lost on cpu:0 in misbehave/" in said
    for verb in ("report", "fleet"):
        command = [sys.executable, str(code.ROOT / "run_suite.py"), verb, "latest", "-o", str(tmp_path)]
        done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 3
        assert "2 good · 1 unmeasured" in done.stdout
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "verify", "latest", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_a_node_that_cannot_be_had_is_no_success_though_all_it_owes_is_its_share_of_what_spans_nodes(tmp_path):
    words = ["--suite", str(tmp_path / "nodes.toml"), "--hosts", "na,nb,gone1", "--ranks", "1", "-k", "*world=torch*"]
    status, said, records, _ = cli(tmp_path, *words)
    assert [r["status"] for r in records if r["device"] == "cpu:nodes"] == ["ok"]
    assert "over 2 of 3 nodes (without gone1)" in said
    assert status == 4, said
    for verb in ("report", "fleet"):
        command = [sys.executable, str(code.ROOT / "run_suite.py"), verb, "latest", "-o", str(tmp_path)]
        assert subprocess.run(command, cwd=code.ROOT, capture_output=True, timeout=60, check=False).returncode == 4


@pytest.mark.slow
def test_what_fails_is_measured_afresh_on_each_node_and_over_all(tmp_path):
    """Nothing takes a nanosecond: all of it fails a first time, and is confirmed by two fresh launches where it failed."""
    (tmp_path / "never.toml").write_text(
        '[[criteria]]\ncase = "misbehave/*"\nmetric = "time"\nlimit = 1\nunit = "ns"\nsource = "x"\n'
    )
    words = ["--suite", str(tmp_path / "nodes.toml"), "--hosts", "na,nb", "--ranks", "1", "-k", "*how=well*"]
    status, said, records, run = cli(tmp_path, *words, "--accept", str(tmp_path / "never.toml"))
    assert status == 1, said
    places: dict[tuple[str, str], list[tuple[int, bool]]] = {}
    for record in (r for r in records if r["status"] == "ok"):
        where = record["device"] if record["device"] == "cpu:nodes" else record["placement"][0]["host"]
        places.setdefault((where, record["params"]["world"]), []).append((record["launch"], record.get("confirms", False)))
    assert places[("na", "serial")] == places[("nb", "serial")] == [(0, False), (1, True), (2, True)]
    assert places[("cpu:nodes", "torch")] == [(0, False), (1, True), (2, True)]
    assert {p["hosts"] for p in run["planned"] if p.get("confirms") and p.get("nodes", 1) == 1} == {"na", "nb"}
    assert run["finished"]
    assert not run.get("interrupted")


def test_ctrl_c_ends_everything_on_all_nodes_and_keeps_what_was_measured(tmp_path):
    text = SUITE.replace('how = ["well", "sick"]', 'how = ["well", "hang"]').replace("timeout_s = 20", "timeout_s = 300")
    (tmp_path / "nodes.toml").write_text(text)
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.misbehaving", "--ranks", "1"]
    command += [
        "--remote",
        nodes.REMOTE,
        "--address",
        nodes.HERE,
        "-o",
        str(tmp_path),
        "--suite",
        str(tmp_path / "nodes.toml"),
        "--hosts",
        "na,nb",
    ]
    running = subprocess.Popen(command, cwd=code.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout
    while "[2/" not in (line := running.stdout.readline()):  # both have measured the first case, and hang in the next
        assert line, "it ended early"
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    said = running.stdout.read()
    running.stdout.close()
    assert running.wait(60) == 130, said
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [(r["params"]["how"], r["status"]) for r in records] == [("well", "ok")] * 2
    assert nodes.workers_left(str(tmp_path)) == []


def test_what_each_node_owes_is_missed():
    record = made.record()
    owed = made.planned(record, hosts="n[1-2]")
    assert exits.exit_code([record], [], [owed]) == 4
    assert exits.exit_code([record, msgspec.structs.replace(record, machine_id="other")], [], [owed]) == 0
    assert exits.exit_code([record], [], [msgspec.structs.replace(owed, nodes=2)]) == 0


def test_a_case_is_planned_once_for_each_node():
    one = made.planned(made.record(), hosts="n[1-2]")
    valid.check_run(made.run([], planned=[one, msgspec.structs.replace(one, hosts="n3", skip="no GPU")]))
    for hosts in ("n[2-3]", "", "n[1-"):
        with pytest.raises(valid.Invalid):
            valid.check_run(made.run([], planned=[one, msgspec.structs.replace(one, hosts=hosts)]))


# ---------------------------------------------------------------------------------------------------------------------------
# nothing is started below


def test_nodes_with_other_versions_than_most_are_told():
    usual = {"python": "3.11.7", "torch": "2.13.0"}
    machines = {name: made.machine(versions=usual) for name in "abc"} | {"d": made.machine(versions=usual | {"torch": "2.12.0"})}
    assert odd_ones(machines) == {"d": "other versions than most nodes: torch 2.12.0 (there 2.13.0)"}
    assert odd_ones({}) == {}


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


def test_sensors_over_nodes_keep_their_extremes():
    said = [{"load1_max": 1.0, "clock_min": 5, "cpu_energy_j": 2.0, "gpu0_throttle": "", "t_start": 1.0}]
    said.append({"load1_max": 3.0, "clock_min": 4, "cpu_energy_j": 1.5, "gpu0_throttle": "thermal", "t_start": 2.0})
    assert _extremes(said) == {"load1_max": 3.0, "clock_min": 4, "gpu0_throttle": "thermal"}


def test_cases_are_planned_on_each_node_and_over_all(tmp_path):
    (tmp_path / "nodes.toml").write_text(SUITE)
    suite = load_suite(tmp_path / "nodes.toml")
    machines = {"n1": made.machine(cores=4), "n2": made.machine(cores=2)}
    planned = plan_nodes(suite, {"misbehave": nodes.PROBE}, machines, ["n1", "n2", "n3"], Wish())
    found = [(p.params["how"], p.world, p.device, p.hosts, p.nodes, p.ranks) for p in planned]
    assert ("sick", "serial", "cpu:0", "n1,n3,n2", 1, 1) in found or ("sick", "serial", "cpu:0", "n[1-3]", 1, 1) in found
    assert ("well", "torch", "cpu:0", "n1,n3", 1, 4) in found or ("well", "torch", "cpu:0", "n[1,3]", 1, 4) in found
    assert ("well", "torch", "cpu:0", "n2", 1, 2) in found
    assert found[-1] == ("well", "torch", "cpu:nodes", "n[1-3]", 3, 6)
    with pytest.raises(UsageError, match="none of 1 nodes"):
        plan_nodes(suite, {"misbehave": nodes.PROBE}, {}, ["n1"], Wish())


def test_a_summons_refuses_what_it_does_not_know():
    line = msgspec.json.encode(m.Summons("00", [("h", 1), ("::1", 2)], "t"))
    assert msgspec.json.decode(line, type=m.Summons).addresses == [("h", 1), ("::1", 2)]
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line[:-1] + b',"more":1}', type=m.Summons)


def test_each_node_of_many_brings_its_own_gpus_for_its_own_ranks(tmp_path):
    (tmp_path / "one.toml").write_text('title = "t"\n[[cases]]\nprobe = "all_reduce"\nbackend = "nccl"\nsize = "8B"\n')
    suite, probes = load_suite(tmp_path / "one.toml"), load_probes(["collectives.operations"])
    machines = {f"n{n}": made.machine(gpus=8, machine_id=f"m{n}") for n in range(2)}
    together = [p for p in plan_nodes(suite, probes, machines, list(machines), Wish()) if p.nodes > 1]
    assert {(p.device, p.ranks, p.skip) for p in together} == {("cuda:nodes", 16, "")}
    few = [p for p in plan_nodes(suite, probes, machines, list(machines), Wish(ranks=9)) if p.nodes > 1]
    assert {p.skip for p in few} == {"9 ranks need a GPU each, here are 8"}


def test_one_node_that_lost_its_gpus_does_not_take_them_from_what_spans_the_others(tmp_path):
    """It was the least of all, and no collective of GPUs was planned, and none missed."""
    (tmp_path / "one.toml").write_text('title = "t"\n[[cases]]\nprobe = "all_reduce"\nbackend = ["nccl", "gloo"]\nsize = "8B"\n')
    suite, probes = load_suite(tmp_path / "one.toml"), load_probes(["collectives.operations"])
    machines = {f"n{n}": made.machine(gpus=8 if n else 0, machine_id=f"m{n}") for n in range(4)}
    together = [p for p in plan_nodes(suite, probes, machines, list(machines), Wish()) if p.nodes > 1]
    assert {(p.params["backend"], p.device, p.ranks, p.hosts, p.skip) for p in together if p.device == "cuda:nodes"} == {
        ("nccl", "cuda:nodes", 32, "n[0-3]", "")
    }
    short = short_of_gpus(machines, together)
    assert short == {"n0": "what spans nodes takes 8 GPUs of each, here 0 can be used"}
    plain = machines | {"n0": made.machine(gpus=8, versions={"torch": "2.13.0+cpu"})}
    assert list(short_of_gpus(plain, together)) == ["n0"]
    few = {f"n{n}": made.machine(gpus=8 if n == 3 else 0, machine_id=f"m{n}") for n in range(4)}
    assert not [p for p in plan_nodes(suite, probes, few, list(few), Wish()) if p.device == "cuda:nodes" and not p.skip]
    on_cpu = plan_nodes(suite, probes, machines, list(machines), Wish(device="cpu"))
    assert short_of_gpus(machines, on_cpu) == {}
    assert {p.device for p in on_cpu if p.nodes > 1} == {"cpu:nodes"}
