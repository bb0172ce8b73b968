"""The JSON document: one, whole, and as its schema says."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings

from clustergauge import accept, blame, exits, schema
from clustergauge.document import Document
from clustergauge.loading import LoadedRun
from clustergauge.verdicts import Asked
from reports import fleet, outcome
from reports.document import document
from tests import strategies
from tests.made_up import COPY, CPU, MATMUL, loaded, record, verdict

VALIDATOR = jsonschema.Draft202012Validator(schema.schemas()["document"])


def test_a_run_becomes_one_document_that_its_schema_accepts():
    good = record("matmul", MATMUL)
    run = loaded(good, record("memory", COPY, "skipped", "no GPU"))
    verdicts = [verdict(good, "pass", "compute", 2e12, "FLOP/s", floor=1e12)]
    raw = document(run, verdicts)
    VALIDATOR.validate(json.loads(raw))
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") == 1
    assert msgspec.json.decode(raw, type=Document) == Document(
        run=run.run, machines=[CPU], records=run.records, verdicts=verdicts
    )


@pytest.mark.parametrize("redact", [False, True])
def test_a_run_over_nodes_has_them_as_a_fleet_of_runs_has(redact, capsysbinary):
    machines = [msgspec.structs.replace(CPU, machine_id=f"m{n}", host=f"node-{n}", node=f"node-{n}") for n in range(5)]
    records = [record("matmul", MATMUL, time=2e-3 if n == 3 else 1e-3, machine_id=f"m{n}") for n in range(5)]
    run = loaded(*records, machines=machines, left_out={"node-9": "no answer"})
    assert outcome.show(run, Asked(), "json", lambda _: None, redact) == exits.UNKNOWN
    whole = json.loads(capsysbinary.readouterr().out)
    VALIDATOR.validate(whole)
    found = blame.of_run(run)
    fleet.show(found, "json")
    same = json.loads(capsysbinary.readouterr().out)
    assert {n["host"]: n["state"] for n in same["nodes"] if n["state"] != "good"} == {"node-3": "suspect", "node-9": "unmeasured"}
    if redact:
        assert [n["state"] for n in whole["fleet"]["nodes"]] == [n["state"] for n in same["nodes"]]
        assert "node-9" not in json.dumps(whole["fleet"])
    else:
        assert whole["fleet"] == same


def test_a_run_of_one_machine_has_no_fleet(capsysbinary):
    outcome.show(loaded(record("matmul", MATMUL)), Asked(), "json", lambda _: None)
    assert json.loads(capsysbinary.readouterr().out)["fleet"] is None


def test_the_schema_can_refuse():
    whole = json.loads(document(loaded(record("matmul", MATMUL)), []))
    whole["records"][0]["measurement"] = None
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(whole)


def test_machines_come_in_the_order_of_their_ids():
    machines = [msgspec.structs.replace(CPU, machine_id=name) for name in ("m2", "m1", "m3")]
    assert [m["machine_id"] for m in json.loads(document(loaded(machines=machines), []))["machines"]] == ["m1", "m2", "m3"]


@settings(deadline=None, max_examples=50)
@given(strategies.filled_runs())
def test_any_sound_run_is_accepted_by_the_schema_and_read_back_the_same(filled):
    run = LoadedRun(filled.run, {filled.machine.machine_id: filled.machine}, filled.records, loaded().path, [])
    verdicts = accept.judge(run.records, [], None, run.run.planned)
    raw = document(run, verdicts)
    VALIDATOR.validate(json.loads(raw))
    back = msgspec.json.decode(raw, type=Document)
    assert (back.run, back.records, back.verdicts) == (run.run, run.records, verdicts)
