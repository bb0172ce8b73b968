"""From records and criteria to verdicts and exit codes, on planted figures."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from clustergauge.accept import exit_code, judge, parse_criteria, unmatched
from clustergauge.ceilings import Ceiling
from clustergauge.errors import UsageError
from clustergauge.model import Counters, Criterion, Verdict, Workload
from tests import made

READ = Workload(bytes_read=10**9, bound="storage")


def at_least(floor: float, **more) -> Criterion:
    """2 TFLOP/s is what `made.record` reaches."""
    return Criterion(**{"case": "matmul", "metric": "compute", "unit": "TFLOP/s", "floor": floor, **more})


def one(records, *criteria, **more) -> Verdict:
    (verdict,) = judge(records, criteria, **more)
    return verdict


# -- the interval decides


@pytest.mark.parametrize(
    ("floor", "word"),
    [(1.9, "pass"), (1.97, "pass"), (1.999, "inconclusive"), (2.001, "inconclusive"), (2.03, "FAIL"), (4, "FAIL")],
)
def test_a_floor_is_held_against_the_interval(floor, word):
    verdict = one([made.record()], at_least(floor))
    assert verdict.verdict == word  # one launch: ±1 % for the spread between launches
    assert verdict.value == pytest.approx(2e12)
    assert verdict.bound == pytest.approx(floor * 1e12)
    assert verdict.margin == pytest.approx(2 / floor - 1)


@pytest.mark.parametrize(("limit", "word"), [(0.9, "FAIL"), (0.999, "inconclusive"), (1.1, "pass")])
def test_a_limit_is_held_against_the_interval(limit, word):
    verdict = one([made.record()], Criterion(case="*", metric="time", unit="ms", limit=limit * 1e3))
    assert verdict.verdict == word
    assert verdict.margin == pytest.approx(1 - 1 / limit)


def test_launches_that_differ_widen_the_interval():
    launches = [made.record(samples=[t] * 30, launch=n) for n, t in enumerate((1.0, 1.05, 0.95))]
    assert one(launches, at_least(1.95)).verdict == "inconclusive"
    steady = [made.record(samples=[t] * 30, launch=n) for n, t in enumerate((1.0, 1.0001, 0.9999))]
    assert one(steady, at_least(1.99)).verdict == "pass"


def test_too_few_samples_decide_nothing():
    verdict = one([made.record(samples=[1.0, 1.0])], at_least(0.1))
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "too few samples for an interval")


# -- what has no number never passes


@pytest.mark.parametrize("status", ["wrong", "error", "skipped", "verified"])
def test_what_was_not_timed_is_not_measured(status):
    verdict = one([made.failed(status, "why")], at_least(1))
    assert (verdict.verdict, verdict.reason) == ("not measured", f"{status}: why")
    assert judge([made.failed(status, "why")], [at_least(1, required=False)]) == []


def test_one_failed_launch_spoils_the_case():
    verdict = one([made.record(), made.failed("error", "died", launch=1)], at_least(1))
    assert verdict.verdict == "not measured"


def test_a_case_with_fewer_launches_than_planned_never_passes():
    launches = [made.record(launch=n) for n in range(3)]
    plans = [made.planned(r) for r in launches]
    assert one(launches, at_least(1), planned=plans).verdict == "pass"
    verdict = one(launches[:1], at_least(1), planned=plans)
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "only 1 of 3 launches were measured")
    assert one([*launches[:2], made.failed("skipped", "memory", launch=2)], at_least(1), planned=plans).verdict == "inconclusive"
    assert one(launches[:1], at_least(9), planned=plans).verdict == "FAIL"


def test_a_case_the_run_did_not_reach_is_not_measured_though_others_passed():
    reached, missed = made.record(shape="1"), made.record(shape="2")
    verdicts = judge([reached], [at_least(1)], planned=[made.planned(reached), made.planned(missed)])
    assert [(v.case, v.verdict) for v in verdicts] == [("matmul/shape=1", "pass"), ("matmul/shape=2", "not measured")]


def test_a_criterion_nobody_answers_is_not_measured():
    verdicts = judge([made.record()], [at_least(1, case="attention")])
    assert [v.verdict for v in verdicts] == ["unreferenced", "not measured"]
    assert unmatched([at_least(1, case="attention"), at_least(1)], ["matmul/dtype=fp32"]) == ["attention"]


def test_a_metric_the_case_does_not_have_is_not_measured():
    verdict = one([made.record()], Criterion(case="matmul", metric="busbw", unit="GB/s", floor=1))
    assert verdict.verdict == "not measured"
    assert "has no busbw" in verdict.reason
    integers = made.record(work=Workload(ops=10**12, dtype="int8", bound="compute"))
    assert one([integers], at_least(1)).reason == "this case has no compute in FLOP/s"


def test_without_criteria_a_case_is_unreferenced():
    verdict = one([made.record()])
    assert (verdict.verdict, verdict.metric, verdict.value, verdict.unit) == ("unreferenced", "compute", 2e12, "FLOP/s")


def test_devices_and_machines_are_judged_apart():
    records = [made.record(device="cuda:0"), made.record(device="cuda:1", samples=[2.0] * 30)]
    records.append(made.record(device="cuda:1", machine_id="m2"))
    assert [v.verdict for v in judge(records, [at_least(1.5)])] == ["pass", "FAIL", "pass"]


# -- numbers that cannot be true


def test_reads_that_a_cache_answered_are_invalid():
    def read(moved: int, **settings):
        moved_and_asked = {"read": moved, "written": 0, "asked_read": 10**9, "asked_written": 0}
        return made.record("sequential", work=READ, device_bytes=moved_and_asked, settings=settings)

    criterion = Criterion(case="sequential", metric="bandwidth", unit="GB/s", floor=0.5)
    assert one([read(10**9)], criterion).verdict == "pass"
    verdict = one([read(9 * 10**8)], criterion)
    assert (verdict.verdict, verdict.reason) == ("invalid", "cached: the device moved 90% of the bytes")
    assert one([read(0)]).verdict == "invalid"  # whatever is asked of it
    assert one([read(0, fs_type="nfs4")], criterion).verdict == "pass"  # the device is on another machine


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ({"gpu0.xid_79": 1}, "the hardware failed meanwhile: gpu0.xid_79 1"),
        ({"gpu1.ecc_uncorrected": 3}, "the hardware failed meanwhile: gpu1.ecc_uncorrected 3"),
        ({"gpu1.remap_failed": "no → yes"}, "the hardware failed meanwhile: gpu1.remap_failed no → yes"),
        ({"memory.mc0.uncorrected": 1}, "the hardware failed meanwhile: memory.mc0.uncorrected 1"),
        ({"gpu1.ecc_corrected": 3, "eth0.rx_errors": 1, "unknown": "gpu0.xid"}, ""),
    ],
)
def test_numbers_taken_while_hardware_failed_are_invalid(health, words):
    verdict = one([made.record(counters=Counters(health=health))], at_least(1))
    assert (verdict.verdict, verdict.reason) == ("invalid" if words else "pass", words)


def test_a_criterion_on_counted_bytes_can_pass_and_fail():
    counted = {"read": 98, "written": 0, "asked_read": 100, "asked_written": 0}
    records = [made.record("sequential", work=READ, device_bytes=counted)]
    for floor, word in ((97.0, "pass"), (99.0, "FAIL")):
        assert one(records, Criterion(case="*", metric="device_fraction", unit="%", floor=floor)).verdict == word


def test_an_optional_criterion_without_a_number_is_silent():
    assert judge([made.record()], [Criterion(case="matmul", metric="busbw", unit="GB/s", floor=1, required=False)]) == []


def test_above_a_firm_ceiling_is_invalid_and_above_an_estimate_a_doubt():
    def limit(value: float, firm: bool):
        return lambda record, metric: Ceiling(value, "FLOP/s", firm, "a datasheet") if metric.name == "compute" else None

    verdict = one([made.record()], at_least(1), ceiling=limit(1e12, firm=True))
    assert (verdict.verdict, verdict.reason) == ("invalid", "above the ceiling of 1.00 TFLOP/s (a datasheet)")
    verdict = one([made.record()], at_least(1), ceiling=limit(1e12, firm=False))
    assert (verdict.verdict, verdict.reason) == ("pass", "above the estimated ceiling of 1.00 TFLOP/s")
    assert one([made.record()], at_least(1), ceiling=limit(3e12, firm=True)).reason == ""
    assert one([made.record()], at_least(1), ceiling=limit(1.999e12, firm=True)).verdict == "pass"  # not surely above


# -- exit codes: the worst wins


@pytest.mark.parametrize(
    ("statuses", "verdicts", "code"),
    [
        (["ok"], ["pass"], 0),
        (["ok", "skipped", "verified"], ["unreferenced"], 0),
        ([], [], 0),
        (["ok"], ["pass", "inconclusive"], 4),
        (["ok"], ["not measured"], 4),
        (["ok"], ["FAIL", "not measured"], 1),
        (["ok"], ["invalid", "FAIL"], 3),
        (["wrong"], ["FAIL"], 3),
        (["error"], [], 3),
    ],
)
def test_the_worst_decides_the_exit_code(statuses, verdicts, code):
    records = [made.failed(s, "") for s in statuses]
    assert exit_code(records, [Verdict(case="c", verdict=v) for v in verdicts]) == code


def test_what_was_planned_and_has_no_record_is_not_success():
    done, missing = made.record(shape="1"), made.record(shape="2")
    plans = [made.planned(done), made.planned(missing)]
    assert exit_code([done], [], plans) == 4
    assert exit_code([done], [], [plans[0], made.planned(missing, skip="no GPU")]) == 0
    assert exit_code([done], [], [plans[0], made.planned(done, launch=1)]) == 4


# -- the file

GOOD = '[[criteria]]\ncase = "matmul/*"\nmetric = "compute"\nfloor = 700\nunit = "TFLOP/s"\nsource = "a good run"\n'


def test_criteria_are_read():
    (criterion,) = parse_criteria(GOOD, "a.toml")
    assert criterion == Criterion(case="matmul/*", metric="compute", unit="TFLOP/s", floor=700, source="a good run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[criteria]", "a.toml: not TOML"),
        ("", "criteria"),
        ("criteria = []", "holds no [[criteria]]"),
        (GOOD.replace("floor", "flor"), "flor"),
        (GOOD.replace("700", '"700"'), "criteria[0].floor"),
        (GOOD.replace("floor = 700\n", ""), "needs either floor (at least) or limit (at most)"),
        (GOOD + "limit = 3\n", "needs either floor"),
        (GOOD.replace("700", "-1"), "criteria[0].floor is -1: must be more than 0"),
        (GOOD.replace("700", "nan"), "criteria[0].floor is nan"),
        (GOOD.replace("700", "inf"), "criteria[0].floor is inf"),
        (GOOD.replace("TFLOP/s", "parsec"), "criteria[0].unit: unknown unit 'parsec'"),
        (GOOD.replace("TFLOP/s", "GB/s"), "compute is not measured in GB/s (but in FLOP/s or OP/s)"),
        (GOOD.replace('"compute"', '"speed"'), "unknown metric 'speed' (there are time"),
        ("schema = 2\n" + GOOD, "schema 2 is not known"),
    ],
)
def test_a_mistake_names_file_and_field(text, words):
    with pytest.raises(UsageError) as caught:
        parse_criteria(text, "a.toml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("a.toml")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    with pytest.raises(UsageError):
        parse_criteria(text, "a.toml")


@given(st.floats(0.5, 8), st.lists(st.floats(0.5, 2), min_size=20, max_size=60))
def test_pass_and_fail_never_contradict_the_value(floor, samples):
    verdict = one([made.record(samples=samples)], at_least(floor))
    assert verdict.value is not None
    if verdict.verdict == "pass":
        assert verdict.value >= floor * 1e12
    if verdict.verdict == "FAIL":
        assert verdict.value < floor * 1e12
