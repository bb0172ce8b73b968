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
        ("2001:db8::1,[2001:db8::2],x", ["2001:db8::1", "2001:db8::2", "x"]),
        ("2001:DB8:0::1,2001:db8::1,::1", ["2001:db8::1", "::1"]),
        ("root@fe80::1%eth0,root@[fe80::2%ib0]", ["root@fe80::1%eth0", "root@fe80::2%ib0"]),
        ("fd00::[9-11],fd00::a[1-2]", ["fd00::9", "fd00::10", "fd00::11", "fd00::a1", "fd00::a2"]),
    ],
)
def test_lists_are_expanded_in_order(text, names):
    assert hosts.expand(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "a,,b", "a,", "n[1-", "n]1[", "n[[1]]", "n[]", "n[3-1]", "n[a]", "n[-1]", "-oProxyCommand=x", "a b", "a;b"),
        *("$(x)", "n[1-999999999]", "n[1-400]m[1-400]", "é", "a/b", "[1-2]@", "x" * 400),
        *(
            "n1:22",
            "[fd00::1]:22",
            "[fd00::1",
            "fd00:::1",
            "fd00::g",
            "fd00::1%",
            "fe80::1%a;b",
            "fe80::1%-x",
            "-x@::1",
            "[n1]",
            ":",
        ),
    ],
)
def test_what_is_no_list_is_the_users_mistake(text):
    with pytest.raises(UsageError, match="hosts"):
        hosts.expand(text)


LABELS = st.from_regex(r"[a-z]{1,5}([0-9]{1,4})?(-[a-z]{1,2})?(\.[a-z]{1,3}[0-9]?)?", fullmatch=True)


@given(st.lists(LABELS, min_size=1, max_size=20, unique=True))
def test_what_is_compressed_expands_to_the_same(names):
    assert hosts.expand(hosts.compress(names)) == names


ADDRESSES = st.ip_addresses(v=6).map(str) | st.integers(1, 300).map(lambda n: f"fd00::{n}") | st.just("fe80::1%eth0")


@given(st.lists(ADDRESSES, min_size=1, max_size=20, unique=True))
def test_so_are_addresses(names):
    assert hosts.expand(hosts.compress(names)) == names
    assert all(hosts.is_name(name) for name in names)


def test_an_address_has_one_name_whoever_writes_it():
    assert hosts.expand("2001:db8:0:0::1") == hosts.expand("[2001:DB8::1]") == ["2001:db8::1"]
    assert hosts.compress(["fd00::1", "fd00::2", "fd00::3"]) == "fd00::[1-3]"
    assert not hosts.is_name("[2001:db8::1]")  # not as it is kept
    with pytest.raises(UsageError, match=r"--remote 'ssh -p 22 \{host\}'"):
        hosts.expand("[2001:db8::1]:22")


def test_ranges_are_found():
    assert hosts.compress(["n01", "n02", "n03", "n05", "m1", "m2.x", "m3.x"]) == "n[01-03,05],m1,m[2-3].x"
    assert hosts.compress(["n9", "n10"]) == "n9,n10"


def test_a_host_file_may_be_that_of_an_mpi(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# cluster\nn1 slots=4\nn2:2\n\nn[3-4]  # spare\nn1\n")
    assert hosts.read_file(file) == ["n1", "n2", "n3", "n4"]
    file.write_text("fd00::1\nfd00::2 slots=4\n[fd00::3]:2\nroot@[fd00::4]\nfd00::[5-6]:8\n")
    assert hosts.read_file(file) == ["fd00::1", "fd00::2", "fd00::3", "root@fd00::4", "fd00::5", "fd00::6"]
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


@given(st.lists(st.integers(0, 2000), unique=True, min_size=1), st.sampled_from(["n{}", "n{:04}", "r1-n{}.site"]))
def test_ordered_by_their_numbers_names_are_compressed_to_as_few_pieces_as_they_have_widths(numbers, form):
    names = [form.format(n) for n in numbers]
    listed = hosts.compress(hosts.ordered(names))
    assert set(hosts.expand(listed)) == set(names)
    assert len(hosts._split(listed)) == len({len(name) for name in names})
    assert hosts.ordered(["b2", "a10", "a9", "b1", "login"]) == ["a9", "a10", "b1", "b2", "login"]
