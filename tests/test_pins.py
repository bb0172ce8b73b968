"""What was chosen among candidates holds for the run: its memory, through workers that are real, and through whole runs."""

from __future__ import annotations

import json
import signal
import threading
import time

import pytest

from clustergauge import differ
from clustergauge.pins import LONGEST, MOST, MOST_OF_A_CASE, PREFIX, Pins, parse
from clustergauge.plan import Wish, load_probes, load_suite, plan
from clustergauge.probe import Needs
from clustergauge.supervise import Patience, Supervisor
from tests import made, nodes
from tests.faults.tuned import WHAT
from tests.test_cli import living, only_run, records, start, suite, wait_for

MODULE = "tests.faults.tuned"
PROBE = load_probes([MODULE])["tuned"]


# -- the memory of a run


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


# -- through a real worker


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


# -- through whole runs


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


def test_runs_that_chose_differently_are_compared_and_it_is_told():
    def launches(config, **more):
        return [made.record(settings={"config": config, "pin.x": config, "tuning_s.a": 1.0, "threads": 4, **more})]

    tuned = {"candidates": 2, "tuned": "measured"}
    found = differ.of_records(launches("a", **tuned), launches("b", **tuned))
    assert [(d.name, d.a, d.b, d.bars) for d in found] == [("config", "a", "b", False)]
    found = differ.of_records(launches("a"), launches("b"))
    assert [(d.name, d.bars) for d in found] == [("config", True)]
