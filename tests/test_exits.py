"""Exit codes: the worst wins, and what was not measured is no success."""

from __future__ import annotations

import msgspec
import pytest

from clustergauge import exits, unmeasured
from clustergauge.model import Verdict
from tests import made


@pytest.mark.parametrize(
    ("statuses", "verdicts", "code"),
    [
        (["ok"], ["pass"], 0),
        (["ok", "skipped", "verified"], ["unreferenced"], 0),
        ([], [], 0),
        (["ok"], ["pass", "inconclusive"], 4),
        (["ok"], ["not measured"], 4),
        (["ok"], ["FAIL", "not measured"], 1),
        (["ok"], ["invalid", "FAIL"], 3),
        (["wrong"], ["FAIL"], 3),
        (["error"], [], 3),
    ],
)
def test_the_worst_decides_the_exit_code(statuses, verdicts, code):
    records = [made.failed(s, "") for s in statuses]
    assert exits.exit_code(records, [Verdict(case="c", verdict=v) for v in verdicts]) == code


def test_cases_that_skipped_themselves_when_they_were_to_run_were_not_measured_either():
    late, early = made.failed("skipped", "llvmlite is broken"), made.failed("skipped", "no GPU", n=2)
    plans = [made.planned(late), made.planned(early, skip="no GPU")]
    assert unmeasured.idle([late, early], plans)
    assert exits.exit_code([late, early], [], plans) == 4
    assert not unmeasured.idle([early], plans)  # what has no record was not skipped: the run did not get to it
    other = made.record(n=3)
    assert exits.exit_code([late, early, other], [], [*plans, made.planned(other)]) == 0


def test_a_run_that_skipped_everything_is_not_measured_rather_than_well():
    skipped = made.failed("skipped", "no GPU")
    plan = made.planned(skipped, skip="no GPU")
    assert exits.exit_code([skipped], [], [plan]) == 4
    assert exits.exit_code([], [], [plan]) == 4
    other = made.record(shape="2")
    assert exits.exit_code([skipped, other], [], [plan, made.planned(other)]) == 0


def test_where_gpus_were_asked_for_what_else_was_measured_does_not_count():
    disk, gpu = made.record(), msgspec.structs.replace(made.failed("skipped", "no GPU"), device="cuda:0")
    plans = [made.planned(disk), made.planned(gpu, skip="no GPU")]
    assert disk.device == "cpu:0"
    assert exits.exit_code([disk, gpu], [], plans) == 0
    assert exits.exit_code([disk, gpu], [], plans, "cuda") == 4
    seen = msgspec.structs.replace(made.record(shape="2"), device="cuda:1")
    assert exits.exit_code([disk, gpu, seen], [], [*plans, made.planned(seen)], "cuda") == 0
    assert exits.exit_code([disk], [], plans[:1], "cuda") == 0  # only storage was asked for


def test_every_machine_says_for_itself_why_its_gpus_were_not_measured():
    machines = [made.machine(1, machine_id=f"m{n}", host=f"h{n}", node=f"h{n}") for n in range(3)]
    plans = [
        made.planned(made.record(device="cuda:0"), hosts="h[0-1]", skip="no driver"),
        made.planned(made.record(shape="2"), hosts="h2", instead="no CUDA in torch"),
    ]
    assert unmeasured.gpus([], plans, machines) == [
        "h0: a GPU is here and not measured: no driver",
        "h1: a GPU is here and not measured: no driver",
        "h2: a GPU is here and not measured: no CUDA in torch",
    ]
    late = made.failed("skipped", "memory is full", machine_id="m1", device="cuda:0")
    assert unmeasured.gpus([late], [made.planned(late)], machines) == ["h1: a GPU is here and not measured: memory is full"]


def test_what_was_planned_and_has_no_record_is_not_success():
    done, missing = made.record(shape="1"), made.record(shape="2")
    plans = [made.planned(done), made.planned(missing)]
    assert exits.exit_code([done], [], plans) == 4
    assert exits.exit_code([done], [], [plans[0], made.planned(missing, skip="no GPU")]) == 0
    assert exits.exit_code([done], [], [plans[0], made.planned(done, launch=1)]) == 4


def test_what_each_node_owes_is_missed():
    record = made.record()
    owed = made.planned(record, hosts="n[1-2]")
    assert exits.exit_code([record], [], [owed]) == 4
    assert exits.exit_code([record, msgspec.structs.replace(record, machine_id="other")], [], [owed]) == 0
    assert exits.exit_code([record], [], [msgspec.structs.replace(owed, nodes=2)]) == 0
