"""What would run, as text: exact at 80 and 120 columns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len

import run_suite
from clustergauge.forecast import predict, predict_case
from clustergauge.model import Planned
from reports import listing
from tests import strategies
from tests.made_up import COPY, MATMUL, REDUCE, TINY, TRITON, planned, record

ROOT = Path(__file__).parent.parent
PLAN = [
    planned(record("matmul", MATMUL), budget_s=2.0),
    planned(record("matmul", {**TRITON, "shape": "200x136x96"}), budget_s=2.0, interpret=True),
    planned(record("memory", COPY, device="cuda:0"), budget_s=0.5),
    planned(record("memory", COPY, device="cuda:1"), budget_s=0.5),
    planned(record("all_reduce", TINY, ranks=16), budget_s=90.0, world="mpi"),
    *(planned(record("all_reduce", {**REDUCE, "backend": "nccl", "size": s}, "skipped", "no GPU")) for s in (8, 65536)),
    planned(record("sequential", {"op": "read"}, "skipped", "no target folder")),
]

TEXT = """\
case                                               device  ranks      budget       about
matmul/backend=torch/dtype=fp32/shape=1024         cpu:0       1         2 s         3 s
matmul/backend=triton/dtype=bf16/shape=200x136x96  cpu:0       1   not timed         1 s
memory/backend=torch/op=copy/size=256MiB           cuda:0      1      500 ms      950 ms
memory/backend=torch/op=copy/size=256MiB           cuda:1      1      500 ms      950 ms
all_reduce/backend=mpi/dtype=fp32/size=8B          cpu:0      16  1 min 30 s  1 min 32 s

would be skipped
  2  no GPU: all_reduce/nccl/fp32/{8B,64KiB}
  1  no target folder: sequential/read

5 cases on 3 devices would run, about 1 min 53 s · 3 would be skipped
"""


def plain(plan, width: int) -> str:
    return listing.page_of(plan, width).text()


def test_the_plan_where_there_is_room():
    assert plain(PLAN, 120) == TEXT


def test_the_plan_at_80_columns():
    lines = plain(PLAN, 80).splitlines()
    assert lines[0] == "case                                       device  ranks      budget       about"
    assert lines[2] == "matmul/backend=trito…f16/shape=200x136x96  cpu:0       1   not timed         1 s"
    assert lines[5:] == [line.replace("fp32/size=8B        ", "fp32/size=8B") for line in TEXT.splitlines()[5:]]


def test_ids_that_do_not_fit_are_shortened_in_the_middle_and_numbers_never():
    lines = plain(PLAN, 60).splitlines()
    assert lines[2] == "matmul/bac…200x136x96  cpu:0       1   not timed         1 s"
    assert {len(line) for line in lines[1:6]} == {60}


def test_the_time_is_what_a_run_expects_and_launches_are_one_line_each():
    twice = [msgspec.structs.replace(p, launch=n) for n in range(2) for p in PLAN[:1]]
    assert predict(twice) == pytest.approx(2 * predict(PLAN[:1]))
    assert plain(twice, 80).count("matmul/") == 1
    assert plain(twice, 80).endswith("1 case × 2 launches would run, about 12 s\n")


def test_what_cases_take_and_a_start_of_their_workers_make_the_whole():
    cases = [p for p in PLAN if not p.skip]
    pools = 5  # two on the processor, of which one interprets; one a GPU; one of 16 ranks
    assert predict(PLAN) == pytest.approx(sum(map(predict_case, cases)) + 3.0 * pools)


def test_list_and_a_dry_run_say_the_same_for_any_duration(capfd):
    def said(*words: str) -> str:
        assert run_suite.main([*words, "--suite", "burnin", "--device", "cpu", "--duration", "2h", "--launches", "2"]) == 0
        return capfd.readouterr().out

    text = said("list")
    assert text == said("run", "--dry-run")
    assert "1 case × 2 launches would run, about 4 h 0 min" in text
    assert "2 h 0 min" in text.splitlines()[1]


def test_the_full_suite_says_how_long_it_takes(capfd):
    assert run_suite.main(["list", "--suite", "full", "--device", "cpu"]) == 0
    text = capfd.readouterr().out
    assert text == (run_suite.main(["--suite", "full", "--device", "cpu", "--dry-run"]), capfd.readouterr().out)[1]
    assert re.search(r"\d+ cases would run, about \d+ min \d+ s", text)


def test_nothing_to_run_is_said():
    assert plain(PLAN[-1:], 80) == (
        "would be skipped\n  1  no target folder: sequential/read\n\nnothing would run · 1 would be skipped\n"
    )
    assert plain([], 80) == "nothing would run\n"


@settings(deadline=None)
@given(st.lists(strategies.plans(), max_size=6), st.sampled_from([60, 80, 120]))
def test_any_plan_becomes_printable_lines_that_fit(plan, width):
    for line in plain(plan, width).split("\n"):
        assert line.isprintable()
        assert cell_len(line) <= width


@pytest.mark.parametrize("text", ["\x1b[31mred", "[red]x[/red]", "漢字" * 50, "y" * 500])
def test_names_and_reasons_cannot_steer_the_terminal(text):
    params = {"backend": text}
    page = plain([planned(record("p", params)), planned(record("q", params, "skipped", text))], 80)
    assert all(line.isprintable() and cell_len(line) <= 80 for line in page.split("\n"))
    assert ("[red]x[/red]" in page) == text.startswith("[red]")


def test_a_plan_is_one_json_document(capfdbinary):
    listing.show(PLAN, "json")
    assert msgspec.json.decode(capfdbinary.readouterr().out, type=list[Planned]) == list(PLAN)


def test_head_may_hang_up():
    code = "from tests.test_listing import PLAN; from reports import listing; listing.show(PLAN, str())"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -c '{code}' | head -n 1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("case ")
    assert done.stderr == ""
    assert done.returncode == 0


def test_what_storage_takes_is_told_with_the_rate_it_is_told_for():
    disk = planned(record("sequential", {"op": "read"}), budget_s=2.0, beyond_s=10.0)
    assert plain([disk], 80).endswith("1 case would run, about 6 s, or 16 s with storage of 500 MB/s\n")
    assert "or 16 s with storage of 500 MB/s on each node" in plain([msgspec.structs.replace(disk, hosts="n[1-4]")], 120)
    assert plain([msgspec.structs.replace(disk, beyond_s=0.0)], 80).endswith("1 case would run, about 6 s\n")


def test_what_is_checked_and_not_timed_takes_none_of_its_budget():
    once = planned(record("matmul", TRITON), budget_s=90.0)
    for name in ("interpret", "check_only"):
        assert predict_case(msgspec.structs.replace(once, **{name: True})) < 2
