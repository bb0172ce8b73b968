"""A fleet held against itself: planted machines, runs and bits; who is named, and why."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from clustergauge import blame, confirm, judgement, reduce, sweeps, verdicts
from clustergauge.loading import LoadedRun
from clustergauge.model import GPUS_UNUSABLE, Counters, Finding, Gpu, Measurement, Nic, Place, Workload
from reports import fleet as page, fleet_page
from tests import made
from tests.swept import flat, swept
from tests.test_verdicts import loaded


def node(number: int, time: float = 1.0, gpus: int = 0, machine=None, **more):
    """A run of one machine: one case, 20 samples around ``time``, on its processor or each of its GPUs."""
    machine = machine or made.machine(machine_id=f"m{number:02}", host=f"node-{number:02}", gpus=gpus)
    devices = [f"cuda:{n}" for n in range(gpus)] or ["cpu:0"]
    samples = [time * (1 + 1e-4 * (number * 7 % 5)) * (1 + 1e-4 * (i % 3)) for i in range(20)]
    records = [
        made.record(samples=samples, device=d, machine_id=machine.machine_id, run_id=f"r{number}", **more) for d in devices
    ]
    return loaded(records, machine, run_id=f"r{number}")


def judge(*runs, **more):
    return blame.judge(reduce.joined([reduce.part_of(run) for run in runs]), **more)


def states(fleet):
    return {n.host: n.state for n in fleet.nodes if n.state != "good"}


def test_a_slow_node_is_a_suspect_and_comes_first():
    fleet = judge(*(node(n, 1.2 if n == 5 else 1.0) for n in range(10)))
    assert states(fleet) == {"node-05": "suspect"}
    (reason,) = fleet.nodes[0].reasons
    assert (reason.kind, reason.case) == ("slow", "matmul")
    assert reason.ratio == pytest.approx(1 / 1.2, abs=0.01)


def test_a_good_node_that_was_held_against_nobody_is_said_to_be_so():
    fleet = judge(*(node(n) for n in range(10)), node(10, case="other"))
    assert states(fleet) == {}
    assert fleet.notes == [
        "good means here that nothing failed: no case has enough peers to show whether these are slow: node-10"
    ]
    assert "Nothing failed, but not all nodes were held against others" in fleet_page.html_of(fleet)
    lonely = judge(*(node(n, case=f"case-{n}") for n in range(5)))
    assert lonely.notes[0].endswith("slow: node-00, node-01, node-02, … +2")
    assert (blame.exit_code(lonely), blame.exit_code(lonely, held=True)) == (0, 4)
    told = json.loads(page.lists_of(lonely)["nodes.json"])["nodes"]
    assert {(one["state"], one["reason"]) for one in told} == {("good", page.ALONE)}
    assert "Nothing failed, but no node was held against others" in fleet_page.html_of(lonely)
    well = judge(*(node(n) for n in range(10)))
    assert (well.notes, well.alone) == ([], [])
    assert "Nobody stands out" in fleet_page.html_of(well)


def confirmed_by(time: float):
    run = node(5, 1.2)
    fresh = [msgspec.structs.replace(made.record(samples=[time] * 20, launch=n, confirms=True), machine_id="m05") for n in (1, 2)]
    return loaded([*run.records, *fresh], run.machines["m05"], run_id="r5")


def test_fresh_launches_make_it_bad_or_clear_it():
    others = [node(n) for n in range(10) if n != 5]
    assert states(judge(*others, confirmed_by(1.2))) == {"node-05": "bad"}
    cleared = judge(*others, confirmed_by(1.0))
    assert states(cleared) == {}
    assert next(n for n in cleared.nodes if n.host == "node-05").cleared == 1


def test_one_slow_gpu_is_named_and_eight_slow_ones_are_the_node():
    def runs(slow):
        found = []
        for n in range(8):
            run = node(n, gpus=8)
            records = [
                made.record(samples=[1.3 if n == 2 and r.device in slow else 1.0] * 20, device=r.device, machine_id=r.machine_id)
                for r in run.records
            ]
            found.append(loaded(records, run.machines[f"m{n:02}"], run_id=f"r{n}"))
        return judge(*found)

    (one,) = runs({"cuda:3"}).nodes[0].reasons
    assert one.device == "cuda:3"
    (all_of_them,) = runs({f"cuda:{n}" for n in range(8)}).nodes[0].reasons
    assert (all_of_them.device, all_of_them.detail) == ("", "8 of its 8 devices")


def test_a_machine_that_lacks_a_gpu_is_bad_and_no_class_of_its_own():
    fleet = judge(*(node(n, gpus=8) for n in range(9)), node(9, gpus=7))
    assert states(fleet) == {"node-09": "bad"}
    (reason,) = fleet.nodes[0].reasons
    assert reason.kind == "deviates"
    assert reason.detail == "gpus: 7 × NVIDIA A100-SXM4-80GB, the others 8 × NVIDIA A100-SXM4-80GB"


def test_of_few_machines_the_odd_one_is_no_class_to_be_bad_against_and_named_all_the_same():
    fleet = judge(*(node(n, gpus=8) for n in range(3)), node(3, gpus=7))
    assert states(fleet) == {}
    assert fleet.notes[:2] == [
        "2 kinds of machines, none with 8 members: each is judged by itself",
        "node-03 is not as most of them: gpus: 7 × NVIDIA A100-SXM4-80GB, the others 8 × NVIDIA A100-SXM4-80GB",
    ]
    halves = judge(node(0, gpus=8), node(1, gpus=7))
    assert [note for note in halves.notes if "not as most" in note] == []


def test_another_driver_deviates_too():
    old = made.machine(machine_id="m9", host="node-09", versions={"nvidia_driver": "550"})
    new = [made.machine(machine_id=f"m{n}", host=f"node-0{n}", versions={"nvidia_driver": "570"}) for n in range(8)]
    fleet = judge(*(node(n, machine=m) for n, m in enumerate(new)), node(9, machine=old))
    assert states(fleet) == {"node-09": "bad"}
    assert fleet.nodes[0].reasons[0].detail == "nvidia_driver: 550, the others 570"


def test_two_large_classes_are_judged_apart():
    def of(version: str, first: int, time: float):
        return [
            node(n, time, machine=made.machine(machine_id=f"m{n:02}", host=f"node-{n:02}", versions={"nvidia_driver": version}))
            for n in range(first, first + 8)
        ]

    fleet = judge(*of("550", 0, 1.5), *of("570", 8, 1.0))
    assert states(fleet) == {}
    assert "2 classes" in fleet.notes[0]


def test_bits_that_differ_are_silent_corruption():
    def run(n):
        digest = "bad" if n == 4 else "good"
        return node(n, measurement=Measurement(clock="wall", cache="none", samples_s=[1.0] * 20, digest=digest))

    fleet = judge(*(run(n) for n in range(8)))
    assert states(fleet) == {"node-04": "bad"}
    assert fleet.nodes[0].reasons[0].kind == "corrupting"


def test_what_broke_or_cannot_be_true_is_bad():
    broken = loaded([made.failed("wrong", "element 3", machine_id="m01")], node(1).machines["m01"], run_id="r1")
    xid = node(2, counters=Counters(health={"gpu0.xid_79": 1}))
    fleet = judge(broken, xid, *(node(n) for n in range(3, 9)))
    assert states(fleet) == {"node-01": "bad", "node-02": "bad"}
    details = {n.host: n.reasons[0].detail for n in fleet.nodes if n.reasons}
    assert details["node-01"] == "wrong: element 3"
    assert details["node-02"].startswith("invalid: the hardware failed meanwhile")


def test_bytes_that_went_another_way_are_as_invalid_as_in_the_report_of_their_run():
    def reduced(number: int, moved: dict[str, int]):
        host = f"node-{number:02}"
        counters = Counters(path={"runs": 10} | {f"{host}/lo.{way}_bytes": size for way, size in moved.items()})
        work = Workload(message_bytes=1 << 26, collective="all_reduce", bound="network")
        ranks = [Place(rank=rank, host=host) for rank in range(2)]
        return node(number, work=work, ranks=2, placement=ranks, counters=counters, backend="mpi")

    astray = reduced(1, {"tx": 20 << 26, "rx": 20 << 26})
    (invalid,) = [v.reason for v in verdicts.judge(astray.records, [], astray.machines) if v.verdict == "invalid"]
    fleet = judge(astray, *(reduced(n, {"tx": 0, "rx": 0}) for n in range(2, 9)))
    assert states(fleet) == {"node-01": "bad"}
    assert fleet.nodes[0].reasons[0].detail == f"invalid: {invalid}"
    assert "another path" in invalid


def test_unmeasured_is_neither_good_nor_bad():
    silent = loaded([made.failed("skipped", "no GPU", machine_id="m01")], node(1).machines["m01"], run_id="r1")
    fleet = judge(silent, *(node(n) for n in range(2, 8)), missing=["node-99"])
    assert states(fleet) == {"node-01": "unmeasured", "node-99": "unmeasured"}


def test_a_run_that_did_not_end_leaves_its_machine_unmeasured():
    run = node(1)
    cut = loaded(run.records, run.machines["m01"], run_id="r1")
    more = made.planned(made.record(shape="9"))
    cut = type(cut)(msgspec.structs.replace(cut.run, planned=[*cut.run.planned, more]), cut.machines, cut.records, cut.path, [])
    fleet = judge(cut, *(node(n) for n in range(2, 8)))
    assert states(fleet) == {"node-01": "unmeasured"}
    assert fleet.nodes[0].reasons[0].detail == "1 planned case has no record"


def test_other_work_is_never_held_against():
    small = Workload(flops=10**9, dtype="fp32", bound="compute")
    fleet = judge(node(0, 0.1, work=small), *(node(n) for n in range(1, 9)))
    assert states(fleet) == {}


def test_cases_over_several_hosts_are_nobodys_own():
    places = [Place(rank=n, host=f"node-{n}") for n in range(2)]
    slow = node(0, 9.0, placement=places, ranks=2)
    fleet = judge(slow, *(node(n) for n in range(1, 9)))
    assert states(fleet) == {"node-00": "unmeasured"}


def test_a_slow_rack_is_told():
    def rack_of(host: str) -> str:
        return f"r{int(host[-2:]) // 8}"

    fleet = judge(*(node(n, 1.1 if 8 <= n < 16 else 1.0) for n in range(40)), rack_of=rack_of)
    assert [(r.rack, r.devices) for r in fleet.racks] == [("r1", 8)]
    assert states(fleet) == {}
    assert fleet.nodes[0].rack


def test_the_identity_of_parts_goes_along():
    machine = msgspec.structs.replace(made.machine(machine_id="m01", host="n"), gpus=[Gpu(index=0, name="x", uuid="GPU-7")])
    fleet = judge(node(1, machine=machine))
    assert fleet.nodes[0].parts == ["GPU-7"]


def test_each_node_of_a_run_over_nodes_owes_its_own_cases():
    machines = [made.machine(machine_id=f"m{n}", host=f"node-{n}") for n in (1, 2)]
    record = made.record(samples=[1.0] * 20, machine_id="m1")
    plan = made.planned(record, hosts="node-[1-3]")
    run = msgspec.structs.replace(made.run([record]), planned=[plan], left_out={"node-3": "it did not answer"})
    loaded_run = type(node(0))(run, {m.machine_id: m for m in machines}, [record], node(0).path, [])
    fleet = judge(loaded_run)
    assert states(fleet) == {"node-2": "unmeasured", "node-3": "unmeasured"}
    details = {n.host: n.reasons[0].detail for n in fleet.nodes if n.reasons}
    assert details == {"node-2": "1 planned case has no record", "node-3": "it did not answer"}


@pytest.mark.parametrize(("time", "code"), [(1.0, 0), (1.2, 4)])
def test_the_exit_code_says_the_worst(time, code):
    assert blame.exit_code(judge(*(node(n, time if n == 5 else 1.0) for n in range(10)))) == code
    bad = judge(*(node(n) for n in range(10) if n != 5), confirmed_by(1.2))
    assert blame.exit_code(bad) == 1
    broken = loaded([made.failed("wrong", "x", machine_id="m01")], node(1).machines["m01"], run_id="r1")
    assert blame.exit_code(judge(broken)) == 3
    assert blame.exit_code(judge()) == 4


def test_a_machine_whose_link_trained_down_is_bad_as_its_run_says():
    found = Finding(name="pcie", state="warning", detail="gpu0 runs at x8, it can x16", remedy="seat it anew", fails=True)
    before = node(3, machine=made.machine(machine_id="m03", host="node-03", findings=[found]))
    meanwhile = node(4, counters=Counters(health={"mlx5_0:1.rate": "400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)"}))
    for run in (before, meanwhile):
        assert "FAIL" in {v.verdict for v in verdicts.judge(run.records, run.run.planned, run.machines)}
    fleet = judge(before, meanwhile, *(node(n) for n in range(5, 12)))
    assert states(fleet) == {"node-03": "bad", "node-04": "bad"}
    details = {n.host: n.reasons[0].detail for n in fleet.nodes if n.reasons}
    assert details == {
        "node-03": "gpu0 runs at x8, it can x16; seat it anew",
        "node-04": "trained down meanwhile: mlx5_0:1.rate 400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)",
    }
    assert blame.exit_code(fleet) == 1


@pytest.mark.parametrize(("device", "state"), [("", "unmeasured"), ("cpu", "good")])
def test_a_node_whose_gpus_cannot_be_used_is_not_good_as_its_run_says(device, state):
    found = Finding(name=GPUS_UNUSABLE, state="warning", detail="no driver for 2 GPUs on the bus", remedy="see dmesg")
    run = node(1, machine=made.machine(machine_id="m01", host="node-01", findings=[found]))
    run = type(run)(msgspec.structs.replace(run.run, settings={"device": device}), run.machines, run.records, run.path, [])
    code = 4 if state == "unmeasured" else 0
    assert judgement.exit_code_of(run, [], None) == code
    fleet = judge(run, node(2))
    assert states(fleet) == ({"node-01": state} if code else {})
    assert blame.exit_code(fleet) == code
    if code:
        (reason,) = fleet.nodes[0].reasons
        assert reason.detail == "no driver for 2 GPUs on the bus; see dmesg"
    mended = node(1, machine=made.machine(machine_id="m01", host="node-01"))
    assert states(judge(run, mended, node(2))) == {}


def test_a_port_that_is_down_where_most_have_it_active_makes_its_machine_bad():
    def of(number: int):
        nic = Nic(name="mlx5_0", kind="infiniband", state="down" if number == 5 else "active")
        return node(number, machine=made.machine(machine_id=f"m{number:02}", host=f"node-{number:02}", nics=[nic]))

    fleet = judge(*map(of, range(8)))
    assert states(fleet) == {"node-05": "bad"}
    assert "mlx5_0 is down, on 7 of 8 machines it is active" in fleet.nodes[0].reasons[0].detail


# -- cases over nodes


HOSTS = [f"node-{n:03d}" for n in range(8)]


def over_nodes(*records, out=None, hosts=HOSTS, local=True, **plan):
    """A run over nodes: a case of its own on each, unless not ``local``, and ``records`` over all of them."""
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=host, node=host) for n, host in enumerate(hosts)}
    own = [made.record(samples=[1.0 + 1e-4 * n] * 20, machine_id=m) for n, m in enumerate(machines)] if local else []
    names = ",".join(hosts)
    plans = [made.planned(own[0], hosts=names)] if local else []
    plans += [made.planned(r, **{"hosts": names, "nodes": len(hosts), "ranks": len(hosts)} | plan) for r in records]
    run = msgspec.structs.replace(made.run([]), planned=plans, left_out=out or {})
    return LoadedRun(run, machines, [*own, *records], Path("x"), [])


def all_reduce(*hosts, **more):
    """A collective over these hosts."""
    places = [Place(rank=n, host=host) for n, host in enumerate(hosts)]
    return made.record(
        "all_reduce", **{"device": "cpu:nodes", "placement": places, "ranks": len(places), "machine_id": "m0"} | more
    )


def test_a_host_that_failed_among_pairs_is_bad_and_says_so():
    pairs = swept(flat(8, sends_2=0.21), device="cpu:nodes", machine_id="m0")
    (failed,) = sweeps.findings([pairs])[0].suspects
    why = f"failed {pairs.case}: {sweeps.sentence(failed)}"
    rest = [host for host in HOSTS if host != "node-002"]
    fleet = judge(over_nodes(pairs, all_reduce(*rest), out={"node-002": why}))
    assert states(fleet) == {"node-002": "bad"}
    (reason,) = fleet.nodes[0].reasons
    assert (reason.kind, reason.case, reason.device, reason.confirmed) == ("slow", pairs.case, "cpu:nodes", True)
    assert reason.detail.startswith("node-002 sends at 21 % of its peers")
    assert blame.exit_code(fleet) == 1
    assert page.lists_of(fleet)["bad.txt"] == b"node-002\n"
    assert "node-002 sends at 21 % of its peers" in " ".join(page.page_of(fleet, 120).text().split())
    assert confirm.suspects(fleet) == []


def test_parts_survive_the_way_from_another_process():
    part = reduce.part_of(over_nodes(swept(flat(8, sends_2=0.21), device="cpu:nodes", machine_id="m0")))
    assert msgspec.json.decode(msgspec.json.encode(part), type=reduce.Part) == part
    assert reduce.joined([part]) == part


def test_one_of_a_group_that_failed_is_to_blame_and_all_are_suspects():
    groups = [HOSTS[0:2], HOSTS[2:4], HOSTS[4:6], HOSTS[6:8]]
    records = [
        all_reduce(*members, device=f"cpu:group{n}", samples=[3.0 if n == 2 else 1.0] * 20, machine_id=f"m{2 * n}")
        for n, members in enumerate(groups)
    ]
    fleet = judge(over_nodes(*records, nodes=2))
    assert states(fleet) == {"node-004": "suspect", "node-005": "suspect"}
    assert "its group: node-[004-005] at 33 % of the speed" in fleet.nodes[0].reasons[0].detail
    assert confirm.suspects(fleet) == []  # nothing that one of them measures alone would tell
    assert blame.exit_code(fleet) == 1  # which of them is not known, that one is slow is


def test_a_link_that_trained_down_over_nodes_is_that_of_the_node_whose_agent_told():
    fell = Counters(health={"node-002/mlx5_0:1.rate": "400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)"})
    fleet = judge(over_nodes(all_reduce(*HOSTS, counters=fell)))
    assert states(fleet) == {"node-002": "bad"}
    assert fleet.nodes[0].reasons[0].detail.startswith("trained down meanwhile: mlx5_0:1.rate 400 Gb/sec")


LOST = "no word from node-002 any more: connection lost"


def test_a_node_that_was_lost_is_never_good():
    broken = all_reduce(*HOSTS, status="error", reason=f"node node-002 is lost: {LOST}", measurement=None)
    later = all_reduce(*(host for host in HOSTS if host != "node-002"), size=9)
    fleet = judge(over_nodes(broken, later, out={"node-002": LOST}))
    assert states(fleet) == {"node-002": "unmeasured"}
    assert fleet.nodes[0].reasons[0].detail == LOST
    assert blame.exit_code(fleet) == 3  # the case that broke with it, as the run says
    alone = judge(over_nodes(broken, later, out={"node-002": LOST}, local=False))
    assert states(alone) == {"node-002": "unmeasured"}
    assert alone.nodes[0].reasons[0].detail == LOST


@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        ([f"error: node node-002 is lost: {LOST}"], "unmeasured"),
        ([f"error: node node-002 is lost: {LOST}; not tried again", "ok: "], "unmeasured"),
        ([f"error: RuntimeError: planned; then node node-002 is lost: {LOST}"], "bad"),
        (["wrong: element 3", f"error: node node-002 is lost: {LOST}"], "bad"),
        ([f"error: node node-002 is lost: {LOST}", "wrong: element 3"], "bad"),
        ([f"error: node node-001 is lost: {LOST}"], "bad"),  # another's loss is none of its own
    ],
)
def test_a_node_that_was_lost_in_a_case_of_its_own_is_bad_only_if_something_had_failed(reasons, state):
    run = over_nodes(out={"node-002": LOST})
    own = []
    for number, told in enumerate(reasons):
        status, _, why = told.partition(": ")
        found = made.record(samples=[1.0] * 20, machine_id="m2", launch=number + 1)
        own.append(found if status == "ok" else msgspec.structs.replace(found, status=status, reason=why, measurement=None))
    fleet = judge(LoadedRun(run.run, run.machines, [*run.records, *own], run.path, []))
    assert states(fleet) == {"node-002": state}
    assert blame.exit_code(fleet) == 3  # a case broke, as the run says
    if state == "unmeasured":
        (reason,) = fleet.nodes[0].reasons
        assert (reason.kind, reason.detail.startswith(f"node node-002 is lost: {LOST}")) == ("lost", True)
        assert page.lists_of(fleet)["bad.txt"] == b""


def test_a_node_kept_out_of_what_nobody_planned_is_whole():
    assert states(judge(over_nodes(out={"node-002": "other versions than most nodes"}))) == {}
    fleet = judge(over_nodes(all_reduce(*HOSTS[3:]), out={"node-002": "other versions than most nodes"}))
    assert states(fleet) == {"node-002": "unmeasured"}


def test_cases_over_nodes_are_measured_for_the_nodes_in_them():
    fleet = judge(over_nodes(all_reduce(*HOSTS[:7]), local=False))
    assert states(fleet) == {"node-007": "unmeasured"}
    assert fleet.nodes[0].reasons[0].detail == "no case was measured"


def later(run: LoadedRun, *records, started="2026-11-24T06:30:00Z", out=None) -> LoadedRun:
    """The same machines measured again, a day later: ``records`` over all of them."""
    again = over_nodes(*records, out=out)
    return LoadedRun(msgspec.structs.replace(again.run, started=started), run.machines, again.records, run.path, [])


@pytest.mark.parametrize("turned", [False, True])
def test_over_nodes_too_the_newest_run_counts_and_what_was_wrong_before_is_told(turned):
    pairs = swept(flat(8, sends_2=0.21), device="cpu:nodes", machine_id="m0")
    lost = all_reduce(*HOSTS, status="error", reason=f"node node-005 is lost: {LOST}", measurement=None)
    first = over_nodes(pairs, lost, out={"node-005": LOST})
    assert states(judge(first)) == {"node-002": "bad", "node-005": "unmeasured"}
    well = swept(flat(8), device="cpu:nodes", machine_id="m0")
    second = later(first, well, all_reduce(*HOSTS))
    fleet = judge(*((second, first) if turned else (first, second)))
    assert (states(fleet), fleet.joint, blame.exit_code(fleet)) == ({}, [], 0)
    told = [note for note in fleet.notes if "in a run before its newest, " in note]
    assert any(note.startswith("node-002: ") and "node-002 sends at 21 % of its peers" in note for note in told)
    assert any("all_reduce on cpu:nodes: error: node node-005 is lost" in note for note in told)
    some = later(first, all_reduce(*HOSTS[:7]))  # without the pairs, and without one node
    fleet = judge(*((some, first) if turned else (first, some)))
    assert states(fleet) == {"node-002": "bad"}
    assert {one.word for one in fleet.joint} == {"error", "not measured", "FAIL"}
    assert blame.exit_code(fleet) == 3


def test_of_pairs_within_one_machine_the_newest_counts_too():
    places = [Place(rank=r, host="node-00", device=f"cuda:{r}") for r in range(8)]
    machine = made.machine(machine_id="m00", host="node-00", gpus=8)
    runs = []
    for number, slow in enumerate(({"sends_2": 0.21}, {})):
        record = swept(flat(8, **slow), places, device="cuda:all", machine_id="m00", run_id=f"r{number}")
        run = loaded([record], machine, run_id=f"r{number}")
        runs.append(
            LoadedRun(
                msgspec.structs.replace(run.run, started=f"2026-11-2{number}T06:30:00Z"), run.machines, [record], run.path, []
            )
        )
    assert states(judge(runs[0])) == {"node-00": "bad"}
    assert states(judge(*runs)) == states(judge(*runs[::-1])) == {}
    (well,) = judge(*runs).nodes
    assert judge(*runs).alone == ["node-00"]  # nobody else was there
    assert well.state == "good"


def test_a_link_that_trained_down_in_a_run_is_judged_by_how_the_next_finds_it():
    meanwhile = node(4, counters=Counters(health={"mlx5_0:1.rate": "400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)"}))
    assert states(judge(meanwhile)) == {"node-04": "bad"}
    well = node(4)
    well = LoadedRun(
        msgspec.structs.replace(well.run, started="2026-11-24T06:30:00Z"), well.machines, well.records, well.path, []
    )
    assert states(judge(meanwhile, well)) == states(judge(well, meanwhile)) == {}
    found = Finding(name="infiniband", state="warning", detail="mlx5_0 runs at 2X", remedy="seat it anew", fails=True)
    still = {"m04": msgspec.structs.replace(well.machines["m04"], findings=[found])}
    assert states(judge(meanwhile, LoadedRun(well.run, still, well.records, well.path, []))) == {"node-04": "bad"}
