"""JSON Schemas of the documents of a run folder: for other programs that read them, or write records of their own.

They are made from the types of `model` and `document`, with the rules of `valid` that a schema can say.  What it cannot say (that
a record is of its run, that its id follows from its parameters) `store.load` checks.
"""

from __future__ import annotations

from typing import Any

import msgspec

from clustergauge import valid
from clustergauge.document import Document
from clustergauge.model import SCHEMA, Data, Machine, Record, Run

JsonSchema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TIME = f"^{valid.TIME.pattern}$"
_NAME: JsonSchema = {"minLength": 1, "maxLength": valid.NAME_LENGTH}
_COUNT: JsonSchema = {"minimum": 0, "maximum": valid.MOST}
_SECONDS: JsonSchema = {"minimum": valid.SHORTEST_S, "maximum": valid.LONGEST_S}
_TIMES: JsonSchema = {"items": {"type": "number", **_SECONDS}}
_ID: JsonSchema = {"pattern": f"^{valid.FILE_NAME.pattern}$"}
_VERSION: JsonSchema = {"pattern": rf"^{SCHEMA.partition('.')[0]}\.\d+$"}

RULES: dict[str, dict[str, JsonSchema]] = {
    "Record": {
        "schema": _VERSION,
        "case": _NAME,
        "probe": _NAME,
        "device": _NAME,
        "machine_id": _ID,
        "run_id": _ID,
        "launch": {"minimum": 0},
        "ranks": {"minimum": 1, "maximum": valid.MOST_RANKS},
        "started": {"pattern": _TIME},
    },
    "Planned": {
        "case": _NAME,
        "probe": _NAME,
        "device": _NAME,
        "launch": {"minimum": 0},
        "ranks": {"minimum": 1, "maximum": valid.MOST_RANKS},
        "budget_s": _SECONDS,
        "timeout_s": _SECONDS,
    },
    "Run": {"schema": _VERSION, "run_id": _ID, "started": {"pattern": _TIME}, "finished": {"pattern": f"^$|{_TIME}"}},
    "Machine": {"schema": _VERSION, "machine_id": _ID, "host": _NAME, "memory_bytes": _COUNT},
    "Workload": dict.fromkeys(("flops", "ops", "bytes_read", "bytes_written", "ios", "samples", "message_bytes"), _COUNT),
    "Measurement": {
        "samples_s": _TIMES,
        "loop_mean_s": _SECONDS,
        "iterations_per_sample": {"minimum": 1},
        "warmup_cut": {"minimum": 0},
    },
    "Counters": {"device_bytes": {"additionalProperties": {"type": "integer"} | _COUNT}},
    "Cpu": dict.fromkeys(("cores", "threads", "llc_bytes"), _COUNT),
    "Gpu": dict.fromkeys(("index", "memory_bytes"), _COUNT),
    "Place": {"rank": {"minimum": 0}, "host": _NAME, "device": _NAME},
}
"""What `valid` asks of single fields, by structure and field."""


def record_schema() -> JsonSchema:
    """JSON Schema (draft 2020-12) of one line of ``records.jsonl``."""
    return schemas()["record"]


def schemas() -> dict[str, JsonSchema]:
    """JSON Schemas by kind of document: ``record``, ``run``, ``machine``, and ``document`` (what ``--format json`` prints)."""
    kinds: dict[str, tuple[type[Data], str]] = {
        "record": (Record, "ClusterGauge record: one case in one launch, a line of records.jsonl"),
        "run": (Run, "ClusterGauge run: run.json"),
        "machine": (Machine, "ClusterGauge machine: machines/<machine_id>.json"),
        "document": (Document, "ClusterGauge results: the document of --format json"),
    }
    return {kind: _schema(kind, of, title) for kind, (of, title) in kinds.items()}


def _schema(kind: str, of: type[Data], title: str) -> JsonSchema:
    made = msgspec.json.schema(of)
    structures: dict[str, JsonSchema] = made["$defs"]
    for name, fields in RULES.items():
        for field, rule in fields.items():
            if name in structures:
                structures[name]["properties"][field] |= rule
    if "Record" in structures:
        structures["Record"]["allOf"] = [_needs_result(), _has_no_result()]
    return {"$schema": DRAFT, "$id": f"{kind}-{SCHEMA}.schema.json", "title": title, **made}


def _needs_result() -> JsonSchema:
    """A record that is ok holds its work and at least one sample."""
    sampled = {"type": "object", "required": ["samples_s"], "properties": {"samples_s": {"minItems": 1}}}
    return {
        "if": {"properties": {"status": {"const": "ok"}}},
        "then": {"required": ["workload", "measurement"], "properties": {"workload": {"type": "object"}, "measurement": sampled}},
    }


def _has_no_result() -> JsonSchema:
    """A record that was not timed holds no times."""
    return {
        "if": {"properties": {"status": {"enum": ["verified", "skipped"]}}},
        "then": {"properties": {"measurement": {"type": "null"}}},
    }
