"""The progress display: plain lines without a terminal, a live line on one, and no harm from a broken stderr."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge.model import Place
from reports import progress
from tests.made_up import COPY, MATMUL, planned, record

ROOT = Path(__file__).parent.parent
GOOD, WRONG = record("matmul", MATMUL), record("memory", COPY, "wrong", "element 7\nis \x1b[31mred", device="cuda:3", launch=2)
SKIPPED = record("memory", COPY, "skipped", "no GPU")
ALL = (GOOD, WRONG, SKIPPED)
RUN = """
import sys, time
from reports.progress import Progress
from tests.test_progress import GOOD, WRONG, SKIPPED, planned
shown = Progress()
shown.start(3, 6.0)
for record in (GOOD, WRONG):
    shown.case(planned(record))
    shown.done(record)
shown.done(SKIPPED)
shown.stop()
shown.stop()
print("out")
"""


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by 1.25 s whenever it is read."""
    now = iter(n * 1.25 for n in range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))


def test_without_a_terminal_each_case_that_ended_is_a_plain_line(monkeypatch, ticking, capsys):
    shown = progress.Progress()
    shown.start(3, 6.0)
    for what in (GOOD, WRONG):
        shown.case(planned(what))
        shown.done(what)
    shown.done(SKIPPED)
    shown.stop()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "[1/3] ok matmul/backend=torch/dtype=fp32/shape=1024 1.2 s\n"
        "[2/3] WRONG memory/backend=torch/op=copy/size=256MiB cuda:3 launch 2 1.2 s: element 7 is �[31mred\n"
        "[3/3] skipped memory/backend=torch/op=copy/size=256MiB: no GPU\n"
    )


def test_over_nodes_a_line_names_the_host_but_for_what_spans_them(capsys):
    shown = progress.Progress()
    for device in ("cpu:0", "cpu:nodes"):
        where = msgspec.structs.replace(GOOD, device=device, placement=[Place(rank=0, host="h1\x1b")])
        shown.case(msgspec.structs.replace(planned(where), hosts="h[0-1]"))
        shown.done(where)
    first, second = capsys.readouterr().err.splitlines()
    assert " on h1\ufffd " in first
    assert " on " not in second


def test_calls_may_come_in_any_order_and_twice(capsys):
    shown = progress.Progress()
    shown.stop()
    shown.done(GOOD)
    shown.case(planned(WRONG))
    shown.done(GOOD)
    shown.stop()
    shown.stop()
    shown.start(2, 0.0)
    shown.start(2, 0.0)
    shown.done(SKIPPED)
    shown.stop()
    shown.done(SKIPPED)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["[1]", "[2]", "[1/2]", "[2/2]"]


class Gone(io.StringIO):
    def write(self, s):
        raise OSError(5, "Input/output error")

    def flush(self):
        raise BrokenPipeError

    def isatty(self):
        return True


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), Gone()], ids=["absent", "closed", "gone"])
def test_a_broken_stderr_harms_nobody(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    shown = progress.Progress()
    shown.start(1, 1.0)
    for what in ALL:
        shown.case(planned(what))
        shown.done(what)
    shown.stop()


def test_a_stderr_that_is_closed_at_the_start_harms_nobody():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{RUN}' 2>&-"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "out\n")


def on_a_terminal(**env: str) -> tuple[str, str]:
    """Standard output, and what the terminal on stderr got."""
    master, slave = pty.openpty()
    environment = (
        {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")} | {"TERM": "xterm"} | env
    )
    process = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=slave, text=True
    )
    os.close(slave)
    got = b""
    try:
        while chunk := os.read(master, 65536):
            got += chunk
    except OSError:  # the other end is closed
        pass
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out, got.decode()


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_terminal_sees_how_far_it_is_the_time_left_and_what_failed(columns):
    out, err = on_a_terminal(COLUMNS=columns)
    assert out == "out\n"
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", err)
    assert "0/3 · about 6 s left" in text
    assert re.search(r"1/3 · about \d s left · memory/", text)
    assert "[2/3] WRONG memory/backend=torch/op=copy/size=256MiB cuda:3 launch 2" in text
    assert "\x1b[31mred" not in err
    assert all(len(part) <= int(columns) for line in text.splitlines() for part in line.split("\r"))
    assert err.endswith("\x1b[2K")  # the live line is gone


def test_a_dumb_terminal_gets_plain_lines():
    _, err = on_a_terminal(TERM="dumb")
    assert "\x1b" not in err
    assert len(err.splitlines()) == 3


def test_no_color_is_heard_by_the_live_line():
    _, err = on_a_terminal(NO_COLOR="1", COLUMNS="80")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", err)
    assert "0/3" in err


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "expected", "left"),
    [
        (0, 10, 0.0, 100.0, 100.0),  # nothing seen: what was expected
        (5, 10, 50.0, 100.0, 50.0),  # as expected
        (5, 10, 100.0, 100.0, 50.0),  # twice as slow: half of 100 + half of 200, less 100
        (9, 10, 180.0, 100.0, 10.0),  # the further, the more what was seen counts
        (10, 10, 5.0, 100.0, 0.0),
        (0, 0, 0.0, 0.0, 0.0),
        (1, 10, 500.0, 100.0, 90.0),
    ],
)
def test_the_time_left_goes_over_from_what_was_expected_to_what_was_seen(done, total, elapsed, expected, left):
    assert progress.time_left(done, total, elapsed, expected) == pytest.approx(left)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_time_left_is_never_negative(done, total, elapsed, expected):
    assert progress.time_left(done, total, elapsed, expected) >= 0
