"""The JSON document: one, whole, and as its schema says."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings

from clustergauge import accept, schema
from clustergauge.loading import LoadedRun
from clustergauge.model import Document
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
