"""How long a plan takes: storage cases on a disk of exactly the rate that the forecast takes for granted."""

from __future__ import annotations

import os
import threading
from contextlib import closing, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

import storage_io
from clustergauge import budget, forecast
from clustergauge.measure import Plan, Sampler
from clustergauge.plan import Suite, Wish, load_probes, plan
from clustergauge.probe import Moves
from clustergauge.world import Serial
from storage_io import checkpoint, dataset, flush, loader, metadata, parallel, random_io, sequential, small_files, whole_reads
from tests import made
from tests.on_disk import context

RATE = 10e6
SIZE = 16 << 20
EPOCH = loader.least_steps(0) * loader.BATCH * dataset.SAMPLE_BYTES


class Disk:
    """Counts what this process moves; a clock that stands still while nothing is moved and nobody sleeps."""

    tick_s, max_calls, name, exposed = 1e-9, 1 << 16, "wall", 0

    def __init__(self, monkeypatch):
        self.moved = 0
        self.slept_s = 0.0
        self._lock = threading.Lock()
        for name in ("pwritev", "preadv"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))
        monkeypatch.setattr(loader, "time", SimpleNamespace(sleep=self._sleep))
        monkeypatch.setattr(budget, "WallClock", lambda: self)
        monkeypatch.setattr(forecast, "DEVICE_RATE", RATE)
        monkeypatch.setattr(whole_reads, "files", lambda *_: None)  # what compiled code moves would not be counted

    def _counting(self, call):
        def moving(*arguments):
            done = call(*arguments)
            with self._lock:
                self.moved += done
            return done

        return moving

    def now(self):
        return self.moved / RATE + self.slept_s

    def _sleep(self, seconds):
        self.slept_s += seconds

    def time(self, calls):
        began = self.now()
        for call in calls:
            call()
        return self.now() - began + 1e-9

    def settle(self):
        pass

    def owned(self):
        return nullcontext()


CASES = {
    "sequential write": (sequential.needs("write", 1, SIZE), lambda ctx: sequential.prepare(ctx, "write", 1, SIZE, spare=0)),
    "sequential read": (sequential.needs("read", 8, SIZE), lambda ctx: sequential.prepare(ctx, "read", 8, SIZE, spare=0)),
    "random write": (
        random_io.needs("write", "4KiB", 1, SIZE),
        lambda ctx: random_io.prepare(ctx, "write", 4096, 1, SIZE, spare=0),
    ),
    "random read": (
        random_io.needs("read", "64KiB", 1, SIZE),
        lambda ctx: random_io.prepare(ctx, "read", 65536, 1, SIZE, spare=0),
    ),
    "flush": (flush.flush.needs_of({"size": SIZE}), lambda ctx: flush.prepare(ctx, SIZE, spare=0)),
    "small files read": (
        small_files.needs("read", 1, 128 << 10),
        lambda ctx: small_files.prepare(ctx, "read", 1, 128 << 10, spare=0),
    ),
    "small files written": (
        small_files.needs("write", 8, 64 << 10),
        lambda ctx: small_files.prepare(ctx, "write", 8, 64 << 10, spare=0),
    ),
    "loader": (
        loader.needs("shards", 0, 0, EPOCH),
        lambda ctx: loader.prepare(ctx, "shards", 0, 0, EPOCH, spare=0),
    ),
    "loader that computes": (
        loader.needs("shards", 0, 1000, 2 * EPOCH),
        lambda ctx: loader.prepare(ctx, "shards", 0, 1000, 2 * EPOCH, spare=0),
    ),
    "checkpoint save": (
        checkpoint.needs("raw", "save", "one", SIZE),
        lambda ctx: checkpoint.prepare(ctx, "llama3-8b", "raw", "save", SIZE, spare=0),
    ),
    "checkpoint restore": (
        checkpoint.needs("raw", "restore", "one", SIZE),
        lambda ctx: checkpoint.prepare(ctx, "llama3-8b", "raw", "restore", SIZE, spare=0),
    ),
}


@pytest.mark.parametrize("budget_s", [0.5, pytest.param(4.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_a_case_takes_no_longer_than_planned_on_a_disk_of_the_rate(tmp_path, monkeypatch, case, budget_s):
    needs, prepare = CASES[case]
    disk = Disk(monkeypatch)
    with closing(prepare(context(tmp_path, budget_s))) as work:
        sampler = Sampler(work, disk, Serial(), Plan(budget_s, target=0.0))
        sampler.measure()
        if not sampler.checked_last:
            work.check()
    generic = forecast.predict_case(made.planned(made.record(), budget_s=budget_s))
    planned = generic + forecast.beyond(replace(needs.moves, names=0), 1, budget_s)  # this disk makes files in no time
    assert 0.3 * planned <= disk.now() <= planned  # nor is it made up


def test_ranks_of_a_node_share_its_rate_and_what_is_cut_to_the_budget_takes_no_longer():
    one, eight = (forecast.beyond(Moves(before=10**9, sample=10**9, after=10**9), ranks, 0.1) for ranks in (1, 8))
    assert one == pytest.approx(2.0 * (2 + 3 + 3) - 0.1)
    assert eight == pytest.approx(8 * (one + 0.1) - 0.1)
    cut = Moves(before=10**9, sample=10**9, after=10**9, patience=2.0)  # to 2 of the 16 s
    assert forecast.beyond(cut, 8, 1.0) == pytest.approx(16 + 2 * (3 + 3 + 1) - 1)
    shared = Moves(sample=10**6, share=0.25, most=10**9)  # a second of the four
    assert forecast.beyond(shared, 1, 4.0) == pytest.approx(5 + (6 - 4))
    assert forecast.beyond(replace(shared, most=10**8), 1, 4.0) == pytest.approx(5 * 0.2)
    assert forecast.beyond(replace(shared, sample=10**9), 1, 4.0) == pytest.approx(5 * 2 + 6 * 2 - 4)
    assert forecast.beyond(replace(shared, pause=0.5), 1, 4.0) == pytest.approx(5 + (6 - 4))
    assert forecast.beyond(replace(shared, pause=1.5), 1, 4.0) == pytest.approx(5 * 1.502 + 6 * 1.502 - 4)
    assert forecast.beyond(Moves(names=500), 1, 1.0) == pytest.approx(1.0)
    assert forecast.beyond(Moves(), 8, 1.0) == 0


def test_what_is_planned_for_a_gibibyte_is_laid_out_sampled_and_read_back():
    suite = msgspec.convert(
        {"title": "t", "cases": [{"probe": "sequential", "axes": {"op": ["write", "read"], "depth": [1], "size": ["1GiB"]}}]},
        Suite,
    )
    probes = load_probes(["storage_io.sequential"])
    write, read = plan(suite, probes, made.machine(), Wish(targets=["/x"]))
    once = 2**30 / forecast.DEVICE_RATE
    assert forecast.predict_case(write) >= once * (1 + 2 + 3 + 1)  # two that do not count, three that do
    assert forecast.predict_case(read) >= once * (1 + 2 + 3)


def test_turns_of_another_program_take_time_where_one_is_known():
    tables = [
        {"probe": "sequential", "axes": {"op": ["read"], "depth": [1], "size": ["1GiB"]}},
        {"probe": "metadata", "axes": {"op": ["stat"], "layout": ["one"], "files": [1000]}},
    ]
    suite = msgspec.convert({"title": "t", "cases": tables}, Suite)
    probes = load_probes(["storage_io.sequential", "storage_io.metadata"])
    bare, checked = (plan(suite, probes, made.machine(), Wish(targets=["/x"], cross_check=c)) for c in (False, True))
    longer = [forecast.predict_case(b) - forecast.predict_case(a) for a, b in zip(bare, checked, strict=True)]
    assert longer == pytest.approx([19.0, 0.0])


def test_what_is_read_back_counts():
    of_random = {
        (op, block): random_io.needs(op, block, 1, SIZE).moves.share for op in ("read", "write") for block in ("4KiB", "64KiB")
    }
    once, twice = 1 / random_io.SAMPLES, 2 / random_io.SAMPLES
    assert of_random == {("read", "4KiB"): once, ("read", "64KiB"): twice, ("write", "4KiB"): twice, ("write", "64KiB"): twice}
    ranks = parallel.needs("write", "16MiB", 8, 1 << 30).moves
    assert ranks.sample == (1 << 30) + parallel.SPOT_CHECKS * (16 << 20)


def test_names_that_are_made_and_removed_are_counted():
    assert metadata.needs("one", files=10_000).moves.names == 10_000
    files = CASES["small files read"][0].moves
    assert files.names * (128 << 10) == small_files.TOTAL_BYTES
    moves = loader.needs("files", 0, 0, 1 << 30).moves
    assert moves.names == (1 << 30) // dataset.SAMPLE_BYTES
    assert moves.before > 1 << 30
    assert (moves.share, moves.most) == (1 / loader.SAMPLES, 1 << 30)  # epochs grow until they take it
    assert loader.needs("files", 4, 36, 1 << 30).moves.pause == pytest.approx(36 * 0.036)


def test_groups_and_nodes_that_measure_at_once_take_as_long_as_the_longest():
    def one(device, hosts="", nodes=1, budget_s=1.0):
        return made.planned(made.record(device=device), hosts=hosts, nodes=nodes, budget_s=budget_s)

    own = forecast.predict([one("cpu:0")])
    assert forecast.predict([one("cpu:0", "n[1-3]")]) == own
    uneven = [one("cpu:0", "n[1-2]"), one("cuda:0", "n[2-3]", budget_s=9.0)]
    assert forecast.predict(uneven) == pytest.approx(own + forecast.predict(uneven[1:]))
    groups = [one("cpu:group1", "n[1-2]", 2), one("cpu:group2", "n[3-4]", 2), one("cpu:nodes", "n[1-4]", 4)]
    assert forecast.predict(groups) == pytest.approx(2 * own)


def test_every_probe_of_storage_says_what_it_moves():
    for name in storage_io.PROBES:
        for probe in load_probes([name]).values():
            case = next(iter(probe.cases()))
            assert probe.needs_of(case.params).moves != Moves(), probe.name
