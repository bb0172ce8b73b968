"""Why many cases were skipped: one line a cause, all of the cause, and every case counted."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from reports import grouped
from reports.layout import Page, cell_len

HOPELESS = "one call would take about {}, far beyond the budget of 950 ms: a smaller shape fits"


def test_reasons_that_differ_in_their_figures_alone_are_one():
    told = [(HOPELESS.format(time), number) for number, time in enumerate(("4.08 s", "980 ms", "17.2 s"))]
    found = grouped.by_reason([*told, ("no GPU", 3), ("", 4), ("needs 8MiB of memory, 9MiB is free on cpu", 5)])
    assert found == {
        "one call would take about …, far beyond the budget of 950 ms: a smaller shape fits": [0, 1, 2],
        "no GPU": [3],
        "no reason given": [4],
        "needs 8MiB of memory, 9MiB is free on cpu": [5],
    }
    assert list(grouped.by_reason(told[:1])) == [HOPELESS.format("4.08 s")]


def test_a_short_reason_shares_the_line_and_a_long_one_is_whole_with_its_remedy():
    cases = [("matmul", "torch", dtype, "8192") for dtype in ("fp32", "fp64")]
    page = Page(80)
    grouped.draw(page, "skipped  2  ", "no GPU", cases)
    assert page.text() == "skipped  2  no GPU: matmul/torch/{fp32,fp64}/8192\n"
    page = Page(80)
    grouped.draw(page, "skipped  2  ", HOPELESS.format("…"), cases)
    assert page.text().splitlines() == [
        "skipped  2  one call would take about …, far beyond the budget of 950 ms: a",
        "            smaller shape fits",
        "            matmul/torch/{fp32,fp64}/8192",
    ]


def test_cases_that_are_not_named_are_counted_one_by_one():
    cases = [("memory", "native", "read", "256MiB"), *(("launch", "torch", b, c) for b in "ab" for c in "cd")]
    assert grouped.named(cases, 80) == "memory/native/read/256MiB, launch/torch/{a,b}/{c,d}"
    assert grouped.named(cases, 40) == "memory/native/read/256MiB, … +4"


@pytest.mark.parametrize("width", range(20, 60))
def test_no_brace_stands_alone(width):
    cases = [("attention", "triton", mode, "bf16", "64", "2x1", "70", one) for mode in ("forward", "decode") for one in "01"]
    text = grouped.named(cases, width)
    assert text.count("{") == text.count("}")
    assert cell_len(text) <= width
    assert "{" in text or text.endswith(" … +3")


@given(st.lists(st.text("0123456789.ms µ,x", max_size=12), max_size=6))
def test_nothing_is_lost(reasons):
    found = grouped.by_reason((reason, number) for number, reason in enumerate(reasons))
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(len(reasons)))
