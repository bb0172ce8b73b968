"""Machines against what is expected, runs against baselines, what is measured again, and files drafted from good runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge import criteria, differ, draft, inventory, metrics, retry, verdicts
from clustergauge.criteria import Acceptance, Expect
from clustergauge.loading import LoadedRun
from clustergauge.model import Criterion, Finding, Nic, Verdict
from clustergauge.verdicts import Asked
from tests import made


def answers(expect: Expect, machine=None):
    found = inventory.judge([machine or made.machine(gpus=8)], expect)
    return [(v.metric, v.verdict) for v in found]


@pytest.mark.parametrize(
    "expect", [Expect(gpu="H100"), Expect(ecc=True), Expect(mig=False), Expect(gpu_memory="80GiB"), Expect(power_limit_w=700)]
)
def test_of_no_gpu_nothing_is_as_expected(expect):
    (name,) = [name for name in inventory.OF_GPUS if getattr(expect, name) not in ("", None)]
    (verdict,) = inventory.judge([made.machine()], expect)
    assert (verdict.verdict, verdict.reason) == ("FAIL", f"no GPU, expected some ({name})")
    assert answers(Expect(gpus=0, gpu="H100"), made.machine()) == [("", "pass")]  # somebody means it


def gpus(count: int = 8, **more):
    machine = made.machine(gpus=count)
    return msgspec.structs.replace(machine, gpus=[msgspec.structs.replace(g, **more) for g in machine.gpus])


def test_a_machine_that_is_as_expected_passes_once():
    assert answers(Expect(gpus=8, gpu="a100", cores=2, memory="16GiB")) == [("", "pass")]


@pytest.mark.parametrize(
    ("expect", "metric", "word"),
    [
        (Expect(gpus=7), "gpus", "FAIL"),
        (Expect(cores=3), "cores", "FAIL"),
        (Expect(memory="17GiB"), "memory", "FAIL"),
        (Expect(versions={"nvidia_driver": ">=550"}), "version nvidia_driver", "not measured"),
        (Expect(settings={"governor": "performance"}), "setting governor", "not measured"),
        (Expect(nics=1), "nics", "FAIL"),
        (Expect(ready=["memlock"]), "preflight memlock", "not measured"),
        (Expect(ready=["*"]), "preflight", "not measured"),
    ],
)
def test_what_is_missing_fails_and_what_is_unknown_is_not_measured(expect, metric, word):
    assert answers(expect) == [(metric, word)]


@pytest.mark.parametrize(
    ("more", "expect", "word"),
    [
        ({"ecc": False}, Expect(ecc=True), "FAIL"),
        ({"ecc": None}, Expect(ecc=True), "not measured"),
        ({"mig": True}, Expect(mig=False), "FAIL"),
        ({"power_limit_w": 500.0}, Expect(power_limit_w=700), "FAIL"),
        ({"power_limit_w": None}, Expect(power_limit_w=700), "not measured"),
        ({"memory_bytes": 40 << 30}, Expect(gpu_memory="80GiB"), "FAIL"),
        ({"name": "NVIDIA H100"}, Expect(gpu="A100"), "FAIL"),
    ],
)
def test_every_gpu_is_asked(more, expect, word):
    found = answers(expect, gpus(2, **more))
    assert [verdict for _, verdict in found] == [word, word]
    assert found[0][0].startswith("gpu 0")


def ports(*states: str, rate: float | None = 400.0):
    return made.machine(nics=[Nic(name=f"mlx5_{n}", kind="infiniband", state=s, rate_gbit_s=rate) for n, s in enumerate(states)])


def test_ports_that_are_down_or_slow_are_named():
    expect = Expect(nics=2, nic_kind="infiniband", nic_rate_gbit_s=400)
    assert answers(expect, ports("ACTIVE", "active")) == [("", "pass")]
    (verdict,) = inventory.judge([ports("active", "down")], expect)
    assert verdict.verdict == "FAIL"
    assert verdict.reason == "1 of 2 infiniband ports up at 400 Gbit/s (not so: mlx5_1)"
    assert answers(expect, ports("active", "active", rate=200.0)) == [("nics", "FAIL")]
    assert answers(expect, ports("active", "active", rate=None)) == [("nics", "not measured")]


def test_preflight_is_asked_by_name_or_as_a_whole():
    machine = made.machine(
        findings=[
            Finding(name="memlock", state="warning", detail="64 KiB"),
            Finding(name="shm", state="ok", detail=""),
            Finding(name="persistence", state="unknown", detail=""),
        ]
    )
    assert answers(Expect(ready=["shm"]), machine) == [("", "pass")]
    assert answers(Expect(ready=["*"]), machine) == [("preflight memlock", "FAIL"), ("preflight persistence", "not measured")]
    assert answers(Expect(ready=["*", "fans"]), machine)[2:] == [("preflight fans", "not measured")]


# -- measured again


def verdict(word: str, record, bound: float | None = 1.0) -> Verdict:
    return Verdict(case=record.case, device=record.device, machine_id="m1", verdict=word, bound=bound)


def launches(count: int, **more):
    return [made.record(launch=n, **more) for n in range(count)]


def again(records, word, **more):
    found = retry.again([made.planned(r, confirms=r.confirms) for r in records], records, [verdict(word, records[0], **more)])
    return [(p.launch, p.confirms) for p in found]


def test_the_undecided_are_measured_more_in_two_steps():
    assert again(launches(1), "inconclusive") == [(1, False), (2, False)]
    assert again(launches(3), "inconclusive") == [(3, False), (4, False)]
    assert again(launches(5), "inconclusive") == []


def test_what_would_fail_is_measured_afresh_once():
    assert again(launches(1), "FAIL") == [(1, True), (2, True)]
    confirmed = [*launches(1), *(made.record(launch=n, confirms=True) for n in (1, 2))]
    assert again(confirmed, "FAIL") == []


def test_an_undecided_confirmation_is_taken_further_with_fresh_launches():
    confirmed = [*launches(1), *(made.record(launch=n, confirms=True) for n in (1, 2))]
    assert again(confirmed, "inconclusive") == [(3, True)]


def test_what_passed_broke_or_has_no_bound_is_left_alone():
    assert again(launches(1), "pass") == []
    assert again([made.failed("error", "died")], "FAIL") == []
    assert again(launches(1), "inconclusive", bound=None) == []


def test_of_many_nodes_only_the_one_concerned_measures_again():
    def on(machine: str, **more):
        return made.record(machine_id=machine, **more)

    names = {"m1": "n1", "m2": "n2"}
    records = [on("m1"), on("m2"), on("m1", device="cpu:nodes")]
    planned = [made.planned(records[0], hosts="n[1-2]"), made.planned(records[2], hosts="n[1-2]", nodes=2)]
    local = verdict("FAIL", records[1])
    local = msgspec.structs.replace(local, machine_id="m2")
    more = retry.again(planned, records, [local], names)
    assert [(p.hosts, p.device, p.launch, p.confirms) for p in more] == [("n2", "cpu:0", n, True) for n in (1, 2)]
    together = retry.again(planned, records, [verdict("FAIL", records[2])], names)
    assert [(p.hosts, p.device, p.launch) for p in together] == [("n[1-2]", "cpu:nodes", n) for n in (1, 2)]
    planned, records = [*planned, *more], [*records, *(on("m2", launch=n, confirms=True) for n in (1, 2))]
    assert retry.again(planned, records, [local], names) == []  # it was confirmed
    assert len(retry.again(planned, records, [verdict("FAIL", records[0])], names)) == 2  # the other was not


def test_a_node_owes_the_launches_that_were_planned_for_it():
    """One that was measured again does not make the others look unfinished."""
    machines = {name: made.machine(machine_id=name, node=f"n-{name}") for name in ("a", "b")}
    first = [made.record(machine_id=name) for name in machines]
    extra = [made.record(machine_id="b", launch=n) for n in (1, 2)]
    owed = [made.planned(first[0], hosts="n-a,n-b"), *(made.planned(r, hosts="n-b") for r in extra)]
    asked = Asked(Acceptance(criteria=[Criterion(case="*", metric="compute", floor=1, unit="GFLOP/s")]))

    def words(records):
        return {v.machine_id: v.verdict for v in verdicts.judge(records, owed, machines, asked)}

    assert words([*first, *extra]) == {"a": "pass", "b": "pass"}
    assert words([*first, *extra[:1]]) == {"a": "pass", "b": "inconclusive"}


# -- a baseline


def loaded(records, machine=None, run_id="run") -> LoadedRun:
    machine = machine or made.machine()
    return LoadedRun(made.run(records, run_id=run_id), {machine.machine_id: machine}, records, Path("x"), [])


def test_a_baseline_asks_every_case_for_95_percent():
    baseline = loaded([made.record(), made.record("memory")])
    slow = made.record(samples=[1.2] * 30)
    found = verdicts.judge([slow, made.record("launch")], [], {"m1": made.machine()}, Asked(baseline=baseline))
    assert [v.verdict for v in found] == ["FAIL"]  # what only one of them has is no matter
    assert found[0].source == "baseline run"


def test_a_baseline_of_another_machine_cannot_serve():
    other = made.machine(machine_id="m9", versions={"torch": "1"})
    baseline = loaded([made.record(machine_id="m9")], other)
    acceptance = Acceptance(criteria=[Criterion(case="*", of_baseline=0.5)])
    (found,) = verdicts.judge([made.record()], [], {"m1": made.machine()}, Asked(acceptance, baseline))
    assert (found.verdict, found.reason) == ("not measured", "the baseline cannot serve: library torch: 1 there, – here")


def test_a_fleet_is_held_against_a_baseline_of_as_many_kind_by_kind(monkeypatch):
    compared = []
    own = differ.of_machines
    monkeypatch.setattr(differ, "of_machines", lambda a, b: compared.append(1) or own(a, b))
    there = {f"b{n}": made.machine(machine_id=f"b{n}", versions={"torch": str(n % 2)}) for n in range(30)}
    here = {f"m{n}": made.machine(machine_id=f"m{n}", versions={"torch": str(n % 3)}) for n in range(30)}
    records = [made.record(machine_id=name) for name in there]
    baseline = LoadedRun(made.run(records), there, records, Path("x"), [])
    found = verdicts.judge([made.record(machine_id=name) for name in here], [], here, Asked(baseline=baseline))
    assert len(compared) == 2  # machines of the third kind against both that there are
    assert len(found) == 20
    (why,) = verdicts._barred([made.machine(versions={"torch": "2"})], baseline).values()
    assert why == "library torch: 0 there, 2 here"


def test_another_machine_of_the_same_parts_can():
    other = made.machine(machine_id="m9", host="golden")
    baseline = loaded([made.record(machine_id="m9")], other)
    (found,) = verdicts.judge([made.record()], [], {"m1": made.machine()}, Asked(baseline=baseline))
    assert found.verdict == "pass"


def test_machines_and_cases_are_judged_together():
    acceptance = Acceptance(expect=Expect(gpus=8))
    found = verdicts.judge([made.record()], [], {"m1": made.machine(gpus=7)}, Asked(acceptance))
    assert [v.verdict for v in found] == ["unreferenced", "FAIL"]


# -- a draft


def test_a_good_run_becomes_a_file_that_it_passes():
    records = [made.record(samples=[1.0 + 0.001 * n] * 30, shape="1", launch=n) for n in range(3)]
    run = loaded([*records, made.failed("skipped", "no GPU", shape="2")])
    text = criteria.to_toml(draft.acceptance_of(run))
    acceptance = criteria.parse(text, "a.toml")
    (criterion,) = acceptance.criteria
    assert (criterion.case, criterion.reference, criterion.unit, criterion.lower) == ("matmul/shape=1", 1.998, "TFLOP/s", -0.05)
    found = verdicts.judge(records, [], run.machines, Asked(acceptance))
    assert [v.verdict for v in found] == ["pass", "pass"]
    slow = [made.record(samples=[1.2] * 30, shape="1")]
    assert [v.verdict for v in verdicts.judge(slow, [], run.machines, Asked(acceptance))] == ["FAIL", "pass"]


def test_devices_that_differ_get_the_room_they_need():
    records = [made.record(device=f"cuda:{n}", samples=[1.0 + 0.1 * n] * 30) for n in range(3)]
    (criterion,) = draft.acceptance_of(loaded(records)).criteria
    assert criterion.lower == pytest.approx(-0.1)
    assert {v.verdict for v in verdicts.judge(records, [], {"m1": made.machine()}, Asked(Acceptance(criteria=[criterion])))} <= {
        "pass",
        "inconclusive",
    }


def test_what_a_draft_hardly_asks_for_is_said():
    quiet, wide, wild = ([1.0 + by * (n * 7 % 10) for n in range(12)] for by in (0.001, 0.1, 30.0))
    records = [
        made.record(samples=quiet, shape="1"),
        made.record(samples=wide, shape="2"),
        made.record(samples=wild, shape="3"),
        made.record(samples=[1.0, 1.1, 1.2], shape="4"),
        made.failed("wrong", "off by one", shape="5"),
        made.failed("skipped", "no GPU", shape="6"),
        made.record(samples=[1.0], shape="7"),
        made.record(samples=quiet, shape="8", device_bytes={"read": 1, "asked_read": 9}),
    ]
    run = loaded(records)
    assumed = "how far fresh launches lie apart is assumed (0.5 %): no case has 3 launches"
    assert draft.remarks(run, draft.acceptance_of(run)) == [
        "not asked for, wrong, an error or invalid in this run: matmul/shape=5, matmul/shape=8",
        "not asked for, too restless in this run to say anything: matmul/shape=3",
        "not asked for, a single sample does not tell how far others would lie from it: matmul/shape=7",
        "lets through what is far worse, for this run was restless: matmul/shape=2 (65% worse)",
        "from too few samples for an interval, with room for how far these lie apart: matmul/shape=4",
        assumed,
    ]
    assert criteria.parse(criteria.to_toml(draft.acceptance_of(run), draft.remarks(run, draft.acceptance_of(run))), "a.toml")
    hostile = loaded([records[0], made.record(samples=wide, shape="2\n[expect]\ngpus = 9")])
    remark, _ = draft.remarks(hostile, draft.acceptance_of(hostile))
    assert "shape=2 [expect] gpus = 9" in remark
    good = loaded(records[:1])
    assert draft.remarks(good, draft.acceptance_of(good)) == [assumed]
    better = loaded([msgspec.structs.replace(records[0], launch=n) for n in range(3)])
    assert draft.remarks(better, draft.acceptance_of(better)) == []


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=30), st.integers(1, 4))
def test_no_drafted_tolerance_is_narrower_than_what_was_measured_is_sure_of(samples, count):
    """Else the very run that it was made from would be inconclusive, as would any other as good."""
    records = [made.record(samples=samples, launch=n) for n in range(count)]
    run = loaded(records)
    criteria_ = draft.acceptance_of(run).criteria
    if criteria_ and metrics.half_width(metrics.headline(records)) is not None:
        (verdict, _) = verdicts.judge(records, [], run.machines, Asked(draft.acceptance_of(run)))
        assert verdict.verdict == "pass"


def test_few_samples_that_lie_apart_get_room_and_one_sample_is_no_reference():
    (criterion,) = draft.acceptance_of(loaded([made.record(samples=[1.0, 1.1, 1.2])])).criteria
    assert criterion.lower == -0.19  # twice 0.1 of 1.1
    assert draft.acceptance_of(loaded([made.record(samples=[1.0])])).criteria == []


def test_a_reference_is_not_rounded_away_from_what_was_reached():
    (criterion,) = draft.acceptance_of(loaded([made.record(samples=[2 / 1.0049] * 30)])).criteria
    assert (criterion.reference, criterion.unit) == (1.005, "TFLOP/s")


@pytest.mark.parametrize("device", ["cpu:0", "cuda:3", "cpu:nodes", "cuda:nodes", "cpu:group1", "cuda:group2"])
def test_what_is_drafted_of_any_kind_of_device_is_read_back(device):
    run = loaded([made.record(device=device)])
    acceptance = criteria.parse(criteria.to_toml(draft.acceptance_of(run)), "a.toml")
    assert [v.verdict for v in verdicts.judge(run.records, [], run.machines, Asked(acceptance))][:1] == ["pass"]


def test_latencies_get_an_upper_side():
    record = made.record(samples=[1e-6] * 30, work=made.Workload(bound="latency"))
    (criterion,) = draft.acceptance_of(loaded([record])).criteria
    assert (criterion.metric, criterion.unit, criterion.upper, criterion.lower) == ("time", "µs", 0.05, None)
