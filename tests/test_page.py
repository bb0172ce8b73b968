"""The HTML page: whole, safe, small, and no picture without its table."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest

from clustergauge import accept, sweeps
from clustergauge.model import Series
from reports import charts, page, web
from reports.rows import rows_of
from tests.made_up import COPY, CPU, MATMUL, TINY, finding, loaded, planned, record, verdict
from tests.pages import BROWSER, HOSTILE, draw, parsed
from tests.swept import flat, swept


def a_page(host: str = "node-017") -> str:
    machine = msgspec.structs.replace(CPU, host=host, findings=[finding("governor", "warning", host, "set it")])
    good, slow = record("matmul", MATMUL), record("all_reduce", TINY)
    sizes = [record("memory", {**COPY, "size": 1 << n}, time=1e-6 * n) for n in (12, 16, 20)]
    run = loaded(
        good, slow, *sizes, record("memory", {**COPY, "size": 7}, "error", host),
        missing=[planned(record("memory", {**COPY, "size": 5}))], machines=(machine,), notes=[host],
    )  # fmt: skip
    verdicts = [
        verdict(good, "pass", "compute", 2e12, "FLOP/s", floor=1e12),
        verdict(slow, "FAIL", "time", 1e-3, "s", limit=1e-4),
    ]
    return page.html_of(run, rows_of(run, verdicts))


def test_every_tag_is_closed_in_turn_and_every_figure_has_its_table():
    text = a_page()
    reader = parsed(text)
    tags = [tag for tag, _ in reader.seen]
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in reader.seen if tag == "th")
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for tag, attrs in reader.seen if tag == "svg")
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == 6
    assert all("<table>" in figure for figure in figures)


def test_the_bad_come_first_and_the_banner_says_how_many():
    text = a_page()
    assert "2 of 6 cases must be looked at" in text
    assert "1 of 7 planned cases have no record." in text
    assert text.index("What must be looked at") < text.index("<h2>Results") < text.index("<h2>Machines")
    assert ">≤ 100 µs<" in text


def test_what_stands_under_a_row_elsewhere_stands_in_it_and_how_long_single_operations_took():
    one = record("checkpoint", {"size": 1 << 20}, settings={"shard": "19 of 1164 tensors", "cross_check": "fio-3.33"})
    latencies = Series(unit="s", values=[1e-3] * 900 + [8e-3] * 100)
    series = {"own_s": Series(unit="s", values=[2.0, 1.0]), "peer_s": Series(unit="s", values=[1.0, 1.0]), "latency": latencies}
    one = msgspec.structs.replace(one, measurement=msgspec.structs.replace(one.measurement, series=series))
    run = loaded(one, record("memory", COPY))
    text = page.html_of(run, rows_of(run, []))
    assert ">beside<" in text
    assert ">19 of 1164 tensors; over fio-3.33: 0.75 (0.50 to 1.00 in 2 turns of each); p50 1.00 ms · p99 8.00 ms" in text
    burn = record("matmul", MATMUL, settings={"burn_in": True})
    held = msgspec.structs.replace(burn.measurement, samples_s=[1e-3] * 200 + [1.25e-3] * 200)
    run = loaded(msgspec.structs.replace(burn, measurement=held))
    assert ">sustained 80.0%: 2.00 TFLOP/s → 1.60 TFLOP/s<" in page.html_of(run, rows_of(run, []))
    only = loaded(record("memory", COPY))
    assert ">beside<" not in page.html_of(only, rows_of(only, []))


def test_what_others_wrote_is_text():
    text = a_page(HOSTILE)
    reader = parsed(text)
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in reader.seen}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in reader.seen for name in attrs)
    assert HOSTILE in "".join(reader.text)


def test_nothing_is_fetched_and_the_page_is_small():
    text = a_page()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|url\(|@import", text)
    assert len(text.encode()) < 200_000


@pytest.mark.slow
def test_a_large_run_stays_below_two_megabytes():
    records = [record("memory", {**COPY, "size": n + 1}) for n in range(2500)]
    run = loaded(*records)
    text = page.html_of(run, rows_of(run, []))
    assert len(text.encode()) < 2_000_000
    assert "500 more are left out of this page" in text


@pytest.mark.parametrize("letter", ["x", "é", "<", "漢"])
def test_a_run_whose_every_case_has_much_to_say_stays_below_two_megabytes(letter):
    """Nothing of it is lost without a word."""
    records = [record("memory", {**COPY, "size": n}, "error" if n % 3 else "skipped", letter * 2000) for n in range(1, 7000)]
    run = loaded(*records, left_out={f"node-{n}": letter * 900 for n in range(3000)})
    text = page.html_of(run, rows_of(run, []))
    parsed(text)
    assert len(text.encode()) < 2_000_000
    assert "4666 of 6999 cases must be looked at" in text
    assert "2866 more are left out of this page" in text
    assert "2133 more are left out of this page" in text
    assert "2950 more nodes were not measured" in text
    assert text.count("<table>") == 4  # what is bad, what was skipped, the machine, methods


def test_of_a_page_that_is_too_large_pictures_go_first_and_the_first_lines_never():
    figures = [web.figure(f"picture {n}", "<svg></svg>" * 40_000, web.table("t", ["a"], [["1"]])) for n in range(5)]
    text = web.document("much", [web.banner("bad", "lead", "x" * 2_000_000), web.table("kept", ["a"], [["1"]]), *figures])
    assert ["picture 0" in text, "kept" in text, "lead" in text] == [False, False, True]
    text = web.document("much", [web.banner("bad", "lead", "words"), web.table("kept", ["a"], [["1"]]), *figures])
    assert [f"picture {n}" in text for n in range(5)] == [True, True, True, True, False]
    assert "kept" in text
    assert "1 picture, table or paragraph is left out of this page: it would be too large." in text


def test_a_table_with_much_to_say_says_less_in_each_cell():
    short, long = web.table("t", ["a", "b"], [["1", "x" * 3000]]), web.table("t", ["a", "b"], [["1", "x" * 3000]] * 1000)
    assert f">{'x' * 2000}…<" in short
    assert f">{'x' * 200}…<" in long


def test_a_run_of_nothing_never_reads_as_a_pass():
    text = page.html_of(loaded(), [])
    parsed(text)
    assert "no case was measured" in text
    assert 'class="banner good"' not in text


def test_pairs_become_a_heat_map_that_keeps_unknown_apart():
    sweep = flat(4, sends_2=0.61)
    sweep[:, 0, 1] = np.nan
    run = loaded(swept(sweep))
    found = sweeps.findings(run.records)
    text = page.html_of(run, rows_of(run, [*accept.judge(run.records), *sweeps.verdicts(found)]), found)
    parsed(text)
    heat = text[text.index("<h2>Between pairs") : text.index("<h2>Distributions")]
    assert heat.count('class="cell"') == 11
    assert heat.count('class="unknown"') == 1
    assert "<td>unknown</td>" in heat
    assert "node-002 sends at 61 % of its peers" in heat


@pytest.mark.parametrize("points", [[(1.0, 1.0)], [(1.0, 2.0), (1.0, 2.0)], [(1e-9, 1e-15), (1e12, 1e15)]])
@pytest.mark.parametrize("share", [False, True])
def test_a_chart_of_any_points_lies_within_its_frame(points, share):
    points = [(x, min(y, 1.0) if share else y) for x, y in points]
    text = charts.lines("a <title>", {"a&b": points}, charts.Axes("x", "y", str, str, share), {"most": points[:1]})
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    for x, y in (p.split(",") for line in svg.iter("polyline") for p in line.attrib["points"].split()):
        assert 0 <= float(x) <= 640
        assert 0 <= float(y) <= 300
        assert math.isfinite(float(x) + float(y))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_it_and_asks_for_nothing(tmp_path):
    told, asked, picture = draw(a_page(HOSTILE), tmp_path)
    assert told == []
    assert asked == []
    assert picture.stat().st_size > 5000
