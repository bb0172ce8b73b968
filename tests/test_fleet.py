"""A fleet whose nodes fail in ways that nobody foresaw, and environments that cannot be told to other nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from clustergauge import code
from clustergauge.errors import UsageError
from clustergauge.fleet import Fleet
from clustergauge.launch import passed_on, told
from clustergauge.model import Machine
from clustergauge.remote import Desk
from clustergauge.supervise import Supervisor
from tests import made

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
    desk = Desk(["good", "odd"])
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


def test_on_one_node_such_a_variable_is_passed_on_and_recorded_readably() -> None:
    assert told({"UCX_TEST": BROKEN}) == {"UCX_TEST": "a\ufffd"}
