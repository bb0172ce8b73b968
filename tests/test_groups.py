"""Groups of nodes: who is in one, which is slow, who is kept out of what spans everything; once over real agents."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

import pytest
from hypothesis import given, strategies as st

from clustergauge import code, fleet, groups, hosts, retry, verdicts, warnings
from clustergauge.model import Place, Planned, Record, Run, Workload
from clustergauge.plan import Wish, load_probes, load_suite
from clustergauge.plan_nodes import plan_nodes
from clustergauge.store import RunFolder, load
from tests import made, nodes
from tests.swept import flat, swept

NAMES = ["n1", "n2", "n3-slow", "n4"]


@given(st.integers(1, 200), st.integers(2, 16))
def test_groups_are_disjoint_alike_and_never_one_node(count, most):
    names = [f"n{n}" for n in range(count)]
    parts = groups.split(names, most)
    assert [name for part in parts for name in part] == names
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, count)
    assert max(sizes) <= most + (most == 2)
    assert len(parts) == 1 or count > most


def test_no_group_is_the_only_one_of_its_size_where_that_can_be():
    sizes = {
        count: [len(part) for part in groups.split([f"n{n}" for n in range(count)])] for count in (8, 15, 16, 20, 23, 31, 65)
    }
    assert sizes == {
        8: [8],
        15: [5, 5, 5],
        16: [8, 8],
        20: [5, 5, 5, 5],
        23: [7, 8, 8],  # of fewer than five nodes none is made for that
        31: [7, 8, 8, 8],
        65: [7, 7, 7, 7, 8, 7, 7, 7, 8],
    }


SUITE = """
title = "groups"
budget_s = 0.3
timeout_s = 30
[[cases]]
probe = "in_step"
"""


def planned(tmp_path, names, machines=None, probes=("tests.faults.in_step",), suite=SUITE, most=groups.MOST) -> list[Planned]:
    (tmp_path / "groups.toml").write_text(suite)
    there = machines or {name: made.machine(cores=2, machine_id=name) for name in names}
    return plan_nodes(load_suite(tmp_path / "groups.toml"), load_probes(probes), there, names, Wish(ranks=1), most)


def test_pairs_come_first_then_groups_then_everything(tmp_path):
    suite = SUITE + '[[cases]]\nprobe = "pairs"\nbackend = "gloo"\ndirection = "uni"\nquiet = "round"\nsize = "1MiB"\n'
    names = [f"n{n:02}" for n in range(20)]
    found = [p for p in planned(tmp_path, names, None, ("tests.faults.in_step", "collectives.pairs"), suite) if p.nodes > 1]
    tiers = groups.tiers(found)
    assert [{(p.probe, p.device) for p in tier} for tier in tiers] == [
        {("pairs", "cpu:nodes")},
        {("in_step", f"cpu:group{n}") for n in (1, 2, 3, 4)},
        {("in_step", "cpu:nodes")},
    ]
    assert {(p.device, p.hosts, p.nodes, p.ranks) for p in tiers[1]} == {
        ("cpu:group1", "n[00-04]", 5, 5),
        ("cpu:group2", "n[05-09]", 5, 5),
        ("cpu:group3", "n[10-14]", 5, 5),
        ("cpu:group4", "n[15-19]", 5, 5),
    }
    assert found == [p for tier in tiers for p in tier]
    assert not any(hosts.is_group(p.device) for p in planned(tmp_path, names[:8]))


def of_group(number: int, time: float, first: int, count: int = 8, **more) -> Record:
    places = [Place(rank=r, host=f"n{first + r}") for r in range(count)]
    machine = f"m{first}"
    return made.record(
        "all_reduce",
        samples=[time * (1 + 0.001 * s) for s in range(20)],
        device=f"cpu:group{number}",
        placement=places,
        ranks=count,
        machine_id=machine,
        **more,
    )


def test_the_slow_group_is_named_and_its_nodes_are_kept_out_of_the_rest():
    records = [of_group(1, 1.0, 0), of_group(2, 1.5, 8), of_group(3, 1.02, 16)]
    (verdict,) = groups.verdicts(records)
    assert (verdict.verdict, verdict.device) == ("FAIL", "cpu:group2")
    assert verdict.reason == "n[8-9],n[10-15] at 67 % of the speed of the other groups"
    assert [v for v in verdicts.judge(records, [], {}) if v.metric == groups.METRIC] == [verdict]
    machines = {f"node{n}": made.machine(machine_id=f"m{n}", host=f"n{n}") for n in range(24)}
    out = groups.unfit(records, machines)
    assert list(out) == [f"node{n}" for n in range(8, 16)]
    assert out["node8"].startswith("its group failed all_reduce: n[8-9],n[10-15] at 67 %")


def test_fresh_launches_decide_and_only_a_large_and_steady_loss_counts():
    slow_once = [of_group(1, 1.0, 0), of_group(2, 1.5, 8), *(of_group(2, 1.0, 8, launch=n, confirms=True) for n in (1, 2))]
    assert groups.verdicts(slow_once) == []
    assert groups.verdicts([of_group(1, 1.0, 0), of_group(2, 1.2, 8)]) == []
    fast_part = made.record("all_reduce", samples=[1.0] * 8 + [2.0] * 12, device="cpu:group2", ranks=8)
    assert groups.verdicts([of_group(1, 1.0, 0), fast_part]) == []  # something else disturbed it


def reduced(number: int, bus_rate: float, first: int, count: int, size: int = 1 << 20, bound="network") -> Record:
    """An all-reduce of a group at a bus bandwidth (bytes a second)."""
    work = Workload(message_bytes=size, collective="all_reduce", dtype="fp32", bound=bound)
    return of_group(number, 2 * (count - 1) / count * size / bus_rate, first, count, work=work)


def test_a_group_of_another_size_is_held_against_the_others_by_what_each_link_carried():
    """Seven ranks take other steps than eight: half of the bus bandwidth is nothing to be blamed for, a third is."""
    others = [reduced(1, 1e9, 0, 8), reduced(2, 1.02e9, 8, 8)]
    for share in (1.0, 0.5, 0.42):
        assert groups.verdicts([*others, reduced(3, share * 1.01e9, 16, 7)]) == []
    (verdict,) = groups.verdicts([*others, reduced(3, 0.34e9, 16, 7)])
    assert (verdict.verdict, verdict.device, verdict.bound) == ("FAIL", "cpu:group3", groups.THRESHOLD * groups.UNLIKE)
    assert verdict.reason == (
        "n[16-22] at 34 % of the bus bandwidth of the other groups (7 ranks here, 8 there: that alone may halve it)"
    )
    assert groups.alone([*others, reduced(3, 1e9, 16, 7)]) == {}
    slow_alike = groups.verdicts([reduced(1, 1e9, 0, 8), reduced(2, 0.7e9, 8, 8), reduced(3, 1e9, 16, 7)])
    assert [v.device for v in slow_alike] == ["cpu:group2"]  # by the one of its size, at the usual threshold


def test_what_has_no_rate_or_a_very_different_size_is_not_compared_and_that_is_said():
    small = [reduced(1, 1e9, 0, 8, 8, "latency"), reduced(2, 0.1e9, 8, 7, 8, "latency")]
    assert groups.verdicts(small) == []
    assert groups.alone(small) == {"n[0-7] (8 ranks)": [small[0].case], "n[8-9],n[10-14] (7 ranks)": [small[0].case]}
    assert groups.verdicts([of_group(1, 1.0, 0, 4), of_group(2, 9.0, 4, 5)]) == []  # no collective whose bytes are known
    far = [reduced(1, 1e9, 0, 8), reduced(2, 0.1e9, 8, 3)]
    assert groups.verdicts(far) == []
    assert len(groups.alone(far)) == 2
    assert groups.verdicts([of_group(1, 1.0, 0)]) == []
    assert groups.alone([of_group(1, 1.0, 0), of_group(2, 1.0, 8)]) == {}
    told = next(w for w in warnings.of_run(small) if w.name == "group alone")
    assert "n[0-7] (8 ranks): all_reduce; n[8-9],n[10-14] (7 ranks): all_reduce" in told.detail


def test_a_group_that_never_started_is_kept_out_whole():
    machines = {f"node{n}": made.machine(machine_id=f"m{n}", host=f"n{n}") for n in range(16)}
    dead = of_group(1, 1.0, 0, measurement=None, status="error", reason="rank 3 on n3 never connected within 60 s")
    out = groups.unfit([dead, of_group(2, 1.0, 8)], machines)
    assert list(out) == [f"node{n}" for n in range(8)]
    assert out["node7"] == "its group failed all_reduce: n[0-7]: rank 3 on n3 never connected within 60 s"


def test_a_slow_group_is_measured_again_by_itself():
    records = [of_group(1, 1.0, 0), of_group(2, 1.5, 8)]
    plans = [made.planned(r, hosts=h, nodes=8, ranks=8) for r, h in zip(records, ("n[0-7]", "n[8-15]"), strict=True)]
    more = retry.again(plans, records, groups.verdicts(records), {})
    assert [(p.device, p.hosts, p.launch, p.confirms) for p in more] == [("cpu:group2", "n[8-15]", n, True) for n in (1, 2)]


def test_what_is_wrong_in_one_group_keeps_its_nodes_out_and_what_is_wrong_in_all_nobody():
    machines = {f"n{n}": made.machine(machine_id=f"m{n}", host=f"n{n}") for n in range(16)}
    wrong = [of_group(1, 1.0, 0, status="wrong", reason="planned"), of_group(2, 1.0, 8)]
    assert set(groups.unfit(wrong, machines)) == {f"n{n}" for n in range(8)}
    both = [of_group(n, 1.0, 8 * n - 8, status="wrong", reason="planned") for n in (1, 2)]
    assert groups.unfit(both, machines) == {}


def test_an_endpoint_that_failed_among_pairs_is_kept_out():
    machines = {f"n{n}": made.machine(machine_id=f"m{n}", host=f"node-{n:03d}") for n in range(5)}
    out = groups.unfit([swept(flat(5, sends_2=0.5))], machines)
    assert list(out) == ["n2"]
    assert "node-002 sends at 50 % of its peers" in out["n2"]
    assert groups.unfit([swept(flat(5, link_0_1=0.5))], machines) == {}  # a link is no node


class Quiet:
    """A display that says nothing."""

    crew: fleet.Fleet

    def begin(self): ...
    def start(self, *_): ...
    def case(self, *_): ...
    def done(self, *_): ...
    def stop(self): ...


def conduct(tmp_path, display, suite=SUITE, probes=("tests.faults.in_step",), names=NAMES, pool_s=45.0):
    """Four agents in two groups of two, one of them with a slow host; one whole run: how it went, its folder, what lives on."""
    crew = nodes.fleet(names, pool_s=pool_s)
    assert not crew.left_out, crew.left_out
    display.crew = crew
    display.begin()
    todo = planned(tmp_path, names, crew.machines, probes, suite, most=2)
    run = Run(
        run_id="20261123-063000-7f3c",
        started="2026-11-23T06:30:00Z",
        command=["x"],
        suite="groups",
        code=code.digest(),
        planned=todo,
    )
    ids = {machine.machine_id: machine.node for machine in crew.machines.values()}

    def again(plans, there, records):
        return retry.again(plans, records, verdicts.judge(records, plans, there), ids)

    folder = RunFolder.create(tmp_path, run)
    came = fleet.conduct(folder, run, crew, display, again=again, unfit=lambda there, records: groups.unfit(records, there))
    return came, load(folder.path), nodes.workers_left(crew.desk.token)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One whole run."""
    came, loaded, left = conduct(tmp_path_factory.mktemp("groups"), Quiet())
    assert not came.problem
    return loaded, left


def test_groups_run_at_once_and_the_slow_one_is_named_confirmed_and_kept_out(measured):
    loaded, _ = measured
    in_groups = [r for r in loaded.records if hosts.is_group(r.device)]
    assert {r.status for r in in_groups} == {"ok"}
    where = {r.device: [place.host for place in r.placement] for r in in_groups}
    assert where == {"cpu:group1": NAMES[:2], "cpu:group2": NAMES[2:]}
    found = verdicts.judge(loaded.records, loaded.run.planned, loaded.machines)
    assert [(v.device, v.verdict) for v in found if v.metric == groups.METRIC] == [("cpu:group2", "FAIL")]
    fresh = {(r.device, r.launch) for r in in_groups if r.confirms}
    assert fresh == {("cpu:group2", 1), ("cpu:group2", 2)}
    everything = [r for r in loaded.records if r.device == "cpu:nodes"]
    assert [[place.host for place in r.placement] for r in everything] == [["n1", "n2"]]
    assert set(loaded.run.left_out) == {"n3-slow", "n4"}
    assert "its group failed in_step: n3-slow,n4 at " in loaded.run.left_out["n4"]


def kill_agent(crew: fleet.Fleet, name: str) -> None:
    site = crew.supervisors[name].node.sites[0]
    os.kill(int((site.scratch / "agent.pid").read_text()), signal.SIGKILL)


class GoneEarly(Quiet):
    """Both agents of the second group end before anything begins."""

    def begin(self):
        for name in ("n3", "n4"):
            kill_agent(self.crew, name)
        time.sleep(1.0)


def test_a_group_of_which_all_nodes_are_gone_costs_itself_alone(tmp_path):
    came, loaded, left = conduct(tmp_path, GoneEarly(), names=["n1", "n2", "n3", "n4"])
    assert not came.problem
    (owed,) = [r for r in loaded.records if r.device == "cpu:group2"]
    assert owed.status == "error"
    assert "needs two nodes, none is left" in owed.reason
    spanned = {r.device: r.status for r in loaded.records if hosts.spans(r.device)}
    assert spanned == {"cpu:group1": "ok", "cpu:group2": "error", "cpu:nodes": "ok"}
    assert set(loaded.run.left_out) == {"n3", "n4"}
    assert left == []


class GoneMeanwhile(Quiet):
    """The agent of the fourth node ends once its group has begun."""

    def begin(self):
        self.sites = {name: supervisor.node.sites[0] for name, supervisor in self.crew.supervisors.items()}

    def case(self, planned):
        if planned.device == "cpu:group2":
            os.kill(int((self.sites["n4"].scratch / "agent.pid").read_text()), signal.SIGKILL)


def test_who_was_in_a_group_with_a_node_that_was_lost_goes_on(tmp_path):
    came, loaded, left = conduct(tmp_path, GoneMeanwhile(), names=["n1", "n2", "n3", "n4"])
    assert not came.problem
    (failed,) = [r for r in loaded.records if r.device == "cpu:group2"]
    assert failed.status == "error"
    assert "node n4 is lost" in failed.reason
    (everything,) = [r for r in loaded.records if r.device == "cpu:nodes"]
    assert everything.status == "ok"
    assert [place.host for place in everything.placement] == ["n1", "n2", "n3"]
    assert set(loaded.run.left_out) == {"n4"}
    assert left == []


DIES = """
import os, sys
if "clustergauge.worker" in sys.orig_argv and os.environ.get("CLUSTERGAUGE_HOST", "").endswith("lame"):
    os._exit(9)
"""
"""Python's ``sitecustomize`` of a node whose workers end before they say a word, while its agent is well."""


@pytest.mark.slow
def test_a_group_whose_pool_never_starts_is_kept_out_whole_and_the_rest_goes_on(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    came, loaded, left = conduct(tmp_path, Quiet(), names=["n1", "n2", "n3", "n4-lame"], pool_s=15.0)
    assert not came.problem
    (dead,) = [r for r in loaded.records if r.device == "cpu:group2"]
    assert dead.status == "error"
    assert [place.host for place in dead.placement] == ["n3", "n4-lame"]
    assert "on n4-lame" in dead.reason
    assert [r.status for r in loaded.records if r.device == "cpu:group1"] == ["ok"]
    (everything,) = [r for r in loaded.records if r.device == "cpu:nodes"]
    assert everything.status == "ok"
    assert [place.host for place in everything.placement] == ["n1", "n2"]
    assert set(loaded.run.left_out) == {"n3", "n4-lame"}
    assert loaded.run.left_out["n3"] == f"its group failed in_step: n3,n4-lame: {dead.reason}"
    assert left == []


def test_nothing_of_groups_lives_on(measured):
    assert measured[1] == []


class Impatient(Quiet):
    """Presses Ctrl-C once the second group has begun."""

    begun = 0

    def case(self, planned):
        self.begun += hosts.is_group(planned.device)
        if self.begun == 2:
            threading.Timer(3.0, _thread.interrupt_main).start()


@pytest.mark.slow
def test_ctrl_c_while_groups_measure_ends_everything_on_all_nodes(tmp_path):
    hang = '[[cases]]\nprobe = "misbehave"\nhow = "hang"\nworld = "mpi"\nphase = "run"\n'
    came, loaded, left = conduct(tmp_path, Impatient(), f'title = "hang"\ntimeout_s = 300\n{hang}', ("tests.faults.misbehaving",))
    assert came.interrupted
    assert not [r for r in loaded.records if hosts.spans(r.device)]
    assert left == []
