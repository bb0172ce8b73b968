"""Every verb that reads runs, on runs that mean harm: one line and an exit code, or what they say shown as text.  No traceback.

What a reader of a folder refuses, line by line, is in `test_loading`; here is what a person or a tool behind us gets to see.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

import run_suite
from clustergauge import sums
from clustergauge.model import (
    Counters,
    Cpu,
    Finding,
    Gpu,
    Link,
    Machine,
    Measurement,
    Nic,
    Place,
    Planned,
    Record,
    Run,
    Series,
    Workload,
)
from clustergauge.probe import Case
from clustergauge.store import RunFolder
from tests.run_folders import fill
from tests.test_judgement import resummed

STARTED = "2026-11-23T06:30:00Z"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
STEER = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u202e\ufffe"
FORMULA = "=cmd|' /C calc'!A0"
LABEL = 'a"} 1\\nup{x="'
MARKUP = "</testcase>]]>|`**[x](javascript:alert(1))"
EVIL = f"{SCRIPT} {STEER} {LABEL} {MARKUP}"
HUGE = 1e24


def machine(host: str, text: str, number: float) -> Machine:
    """As hostile as a description can be and still be believed."""
    return Machine(
        machine_id="m1",
        host=host,
        os=text,
        kernel=text,
        virtual=text,
        cpu=Cpu(model=text, cores=2, threads=2, allowed="0-1", clock_max_mhz=number, llc_bytes=10**24),
        memory_bytes=10**24,
        gpus=[Gpu(index=n, name=text, uuid=f"{text}{n}", pci=text, arch=text, power_limit_w=number) for n in range(2)],
        nics=[Nic(name=text, kind="other", state=text, rate_gbit_s=number)],
        links=[Link(a=0, b=1, ancestor=text, p2p=text)],
        versions={"torch": text, "nvidia_driver": text},
        settings={"governor": text, "huge": number},
        findings=[Finding(name=text, state="warning", detail=text, remedy=text), Finding(name="b", state="unknown", detail=text)],
    )


def records_of(run_id: str, host: str, params: dict, text: str, samples: list[float], number: float) -> list[Record]:
    case = Case("matmul", "", params).id
    fields = {"run_id": run_id, "case": case, "probe": "matmul", "params": params, "machine_id": "m1", "started": STARTED}
    measured = Measurement(
        clock="wall",
        cache="none",
        samples_s=samples,
        sample_start_s=[number] * len(samples),
        arrival_skew_s=[number] * len(samples),
        loop_mean_s=samples[0],
        digest=text,
        series={text.replace("\n", " ") if text.isprintable() else "latency": Series(unit="s", values=[number, -number, 0.0])},
    )
    good = Record(
        **fields,
        status="ok",
        workload=Workload(flops=10**24, bytes_read=10**24, message_bytes=10**24, collective="all_reduce", bound="network"),
        measurement=measured,
        ranks=2,
        placement=[Place(rank=n, host=host, device="cpu:0") for n in range(2)],
        counters=Counters(
            device_bytes={"read": 10**24, "asked_read": 1},
            health={"eth0.errors": text, "n": number},
            path={"a/lo.tx_bytes": number},
        ),
        settings={"log": text, "fs_type": text, "call_overhead_s": number, "clock_error_s": -number},
        telemetry={"cpu_energy_j": number, "t_start": -number, "clock_min": 0.0, "window": text, "gpu0_throttle": text},
    )
    failed = Record(**fields, device="cpu:1", status="error", reason=text)
    return [good, failed]


def written(parent: Path, run_id: str, host: str, text: str, samples: list[float] | None = None, number: float = 1.0) -> Path:
    params = {"shape": text} if text.isprintable() and len(text) < 300 else {"shape": "1"}
    records = records_of(run_id, host, params, text, samples or [1e-3] * 12, number)
    planned = [Planned(case=r.case, probe=r.probe, module="x", params=params, device=r.device, launch=r.launch) for r in records]
    missing = Planned(case=records[0].case, probe="matmul", module="x", params=params, device="cpu:0", launch=2)
    run = Run(
        run_id=run_id,
        started=STARTED,
        command=["run_suite.py", text],
        suite=text,
        code=text,
        planned=[*planned, missing],
        settings={"launcher": text, "hosts": host, "huge": number, "seconds": number, "case_seconds": number},
        left_out={"gone": text},
    )
    with RunFolder.create(parent, run) as folder:
        folder.write_machine(machine(host, text, number))
        for record in records:
            folder.append(record)
        folder.finish(msgspec.structs.replace(run, finished=STARTED))
    return folder.path


HARMFUL = {
    "a script for a host": {"host": SCRIPT, "text": SCRIPT},
    "a formula for a host": {"host": FORMULA, "text": FORMULA},
    "the end of a label": {"host": LABEL, "text": LABEL},
    "markup": {"host": MARKUP, "text": MARKUP},
    "what steers a terminal": {"host": "h", "text": STEER},
    "everything at once": {"host": "h", "text": EVIL},
    "long words": {"host": "h" * 1000, "text": "w" * 20_000},
    "the largest numbers": {"host": "h", "text": "t", "number": HUGE},
    "the shortest times": {"host": "h", "text": "t", "samples": [1e-15] * 12},
    "the longest times": {"host": "h", "text": "t", "samples": [1e9] * 12, "number": HUGE},
    "times far apart": {"host": "h", "text": "t", "samples": [1e-15, 1e9] * 6},
    "one sample": {"host": "h", "text": "t", "samples": [1.0], "number": -HUGE},
}
REPORTS = ("text", "json", "html", "md", "csv", "junit", "prom", "pytest-benchmark")
VERBS = {
    **{f"report {form}": ("report", "A", "--format", form) for form in REPORTS},
    **{f"redacted {form}": ("report", "A", "--redact", "--format", form) for form in ("text", "html", "csv")},
    **{f"compare {form}": ("compare", "A", "B", "--format", form) for form in ("text", "md", "json")},
    **{f"compare many {form}": ("compare", "A", "B", "C", "--format", form) for form in ("text", "md", "json")},
    "compare anyway": ("compare", "A", "B", "--anyway"),
    "against a baseline": ("report", "A", "--baseline", "B"),
    **{f"fleet {form}": ("fleet", "A", "B", "C", "--format", form, "--lists", "LISTS") for form in ("text", "json")},
    "accept init": ("accept", "init", "A"),
    "verify": ("verify", "A"),
}


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


def no_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


SAMPLE = re.compile(r'([a-z_][a-z0-9_]*)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')


def check_form(form: str, text: str) -> None:
    """What the reader of the form makes of it."""
    if form == "json" or form == "pytest-benchmark":
        json.loads(text, parse_constant=no_constant)
    elif form == "html":
        tags = _Tags()
        tags.feed(text)
        assert not tags.seen & {"script", "img", "iframe", "object", "embed", "form"}
        assert not [name for name in tags.attributes if name.startswith("on")]
        assert 'href="javascript' not in text
    elif form == "csv":
        for row in csv.reader(io.StringIO(text)):
            for cell in row:
                assert not cell.startswith(("=", "+", "-", "@")) or float(cell) < 0, cell
    elif form == "junit":
        root = ET.fromstring(text)
        assert {e.tag for e in root.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "error", "skipped"}
    elif form == "prom":
        for line in text.splitlines():
            if not line.startswith("# TYPE "):
                match = SAMPLE.fullmatch(line)
                assert match, line
                float(match[3])
    elif form == "md":
        assert "<script" not in text
        assert "<img" not in text
        assert "](javascript" not in text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders that are made once; no verb writes to them."""
    known: dict[str, dict[str, str]] = {}

    def of(name: str) -> dict[str, str]:
        if name not in known:
            parent = tmp_path_factory.mktemp("runs")
            if name in HARMFUL:
                made = {letter: written(parent, f"20261123-06300{n}-aaaa", **HARMFUL[name]) for n, letter in enumerate("ABC")}
            else:
                made = {letter: fill(parent / letter, 3) for letter in "ABC"}
                SPOILED[name][0](made["A"])
            known[name] = {letter: str(path) for letter, path in made.items()}
        return known[name]

    return of


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = run_suite.main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", HARMFUL)
def test_what_others_wrote_is_shown_as_text(tmp_path, folders, capsys, name, verb):
    paths = folders(name) | {"LISTS": str(tmp_path / "lists")}
    code, out, err = run(capsys, *(paths.get(word, word) for word in VERBS[verb]))
    assert code in (0, 1, 2, 3, 4)
    assert "Traceback" not in out + err
    assert code != 2 or len(err.splitlines()) == 1, err
    for text in (out, err):
        assert all(c.isprintable() for c in text.replace("\n", "").replace("\r", "")), [c for c in text if not c.isprintable()][
            :5
        ]
    if out and code != 2:
        check_form(VERBS[verb][VERBS[verb].index("--format") + 1] if "--format" in VERBS[verb] else "text", out)
    for file in (tmp_path / "lists").glob("*.txt"):
        assert re.fullmatch(r"[\w.,\[\]-]*\n?", file.read_text())


# -- what is refused


def of_record(change):
    """A record changed as bytes, by somebody who makes all checksums fit again."""

    def spoil(path: Path) -> None:
        lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
        (path / "records.jsonl").write_bytes(b"".join([lines[0], change(lines[1]), *lines[2:]]))
        resummed(path)

    return spoil


def replaced(old: bytes, new: bytes):
    def change(line: bytes) -> bytes:
        assert old in line
        return line.replace(old, new, 1)

    return of_record(change)


def of_file(name: str, change):
    def spoil(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))
        (path / "SHA256SUMS").write_bytes(sums.text(path))

    return spoil


def linked(name: str):
    def spoil(path: Path) -> None:
        (path / name).rename(path.parent / "outside")
        (path / name).symlink_to(path.parent / "outside")

    return spoil


def forged(path: Path) -> None:
    content = (path / "records.jsonl").read_bytes()
    (path / "records.jsonl").write_bytes(content.replace(b"1.5e-7", b"1.4e-7"))


SPOILED = {
    "a sample that is no number": (replaced(b"1.5e-7", b"NaN"), "records.jsonl line 2: JSON is malformed"),
    "a sample without end": (replaced(b"1.5e-7", b"Infinity"), "records.jsonl line 2: JSON is malformed"),
    "a sample beyond all numbers": (replaced(b"1.5e-7", b"1e999"), "records.jsonl line 2: Number out of range"),
    "a sample below zero": (replaced(b"1.5e-7", b"-1.5e-7"), "records.jsonl line 2: measurement.samples_s[1] is -1.5e-07"),
    "a sample beyond belief": (replaced(b"1.5e-7", b"1e308"), "records.jsonl line 2: measurement.samples_s[1] is 1e+308"),
    "a text for a number": (replaced(b"1.5e-7", b'"1"'), "records.jsonl line 2: Expected `float`, got `str`"),
    "a time between samples beyond all sums": (
        replaced(b'"sample_start_s":[]', b'"sample_start_s":[0,1e308,1e308]'),
        "records.jsonl line 2: measurement.sample_start_s[1] is 1e+308: not a number, or beyond ±10²⁴",
    ),
    "a setting beyond all sums": (
        replaced(b'"threads":4', b'"threads":1e308'),
        "settings['threads'] is 1e+308: not a number",
    ),
    "10 MB of text": (replaced(b'"reason":""', b'"reason":"' + b"x" * 10_000_000 + b'"'), "a text of 10000000 characters"),
    "10 MB for a case": (replaced(b'"case":"spin', b'"case":"' + b"x" * 10_000_000), "records.jsonl line 2: case 'xxx"),
    "a nest": (of_record(lambda line: b"[" * 100_000 + b"\n"), "records.jsonl line 2: Expected `object`, got `array`"),
    "a nest in a field": (replaced(b'"reason":""', b'"reason":' + b"[" * 100_000 + b"]" * 100_000), "records.jsonl line 2: "),
    "a case twice": (
        replaced(b'"launch":1', b'"launch":0'),
        "records.jsonl line 2: 'spin/ns=100' on cpu:0, launch 0, is on line 1",
    ),
    "a newer record among ours": (replaced(b'"schema":"1.0"', b'"schema":"2.0"'), "records.jsonl line 2: written by a newer"),
    "an older one": (replaced(b'"schema":"1.0"', b'"schema":"0.1"'), "records.jsonl line 2: schema 0.1 is unknown"),
    "another run's": (replaced(b"-7f3c", b"-zzzz"), "records.jsonl line 2: run_id '20261123-063000-zzzz' is of another run"),
    "a checksum that is not its record's": (forged, "records.jsonl line 1: does not match its checksum"),
    "a link for the records": (linked("records.jsonl"), "records.jsonl: a symbolic link has no place in a run folder"),
    "a link for a machine": (linked("machines/m1.json"), "m1.json: a symbolic link has no place in a run folder"),
    "a host that steers": (
        of_file("machines/m1.json", lambda text: text.replace(b"node-017", b"\\u001b[2J")),
        "machines/m1.json: host '�[2J' is not a name",
    ),
    "a run that is no run": (of_file("run.json", lambda text: b"[]"), "run.json: Expected `object`, got `array`"),
    "a pipe": (lambda path: ((path / "run.json").unlink(), os.mkfifo(path / "run.json")), "run.json"),
}
READERS = {
    "report": ("report", "A"),
    "report json": ("report", "A", "--format", "json"),
    "compare": ("compare", "A", "B"),
    "compare with": ("compare", "B", "A"),
    "compare many": ("compare", "B", "C", "A"),
    "fleet": ("fleet", "A"),
    "accept init": ("accept", "init", "A"),
    "verify": ("verify", "A"),
    "resume": ("run", "--resume", "A"),
    "again": ("run", "--rerun-failed", "A"),
    "baseline": ("report", "B", "--baseline", "A"),
}


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        pytest.param(name, verb, marks=pytest.mark.slow if (i + j) % 3 else ())
        for i, name in enumerate(SPOILED)
        for j, verb in enumerate(READERS)
    ],
)
def test_what_cannot_be_believed_is_one_line_and_exit_code_2(tmp_path, folders, capsys, name, verb):
    told, paths = SPOILED[name][1], folders(name)
    code, out, err = run(capsys, *(paths.get(word, word) for word in READERS[verb]), "-o", str(tmp_path / "none"))
    said = out if verb == "verify" and not err else err
    assert code == 2, said
    assert told in said or (name == "a pipe" and "no run" in said)
    assert len(said.splitlines()) == 1 or verb == "verify"
    assert max(map(len, said.splitlines())) < 2000
    assert all(c.isprintable() for c in said.replace("\n", ""))


@pytest.mark.parametrize("name", SPOILED)
def test_of_a_fleet_the_others_are_judged_and_the_spoiled_run_is_named(tmp_path, folders, capsys, name):
    told, paths = SPOILED[name][1], folders(name)
    code, out, err = run(capsys, "fleet", *(paths[word] for word in "BAC"), "--format", "json", "-o", str(tmp_path / "none"))
    assert (code in (3, 4), err) == (True, "")
    nodes = json.loads(out)["nodes"]
    (spoiled,) = [node for node in nodes if node["run"]]
    assert (spoiled["run"], spoiled["state"]) == (str(paths["A"]), "unmeasured")
    assert any(node["machine_id"] == "m1" for node in nodes)
    assert told in spoiled["reasons"][0]["detail"]
    assert spoiled["reasons"][0]["detail"].isprintable()


def test_a_run_folder_is_not_left_by_a_link_for_its_machines(tmp_path, capsys):
    path = fill(tmp_path / "A")
    (path / "machines").rename(tmp_path / "elsewhere")
    (path / "machines").symlink_to(tmp_path / "elsewhere")
    code, _, err = run(capsys, "report", str(path))
    assert (code, "a symbolic link has no place in a run folder" in err) == (2, True)
