"""The sweep of pairs: who meets whom, and for real over four MPI ranks and three gloo ranks of this machine."""

import json
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from clustergauge import memory, sweeps
from clustergauge.model import Series
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from collectives.pairs import ALL_ROUNDS, SIZES, SOME_ROUNDS, _of_both, _of_device, _tell, pairs, rounds, steps
from tests.faults import netns_pairs
from tests.swept import flat, swept

RANKS = Path(__file__).with_name("pairs_ranks.py")
MPIEXEC = Path(sysconfig.get_path("scripts")) / "mpiexec"
ENV = os.environ | {"OMP_NUM_THREADS": "1", "MPI4PY_RC_THREAD_LEVEL": "funneled", "GLOO_SOCKET_IFNAME": "lo"}
COUNT = {"mpi": 4, "gloo": 3}
"""Ranks: an odd number has one that rests.  (Each gloo rank imports torch, which takes most of the time.)"""
STEPS = {4: [6, 12, 3, 6], 3: [6, 6, 3, 3]}


@given(st.integers(2, ALL_ROUNDS))
def test_everybody_meets_everybody_once_in_disjoint_pairs(ranks):
    played = rounds(ranks, 1)
    assert len(played) == ranks - 1 + ranks % 2
    for met in played:
        busy = [rank for pair in met for rank in pair]
        assert len(set(busy)) == len(busy) == ranks - ranks % 2
    assert Counter(pair for met in played for pair in met) == Counter({(a, b): 1 for b in range(ranks) for a in range(b)})


@given(st.integers(ALL_ROUNDS + 1, 300), st.integers(0, 2**31))
def test_many_ranks_play_some_distinct_rounds_the_same_for_a_seed(ranks, seed):
    played = rounds(ranks, seed)
    assert played == rounds(ranks, seed)
    assert len(played) == SOME_ROUNDS
    met = [pair for turn in played for pair in turn]
    assert len(set(met)) == len(met)
    assert all(a < b < ranks for a, b in met)


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_steps_hold_every_ordered_pair_once(ranks):
    everything = Counter((a, b) for a in range(ranks) for b in range(ranks) if a != b)
    for quiet in ("one", "round"):
        plan = steps(ranks, "uni", quiet, 1)
        assert Counter(pair for step in plan for pair in step) == everything
        both = [pair for step in steps(ranks, "bi", quiet, 1) for pair in step]
        assert Counter([*both, *((b, a) for a, b in both)]) == everything
    assert {len(step) for step in steps(ranks, "uni", "one", 1)} == {1}
    assert {len(step) for step in steps(ranks, "uni", "round", 1)} == {ranks // 2}


def case(backend, direction="uni", quiet="round", size=1 << 16):
    return {"backend": backend, "direction": direction, "quiet": quiet, "size": size}


def cases(backend):
    sound = [case(backend), case(backend, quiet="one"), case(backend, "bi"), case(backend, "bi", "one")]
    return [("none", c) for c in sound] + [("flip", case(backend)), ("other", case(backend, "bi"))]


def run_ranks(folder, backend):
    """What came of every case on every rank: [rank][case]."""
    python, wanted, count = [sys.executable], json.dumps(cases(backend)), COUNT[backend]
    if backend == "mpi":
        commands = [[str(MPIEXEC), "-n", str(count), *python, "-m", "mpi4py", str(RANKS), str(folder), "mpi", wanted]]
    else:
        commands = [[*python, str(RANKS), str(folder), f"torch:{rank}:{count}", wanted] for rank in range(count)]
    started = [subprocess.Popen(c, env=ENV, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        for process in started:
            _, errors = process.communicate(timeout=110)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module", params=["mpi", "gloo"])
def said(request, tmp_path_factory):
    """Outcomes by rank, then by case; one launch a backend."""
    return run_ranks(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("number", range(4))
def test_every_ordered_pair_has_a_time_in_every_pass(said, number):
    root = said[0][number]
    assert root["status"] == "ok", root
    (_, senders), (_, receivers), (unit, seconds) = (root["series"][n] for n in ("pair_from", "pair_to", "pair_seconds"))
    assert unit == "s"
    everything = {(a, b) for a in range(len(said)) for b in range(len(said)) if a != b}
    assert len(senders) == len(everything)
    assert set(zip(senders, receivers, strict=True)) == everything
    passes, rest = divmod(len(seconds), len(everything))
    assert rest == 0
    assert passes >= 3
    assert min(seconds) > 0
    assert len(root["samples"]) == passes * root["settings"]["steps"]
    assert root["settings"]["steps"] == STEPS[len(said)][number]
    assert root["cut"] == 0
    assert max(seconds) <= max(root["samples"]) * (1 + 1e-9)  # no pair of a step takes longer than the step
    assert not any(of_rank[number]["series"] for of_rank in said[1:])  # only the root tells


def test_the_times_of_both_directions_at_once_are_those_of_the_pair(said):
    (_, senders), (_, receivers), (_, seconds) = (said[0][2]["series"][n] for n in ("pair_from", "pair_to", "pair_seconds"))
    taken = {(a, b): t for a, b, t in zip(senders, receivers, seconds, strict=False)}
    assert all(taken[a, b] == taken[b, a] for a, b in taken)


def test_one_wrong_bit_names_both_ranks_on_all_of_them(said):
    for of_rank in said:
        assert of_rank[4]["status"] == "wrong"
        assert of_rank[4]["reason"].startswith("message from rank 1: element 7 of 16384 on rank 2: expected")
        assert of_rank[4]["rank"] == 2


def test_another_ranks_data_is_wrong(said):
    for of_rank in said:
        assert of_rank[5]["status"] == "wrong"
        assert of_rank[5]["reason"].startswith("message from rank 1: element 0 of 16384 on rank ")


def test_the_work_is_one_message(said):
    for outcome in said[0][:4]:
        work = outcome["workload"]
        assert (work["message_bytes"], work["collective"], work["bound"]) == (1 << 16, "send_recv", "network")
        assert outcome["settings"]["library"]


def test_what_each_backend_needs():
    needs = {backend: pairs.needs_of(case(backend)) for backend in pairs.axes["backend"]}
    assert {b: (n.world, n.device, n.ranks) for b, n in needs.items()} == {
        "mpi": ("mpi", "cpu", 2),
        "gloo": ("torch", "cpu", 2),
        "nccl": ("torch", "cuda", 2),
    }
    assert min(SIZES) >= 1 << 20
    assert all(size % 4 == 0 for size in SIZES)


def context(size):
    world = Serial()
    world.size = world.local_size = size
    return Context(world=world, device="cpu", seed=1, scratch=Path())


def test_what_makes_no_sense_is_skipped_in_words():
    with pytest.raises(Skip, match="one rank has no pair"):
        pairs.function(context(1), **case("mpi"))
    with pytest.raises(Skip, match="not a whole number of 4-byte elements"):
        pairs.function(context(2), **case("mpi", size=6))
    with pytest.raises(Skip, match=r"2 ranks need about \d+ MiB of memory"):
        pairs.function(context(2), **case("gloo", size=1 << 50))


def test_ranks_of_other_hosts_need_no_memory_here(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 16 << 20)
    there = context(64)
    there.world.local_size = 2
    with pytest.raises(TypeError, match="need MPI ranks"):  # there is room; they are only no MPI ranks
        pairs.function(there, **case("mpi", size=1 << 20))
    there.world.local_size = 8
    with pytest.raises(Skip, match="8 ranks need about 32 MiB of memory, 16 MiB are available"):
        pairs.function(there, **case("mpi", size=1 << 20))


@pytest.mark.parametrize("quiet", ["one", "round"])
@pytest.mark.parametrize("of_two", [_of_both, _of_device])
def test_who_is_held_up_in_the_meeting_by_a_starved_third_is_not_slow_nor_its_link(quiet, of_two):
    """Rank 3 is starved: its pairs take three times as long, and its last word lets rank 1 go 55 ms after the others, while a
    transfer takes 36 ms.  As wide is what it was seen to do (``tests/faults/netns_pairs.py --faults starved``)."""
    plan, passes = steps(4, "uni", quiet, 1), 5
    count = passes * len(plan)
    begun = [[100.0 + n + late for n in range(count)] for late in (0.0, 0.055, 0.001, 0.050)]
    times = [[0.002] * count for _ in range(4)]
    for n in range(count):
        for a, b in plan[n % len(plan)]:
            takes = 0.036 * (1 + 0.001 * (n // len(plan))) * (3 if 3 in (a, b) else 1)
            both_done = max(begun[a][n], begun[b][n]) + takes
            times[a][n], times[b][n] = both_done - begun[a][n], both_done - begun[b][n]
    told = context(4)
    _tell(told, plan, False, of_two, times, begun)
    series = {name: Series(unit=unit, values=values) for name, (unit, values) in told.series.items()}
    senders, receivers, seconds = (series[name].values for name in ("pair_from", "pair_to", "pair_seconds"))
    whole = [0.036 * (3 if 3.0 in ends else 1) for ends in zip(senders, receivers, strict=True)]
    assert seconds[: len(whole)] == pytest.approx(whole)
    series["waited"] = Series(unit="1", values=[0.5, 0.5, 0.5, 0.95])
    (found,) = sweeps.findings([swept(flat(4), series=series)])
    assert [(s.where, s.direction, s.cause) for s in found.suspects] == [("node-003", "both", "processor")]


def test_a_pair_is_done_when_both_of_its_ends_are():
    assert _of_both((0.3, 0.5), (1.0, 1.0)) == 0.5
    assert _of_both((0.9, 0.3), (1.0, 1.5)) == pytest.approx(0.4)  # the first began half a second before there was anybody
    assert _of_both((0.3, 0.9), (1.5, 1.0)) == pytest.approx(0.4)


def test_ranks_of_another_world_are_refused():
    for backend in ("mpi", "gloo"):
        with pytest.raises(TypeError, match=f"pairs over {backend} need"):
            pairs.function(context(2), **case(backend))


def test_listing_imports_nothing_heavy():
    code = "import sys, collectives.pairs; print({'torch', 'numpy', 'mpi4py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=RANKS.parents[1], check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "no record; no document: run_suite.py exited with 3: starting; the agent of h2 did not call"),
        ('{"pairs": [], "records": []}', "no record; run_suite.py exited with 3: starting; the agent of h2 did not call"),
        (
            '{"pairs": [], "records": [{"status": "error", "reason": "rank 1 is gone"}]}',
            "error: rank 1 is gone; run_suite.py exited with 3: starting; the agent of h2 did not call",
        ),
    ],
)
def test_a_trial_in_the_lab_without_a_result_is_wrong_and_says_why(monkeypatch, tmp_path, capsys, output, words):
    ended = subprocess.CompletedProcess([], 3, output, "starting\n\nthe agent of h2 did not call\n")
    monkeypatch.setattr(netns_pairs.subprocess, "run", lambda *_, **__: ended)
    monkeypatch.setattr(netns_pairs, "restore", lambda _: None)  # there is no lab
    monkeypatch.setenv("CLUSTERGAUGE_LAB_HOSTS", "hosts")
    assert netns_pairs.trial("clean", 7, 4, "one", tmp_path) is False
    assert capsys.readouterr().out == f"clean       7  WRONG, NO RESULT  {words}\n"
