"""Signals that ask a process to end, and when they are heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from clustergauge import processes
from clustergauge.revision import Tree
from clustergauge.side import Side

RUNS_ON = "import time\nopen('begun', 'w').close()\ntime.sleep(600)\n"


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _interrupts_are_heard():
    """Also where a shell that started this in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_is_held_back_is_heard_at_the_end_or_when_it_is_let_go():
    reached = []
    with pytest.raises(KeyboardInterrupt), processes.held():  # noqa: PT012
        interrupt()
        reached.append("end")
    with pytest.raises(KeyboardInterrupt), processes.held() as let_go:  # noqa: PT012
        interrupt()
        reached.append("before")
        let_go()
        reached.append("after")
    assert reached == ["end", "before"]


def test_who_is_held_back_twice_is_let_go_by_the_first():
    with pytest.raises(KeyboardInterrupt), processes.held():  # noqa: PT012
        with processes.held() as let_go:
            interrupt()
            let_go()
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with processes.held() as let_go:
        let_go()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


@pytest.fixture
def endless(tmp_path):
    """A side whose ``run_suite.py`` does not end by itself."""
    (tmp_path / "run_suite.py").write_text(RUNS_ON)
    return Side("A", Tree(tmp_path, "", "0" * 40, "A"), tmp_path, (), tmp_path)


def test_an_interrupt_while_a_side_is_started_ends_it(endless, monkeypatch):
    started, start = [], subprocess.Popen

    def interrupted(*words, **options):
        started.append(start(*words, **options))
        interrupt()
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), endless._called("list"):
        raise AssertionError("nobody hears of it")
    assert started[0].poll() == -signal.SIGTERM


def test_a_side_can_be_asked_to_end_though_its_parent_held_that_back(endless, tmp_path):
    with processes.held(), endless._called("list") as call:
        until = time.monotonic() + 30
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.02)
        call.tell_to_end()
        assert call.process.wait(30) == -signal.SIGTERM


def test_what_is_ignored_stays_so_also_for_what_is_started_meanwhile():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    code = "import signal; print([signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGTERM)])"
    try:
        with processes.held():
            told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told.stdout == "[True, False]\n"
