"""A fleet whose nodes fail in ways that nobody foresaw, and environments that cannot be told to other nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from clustergauge import addresses, code
from clustergauge.errors import UsageError
from clustergauge.fleet import Fleet
from clustergauge.launch import passed_on, told
from clustergauge.model import Machine
from clustergauge.remote import Desk, RemoteNode
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
        return made.machine(host=self.name, machine_id=self.name)


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
    fleet = Fleet(desk, lambda name: Supervisor(make=lambda: RemoteNode(desk, name), desk=desk))
    fleet.assemble([])
    fleet.close()
    assert "Connection refused" in fleet.left_out["na"]
    assert "it was told to call 127.0.0.1; --address says" in fleet.left_out["na"]


def test_on_one_node_such_a_variable_is_passed_on_and_recorded_readably() -> None:
    assert told({"UCX_TEST": BROKEN}) == {"UCX_TEST": "a\ufffd"}
