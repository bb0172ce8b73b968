"""Cases over fewer nodes than they were to span: said where they are shown, and no success, whoever decides."""

from __future__ import annotations

import msgspec
import pytest

from clustergauge import accept, blame, judgement, loading, presence, store
from clustergauge.criteria import NOTHING
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
    for run, code in ((whole, accept.OK), (cut, accept.UNKNOWN)):
        assert accept.exit_code(run.records, [], run.run.planned, "", run.machines.values()) == code


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
