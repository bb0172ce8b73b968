"""Waiting for a processor: as the kernel counts it, who stands out, and what is said of him."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import sweeps, waits, warnings
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.model import Place, Series, Workload
from clustergauge.probe import Work, probe
from clustergauge.waits import Waits, starved
from clustergauge.world import Serial
from tests import made
from tests.swept import flat, series_of, swept


def threads(root, **said: str) -> None:
    for name, text in said.items():
        folder = root / "proc/self/task" / name.removeprefix("t")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(text)


def test_the_share_is_of_what_all_threads_wanted_since_it_was_made(tmp_path):
    threads(tmp_path, t1="1000 5000 7\n", t2="900 0 1\n", t3="500 500 1\n")
    counting = Waits(tmp_path)
    assert counting.share() is None  # nobody wanted one yet
    (tmp_path / "proc/self/task/3/schedstat").unlink()  # ended
    threads(tmp_path, t1="1100 5300 9\n", t2="1000 0 2\n", t4="200 300 1\n")
    assert counting.share() == pytest.approx(600 / 1000)


@pytest.mark.parametrize("text", ["", "1 2", "-1 2 3", "a b c", "1 2 3 4", "9" * 30 + " 1 1"])
def test_what_the_kernel_does_not_count_is_unknown(tmp_path, text):
    threads(tmp_path, t1=text)
    assert Waits(tmp_path).share() is None
    assert Waits(tmp_path / "nothing").share() is None


@pytest.mark.skipif(Waits(waits.sysfs.ROOT)._before == {}, reason="this kernel keeps no /proc/self/schedstat")
def test_the_kernel_counts_what_others_take():
    """Two others run on the only processor of ours."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        time.sleep(0.3)
        counting, until = Waits(), time.monotonic() + 0.5
        while time.monotonic() < until:
            pass
        share = counting.share()
        assert share is not None
        assert 0.2 < share < 1
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("shares", "who"),
    [
        ([0.0, 0.0, 0.9, 0.0], [2]),
        ([0.78, 0.79, 0.95, 0.78], [2]),  # where all wait, one must get far less
        ([0.78, 0.79, 0.85, 0.78], []),
        ([0.0, 0.6], [1]),
        ([0.0, 0.19, 0.0], []),
        ([0.9, 0.9, 0.0, 0.0], [0, 1]),
        ([0.9, 0.9, 0.9, 0.0], []),  # most of them are not the odd ones
        ([0.9], []),
        ([], []),
    ],
)
def test_who_got_far_less_than_the_others(shares, who):
    assert [one.rank for one in starved(shares)] == who


@given(st.lists(st.floats(0, 1), max_size=20))
def test_who_got_most_is_never_starved(shares):
    best = min(shares, default=0.0)
    assert best not in [one.share for one in starved(shares)]


@pytest.mark.parametrize(
    ("shares", "bound", "said"),
    [
        ([0.31], "latency", "it waited for a processor 31% of the time it wanted one"),
        ([0.09], "compute", ""),
        ([0.15], "compute", "it waited for a processor 15% of the time it wanted one"),
        ([0.15], "storage", ""),  # waking up is a wait
        ([0.25], "storage", "it waited for a processor 25% of the time it wanted one"),
        ([0.6, 0.5, 0.7], "network", "its ranks waited for a processor 60% of the time they wanted one"),
        ([0.0, 0.0, 0.9], "network", ""),  # one rank alone is starved
        ([], "compute", ""),
    ],
)
def test_a_case_that_shared_its_processor_is_a_doubt_however_steady(shares, bound, said):
    measured = made.record().measurement
    assert measured
    series = {"waited": Series(unit="1", values=shares)}
    work = Workload(flops=1, bound=bound)
    record = made.record(measurement=msgspec.structs.replace(measured, series=series), work=work, ranks=max(1, len(shares)))
    assert [w.detail for w in warnings.doubts([record]) if w.name == "shared processors"] == ([said] if said else [])


@pytest.mark.parametrize("share", [0.31, 0.0, None])
def test_a_process_alone_records_its_share_too(tmp_path, monkeypatch, share):
    monkeypatch.setattr(Waits, "share", lambda _: share)
    job = Job("spin", "tests", "spin", {}, "cpu", 0.01, 1)
    spin = probe("spin")(lambda ctx: Work(run=lambda: None, check=lambda: None, workload=Workload(ops=1)))
    done = execute(job, spin, Serial(), tmp_path, lambda _: None)
    assert done.measurement
    kept = done.measurement.series.get("waited")
    assert (kept and kept.values) == (None if share is None else [share])


def starved_sweep(bandwidth, *shares: float, **more):
    series = series_of(bandwidth) | {"waited": Series(unit="1", values=list(shares))}
    return swept(bandwidth, series=series, **more)


def test_a_slow_endpoint_whose_rank_waited_is_said_to_have_a_slow_processor():
    found = sweeps.findings([starved_sweep(flat(4, sends_2=0.5, receives_2=0.5), 0.01, 0.0, 0.9, 0.02)])[0]
    (suspect,) = found.suspects
    assert (suspect.where, suspect.cause, suspect.confirmed) == ("node-002", "processor", True)
    words = "the processor of node-002 is slow: its rank waited for a processor 90 % of the time it wanted one, the others 1 %"
    assert suspect.note == words
    assert sweeps.verdicts([found])[0].reason.endswith(f"; {words})")


def test_a_slow_link_of_a_starved_host_is_not_the_networks_and_others_are():
    found = sweeps.findings([starved_sweep(flat(5, link_0_1=0.5, link_3_4=0.5), 0.9, 0.0, 0.0, 0.0, 0.0)])[0]
    assert {(s.where, s.cause) for s in found.suspects} == {("node-000 → node-001", "processor"), ("node-003 → node-004", "")}


def test_waits_that_do_not_fit_the_ranks_explain_nothing():
    found = sweeps.findings([starved_sweep(flat(4, sends_2=0.5), 0.0, 0.0, 0.9)])[0]
    assert [s.cause for s in found.suspects] == [""]


def test_a_starved_rank_is_a_doubt_with_its_host():
    measured = made.record().measurement
    assert measured
    places = [Place(rank=rank, host=f"node-{rank}") for rank in range(3)]

    def said(*shares: float) -> list[str]:
        series = {"waited": Series(unit="1", values=list(shares))}
        record = made.record(measurement=msgspec.structs.replace(measured, series=series), placement=places, ranks=3)
        return [w.detail for w in warnings.doubts([record]) if w.name == "starved rank"]

    assert said(0.0, 0.6, 0.0) == ["rank 1 on node-1 waited for a processor 60 % of the time it wanted one, the others 0 %"]
    assert said(0.0, 0.1, 0.0) == []
