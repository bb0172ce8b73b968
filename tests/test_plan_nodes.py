"""What each of many nodes is to measure, and what spans them."""

from __future__ import annotations

import msgspec
import pytest

from clustergauge import valid
from clustergauge.errors import UsageError
from clustergauge.plan import Wish, load_probes, load_suite
from clustergauge.plan_nodes import plan_nodes, short_of_gpus
from tests import made, nodes


def test_cases_are_planned_on_each_node_and_over_all(tmp_path):
    (tmp_path / "nodes.toml").write_text(nodes.SUITE)
    suite = load_suite(tmp_path / "nodes.toml")
    machines = {"n1": made.machine(cores=4), "n2": made.machine(cores=2)}
    planned = plan_nodes(suite, {"misbehave": nodes.PROBE}, machines, ["n1", "n2", "n3"], Wish())
    found = [(p.params["how"], p.world, p.device, p.hosts, p.nodes, p.ranks) for p in planned]
    assert ("sick", "serial", "cpu:0", "n1,n3,n2", 1, 1) in found or ("sick", "serial", "cpu:0", "n[1-3]", 1, 1) in found
    assert ("well", "torch", "cpu:0", "n1,n3", 1, 4) in found or ("well", "torch", "cpu:0", "n[1,3]", 1, 4) in found
    assert ("well", "torch", "cpu:0", "n2", 1, 2) in found
    assert found[-1] == ("well", "torch", "cpu:nodes", "n[1-3]", 3, 6)
    with pytest.raises(UsageError, match="none of 1 nodes"):
        plan_nodes(suite, {"misbehave": nodes.PROBE}, {}, ["n1"], Wish())


def test_a_case_is_planned_once_for_each_node():
    one = made.planned(made.record(), hosts="n[1-2]")
    valid.check_run(made.run([], planned=[one, msgspec.structs.replace(one, hosts="n3", skip="no GPU")]))
    for hosts in ("n[2-3]", "", "n[1-"):
        with pytest.raises(valid.Invalid):
            valid.check_run(made.run([], planned=[one, msgspec.structs.replace(one, hosts=hosts)]))


def test_each_node_of_many_brings_its_own_gpus_for_its_own_ranks(tmp_path):
    (tmp_path / "one.toml").write_text('title = "t"\n[[cases]]\nprobe = "all_reduce"\nbackend = "nccl"\nsize = "8B"\n')
    suite, probes = load_suite(tmp_path / "one.toml"), load_probes(["collectives.operations"])
    machines = {f"n{n}": made.machine(gpus=8, machine_id=f"m{n}") for n in range(2)}
    together = [p for p in plan_nodes(suite, probes, machines, list(machines), Wish()) if p.nodes > 1]
    assert {(p.device, p.ranks, p.skip) for p in together} == {("cuda:nodes", 16, "")}
    few = [p for p in plan_nodes(suite, probes, machines, list(machines), Wish(ranks=9)) if p.nodes > 1]
    assert {p.skip for p in few} == {"9 ranks need a GPU each, here are 8"}


def test_one_node_that_lost_its_gpus_does_not_take_them_from_what_spans_the_others(tmp_path):
    """It was the least of all, and no collective of GPUs was planned, and none missed."""
    (tmp_path / "one.toml").write_text('title = "t"\n[[cases]]\nprobe = "all_reduce"\nbackend = ["nccl", "gloo"]\nsize = "8B"\n')
    suite, probes = load_suite(tmp_path / "one.toml"), load_probes(["collectives.operations"])
    machines = {f"n{n}": made.machine(gpus=8 if n else 0, machine_id=f"m{n}") for n in range(4)}
    together = [p for p in plan_nodes(suite, probes, machines, list(machines), Wish()) if p.nodes > 1]
    assert {(p.params["backend"], p.device, p.ranks, p.hosts, p.skip) for p in together if p.device == "cuda:nodes"} == {
        ("nccl", "cuda:nodes", 32, "n[0-3]", "")
    }
    short = short_of_gpus(machines, together)
    assert short == {"n0": "what spans nodes takes 8 GPUs of each, here 0 can be used"}
    plain = machines | {"n0": made.machine(gpus=8, versions={"torch": "2.13.0+cpu"})}
    assert list(short_of_gpus(plain, together)) == ["n0"]
    few = {f"n{n}": made.machine(gpus=8 if n == 3 else 0, machine_id=f"m{n}") for n in range(4)}
    assert not [p for p in plan_nodes(suite, probes, few, list(few), Wish()) if p.device == "cuda:nodes" and not p.skip]
    on_cpu = plan_nodes(suite, probes, machines, list(machines), Wish(device="cpu"))
    assert short_of_gpus(machines, on_cpu) == {}
    assert {p.device for p in on_cpu if p.nodes > 1} == {"cpu:nodes"}
