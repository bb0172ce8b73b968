"""Choosing among candidates, and that the choice holds for the run: on a clock that is made up, through workers that are real."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from clustergauge import differ, tuning
from clustergauge.pins import LONGEST, MOST, MOST_OF_A_CASE, PREFIX, Pins, parse
from clustergauge.plan import Wish, load_probes, load_suite, plan
from clustergauge.probe import Context, Needs, Skip
from clustergauge.supervise import Patience, Supervisor
from clustergauge.tuning import ALIKE, ROUNDS, TUNE_S, choose, fastest, measure
from clustergauge.world import Serial
from tests import made, nodes
from tests.faults.tuned import WHAT, Clock
from tests.test_cli import living, only_run, records, start, suite, wait_for

MODULE = "tests.faults.tuned"
PROBE = load_probes([MODULE])["tuned"]


class TooLarge(Exception):
    """What a candidate raises that does not fit."""


def a_context(tmp_path, **more):
    return Context(Serial(), "cpu", 1, tmp_path, **more)


def run(tmp_path, times, pins=(), clock=None, **more):
    """What is chosen among candidates that take so long, and the context that was told."""
    clock = clock or Clock()
    ctx = a_context(tmp_path, pins=dict(pins), **more)
    started = []

    def ready(name):
        started.append(name)
        if times[name] is None:
            return [lambda: raise_(TooLarge(name))]
        return [clock.pass_by(times[name])]

    chosen = choose(ctx, "what", {name: name for name in times}, ready, (TooLarge,), lambda: clock)
    return chosen, ctx.settings, started


def raise_(error):
    raise error


# --------------------------------------------------------------------------------------------------------------------------
# the choice


def test_the_fastest_is_chosen_and_all_is_told(tmp_path):
    chosen, settings, started = run(tmp_path, {"slow": 2e-3, "fast": 1e-3, "slower": 3e-3})
    assert chosen == "fast"
    assert started == ["slow", "fast", "slower"]
    assert {name: value for name, value in settings.items() if not name.startswith("tuning_s.")} == {
        "candidates": 3,
        "tuned": "measured",
        "pin.what": "fast",
    }
    told = {name: settings[f"tuning_s.{name}"] for name in ("slow", "fast", "slower")}
    assert told == pytest.approx({"slow": 2e-3, "fast": 1e-3, "slower": 3e-3})


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.floats(1e-6, 1.0), max_size=5), min_size=1, max_size=6),
)
def test_no_candidate_that_is_slower_than_alike_is_chosen(times):
    medians = {name: statistics.median(seconds) for name, seconds in times.items() if seconds}
    chosen = fastest(times)
    if not medians:
        assert chosen == next(iter(times))
    else:
        assert medians[chosen] <= min(medians.values()) * (1 + ALIKE)
        before = list(medians)[: list(medians).index(chosen)]
        assert all(medians[name] > min(medians.values()) * (1 + ALIKE) for name in before)


def test_one_disturbed_burst_does_not_decide():
    assert fastest({"a": [2.0] * 5, "b": [1.0, 1.0, 9.0, 1.0, 9.0]}) == "b"
    assert fastest({"a": [2.0, 2.0, 0.1, 2.0, 2.0], "b": [1.0] * 5}) == "b"


def test_candidates_take_turns_in_bursts_of_as_many_calls_over_all_buffer_sets():
    clock, ran = Clock(), []

    def ready(name, seconds):
        move = clock.pass_by(seconds)
        return lambda: [lambda number=number: (ran.append((name, number)), move()) for number in range(3)]

    times = measure({"a": ready("a", 1e-4), "b": ready("b", 4e-4)}, clock)
    length = round(tuning.BURST_S / 1e-4)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": ROUNDS, "b": ROUNDS}
    assert clock.timed == [1, *[length] * 2 * ROUNDS]
    assert ran[:3] == [("a", 0), ("a", 0), ("b", 0)]  # compiled, how long a burst is, compiled
    turns = [("a", "b")[burst % 2] for burst in range(2 * ROUNDS)]
    assert ran[3:] == [(turns[number // length], number % 3) for number in range(2 * ROUNDS * length)]
    assert times["b"] == pytest.approx([4e-4] * ROUNDS)


@pytest.mark.parametrize(("seconds", "calls"), [(1e-7, tuning.BURST_MOST), (1.0, 1), (0.0, tuning.BURST_MOST)])
def test_a_burst_has_one_call_at_least_and_no_more_than_are_queued_in_time(seconds, calls):
    clock = Clock()
    measure({"a": lambda: [clock.pass_by(seconds)], "b": lambda: [clock.pass_by(seconds)]}, clock)
    assert set(clock.timed[1:]) == {calls}


def test_a_burst_has_no_more_calls_than_the_clock_may_hold():
    clock = Clock()
    clock.max_calls = 7
    measure({"a": lambda: [clock.pass_by(1e-7)], "b": lambda: [clock.pass_by(1e-7)]}, clock)
    assert set(clock.timed[1:]) == {7}


class Exposing(Clock):
    """Bursts hold what launching costs until the clock has been asked often enough."""

    def __init__(self, too_early):
        super().__init__()
        self.too_early = too_early

    def time(self, calls):
        took = super().time(calls)
        if len(calls) > 1 and self.too_early > 0:
            self.too_early -= 1
            self.exposed += 1
            return took + 1e-4 * len(calls)
        return took


@pytest.mark.parametrize(("too_early", "clean"), [(0, True), (1, True), (tuning.AGAIN - 1, True), (10**6, False)])
def test_a_burst_that_holds_the_cost_of_launching_does_not_count(too_early, clean):
    clock = Exposing(too_early)
    times = measure({"a": lambda: [clock.pass_by(2e-5)], "b": lambda: [clock.pass_by(1e-5)]}, clock)
    assert times["a"] == pytest.approx([2e-5 if clean else 1.2e-4] * ROUNDS)
    assert times["b"] == pytest.approx([1e-5 if clean else 1.1e-4] * ROUNDS)
    bursts = 2 * ROUNDS * (1 if clean else tuning.AGAIN) + (too_early if clean else 0)
    assert len(clock.timed) == 1 + bursts


def test_what_does_not_fit_is_passed_over(tmp_path):
    chosen, settings, _ = run(tmp_path, {"large": None, "slow": 2e-3, "fast": 1e-3})
    assert (chosen, settings["candidates"]) == ("fast", 3)
    assert "tuning_s.large" not in settings
    assert run(tmp_path, {"large": None, "small": 1.0})[0] == "small"
    with pytest.raises(tuning.Unfit, match="larger") as unfit:
        run(tmp_path, {"large": None, "larger": None})
    assert [type(error) for error in unfit.value.refusals] == [TooLarge, TooLarge]


def test_other_errors_are_the_cases():
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: [lambda: 1 // 0], "b": lambda: [lambda: None]}, Clock(), (TooLarge,))


# --------------------------------------------------------------------------------------------------------------------------
# its deadline


def slow_to_compile(clock, seconds, each):
    """A candidate whose first call takes so long, all others ``each``."""
    first = [seconds]

    def call():
        clock.moment += first.pop() if first else each

    return lambda: [call]


def test_nothing_is_started_after_the_deadline_and_what_was_measured_decides():
    clock = Clock()
    starts = {name: slow_to_compile(clock, 0.6 * TUNE_S, each) for name, each in (("a", 2e-3), ("b", 1e-3), ("c", 3e-3))}
    times = measure({**starts, "d": lambda: pytest.fail("too late")}, clock)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 1, "b": 1, "c": 1}  # one turn is made in any case
    assert fastest(times) == "b"


def test_the_first_is_compiled_in_any_case_and_that_leaves_the_others_their_time():
    clock = Clock()
    starts = {"a": slow_to_compile(clock, 3 * TUNE_S, 2e-3), "b": slow_to_compile(clock, 0.5 * TUNE_S, 1e-3)}
    times = measure(starts, clock)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": ROUNDS, "b": ROUNDS}
    assert fastest(times) == "b"


def test_where_no_other_is_reached_the_first_is_chosen(tmp_path):
    clock = Clock()
    ctx = a_context(tmp_path)
    starts = {"a": lambda: [clock.pass_by(TUNE_S)], "b": lambda: pytest.fail("too late")}
    assert choose(ctx, "what", {"a": "a", "b": "b"}, lambda name: starts[name](), clock=lambda: clock) == "a"
    assert ctx.settings == {"candidates": 2, "tuned": "first", "pin.what": "a"}


def test_long_calls_end_the_turns(tmp_path):
    chosen, settings, _ = run(tmp_path, {"a": 0.4 * TUNE_S, "b": 0.3 * TUNE_S})
    assert chosen == "b"
    assert settings["tuning_s.b"] == pytest.approx(0.3 * TUNE_S)


# --------------------------------------------------------------------------------------------------------------------------
# where there is nothing to tune


def test_one_candidate_needs_no_choice(tmp_path):
    assert run(tmp_path, {"only": 1.0}, pins={"what": "only"}) == ("only", {}, [])


def test_the_pin_decides_without_a_measurement(tmp_path):
    chosen, settings, started = run(tmp_path, {"a": 1e-3, "b": 2e-3}, pins={"what": "b", "other": "a"})
    assert (chosen, started) == ("b", [])
    assert settings == {"candidates": 2, "tuned": "pinned", "pin.what": "b"}


@pytest.mark.parametrize("pin", ["", "c", "A", "a ", "__import__('os')", "a\x00", "b" * 10**6])
def test_a_pin_that_is_no_candidate_is_not_looked_at(tmp_path, pin):
    chosen, settings, started = run(tmp_path, {"a": 1e-3, "b": 2e-3}, pins={"what": pin})
    assert (chosen, started, settings["tuned"]) == ("a", ["a", "b"], "measured")


def test_where_nothing_may_be_tuned_the_pin_or_else_the_first_is_taken_and_the_first_is_not_pinned(tmp_path):
    times = {"a": 2e-3, "b": 1e-3}
    assert run(tmp_path, times, tunes=False) == ("a", {"candidates": 2, "tuned": "first"}, [])
    assert run(tmp_path, times, pins={"what": "b"}, tunes=False)[0] == "b"


# --------------------------------------------------------------------------------------------------------------------------
# the memory of a run


def test_the_first_that_tunes_decides():
    pins = Pins()
    pins.learn({"pin.x": "a", "config": "a"}, {})
    pins.learn({"pin.x": "b"}, {})
    assert pins.known() == {"x": "a"}


def test_a_pin_that_was_given_and_not_taken_is_replaced():
    pins = Pins([made.record(settings={"pin.x": "of another version"})])
    given = pins.known()
    pins.learn({"pin.x": "a"}, given)
    pins.learn({"pin.x": "b"}, given)  # by another that was given the same
    assert pins.known() == {"x": "a"}


@pytest.mark.parametrize(
    "settings",
    [
        {"pin.x": 1},
        {"pin.x": None},
        {"pin.x": "a\x1b[31m"},
        {"pin.x\n": "a"},
        {"pin.x": "a" * (LONGEST + 1)},
        {"pin." + "x" * LONGEST: "a"},
        {"config": "a", "xpin.x": "a"},
        {f"pin.{number}": "a" for number in range(MOST_OF_A_CASE + 1)},
    ],
)
def test_what_is_no_pin_is_not_remembered(settings):
    assert parse(settings) == {}


def test_the_memory_is_bounded():
    pins = Pins()
    for number in range(2 * MOST):
        pins.learn({f"pin.{number}": "a"}, {})
    pins.learn({"pin.0": "b"}, {"0": "a"})  # what is known may change
    assert (len(pins.known()), pins.known()["0"]) == (MOST, "b")


def test_of_nodes_alike_one_goes_ahead():
    pins = Pins()
    here, other = made.machine(gpus=2), made.machine()
    case = made.planned(made.record(), device="cuda:0", tunes=True, timeout_s=60.0)
    order: list[str] = []
    pins.begin(case, here)
    pins.begin(case, other)  # of another model: does not wait

    def follow():
        pins.begin(case, here)
        order.append("follows")
        pins.end(case, here)

    follower = threading.Thread(target=follow)
    follower.start()
    follower.join(0.2)
    assert follower.is_alive()
    order.append("done")
    pins.end(case, here)
    follower.join(60)
    assert order == ["done", "follows"]
    pins.begin(case, here)  # once: whatever came of it, nobody waits again


def test_nobody_waits_longer_than_the_case_may_take_nor_for_one_that_does_not_tune():
    pins, here = Pins(), made.machine()
    plain = made.planned(made.record(), device="cpu:0", timeout_s=1e6)
    together = made.planned(made.record(), device="cpu:0", timeout_s=1e6, tunes=True, world="torch", ranks=2)
    for case in (plain, together):
        pins.begin(case, here)
        pins.begin(case, here)
        pins.end(case, here)
    tuning_one = made.planned(made.record(), device="cpu:0", tunes=True, timeout_s=0.05, budget_s=0.05)
    pins.begin(tuning_one, here)
    pins.begin(tuning_one, here)


# --------------------------------------------------------------------------------------------------------------------------
# through a real worker


def planned(which, launch=0, **more):
    (case,) = PROBE.cases(fastest=[which])
    fields = {"case": case.id, "probe": case.probe, "module": MODULE, "params": dict(case.params), "device": "cpu:0"}
    return made.planned(made.record(), **fields, launch=launch, budget_s=0.02, timeout_s=60.0, **{"tunes": True} | more)


@pytest.fixture(scope="module")
def supervisor():
    owner = Supervisor(patience=Patience(start_s=60))
    owner.start()
    yield owner
    owner.close()


@pytest.fixture
def measured(supervisor):
    """Settings of what was measured by a run with such pins."""

    def measured(pins, which, **more):
        supervisor.pins = pins
        outcome = supervisor.run(planned(which, **more), seed=1, llc_bytes=1 << 20).outcome
        assert outcome.status in ("ok", "verified"), outcome
        return outcome.settings

    return measured


def test_a_choice_holds_for_the_run(measured):
    pins = Pins()
    first = measured(pins, "third")
    assert (first["config"], first["tuned"], first["candidates"], first[PREFIX + WHAT]) == ("third", "measured", 3, "third")
    assert pins.known() == {WHAT: "third"}
    later = measured(pins, "second", launch=1)  # which would be the fastest now
    assert (later["config"], later["tuned"]) == ("third", "pinned")
    resumed = measured(Pins([made.record(settings=first)]), "second", launch=2)
    assert (resumed["config"], resumed["tuned"]) == ("third", "pinned")
    anew = measured(Pins(), "second")
    assert (anew["config"], anew["tuned"]) == ("second", "measured")


@pytest.mark.parametrize("pin", ["no such candidate", "../third", "third "])
def test_a_foreign_pin_is_not_obeyed_and_is_forgotten(measured, pin):
    pins = Pins([made.record(settings={PREFIX + WHAT: pin})])
    assert (measured(pins, "second")["config"], pins.known()) == ("second", {WHAT: "second"})


def test_what_is_only_checked_is_not_tuned(measured):
    pins = Pins()
    settings = measured(pins, "second", check_only=True)
    assert (settings["config"], settings["tuned"], pins.known()) == ("first", "first", {})


def test_a_case_that_does_not_tune_learns_and_teaches_nothing(measured):
    pins = Pins([made.record(settings={PREFIX + WHAT: "third"})])
    assert measured(pins, "second", tunes=False)["config"] == "second"
    assert pins.known() == {WHAT: "third"}
    empty = Pins()
    measured(empty, "second", tunes=False)
    assert empty.known() == {}


# --------------------------------------------------------------------------------------------------------------------------
# through whole runs

SUITE = """
title = "tuned"
budget_s = 0.1
timeout_s = 20
[[cases]]
probe = "tuned"
fastest = ["second", "third"]
"""


def told(folder):
    return [(r["params"].get("fastest"), r["launch"], r["settings"].get("config"), r["settings"].get("tuned")) for r in folder]


def test_plans_say_what_tunes(tmp_path):
    (tmp_path / "suite.toml").write_text(SUITE)
    cases = plan(load_suite(tmp_path / "suite.toml"), {"tuned": PROBE}, made.machine(), Wish())
    assert [case.tunes for case in cases] == [True, True]
    assert not Needs().tunes


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_what_it_chose(tmp_path):
    hanging = '\n[[cases]]\nprobe = "misbehave"\nhow = "hang"\nworld = "serial"\nphase = "run"\ntimeout_s = 3\n'
    (tmp_path / "suite.toml").write_text(SUITE + hanging)
    probes = ["--probes", MODULE, "--probes", "tests.faults.misbehaving", "-o", str(tmp_path / "results")]
    process = start("--suite", str(tmp_path / "suite.toml"), "--launches", "2", *probes)
    wait_for(lambda: (tmp_path / "results").exists() and len(records(tmp_path)) == 2, 60)
    time.sleep(0.5)  # a record whose writing is interrupted does not count
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert told(records(tmp_path)) == [("second", 0, "second", "measured"), ("third", 0, "second", "pinned")]
    done = suite("--resume", "latest", *probes)
    assert done.returncode == 3, done.stderr
    again = [record for record in told(records(tmp_path)) if record[1] == 1 and record[0]]
    assert again == [("second", 1, "second", "pinned"), ("third", 1, "second", "pinned")]
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["planned"][0]["tunes"] is True
    assert living(str(tmp_path)) == []


@pytest.mark.slow
def test_nodes_of_a_model_run_what_one_of_them_chose(tmp_path):
    (tmp_path / "suite.toml").write_text(SUITE)
    words = [
        "run",
        "--probes",
        MODULE,
        "--remote",
        nodes.REMOTE,
        "--address",
        nodes.HERE,
        "-o",
        str(tmp_path / "results"),
        "--hosts",
        "na,nb",
    ]
    done = suite(*words, "--suite", str(tmp_path / "suite.toml"))
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert len({r["machine_id"] for r in found}) == 2
    assert sorted(told(found)) == [
        ("second", 0, "second", "measured"),
        ("second", 0, "second", "pinned"),
        ("third", 0, "second", "pinned"),
        ("third", 0, "second", "pinned"),
    ]


# --------------------------------------------------------------------------------------------------------------------------
# runs that chose differently


def test_runs_that_chose_differently_are_compared_and_it_is_told():
    def launches(config, **more):
        return [made.record(settings={"config": config, "pin.x": config, "tuning_s.a": 1.0, "threads": 4, **more})]

    tuned = {"candidates": 2, "tuned": "measured"}
    found = differ.of_records(launches("a", **tuned), launches("b", **tuned))
    assert [(d.name, d.a, d.b, d.bars) for d in found] == [("config", "a", "b", False)]
    found = differ.of_records(launches("a"), launches("b"))
    assert [(d.name, d.bars) for d in found] == [("config", True)]


# --------------------------------------------------------------------------------------------------------------------------
# our Triton kernels, on devices that are made up


@pytest.fixture
def device(monkeypatch):
    """A GPU that is made up, and its clock; candidates take the seconds that are planted, and all that ran is noted."""
    clock, planted, ran = Clock(), {}, []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    monkeypatch.setattr(tuning, "clock_for", lambda kind, where: clock if (kind, where) == ("device", "cuda:0") else None)

    def call(name):
        move = clock.pass_by(planted.get(name, 2e-3))
        return lambda: (ran.append(name), move())

    return SimpleNamespace(clock=clock, planted=planted, ran=ran, call=call)


def on_gpu(tmp_path, **more):
    return Context(Serial(), "cuda:0", 1, tmp_path, **more)


def test_products_run_in_the_fastest_configuration_on_all_buffer_sets(tmp_path, monkeypatch, device):
    from kernels import matmul_backends as backends
    from kernels.triton import matmul as kernel, matmul_tiles

    monkeypatch.setattr(kernel, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(kernel, "call", lambda config, dtype, a, b, c, scales: device.call((str(config), a)))
    names = [str(config) for config in matmul_tiles.candidates("sm_90", "bf16", 64, 64, 128)]
    device.planted |= {(names[2], 0): 1e-3, (names[2], 1): 1e-3}
    ctx = on_gpu(tmp_path)
    start = backends.tune(ctx, "bf16", (128, 64, 64), (None, None), ([0, 1], [0, 1], [0, 1]))
    assert {name for name, _ in device.ran} == set(names)
    assert {number for _, number in device.ran} == {0, 1}
    device.ran.clear()
    start(0, 0, 0)()
    assert device.ran == [(names[2], 0)]
    pin = {"matmul bf16 128x64x64 on H100": names[2]}
    assert parse(ctx.settings) == pin
    assert (ctx.settings["config"], ctx.settings["candidates"]) == (names[2], len(names))
    later = on_gpu(tmp_path, pins=pin, tunes=False)
    device.ran.clear()
    backends.tune(later, "bf16", (128, 64, 64), (None, None), ([0], [0], [0]))
    assert (later.settings["config"], device.ran) == (names[2], [(names[2], 0)])  # once, to see that it fits


@pytest.mark.parametrize(("mode", "choices"), [("forward", 2), ("backward", 2), ("decode", 2)])
def test_attention_runs_in_the_fastest_configuration(tmp_path, monkeypatch, device, mode, choices):
    from kernels import attention_live as live
    from kernels.attended import Shape
    from kernels.triton import attention as kernel

    shape = Shape(1, 8, 2, 1 if mode == "decode" else 128, 128, 64, causal=False)
    monkeypatch.setattr(live, "_architecture", lambda _: "sm_90")
    monkeypatch.setattr(live, "_units", lambda _: 132)
    for name in ("forward", "backward", "decode"):
        monkeypatch.setattr(kernel, name, lambda config, *_, name=name: device.call((name, config.describe(name))))
    q, kv = torch.zeros(1, 8, shape.queries, 64), torch.zeros(1, 2, 128, 64)
    ctx = on_gpu(tmp_path)
    sets = [live.Triton(ctx, shape, mode, (q, kv, kv, q)) for _ in range(2)]
    names = [config.describe(mode) for config in sets[0].candidates]
    assert len(names) == len(set(names)) == choices
    device.planted[mode, names[-1]] = 1e-3
    live.tune(ctx, sets, shape, "bf16")
    assert ctx.settings["config"] == names[-1]
    device.ran.clear()
    for one in sets:
        one.run()
    assert device.ran == [(mode, names[-1])] * 2
    grouped = f"1x8:2x{shape.queries}:128x64"
    assert parse(ctx.settings) == {f"attention {mode} full bf16 {grouped} on H100": names[-1]}


def test_torchs_own_attention_is_not_tuned(tmp_path):
    from kernels import attention_live as live
    from kernels.attended import Shape

    shape = Shape(1, 8, 2, 16, 16, 64, causal=False)
    q, kv = torch.zeros(1, 8, 16, 64), torch.zeros(1, 2, 16, 64)
    ctx = on_gpu(tmp_path)
    live.tune(ctx, [live.Torch(shape, "forward", (q, kv, kv))], shape, "bf16")
    assert ctx.settings == {}


@pytest.mark.parametrize(
    "arch", ["interpreter", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942", "gfx950"]
)
def test_there_are_few_candidates_each_once_and_the_first_is_the_configuration(arch):
    from kernels.triton import attention_tiles, matmul_tiles

    for dtype in matmul_tiles.DTYPES:
        for m, n, k in itertools.product((1, 16, 17, 64, 65, 8192), (8192,), (8192, 8191)):
            try:
                found = matmul_tiles.candidates(arch, dtype, n, k, m)
            except Skip:
                continue
            assert 1 <= len(found) == len(set(map(str, found))) <= 6
            assert found[0] == matmul_tiles.chosen(arch, dtype, n, k, m)
            assert len(found) == 1 or k % 16 == 0
            assert len({(type(config), config.promote) for config in found}) == 1  # they sum alike
    for mode, head_dim, queries, causal in itertools.product(
        ("forward", "backward", "decode"), (64, 128), (8192, 8191), (True, False)
    ):
        found = attention_tiles.candidates(arch, head_dim, mode, queries, causal)
        assert 1 <= len(found) == len({config.describe(mode) for config in found}) <= 6
        assert found[0] == attention_tiles.fitted(attention_tiles.configuration(arch, head_dim), queries, causal)
    assert arch != "interpreter" or len(matmul_tiles.candidates(arch, "bf16", 64, 64)) == len(found) == 1


def test_what_runs_in_triton_tunes_and_nothing_else():
    from kernels.attention import attention
    from kernels.best import best_matmul
    from kernels.burnin import burnin
    from kernels.matmul import matmul

    product = {"dtype": "bf16", "shape": "64"}
    sizes = {"mask": "full", "dtype": "bf16", "head_dim": 64, "heads": "8x2", "seq": 128, "batch": 1}
    for backend, tunes in (("triton", True), ("torch", False)):
        assert matmul.needs_of({"backend": backend, **product}).tunes == tunes
        assert best_matmul.needs_of({"backend": backend, "dtype": "bf16"}).tunes == tunes
        assert burnin.needs_of({"backend": backend, "on": "gpus", **product}).tunes == tunes
        assert not burnin.needs_of({"backend": backend, "on": "cores", **product}).tunes
    for backend, tunes in (("triton", True), ("sdpa_flash", False)):
        assert attention.needs_of({"backend": backend, "mode": "forward", **sizes}).tunes == tunes


def test_what_does_not_fit_this_device_is_passed_over(tmp_path, device):
    from triton import OutOfResources

    from kernels.triton import tuned

    def start(name):
        return [lambda: raise_(OutOfResources(2, 1, "shared memory"))] if name == "large" else [device.call(name)]

    names = {name: name for name in ("large", "small", "other")}
    device.planted["other"] = 3e-3
    assert tuned.choose(on_gpu(tmp_path), "x", names, start) == "small"


@pytest.mark.parametrize("how", ["tuned", "pinned", "not tuned", "alone"])
def test_where_nothing_fits_this_device_the_case_is_skipped_and_says_what_is_needed(tmp_path, device, how):
    from triton import OutOfResources

    from kernels.triton import tuned

    needs = {"large": 98304, "larger": 131072} if how != "alone" else {"large": 98304}

    def start(name):
        return [lambda: raise_(OutOfResources(needs[name], 65536, "shared memory"))]

    ctx = on_gpu(tmp_path, tunes=how != "not tuned", pins={"x on H100": "large"} if how == "pinned" else {})
    said = "^the kernel needs 98304 bytes of shared memory, a block on H100 has 65536$"
    with pytest.raises(Skip, match=said):
        tuned.choose(ctx, "x", {name: name for name in needs}, start)
    assert ctx.settings.get("tuned") != "measured"


def test_other_errors_of_a_kernel_that_was_not_measured_are_the_cases(tmp_path, device):
    from kernels.triton import tuned

    with pytest.raises(ZeroDivisionError):
        tuned.choose(on_gpu(tmp_path), "x", {"one": 1}, lambda _: [lambda: 1 // 0])
