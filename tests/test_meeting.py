"""Nodes that share a storage target: how that is known, and that each measures there alone."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from msgspec.structs import replace

from clustergauge import accept, code, exits, forecast, hosts, marks, meeting, presence
from clustergauge.fleet import turns
from clustergauge.model import Criterion
from clustergauge.plan import Suite, Wish, load_probes, load_suite
from clustergauge.plan_nodes import plan_nodes
from reports import listing
from storage_io import workspace
from tests import made, nodes
from tests.on_disk import names, needs_root

SUITE = """
title = "storage of two nodes"
budget_s = 0.1
timeout_s = 20
[[cases]]
probe = "alone"
"""


def met(tmp_path, target, remote=nodes.REMOTE):
    fleet = nodes.fleet(("na", "nb"), remote=remote)
    try:
        assert not fleet.left_out, fleet.left_out
        fleet.meet([str(target), str(tmp_path / "absent"), "s3://bucket/x"])
        return fleet.shared
    finally:
        fleet.close()


def test_the_same_folder_seen_by_two_nodes_is_shared_and_nothing_is_left_in_it(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    assert met(tmp_path, target) == {str(target): [["na", "nb"]], "s3://bucket/x": [["na", "nb"]]}
    assert names(target) == []


@needs_root
@pytest.mark.slow
def test_a_folder_of_the_same_name_on_each_node_is_not_shared(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    assert met(tmp_path, target, nodes.own_disks(tmp_path, target)) == {"s3://bucket/x": [["na", "nb"]]}


def test_each_node_has_a_shared_target_to_itself(tmp_path):
    """A case that is wrong where another node is at work on the target, as both would be at once."""
    target, suite = tmp_path / "target", tmp_path / "alone.toml"
    target.mkdir()
    suite.write_text(SUITE)
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.alone", "--suite", str(suite)]
    command += [
        "--remote",
        nodes.REMOTE,
        "--address",
        nodes.HERE,
        "--hosts",
        "na,nb",
        "--target",
        str(target),
        "-o",
        str(tmp_path / "results"),
    ]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [path for path in (tmp_path / "results").iterdir() if (path / "run.json").exists()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [(r["placement"][0]["host"], r["status"]) for r in records] == [("na", "ok"), ("nb", "ok")]
    assert json.loads((folder / "run.json").read_text())["planned"][0]["in_turn"] == "na"
    assert names(target) == []


@pytest.mark.slow
def test_of_five_nodes_on_one_target_four_measure_alone_and_all_at_once(tmp_path):
    target, suite = tmp_path / "target", tmp_path / "both.toml"
    target.mkdir()
    suite.write_text(
        SUITE + 'device = "cpu"\n[[cases]]\nprobe = "parallel"\nlayout = "n_to_n"\nop = "write"\n'
        'block = "64KiB"\ndepth = 1\nsize = "4MiB"\ntimeout_s = 100\n'
    )
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.alone", "--suite", str(suite)]
    command += ["--remote", nodes.REMOTE, "--address", nodes.HERE, "--hosts", "n[1-5]", "--ranks", "1", "--format", "json"]
    command += ["--target", str(target), "-o", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=300)
    document = json.loads(done.stdout)
    hosts_of = {machine["machine_id"]: machine["node"] for machine in document["machines"]}
    of_case = [(r["probe"], r["device"], r["status"], hosts_of[r["machine_id"]]) for r in document["records"]]
    assert sorted(one for one in of_case if one[0] == "alone") == [
        *(("alone", "cpu:0", "ok", f"n{n}") for n in (1, 2, 3, 5)),
        ("alone", "cpu:0", "skipped", "n4"),
    ]
    (over,) = [r for r in document["records"] if r["device"] == "cpu:nodes"]
    assert (over["status"], over["ranks"], {p["host"] for p in over["placement"]}) == ("ok", 5, {f"n{n}" for n in range(1, 6)})
    assert "other_runs" not in over["settings"]
    assert done.returncode == 0, done.stderr
    assert names(target) == []


def test_a_mark_that_was_left_goes_with_the_next_storage_case(tmp_path):
    mark = marks.mark_of("token", "na")
    assert marks.take("mark", str(tmp_path), mark) == []
    assert marks.take("look", str(tmp_path), mark) == [mark]
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []
    assert marks.take("clear", str(tmp_path), mark) == []  # somebody was faster


def test_only_marks_are_made_and_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for step in ("mark", "look", "clear"):
        assert marks.take(step, str(tmp_path), "mine") == []
        assert marks.take(step, str(tmp_path), "../mine") == []
        assert marks.take(step, str(tmp_path / "absent"), marks.mark_of("t", "n")) == []
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("seen", "groups"),
    [
        ({"a": {"a"}, "b": {"b"}}, []),
        ({"a": {"a", "b"}, "b": {"a", "b"}, "c": {"c"}}, [["a", "b"]]),
        ({"a": {"a", "c"}, "b": {"b", "d"}, "c": {"c"}, "d": set()}, [["a", "c"], ["b", "d"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"nobody"}}, [["a", "b", "c", "d"]]),
    ],
)
def test_who_sees_another_or_is_seen_shares(seen, groups):
    assert meeting.joined(seen) == groups


def test_in_each_turn_is_one_node_of_every_group():
    def one(first):
        return made.planned(made.record(), in_turn=first)

    todo = {"a": [one("a")], "b": [one("b"), one("b")], "c": [one("a"), one("")], "d": [one("a")]}
    assert [{n: len(p) for n, p in turn.items()} for turn in turns(todo)] == [{"a": 1, "b": 2}, {"c": 1}, {"d": 1}]
    assert turns({"a": [one("")]}) == []


def test_a_node_in_two_groups_measures_on_one_target_at_a_time():
    both = [made.planned(made.record(), in_turn="a"), made.planned(made.record(), in_turn="b")]
    todo = {"a": both[:1], "b": both}
    assert [{n: [p.in_turn for p in own] for n, own in turn.items()} for turn in turns(todo)] == [
        {"a": ["a"], "b": ["b"]},
        {"b": ["a"]},
    ]


def planned_over(nodes, probes, shared, globs=()):
    """The plan of two cases of one node and of `parallel`."""
    tables = [{"probe": name, "axes": axes} for name, axes in probes.items()]
    suite = msgspec.convert({"title": "t", "cases": tables}, Suite)
    found = load_probes(["storage_io.sequential", "storage_io.parallel"])
    machines = {name: made.machine(machine_id=name) for name in nodes}
    return plan_nodes(suite, found, machines, nodes, Wish(globs=globs, targets=["/x"]), shared={"/x": [shared]})


STORAGE = {
    "sequential": {"op": ["write"], "depth": [1], "size": ["64MiB"]},
    "parallel": {"layout": ["n_to_n"], "op": ["write"], "block": ["1MiB"], "depth": [1], "size": ["64MiB"]},
}


def test_where_all_are_measured_at_once_few_of_many_measure_alone():
    nodes = [f"n{n:02}" for n in range(64)]
    planned = planned_over(nodes, STORAGE, nodes)
    alone = {p.probe: p for p in planned if p.nodes == 1 and not p.skip}
    left = {p.probe: p for p in planned if p.nodes == 1 and p.skip}
    assert {probe: p.hosts for probe, p in alone.items()} == {"sequential": "n[00,21,42,63]", "parallel": "n00"}
    for probe, one in alone.items():
        assert sorted(hosts.expand(one.hosts) + hosts.expand(left[probe].hosts)) == nodes
        assert left[probe].skip == f"left to {one.hosts}: 64 nodes share /x, and parallel measures all of them at once"
        assert left[probe].in_turn == one.in_turn == "n00"
    assert [(p.device, hosts.expand(p.hosts)) for p in planned if p.nodes > 1] == [("cpu:nodes", nodes)]
    once = {probe: forecast.in_a_row([p]) for probe, p in alone.items()}
    over = forecast.predict([p for p in planned if p.nodes > 1])
    assert forecast.predict(planned) == pytest.approx(4 * once["sequential"] + once["parallel"] + over)
    said = " ".join(listing.page_of(planned, 120).text().split())
    assert "3 cases on 2 devices would run" in said
    assert "2 would be skipped" in said
    assert "left to n[00,21,42,63]" in said


@pytest.mark.parametrize(
    ("probes", "count", "share", "globs", "left"),
    [
        (("sequential", "parallel"), 8, 6, (), {"n1", "n2", "n3", "n4", "n5"}),
        (("sequential",), 8, 8, (), set()),  # nothing measures them at once
        (("sequential", "parallel"), 8, 8, ("sequential*",), set()),
        (("sequential", "parallel"), 10, 5, (), set()),  # what does is of another target for as many
        (("sequential", "parallel"), 4, 4, (), set()),
    ],
)
def test_what_nothing_else_would_measure_is_left_to_nobody(probes, count, share, globs, left):
    nodes = [f"n{n}" for n in range(count)]
    planned = planned_over(nodes, {name: STORAGE[name] for name in probes}, nodes[:share], globs)
    assert {name for p in planned if p.skip for name in hosts.expand(p.hosts)} == left
    assert {name for p in planned if p.in_turn for name in hosts.expand(p.hosts)} == set(nodes[:share])


def test_a_node_that_leaves_a_case_to_others_neither_passes_nor_fails():
    here, there = made.record(machine_id="m1"), made.failed("skipped", "left to n1", machine_id="m2")
    plans = [
        made.planned(here, hosts="n1", in_turn="n1"),
        made.planned(there, hosts="n2", in_turn="n1", skip="left to n1"),
        made.planned(over := made.record("parallel", device="cpu:nodes"), hosts="n[1-2]", nodes=2),
    ]
    machines = tuple(made.machine(machine_id=f"m{n}", node=f"n{n}") for n in (1, 2))
    standards, asked = accept.Standards(machines=machines), [Criterion(case="matmul*", floor=1e12, unit="FLOP/s")]

    def said(*records):
        verdicts = accept.judge([*records, over], asked, standards, plans)
        found = {v.machine_id: v.verdict for v in verdicts if v.case != over.case}
        return found, exits.exit_code([*records, over], verdicts, plans)

    assert said(here, there) == ({"m1": "pass"}, exits.OK)
    assert said(there) == ({"": "not measured"}, exits.UNKNOWN)
    assert said(made.failed("skipped", "full", machine_id="m1"), there) == ({"m1": "not measured"}, exits.UNKNOWN)
    assert said(here, made.record(machine_id="m2", samples=[9.0] * 30))[0] == {"m1": "pass", "m2": "FAIL"}


def test_nodes_are_not_measured_where_the_case_that_judges_them_came_to_nothing():
    here = made.record("sequential", machine_id="m1")
    left = made.failed("skipped", "left to n1", probe="sequential", machine_id="m2")
    over = made.record("parallel", device="cpu:nodes")
    plans = [
        made.planned(here, hosts="n1", in_turn="n1", target="/x"),
        made.planned(left, hosts="n[2-4]", in_turn="n1", target="/x", skip="left to n1"),
        made.planned(over, hosts="n[1-4]", nodes=4, target="/x"),
    ]
    others = [made.failed("skipped", "left to n1", probe="sequential", machine_id=f"m{n}") for n in (3, 4)]
    recorded = [here, left, *others]
    assert presence.unjudged([*recorded, over], plans) == []
    assert exits.exit_code([*recorded, over], [], plans) == exits.OK
    full = made.failed("skipped", "/x has 1 MiB free", probe="parallel", device="cpu:nodes")
    assert presence.unjudged([*recorded, full], plans) == [
        "n[2-4]: storage was not measured: no case over all nodes on /x came to a number"
    ]
    assert exits.exit_code([*recorded, full], [], plans) == exits.UNKNOWN


def test_the_plan_says_what_is_measured_in_turn_and_for_how_long(tmp_path):
    (tmp_path / "alone.toml").write_text(SUITE)
    suite, probes = load_suite(tmp_path / "alone.toml"), load_probes(["tests.faults.alone"])
    machines = {f"n{n}": made.machine(machine_id=f"m{n}") for n in range(1, 5)}
    wish = Wish(targets=["/x"])
    planned = plan_nodes(suite, probes, machines, list(machines), wish, shared={"/x": [["n1", "n3", "n4"]]})
    assert [(hosts.expand(p.hosts), p.in_turn) for p in planned] == [(["n1", "n3", "n4"], "n1"), (["n2"], "")]
    alone = forecast.predict(planned[1:])
    assert forecast.predict(planned) == pytest.approx(4 * alone)
    assert forecast.predict([replace(p, in_turn="") for p in planned]) == pytest.approx(alone)
    said = listing.page_of(planned, 120).text()
    assert "1 of them on one node after another, which share the target" in " ".join(said.split())
