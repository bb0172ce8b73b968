"""Pairs below the row of their case: exact at 80 and 120 columns, safe, and in the document."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from rich.cells import cell_len

from clustergauge import accept, exits, schema, sweeps
from clustergauge.model import Place
from reports import document, terminal
from tests.made_up import loaded
from tests.swept import flat, swept

GPUS = [Place(rank=r, host=f"node-{17 + r // 4:03d}", device=f"cuda:{r % 4}") for r in range(8)]


def page(*records, width: int = 80):
    found = sweeps.findings(records)
    return terminal.page_of(loaded(*records), [*accept.judge(records), *sweeps.verdicts(found)], width, found=found)


def lines(*records, width: int = 80) -> str:
    """What stands from the table to the next empty line."""
    text = page(*records, width=width).text()
    return text[text.index("case  ") :].partition("\n\n")[0]


def test_a_slow_sender_in_80_columns():
    assert (
        lines(swept(flat(4, sends_2=0.61)))
        == """\
case                     median          rate  ceiling      ±  verdict
pairs/mpi/uni/one/8MiB  10.0 ms  839 MB/s bus        –  1.0 %  FAIL
  pairs: node-002 sends at 61 % of its peers (61 … 61 %)
  % from ↓ to →    0    1    2    3
  0 node-000       ·  100  100  100
  1 node-001     100    ·  100  100
  2 node-002      61   61    ·   61
  3 node-003     100  100  100    ·
  again: run_suite.py run \\
    -k pairs/backend=mpi/direction=uni/quiet=one/size=8MiB"""
    )


def test_gpus_of_two_hosts_in_120_columns():
    sweep = flat(8, sends_5=0.61, link_0_1=0.9)
    sweep[:, 7, 0] = np.nan
    assert (
        lines(swept(sweep, GPUS), width=120)
        == """\
case                     median          rate  of ceiling      ±  verdict
pairs/mpi/uni/one/8MiB  10.0 ms  839 MB/s bus           –  1.0 %  FAIL  peers ≥ 80 % (−23.7 %)
  pairs: node-018/gpu1 sends at 61 % of its peers (61 … 61 %; inside its host)
  pairs: node-018/gpu1 sends at 61 % of its peers (61 … 61 %; to and from other hosts)
  pairs: node-017/gpu0 → node-017/gpu1 at 90 % of its peers (89 … 91 %) · 80 % is asked
  % from ↓ to →      0    1    2    3    4    5    6    7
  0 node-017/gpu0    ·   90  100  100  100  100  100  100
  1 node-017/gpu1  100    ·  100  100  100  100  100  100
  2 node-017/gpu2  100  100    ·  100  100  100  100  100
  3 node-017/gpu3  100  100  100    ·  100  100  100  100
  4 node-018/gpu0  100  100  100  100    ·  100  100  100
  5 node-018/gpu1   61   61   61   61   61    ·   61   61
  6 node-018/gpu2  100  100  100  100  100  100    ·  100
  7 node-018/gpu3    –  100  100  100  100  100  100    ·
  again: run_suite.py run -k pairs/backend=mpi/direction=uni/quiet=one/size=8MiB"""
    )


def test_nobody_stands_out_and_what_would_have():
    assert (
        lines(swept(flat(4)))
        == """\
case                     median          rate  of ceiling      ±  verdict
pairs/mpi/uni/one/8MiB  10.0 ms  839 MB/s bus           –  1.0 %  ok
  pairs: no endpoint stands out (12 of 12 pairs, 5 passes); one that lost 4 %
         would have"""
    )
    assert "  pairs: 2 of 2 pairs, 5 passes\n  pairs: with two endpoints it cannot be told" in lines(swept(flat(2)), width=120)


def noisy(count: int, passes: int = 7):
    """A sweep in which every pair is anywhere between a tenth and all of the bandwidth."""
    return flat(count, passes) * np.random.default_rng(3).uniform(0.1, 1, (passes, count, count))


def test_a_sweep_that_could_have_shown_nothing_is_no_ok():
    record = swept(noisy(3))
    text = lines(record, width=120)
    assert text.splitlines()[1].endswith("inconclusive  peers ≥ 80 %"), text
    assert "  pairs: a loss below " in text
    assert "(6 of 6 pairs, 7 passes), one of 20 % must: more time (budget_s) or quiet helps" in " ".join(text.split())
    assert "stands out" not in text
    found = sweeps.findings([record])
    assert exits.exit_code([record], [*accept.judge([record]), *sweeps.verdicts(found)]) == exits.UNKNOWN


def test_a_matrix_that_finds_no_room_is_left_out():
    assert "% from" not in lines(swept(flat(14, sends_2=0.6)), width=80)
    assert "% from" in lines(swept(flat(13, sends_2=0.6)), width=80)
    assert "% from" in lines(swept(flat(14, sends_2=0.6)), width=120)


def test_many_suspects_are_counted():
    text = lines(swept(flat(8, link_0_1=0.5, link_1_2=0.5, link_2_3=0.5, link_3_4=0.5, link_4_5=0.5, link_5_6=0.5, link_6_7=0.5)))
    assert text.count("of its peers") == 6
    assert "  pairs: … and 1 more" in text


def test_what_is_low_is_coloured():
    shown = page(swept(flat(4, sends_2=0.61, link_0_1=0.85)), width=120)
    (row,) = [line for line in shown.lines if line.plain.startswith("  2 node-002")]
    assert {str(span.style) for span in row.spans} == {"bold red", "dim"}
    (other,) = [line for line in shown.lines if line.plain.startswith("  0 node-000")]
    assert "yellow" in {str(span.style) for span in other.spans}


@pytest.mark.parametrize("width", [72, 80, 120])
def test_hostile_host_names_cannot_steer_and_nothing_is_too_wide(width):
    names = ["\x1b[31mred", "[red]x[/red]", "漢字" * 40, "a\nb"]
    places = [Place(rank=r, host=name) for r, name in enumerate(names)]
    drawn = page(swept(flat(4, sends_2=0.5, link_0_1=0.5), places), width=width)
    text = drawn.text()
    assert "\x1b" not in text
    assert "[red]x[/red]" in text
    assert all(cell_len(line) <= width for line in text.splitlines() if "-k" not in line)


def test_the_document_holds_the_suspects():
    record = swept(flat(4, sends_2=0.61))
    found = sweeps.findings([record])
    raw = json.loads(document.document(loaded(record), sweeps.verdicts(found), found))
    jsonschema.Draft202012Validator(schema.schemas()["document"]).validate(raw)
    ((suspect,),) = [one["suspects"] for one in raw["pairs"]]
    assert (suspect["where"], suspect["direction"], suspect["confirmed"]) == ("node-002", "sends", True)
    assert raw["verdicts"][0]["verdict"] == "FAIL"
