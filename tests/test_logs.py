"""Logs of remote commands: what a killed run left is swept, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from clustergauge import code, processes
from clustergauge.logs import Logs, sweep
from clustergauge.remote import Desk


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def killed(parent: Path) -> str:
    """The folder of a run that was killed."""
    program = "from clustergauge.logs import Logs; logs = Logs(); logs.open('h0').close()"
    program += "; print(logs.folder.name, flush=True); input()"
    environment = os.environ | {"TMPDIR": str(parent), "PYTHONPATH": str(code.ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    return name


def test_what_is_written_is_read_and_removed(parent: Path) -> None:
    logs = Logs()
    with logs.open("h0") as file:
        file.write(b"words \xff")
    assert logs.words("h0") == "words \ufffd"
    assert logs.words("h1") == ""
    assert sweep(parent) == [], "its owner lives"
    logs.close()
    logs.close()
    assert left(parent) == []


def test_the_next_run_sweeps_what_a_killed_one_left(parent: Path) -> None:
    name = killed(parent)
    assert left(parent) == [name]
    logs = Logs()
    assert left(parent) == [logs.folder.name]
    logs.close()


@pytest.mark.parametrize("plant", ["foreign host", "foreign file", "no lock", "link", "name"])
def test_what_may_be_anothers_is_left_alone(parent: Path, plant: str) -> None:
    folder = parent / killed(parent)
    match plant:
        case "foreign host":
            (folder / "lock").write_text("elsewhere")
        case "foreign file":
            (folder / "precious").write_text("kept")
        case "no lock":
            (folder / "lock").unlink()
        case "link":
            folder.rename(parent / "moved")
            folder.symlink_to(parent / "moved")
        case _:
            folder = folder.rename(parent / "clustergauge-logs-of-mine")
    assert sweep(parent) == []
    assert folder.exists()
    assert (folder / "precious").exists() == (plant == "foreign file")


def test_children_of_a_remote_command_end_with_it(parent: Path) -> None:
    """One that ends at SIGTERM, and one that does not."""
    script = parent / "wrapped.sh"
    script.write_text("#!/bin/sh\n(trap '' TERM; echo $$ > \"$1.shell\"; exec sleep 317) &\nsleep 317 &\nwait\n")
    script.chmod(0o700)
    desk = Desk(["h0"], f"{script} {parent}/{{host}}", "127.0.0.1")
    process = desk.summon("h0", [])
    until = time.monotonic() + 20
    while len(processes.descendants(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    family = [p.pid for p in processes.descendants(process.pid)]
    assert len(family) == 2
    desk.close()
    until = time.monotonic() + 5
    while any(alive := [p for p in map(processes.read, family) if p and p.state != "Z"]) and time.monotonic() < until:
        time.sleep(0.02)  # killed, and not gone at once
    assert not alive
