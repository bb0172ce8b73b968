"""The statistics against planted truth: exact where a rule is exact, by seeded simulation where it promises a frequency."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy.signal import lfilter
from scipy.stats import mannwhitneyu, t as student, wilcoxon

from clustergauge import chance, stats
from clustergauge.measure import Plan, Sampler
from clustergauge.model import Workload
from clustergauge.probe import Work
from clustergauge.world import Serial
from tests.test_measure import FakeClock

times = st.floats(1e-7, 1e3)
series = st.lists(times, min_size=1, max_size=60)
launches = st.lists(st.lists(times, min_size=1, max_size=12), min_size=1, max_size=6)


def noise(random: np.random.Generator, cv: float, rho: float, count: int) -> np.ndarray:
    """Lognormal AR(1) noise around a median of 1."""
    steps = random.standard_normal(count + 50) * math.sqrt(1 - rho**2)
    return np.exp(cv * lfilter([1], [1, -rho], steps)[50:])


# --------------------------------------------------------------------------------------------------------------------------
# one launch


def test_the_looks_grow_by_three_tenths():
    assert list(itertools.islice(stats.looks(), 7)) == [20, 26, 34, 45, 59, 77, 101]


def test_the_median_of_an_even_number_lies_between_the_middle_two():
    assert stats.median([4.0, 1.0, 3.0, 2.0]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        stats.median([])


def test_a_slow_start_is_cut_and_nothing_else():
    steady = list(noise(np.random.default_rng(1), 0.01, 0.0, 60))
    assert stats.warmup_cut([1.3, 1.2, 1.1, *steady]) == 3
    assert stats.warmup_cut(steady) == 0
    assert stats.warmup_cut([1.0] * 20) == 0


def test_a_late_outlier_does_not_drag_the_cut_to_itself():
    steady = list(noise(np.random.default_rng(1), 0.01, 0.0, 60))
    assert stats.warmup_cut([2.0, 2.0, *steady[:20], 50.0, *steady[20:]]) == 2


def test_at_most_half_is_warm_up_and_enough_for_an_interval_remains():
    assert stats.warmup_cut([3.0] * 15 + [1.0] * 5) <= 10
    assert stats.warmup_cut([9.0, 9.0, 1.0, 1.01, 1.02, 1.0, 1.01, 1.02]) == 2
    assert stats.warmup_cut([9.0, 9.0, 9.0, 1.01, 1.02, 1.0, 1.01, 1.02]) <= 2
    assert stats.warmup_cut([9.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == 0


def test_the_autocorrelation_is_that_of_the_formula():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # deviations −2 … 2: lag one 4 of 10
    assert stats.autocorrelation(values) == pytest.approx(0.4 + (1 + 3 * 0.4) / 5)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_the_autocorrelation_of_a_long_series_is_found(rho):
    assert stats.autocorrelation(noise(np.random.default_rng(2), 0.02, rho, 20_000)) == pytest.approx(rho, abs=0.03)


def test_one_outlier_hides_no_autocorrelation():
    values = noise(np.random.default_rng(2), 0.01, 0.9, 500)
    values[250] = 100.0
    assert stats.autocorrelation(values) > 0.8


def test_the_autocorrelation_keeps_its_bounds():
    assert stats.autocorrelation([1.0, 2.0] * 50) == 0.0
    assert stats.autocorrelation(list(range(1, 10_001))) == 0.98
    assert stats.autocorrelation([1.0]) == 0.98
    assert stats.autocorrelation([1.0] * 20) == pytest.approx(1 / 20)


def test_the_interval_of_the_median_is_at_the_ranks_of_the_formula():
    values = [float(v) for v in range(1, 101)] * 1
    shuffled = list(np.random.default_rng(0).permutation(values))
    rho = stats.autocorrelation(shuffled)
    rank = math.floor(50 - 0.98 * math.sqrt(100 * (1 + rho) / (1 - rho)))
    assert stats.median_interval(shuffled) == stats.Interval(50.5, float(rank), float(101 - rank))
    assert rank in (39, 40)  # the exact binomial interval of independent samples is that of the 40th and 61st


def test_six_samples_are_the_fewest_that_give_an_interval():
    assert stats.median_interval([1.0] * 6) == stats.Interval(1.0, 1.0, 1.0)
    assert stats.median_interval([1.0] * 5) == stats.Interval(1.0, None, None)
    assert stats.median_interval([1.0] * 5).half_width is None


def test_the_half_width_is_relative():
    assert stats.Interval(2.0, 1.9, 2.3).half_width == pytest.approx(0.1)
    assert stats.Interval(0.0, 0.0, 0.0).half_width is None


def test_a_99th_percentile_needs_many_samples_for_an_interval():
    random = np.random.default_rng(4)
    assert stats.quantile_interval(random.random(300), 0.99).low is None
    found = stats.quantile_interval(random.random(5000), 0.99)
    assert found.low is not None
    assert found.high is not None
    assert 0.98 < found.low < found.median < found.high < 1


def test_converged_needs_a_narrow_interval_and_enough_independent_samples():
    assert stats.converged([1.0] * 20, 0.01)
    assert not stats.converged([], 0.01)
    assert not stats.converged([1.0] * 9, 0.01)
    alternating = [1.0, 1.03] * 50
    assert not stats.converged(alternating, 0.01)
    assert stats.converged(alternating, 0.02)
    slow = list(1 + 0.001 * np.sin(np.arange(100) / 30))  # narrow, but worth a few samples only
    assert not stats.converged(slow, 0.01)


@pytest.mark.parametrize(
    ("cv", "rho", "least"),
    [(0.01, 0.0, 0.92), (0.01, 0.3, 0.92), (0.01, 0.6, 0.88), (0.03, 0.0, 0.92), (0.03, 0.3, 0.92), (0.03, 0.6, 0.88)],
)
def test_the_interval_at_which_measuring_stops_covers_the_truth(cv, rho, least):
    """The whole procedure: cut, looks, stopping rule, as `Sampler` carries it out."""
    random = np.random.default_rng(20)
    trials, covered = 250, 0
    for _ in range(trials):
        clock = FakeClock(iter(noise(random, cv, rho, 4000).tolist()))
        measured = Sampler(Work(run=lambda: None, workload=Workload()), clock, Serial(), Plan(budget_s=3000.0)).measure()
        assert measured.stop_reason == "converged"
        found = stats.median_interval(measured.samples_s[measured.warmup_cut :])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1 <= found.high
    assert covered / trials >= least


def test_looking_all_the_time_would_make_the_interval_lie():
    """Why there are looks: the same rule asked after every sample covers less than the looks promise."""
    random = np.random.default_rng(21)
    covered = 0
    for _ in range(200):
        samples = noise(random, 0.01, 0.6, 400)
        for count in range(6, 400):
            found = stats.median_interval(samples[:count])
            if found.half_width is not None and found.half_width <= 0.01:
                break
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1 <= found.high
    assert covered / 200 < 0.88


# --------------------------------------------------------------------------------------------------------------------------
# several launches


def test_the_spread_between_launches_needs_three():
    assert stats.run_spread([1.0, 1.1]) is None
    assert stats.run_spread([math.exp(v) for v in (0.0, 0.1, 0.2)]) == pytest.approx(0.1)
    assert stats.run_spread([0.0, 1.0, 1.0]) is None


def test_one_launch_is_judged_with_an_assumed_spread():
    found = stats.judging_interval([[2.0] * 20])
    assert found.median == 2.0
    assert found.low == pytest.approx(2 * math.exp(-1.96 * 0.005), rel=1e-6)
    assert found.high == pytest.approx(2 * math.exp(1.96 * 0.005), rel=1e-6)
    assert stats.judging_interval([[2.0] * 20], spread=0.05).half_width == pytest.approx(0.098, rel=0.01)


def test_a_width_inside_the_launch_adds_in_squares():
    samples = [1.0, 1.02] * 50
    inside = stats.median_interval(samples)
    assert inside.high == 1.02
    found = stats.judging_interval([samples])
    assert found.high == pytest.approx(1.01 * math.exp(math.hypot(math.log(1.02 / 1.01), 1.96 * 0.005)), rel=1e-6)
    again = stats.judging_interval([samples, samples])  # both parts shrink with √2
    narrower = math.hypot(math.log(1.02 / 1.01), 1.96 * 0.005) / math.sqrt(2)
    assert again.high == pytest.approx(1.01 * math.exp(narrower), rel=1e-6)


def test_three_launches_are_judged_by_their_own_spread():
    middles = [math.exp(v) for v in (-0.02, 0.0, 0.02)]
    found = stats.judging_interval([[m] * 20 for m in middles])
    assert found.median == 1.0
    assert found.high == pytest.approx(math.exp(4.3027 * 0.02 / math.sqrt(3)))
    assert stats.judging_interval([[1.0] * 20] * 3) == stats.Interval(1.0, 1.0, 1.0)


def test_too_few_samples_have_no_interval_unless_the_launches_speak():
    assert stats.judging_interval([[1.0] * 3]) == stats.Interval(1.0, None, None)
    assert stats.judging_interval([[1.0] * 3] * 2).low is None
    found = stats.judging_interval([[1.0], [1.1], [1.2]])
    assert found.low is not None
    assert found.low < 1.0 < 1.2 < (found.high or 0)


def test_a_time_of_nothing_is_not_judged():
    assert stats.judging_interval([[0.0] * 20]) == stats.Interval(0.0, None, None)


@pytest.mark.parametrize("freedom", [1, 2, 4, 10, 11, 15, 29, 100])
def test_the_quantiles_of_student_are_right(freedom):
    assert chance.student_t(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_judging_interval_covers_the_truth_of_launches_that_differ(count):
    random = np.random.default_rng(30)
    covered = told = 0
    for _ in range(400):
        found = stats.judging_interval(
            [noise(random, 0.01, 0.3, 20) * math.exp(0.005 * random.standard_normal()) for _ in range(count)]
        )
        if found.low is not None and found.high is not None:
            told += 1
            covered += found.low <= 1 <= found.high
    assert told > 350
    assert covered / told >= 0.93


# --------------------------------------------------------------------------------------------------------------------------
# two runs


def of_logs(*values: float) -> list[list[float]]:
    """Launches whose ln(median) are these."""
    return [[math.exp(v)] * 10 for v in values]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]),
        ([1, 3, 5, 7, 9], [2, 4, 6, 8, 10]),
        ([1, 2, 3, 4, 8], [5, 6, 7, 9, 10]),
        ([1, 2, 3, 9], [4, 5, 6, 7, 8, 10]),
        ([1, 5, 6, 7, 8, 9, 10, 11, 12, 13], [2, 3, 4, 14, 15, 16, 17, 18, 19, 20]),
    ],
)
def test_the_mann_whitney_test_is_exact(a, b):
    expected = mannwhitneyu(a, b, method="exact").pvalue
    assert chance.mann_whitney(np.array(a, float), np.array(b, float)) == pytest.approx(expected)


@given(st.lists(st.integers(-1000, 1000).filter(bool), min_size=1, max_size=12, unique_by=abs))
def test_the_test_of_pairs_is_exact(differences):
    expected = wilcoxon(differences, method="exact").pvalue
    assert chance.signed_ranks(np.array(differences, float)) == pytest.approx(expected)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_the_test_of_pairs_is_exact_with_ties_and_leaves_zeros_out(differences):
    known = np.array([d for d in differences if d], float)
    size = np.abs(known)
    ranks = np.array([(size < one).sum() + ((size == one).sum() + 1) / 2 for one in size])
    sums = [sum(ranks[list(c)]) for n in range(len(known) + 1) for c in itertools.combinations(range(len(known)), n)]
    far = abs(ranks[known > 0].sum() - ranks.sum() / 2)
    expected = sum(abs(one - ranks.sum() / 2) >= far for one in sums) / len(sums)
    assert chance.signed_ranks(np.array(differences, float)) == pytest.approx(min(1, expected))


@pytest.mark.parametrize(("count", "depth"), [(1, 0), (5, 0), (6, 1), (8, 4), (12, 14), (30, 138)])
def test_the_interval_of_pairs_holds_what_it_promises(count, depth):
    """As tables of signed ranks have them (Hollander and Wolfe, "Nonparametric Statistical Methods"), and dealt out."""
    assert chance.depth_of_pairs(count, 0.05) == depth
    if depth and count <= 12:
        ranks = np.arange(1, count + 1)
        sums = [sum(ranks[list(c)]) for n in range(count + 1) for c in itertools.combinations(range(count), n)]
        assert np.mean(np.array(sums) < depth) <= 0.025 < np.mean(np.array(sums) < depth + 1)


def test_what_disturbs_both_of_a_pair_is_gone():
    disturbed = [1.0, 1.3, 0.8, 2.0, 1.1, 1.0]
    a, b = [[x] * 9 for x in disturbed], [[1.05 * x] * 9 for x in disturbed]
    found = stats.compare_pairs([stats.difference({0: x}, {0: y}) for x, y in zip(a, b, strict=True)])
    assert (found.shift, found.low, found.high) == pytest.approx((0.05,) * 3)
    assert (found.word, found.weak, found.p) == ("changed", False, 2 / 2**6)
    assert stats.compare_launches(a, b).word == "inconclusive"


def test_what_lasts_half_a_launch_is_gone_from_its_turns():
    slow = [1.0] * 10 + [1.7] * 9
    a = {float(k): [x, 1.1 * x, x] for k, x in enumerate(slow)}
    b = {k + 0.5: [1.05 * x] for k, x in enumerate([*slow[1:], 1.7])} | {30.0 + k: [9.0] for k in range(9)}  # then B was alone
    assert stats.difference(a, b) == pytest.approx(math.log(1.05))
    assert stats.difference(b, a) == pytest.approx(-math.log(1.05))
    with pytest.raises(ValueError, match="times above 0"):
        stats.difference({0.0: [0.0]}, {1.0: [1.0]})


def test_a_drift_within_a_launch_is_in_as_many_steps_with_either_sign():
    a, b = {2.0 * k: [1.01**k] for k in range(20)}, {2.0 * k + 1: [1.05 * 1.01 ** (k + 0.5)] for k in range(19)}
    assert stats.difference(a, b) == pytest.approx(math.log(1.05))


def test_turns_that_do_not_lie_beside_each_other_say_nothing():
    assert stats.difference({k: [1.0] for k in (0.0, 1.0, 2.0, 3.0)}, {k: [1.0] for k in (4.0, 5.0, 6.0)}) is None
    assert stats.difference({0.0: [1.0]}, {0.0: [2.0]}) == pytest.approx(math.log(2))  # without turns: launch against launch


def test_five_pairs_are_weak_and_none_no_comparison():
    assert stats.compare_pairs([0.1] * 5).weak
    with pytest.raises(ValueError, match="at least one pair"):
        stats.compare_pairs([])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_pairs_say_of_b_what_they_say_of_a_the_other_way(differences):
    one, other = stats.compare_pairs(differences), stats.compare_pairs([-d for d in differences])
    assert one.word == other.word
    assert 1 + one.shift == pytest.approx(1 / (1 + other.shift))
    assert 1 + one.low == pytest.approx(1 / (1 + other.high))


def test_ties_share_their_ranks_exactly():
    a, b = [1.0, 2.0, 2.0], [2.0, 3.0, 3.0, 4.0]
    values = np.array([*a, *b])
    doubled = np.array([2, 6, 6, 6, 11, 11, 14])  # twice the mean ranks
    assert sorted(values) == list(values)
    sums = [sum(doubled[list(c)]) for c in itertools.combinations(range(7), 3)]
    far = abs(14 - 24)
    expected = sum(abs(s - 24) >= far for s in sums) / len(sums)
    assert chance.mann_whitney(np.array(a), np.array(b)) == pytest.approx(expected)
    assert chance.mann_whitney(np.ones(5), np.ones(5)) == 1.0


@pytest.mark.parametrize(
    ("a", "b", "depth"),  # one more than the critical U of the published two-sided .05 tables
    [
        (5, 5, 3),
        (4, 4, 1),
        (3, 5, 1),
        (6, 6, 6),
        (7, 7, 9),
        (8, 8, 14),
        (10, 10, 24),
        (3, 3, 0),
        (2, 2, 0),
        (1, 1, 0),
        (1, 20, 0),
        (2, 8, 1),
    ],
)
def test_the_interval_reaches_as_deep_as_the_exact_distribution_allows(a, b, depth):
    assert chance.depth(a, b, 0.05) == depth


def test_five_against_five_take_the_3rd_to_23rd_difference():
    a, b = (0.0, 0.001, 0.002, 0.003, 0.004), (0.05, 0.052, 0.055, 0.059, 0.064)
    found = stats.compare_launches(of_logs(*a), of_logs(*b))
    differences = sorted(y - x for x in a for y in b)
    assert found.shift == pytest.approx(math.expm1(differences[12]))
    assert found.low == pytest.approx(math.expm1(differences[2]))
    assert found.high == pytest.approx(math.expm1(differences[22]))
    assert found.p == pytest.approx(2 / 252)
    assert (found.word, found.weak) == ("changed", False)


def test_a_clear_but_tiny_change_is_no_change():
    a, b = (0.0, 0.0001, 0.0002, 0.0003, 0.0004), (0.005, 0.0051, 0.0052, 0.0053, 0.0054)
    found = stats.compare_launches(of_logs(*a), of_logs(*b))
    assert found.p == pytest.approx(2 / 252)
    assert found.word == "same"
    assert stats.compare_launches(of_logs(*a), of_logs(*b), delta=0.001).word == "changed"


def test_what_is_not_shown_to_be_the_same_is_inconclusive():
    a, b = (0.0, 0.01, 0.02, 0.03, 0.04), (0.0, 0.012, 0.022, 0.032, 0.041)
    assert stats.compare_launches(of_logs(*a), of_logs(*b)).word == "inconclusive"


def test_four_launches_a_side_can_change_and_three_only_weakly():
    a, b = (0.0, 0.001, 0.002, 0.003), (0.05, 0.051, 0.052, 0.053)
    four, three = stats.compare_launches(of_logs(*a), of_logs(*b)), stats.compare_launches(of_logs(*a[:3]), of_logs(*b[:3]))
    assert (four.word, four.weak, four.p) == ("changed", False, pytest.approx(2 / 70))
    assert (three.word, three.weak, three.p) == ("changed", True, pytest.approx(2 / 20))
    error = 1.96 * math.sqrt(2 * 0.001**2 / 3)  # narrower than the differences: these bound the interval
    assert 0.05 - error > 0.048
    assert three.low == pytest.approx(math.expm1(0.048))
    assert three.high == pytest.approx(math.expm1(0.052))


def test_one_launch_a_side_leans_on_an_assumed_spread_and_says_weak():
    error = 1.96 * math.sqrt(2) * 0.005
    found = stats.compare_launches(of_logs(0.0), of_logs(0.05))
    assert (found.word, found.weak, found.p) == ("changed", True, None)
    assert found.low == pytest.approx(math.expm1(0.05 - error), rel=1e-4)
    assert found.high == pytest.approx(math.expm1(0.05 + error), rel=1e-4)
    assert stats.compare_launches(of_logs(0.0), of_logs(0.012)).word == "inconclusive"
    assert stats.compare_launches(of_logs(0.0), of_logs(0.05), spread=0.05).word == "inconclusive"
    assert stats.compare_launches(of_logs(0.0), of_logs(0.0), spread=0.001).word == "same"


def test_one_launch_a_side_counts_the_noise_inside_it():
    random = np.random.default_rng(5)
    found = stats.compare_launches([noise(random, 0.05, 0.0, 10)], [noise(random, 0.05, 0.0, 10)])
    assert found.high - found.low > 2 * 1.96 * math.sqrt(2) * 0.005 * 1.5
    assert found.word == "inconclusive"


def test_a_comparison_of_nothing_is_refused():
    for a, b in (([], [[1.0]]), ([[1.0]], []), ([[0.0]], [[1.0]]), ([[1.0]], [[]])):
        with pytest.raises(ValueError, match=r"no values|at least one launch"):
            stats.compare_launches(a, b)


@pytest.mark.parametrize("count", [2, 10, 30])
def test_equal_cases_are_called_changed_in_at_most_3_of_100_and_5_percent_is_found(count):
    """Five launches a side with a spread of 0.5 % between them; CV 1 %, ρ .3."""
    random = np.random.default_rng(40)

    def side(shift: float) -> list[np.ndarray]:
        return [noise(random, 0.01, 0.3, count) * (1 + shift) * math.exp(0.005 * random.standard_normal()) for _ in range(5)]

    alarms = [stats.compare_launches(side(0.0), side(0.0)).word for _ in range(400)]
    found = [stats.compare_launches(side(0.0), side(0.05)).word for _ in range(150)]
    small = [stats.compare_launches(side(0.0), side(0.02)).word for _ in range(150)]
    assert alarms.count("changed") / 400 <= 0.03
    assert found.count("changed") / 150 >= 0.98
    assert small.count("changed") / 150 >= 0.6
    assert "same" not in found


def test_the_smallest_change_is_one_that_is_found():
    random = np.random.default_rng(50)

    def side(shift: float) -> list[np.ndarray]:
        return [noise(random, 0.01, 0.3, 20) * (1 + shift) * math.exp(0.01 * random.standard_normal()) for _ in range(6)]

    named = float(np.median([stats.smallest_change(side(0.0)) for _ in range(100)]))
    words = [stats.compare_launches(side(0.0), side(named)).word for _ in range(200)]
    assert 0.8 <= words.count("changed") / 200 <= 0.97


def test_the_smallest_change_is_never_below_what_counts_as_one():
    assert stats.smallest_change([[1.0] * 10] * 5) == pytest.approx(0.01)
    assert stats.smallest_change([[1.0] * 10] * 5, delta=0.03) == pytest.approx(0.03)
    assert stats.smallest_change([[1.0] * 10]) > 0.02  # one launch: the spread is assumed


# --------------------------------------------------------------------------------------------------------------------------
# whatever the samples


@settings(deadline=None)
@given(series)
def test_an_interval_holds_its_median_and_keeps_its_order(samples):
    for found in (stats.median_interval(samples), stats.judging_interval([samples])):
        assert min(samples) <= found.median <= max(samples)
        if found.low is not None and found.high is not None:
            assert 0 < found.low <= found.median <= found.high < math.inf
            assert 0 <= (found.half_width or 0) < math.inf


@settings(deadline=None)
@given(launches, st.integers(-20, 20))
def test_a_change_of_units_changes_nothing(taken, power):
    factor = 2.0**power
    scaled = [[factor * s for s in samples] for samples in taken]
    flat = [s for samples in taken for s in samples]
    assert stats.warmup_cut([factor * s for s in flat]) == stats.warmup_cut(flat)
    assert stats.autocorrelation([factor * s for s in flat]) == pytest.approx(stats.autocorrelation(flat))
    plain, moved = stats.judging_interval(taken), stats.judging_interval(scaled)
    assert moved.median == pytest.approx(factor * plain.median)
    assert (moved.low is None) == (plain.low is None)
    if plain.low is not None:
        assert moved.low == pytest.approx(factor * plain.low)
    assert stats.smallest_change(scaled) == pytest.approx(stats.smallest_change(taken), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(launches, launches)
def test_b_against_a_says_the_opposite_of_a_against_b(a, b):
    there, back = stats.compare_launches(a, b), stats.compare_launches(b, a)
    assert there.low <= there.shift <= there.high
    assert math.isfinite(there.low)
    assert there.word == back.word
    assert there.weak == back.weak
    assert (there.p or 0) == pytest.approx(back.p or 0)
    assert 1 + back.shift == pytest.approx(1 / (1 + there.shift), rel=1e-6)
    if there.high < 1e6:
        assert 1 + back.low == pytest.approx(1 / (1 + there.high), rel=1e-6)


@settings(deadline=None)
@given(launches)
def test_a_case_against_itself_has_not_changed(taken):
    found = stats.compare_launches(taken, taken)
    assert found.shift == pytest.approx(0, abs=1e-9)
    assert found.word != "changed"


@settings(deadline=None)
@given(series)
def test_the_cut_is_at_most_half_and_leaves_enough(samples):
    cut = stats.warmup_cut(samples)
    assert 0 <= cut <= len(samples) // 2
    assert cut == 0 or len(samples) - cut >= 6


@settings(deadline=None)
@given(st.lists(st.floats(1e-7, 1e3), min_size=6, max_size=60))
def test_the_order_of_the_samples_only_matters_for_the_width(samples):
    assume(len(set(samples)) > 1)
    assert stats.median_interval(samples).median == stats.median_interval(sorted(samples)).median
    assert 0 <= stats.autocorrelation(samples) <= 0.98
