"""What is said of a fleet, and the lists for scripts: exact text, hostile names, the command line on real folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clustergauge import folder
from clustergauge.errors import UsageError
from reports import fleet as report
from tests import made, run_folders
from tests.test_blame import judge, node

ROOT = Path(__file__).parent.parent


def a_fleet():
    return judge(*(node(n, 1.25 if n == 5 else 1.0) for n in range(10)), missing=["node-99"])


def test_the_page_ends_with_the_worst():
    text = report.page_of(a_fleet(), 100).text()
    assert text == (
        "11 nodes · 1 cases\n"
        "\n"
        "case    devices  median  slowest over fastest  loss it would show\n"
        "matmul       10  1.00 s                  25 %               3.3 %\n"
        "\n"
        "unmeasured node-99\n"
        "  unmeasured: it was never reached\n"
        "suspect    node-05\n"
        "  slow at 80% of its peers on cpu:0 in matmul, not confirmed\n"
        "\n"
        "9 good · 1 suspect · 1 unmeasured\n"
    )


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_page(width):
    long = made.machine(machine_id="m50", host="h" * 300)
    fleet = judge(
        *(node(n) for n in range(9)), node(50, 1.4, machine=long, shape="x" * 200), *(node(n, shape="x" * 200) for n in range(8))
    )
    assert max(map(len, report.page_of(fleet, width).text().splitlines())) <= width


def test_the_lists_are_compressed_and_hold_only_names_of_hosts(tmp_path):
    evil = made.machine(machine_id="m66", host="$(reboot) x")
    fleet = judge(
        *(node(n, 1.3 if n in (3, 4, 5) else 1.0) for n in range(20)), node(66, 1.3, machine=evil), missing=["node-98", "node-99"]
    )
    report.write_lists(fleet, tmp_path / "lists")
    assert (tmp_path / "lists" / "suspect.txt").read_text() == "node-[03-05]\n"
    assert (tmp_path / "lists" / "unmeasured.txt").read_text() == "node-[98-99]\n"
    assert (tmp_path / "lists" / "bad.txt").read_text() == ""
    nodes = json.loads((tmp_path / "lists" / "nodes.json").read_text())["nodes"]
    assert len(nodes) == 23
    assert {n["state"] for n in nodes if n["host"] == "$(reboot) x"} == {"suspect"}


def test_json_is_one_document(capsysbinary):
    report.show(a_fleet(), "json")
    document = msgspec.json.decode(capsysbinary.readouterr().out)
    assert [n["state"] for n in document["nodes"]].count("good") == 9


def test_the_command_reads_a_folder_of_runs(tmp_path):
    for number in range(3):
        run = msgspec.structs.replace(run_folders.a_run(), run_id=f"20261123-06300{number}-7f3c")
        path = tmp_path / "runs"
        with folder_of(path, run, number):
            pass
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run_suite.py"),
            "fleet",
            str(tmp_path / "runs"),
            "--expect",
            "node-0[0-3]",
            "--lists",
            str(tmp_path / "l"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 4, done
    assert "3 good · 1 unmeasured" in done.stdout
    assert (tmp_path / "l" / "unmeasured.txt").read_text() == "node-03\n"


def folder_of(parent: Path, run, number: int):
    from clustergauge.store import RunFolder

    made_folder = RunFolder.create(parent, msgspec.structs.replace(run, planned=run.planned[:1]))
    made_folder.write_machine(run_folders.a_machine(machine_id=f"m{number}", host=f"node-0{number}"))
    made_folder.append(run_folders.a_record(run_id=run.run_id, machine_id=f"m{number}"))
    return made_folder


def test_a_folder_without_runs_is_no_fleet(tmp_path):
    with pytest.raises(UsageError, match="no run"):
        folder.find_runs("nothing", tmp_path)
    assert folder.find_runs(str(tmp_path), tmp_path) == [tmp_path]  # to be refused by whoever reads it
