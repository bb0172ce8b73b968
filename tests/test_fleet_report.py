"""What is said of a fleet, and the lists for scripts: exact text, hostile names, the command line on real folders."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from clustergauge import folder, hosts, reduce, topology
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from clustergauge.store import load
from reports import fleet as report
from tests import made, run_folders
from tests.command_line import called
from tests.test_blame import judge, node
from tests.test_presence import kept


def a_fleet():
    return judge(*(node(n, 1.25 if n == 5 else 1.0) for n in range(10)), missing=["node-99"])


def test_the_page_ends_with_the_worst():
    text = report.page_of(a_fleet(), 100).text()
    assert text == (
        "11 nodes · 1 case compared\n"
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


def test_names_without_leading_zeros_are_listed_by_their_numbers():
    fleet = judge(node(0), missing=[f"n{number}" for number in (1, 2, 10, 9, 11, 100)])
    assert report.lists_of(fleet)[folder.UNMEASURED] == b"n[1-2,9],n[10-11],n100\n"


ROWS = "h[10-17],h[20-27],h[30-37],h[40-47]"


def in_racks(run_id: str, racks: str = "r{}"):
    """A run over 32 nodes in four racks, of which the second is slow as a whole; it remembers where they stand."""
    leaves = [topology.Leaf(name=f"l{n}", rack=racks.format(n), hosts=[f"h[{n}0-{n}7]"]) for n in range(1, 5)]
    machines = {f"m-{host}": made.machine(machine_id=f"m-{host}", host=host, node=host) for host in hosts.expand(ROWS)}
    records = [
        made.record(run_id=run_id, machine_id=name, samples=[(1.2 if name.startswith("m-h2") else 1.0) * (1 + 1e-4 * n)] * 20)
        for n, name in enumerate(machines)
    ]
    settings = {"topology": topology.Topology(leaf=leaves).text()}
    run = made.run(records, run_id=run_id, planned=[made.planned(records[0], hosts=ROWS)], settings=settings)
    return LoadedRun(run, machines, records, Path("/x"), [])


def test_a_fleet_of_one_run_is_judged_in_its_own_racks(tmp_path):
    """As its report judges it: without them all nodes of the slow one would be suspects."""
    kept(tmp_path, in_racks("one"))
    done = called("fleet", str(tmp_path), cwd=tmp_path)
    assert "rack slow: rack r2: matmul at 83% of the others (8 devices)" in done.stdout
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (4, "32 good", "")
    assert called("report", str(tmp_path / "one"), cwd=tmp_path).stdout.endswith(done.stdout.partition("\n")[2])
    kept(tmp_path, in_racks("two", "other-{}"))
    done = called("fleet", str(tmp_path), cwd=tmp_path)
    assert "rack slow" not in done.stdout
    assert "the runs remember several topologies, of which none is taken: name one with --topology" in done.stderr


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
    done = called("fleet", str(tmp_path / "runs"), "--expect", "node-0[0-3]", "--lists", str(tmp_path / "l"), cwd=tmp_path)
    assert done.returncode == 4, done
    assert "3 good · 1 unmeasured" in done.stdout
    assert (tmp_path / "l" / "unmeasured.txt").read_text() == "node-03\n"
    leaves = tmp_path / "leaves.toml"
    leaves.write_text("[[leaf]]\nname = 'l1'\nrack = 'r1'\nhosts = ['node-0[0-1]']\n")
    done = called("fleet", str(tmp_path / "runs"), "--topology", str(leaves), cwd=tmp_path)
    assert "note: in no leaf of the topology: node-02: which leaf" in " ".join(done.stdout.split())


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


def test_a_run_that_cannot_be_read_costs_itself_alone(tmp_path):
    runs = tmp_path / "runs"
    for number in range(6):
        run = msgspec.structs.replace(run_folders.a_run(), run_id=f"20261123-06300{number}-7f3c")
        with folder_of(runs, run, number):
            pass
    changed, cut, gone, linked = sorted(runs.iterdir())[:4]
    lines = (changed / "records.jsonl").read_bytes()
    (changed / "records.jsonl").write_bytes(lines.replace(b'"launch":0', b'"launch":1'))
    (cut / "machines" / "m1.json").write_text("{")
    (gone / "run.json").unlink()
    (linked / "records.jsonl").unlink()
    (linked / "records.jsonl").symlink_to("/etc/passwd")
    done = called("fleet", "runs", "--expect", "node-0[3-5]", "--lists", "l", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (4, 4), done  # the lists alone are told there
    said = " ".join(done.stdout.split())
    for path, why in (
        (changed, "records.jsonl line 1: does not match its checksum"),
        (cut, "machines/m1.json: Input data was truncated"),
        (gone, "is not a run folder: it has no run.json"),
        (linked, "records.jsonl: a symbolic link has no place in a run folder"),
    ):
        name = path.relative_to(tmp_path)
        assert f"unmeasured {name} unreadable: {name}" in said
        assert why in said
    assert "2 good · 5 unmeasured" in said
    assert "unmeasured node-03 unmeasured: no run that can be read is of it" in said
    nodes = json.loads((tmp_path / "l" / "nodes.json").read_text())["nodes"]
    assert {n["run"] for n in nodes if n["reason"].startswith("unreadable: ")} == {
        str(path.relative_to(tmp_path)) for path in (changed, cut, gone, linked)
    }
    assert (tmp_path / "l" / "unmeasured.txt").read_text() == "node-03\n"  # a folder's name is no host's


def test_many_runs_are_read_by_processes_and_a_broken_one_among_them_is_named(tmp_path):
    for number in range(reduce.APART + 3):
        run = msgspec.structs.replace(run_folders.a_run(), run_id=f"20261123-0630{number:02d}-7f3c")
        with folder_of(tmp_path, run, number):
            pass
    paths = sorted(tmp_path.iterdir())
    (paths[20] / "run.json").write_text("{}")
    part = reduce.read(paths)
    assert part.unreadable == {str(paths[20]): f"{paths[20]}/run.json: Object missing required field `run_id`"}
    assert set(part.machines) == {f"m{number}" for number in range(len(paths)) if number != 20}
    alone = reduce.joined(reduce.part_of(load(path)) for path in paths if path != paths[20])
    assert part == msgspec.structs.replace(alone, unreadable=part.unreadable)


def test_where_not_one_run_can_be_read_there_is_no_fleet(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"a/machines: No such file or directory \(and 1 more run that cannot be read\)"):
        reduce.read(folder.find_runs(str(tmp_path), tmp_path))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_lists_that_cannot_be_written_are_told_before_anything_is_judged(tmp_path, place):
    (tmp_path / "file").write_text("")
    run_folders.fill(tmp_path / "runs")
    done = called("fleet", "runs", "--lists", place, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"run_suite.py: --lists {place}: no folder can be made there: there is a file in its way\n"
