"""What is refused because it would take hopelessly long: on made-up clocks, with hiccups, in words."""

import pytest
from hypothesis import given, strategies as st

from clustergauge import budget as library
from clustergauge.budget import TRIES, least_seconds
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from kernels import budget, matmul

HICCUP_S = 100.0


@pytest.fixture
def clock(monkeypatch):
    """``clock.cost``: made-up seconds of a call by what it returns; ``clock.late``: numbers of timed calls that a hiccup hits."""

    class Clock:
        def __init__(self):
            self.cost, self.late, self.timed, self.spent, self.readings = None, set(), [], 0.0, 0

        def __call__(self):
            return self

        def time(self, calls):
            (call,) = calls
            self.timed.append(call())
            took = self.cost(self.timed[-1]) + (HICCUP_S if len(self.timed) in self.late else 0.0)
            self.spent += took
            return took

    made = Clock()
    monkeypatch.setattr(library, "WallClock", made)
    return made


@pytest.fixture
def ctx(tmp_path):
    return Context(Serial(), "cpu", 1, tmp_path, budget_s=2.0)


def shares(*of):
    """Parts of a case, each of which returns its share when called."""
    return [(share, lambda share=share: lambda: share) for share in of]


@pytest.mark.parametrize("late", [set(), {1}, {5}, {1, 2, 3, 4}, {2, 3, 4, 5}])
def test_the_least_of_the_tries_is_no_hiccup_unless_all_are(clock, late):
    clock.cost, clock.late = (lambda _: 0.5), late
    assert least_seconds(lambda: None) == 0.5
    assert len(clock.timed) == TRIES
    clock.timed, clock.late = [], {1, 2, 3, 4, 5}
    assert least_seconds(lambda: None) == 0.5 + HICCUP_S


def test_a_call_runs_once_before_it_is_timed_and_no_more_than_enough(clock):
    calls, costs = [], iter([3.0, 2.0, 1.0, 0.5])
    clock.cost = lambda _: next(costs)
    assert least_seconds(lambda: calls.append(1), enough=2.0) == 2.0
    assert len(calls) == 3  # once untimed
    assert least_seconds(lambda: None, tries=1) == 1.0


@pytest.mark.parametrize("late", [{1}, {3}, {1, 2, 3, 4}, {1, 2, 4, 5}, {2, 3, 4, 5}])
def test_a_hiccup_in_all_tries_but_one_refuses_nothing(clock, ctx, late):
    clock.cost, clock.late = (lambda share: 1.9 * share), late
    budget.refuse_hopeless(ctx, shares(0.5, 1.0))


def test_what_is_hopeless_in_all_tries_is_refused_with_the_estimate(clock, ctx):
    clock.cost = lambda share: 17.2 * share
    with pytest.raises(Skip, match=r"^one call would take about 17\.2 s, far beyond the budget of 2 s: a smaller shape fits$"):
        budget.refuse_hopeless(ctx, shares(1 / 512, 1 / 64, 1 / 8, 1.0))
    assert set(clock.timed) == {1 / 512}  # a larger part would have cost too much


def test_the_whole_may_be_four_times_as_efficient_as_its_parts(clock, ctx):
    clock.cost = lambda share: 8.0 * share
    budget.refuse_hopeless(ctx, shares(1 / 64, 1.0))
    clock.cost = lambda share: 8.01 * share
    with pytest.raises(Skip, match=r"about 8\.01 s"):
        budget.refuse_hopeless(ctx, shares(1 / 64, 1.0))


def test_nothing_is_refused_while_a_busy_spell_lasts_that_is_shorter_than_half_the_budget(clock, ctx):
    clock.cost = lambda share: 0.001 if clock.spent > 0.95 else 0.1
    budget.refuse_hopeless(ctx, shares(1 / 512, 1.0))
    clock.spent = 0.0
    clock.cost = lambda share: 0.001 if clock.spent > 1.05 else 0.1
    with pytest.raises(Skip, match=r"about 51\.2 s"):
        budget.refuse_hopeless(ctx, shares(1 / 512, 1.0))


def test_the_cost_of_starting_is_not_taken_for_slowness(clock):
    clock.cost = lambda share: 1e-3 + share * 0.1
    assert budget.at_least(shares(1e-5, 1e-4, 1e-3, 1e-2), 0.5) == pytest.approx(0.2)


def test_estimates_stop_at_the_whole_or_where_they_suffice(clock):
    clock.cost = lambda share: share
    assert budget.at_least(shares(1e-3, 1e-2), 0.0) == pytest.approx(1.0)
    assert clock.timed == [1e-3] * TRIES + [1e-2] * TRIES
    clock.timed.clear()
    assert budget.at_least(shares(1e-3, 1e-2), 1.1) == pytest.approx(1.0)
    assert clock.timed == [1e-3]


@given(st.floats(1e-9, 1e3), st.integers(1, 1 << 24), st.integers(1, 1 << 24), st.floats(1e-6, 10))
def test_foreseeing_rows_is_exact_on_a_steady_machine_and_soon_over(per_row, rows, width, enough):
    asked, spent = [], []

    class Steady:
        def time(self, calls):
            spent.append(calls[0]() * per_row)
            return spent[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "WallClock", Steady)
        seconds = budget.foresee(lambda n: lambda: asked.append(n) or n, rows, width, enough)
    assert seconds == pytest.approx(rows * per_row)
    assert max(asked) <= rows
    first = min(rows, max(1, budget.FIRST // width))
    assert asked[0] == first
    later = [n for n in asked[1:] if n > first]
    assert all(TRIES * n * per_row <= budget.SPEND_S * 1.001 for n in later)


def test_the_number_of_sets_never_depends_on_time(ctx):
    assert [budget.fit(ctx, seconds, 256) for seconds in (0.0, 0.001, 0.1, 0.3, 7.9)] == [256] * 5
    with pytest.raises(Skip, match="far beyond the budget"):
        budget.fit(ctx, 8.1, 256)


# -- matmul


@given(st.tuples(*[st.integers(1, 1 << 20)] * 3))
def test_pieces_of_a_product_grow_up_to_the_whole_and_are_never_longer(whole):
    found = list(matmul.pieces(whole))
    assert found[-1] == whole
    sizes = [m * n * k for m, n, k in found]
    assert sizes == sorted(sizes)
    assert all(0 < edge <= full for piece in found for edge, full in zip(piece, whole, strict=True))
    assert sizes[0] >= min(matmul.PIECE // 2, whole[0] * whole[1] * whole[2])
    assert sizes[0] <= matmul.PIECE


def test_the_first_piece_is_mid_size_or_the_case_itself():
    assert next(matmul.pieces((2048, 2048, 2048))) == (256, 256, 256)
    assert list(matmul.pieces((200, 136, 96))) == [(200, 136, 96)]
    assert next(matmul.pieces((1, 1 << 20, 256))) == (1, 65536, 256)
    assert list(matmul.pieces((1024, 1024, 1024))) == [(256,) * 3, (512,) * 3, (1024,) * 3]


@pytest.fixture
def machine(clock, monkeypatch):
    """Products take made-up times, at so many FLOP/s."""

    def at(flops):
        clock.cost = lambda work: work / flops
        monkeypatch.setattr(matmul, "_torch_call", lambda a, b, c: lambda: 2 * a.shape[0] * a.shape[1] * b.shape[0])

    return at


@pytest.mark.parametrize("late", [{1}, {1, 2, 3, 4}, {2, 3, 4, 5}])
def test_a_busy_moment_does_not_refuse_a_product(machine, clock, ctx, late):
    machine(2e11)
    clock.late = late
    matmul._refuse_hopeless(ctx, "fp32", (2048, 2048, 2048))


def test_a_product_of_many_seconds_is_refused_before_it_eats_the_budget(machine, clock, ctx):
    machine(1e9)
    with pytest.raises(Skip, match=r"^one call would take about 17\.2 s, far beyond the budget of 2 s: a smaller shape fits$"):
        matmul._refuse_hopeless(ctx, "fp16", (2048, 2048, 2048))
    assert clock.spent < 1.1  # half of the budget, and the try that goes beyond


def test_a_machine_that_needs_large_products_for_its_speed_is_not_taken_for_a_slow_one(machine, clock, ctx):
    machine(5e12)
    steady = clock.cost
    clock.cost = lambda work: 300e-6 + steady(work)
    matmul._refuse_hopeless(ctx, "fp32", (16384, 16384, 16384))
    assert len(set(clock.timed)) > 1
