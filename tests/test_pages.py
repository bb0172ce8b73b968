"""The pages of a comparison and of a fleet, and the pictures that pages are made of."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from clustergauge import alike, blame, compare, gauged, reduce
from clustergauge.selftest import Known, Selftest
from reports import charts, comparison, comparison_page, fleet_page, page, side_by_side
from reports.rows import rows_of
from tests import made
from tests.made_up import COPY, CPU, MATMUL, loaded, record, verdict
from tests.pages import BROWSER, HOSTILE, cut_on_paper, draw, is_safe, parsed
from tests.test_blame import judge, node
from tests.test_compare import launches, loaded as compared


def a_comparison() -> str:
    a = [*launches(1.0), *launches(1.0, shape=HOSTILE)]
    b = [*launches(1.05, seed=1), *launches(1.0, seed=2, shape=HOSTILE), *launches(1.0, shape="gone")]
    return comparison_page.html_of(compare.compare(compared(a, run_id="a"), compared(b, run_id="b")))


def a_fleet(count: int = 10, host: str = "node-05") -> str:
    evil = made.machine(machine_id="m05", host=host)
    runs = [node(n, 1.25, machine=evil) if n == 5 else node(n) for n in range(count)]
    part = reduce.joined([reduce.part_of(run) for run in runs])
    return fleet_page.html_of(blame.judge(part, missing=["node-99"]), part)


def test_a_comparison_names_what_got_slower_first_and_draws_its_interval():
    text = a_comparison()
    is_safe(text)
    assert "1 of 2 cases got slower or broke" in text
    assert text.index("What changed, broke") < text.index("<h2>The same") < text.index("<h2>Not compared")
    assert text.count('<g class="bad"><path class="span"') == 1
    assert text.count('<g class="plain"><path class="span"') == 1
    assert "only in B" in text


def test_nothing_compared_is_no_success():
    text = comparison_page.html_of(compare.compare(compared(launches(1.0)), compared(launches(1.0, shape="8"))))
    is_safe(text)
    assert 'class="banner doubt"' in text
    assert "Nothing to compare" in text


def test_many_runs_are_columns():
    runs = [compared(launches(t), run_id=name) for t, name in ((1.0, "a"), (2.0, "b"), (4.0, HOSTILE))]
    text = comparison_page.html_of_many(side_by_side.table_of(runs))
    is_safe(text)
    assert text.count("(best)") == 1
    assert "(50 %)" in text
    assert "(25 %)" in text
    assert HOSTILE in parsed(text).text


def test_of_many_columns_as_many_stand_in_a_table_as_a_sheet_holds():
    runs = [compared(launches(1 + n / 10), run_id=f"r{n}") for n in range(14)]
    text = comparison_page.html_of_many(side_by_side.table_of(runs))
    is_safe(text)
    heads = [re.findall(r'<th scope="col">([A-Z])</th>', table) for table in text.split("<table>")]
    assert [len(head) for head in heads if head] == [6, 6, 2]
    assert [label for head in heads for label in head] == list("ABCDEFGHIJKLMN")
    assert text.count("(best)") == 1
    assert text.count("FLOP/s") == 14


def test_comparisons_are_printed_as_pages(capsysbinary):
    report = compare.compare(compared(launches(1.0), run_id="a"), compared(launches(1.0, seed=1), run_id="b"))
    comparison.show(report, "html")
    assert b"Nothing got slower" in capsysbinary.readouterr().out
    side_by_side.show([compared(launches(1.0))] * 3, "html")
    assert b"3 runs side by side" in capsysbinary.readouterr().out


def test_a_fleet_points_out_the_slow_one_among_its_peers():
    text = a_fleet(host=HOSTILE)
    is_safe(text)
    assert "not all are known to be good" in text
    strip = text[text.index("<h2>Where devices lie") : text.index("<h2>What each case")]
    assert strip.count('<g class="doubt"><circle class="dot"') == 1
    assert 0 < strip.count('<circle class="many"') <= 9
    assert "80 %</td>" in strip
    assert "the other 9" in strip
    assert HOSTILE + " cpu:0" in parsed(text).text


def of_many_nodes(host: str = "node-05", slow: float = 1.25):
    """One run over ten nodes, of which one is slow and an eleventh could not be had."""
    runs = [node(n, machine=made.machine(machine_id="m05", host=host), time=slow) if n == 5 else node(n) for n in range(10)]
    records = [record for run in runs for record in run.records]
    machines = {name: machine for run in runs for name, machine in run.machines.items()}
    whole = made.run(records[:1], planned=[], left_out={"node-99": "no route to host"})
    return type(runs[0])(whole, machines, records, runs[0].path, [])


def test_the_page_of_a_run_over_nodes_holds_them_against_each_other():
    run = of_many_nodes(HOSTILE)
    text = page.html_of(run, rows_of(run, []), fleet=blame.of_run(run))
    is_safe(text)
    fleet = text[text.index("<h2>Nodes against each other") : text.index("<h2>Results")]
    told = parsed(text).text
    assert "No node is known to be bad, but not all are known to be good: 1 suspect · 1 unmeasured · 9 good." in told
    assert f"{HOSTILE} cpu:0" in told
    assert any(words.startswith("slow at 80% of its peers") for words in told)
    assert any("no route to host" in words for words in told)
    assert "node-[00-04,06-09]" in told
    assert fleet.count('<g class="doubt"><circle class="dot"') == 1
    assert "Nothing was held against a criterion; nodes: 1 suspect, 1 unmeasured" in told


def test_only_the_device_that_is_slow_is_pointed_out():
    records = [made.record(samples=[1.1 if (n, d) == (5, 1) else 1.0] * 20, machine_id=f"m{n}", device=f"cuda:{d}")
               for n in range(8) for d in (0, 1)]  # fmt: skip
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"n{n}", gpus=2) for n in range(8)}
    run = type(of_many_nodes())(made.run(records[:1], planned=[]), machines, records, Path("/x"), [])
    text = page.html_of(run, rows_of(run, []), fleet=blame.of_run(run))
    assert text.count('<g class="doubt"><circle class="dot"') == 1
    assert "n5 cuda:1" in parsed(text).text


def test_the_page_of_a_run_on_one_machine_says_nothing_of_others():
    run = node(1)
    assert "against each other" not in page.html_of(run, rows_of(run, []), fleet=blame.of_run(run))


def test_shares_are_of_what_is_usual_in_the_class():
    part = reduce.joined([reduce.part_of(node(n, 1.25 if n == 5 else 1.0)) for n in range(10)])
    fleet = blame.judge(part)
    (shares,) = alike.shares(part, fleet.cases)
    assert len(shares) == 10
    assert {s.machine_id: s.value for s in shares}["m05"] == pytest.approx(0.8, abs=0.001)
    assert sorted(s.value for s in shares)[1] == pytest.approx(1.0, abs=0.001)


def test_of_a_node_that_is_slow_in_many_cases_the_page_says_in_how_many():
    runs = [node(n, 1.25 if n == 5 else 1.0, shape=str(shape)) for n in range(10) for shape in range(8)]
    text = fleet_page.html_of(judge(*runs))
    assert "and 3 more</td>" in text


def test_a_fleet_of_thousands_stays_small():
    part = reduce.joined([reduce.part_of(node(n, 1 + 0.001 * (n % 50))) for n in range(2000)])
    text = fleet_page.html_of(blame.judge(part), part)
    is_safe(text)
    assert len(text.encode()) < 400_000


def test_the_roof_is_the_data_sheets_or_what_was_measured_and_says_which():
    product = record("matmul", MATMUL, settings={"compulsory_bytes": 12_000_000})
    other = record("matmul", {**MATMUL, "shape": "9"}, settings={"compulsory_bytes": 24_000_000}, time=1.25e-3)
    copy = msgspec.structs.replace(record("memory", COPY), measurement=msgspec.structs.replace(
        record("memory", COPY).measurement, cache="cold"))  # fmt: skip
    run = loaded(product, other, copy)
    text = page.html_of(run, rows_of(run, []))
    is_safe(text)
    roof = text[text.index("<h2>Against the roof") : text.index("<h2>Distributions")]
    assert "slope: memory, the best measured here, 537 GB/s" in roof
    assert "fp32: the best measured here, 2.00 TFLOP/s" in roof
    assert "<td>167</td><td>2.00 TFLOP/s</td>" in roof  # 2 GFLOP over 12 MB
    assert roof.count("<circle") == 2
    run = loaded(product, copy)
    assert "Against the roof" not in page.html_of(run, rows_of(run, []))  # one point has no shape


def test_what_counts_no_bytes_has_no_roof():
    run = loaded(record("matmul", MATMUL), record("memory", COPY))
    assert "Against the roof" not in page.html_of(run, rows_of(run, []))


def test_what_differs_from_the_baseline_is_told():
    run, other = loaded(record("matmul", MATMUL)), msgspec.structs.replace(CPU, kernel="6.1", versions={"torch": "2.12.0"})
    same = page.html_of(run, rows_of(run, []), before=compare.before(run, run))
    assert "settings and code are as they were in" in same
    then = loaded(record("matmul", MATMUL), machines=(other,))
    text = page.html_of(run, rows_of(run, []), before=compare.before(then, run))
    is_safe(text)
    differs = text[text.index("<h2>What differs from the baseline") : text.index("<h2>Distributions")]
    assert '<td>library</td><td>2.12.0</td><td>2.13.0</td><td class="word">no</td>' in differs
    assert "<td>driver</td><td>6.1</td><td>–</td>" in differs


def test_of_machines_that_were_not_in_the_baseline_nothing_is_called_equal():
    here = tuple(msgspec.structs.replace(CPU, machine_id=f"m{n}", host=f"h{n}") for n in (1, 2))
    there = tuple(msgspec.structs.replace(CPU, machine_id=f"g{n}", host=f"g{n}") for n in (1, 2))
    run, golden = (
        loaded(record("matmul", MATMUL), machines=here),
        loaded(record("matmul", MATMUL, machine_id="g1"), machines=there),
    )
    text = page.html_of(run, rows_of(run, []), before=compare.before(golden, run))
    assert "as they were in" not in text
    assert f"None of the machines here was in {golden.run.run_id}" in text


def invalid_and_valid():
    """Reads of three sizes that a cache answered, and of three that the device did."""
    rows = []
    for path, word, rate in (("cached", "invalid", 9e-6), ("honest", "pass", 1e-3)):
        for size in (1 << 20, 1 << 24, 1 << 28):
            copy = record("memory", {**COPY, "op": path, "size": size}, time=rate)
            cold = msgspec.structs.replace(copy.measurement, cache="cold")
            rows.append((msgspec.structs.replace(copy, measurement=cold), word))
    run = loaded(*(r for r, _ in rows))
    verdicts = [verdict(r, word, "bandwidth", 1e9, "B/s", floor=1.0) for r, word in rows]
    return run, rows_of(run, verdicts)


def test_what_cannot_be_true_is_in_the_table_with_that_word_and_in_no_picture():
    run, rows = invalid_and_valid()
    text = page.html_of(run, rows)
    is_safe(text)
    pictures = text[text.index("<h2>By size") : text.index("<h2>Distributions")]
    assert "honest" in pictures
    assert "cached" not in pictures
    assert text.count('<td class="word">invalid</td>') == 3


@pytest.mark.parametrize(("code", "style"), [(0, "good"), (4, "doubt"), (1, "bad"), (3, "bad")])
def test_no_banner_looks_better_than_the_exit_code(code, style):
    good = record("matmul", MATMUL)
    run = loaded(good)
    rows = rows_of(run, [verdict(good, "pass", "compute", 2e12, "FLOP/s", floor=1e12)])
    text = page.html_of(run, rows, code=code)
    assert f'class="banner {style}"' in text
    assert ("All that was asked is met" in text) == (code == 0)
    assert ("not all is known to be good" in text) == (code == 4)


def test_the_figures_of_the_selftest_are_kept_by_machine_and_shown(tmp_path):
    run = loaded(record("matmul", MATMUL))
    assert "The gauge was not tested" in page.html_of(run, rows_of(run, []))
    known = [
        Known(1e-3, 1.002e-3, 1e-3, 2e-3, ("pass", "FAIL"), 1e-3, 0),
        Known(0.1, 0.099, None, -0.01, ("pass", "pass"), 0.1, 0),
    ]
    good = Selftest(known=known, overhead_s=4e-8, tick_s=1e-9, smallest_change=0.012)
    gauged.keep(gauged.of(good, "m1", "c0de", "2026-03-01T10:15:00Z"), tmp_path)
    (kept,) = gauged.find(tmp_path, ["m1", "m2", "../m1"])
    assert (kept.bias, kept.problems) == (-0.01, [])
    text = page.html_of(run, rows_of(run, []), gauges=[kept])
    is_safe(text)
    cells = "<td>\N{MINUS SIGN}1.0 %</td><td>40.0 ns</td><td>1.00 ns</td><td>1.2 %</td><td>2026-03-01T10:15:00Z</td>"
    assert cells in text
    gauged.keep(gauged.of(Selftest(problems=[HOSTILE]), "m1", "other", "2026-03-02T10:15:00Z"), tmp_path)
    text = page.html_of(run, rows_of(run, []), gauges=gauged.find(tmp_path, ["m1"]))
    is_safe(text)
    assert HOSTILE in parsed(text).text
    assert "by other code than measured this run" in text


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"machine_id": "m2"}', b"\xff"])
def test_what_is_no_selftest_is_as_if_it_were_not_there(content, tmp_path):
    (tmp_path / "selftests").mkdir()
    (tmp_path / "selftests/m1.json").write_bytes(content)
    (tmp_path / "selftests/m2.json").symlink_to("/etc/passwd")
    assert gauged.find(tmp_path, ["m1", "m2"]) == []


@pytest.mark.parametrize("ends", [(0.0, 0.0), (-0.02, 0.05), (-3.0, 1e6), (1e-9, 2e-9)])
def test_rows_lie_within_their_frame(ends):
    text = charts.intervals("t", [charts.Bar("a", ends[0], sum(ends) / 2, ends[1])] * 3, "shift", str)
    text += charts.strips("t", [charts.Strip("a", ends, {"x": (ends[0], "bad")})], "of peers", str)
    for x in re.findall(r'cx="([-\d.e]+)"', text):
        assert 200 <= float(x) <= 610


LONG = [f"attention/backend=torch/causal=True/dtype=bf16/heads=32/kv_heads=8/seq={n}" for n in (4096, 8192)]


def labels(text: str) -> list[tuple[str, str, str]]:
    """Of each name of a row in a picture: where it is anchored, what is shown, and its title."""
    return re.findall(r'text-anchor="(end|start)">([^<]+)<title>([^<]+)</title>', text)


def test_short_names_stand_beside_their_rows_and_long_ones_above_them_whole():
    bars = [charts.Bar(name, 0.0, 0.1, 0.2) for name in ("matmul/1024", "copy")]
    assert labels(charts.intervals("t", bars, "shift", str)) == [("end", b.name, b.name) for b in bars]
    rows = [charts.Strip(name, [0.9, 1.0], {}) for name in ("copy", *LONG)]
    assert labels(charts.strips("t", rows, "of peers", str)) == [("start", r.name, r.name) for r in rows]


def test_names_that_are_longer_than_a_picture_lose_what_they_share_and_the_table_has_them_whole():
    rows = [charts.Strip(f"{name}/{'x' * 60}=1/last=2", [0.9, 1.0], {}) for name in LONG]
    text = charts.strips("t", rows, "of peers", str)
    shown = labels(text)
    assert [whole for _, _, whole in shown] == [r.name for r in rows]
    assert all(short.startswith("attention/") and short.endswith("last=2") and len(short) <= 84 for _, short, _ in shown)
    assert ["seq=4096" in shown[0][1], "seq=8192" in shown[1][1]] == [True, True]
    assert all(f">{r.name}</th>" in text for r in rows)


def test_a_row_says_its_state_in_a_word_which_has_the_colour_too():
    text = a_fleet()
    assert '<tr class="doubt"><th scope="row">node-05</th><td class="word">suspect</td>' in text
    assert '<tr class="doubt"><th scope="row">node-99</th><td class="word">unmeasured</td>' in text
    assert '<td class="word">slower</td>' in a_comparison()


def test_where_there_is_no_interval_the_cell_says_why():
    few, alike = record("matmul", MATMUL), record("memory", COPY)
    few = msgspec.structs.replace(few, measurement=msgspec.structs.replace(few.measurement, samples_s=[1e-3, 1.1e-3, 1.2e-3]))
    slope = [1e-3 * (1 + 0.01 * n) for n in range(12)]
    alike = msgspec.structs.replace(alike, measurement=msgspec.structs.replace(alike.measurement, samples_s=slope))
    run = loaded(few, alike, record("matmul", {**MATMUL, "shape": "2"}))
    text = page.html_of(run, rows_of(run, []))
    assert ">none: 3 samples are too few for an interval</td>" in text
    assert ">none: each sample resembles the one before (ρ = " in text
    assert text.count("none: ") == 2


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("made", [a_comparison, a_fleet], ids=["comparison", "fleet"])
def test_a_browser_draws_it_and_asks_for_nothing(made, tmp_path):
    told, asked, picture = draw(made(), tmp_path)
    assert told == []
    assert asked == []
    assert picture.stat().st_size > 5000


def many_columns() -> str:
    runs = [compared(launches(1 + n / 10), run_id=f"run-20261130-2200{n:02}-abcd") for n in range(8)]
    return comparison_page.html_of_many(side_by_side.table_of(runs))


def accepted() -> str:
    """The widest table that a run has: what was asked, its source, and why it is in doubt."""
    case = record("matmul", MATMUL)
    verdicts = [verdict(case, "inconclusive", "compute", 2e12, "FLOP/s", floor=1.9e12, source="run 20261130-220819-jn6i, " * 3)]
    verdicts = [msgspec.structs.replace(v, reason="the bound lies inside the interval: 3.06 GB/s … 7.46 GB/s") for v in verdicts]
    run = loaded(case, machines=(CPU,))
    return page.html_of(run, rows_of(run, verdicts))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("made", [a_comparison, a_fleet, accepted, many_columns])
def test_on_paper_no_table_is_cut(made, tmp_path):
    assert cut_on_paper(made(), tmp_path) == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_page_that_asks_or_complains_would_be_seen(tmp_path):
    told, asked, _ = draw('<img src="http://127.0.0.1:9/x"><script>console.log("hello")</script>', tmp_path)
    assert any("hello" in line for line in told)
    assert asked == ["http://127.0.0.1:9/x"]
