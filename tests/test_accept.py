"""From records and criteria to verdicts, on planted figures."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from clustergauge import metrics, stats
from clustergauge.accept import Standards, judge
from clustergauge.ceilings import Ceiling
from clustergauge.model import Counters, Criterion, Measurement, Verdict, Workload
from clustergauge.reached import Devices, Peers, grouped
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


@pytest.mark.parametrize(("limit", "word"), [(0.6, "FAIL"), (0.7, "inconclusive"), (0.9, "pass")])
def test_an_energy_has_a_limit_and_is_held_by_its_ends(limit, word):
    """Runs of 2 TFLOP and 1 s; 15 J in 10 s are 0.75 pJ/FLOP, with a run more or less and a counter's step of 1 % either way."""
    said = {"window": "sampling", "cpu_energy_j": 15.0, "cpu_energy_from_s": 1.0, "cpu_energy_to_s": 11.0}
    taken = Measurement(clock="wall", cache="none", samples_s=[1.0] * 30, sample_start_s=[float(i) for i in range(30)])
    criterion = Criterion(case="*", metric="energy_per_flop", unit="pJ/FLOP", limit=limit)
    verdict = one([made.record(measurement=taken, telemetry=said)], criterion)
    assert (verdict.verdict, verdict.value) == (word, pytest.approx(0.75e-12, rel=1e-9, abs=0))


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


def test_a_case_that_was_skipped_when_it_was_planned_says_why():
    reached, skipped = made.record(shape="1"), made.record(shape="2")
    plans = [made.planned(reached), *(made.planned(skipped, launch=n, skip="no GPU here") for n in range(2))]
    verdicts = judge([reached], [at_least(1)], planned=plans)
    assert [(v.verdict, v.reason) for v in verdicts] == [("pass", ""), ("not measured", "skipped: no GPU here")]
    elsewhere = made.planned(skipped, hosts="n2")  # on a node that has one it was to be measured
    assert judge([reached], [at_least(1)], planned=[*plans, elsewhere])[1].reason == "the run did not get to it"


def test_a_criterion_nobody_answers_is_not_measured():
    verdicts = judge([made.record()], [at_least(1, case="attention")])
    assert [v.verdict for v in verdicts] == ["unreferenced", "not measured"]


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
        return Standards(
            lambda record, metric: Ceiling(value, "FLOP/s", firm, "a datasheet") if metric.name == "compute" else None
        )

    verdict = one([made.record()], at_least(1), standards=limit(1e12, firm=True))
    assert (verdict.verdict, verdict.reason) == ("invalid", "above the ceiling of 1.00 TFLOP/s (a datasheet)")
    verdict = one([made.record()], at_least(1), standards=limit(1e12, firm=False))
    assert (verdict.verdict, verdict.reason) == ("pass", "above the estimated ceiling of 1.00 TFLOP/s")
    assert one([made.record()], at_least(1), standards=limit(3e12, firm=True)).reason == ""
    assert one([made.record()], at_least(1), standards=limit(1.999e12, firm=True)).verdict == "pass"  # not surely above


def test_what_was_cut_short_is_inconclusive_though_all_that_is_asked_of_it_is_optional():
    taken = Measurement(clock="wall", cache="none", samples_s=[1.0] * 30, stop_reason="interrupted")
    burn = made.record(measurement=taken, reason="interrupted after 30 of 60 s")
    verdict = one([burn], Criterion(case="*", of_baseline=0.95, required=False))
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "interrupted after 30 of 60 s")


def test_launches_that_chose_different_work_are_judged_by_their_rate_and_have_no_time():
    double = Workload(flops=4 * 10**12, dtype="fp32", bound="compute")
    records = [made.record(), made.record(work=double, samples=[2.0] * 30, launch=1)]
    assert one(records, at_least(1.9)).verdict == "pass"
    assert one(records).value == pytest.approx(2e12)
    verdict = one(records, Criterion(case="*", metric="time", unit="s", limit=9.0))
    assert (verdict.verdict, verdict.value) == ("not measured", None)
    assert verdict.reason == "this case has no time: launches did different amounts of work"


def test_launches_with_nothing_in_common_are_not_measured_even_if_nothing_was_asked():
    records = [made.record(work=READ, device_bytes={"read": 1, "asked_read": 1}, launch=n, ranks=n) for n in (1, 2)]
    verdict = one(records)
    assert (verdict.verdict, verdict.reason) == ("not measured", "nothing in common: launches ran on 1 and 2 ranks")


# -- parts of something else: a ceiling, a reference, a baseline, peers


def part(**more) -> Criterion:
    return Criterion(**{"case": "matmul", "metric": "compute"} | more)


def ceiling_of(value: float, firm: bool = True):
    return Standards(lambda _record, metric: Ceiling(value, "FLOP/s", firm, "a datasheet") if metric.name == "compute" else None)


@pytest.mark.parametrize(("fraction", "word"), [(0.4, "pass"), (0.5, "inconclusive"), (0.6, "FAIL")])
def test_a_share_of_the_ceiling(fraction, word):
    verdict = one([made.record()], part(of_ceiling=fraction), standards=ceiling_of(4e12))
    assert (verdict.verdict, verdict.bound) == (word, fraction * 4e12)
    assert verdict.remark == f"{fraction:.0%} of 4.00 TFLOP/s"


def test_without_a_known_ceiling_a_share_of_it_is_not_measured():
    verdict = one([made.record()], part(of_ceiling=0.1))
    assert (verdict.verdict, verdict.reason) == ("not measured", "no ceiling is known for it")
    time = one([made.record()], part(metric="time", of_ceiling=0.1), standards=ceiling_of(4e12))
    assert time.verdict == "not measured"


@pytest.mark.parametrize(
    ("reference", "word", "bound"),
    [
        (2.05, "pass", 1.845),
        (2.5, "FAIL", 2.25),
        (1.5, "FAIL", 1.65),
        (2.22, "inconclusive", 1.998),
        (1.82, "inconclusive", 2.002),
    ],
)
def test_a_reference_has_two_sides(reference, word, bound):
    verdict = one([made.record()], part(reference=reference, unit="TFLOP/s", lower=-0.1, upper=0.1))
    assert verdict.verdict == word
    assert verdict.bound == pytest.approx(bound * 1e12)


def test_a_reference_with_one_side_forgives_the_other():
    assert one([made.record()], part(reference=1.0, unit="TFLOP/s", lower=-0.1)).verdict == "pass"
    assert one([made.record()], part(reference=9.0, unit="TFLOP/s", upper=0.1)).verdict == "pass"


@pytest.mark.parametrize(("theirs", "word"), [(1.0, "pass"), (0.8, "FAIL"), (0.95, "inconclusive")])
@pytest.mark.parametrize("metric", ["compute", "time"])
def test_a_share_of_a_baseline_is_one_of_speed(theirs, word, metric):
    standards = Standards(baseline=[made.record(samples=[theirs] * 30, machine_id="golden")])
    verdict = one([made.record()], part(metric=metric, of_baseline=0.95), standards=standards)
    assert verdict.verdict == word
    if metric == "time":
        assert verdict.bound == pytest.approx(theirs / 0.95)


def test_a_baseline_that_cannot_serve_is_not_measured():
    standards = Standards(baseline=[made.record()], barred={"m1": "library torch: 1 there, 2 here"})
    verdict = one([made.record()], part(of_baseline=0.5), standards=standards)
    assert (verdict.verdict, verdict.reason) == ("not measured", "the baseline cannot serve: library torch: 1 there, 2 here")
    nothing = one([made.record()], part(of_baseline=0.5), standards=Standards(baseline=[made.record(shape="9")]))
    assert nothing.reason == "the baseline has no number for it"


@pytest.mark.parametrize("own", [True, False])
def test_a_number_that_cannot_be_true_is_no_baseline(own):
    """Reads that a cache answered were ten times as fast: an honest run is not held against them."""
    lie = made.record(
        "sequential",
        samples=[0.1] * 30,
        work=READ,
        machine_id="m1" if own else "golden",
        device_bytes={"read": 1, "asked_read": 9},
    )
    honest = made.record("sequential", work=READ, device_bytes={"read": 9, "asked_read": 9})
    criterion = Criterion(case="*", of_baseline=0.95)
    verdict = one([honest], criterion, standards=Standards(baseline=[lie]))
    assert (verdict.verdict, verdict.reason) == (
        "not measured",
        "the baseline's number cannot be true: cached: the device moved 11% of the bytes",
    )
    others = [made.record("sequential", work=READ, machine_id=f"g{n}") for n in range(2)]
    if not own:
        assert one([honest], criterion, standards=Standards(baseline=[lie, *others])).verdict == "pass"


def test_what_was_wrong_in_the_baseline_is_no_baseline_though_other_launches_were_well():
    baseline = [made.record(), made.failed("wrong", "element 3", launch=1)]
    verdict = one([made.record()], part(of_baseline=0.5), standards=Standards(baseline=baseline))
    assert (verdict.verdict, verdict.reason) == ("not measured", "the baseline has no number for it")


def test_the_numbers_of_a_baseline_are_worked_out_once_however_many_are_held_against_them(monkeypatch):
    derived = []
    monkeypatch.setattr(metrics, "derive", lambda records, own=metrics.derive: derived.append(1) or own(records))
    records = [made.record(machine_id=f"m{n}") for n in range(20)]
    for baseline in (records, [made.record(machine_id=f"golden-{n}") for n in range(20)]):
        derived.clear()
        assert {v.verdict for v in judge(records, [part(of_baseline=0.95)], Standards(baseline=baseline))} == {"pass"}
        assert len(derived) == 2 * len(records)  # of each that is judged, and of each of the baseline


def test_globs_are_matched_once_however_many_machines_measured_a_case(monkeypatch):
    asked = []
    monkeypatch.setattr("clustergauge.accept.matches", lambda glob, case: asked.append(case) or True)
    found = judge([made.record(machine_id=f"m{n}") for n in range(20)], [at_least(1), at_least(1, required=False)])
    assert len(found) == 40
    assert len(asked) <= 4


def test_a_number_that_cannot_be_true_is_no_peer():
    """Two of four read from a cache: of the others nobody has three to be held against."""
    honest, lie = ({"read": n, "asked_read": 9} for n in (9, 1))
    records = [
        made.record("sequential", samples=[t] * 30, work=READ, device=f"cpu:{n}", device_bytes=counted)
        for n, (t, counted) in enumerate([(1.0, honest), (1.0, honest), (0.1, lie), (0.1, lie)])
    ]
    found = judge(records, [Criterion(case="*", of_peers=0.95)])
    assert [v.verdict for v in found] == ["not measured"] * 2 + ["invalid"] * 2
    assert found[0].reason == "1 peer in this run, 3 are needed to be held against"


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=9))
def test_what_peers_reach_is_the_median_of_all_others(times):
    records = [made.record(device=f"cuda:{n}", samples=[t] * 20) for n, t in enumerate(times)]
    peers = Peers(Devices(grouped(records)), {})
    for n, record in enumerate(records):
        others = times[:n] + times[n + 1 :]
        count, middle = peers.others(record, "time")
        assert (count, middle) == (len(others), stats.median(others) if others else 0.0)


def test_the_doubt_of_the_baseline_widens_the_interval():
    rough = Standards(baseline=[made.record(samples=[0.93, 1.07] * 20)])
    steady = Standards(baseline=[made.record()])
    assert one([made.record()], part(of_baseline=0.98), standards=steady).verdict == "pass"
    assert one([made.record()], part(of_baseline=0.98), standards=rough).verdict == "inconclusive"


def test_the_own_device_serves_before_others_of_its_kind():
    baseline = [made.record(device="cuda:0", samples=[0.5] * 30), made.record(device="cuda:1")]
    standards = Standards(baseline=baseline)
    criterion = part(of_baseline=0.95)
    found = judge([made.record(device="cuda:0"), made.record(device="cuda:1")], [criterion], standards)
    assert [v.verdict for v in found] == ["FAIL", "pass"]


def test_a_device_below_its_peers_is_named_and_the_peers_are_not():
    records = [made.record(device=f"cuda:{n}", samples=[1.2 if n == 3 else 1.0] * 30) for n in range(8)]
    found = judge(records, [part(of_peers=0.95)])
    assert [v.verdict for v in found] == ["pass"] * 3 + ["FAIL"] + ["pass"] * 4
    assert found[3].remark == "95% of the 2.00 TFLOP/s of 7 peers"


def test_the_numbers_of_peers_are_worked_out_once_however_many_are_held_against_them(monkeypatch):
    derived = []
    monkeypatch.setattr(metrics, "derive", lambda records, own=metrics.derive: derived.append(1) or own(records))
    records = [made.record(device=f"cuda:{n}") for n in range(20)]
    assert {v.verdict for v in judge(records, [part(of_peers=0.95)])} == {"pass"}
    assert len(derived) == 2 * len(records)  # of each as a device that is judged, and as a peer


def test_two_cannot_tell_which_of_them_is_bad():
    records = [made.record(device=f"cuda:{n}", samples=[1.0 + n] * 30) for n in range(2)]
    assert {v.verdict for v in judge(records, [part(of_peers=0.95)])} == {"not measured"}


def test_machines_of_another_class_are_no_peers():
    records = [made.record(machine_id=f"m{n}", samples=[1.2 if n == 3 else 1.0] * 30) for n in range(4)]
    standards = Standards(classes={"m0": "a", "m1": "a", "m2": "a", "m3": "b"})
    assert {v.verdict for v in judge(records, [part(of_peers=0.95)], standards)} == {"not measured"}


def test_other_numbers_of_ranks_are_no_peers_and_no_baseline():
    """A slow case of seven ranks beside three of eight: what eight take says nothing of it."""
    records = [
        made.record(device=f"cpu:group{n}", ranks=7 if n == 3 else 8, samples=[9.0 if n == 3 else 1.0] * 30) for n in range(4)
    ]
    found = judge(records, [part(of_peers=0.95)])
    assert [v.verdict for v in found] == ["not measured"] * 4
    assert {v.reason.partition(",")[0] for v in found} == {"2 peers in this run", "0 peers in this run"}
    verdict = one([made.record(ranks=7)], part(of_baseline=0.95), standards=Standards(baseline=[made.record(ranks=8)]))
    assert (verdict.verdict, verdict.reason) == ("not measured", "the baseline measured it on 8 ranks, here are 7")


def test_no_metric_named_means_the_headline():
    verdict = one([made.record()], Criterion(case="*", of_ceiling=0.1), standards=ceiling_of(4e12))
    assert (verdict.verdict, verdict.metric) == ("pass", "compute")


def test_a_criterion_may_be_about_one_kind_of_device():
    records = [made.record(device="cpu:0"), made.record(device="cuda:0")]
    found = judge(records, [at_least(1, device="cuda")])
    assert [v.verdict for v in found] == ["unreferenced", "pass"]
    (_, absent) = judge(records[:1], [at_least(1, device="cuda")])
    assert absent.verdict == "not measured"


# -- measured again


def fresh(*times: float, first: int = 1):
    return [made.record(samples=[t] * 30, launch=first + n, confirms=True) for n, t in enumerate(times)]


@pytest.mark.parametrize(("times", "word"), [((1.0, 1.0), "pass"), ((1.5, 1.5), "FAIL")])
def test_what_would_fail_is_judged_on_fresh_launches_alone(times, word):
    verdict = one([made.record(samples=[1.5] * 30), *fresh(*times)], at_least(1.5))
    assert (verdict.verdict, verdict.value) == (word, pytest.approx(2e12 / times[0]))
    assert verdict.remark == "measured again: 1.33 TFLOP/s before"


def test_a_fresh_launch_that_dies_is_no_pass():
    group = [
        made.record(samples=[1.5] * 30),
        made.record(launch=1, confirms=True),
        made.failed("error", "died", launch=2, confirms=True),
    ]
    assert one(group, at_least(1.5)).verdict == "not measured"


def test_fewer_fresh_launches_than_planned_never_pass():
    group = [made.record(samples=[1.5] * 30), *fresh(1.0, 1.0)]
    plans = [made.planned(r, confirms=r.confirms) for r in group]
    assert one(group, at_least(1.5), planned=plans).verdict == "pass"
    assert one(group[:2], at_least(1.5), planned=plans).verdict == "inconclusive"


@given(st.floats(0.5, 8), st.lists(st.floats(0.5, 2), min_size=20, max_size=60))
def test_pass_and_fail_never_contradict_the_value(floor, samples):
    verdict = one([made.record(samples=samples)], at_least(floor))
    assert verdict.value is not None
    if verdict.verdict == "pass":
        assert verdict.value >= floor * 1e12
    if verdict.verdict == "FAIL":
        assert verdict.value < floor * 1e12
