"""Taking turns: strictly one after the other, whoever dies, and with nothing of another's within one's own."""

from __future__ import annotations

import bisect
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import run_suite
from clustergauge import execute, messages as m, turnstile
from clustergauge.measure import Plan, Sampler
from clustergauge.model import Workload
from clustergauge.probe import Work, probe
from clustergauge.turnstile import Turnstile
from clustergauge.world import Serial
from tests.test_measure import FakeClock, always

ROOT = Path(__file__).parent.parent


def test_two_take_turns_and_are_never_within_together(tmp_path):
    order: list[str] = []
    inside: list[str] = []

    def walk(name: str) -> None:
        mine = Turnstile(tmp_path)
        start.wait()
        with mine.turn():
            for _ in range(50):
                inside.append(name)
                time.sleep(0.004)
                assert inside == [name]
                order.append(inside.pop())
                mine.pass_on()

    start = threading.Barrier(2)
    threads = [threading.Thread(target=walk, args=(name,)) for name in "bc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["b"] * 50 + ["c"] * 50
    assert sum(one != other for one, other in itertools.pairwise(order)) > 50  # 99, if each wakes within a turn of the other


def test_alone_one_does_not_wait(tmp_path):
    with (alone := Turnstile(tmp_path)).turn():
        alone.pass_on()
    with alone.turn():
        pass


def test_who_is_killed_within_its_turn_lets_go(tmp_path):
    body = "import sys, time; from clustergauge.turnstile import *; Turnstile(Path(sys.argv[1])).take(); print(1, flush=True)"
    command = [sys.executable, "-c", f"{body}; time.sleep(99)", str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"1\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with Turnstile(tmp_path).turn():
        pass


def test_who_is_told_to_leave_while_it_waits_holds_nobody_up(tmp_path):
    class Told(Exception):
        pass

    def leave(number, frame):
        raise Told

    before = signal.signal(signal.SIGUSR1, leave)
    teller = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with Turnstile(tmp_path).turn():
            waiting = Turnstile(tmp_path)
            teller.start()
            with pytest.raises(Told):
                waiting.take()
        with (tmp_path / "door").open() as door:
            fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        teller.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_measurement_lets_the_other_pass_between_stretches_and_none_of_its_time_counts():
    clock = FakeClock(always(0.001))
    passed: list[int] = []

    def pass_on() -> None:
        passed.append(len(one.merged))
        clock.time_s += 7.0  # the other's turn

    one = Sampler(Work(run=lambda: None, workload=Workload()), clock, Serial(), Plan(budget_s=1.0), pass_on=pass_on)
    measured = one.measure()
    assert measured.samples_s == [0.001] * len(measured.samples_s)
    assert measured.stop_reason == "budget"  # however well they agree: both sides measure for as long
    assert 0.9 <= sum(measured.samples_s) <= 1.0
    assert passed[:2] == [0, 30]  # the first time before anything is measured: both sides are prepared then
    assert {b - a for a, b in itertools.pairwise(passed)} <= {*range(1, 31)}
    between = [b - a for a, b in zip(measured.sample_start_s, measured.sample_start_s[1:], strict=False)]
    begun = sorted(set(measured.series["turn"].values))
    numbers = [begun.index(turn) for turn in measured.series["turn"].values]
    assert numbers == [bisect.bisect_right(passed, number) - 1 for number in range(len(numbers))]
    assert {round(step, 3) for step in between} == {0.001, 7.002}  # the first after a turn finds cold caches: it is not kept


LOG: list[str] = []


@probe("told")
def told(ctx):
    """Says what is done when."""
    LOG.append("prepare")
    return Work(run=lambda: None, check=lambda: LOG.append("check"), close=lambda: LOG.append("close"), workload=Workload(ops=1))


class Loud(Turnstile):
    def take(self) -> None:
        super().take()
        LOG.append("take")

    def give(self) -> None:
        LOG.append("give")
        super().give()


def test_all_that_a_case_does_lies_within_its_own_turns(tmp_path):
    LOG.clear()
    job = m.Job("told", __name__, "told", {}, "cpu:0", 0.2, 1)
    outcome = execute.execute(job, told, Serial(), tmp_path, lambda phase: LOG.append(f"({phase})"), turns=Loud(tmp_path))
    assert outcome.status == "ok"
    steps = [word for word in LOG if word[0] != "("]
    assert steps[:2] == ["take", "prepare"]
    assert steps[-2:] == ["close", "give"]
    assert LOG[0] == "(wait for its turn)"
    depth = 0
    for word in steps:
        depth += {"take": 1, "give": -1}.get(word, 0)
        assert word == "give" or depth == 1
    assert steps.count("give") > 2


PROBE = """
import os, time
from clustergauge.model import Workload
from clustergauge.probe import Work, probe

@probe("noted")
def noted(ctx):
    out = open(os.environ["NOTED"], "a", buffering=1)
    def run():
        began = time.monotonic()
        time.sleep(0.004)
        print(began, time.monotonic(), file=out)
    return Work(run=run, check=lambda: None, workload=Workload(ops=1, bound="compute"))
"""


@pytest.mark.timeout(200)
def test_two_runs_that_name_the_same_folder_measure_by_turns(tmp_path):
    (tmp_path / "noted.py").write_text(PROBE)
    (tmp_path / "s.toml").write_text('title = "t"\nbudget_s = 0.5\n[[cases]]\nprobe = "noted"\n')
    (tmp_path / "turns").mkdir()
    command = [sys.executable, str(ROOT / "run_suite.py"), "--suite", "s.toml", "--probes", "noted", "--turns", "turns", "-o"]
    runs = [
        subprocess.Popen(
            [*command, name], cwd=tmp_path, env=os.environ | {"NOTED": str(tmp_path / f"{name}.txt")}, stdout=subprocess.DEVNULL
        )
        for name in "ab"
    ]
    assert [run.wait() for run in runs] == [0, 0]
    spans = sorted(
        (*map(float, line.split()), name) for name in "ab" for line in (tmp_path / f"{name}.txt").read_text().splitlines()
    )
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(spans))
    names = [name for *_, name in spans]
    assert sum(x != y for x, y in itertools.pairwise(names)) >= 6
    for name in "ab":
        (record,) = map(json.loads, next((tmp_path / name).glob("*/records.jsonl")).read_text().splitlines())
        assert record["status"] == "ok"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--turns", "/no/such"], "--turns /no/such: no folder that can be written to"),
        (["--turns", "/tmp", "--hosts", "a,b"], "--turns is for this machine alone: leave out --hosts"),
    ],
)
def test_a_mistake_is_one_line(words, said, capsys, monkeypatch):
    monkeypatch.delenv(turnstile.VARIABLE, raising=False)
    assert run_suite.main(words) == 2
    assert said in capsys.readouterr().err
    assert turnstile.VARIABLE not in os.environ


def test_what_a_case_waits_is_none_of_its_limit_as_long_as_there_is_an_end_to_it():
    away = turnstile.Away(left_s=10.0)
    assert [away.spent("prepare", 0.0), away.spent(turnstile.WAITING, 1.0)] == [0.0, 0.0]
    assert [away.spent(turnstile.WAITING, 3.0), away.spent("measure", 4.0), away.spent("measure", 9.0)] == [2.0, 1.0, 0.0]
    assert [away.spent(turnstile.WAITING, 10.0), away.spent(turnstile.WAITING, 99.0)] == [0.0, 7.0]
    assert away.spent(turnstile.WAITING, 100.0) == 0.0


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_while_another_run_holds_its_turn_a_case_is_not_late(tmp_path):
    (tmp_path / "noted.py").write_text(PROBE)
    (tmp_path / "s.toml").write_text('title = "t"\nbudget_s = 0.2\ntimeout_s = 2\n[[cases]]\nprobe = "noted"\n')
    (tmp_path / "turns").mkdir()
    command = [
        sys.executable,
        str(ROOT / "run_suite.py"),
        "--suite",
        "s.toml",
        "--probes",
        "noted",
        "--turns",
        "turns",
        "-o",
        "a",
    ]
    noted = tmp_path / "a.txt"
    with Turnstile(tmp_path / "turns").turn():  # as one does whose case hangs
        run = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"NOTED": str(noted)}, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 100
        while not list((tmp_path / "a").glob("*/machines/*.json")) and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(8)
        assert not noted.exists()
    assert run.wait() == 0
    (record,) = map(json.loads, next((tmp_path / "a").glob("*/records.jsonl")).read_text().splitlines())
    assert record["status"] == "ok"
