"""Topology files: ranges and globs of hosts, NICs of rails, and mistakes named with file and field."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from clustergauge import sweeps, topology
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from clustergauge.verdicts import Asked
from reports import outcome
from tests import made
from tests.swept import flat, swept

FLAT = """
schema = 1
title = "two leaves"
[[leaf]]
name = "leaf-1"
rack = "r1"
hosts = ["node[01-04,07]", "login"]
[[leaf]]
name = "leaf-2"
hosts = ["node[05-06]", "spare*"]
"""
RAILS = """
[[leaf]]
name = "rail-0"
hosts = ["node[1-2]"]
nics = ["mlx5_[0-1]"]
rail = "0"
[[leaf]]
name = "rail-1"
hosts = ["node[1-2]"]
nics = ["mlx5_2", "mlx5_x*"]
rail = "1"
"""


def leaf(text: str, host: str, nic: str = "") -> str | None:
    found = topology.parse(text, "t.toml").find(host, nic)
    return found.name if found else None


def test_ranges_and_globs_name_the_leaf_of_a_host():
    assert [leaf(FLAT, f"node0{i}") for i in range(1, 9)] == ["leaf-1"] * 4 + ["leaf-2"] * 2 + ["leaf-1", None]
    assert leaf(FLAT, "login", "eth0") == "leaf-1"
    assert leaf(FLAT, "spare-17") == "leaf-2"
    assert leaf(FLAT, "node1") is None
    assert leaf(FLAT, "node02.cluster.example") == "leaf-1"


def test_nics_choose_the_rail_of_a_host_in_several_leaves():
    assert leaf(RAILS, "node1", "mlx5_1") == "rail-0"
    assert leaf(RAILS, "node2", "mlx5_2") == "rail-1"
    assert leaf(RAILS, "node2", "mlx5_x9") == "rail-1"
    assert leaf(RAILS, "node1", "eth0") is None
    assert leaf(RAILS, "node1") is None  # which of the two is not known
    assert topology.parse(RAILS, "t").find("node1", "mlx5_0").rail == "0"


def test_the_user_by_whom_a_host_is_called_is_no_part_of_its_name():
    assert leaf(FLAT, "root@node02") == "leaf-1"
    assert leaf(FLAT, "me@node05.cluster.example") == "leaf-2"


def test_a_host_on_several_rails_stands_in_the_rack_of_all_of_them():
    one = topology.parse(RAILS.replace("rail =", "rack = 'r7'\nrail ="), "t")
    assert topology.racks(one)("node1") == "r7"
    apart = topology.parse(RAILS.replace("rail = ", "rack = 'r7'\nrail = ", 1), "t")
    assert topology.racks(apart)("node1") == ""
    assert topology.racks(None)("node1") == ""


def test_hosts_that_it_places_nowhere_are_told_and_a_file_of_other_hosts_is_a_mistake():
    one = topology.parse(FLAT, "t.toml")
    assert one.unplaced(["node01", "node08", "spare-1", "a@node07", "other"]) == ["node08", "other"]
    assert topology.notes(one, ["node01", "node02"]) == topology.notes(None, ["node01"]) == []
    assert topology.notes(one, ["node01", "node08"]) == [
        "in no leaf of the topology: node08: which leaf they hang on is unknown, and none is blamed for them"
    ]
    (many,) = topology.notes(one, [f"x{n}" for n in range(11)])
    assert "x0, x1, x2, x3, x4, x5, x6, x7, … +3: which" in many
    topology.check_fits(one, "t.toml", ["other", "node07"])
    topology.check_fits(one, "t.toml", [])
    with pytest.raises(UsageError, match=r"t.toml: none of .* it has node\[01-04,07\], login, .*; measured are x, y \("):
        topology.check_fits(one, "t.toml", ["x", "y"])


def test_a_run_remembers_it():
    one = topology.parse(FLAT, "t.toml")
    assert "\n" not in one.text()
    assert topology.of_text(one.text()) == one
    assert topology.of_text(one.text()).find("node03").rack == "r1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = 'a'\nleaf = [[", "t.toml: not TOML: "),
        ("title = 1 2", "t.toml: not TOML: .*line 1"),
        ("", r"t.toml: Object missing required field `leaf`"),
        ("leaf = []", r"t.toml: .*length >= 1 - at `\$.leaf`"),
        ("[[leaf]]\nname = 'a'", r"missing required field `hosts` - at `\$.leaf\[0\]`"),
        ("[[leaf]]\nname = 'a'\nhosts = ['b']\nport = 1", r"unknown field `port` - at `\$.leaf\[0\]`"),
        ("[[leaf]]\nname = 'a'\nhosts = [1]", r"Expected `str`, got `int` - at `\$.leaf\[0\].hosts\[0\]`"),
        ("schema = 2\n[[leaf]]\nname = 'a'\nhosts = ['b']", "schema 2 is not known"),
        ("[[leaf]]\nname = 'a'\nhosts = ['ok', 'n[3-1]']", r"leaf\[0\].hosts\[1\]: .*not a rising range"),
        ("[[leaf]]\nname = 'a'\nhosts = ['n[1-']", r"leaf\[0\].hosts\[0\]: .*a bracket is missing"),
        ("[[leaf]]\nname = 'a'\nhosts = ['n[0-9999999]']", "not a rising range of at most 100000"),
        ("[[leaf]]\nname = 'a'\nhosts = ['n[0-999][0-999]']", "means more than 100000 names"),
        ("[[leaf]]\nname = 'a'\nhosts = ['b']\nnics = ['m[2-1]']", r"leaf\[0\].nics\[0\]"),
        ("[[leaf]]\nname = 'a\x1b[31m'\nhosts = ['b']", "t.toml: not TOML"),
        ('[[leaf]]\nname = "a\\u001b[31m"\nhosts = ["b"]', r"leaf\[0\].name is not printable"),
        (
            "[[leaf]]\nname = 'a'\nhosts = ['n[1-3]']\n[[leaf]]\nname = 'b'\nhosts = ['n3']",
            r"leaf\[1\].hosts\[0\]: 'n3' is in leaf\[0\] too",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_field(text, words):
    with pytest.raises(UsageError, match=words) as error:
        topology.parse(text, "t.toml")
    assert str(error.value).startswith("t.toml: ")
    assert "\n" not in str(error.value)


def test_a_nic_that_two_leaves_claim_is_in_neither_and_costs_no_run_its_verdicts():
    """A file cannot always tell it; a run that has measured for hours must not fall over it."""
    twice = "[[leaf]]\nname = 'a'\nhosts = ['node-*']\n[[leaf]]\nname = 'b'\nhosts = ['node-002']"
    found = topology.parse(twice, "t.toml")
    assert found.find("node-002", "eth0") is None
    assert found.find("node-001", "eth0").name == "a"
    (findings,) = sweeps.findings([swept(flat(5, sends_2=0.5))], found)
    assert [s.where for s in findings.suspects if s.kind == "endpoint"] == ["node-002"]
    assert any("in no leaf of the topology, or not in one alone: node-002" in note for note in findings.notes)


def test_too_long_for_a_run_to_remember():
    hosts = ", ".join(f"'host-{i}-{'x' * 100}'" for i in range(1000))
    with pytest.raises(UsageError, match="write hosts as ranges"):
        topology.parse(f"[[leaf]]\nname = 'a'\nhosts = [{hosts}]", "t.toml")


@given(st.integers(0, 500), st.integers(0, 300), st.sampled_from(["node[{}]", "a[{}]-b", "x[{}]y[1-2]"]))
def test_a_range_means_each_number_once_with_its_zeros(first, more, pattern):
    ranged = pattern.format(f"{first:04d}-{first + more:04d}")
    names = list(topology.expand(ranged))
    assert len(names) == len(set(names)) == (more + 1) * (2 if "y[" in pattern else 1)
    assert any(f"{first:04d}" in name for name in names)
    assert not any("[" in name for name in names)


@given(st.text(max_size=60))
def test_any_text_is_a_topology_or_a_usage_error(text):
    for attempt in (lambda: topology.parse(text, "t.toml"), lambda: topology.of_text(text)):
        with contextlib.suppress(UsageError):
            attempt()


@given(st.text(alphabet="n[]0123456789-,*?", max_size=20))
def test_any_pattern_expands_or_is_refused(pattern):
    try:
        names = list(topology.expand(pattern))
    except ValueError:
        return
    assert names


def test_a_report_tells_which_measured_hosts_no_leaf_has(tmp_path, capfd):
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"node0{n}", node=f"node0{n}") for n in (1, 8)}
    records = [made.record(machine_id=machine_id) for machine_id in machines]
    settings = {"topology": topology.parse(FLAT, "t.toml").text()}
    run = made.run(records, planned=[made.planned(records[0], hosts="node01,node08")], settings=settings)
    loaded, said = LoadedRun(run, machines, records, tmp_path, []), list[str]()
    words = "in no leaf of the topology: node08: which leaf they hang on is unknown, and none is blamed for them"
    assert outcome.show(loaded, Asked(), "text", said.append) == 0
    assert words in " ".join(capfd.readouterr().out.split())
    assert said == []
    assert outcome.show(loaded, Asked(), "json", said.append) == 0
    assert said == [words]
