"""Who is slow among pairs: planted endpoints, links and leaves in noisy sweeps are named, and nobody in clean ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clustergauge.pairs import THRESHOLD, Endpoint, analyse
from collectives.pairs import rounds
from tests.simulated_pairs import BASE, Fleet
from tests.swept import flat

CLEAN = [(3, 60), (4, 60), (8, 60), (16, 40), (64, 8)]


def look(fleet: Fleet, seed: int, passes: int = 5):
    return analyse(fleet.endpoints(), fleet.sweep(seed, passes))


def named(fleet: Fleet, seed: int) -> set[tuple[str, str, str]]:
    return {(s.kind, s.where, s.direction) for s in look(fleet, seed).suspects}


def found(trials: int, *wanted: tuple[str, str, str], **fleet) -> tuple[int, int]:
    """In how many trials exactly the wanted ones were named, and in how many somebody else was, too."""
    got = [named(Fleet(**fleet), seed) for seed in range(trials)]
    return sum(g == set(wanted) for g in got), sum(bool(g - set(wanted)) for g in got)


@pytest.mark.parametrize(("n", "trials"), CLEAN)
def test_nobody_is_named_in_a_clean_sweep(n, trials):
    assert found(trials, n=n) == (trials, 0)


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.15])
def test_nobody_is_named_however_restless_the_machine(noise):
    assert found(60, n=4, noise=noise, outliers=0.1)[1] <= 1
    assert found(30, n=8, noise=noise, outliers=0.05)[1] <= 1


@pytest.mark.parametrize("left", [0.2, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("n", [4, 8, 64])
def test_an_endpoint_that_sends_slowly_is_named_with_its_direction(n, left):
    trials = 8 if n == 64 else 40
    hits, others = found(trials, ("endpoint", "n1", "sends"), n=n, tx={1: left})
    assert hits >= {4: 0.7 if left == 0.9 else 0.95, 8: 0.95, 64: 1.0}[n] * trials
    assert others == 0


@pytest.mark.parametrize("n", [3, 4, 8, 16])
def test_receiving_and_both_are_told_apart(n):
    assert found(30, ("endpoint", "n1", "receives"), n=n, rx={1: 0.5})[0] >= 28
    assert found(30, ("endpoint", "n1", "both"), n=n, tx={1: 0.5}, rx={1: 0.5})[0] >= 27


@pytest.mark.parametrize("n", [3, 4, 8, 16])
def test_a_bad_link_is_not_blamed_on_its_ends(n):
    assert found(30, ("link", "n1 → n0", ""), n=n, links={(1, 0): 0.5}) == (30, 0)
    both_ways = ("link", "n1 → n0", ""), ("link", "n0 → n1", "")
    assert found(30, *both_ways, n=n, links={(1, 0): 0.5, (0, 1): 0.5}) == (30, 0)


def test_a_link_that_lost_a_tenth_is_found_in_a_quiet_fleet():
    assert found(20, ("link", "n1 → n0", ""), n=16, links={(1, 0): 0.9}, noise=0.01) == (20, 0)


def test_half_of_a_small_fleet_may_be_bad():
    two = ("endpoint", "n1", "receives"), ("endpoint", "n2", "receives")
    assert found(30, *two, n=4, rx={1: 0.5, 2: 0.5}) == (30, 0)
    two = ("endpoint", "n1", "sends"), ("endpoint", "n2", "sends")
    assert found(30, *two, n=4, tx={1: 0.5, 2: 0.5}) == (30, 0)
    mixed = ("endpoint", "n1", "sends"), ("endpoint", "n2", "receives")
    assert found(30, *mixed, n=4, tx={1: 0.4}, rx={2: 0.5})[0] >= 28


def test_the_ratio_is_right_and_inside_its_interval():
    for seed in range(20):
        (suspect,) = look(Fleet(n=8, tx={3: 0.6}), seed).suspects
        assert suspect.low <= 0.6 <= suspect.high
        assert suspect.ratio == pytest.approx(0.6, rel=0.05)
        assert suspect.confirmed


def test_only_what_is_surely_below_the_threshold_is_confirmed():
    barely = [s for seed in range(20) for s in look(Fleet(n=8, tx={3: 0.8}), seed).suspects]
    assert len(barely) >= 19
    assert sum(s.confirmed for s in barely) <= 1
    for suspect in barely:
        assert suspect.confirmed == (suspect.high < THRESHOLD)


@pytest.mark.parametrize(("n", "trials"), [(4, 60), (8, 60), (16, 30), (64, 10)])
def test_the_smallest_degradation_it_states_is_one_that_it_finds(n, trials):
    hits = 0
    for seed in range(trials):
        smallest = look(Fleet(n=n), seed).smallest_degradation
        assert smallest is not None
        assert 0.03 < smallest < 0.4
        hits += ("endpoint", "n2", "receives") in named(Fleet(n=n, rx={2: 1 - smallest}), seed + 1000)
    assert hits >= 0.8 * trials


def test_more_passes_show_smaller_losses():
    few, many = (
        np.median([look(Fleet(n=8, fixed=0, own=0), s, p).smallest_degradation or 1 for s in range(20)]) for p in (5, 40)
    )
    assert many < few


def test_a_disturbance_of_some_passes_is_not_a_slow_endpoint():
    fleet = Fleet(n=4, outliers=0)
    for seed in range(20):
        sweep = fleet.sweep(seed, 5)
        sweep[:3, 2] *= 0.4  # a neighbour at work on host 2 during three passes of five
        assert analyse(fleet.endpoints(), sweep).suspects == []


# -- leaves


@pytest.mark.parametrize(("leaves", "size"), [(3, 4), (4, 8), (8, 8)])
def test_a_leaf_is_named_and_none_of_its_endpoints(leaves, size):
    fleet = {"n": leaves * size, "per_leaf": size, "outliers": 0.01}
    trials = 6
    assert found(trials, **fleet) == (trials, 0)
    assert found(trials, ("leaf", "leaf-1", "sends"), uplinks_out={1: 0.6}, **fleet) == (trials, 0)
    assert found(trials, ("leaf", "leaf-1", "receives"), uplinks_in={1: 0.6}, **fleet) == (trials, 0)
    assert found(trials, ("leaf", "leaf-1", "both"), leaves={1: 0.6}, **fleet) == (trials, 0)


def test_uplinks_and_the_switch_itself_are_told_apart():
    (uplinks,) = look(Fleet(n=16, per_leaf=4, uplinks_out={2: 0.5}, outliers=0), 1).suspects
    assert uplinks.note == "its uplinks: pairs inside it are normal"
    assert uplinks.ratio == pytest.approx(0.5, rel=0.05)
    (switch,) = look(Fleet(n=16, per_leaf=4, leaves={2: 0.5}, outliers=0), 1).suspects
    assert switch.note == "inside it, too"


def test_a_bad_endpoint_beside_a_bad_leaf_is_named_too():
    both = ("leaf", "leaf-1", "sends"), ("endpoint", "n0", "receives")
    assert found(10, *both, n=32, per_leaf=8, uplinks_out={1: 0.6}, rx={0: 0.5}, outliers=0.01) == (10, 0)


def test_oversubscription_is_nobodys_fault():
    assert found(10, n=32, per_leaf=8, across=0.3, outliers=0.01) == (10, 0)


def test_two_leaves_cannot_tell_and_say_so():
    analysis = look(Fleet(n=16, per_leaf=8, uplinks_out={1: 0.5}, outliers=0), 1)
    assert "with two leaves it cannot be told whose uplinks are slow: leaf-0, leaf-1" in analysis.notes
    assert not any(s.kind == "leaf" for s in analysis.suspects)


def of_unknown_leaf(fleet: Fleet, *strangers: int):
    """The endpoints of a fleet, some of them in no leaf that is known."""
    return [replace(end, leaf="") if i in strangers else end for i, end in enumerate(fleet.endpoints())]


@pytest.mark.parametrize("strangers", [(5,), (1, 5), (0, 1, 5, 6), tuple(range(1, 16))])
def test_whose_leaf_is_unknown_is_not_slow_for_crossing_leaves(strangers):
    fleet = Fleet(n=16, per_leaf=4, across=0.5, outliers=0.01)
    for seed in range(10):
        analysis = analyse(of_unknown_leaf(fleet, *strangers), fleet.sweep(seed))
        assert [s for s in analysis.suspects if s.confirmed] == []


def test_an_endpoint_whose_leaf_is_unknown_is_named_where_it_is_slower_than_what_crosses_leaves():
    fleet = Fleet(n=16, per_leaf=4, across=0.7, tx={5: 0.4}, outliers=0)
    for seed in range(10):
        (suspect,) = analyse(of_unknown_leaf(fleet, 5, 6), fleet.sweep(seed)).suspects
        assert (suspect.kind, suspect.where, suspect.direction, suspect.confirmed) == ("endpoint", "n5", "sends", True)


def test_a_leaf_is_named_beside_hosts_of_unknown_leaves():
    fleet = Fleet(n=20, per_leaf=4, uplinks_out={1: 0.5}, outliers=0)
    (suspect,) = analyse(of_unknown_leaf(fleet, 16, 17, 18, 19), fleet.sweep(1)).suspects
    assert (suspect.kind, suspect.where, suspect.direction) == ("leaf", "leaf-1", "sends")


# -- GPUs of hosts


def test_a_gpu_is_told_apart_inside_its_host_and_across():
    suspects = look(Fleet(n=16, per_host=8, tx={5: 0.6}, outliers=0), 1).suspects
    assert {(s.where, s.direction, s.note) for s in suspects} == {
        ("n5", "sends", "inside its host"),
        ("n5", "sends", "to and from other hosts"),
    }


def test_a_host_whose_inside_is_slow_is_named_as_a_host():
    fleet = Fleet(n=24, per_host=8, outliers=0)
    sweep = fleet.sweep(1)
    sweep[:, 8:16, 8:16] *= 0.5
    (suspect,) = analyse(fleet.endpoints(), sweep).suspects
    assert (suspect.kind, suspect.where, suspect.confirmed) == ("node", "host-1", True)
    assert suspect.ratio == pytest.approx(0.5, rel=0.05)


# -- what is not known


def test_two_endpoints_cannot_tell():
    fleet = Fleet(n=2, outliers=0)
    quiet = look(fleet, 1)
    assert quiet.suspects == []
    assert quiet.smallest_degradation is None
    assert quiet.notes == ["with two endpoints it cannot be told which is slow: n0, n1"]
    (one_way,) = look(Fleet(n=2, tx={1: 0.4}, outliers=0), 1).suspects
    assert (one_way.kind, one_way.where) == ("link", "n1 → n0")
    assert one_way.note == "against the other direction: sender, receiver or link"


def test_what_was_not_measured_is_not_fine():
    fleet = Fleet(n=6, outliers=0)
    sweep = fleet.sweep(1)
    sweep[:, 2, :] = np.nan
    analysis = analyse(fleet.endpoints(), sweep)
    assert analysis.suspects == []
    assert analysis.notes == ["no pair of n2 was measured in both directions"]


def test_dead_pairs_do_not_hide_a_bad_endpoint():
    fleet = Fleet(n=8, tx={3: 0.5}, outliers=0.01)
    for seed in range(20):
        sweep = fleet.sweep(seed)
        dead = np.random.default_rng(seed).random((8, 8)) < 0.2
        sweep[:, dead] = np.nan
        assert {(s.kind, s.where, s.direction) for s in analyse(fleet.endpoints(), sweep).suspects} == {
            ("endpoint", "n3", "sends")
        }


def test_one_pair_alone_cannot_tell_endpoint_from_link():
    fleet = Fleet(n=6, outliers=0)
    sweep = fleet.sweep(1)
    sweep[:, 5, 1:] = np.nan
    sweep[:, 5, 0] *= 0.3
    (suspect,) = analyse(fleet.endpoints(), sweep).suspects
    assert (suspect.kind, suspect.where) == ("link", "n5 → n0")
    assert suspect.note == "n5 has no other measured pair: the endpoint or the link"


def test_a_large_fleet_is_judged_by_some_of_its_rounds():
    fleet = Fleet(n=128, rx={77: 0.8}, outliers=0.01)
    sweep, played = fleet.sweep(1), np.zeros((128, 128), bool)
    for a, b in (pair for turn in rounds(128, 5) for pair in turn):
        played[a, b] = played[b, a] = True
    assert played.sum() == 8 * 128
    sweep[:, ~played] = np.nan
    assert {(s.where, s.direction) for s in analyse(fleet.endpoints(), sweep).suspects} == {("n77", "receives")}


def test_a_sweep_without_any_number_says_nothing_and_does_not_fail():
    ends = [Endpoint(f"n{i}", f"h{i}") for i in range(3)]
    analysis = analyse(ends, np.full((2, 3, 3), np.nan))
    assert analysis.suspects == []
    assert analysis.smallest_degradation is None
    assert analysis.notes == ["no pair of n0, n1, n2 was measured in both directions"]
    zero = analyse(ends, np.zeros((1, 3, 3)))
    assert zero.suspects == []


def test_equal_numbers_accuse_nobody():
    sweep = np.full((5, 4, 4), BASE)
    analysis = analyse([Endpoint(f"n{i}", f"h{i}") for i in range(4)], sweep)
    assert analysis.suspects == []
    assert analysis.smallest_degradation == pytest.approx(0.0319, abs=1e-4)  # 3 %, and twice the least scale of 0.1 %


def test_who_is_slow_beside_a_worse_one_must_be_so_without_it():
    """One pair of n0 is a little slow, and the one with the bad endpoint more than others': too little to accuse n0."""
    ends = [Endpoint(f"n{i}", f"n{i}") for i in range(4)]
    said = analyse(ends, flat(4, sends_3=0.22, receives_3=0.22, link_0_2=0.95, link_0_3=0.9))
    assert [(s.where, s.direction) for s in said.suspects if s.kind == "endpoint"] == [("n3", "both")]
    said = analyse(ends, flat(4, sends_3=0.22, receives_3=0.22, sends_0=0.9))
    assert {(s.where, s.direction) for s in said.suspects} == {("n3", "both"), ("n0", "sends")}
