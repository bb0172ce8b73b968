"""A fleet whose nodes fail in ways that nobody foresaw, and environments that cannot be told to other nodes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clustergauge import addresses, code, hosts, messages as m, summons
from clustergauge.conversation import Conversation, Died
from clustergauge.errors import UsageError
from clustergauge.fleet import Fleet, Left, conduct, odd_ones
from clustergauge.launch import passed_on, told
from clustergauge.model import Machine
from clustergauge.remote import Desk, RemoteNode
from clustergauge.run import Progress
from clustergauge.spanning import Spanning
from clustergauge.store import RunFolder, load
from clustergauge.supervise import Supervisor
from tests import made, nodes

BROKEN = "a\udcff"
"""As Python has the bytes ``a`` and ``0xff`` of an environment."""


class Planted(Supervisor):
    """Of a node that is there at once, or at whose start something unforeseen happens."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def start(self, targets: object = ()) -> Machine:
        del targets
        if self.name == "odd":
            raise RuntimeError("nobody foresaw this")
        return made.machine(host=self.name.rpartition("@")[2], machine_id=self.name)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk(["good", "odd"], address="127.0.0.1")
    yield desk
    desk.close()


def test_what_nobody_foresaw_costs_its_node_which_is_named(desk: Desk) -> None:
    fleet = Fleet(desk, Planted)
    fleet.assemble([])
    assert list(fleet.machines) == ["good"]
    assert list(fleet.left_out) == ["odd"]
    assert fleet.left_out["odd"].startswith("unexpected RuntimeError (test_fleet.py line ")
    assert fleet.left_out["odd"].endswith("): nobody foresaw this")


def test_one_host_under_two_users_is_measured_once() -> None:
    desk = Desk(["a@good", "b@good"], address="127.0.0.1")
    fleet = Fleet(desk, Planted)
    fleet.assemble([])
    fleet.close()
    assert list(fleet.machines) == ["a@good"]
    assert fleet.left_out == {"b@good": "it is the same machine as a@good"}


@pytest.mark.parametrize("name", ["UCX_TEST", "LD_LIBRARY_PATH"])
def test_a_variable_that_is_not_utf8_is_named_before_any_node_is_called(name: str) -> None:
    with pytest.raises(UsageError, match=f"environment variable {name} is not UTF-8 .*unset it"):
        passed_on({name: BROKEN})
    assert passed_on({"OTHER": BROKEN}) == {}
    done = subprocess.run(
        [sys.executable, str(code.ROOT / "run_suite.py"), "--remote", "false {host}", "--hosts", "h0,h1"],
        env=os.environ | {name: BROKEN},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"run_suite.py: the environment variable {name} is not UTF-8")
    assert len(done.stderr.splitlines()) == 1


def test_names_that_lead_nowhere_do_not_make_other_hosts_call_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_source", lambda _name, _family: "")
    with pytest.raises(UsageError, match=r"by which address h\[0-1\] reach this machine.*--address"):
        Desk(["h0", "h1"])


def test_an_agent_that_cannot_call_is_told_of_with_what_to_do() -> None:
    desk = Desk(["na"], nodes.REMOTE, nodes.HERE)
    desk._listener.close()
    fleet = Fleet(desk, lambda name: Supervisor(desk.means("", ()), make=lambda: RemoteNode(desk, name), desk=desk))
    fleet.assemble([])
    fleet.close()
    assert "Connection refused" in fleet.left_out["na"]
    assert "it was told to call 127.0.0.1; --address says" in fleet.left_out["na"]


def test_on_one_node_such_a_variable_is_passed_on_and_recorded_readably() -> None:
    assert told({"UCX_TEST": BROKEN}) == {"UCX_TEST": "a\ufffd"}


@pytest.mark.parametrize(
    ("address", "where"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("localhost", "::"), ("192.0.2.1", "::")]
)
def test_calls_are_taken_at_the_address_that_the_user_named(address: str, where: str) -> None:
    if where == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    desk = Desk(["h0"], address=address)
    assert desk._listener.address[0] in (where, "0.0.0.0" if where == "::" else where)
    desk.close()


def test_a_scratch_folder_that_is_another_users_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scratch"
    monkeypatch.setattr(hosts, "scratch_folder", lambda _token: folder)
    folder.mkdir()
    (folder / "agent.name").write_text("na")
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(SystemExit, match="belongs to another user"):
        summons.own_folder("token", "na")
    assert (folder / "agent.name").exists()
    ended: list[object] = []
    monkeypatch.setattr(summons.processes, "end_all", lambda *_, **__: ended.append(1))
    summons.end_earlier(folder)  # nor is anybody killed that it names
    assert (folder / "agent.name").exists()
    assert ended == []
    monkeypatch.undo()
    summons.end_earlier(folder)
    assert not folder.exists()


def test_an_agent_that_never_was_is_no_assertion() -> None:
    with pytest.raises(Died, match="was never there"):
        Conversation().send(m.Quit())


def test_what_is_measured_again_is_counted_for_each_of_its_nodes(desk: Desk) -> None:
    machines = {name: made.machine(host=name, machine_id=name) for name in ("n1", "n2")}
    fleet = Fleet(desk, Planted, machines=machines)
    more = [made.planned(made.record(), hosts="n1,n2")]
    started: list[int] = []
    watcher: Any = SimpleNamespace(start=lambda total, _seconds: started.append(total))
    folder: Any = SimpleNamespace(update=lambda _run: None)
    left = Left(folder, made.run([]), fleet, watcher, [], None, lambda *_: more)
    assert left.again(Progress(), spanning=False) == more
    assert started == [2]


def test_a_case_over_nodes_that_was_skipped_when_planned_is_no_error_though_too_few_are_left(desk: Desk, tmp_path: Path) -> None:
    machine = made.machine(host="good", machine_id="good", node="good")
    skipped = made.planned(made.record("all_reduce", device="cuda:nodes"), hosts="good,odd", nodes=2, ranks=2, skip="no GPU here")
    run = msgspec.structs.replace(made.run([]), planned=[skipped])
    silent: Any = SimpleNamespace(start=lambda *_: None, stop=lambda: None, done=lambda _: None)
    folder = RunFolder.create(tmp_path, run)
    came = conduct(folder, run, Fleet(desk, Planted, {"good": Planted("good")}, {"good": machine}, {"odd": "no answer"}), silent)
    assert not came.problem
    assert [(r.status, r.reason) for r in load(folder.path).records] == [("skipped", "no GPU here")]


def test_a_node_without_the_gpus_that_others_have_is_kept_out_of_what_spans_them(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = {n: made.machine(gpus=8 if n == "good" else 0, host=n, machine_id=n, node=n) for n in ("good", "odd")}
    plan = made.planned(made.record("all_reduce", device="cuda:nodes"), hosts="good,odd", nodes=2, ranks=16)
    run = msgspec.structs.replace(made.run([]), planned=[plan])
    silent: Any = SimpleNamespace(start=lambda *_: None, stop=lambda: None, done=lambda _: None)
    monkeypatch.setattr("clustergauge.fleet.Spanning", lambda *_: SimpleNamespace(measure=lambda _: None))
    supervisors: Any = {name: Planted(name) for name in machines}
    folder = RunFolder.create(tmp_path, run)
    conduct(folder, run, Fleet(desk, Planted, supervisors, machines), silent)
    assert load(folder.path).run.left_out == {"odd": "what spans nodes takes 8 GPUs of each, here 0 can be used"}


def test_nodes_are_taken_over_all_at_once(desk: Desk) -> None:
    """Each ends its pool first: one after the other would take a fleet minutes."""
    names = [f"n{number}" for number in range(8)]
    together = threading.Barrier(len(names), timeout=30)

    class Ending(Supervisor):
        def hand_over(self) -> Conversation:
            together.wait()
            return Conversation()

    machines = {name: made.machine(host=name, machine_id=name, node=name) for name in names}
    fleet = Fleet(desk, Planted, {name: Ending() for name in names}, machines)
    left: Any = SimpleNamespace(fleet=fleet, recorded=[])
    spanning = Spanning(left, Progress(), lambda _, __: {})
    spanning._take(names)
    assert set(spanning._crew) == set(names)
    assert not fleet.left_out


def test_what_nobody_foresaw_in_a_group_is_its_case_and_the_other_groups_go_on(desk: Desk) -> None:
    records = [made.record("all_reduce", device=f"cpu:group{number}") for number in (1, 2)]
    turn = {r.device: made.planned(r, hosts="n1,n2", nodes=2) for r in records}
    measured: list[str] = []
    kept: list[Any] = []

    class Span:
        def measure(self, planned: Any, _came: Any, _stopped: Any) -> None:
            if planned.device == "cpu:group1":
                raise RuntimeError("nobody foresaw this")
            measured.append(planned.device)

    folder: Any = SimpleNamespace(append=kept.append)
    watcher: Any = SimpleNamespace(done=lambda _: None)
    fleet = Fleet(desk, Planted, machines={"n1": made.machine(machine_id="m1")})
    left = Left(folder, made.run([]), fleet, watcher, [], None)
    spans: Any = dict.fromkeys(turn, Span())
    Spanning(left, Progress(), lambda _, __: {})._together(spans, turn)
    assert measured == ["cpu:group2"]
    (record,) = kept
    assert (record.device, record.status) == ("cpu:group1", "error")
    assert record.reason.startswith("unexpected RuntimeError (test_fleet.py line ")


def test_nodes_with_other_versions_than_most_are_told():
    usual = {"python": "3.11.7", "torch": "2.13.0"}
    machines = {name: made.machine(versions=usual) for name in "abc"} | {"d": made.machine(versions=usual | {"torch": "2.12.0"})}
    assert odd_ones(machines) == {"d": "other versions than most nodes: torch 2.12.0 (there 2.13.0)"}
    assert odd_ones({}) == {}
