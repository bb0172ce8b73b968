"""Which of many devices is slow: fleets of our own making, with what is wrong with them planted (seeds fixed)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from clustergauge import peers

SPREAD = 0.008
"""Between healthy devices, as ln."""


def fleet(count: int, rng, defects: dict[int, float] | None = None, racks: int = 0, slots: int = 1, confirm: bool = True):
    """``count`` devices; ``defects``: by row, the speed left (0.9: a tenth lost).  Fresh launches see the same defects."""
    own = rng.normal(0, SPREAD, count)
    for row, ratio in (defects or {}).items():
        own[row] -= math.log(ratio)
    y = own + rng.normal(0, 0.003, count)
    fresh = own + rng.normal(0, 0.003, (2, count)).mean(0) if confirm else np.full(count, math.nan)
    rack = np.arange(count) * racks // count if racks else np.full(count, -1)
    return peers.Group(
        y,
        y + 0.01 + rng.normal(0, 0.002, count),
        fresh,
        fresh + 0.01,
        rack,
        np.arange(count) % slots if slots > 1 else np.zeros(count, int),
    )


def confirmed(found):
    return {s.row for s in found.slow if s.confirmed}


@pytest.mark.parametrize(("count", "most"), [(64, 0.02), (512, 0.1)])
def test_a_clean_fleet_is_accused_rarely(count, most):
    rng = np.random.default_rng(1)
    fleets = 200
    assert sum(len(confirmed(peers.judge(fleet(count, rng)))) for _ in range(fleets)) / fleets <= most


@pytest.mark.parametrize(
    ("count", "ratio", "least"), [(8, 0.9, 0.75), (64, 0.95, 0.6), (64, 0.9, 0.99), (512, 0.95, 0.8), (512, 0.9, 1.0)]
)
def test_a_planted_slow_device_is_found_and_confirmed(count, ratio, least):
    rng = np.random.default_rng(2)
    trials = 100
    hits = [confirmed(peers.judge(fleet(count, rng, {count // 2: ratio}))) for _ in range(trials)]
    assert sum(count // 2 in hit for hit in hits) / trials >= least
    assert sum(len(hit - {count // 2}) for hit in hits) <= trials * 0.03


def test_what_fresh_launches_do_not_repeat_is_cleared():
    group = fleet(64, np.random.default_rng(3))
    group.y[5] += 0.2
    found = peers.judge(group)
    assert found.cleared == [5]
    assert not confirmed(found)


def test_without_fresh_launches_a_slow_device_is_a_suspect():
    found = peers.judge(fleet(64, np.random.default_rng(4), {7: 0.8}, confirm=False))
    assert [(s.row, s.confirmed, s.kind) for s in found.slow] == [(7, False, "slow")]
    assert found.slow[0].ratio == pytest.approx(0.8, abs=0.05)


def test_what_is_slow_now_and_then_is_found_in_the_tail():
    group = fleet(64, np.random.default_rng(5))
    group.tail[9] += 0.3
    group.fresh_tail[9] = math.nan
    assert [(s.row, s.kind, s.confirmed) for s in peers.judge(group).slow] == [(9, "intermittent", False)]


@pytest.mark.parametrize(("again", "slow", "cleared"), [(0.3, [(9, "intermittent", True)], []), (0.0, [], [9])])
def test_fresh_launches_confirm_or_clear_what_is_slow_now_and_then_by_their_tail(again, slow, cleared):
    group = fleet(64, np.random.default_rng(5))
    group.tail[9] += 0.3
    group.fresh_tail[9] += again
    found = peers.judge(group)
    assert [(s.row, s.kind, s.confirmed) for s in found.slow] == slow
    assert found.cleared == cleared


def test_a_slow_slot_is_nobodys_fault():
    group = fleet(512, np.random.default_rng(6), slots=8)
    group.y[group.slot == 7] += 0.08
    group.tail[group.slot == 7] += 0.08
    assert not peers.judge(group).slow


def test_a_slow_rack_is_named_instead_of_its_nodes():
    group = fleet(128, np.random.default_rng(7), racks=8)
    for column in (group.y, group.tail, group.fresh):
        column[group.rack == 3] += 0.06
    found = peers.judge(group)
    assert [(r.rack, r.devices) for r in found.racks] == [(3, 16)]
    assert found.racks[0].ratio == pytest.approx(math.exp(-0.06), abs=0.01)
    assert not confirmed(found)


def test_racks_of_a_clean_fleet_are_all_well():
    rng = np.random.default_rng(8)
    assert sum(len(peers.judge(fleet(128, rng, racks=8)).racks) for _ in range(200)) <= 4


def test_a_few_cannot_tell_and_eight_are_weak():
    rng = np.random.default_rng(9)
    assert peers.judge(fleet(3, rng, {0: 0.5})).smallest is None
    assert peers.judge(fleet(7, rng)).weak
    assert not peers.judge(fleet(8, rng)).weak


def test_what_it_could_have_shown_is_what_it_finds():
    rng = np.random.default_rng(10)
    smallest = np.median([peers.judge(fleet(64, rng)).smallest for _ in range(50)])
    hits = [32 in confirmed(peers.judge(fleet(64, rng, {32: 1 / (1 + smallest)}))) for _ in range(100)]
    assert np.mean(hits) >= 0.75
    half = [32 in confirmed(peers.judge(fleet(64, rng, {32: 1 / (1 + smallest / 2)}))) for _ in range(50)]
    assert np.mean(half) <= 0.5


@pytest.mark.parametrize(
    ("digests", "rows"),
    [
        (["a", "a", "b"], [2]),
        (["a", "b"], []),
        (["a", "b", "c"], []),
        (["a", "", "a", "b", "a"], [3]),
        (["a", "a", "b", "b"], []),
        (["", "", ""], []),
        (["a", "a", "-", "a"], [2]),
        (["-", "-", "-", "a", "b"], []),  # most disagree with themselves: nobody knows what is right
        (["-", "-", "-", "a"], []),
    ],
)
def test_the_bitwise_vote(digests, rows):
    assert peers.minority(digests) == rows


@given(st.lists(st.tuples(st.integers(-1, 3), st.floats(-1, 1)), min_size=1, max_size=40), st.integers(1, 5))
def test_the_effect_of_a_label_is_the_median_over_it_where_enough_share_it(rows, least):
    labels, u = np.asarray([label for label, _ in rows]), np.asarray([value for _, value in rows])
    effect, found = peers._effect(u, labels, least)
    known = sorted(set(labels[labels >= 0].tolist()))
    wanted = {n: float(np.median(u[labels == n])) for n in known if np.sum(labels == n) >= least} if len(known) > 1 else {}
    assert found == wanted
    assert effect.tolist() == [wanted.get(label, 0.0) for label in labels.tolist()]


@given(st.lists(st.floats(-20, 5), min_size=4, max_size=40))
def test_any_times_are_judged_and_the_fastest_is_never_slow(values):
    y = np.asarray(values)
    nothing = np.full(len(y), math.nan)
    group = peers.Group(y, nothing, nothing, nothing, np.full(len(y), -1), np.zeros(len(y), np.int64))
    found = peers.judge(group)
    assert all(0 < s.ratio < 1 for s in found.slow)
    assert int(np.argmin(y)) not in {s.row for s in found.slow}
