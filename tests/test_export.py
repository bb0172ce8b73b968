"""Exports: what other tools read of a run, read by their own readers or by strict ones written here."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from clustergauge import metrics
from clustergauge.loading import LoadedRun
from clustergauge.verdicts import Asked
from reports import export, outcome
from reports.rows import rows_of
from tests import made
from tests.made_up import COPY, CPU, MATMUL, TINY, loaded, planned, record, verdict
from tests.test_pages import of_many_nodes

HOSTILE = '</testcase><script>alert(1)</script>|"\\`]]>\x00\x1b[31m\ufffe'
SAMPLE = re.compile(r'(clustergauge_[a-z0-9_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')


def a_run(host: str = "node-017", reason: str = "no GPU") -> tuple[LoadedRun, list]:
    good, slow = record("matmul", MATMUL), record("all_reduce", TINY)
    run = loaded(
        good, slow, record("memory", COPY, "skipped", reason), record("memory", {**COPY, "size": 1024}, "error", reason),
        missing=[planned(record("memory", {**COPY, "size": 4096}))],
        machines=(msgspec.structs.replace(CPU, host=host),),
    )  # fmt: skip
    verdicts = [
        verdict(good, "pass", "compute", 2e12, "FLOP/s", floor=1e12),
        verdict(slow, "FAIL", "time", 1e-3, "s", limit=1e-4),
    ]
    return run, rows_of(run, verdicts)


def test_junit_counts_a_pass_a_failure_an_error_a_skip_and_a_case_without_a_record():
    run, rows = a_run()
    suite = ET.fromstring(export.to_junit(run, rows)).find("testsuite")
    assert suite is not None
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5", "failures": "1", "errors": "2", "skipped": "1",
    }  # fmt: skip
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["skipped"], ["error"], ["error"]]
    assert suite[4][0].get("type") == "no record"


def test_a_failure_says_what_was_asked_and_what_was_reached():
    run, rows = a_run()
    (failure,) = ET.fromstring(export.to_junit(run, rows)).iter("failure")
    assert failure.get("message") == failure.text == "time 1.00 ms, asked ≤ 100 µs (−900.0 %)"
    lines = export.to_markdown(run, rows).splitlines()
    assert "| ≤ 100 µs \\(−900.0 %\\) |" in next(line for line in lines if "**FAIL**" in line)
    assert "| ≥ 1.00 TFLOP/s \\(+100.0 %\\) |" in next(line for line in lines if line.startswith("| pass |"))


def test_what_was_asked_of_a_case_without_a_record_is_told_once():
    there, gone = record("matmul", MATMUL), record("memory", COPY)
    run = loaded(there, missing=[planned(gone)])
    rows = rows_of(run, [verdict(there, "unreferenced"), verdict(gone, "not measured", reason="the run did not get to it")])
    suite = ET.fromstring(export.to_junit(run, rows)).find("testsuite")
    assert suite is not None
    assert [(case.get("name"), len(case)) for case in suite] == [(there.case, 0), (gone.case, 1)]
    assert (suite.get("tests"), suite.get("errors")) == ("2", "1")
    assert [line["verdict"] for line in csv.DictReader(io.StringIO(export.to_csv(run, rows)))] == ["unreferenced", "not measured"]
    assert "1 of 2 planned cases have no record" in export.to_markdown(run, rows)


def test_a_failure_says_where_its_bound_is_from_and_that_it_was_measured_again():
    slow = record("all_reduce", TINY)
    failed = verdict(slow, "FAIL", "time", 1e-3, "s", limit=1e-4, source="a data sheet")
    failed = msgspec.structs.replace(failed, remark="measured again: 2.00 ms before")
    (row,) = rows_of(loaded(slow), [failed])
    asked = "time 1.00 ms, asked ≤ 100 µs (−900.0 %)"
    assert export.told_of(row) == f"{asked}; measured again: 2.00 ms before; source: a data sheet"


@pytest.mark.parametrize("form", export.WRITERS)
def test_hostile_text_stays_text(form):
    run, rows = a_run("node", HOSTILE)
    text = export.WRITERS[form](run, rows)
    assert not set("\x00\x1b") & set(text)
    if form == "junit":
        root = ET.fromstring(text)
        assert not list(root.iter("script"))
        assert len(list(root.iter("testcase"))) == 5
    if form == "md":
        assert "<script>" not in text
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}


def test_what_xml_cannot_carry_is_replaced_in_names_too():
    run, rows = a_run(HOSTILE)
    case = next(ET.fromstring(export.to_junit(run, rows)).iter("testcase"))
    assert "�[31m�" in case.attrib["classname"]


@pytest.mark.parametrize("lead", ["=", "+", "-", "@", " =", "\t=", "＝"])
def test_a_spreadsheet_computes_nothing(lead):
    run, rows = a_run(f"{lead}HYPERLINK(1)", f"{lead}cmd")
    read = list(csv.reader(io.StringIO(export.to_csv(run, rows))))
    assert {len(line) for line in read} == {len(export.COLUMNS)}
    assert tuple(read[0]) == export.COLUMNS
    for line in read[1:-1]:
        assert line[2].startswith("'")
    assert read[3][-2].startswith("'")


def test_the_csv_holds_bare_numbers():
    run, rows = a_run()
    line = dict(zip(export.COLUMNS, list(csv.reader(io.StringIO(export.to_csv(run, rows))))[1], strict=True))
    assert (line["verdict"], line["metric"], float(line["value"]), line["unit"]) == ("pass", "compute", 2e12, "FLOP/s")
    assert float(line["bound"]) == 1e12


def test_prometheus_lines_are_well_formed_families_together_and_no_series_twice():
    run, rows = a_run('no"de\\\n1')
    lines = export.to_prometheus(run, rows).splitlines()
    family, seen, series = "", set(), set()
    for line in lines:
        if line.startswith("# TYPE "):
            family = line.split()[2]
            assert family not in seen
            seen.add(family)
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert match[1] == family
        assert (match[1], match[2]) not in series
        series.add((match[1], match[2]))
        assert float(match[3]) == float(match[3])
    assert "clustergauge_compute_flop_per_second" in seen
    assert f'clustergauge_planned_without_record{{run="{run.run.run_id}"}} 1' in lines
    assert any(r"no\"de\\\n1" in line for line in lines)


def test_pytest_benchmark_compares_the_export(tmp_path):
    pytest.importorskip("pytest_benchmark")
    run, rows = a_run()
    text = export.to_pytest_benchmark(run, rows)
    stats = json.loads(text)["benchmarks"][0]["stats"]
    assert stats["rounds"] == 40
    assert stats["median"] == pytest.approx(1e-3, rel=1e-3)
    assert stats["q1"] <= stats["median"] <= stats["q3"]
    assert stats["ops"] == 1 / stats["mean"]
    for name in ("0001_a.json", "0002_b.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *map(str, sorted(tmp_path.glob("*.json")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{run.records[0].case} [") == 2


def test_a_number_that_cannot_be_true_is_no_series_and_no_benchmark():
    good, lie = record("matmul", MATMUL), record("memory", COPY)
    run = loaded(good, lie)
    rows = rows_of(run, [verdict(lie, "invalid", "", 0.0, "", reason="cached")])
    lines = export.to_prometheus(run, rows).splitlines()
    of_lie = [line for line in lines if f'case="{lie.case}"' in line]
    assert [line.partition("{")[0] for line in of_lie] == ["clustergauge_case"]
    assert 'verdict="invalid"' in of_lie[0]
    assert [b["group"] for b in json.loads(export.to_pytest_benchmark(run, rows))["benchmarks"]] == [good.case]
    line = list(csv.reader(io.StringIO(export.to_csv(run, rows))))[2]
    assert line[export.COLUMNS.index("verdict")] == "invalid"


@pytest.mark.parametrize("form", ["junit", "csv", "md", "prom"])
def test_nodes_that_the_exit_code_counts_are_told_to_programs_too(form, capsysbinary):
    """All cases are well: a node is slow, another was not reached."""
    assert outcome.show(of_many_nodes(), Asked(), form, lambda _: None) == 4
    text = capsysbinary.readouterr().out.decode()
    if form == "junit":
        suite = ET.fromstring(text).find("testsuite")
        assert suite is not None
        told = {(case.get("classname"), case.get("name")): case[0].get("type") for case in suite if len(case)}
        assert told == {("node-05", "nodes"): "inconclusive", ("node-99", "nodes"): "not measured"}
        assert suite.get("errors") == "2"
    if form == "csv":
        lines = [dict(zip(export.COLUMNS, line, strict=True)) for line in csv.reader(io.StringIO(text))][1:]
        told = [(line["case"], line["host"], line["verdict"]) for line in lines if line["verdict"] != "unreferenced"]
        assert told == [("nodes", "node-05", "inconclusive"), ("nodes", "node-99", "not measured")]
        assert "no route to host" in lines[-1]["reason"]
    if form == "md":
        assert "| **inconclusive** | nodes | node-05 |" in text
    if form == "prom":
        assert text.count('clustergauge_case{case="nodes"') == 2


@pytest.mark.parametrize("form", ["junit", "csv", "md", "prom"])
def test_gpus_that_nobody_measured_are_told_to_programs_too(form, capsysbinary):
    done = made.record()
    run = made.run([done], planned=[made.planned(done, instead="no driver")])
    run = LoadedRun(run, {"m1": made.machine(1)}, [done], Path("/x"), [])
    assert outcome.show(run, Asked(), form, lambda _: None) == 4
    text = capsysbinary.readouterr().out.decode()
    if form == "junit":
        suite = ET.fromstring(text).find("testsuite")
        assert suite is not None
        told = {(case.get("classname"), case.get("name")): case[0].get("type") for case in suite if len(case)}
        assert told == {("run", "run"): "not measured"}
    if form == "prom":
        assert text.count('clustergauge_case{case="run"') == 1
    else:
        assert "a GPU is here and not measured: no driver" in text


def test_every_unit_has_a_suffix_in_prometheus():
    assert {unit for units in metrics.UNITS.values() for unit in units} == export._SUFFIX.keys()


def test_what_one_node_of_several_owes_is_told_with_its_name():
    """Others measured the case: it is no less missing."""
    done = record("matmul", MATMUL)
    machine = msgspec.structs.replace(CPU, node="n1")
    run = loaded(done, machines=(machine,))
    owed = msgspec.structs.replace(run.run.planned[0], hosts="n[1-3]")
    run = type(run)(msgspec.structs.replace(run.run, planned=[owed]), run.machines, run.records, run.path, [])
    assert [p.hosts for p in export.unanswered(run)] == ["n2", "n3"]
    rows = rows_of(run, [])
    suite = ET.fromstring(export.to_junit(run, rows)).find("testsuite")
    assert suite is not None
    assert [case.get("classname") for case in suite[1:]] == ["n2 cpu:0", "n3 cpu:0"]
    assert [line[2] for line in csv.reader(io.StringIO(export.to_csv(run, rows)))][2:] == ["n2", "n3"]
    assert "**2 of 3 planned cases have no record.**" in export.to_markdown(run, rows)
    over_all = msgspec.structs.replace(owed, nodes=3)
    run = type(run)(msgspec.structs.replace(run.run, planned=[over_all]), run.machines, run.records, run.path, [])
    assert export.unanswered(run) == []


JUNIT = {
    "testsuites": (set(), {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "timestamp"}, {"testcase"}),
    "testcase": ({"classname", "name", "time"}, {"failure", "error", "skipped"}),
    "failure": ({"message", "type"}, set()),
    "error": ({"message", "type"}, set()),
    "skipped": ({"message"}, set()),
}
"""The part of the schema that readers share (Jenkins, GitLab, GitHub): attributes that must be there, and what may lie inside."""


@pytest.mark.parametrize("host", ["node-017", HOSTILE.replace("\x00", "")])
def test_junit_keeps_to_the_schema_its_readers_share(host):
    run, rows = a_run(host, HOSTILE)
    root = ET.fromstring(export.to_junit(run, rows))
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, inside = JUNIT[element.tag]
        assert set(element.keys()) == attributes
        assert {child.tag for child in element} <= inside
        assert element.tag != "testcase" or (len(element) <= 1 and float(element.get("time", "x")) >= 0)
    (suite,) = root
    assert int(suite.get("tests", "")) == len(suite)
    for kind, counted in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.get(counted, "")) == len(list(suite.iter(kind)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", ""))


def test_markdown_is_one_table_of_as_many_cells_in_every_line():
    """As GitHub reads it: a delimiter row under the header, and cells split at bars that no backslash hides."""
    run, rows = a_run(HOSTILE.replace("\n", ""), HOSTILE)
    lines = export.to_markdown(run, rows).splitlines()
    (start,) = [n for n, line in enumerate(lines) if re.fullmatch(r"\|(?:-+:?\|)+", line)]
    table = lines[start - 1 : start + 1 + len(rows)]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table} == {lines[start].count("|") + 1}
    assert not any(line.startswith("|") for line in lines[start + 1 + len(rows) :])
