"""The JSON Schemas say what loading says of a document by itself: they take what we write, and nothing of another shape."""

import copy
import json

import jsonschema
import msgspec
import pytest
from hypothesis import assume, given, settings, strategies as st

from clustergauge import schema, valid
from clustergauge.blamed import CaseFinding, Fleet, Joint, Node, RackFinding, Reason
from clustergauge.document import Document
from clustergauge.model import Machine, Record, Run, Verdict
from tests.run_folders import RUN_ID, a_machine, a_record, a_run
from tests.strategies import filled_runs, names

TYPES = {"record": Record, "run": Run, "machine": Machine, "document": Document}
CHECKERS = {kind: jsonschema.Draft202012Validator(s) for kind, s in schema.schemas().items()}


def plain(document):
    """The document as another program meets it."""
    return json.loads(msgspec.json.encode(document))


def loads(kind, document):
    """Whether it has the shape, and the sense that it can have by itself."""
    try:
        parsed = msgspec.json.decode(json.dumps(document), type=TYPES[kind])
        if kind == "run":
            valid.check_run(parsed)
        if kind == "machine":
            valid.check_machine(parsed)
        if kind == "record":
            valid.check_record(parsed, RUN_ID, {valid.key_of(p): p for p in a_run().planned}, ["m1"])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", TYPES)
def test_schemas_are_schemas_and_name_themselves(kind):
    made = schema.schemas()[kind]
    jsonschema.Draft202012Validator.check_schema(made)
    assert made["$id"] == f"{kind}-1.0.schema.json"
    json.dumps(made, allow_nan=False)
    assert schema.record_schema() == schema.schemas()["record"]


@given(filled_runs(), st.lists(st.builds(Verdict, case=names, verdict=st.sampled_from(["pass", "FAIL", "invalid"])), max_size=2))
@settings(max_examples=100, deadline=None)
def test_every_document_of_a_sound_run_validates(filled, verdicts):
    CHECKERS["run"].validate(plain(filled.run))
    CHECKERS["machine"].validate(plain(filled.machine))
    for record in filled.records:
        CHECKERS["record"].validate(plain(record))
    document = Document(run=filled.run, machines=[filled.machine], records=filled.records, verdicts=verdicts)
    CHECKERS["document"].validate(plain(document))


def places(value, path=()):
    """Every place in a document."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


SAMPLES = {"record": a_record(), "run": a_run(2), "machine": a_machine()}
SAMPLES["document"] = Document(
    run=SAMPLES["run"],
    machines=[SAMPLES["machine"]],
    records=[SAMPLES["record"]],
    verdicts=[Verdict(case="a", verdict="pass")],
    fleet=Fleet(
        nodes=[Node(host="h", machine_id="m1", state="suspect", reasons=[Reason(kind="slow", case="a", ratio=0.9)])],
        cases=[
            CaseFinding(
                case="a", device="cpu", peer_class="c", devices=8, usual=1.0, low=0.9, high=1.1, smallest=None, weak=False
            )
        ],
        racks=[RackFinding(rack="r", case="a", ratio=0.9, devices=6)],
        notes=["a note"],
        joint=[Joint("a", "cpu:nodes", "FAIL", "why")],
        alone=["h"],
    ),
)
OTHERS = st.sampled_from([None, True, 0, -1, 3, 1.5, "", "ok", "text", "2.0", [], [1], [[]], {}, {"a": 1}, {"a": {}}])


@given(st.sampled_from(sorted(TYPES)), st.data())
@settings(max_examples=600, deadline=None)
def test_what_does_not_have_the_shape_is_refused_by_the_schema_too(kind, data):
    """One place of a sound document replaced, removed or added to: if strict parsing refuses it, so does the schema."""
    document = plain(SAMPLES[kind])
    *way, last = data.draw(st.sampled_from([path for path in places(document) if path]))
    inner = document
    for key in way:
        inner = inner[key]
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            inner[last] = data.draw(OTHERS)
        case "remove":
            del inner[last]
        case "add" if isinstance(inner, dict):
            inner["another"] = data.draw(OTHERS)
        case _:
            assume(False)
    try:
        msgspec.json.decode(json.dumps(document), type=TYPES[kind])
    except ValueError:
        assert not CHECKERS[kind].is_valid(document)


RULES = [
    ("record", ("unknown",), 1),
    ("record", ("workload", "unknown"), 1),
    ("record", ("measurement", "series"), {"a": {"unit": "s", "values": [], "unknown": 1}}),
    ("run", ("unknown",), 1),
    ("run", ("planned", 0, "unknown"), 1),
    ("machine", ("cpu", "unknown"), 1),
    ("record", ("run_id",), "../x"),
    ("record", ("machine_id",), ""),
    ("record", ("case",), ""),
    ("record", ("case",), "x" * 1001),
    ("record", ("device",), ""),
    ("record", ("launch",), -1),
    ("record", ("ranks",), 0),
    ("record", ("ranks",), 10**8),
    ("record", ("started",), "yesterday"),
    ("record", ("schema",), "2.0"),
    ("record", ("schema",), "1"),
    ("record", ("workload",), None),
    ("record", ("measurement",), None),
    ("record", ("workload", "flops"), -1),
    ("record", ("workload", "flops"), 10**25),
    ("record", ("measurement", "samples_s"), []),
    ("record", ("measurement", "samples_s"), [0.0]),
    ("record", ("measurement", "samples_s"), [-1.0]),
    ("record", ("measurement", "loop_mean_s"), 0.0),
    ("record", ("measurement", "iterations_per_sample"), 0),
    ("record", ("measurement", "warmup_cut"), -1),
    ("record", ("status",), "skipped"),
    ("record", ("status",), "verified"),
    ("record", ("placement",), [{"rank": -1, "host": "a"}]),
    ("record", ("placement",), [{"rank": 0, "host": ""}]),
    ("record", ("counters", "device_bytes"), {"read": -1}),
    ("run", ("run_id",), ".hidden"),
    ("run", ("started",), ""),
    ("run", ("finished",), "soon"),
    ("run", ("planned", 0, "budget_s"), 0.0),
    ("run", ("planned", 0, "timeout_s"), -1.0),
    ("run", ("planned", 0, "ranks"), 0),
    ("run", ("planned", 0, "probe"), ""),
    ("machine", ("machine_id",), "a/b"),
    ("machine", ("host",), ""),
    ("machine", ("memory_bytes",), -1),
    ("machine", ("cpu", "cores"), -1),
    ("machine", ("cpu", "llc_bytes"), -1),
    ("machine", ("gpus",), [{"index": -1, "name": "", "uuid": ""}]),
]


@pytest.mark.parametrize(("kind", "way", "value"), RULES, ids=lambda v: str(v)[:40])
def test_what_makes_no_sense_by_itself_is_refused_by_both(kind, way, value):
    document = plain(SAMPLES[kind])
    assert loads(kind, document)
    assert CHECKERS[kind].is_valid(document)
    changed = copy.deepcopy(document)
    inner = changed
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    assert not CHECKERS[kind].is_valid(changed)
    if way != ("schema",):  # versions are the business of `loading`, see there
        assert not loads(kind, changed)


def test_every_rule_is_of_a_field_that_exists():
    for name, fields in schema.RULES.items():
        structures = [s["$defs"][name] for s in schema.schemas().values() if name in s["$defs"]]
        assert structures
        assert all(field in structure["properties"] for structure in structures for field in fields)
