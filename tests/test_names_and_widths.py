"""Names, lists and lines of pages: they fit, stay different and are printable."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from reports import layout
from tests.shown import HOSTILE


def test_names_that_do_not_fit_lose_what_is_common_first_and_stay_different():
    names = [f"all_reduce/a_rather_long_backend/dtype_{t}/64MiB" for t in ("fp32", "bf16")]
    assert list(layout.squeezed(names, 30).values()) == ["all_reduce/…/dtype_fp32/64MiB", "all_reduce/…/dtype_bf16/64MiB"]
    assert list(layout.squeezed(names, 99).values()) == names
    assert layout.squeezed(["all_reduce/nccl/float8/64MiB"], 20) == {"all_reduce/nccl/float8/64MiB": "all_reduce…at8/64MiB"}


def test_half_a_number_never_stands_for_another():
    """Seen in a table: ``storage/…/8KiB/56GiB`` of a file of 256 GiB."""
    names = [f"storage/sequential/read/direct/{block}/{size}" for block in ("128KiB", "1MiB") for size in ("256GiB", "16GiB")]
    for width in range(16, 50):
        shown = layout.squeezed(names, width)
        assert len(set(shown.values())) == len(names)
        for name, short in shown.items():
            assert cell_len(short) <= width
            whole = set(re.findall(r"\d\w*", name))
            assert set(re.findall(r"\d\w*", short)) <= whole, (width, short)


def test_a_number_is_cut_where_nothing_else_tells_names_apart():
    names = [f"matmul/{n}{'1' * 30}" for n in (1, 2)]
    assert len(set(layout.squeezed(names, 16).values())) == 2


@given(st.lists(st.text(st.sampled_from("ab漢/é…"), max_size=30), max_size=6), st.integers(4, 40))
def test_squeezed_names_fit(names, width):
    assert all(cell_len(short) <= width for short in layout.squeezed(names, width).values())
    assert set(layout.squeezed(names, width)) == set(names)


@given(st.text(max_size=80), st.integers(0, 40))
def test_fitted_text_fits_and_text_that_fits_is_left_alone(text, width):
    fitted = layout.fit(text, width)
    assert cell_len(fitted) <= width
    if cell_len(text) <= width:
        assert fitted == text


@given(st.text(st.sampled_from("ab 漢字"), max_size=80), st.integers(2, 20))
def test_broken_lines_fit_and_lose_nothing(text, width):
    lines = layout.broken(text, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_the_part_that_is_cut_out_is_not_the_one_in_which_names_differ():
    names = [f"matmul/torch/{t}/{'1234' * 8}" for t in ("fp32", "bf16", "bf17")]
    assert list(layout.squeezed(names, 22).values()) == [f"matmul/…/{t}/1…341234" for t in ("fp32", "bf16", "bf17")]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_of_a_page_is_printable_whoever_wrote_it(text):
    page = layout.Page(80)
    page.add(text, (text, "red"))
    page.wrap(text, "> ")
    assert all(line.isprintable() for line in page.text().split("\n"))


def test_many_cases_are_named_in_few_words():
    cases = [("all_reduce", b, t, s) for b in ("mpi", "gloo") for t in ("fp32",) for s in ("8B", "64KiB")]
    assert layout.compact(cases) == ["all_reduce/{mpi,gloo}/fp32/{8B,64KiB}"]
    assert layout.compact([*cases[:3], ("memory", "x")]) == [
        "all_reduce/mpi/fp32/{8B,64KiB}",
        "all_reduce/gloo/fp32/8B",
        "memory/x",
    ]
    assert layout.compact([("p", str(i)) for i in range(9)]) == ["p/{0,1,…,8}"]
    assert layout.compact([]) == []


def test_names_are_whole_ids_where_values_alone_would_look_alike():
    params = {"a/x=1": {"x": 1}, "a/y=1": {"y": 1}, "a/x=2": {"x": 2}}
    assert layout.short_names(params) == {"a/x=1": "a/x=1", "a/y=1": "a/y=1", "a/x=2": "a/2"}


@given(st.lists(st.text("abc漢", min_size=1, max_size=9), max_size=9), st.integers(12, 50))
def test_lists_name_as_many_as_fit_and_count_the_rest(items, width):
    text = layout.listed(items, width)
    assert cell_len(text) <= width
    more = int(match[1]) if (match := re.search(r"… \+(\d+)$", text)) else 0
    assert len([t for t in re.sub(r"(, )?…? ?… \+\d+$", "", text).split(", ") if t]) + more == len(items)
