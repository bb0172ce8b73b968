"""A fleet believes what a run believes: a number that cannot be true makes no node good, and is nobody's peer."""

from __future__ import annotations

import hashlib
import math

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

import run_suite
from clustergauge import believed, blame, catalogue, exits, judgement, reduce, verdicts
from clustergauge.blamed import Fleet
from clustergauge.glance import Glance
from clustergauge.launches import _middles_and_tails
from clustergauge.loading import LoadedRun
from clustergauge.model import Counters, Gpu, Machine, Measurement, Record, Series, Workload
from clustergauge.store import RunFolder, load
from clustergauge.verdicts import Asked
from tests import made
from tests.test_verdicts import loaded

A100 = Gpu(index=0, name="NVIDIA A100-SXM4-80GB", uuid="GPU-0", arch="sm_80", sm_clock_max_mhz=1410.0)
"""At most 19.5 TFLOP/s in fp32, 312 in bf16, and 2.039 TB/s."""
OWN = """
[[parts]]
name = "Prototype"
device_names = ["Prototype 1"]
matrix_clock_mhz = { value = 1410, firm = true, source = ["lab notes"] }
peak.bf16 = { value = 1.0, firm = true, source = ["lab notes"] }
"""


def machine(number: int = 1, gpu: Gpu = A100) -> Machine:
    return made.machine(machine_id=f"m{number}", host=f"node-{number}", gpus=[gpu])


def node(number: int, samples: list[float], gpu: Gpu = A100, **more: object) -> LoadedRun:
    """A run of one machine: 2 TFLOP on its GPU in each of these times (s)."""
    record = made.record(device="cuda:0", machine_id=f"m{number}", run_id=f"r{number}", samples=samples, **more)
    return loaded([record], machine(number, gpu), run_id=f"r{number}")


def judged(*runs: LoadedRun) -> Fleet:
    return blame.judge(reduce.joined([reduce.part_of(run) for run in runs]))


def test_above_a_firm_ceiling_a_node_is_bad_and_nobodys_peer() -> None:
    runs = [node(n, [0.2 + 1e-4 * n] * 20) for n in range(8)]
    lies = node(8, [0.05] * 20)
    fleet = judged(*runs, lies)
    (bad,) = [one for one in fleet.nodes if one.state != "good"]
    (reason,) = bad.reasons
    assert (bad.host, bad.state, reason.kind, reason.confirmed) == ("node-8", "bad", "failed", True)
    assert reason.detail.startswith("invalid: above the ceiling of 19.5 TFLOP/s (A100 SXM4 80GB, fp32 dense at 1410 MHz: ")
    assert blame.exit_code(fleet) == exits.BROKEN
    assert [case.devices for case in fleet.cases] == [8]
    (verdict,) = verdicts.judge(lies.records, lies.run.planned, lies.machines)
    assert f"invalid: {verdict.reason}" == reason.detail


def test_what_lies_below_its_ceiling_raises_no_doubt() -> None:
    run = node(1, [0.2] * 20)
    look, (record,) = Glance(run.machines), run.records
    assert [look.doubts(record, math.log(2 / rate)) for rate in (19.4, 19.6)] == [False, True]
    assert not Glance({}).doubts(record, math.log(1e-9))  # of a machine that is not described nothing is known


def test_limits_that_others_were_held_against_are_not_taken_for_ones_own(tmp_path) -> None:
    """What is worked out once is so for one file of ceilings, one kind of device and one kind of work."""
    (tmp_path / "own.toml").write_text(OWN.replace("Prototype 1", A100.name).replace("1.0,", "50.0,"))
    own = catalogue.load(tmp_path / "own.toml")
    work = Workload(flops=2 * 10**12, dtype="bf16", bound="compute")
    slower, other = msgspec.structs.replace(A100, name="NVIDIA A10G"), msgspec.structs.replace(A100, sm_clock_max_mhz=None)
    found: list[bool] = []
    for gpu, parts in ((A100, None), (A100, own), (A100, None), (other, None), (slower, None), (A100, own)):
        run = node(1, [0.01] * 20, gpu, work=work)
        found.append(Glance(run.machines, parts).doubts(run.records[0], math.log(0.01)))  # 200 TFLOP/s
    assert found == [False, True, False, False, False, True]


def test_memory_faster_than_its_data_sheet_is_no_peer_either() -> None:
    work = Workload(bytes_read=10**12, bytes_written=10**12, dtype="fp32", bound="memory")
    cold, hot = (
        node(n, [0.5] * 20, work=work, measurement=Measurement(clock="wall", cache=cache, samples_s=[0.5] * 20))
        for n, cache in enumerate(("cold", "hot"))
    )
    assert [one.host for one in judged(cold, hot).of("bad")] == ["node-0"]  # a cache has another ceiling


def test_what_the_rounding_of_data_sheets_or_the_clock_explains_is_well() -> None:
    just_above = 2 / 19.5 / 1.01
    assert judged(node(1, [just_above] * 20)).of("good")
    faster = msgspec.structs.replace(A100, sm_clock_max_mhz=2820.0)
    assert judged(node(1, [0.06] * 20, faster)).of("good")
    unknown = msgspec.structs.replace(A100, sm_clock_max_mhz=None)
    assert judged(node(1, [0.01] * 20, unknown)).of("good")


def test_a_rate_that_is_not_the_best_that_its_search_saw_is_no_peer() -> None:
    seen = {"search": Series(unit="FLOP/s", values=[1.5e13, 1e13])}
    slow = Measurement(clock="wall", cache="none", samples_s=[0.4] * 20, series=seen)
    fleet = judged(node(1, [], measurement=slow, settings={"searched": "4096 8192"}))
    (reason,) = fleet.of("bad")[0].reasons
    assert reason.detail.startswith("invalid: not the best rate: 5.00 TFLOP/s was measured, 15.0 TFLOP/s seen at 4096 while")


@pytest.fixture
def kept(tmp_path):
    """Folders of nodes with a part of which only its owner's file tells, which is kept beside what was decided by it."""
    own = tmp_path / "own.toml"
    own.write_text(OWN)
    parts = catalogue.load(own)
    gpu = msgspec.structs.replace(A100, name="Prototype 1")
    paths = []
    for number in range(6):
        run = node(number, [4.0 if number else 0.5] * 20, gpu, work=Workload(flops=2 * 10**12, dtype="bf16", bound="compute"))
        with RunFolder.create(tmp_path / "results", run.run) as folder:
            for one in run.machines.values():
                folder.write_machine(one)
            for record in run.records:
                folder.append(record)
            folder.finish(msgspec.structs.replace(run.run, finished=made.STARTED))
        asked, run = Asked(catalogue=parts), load(folder.path)
        judgement.keep(run, asked, verdicts.judge(run.records, run.run.planned, run.machines, asked), exits.OK)
        paths.append(folder.path)
    own.unlink()
    return paths


def test_each_run_is_held_against_the_ceilings_that_it_keeps(kept, capsys) -> None:
    assert run_suite.main(["report", str(kept[0])]) == exits.BROKEN
    assert run_suite.main(["fleet", *map(str, kept)]) == exits.BROKEN
    text = " ".join(capsys.readouterr().out.split())
    assert "bad node-0 failed on cuda:0 in matmul: invalid: above the ceiling of 1.00 TFLOP/s (Prototype, bf16" in text
    assert "5 good · 1 bad" in text
    digest = hashlib.sha256(OWN.encode()).hexdigest()[:12]
    assert text.count(f"note: runs that keep ceilings of their user's (SHA-256 {digest}…) are held against those") == 1
    assert run_suite.main(["compare", *map(str, kept[:2])]) == exits.UNKNOWN
    assert "in A: invalid: above the ceiling of 1.00 TFLOP/s (Prototype" in " ".join(capsys.readouterr().out.split())
    assert run_suite.main(["accept", "init", str(kept[0])]) == 2
    assert "has no case with a number" in capsys.readouterr().err


def test_ceilings_that_somebody_put_into_a_folder_are_not_looked_at(kept) -> None:
    assert load(kept[0]).catalogue is not None
    sums = kept[0] / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "ceilings.toml" not in line))
    assert load(kept[0]).catalogue is None
    assert reduce.read([kept[0]]).units.unit(0).trouble == ""


works = st.builds(
    Workload,
    flops=st.sampled_from([0, 10**9, 2 * 10**12]),
    ops=st.sampled_from([0, 10**12]),
    bytes_read=st.sampled_from([0, 10**9, 10**12]),
    dtype=st.sampled_from(["fp32", "bf16", "int8", "fp64", ""]),
    bound=st.sampled_from(["compute", "memory", "latency"]),
)
times = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=12)


@given(st.lists(st.tuples(works, times), min_size=1, max_size=4), st.booleans(), st.sampled_from(["cold", "hot"]), st.data())
@settings(deadline=None)
def test_nothing_is_invalid_that_raised_no_doubt_at_a_glance(launches, same_work, cache, data) -> None:
    here = machine(gpu=msgspec.structs.replace(A100, sm_clock_max_mhz=data.draw(st.sampled_from([1410.0, 1700.0, None]))))
    records: list[Record] = []
    for number, (work, samples) in enumerate(launches):
        fields = {"clock": "wall", "cache": cache, "samples_s": samples}
        records.append(
            made.record(
                device="cuda:0",
                launch=number,
                work=launches[0][0] if same_work else work,
                measurement=Measurement(**fields),
                confirms=data.draw(st.booleans()),
                counters=Counters(health=data.draw(st.sampled_from([{}, {"gpu0.xid_79": 1}]))),
            )
        )
    middles, _ = _middles_and_tails(records)
    look = Glance({here.machine_id: here})
    doubtful = any(look.doubts(record, middle) for record, middle in zip(records, middles, strict=True))
    trouble, _ = believed.number(records, believed.limits_of({here.machine_id: here}))
    assert doubtful or not trouble
