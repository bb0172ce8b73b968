"""Topology files: ranges and globs of hosts, NICs of rails, and mistakes named with file and field."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from clustergauge import sweeps, topology
from clustergauge.errors import UsageError
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
