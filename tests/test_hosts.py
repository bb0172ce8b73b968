"""Lists of hosts, as people, host files and Slurm write them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from clustergauge import hosts
from clustergauge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b.c,root@d", ["a", "b.c", "root@d"]),
        ("node[01-03,7],x", ["node01", "node02", "node03", "node7", "x"]),
        ("r[1-2]n[08-09]-ib", ["r1n08-ib", "r1n09-ib", "r2n08-ib", "r2n09-ib"]),
        ("a,a,a", ["a"]),
        (" a,b ", ["a", "b"]),
    ],
)
def test_lists_are_expanded_in_order(text, names):
    assert hosts.expand(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "a,,b", "a,", "n[1-", "n]1[", "n[[1]]", "n[]", "n[3-1]", "n[a]", "n[-1]", "-oProxyCommand=x", "a b", "a;b"),
        *("$(x)", "n[1-999999999]", "n[1-400]m[1-400]", "é", "a/b", "[1-2]@", "x" * 400),
    ],
)
def test_what_is_no_list_is_the_users_mistake(text):
    with pytest.raises(UsageError, match="hosts"):
        hosts.expand(text)


LABELS = st.from_regex(r"[a-z]{1,5}([0-9]{1,4})?(-[a-z]{1,2})?(\.[a-z]{1,3}[0-9]?)?", fullmatch=True)


@given(st.lists(LABELS, min_size=1, max_size=20, unique=True))
def test_what_is_compressed_expands_to_the_same(names):
    assert hosts.expand(hosts.compress(names)) == names


def test_ranges_are_found():
    assert hosts.compress(["n01", "n02", "n03", "n05", "m1", "m2.x", "m3.x"]) == "n[01-03,05],m1,m[2-3].x"
    assert hosts.compress(["n9", "n10"]) == "n9,n10"


def test_a_host_file_may_be_that_of_an_mpi(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# cluster\nn1 slots=4\nn2:2\n\nn[3-4]  # spare\nn1\n")
    assert hosts.read_file(file) == ["n1", "n2", "n3", "n4"]
    file.write_text("n1\n-o x\n")
    with pytest.raises(UsageError, match="line 2"):
        hosts.read_file(file)
    file.write_text("# nobody\n")
    with pytest.raises(UsageError, match="names no host"):
        hosts.read_file(file)
    with pytest.raises(UsageError, match="cannot read"):
        hosts.read_file(tmp_path / "absent")


def test_a_host_may_go_by_another_name(monkeypatch):
    monkeypatch.setenv("CLUSTERGAUGE_HOST", "elsewhere")
    assert hosts.own() == "elsewhere"
    first = hosts.scratch_folder("t")
    monkeypatch.delenv("CLUSTERGAUGE_HOST")
    assert hosts.own() != "elsewhere"
    assert hosts.scratch_folder("t") != first
