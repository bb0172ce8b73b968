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


def test_tries_go_on_for_as_long_as_asked_and_have_an_end(clock):
    clock.cost = lambda _: 0.1
    assert least_seconds(lambda: None, spend_s=0.95) == 0.1
    assert len(clock.timed) == 10
    clock.cost, clock.timed = (lambda _: 1e-9), []
    assert least_seconds(lambda: None, spend_s=10.0) == 1e-9
    assert len(clock.timed) == library.MOST_TRIES


@pytest.mark.parametrize("late", [{1}, {3}, {1, 2, 3, 4}, {1, 2, 4, 5}, {2, 3, 4, 5}])
def test_a_hiccup_in_all_tries_but_one_refuses_nothing(clock, ctx, late):
    clock.cost, clock.late = (lambda share: 1.9 * share), late
    budget.refuse_hopeless(ctx, shares(0.5, 1.0))


def test_what_is_hopeless_in_all_tries_is_refused_with_the_estimate(clock, ctx):
    clock.cost = lambda share: 17.2 * share
    with pytest.raises(Skip, match=r"^one call would take about 17\.2 s, far beyond the budget of 2 s: a smaller shape fits$"):
        budget.refuse_hopeless(ctx, shares(1 / 512, 1 / 64, 1 / 8, 1.0))
    assert set(clock.timed) == {1 / 512, 1 / 64}  # a larger part would have cost too much


def test_the_whole_may_be_four_times_as_efficient_as_its_parts(clock, ctx):
    clock.cost = lambda share: 8.0 * share
    budget.refuse_hopeless(ctx, shares(1 / 64, 1.0))
    assert clock.timed == [1 / 64]  # that was enough
    clock.cost = lambda share: 8.01 * share
    with pytest.raises(Skip, match=r"about 8\.01 s"):
        budget.refuse_hopeless(ctx, shares(1 / 64, 1.0))


def test_nothing_is_refused_while_a_busy_spell_lasts_that_is_shorter_than_half_the_budget(clock, ctx):
    clock.cost = lambda share: 0.001 if clock.spent > 0.95 else 0.1
    budget.refuse_hopeless(ctx, shares(1 / 512, 1.0))
    clock.spent = 0.0
    clock.cost = lambda share: 0.001 if clock.spent > 1.15 else 0.1
    with pytest.raises(Skip, match=r"about 51\.2 s"):
        budget.refuse_hopeless(ctx, shares(1 / 512, 1.0))


def test_the_cost_of_starting_is_not_taken_for_slowness(clock):
    clock.cost = lambda share: 1e-3 + share * 0.1
    assert budget.at_least(shares(1e-5, 1e-4, 1e-3, 1e-2), 0.5, 0.1, 0.1) == pytest.approx(0.101)


def test_estimates_stop_at_the_whole_or_where_they_suffice(clock):
    clock.cost = lambda share: share
    assert budget.at_least(shares(1e-3, 1e-2), 0.0, 0.01, 0.01) == pytest.approx(1.0)
    assert clock.timed == [1e-3] * 10 + [1e-2] * TRIES
    clock.timed.clear()
    assert budget.at_least(shares(1e-3, 1e-2), 0.0, 0.009, 0.009) == pytest.approx(1.0)
    assert set(clock.timed) == {1e-3}
    clock.timed.clear()
    assert budget.at_least(shares(1e-3, 1e-2), 1.1, 0.01, 0.01) == pytest.approx(1.0)
    assert clock.timed == [1e-3]


def test_a_part_that_may_be_mostly_waiting_refuses_nothing(clock, ctx):
    """Seen on a busy machine: threads met after 64 ms or later in every call of 0.1 s, and a budget of 0.95 s was over."""
    ctx.budget_s = 0.95
    clock.cost = lambda share: 0.064 + 0.1 * share
    budget.refuse_hopeless(ctx, shares(1 / 64, 1 / 8, 1.0))
    assert set(clock.timed) == {1 / 64, 1 / 8}
    clock.timed, clock.cost = [], lambda share: 0.064 * (1 + (share > 1 / 512)) + 0.8 * share  # later still where there is more
    budget.refuse_hopeless(ctx, shares(1 / 512, 1 / 64, 1 / 8, 1.0))
    assert set(clock.timed) == {1 / 512, 1 / 64, 1 / 8}


def test_dear_parts_are_tried_once_and_only_up_to_a_limit(clock):
    clock.cost = lambda share: 1.0 if share < 0.01 else 100 * share
    assert budget.at_least(shares(1 / 1000, 1 / 100, 1 / 50), 1.0, 0.5, 10.0) == pytest.approx(100)
    assert clock.timed == [1 / 1000] * TRIES + [1 / 100, 1 / 50]  # 1.0 s again is no growth: the next is tried
    clock.timed.clear()
    assert budget.at_least(shares(1 / 1000, 1 / 100), 1.0, 0.5, 9.9) == pytest.approx(1000)
    assert set(clock.timed) == {1 / 1000}
    clock.timed.clear()
    clock.cost = lambda share: 1.0 if share < 0.01 else 0.1
    assert budget.at_least(shares(1 / 1000, 1 / 100), 1.0, 0.5, 10.0) == pytest.approx(10)  # not dear after all
    assert clock.timed == [1 / 1000] * TRIES + [1 / 100] * (1 + TRIES)


def test_what_a_larger_part_takes_more_is_what_its_work_takes(clock):
    clock.cost = lambda share: 0.1 + 4.0 * share
    assert budget.at_least(shares(1 / 64, 1 / 8), 1.0, 0.05, 10.0) == pytest.approx(4.1)
    clock.cost = lambda share: 0.5  # says nothing of the work: no more than that it may be as slow
    assert budget.at_least(shares(1 / 64, 1 / 8), 1.0, 0.05, 10.0) == pytest.approx(4.0)


def test_rows_grow_fourfold_up_to_all(ctx):
    found = [(share, start()()) for share, start in budget.rows_of(lambda n: lambda: n, 5000, budget.FIRST // 64)]
    assert found == [(n / 5000, n) for n in (64, 256, 1024, 4096, 5000)]
    assert [share for share, _ in budget.rows_of(lambda n: lambda: n, 50, budget.FIRST // 64)] == [1.0]
    assert next(iter(budget.rows_of(lambda n: lambda: n, 7, 2 * budget.FIRST)))[0] == 1 / 7


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
        monkeypatch.setattr(matmul.backends, "torch_call", lambda a, b, c: lambda: 2 * a.shape[0] * a.shape[1] * b.shape[0])

    return at


@pytest.mark.parametrize("late", [{1}, {1, 2, 3, 4}, {2, 3, 4, 5}])
def test_a_busy_moment_does_not_refuse_a_product(machine, clock, ctx, late):
    machine(2e11)
    clock.late = late
    matmul._refuse_hopeless(ctx, matmul.backends.torch_call, "fp32", (2048, 2048, 2048))


def test_a_product_of_many_seconds_is_refused_before_it_eats_the_budget(machine, clock, ctx):
    machine(1e9)
    with pytest.raises(Skip, match=r"^one call would take about 17\.2 s, far beyond the budget of 2 s: a smaller shape fits$"):
        matmul._refuse_hopeless(ctx, matmul.backends.torch_call, "fp16", (2048, 2048, 2048))
    assert clock.spent < 1.1 + 1.4  # half of the budget, and five tries of 512


def test_threads_that_are_late_in_every_call_refuse_nothing(machine, clock, ctx):
    machine(1.7e11)
    steady = clock.cost
    clock.cost = lambda work: 0.04 + steady(work)  # a small product would have to be 140 times as efficient
    matmul._refuse_hopeless(ctx, matmul.backends.torch_call, "fp32", (2048, 2048, 2048))
    assert len(set(clock.timed)) == 2


def test_a_machine_that_needs_large_products_for_its_speed_is_not_taken_for_a_slow_one(machine, clock, ctx):
    machine(5e12)
    steady = clock.cost
    clock.cost = lambda work: 300e-6 + steady(work)
    matmul._refuse_hopeless(ctx, matmul.backends.torch_call, "fp32", (16384, 16384, 16384))
    assert len(set(clock.timed)) > 1


def test_each_backend_is_refused_by_its_own_speed(clock, ctx, monkeypatch):
    """torch is slow here, numpy is fast: neither speaks for the other."""
    speeds = {"torch_call": 1e9, "numpy": 1e12}
    clock.cost = lambda said: said[1] / speeds[said[0]]

    def made(name):
        return lambda a, b, c: lambda: (name, 2 * a.shape[0] * a.shape[1] * b.shape[0])

    monkeypatch.setattr(matmul.backends, "torch_call", made("torch_call"))
    monkeypatch.setattr(matmul.backends, "numpy_starter", lambda *_: made("numpy"))
    refused, kept = matmul._refuse_hopeless, []
    monkeypatch.setattr(matmul, "_refuse_hopeless", lambda *told: kept.append(refused(*told)) or 1 / 0)
    with pytest.raises(Skip, match=r"about 17\.2 s"):
        matmul.prepare(ctx, "torch", "fp32", "2048")
    with pytest.raises(ZeroDivisionError):
        matmul.prepare(ctx, "numpy", "fp32", "2048")
    assert kept == [None]
    assert {name for name, _ in clock.timed} == {"torch_call", "numpy"}
