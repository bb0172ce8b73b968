"""Probe ``best_matmul``: on a made-up machine with planted rates, the search finds the fastest shape in its time, busy or not."""

import math
import random

import pytest
import torch

from clustergauge import budget
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from kernels import best, matmul, shapes

BEST = best.best_matmul
LADDER = ("256", "512", "1024", "1024x1024x2048", "2048", "4096")
RATES = {"256": 184e9, "512": 190e9, "1024": 200e9, "1024x1024x2048": 180e9, "2048": 196e9, "4096": 190e9}
"""Of a processor with two cores."""


class Machine:
    """Stands in for clock and products: a call takes its work over its planted rate, at half the speed while others work.

    ``busy``: lengths of idle and busy spells in turn, ``None`` for never.  ``fill_s``: what preparing a shape takes, ``start_s``:
    the very first call.
    """

    def __init__(self, rates, busy=None, fill_s=0.0, start_s=0.0):
        self.rates, self.busy, self.fill_s, self.start_s = rates, busy, fill_s, start_s
        self.t, self.alone, self.spell_end, self.calls = 0.0, True, next(busy) if busy else math.inf, []

    def __call__(self):
        return self

    def now(self):
        return self.t

    def time(self, calls):
        (call,), began = calls, self.t
        call()
        return self.t - began

    def work(self, seconds):
        while seconds > 0:
            speed = 1.0 if self.alone else 0.5
            step = min(seconds / speed, self.spell_end - self.t)
            self.t, seconds = self.t + step, seconds - step * speed
            if self.t >= self.spell_end:
                self.alone = not self.alone
                self.spell_end = self.t + next(self.busy)

    def trial(self, ctx, backend, dtype, shape):
        self.work(self.fill_s)

        def call():
            self.work(0.0 if self.calls else self.start_s)
            self.calls.append(shape)
            self.work(2 * math.prod(shapes.parse_shape(shape)) / self.rates[shape])

        return call


def slices(seed, mean_s):
    """Spells as two programs get that share a core."""
    rng = random.Random(seed)
    while True:
        yield rng.expovariate(1 / mean_s)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Searches on a made-up machine: the shape that was chosen, and the context with what was said of it."""

    def search(machine, dtype="fp32", budget_s=10.0, ladder=LADDER, refused=lambda _: False):
        def trial(ctx, backend, dtype, shape):
            if refused(shape):
                raise Skip(f"no {shape}")
            return machine.trial(ctx, backend, dtype, shape)

        monkeypatch.setattr(matmul, "trial", trial)
        monkeypatch.setattr(budget, "WallClock", machine)
        monkeypatch.setattr(shapes, "SEARCHED", {"cpu": ladder})
        ctx = Context(Serial(), "cpu", 1, tmp_path, budget_s=budget_s)
        return best.search(ctx, "torch", dtype), ctx

    return search


def test_the_fastest_shape_is_found_and_all_rates_are_kept(found):
    shape, ctx = found(Machine(RATES))
    assert shape == "1024"
    assert ctx.settings == {"searched": " ".join(LADDER[:5]), "finalists": "256 512 1024 2048", "untried": "4096"}
    assert ctx.series["search"] == ("FLOP/s", pytest.approx([RATES[shape] for shape in LADDER[:5]]))
    assert ctx.series["finals"] == ("FLOP/s", pytest.approx([184e9, 190e9, 200e9, 196e9]))
    assert found(Machine(RATES), "int8")[1].series["finals"][0] == "OP/s"


def test_on_a_busy_machine_short_products_do_not_look_fast(found):
    """Others work half of the time, in slices of 4 ms: products of 0.2 ms fit between them, those of 90 ms never do."""
    chosen = [found(Machine(RATES, slices(seed, 4e-3)))[0] for seed in range(25)]
    lost = [1 - RATES[shape] / max(RATES.values()) for shape in chosen]
    assert sum(lost) / len(lost) < 0.025
    assert chosen.count("256") <= 2


def test_a_busy_spell_in_the_first_round_is_made_up_for_in_the_second(found):
    """The winner of the first round was merely alone on the machine."""

    def spells(alone_s):
        yield alone_s
        while True:
            yield from (0.2, 0.2)

    for alone_s in (0.03, 0.06, 0.1, 0.2, 0.4, 0.8):
        assert found(Machine(RATES, spells(alone_s)))[0] in ("1024", "2048")


def test_bursts_that_are_compared_take_equally_long(found, monkeypatch):
    machine, seconds = Machine(RATES), []

    def watched(bursts, turns, spend_s):
        seconds.extend(machine.time([burst]) for burst in bursts)
        return seconds

    monkeypatch.setattr(best, "least_in_turn", watched)
    assert found(machine)[1].settings["finalists"] == "256 512 1024 2048"
    assert seconds[-1] == pytest.approx(2 * 2048**3 / RATES["2048"])
    assert seconds == pytest.approx([seconds[-1]] * 4, rel=0.06)  # whole calls, of 10 ms at most


@pytest.mark.parametrize("busy", [None, 4e-3, 0.3])
@pytest.mark.parametrize("budget_s", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("fill_s", [0.0, 0.05])
def test_searching_stays_within_half_of_the_budget(found, busy, budget_s, fill_s):
    for seed in range(10):
        machine = Machine(RATES, busy and slices(seed, busy), fill_s)
        found(machine, budget_s=budget_s)
        slack = 0.0 if busy is None else 0.6  # a busy spell may begin when a shape or a turn has begun
        assert machine.t <= 0.5 * budget_s * (1 + slack) + 4 * fill_s


def test_what_starting_costs_falls_to_the_first_shape_and_not_to_the_others(found):
    machine = Machine(RATES, start_s=3.0)
    assert found(machine)[1].settings["searched"] == " ".join(LADDER[:5])


def test_the_first_round_ends_where_the_next_shape_would_not_fit(found):
    rates = dict.fromkeys(("16", "32", "64", "128"), 2 * 16**3 / 1e-3)  # 1, 8, 64, 512 ms
    searched = lambda budget_s: found(Machine(rates), budget_s=budget_s, ladder=tuple(rates))[1].settings["searched"]  # noqa: E731
    assert searched(0.1) == "16"
    assert searched(1.0) == "16 32"
    assert searched(3.0) == "16 32 64"
    assert searched(16.0) == "16 32 64"
    assert searched(17.0) == "16 32 64 128"


def test_only_as_many_finalists_as_there_is_time_for_but_two(found):
    rates = {"256": 1e9, "512": 1e9, "768": 1e9, "1024": 1e9}
    assert best._finalists(rates, 60.0) == rates  # (3 + 1) · 4 · 2.1 s
    assert best._finalists({**rates, "768": 0.9e9, "1024": 1.1e9}, 24.0) == {"256": 1e9, "512": 1e9, "1024": 1.1e9}
    assert best._finalists({**rates, "1024": 1.1e9}, 0.0) == {"256": 1e9, "1024": 1.1e9}


def test_a_single_shape_needs_no_second_round(found):
    machine = Machine(RATES)
    shape, ctx = found(machine, ladder=("512",))
    assert (shape, "finals" in ctx.series, "untried" in ctx.settings) == ("512", False, False)


def test_shapes_that_are_about_as_fast_leave_the_smaller_one():
    assert best.choose({"16": 99.6, "32": 100.0}) == "16"
    assert best.choose({"16": 99.4, "32": 100.0}) == "32"


def test_shapes_that_have_no_meaning_are_left_out_and_the_reason_stands_if_none_has(found):
    searched = found(Machine(RATES), refused=lambda shape: shape == "512")[1].settings["searched"]
    assert searched.startswith("256 1024 1024x1024x2048 2048")
    with pytest.raises(Skip, match=r"^no 4096$"):
        found(Machine(RATES), refused=lambda _: True)


def test_finalists_that_do_not_fit_the_memory_together_are_left_out(found):
    seen = []

    def refused(shape):
        seen.append(shape)
        return seen.count(shape) == 2 and shape != "256"

    shape, ctx = found(Machine(RATES), refused=refused)
    assert (shape, "finalists" in ctx.settings) == ("1024", False)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "int8"])
def test_the_search_runs_the_very_products_and_the_chosen_one_is_measured(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(shapes, "SEARCHED", {"cpu": ("16", "32x48x64")})
    for name in ("_cost", "_cost_of_finals"):
        monkeypatch.setattr(best, name, lambda *_: -math.inf)  # however busy this machine is
    job = Job("best_matmul", "kernels.best", "best_matmul", {"backend": "torch", "dtype": dtype}, "cpu", 0.5, 1, llc_bytes=4096)
    done = execute(job, BEST, Serial(), tmp_path, lambda _: None)
    assert (done.status, done.reason) == ("ok", "")
    assert (done.settings["searched"], done.settings["finalists"]) == ("16 32x48x64",) * 2
    assert min(*done.measurement.series["search"].values, *done.measurement.series["finals"].values) > 0
    work = 2 * math.prod(shapes.parse_shape(done.settings["mnk"]))
    assert (done.workload.flops, done.workload.ops) == ((0, work) if dtype == "int8" else (work, 0))


def test_a_search_that_fails_leaves_no_reduced_precision_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SEARCHED", {"cpu": ("16",)})
    monkeypatch.setattr(best, "_least", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        BEST.function(Context(Serial(), "cpu", 1, tmp_path), backend="torch", dtype="tf32")
    assert torch.get_float32_matmul_precision() == "highest"


def test_bursts_are_long_enough_and_counted():
    calls = []
    best._burst(Context(Serial(), "cpu", 1, None), lambda: calls.append(1), 7)()
    assert len(calls) == 7
    assert [best._repeats(s, 20e-3) for s in (0.0, 1e-9, 1e-3, 20e-3, 1.0)] == [2000, 2000, 20, 1, 1]


def test_needs_are_those_of_its_products_but_nothing_is_searched_in_the_interpreter():
    def needs(backend, dtype):
        return BEST.needs_of({"backend": backend, "dtype": dtype})

    assert needs("torch", "fp8") == matmul.matmul.needs_of({"backend": "torch", "dtype": "fp8", "shape": "16"})
    assert (needs("triton", "bf16").device, needs("triton", "bf16").interpreter) == ("cuda", False)
