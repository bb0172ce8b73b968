"""Cases over fewer nodes than they were to span: said where they are shown, and no success, whoever decides."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

import run_suite
from clustergauge import accept, blame, exits, judgement, loading, presence, retry, store, verdicts
from clustergauge.criteria import NOTHING, Acceptance
from clustergauge.model import Counters, Criterion
from clustergauge.verdicts import Asked
from reports import export, outcome, page, terminal
from reports.rows import rows_of
from tests import made
from tests.test_blame import HOSTS, all_reduce, over_nodes

CUT = [host for host in HOSTS if host != "node-002"]
WHY = "its agent did not start: the remote command exited with 255"


def test_who_was_not_there_is_told_by_launch():
    run = over_nodes(all_reduce(*CUT), all_reduce(*HOSTS, launch=1))
    (found,) = presence.absent(run.records, run.run.planned, run.machines.values()).items()
    assert found[0][2] == 0
    assert found[1] == ["node-002"]
    assert presence.words(8, found[1]) == "7 of 8 nodes (without node-002)"


def test_nodes_are_told_by_the_names_that_the_user_gave_them():
    run = over_nodes(all_reduce(*CUT))
    machines = {m: called_by_address(machine) for m, machine in run.machines.items()}
    plans = [made.planned(all_reduce(*HOSTS), hosts="10.0.0.[0-7]", nodes=8)]
    assert list(presence.absent(run.records, plans, machines.values()).values()) == [["10.0.0.2"]]


def called_by_address(machine):
    return made.machine(machine_id=machine.machine_id, host=machine.host, node=f"10.0.0.{int(machine.host[-3:])}")


def test_a_case_over_fewer_nodes_is_not_all_that_was_asked():
    whole, cut = over_nodes(all_reduce(*HOSTS)), over_nodes(all_reduce(*CUT))
    for run, code in ((whole, exits.OK), (cut, exits.UNKNOWN)):
        assert exits.exit_code(run.records, [], run.run.planned, "", run.machines.values()) == code


@pytest.mark.parametrize(("floor", "word"), [(1.9, "not measured"), (1.999, "inconclusive"), (4, "FAIL")])
def test_what_was_asked_of_all_nodes_never_passes_over_fewer(floor, word):
    asked = [Criterion(case="*", metric="compute", unit="TFLOP/s", floor=floor)]
    whole, cut = over_nodes(all_reduce(*HOSTS), local=False), over_nodes(all_reduce(*CUT), local=False)
    for run, words, reason in (
        (whole, word if word != "not measured" else "pass", ""),
        (cut, word, "over 7 of 8 nodes (without node-002)" if word == "not measured" else ""),
    ):
        standards = accept.Standards(machines=tuple(run.machines.values()))
        (verdict,) = accept.judge(run.records, asked, standards, run.run.planned)
        assert verdict.verdict == words
        assert verdict.value == pytest.approx(2e12)
        assert not reason or verdict.reason == reason
        again = retry.again(run.run.planned, run.records, [verdict])
        assert bool(again) == (words in ("FAIL", "inconclusive"))  # measuring again brings no node back


def test_the_reason_of_a_row_is_said_once():
    run = over_nodes(all_reduce(*CUT), local=False)
    asked = Asked(Acceptance(criteria=[Criterion(case="*", metric="compute", unit="TFLOP/s", floor=1.9)]))
    found = verdicts.judge(run.records, run.run.planned, run.machines, asked)
    text = terminal.page_of(run, found, 140).text()
    assert text.count("over 7 of 8 nodes (without node-002)") == 1
    assert "is required" not in text  # there is a number


def test_the_row_says_over_how_many_nodes_it_was():
    run = over_nodes(all_reduce(*CUT), all_reduce(*HOSTS, size=9))
    words = "over 7 of 8 nodes (without node-002)"
    text = terminal.page_of(run, [], 100).text()
    lines = text.splitlines()
    (number,) = [n for n, line in enumerate(lines) if words in line]
    assert lines[number - 1].startswith("all_reduce ")
    rows = rows_of(run, [])
    assert page.html_of(run, rows).count(words) == 1
    assert export.to_csv(run, rows).count(words) == 1
    assert export.to_markdown(run, rows).count("without node-002") == 1
    fresh = over_nodes(all_reduce(*CUT), all_reduce(*HOSTS, launch=1, confirms=True), confirms=True)
    assert "without" not in terminal.page_of(fresh, [], 100).text()  # it is judged by the fresh launch alone


def kept(parent, run):
    """The folder of a run that was made in memory."""
    with store.RunFolder.create(parent, run.run) as folder:
        for machine in run.machines.values():
            folder.write_machine(machine)
        for record in run.records:
            folder.append(record)
        folder.finish(msgspec.structs.replace(run.run, finished=made.STARTED))
    return folder.path


@pytest.mark.parametrize(
    ("hosts", "out", "code"),
    [
        (HOSTS, {}, 0),
        (HOSTS, {"node-008": WHY}, 4),  # one that was never reached, and owes no more than its share of the collective
        (CUT, {"node-002": "no word from it any more: connection lost"}, 4),
    ],
)
def test_one_place_decides_and_all_commands_agree(tmp_path, capsys, hosts, out, code):
    run = over_nodes(all_reduce(*hosts), out=out, local=False)
    path = kept(tmp_path, run)
    asked = Asked(NOTHING)
    assert outcome.show(store.load(path), asked, "text", print, keep=True) == code
    loaded = store.load(path)
    assert outcome.show(loaded, asked, "text", print) == code
    kept_judgement = loading.judgement(path, loaded.run.run_id)
    assert kept_judgement
    assert kept_judgement.exit_code == code
    checked = judgement.verify(path, tmp_path)
    assert checked.code == 0, checked.said
    fleet = blame.of_run(loaded)
    assert fleet
    assert blame.exit_code(fleet) == code
    capsys.readouterr()


FELL = Counters(health={"node-000/mlx5_0:1.rate": "400 Gb/sec (4X NDR) → 200 Gb/sec (2X NDR)"})


@pytest.mark.parametrize(
    ("records", "code", "word"),
    [
        ([all_reduce(*HOSTS)], 0, ""),
        ([all_reduce(*HOSTS, status="error", reason="rank 3 died", measurement=None)], 3, "error: "),
        ([all_reduce(*HOSTS, status="wrong", reason="element 3", measurement=None)], 3, "wrong: "),
        ([all_reduce(*HOSTS, counters=Counters(health={"node-000/gpu0.xid_79": 1}))], 3, "invalid: "),
        ([all_reduce(*HOSTS, counters=FELL)], 1, "FAIL: "),
        ([all_reduce(*CUT)], 4, "not measured: "),
        ([], 4, "not measured: "),
        ([all_reduce(*CUT), all_reduce(*HOSTS, size=9, status="error", reason="rank 3 died", measurement=None)], 3, "error: "),
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, list) else "",
)
def test_what_spans_nodes_counts_for_the_fleet_as_it_does_for_its_run(tmp_path, capsys, records, code, word):
    """Each node is well by itself: all that is wrong is between them."""
    run = over_nodes(*(records or [all_reduce(*HOSTS)]))
    if not records:  # planned, and never measured
        run = dataclasses.replace(run, records=[r for r in run.records if r.device != "cpu:nodes"])
    path = kept(tmp_path, run)
    loaded = store.load(path)
    found = verdicts.judge(loaded.records, loaded.run.planned, loaded.machines)
    assert judgement.exit_code_of(loaded, found, None) == code
    assert run_suite.main(["fleet", str(path)]) == code
    said = capsys.readouterr().out
    assert said.rstrip().endswith("7 good · 1 bad" if code == 1 else "8 good")  # a link is its node's
    assert word in said
    assert run_suite.main(["fleet", str(path), "--format", "html"]) == code
    shown = capsys.readouterr().out
    assert ("Nobody stands out" in shown) == (not code)
    assert ("came to no good" in shown) == bool(code)
