"""Redaction: no name of a site is left in any format, and the same thing keeps the same word."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from clustergauge import gauged, hosts, topology
from clustergauge.loading import LoadedRun
from clustergauge.model import Gpu, Place
from clustergauge.selftest import Selftest
from clustergauge.verdicts import Asked
from reports import document, export, outcome, page, terminal
from reports.redact import Names
from reports.rows import rows_of
from tests import made, run_folders
from tests.command_line import called
from tests.made_up import COPY, CPU, MATMUL, finding, loaded, record, verdict

UUID = "GPU-8a1f2c3d-1111-2222-3333-444455556666"
SECRETS = (
    "rack7-n01",
    "rack7-n02",
    "acme",
    "alice",
    "10.1.2.3",
    "fe80::1",
    "8a1f2c3d",
    "1650123",
    "m-secret",
    "aa:bb:cc",
    "filer",
    "weights-of",
    "blue",
    "run=7",
    "0123456789abcdef",
)
WHY = (
    f"rack7-n01.acme.example and rack7-n02 at 10.1.2.3, fe80::1%eth0, aa:bb:cc:dd:ee:ff: {UUID}, serial 1650123, "
    "s3://weights-of-acme/Blue/run=7/clustergauge-0123456789abcdef/data-3, s3://weights-of-acme/Blue. "
    "/home/alice/x.log, alice@rack7-n01, filer:/export, rack7-n[01-02], rank_rack7-n01_3, Rack7-N02"
)


def redacted(run, verdicts, pairs):
    names = Names(run, verdicts)
    return names.run(run), [names.document(v) for v in verdicts], [names.document(p) for p in pairs]


def shown() -> dict[str, str]:
    gpus = [Gpu(index=0, name="NVIDIA H100", uuid=UUID)]
    machine = msgspec.structs.replace(
        CPU,
        machine_id="m-secret",
        host="rack7-n01.acme.example",
        gpus=gpus,
        findings=[finding("links", "warning", WHY, "mend it")],
    )
    good = record("matmul", MATMUL, machine_id="m-secret", placement=[Place(rank=0, host="rack7-n02")])
    bad = record("memory", COPY, "error", WHY, machine_id="m-secret")
    run = loaded(
        good, bad, machines=(machine,), command=("--hosts", "rack7-n[01-02]", "/home/alice/results"), notes=[WHY],
        left_out={"rack7-n02": WHY},
    )  # fmt: skip
    verdicts = [verdict(good, "FAIL", "compute", 1e12, "FLOP/s", floor=2e12, reason=WHY)]
    verdicts = [msgspec.structs.replace(v, machine_id="m-secret") for v in verdicts]
    run, judged, pairs = redacted(run, verdicts, [])
    rows = rows_of(run, judged)
    texts = {name: write(run, rows) for name, write in export.WRITERS.items()}
    texts["json"] = document.document(run, judged, pairs).decode()
    texts["html"] = page.html_of(run, rows, pairs)
    texts["text"] = terminal.page_of(run, judged, 120, None, pairs).text()
    return texts


@pytest.mark.parametrize("form", [*export.WRITERS, "json", "html", "text"])
def test_no_name_is_left(form):
    text = shown()[form].lower()
    assert not [secret for secret in SECRETS if secret in text]


def test_the_same_thing_has_the_same_word_everywhere_and_versions_stay():
    text = shown()["json"]
    assert "node-1 and node-2 at address-" in text
    assert "user-1@node-1" in text
    assert "node-[1-2]" in text
    assert "rank_node-1_3, node-2" in text
    assert "s3://bucket-1/key-1/key-2/key-3/data-3, s3://bucket-1/key-1. /home" in text
    assert '"torch":"2.13.0"' in text
    assert '"machine_id":"machine-1"' in text


def test_nodes_are_shown_as_they_were_judged_and_without_their_names(capsysbinary):
    """The rack explains why they are slow: judged without it, once names are gone, they would be suspects."""
    leaves = topology.Topology(
        leaf=[topology.Leaf(name=f"sw{n}-acme", rack=f"row{n}", hosts=[f"acme-[{n}0-{n}7]"]) for n in range(1, 5)]
    )
    numbers = [10 * row + n for row in range(1, 5) for n in range(8)]
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"acme-{n}") for n in numbers}
    records = [
        made.record(machine_id=name, samples=[(1.2 if name.startswith("m2") else 1.0) * (1 + 1e-4 * n)] * 20)
        for n, name in enumerate(machines)
    ]
    run = LoadedRun(made.run(records[:1], planned=[], settings={"topology": leaves.text()}), machines, records, Path("/x"), [])
    texts, codes = {}, set()
    for redact in (False, True):
        codes.add(outcome.show(run, Asked(), "text", lambda _: None, redact))
        texts[redact] = capsysbinary.readouterr().out.decode()
    assert len(codes) == 1
    assert "rack row2: matmul at 83% of the others (8 devices)" in texts[False]
    assert "rack rack-2: matmul at 83% of the others (8 devices)" in texts[True]
    assert texts[True].rstrip().endswith("32 good")
    assert not [name for name in ("acme", "row2", "sw2") if name in texts[True]]


def test_a_page_without_names_keeps_what_the_gauge_found_and_what_differs(tmp_path, capsysbinary):
    run = node_run(tmp_path)
    then = msgspec.structs.replace(run.machines["m-secret"], settings={"mounted": "filer:/export"}, kernel="6.1")
    baseline = dataclasses.replace(run, machines={"m-secret": then})
    gauged.keep(gauged.of(Selftest(overhead_s=4e-8), "m-secret", "c0de", "2026-03-01T10:15:00Z"), tmp_path)
    outcome.show(run, Asked(baseline=baseline), "html", lambda _: None, redact=True)
    text = capsysbinary.readouterr().out.decode()
    assert "40.0 ns" in text
    assert "<td>driver</td><td>6.1</td>" in text
    assert not [name for name in ("secret", "filer", "acme") if name in text]


def node_run(tmp_path):
    machine = msgspec.structs.replace(CPU, machine_id="m-secret", host="gpu7.acme.example")
    run = loaded(record("matmul", MATMUL, machine_id="m-secret", reason="filer:/export is full"), machines=(machine,))
    return dataclasses.replace(run, path=tmp_path / "20260301-101500-ab12")


def test_nodes_called_by_their_addresses_and_with_a_user_keep_one_word_each():
    names = ["fd00::1", "fd00::2", "fe80::3%eth0", "root@login7"]
    machines = tuple(
        msgspec.structs.replace(CPU, machine_id=f"m{n}", host=f"{word}.acme", node=name)
        for n, (name, word) in enumerate(zip(names, ("alpha", "beta", "gamma", "delta"), strict=True))
    )
    good = record("matmul", MATMUL, machine_id="m0", reason="of fd00::2: not reached, login7")
    run = loaded(good, machines=machines)
    listed = hosts.compress(names)
    planned = [msgspec.structs.replace(p, hosts=listed) for p in run.run.planned]
    run = dataclasses.replace(run, run=msgspec.structs.replace(run.run, planned=planned, command=["--hosts", listed]))
    hidden, _, _ = redacted(run, [], [])
    told = hosts.expand(hidden.run.planned[0].hosts)
    assert sorted(told) == sorted(machine.node for machine in hidden.machines.values())
    assert not [word for word in ("fd00", "fe80", "login7") if word in msgspec.json.encode(hidden.run).decode()]
    assert hidden.run.command == ["--hosts", hidden.run.planned[0].hosts]
    words = {machine.machine_id: machine.node for machine in hidden.machines.values()}
    assert hidden.records[0].reason == f"of {words['machine-2']}: not reached, {words['machine-4'].rpartition('@')[2]}"


def test_what_a_node_calls_itself_is_the_same_node():
    machine = msgspec.structs.replace(CPU, machine_id="m1", host="10.0.0.7", node="10.0.0.7", calls_itself="gpu7.acme.example")
    good = record("matmul", MATMUL, machine_id="m1", reason="gpu7 at 10.0.0.7 told gpu7.acme.example")
    hidden, _, _ = redacted(loaded(good, machines=(machine,)), [], [])
    (told,) = hidden.machines.values()
    assert told.host == told.calls_itself == "node-1"
    assert hidden.records[0].reason == "node-1 at node-1 told node-1"


def test_hosts_that_are_called_like_what_stands_for_them_are_not_replaced_twice():
    machines = tuple(msgspec.structs.replace(CPU, machine_id=f"m{n}", host=f"node-{n}", node=f"node-{n}") for n in range(1, 13))
    good = record("matmul", MATMUL, machine_id="m1", reason="node-2 after node-11")
    run = loaded(good, machines=machines)
    planned = [msgspec.structs.replace(p, hosts="node-[5-7]") for p in run.run.planned]
    hidden, _, _ = redacted(dataclasses.replace(run, run=msgspec.structs.replace(run.run, planned=planned)), [], [])
    words = [hidden.machines[f"machine-{n}"].node for n in range(1, 13)]  # machines are taken by their ids, m1, m10, m11, …
    assert len(set(words)) == 12
    told = {machine.machine_id: machine.node for machine in machines}
    place = {told[name]: words[number] for number, name in enumerate(sorted(told))}
    assert hosts.expand(hidden.run.planned[0].hosts) == [place[f"node-{n}"] for n in (5, 6, 7)]
    assert hidden.records[0].reason == f"{place['node-2']} after {place['node-11']}"


@pytest.mark.parametrize("form", [*export.WRITERS, "json", "html", "text"])
def test_the_command_line_redacts_and_keeps_its_exit_code(tmp_path, form):
    folder = run_folders.fill(tmp_path, records=4)
    plain, hidden = (called("report", str(folder), "--format", form, *more) for more in ([], ["--redact"]))
    assert plain.returncode == hidden.returncode == 0, plain.stderr + hidden.stderr
    assert "node-017" not in hidden.stdout
    assert "spin/ns=100" in hidden.stdout.replace("\\", "") or form == "text"
    assert hidden.stdout
