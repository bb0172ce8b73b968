"""The report of a run as text: exact at 80 and 120 columns, safe whatever a record says, and lines that can be pasted."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len

import run_suite
from clustergauge import accept, ceilings, warnings
from clustergauge.globs import matches
from clustergauge.loading import LoadedRun
from clustergauge.model import Cpu, Place, Series, Warning_, Workload
from clustergauge.units import format_rate
from reports import layout, terminal
from reports.again import again, glob_of
from reports.rows import rows_of
from tests import strategies
from tests.made_up import COPY, CPU, GPU, MATMUL, REDUCE, RUN, TINY, TRITON, finding, loaded, planned, record, verdict

ROOT = Path(__file__).parent.parent
HOSTILE = (
    "[red]stop[/red]",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "<script>alert(1)</script>",
    "漢字" * 60,
    "x" * 3000,
    "a\nb\r\tc\u202ed\u200be",
    "[link=http://evil]x[/link]",
    "{0} %s $(reboot) `reboot`",
    ":smile: [/]",
)


@pytest.fixture(autouse=True)
def planted_ceilings(monkeypatch):
    """Known for compute, estimated for memory, unknown for the rest."""

    def ceiling(record, machine, metric, catalogue=None):
        known = {"compute": (2.5e12, "FLOP/s", True), "bandwidth": (1e12, "B/s", False)}.get(metric.name)
        return ceilings.Ceiling(*known, source="planted") if known else None

    monkeypatch.setattr(ceilings, "ceiling", ceiling)


def shown(run: LoadedRun, verdicts=(), width: int = 120) -> str:
    return terminal.page_of(run, verdicts, width).text()


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def mixed() -> tuple[LoadedRun, list]:
    """One of everything."""
    compute, memory = record("matmul", MATMUL), record("memory", COPY)
    slow, tiny = record("all_reduce", REDUCE, ranks=2), record("all_reduce", TINY, ranks=2, time=3e-6)
    died = record(
        "all_reduce",
        {**TINY, "size": 65536},
        "error",
        "rank 1 on node-017: killed by SIGKILL in phase 'measure'",
        ranks=2,
        settings={"log": "logs/all_reduce.txt"},
    )
    cached = record("memory", {**COPY, "op": "triad"})
    checked = [record("matmul", {**TRITON, "dtype": d}, "verified", "checked") for d in ("fp32", "bf16", "int8")]
    skipped = [record("all_reduce", {**REDUCE, "backend": "nccl", "size": s}, "skipped", "no GPU") for s in (8, 65536)]
    machine = msgspec.structs.replace(
        CPU,
        virtual="docker, KVM",
        findings=[
            finding("shm", "ok", "64 GiB"),
            finding("memlock", "warning", "locked memory is limited to 64 KiB", "ulimit -l unlimited"),
            finding("foreign processes", "unknown"),
        ],
    )
    run = loaded(
        compute,
        slow,
        memory,
        died,
        tiny,
        cached,
        *checked,
        *skipped,
        machines=(machine,),
        command=("--suite=full", "-k", "*", "--target", "/scratch/my dir", "--accept", "a.toml", "--max-time", "10m"),
    )
    verdicts = [
        verdict(compute, "pass", "compute", 2e12, "FLOP/s", floor=1.9e12),
        verdict(memory, "unreferenced"),
        verdict(slow, "FAIL", "busbw", 67.1e9, "B/s", floor=70e9, source="data sheet"),
        verdict(cached, "invalid", reason="cached: the device moved 3% of the bytes"),
    ]
    return run, verdicts


WIDE = """\
node-017 · AMD EPYC 7B13 · 2 cores · in docker, KVM                                             run 20260301-101500-ab12
torch 2.13.0 · triton 3.7.1 · python 3.11.9

case                         median           rate  of ceiling      ±  verdict
matmul/torch/fp32/1024      1.00 ms   2.00 TFLOP/s        80 %  1.0 %  pass  ≥ 1.90
memory/torch/copy/256MiB    1.00 ms       537 GB/s       ~54 %  1.0 %  ok
all_reduce/mpi/fp32/8B      3.00 µs              –           –  1.0 %  ok

verified (interpreter, not timed)  3: matmul/triton/{fp32,bf16,int8}/8192
skipped  2  no GPU: all_reduce/nccl/fp32/{8B,64KiB}

warning: memlock: locked memory is limited to 64 KiB
  → ulimit -l unlimited
unknown, because unreadable here: foreign processes
warning: few launches: planted
  → more of them

case                         median           rate  of ceiling      ±  verdict
all_reduce/gloo/fp32/64MiB  1.00 ms  67.1 GB/s bus           –  1.0 %  FAIL  ≥ 70.0 (−4.1 %)
  source: data sheet
  again: run_suite.py run -k all_reduce/backend=gloo/dtype=fp32/size=64MiB --suite full --target '/scratch/my dir'
all_reduce/mpi/fp32/64KiB         –              –           –      –  error
  rank 1 on node-017: killed by SIGKILL in phase 'measure'
  log: results/20260301-101500-ab12/logs/all_reduce.txt
  again: run_suite.py run -k all_reduce/backend=mpi/dtype=fp32/size=64KiB --suite full --target '/scratch/my dir'
memory/torch/triad/256MiB   1.00 ms       537 GB/s       ~54 %  1.0 %  invalid
  cached: the device moved 3% of the bytes
  again: run_suite.py run -k memory/backend=torch/op=triad/size=256MiB --suite full --target '/scratch/my dir'

1 pass · 2 ok (no criterion) · 1 error · 1 invalid · 1 FAIL · 3 verified · 2 skipped (no GPU) ·
3 min 12 s (75 % inside cases)
run folder: results/20260301-101500-ab12
"""

NARROW = """\
node-017 · AMD EPYC 7B13 · 2 cores · in docker, KVM     run 20260301-101500-ab12
torch 2.13.0 · triton 3.7.1 · python 3.11.9

case                         median           rate  ceiling      ±  verdict
matmul/torch/fp32/1024      1.00 ms   2.00 TFLOP/s     80 %  1.0 %  pass
memory/torch/copy/256MiB    1.00 ms       537 GB/s    ~54 %  1.0 %  ok
all_reduce/mpi/fp32/8B      3.00 µs              –        –  1.0 %  ok

verified (interpreter, not timed)  3: matmul/triton/{fp32,bf16,int8}/8192
skipped  2  no GPU: all_reduce/nccl/fp32/{8B,64KiB}

warning: memlock: locked memory is limited to 64 KiB
  → ulimit -l unlimited
unknown, because unreadable here: foreign processes
warning: few launches: planted
  → more of them

case                         median           rate  ceiling      ±  verdict
all_reduce/gloo/fp32/64MiB  1.00 ms  67.1 GB/s bus        –  1.0 %  FAIL
  busbw 67.1 GB/s, asked ≥ 70.0 GB/s (−4.1 %); source: data sheet
  again: run_suite.py run -k all_reduce/backend=gloo/dtype=fp32/size=64MiB \\
    --suite full --target '/scratch/my dir'
all_reduce/mpi/fp32/64KiB         –              –        –      –  error
  rank 1 on node-017: killed by SIGKILL in phase 'measure'
  log: results/20260301-101500-ab12/logs/all_reduce.txt
  again: run_suite.py run -k all_reduce/backend=mpi/dtype=fp32/size=64KiB \\
    --suite full --target '/scratch/my dir'
memory/torch/triad/256MiB   1.00 ms       537 GB/s    ~54 %  1.0 %  invalid
  cached: the device moved 3% of the bytes
  again: run_suite.py run -k memory/backend=torch/op=triad/size=256MiB \\
    --suite full --target '/scratch/my dir'

1 pass · 2 ok (no criterion) · 1 error · 1 invalid · 1 FAIL · 3 verified ·
2 skipped (no GPU) · 3 min 12 s (75 % inside cases)
run folder: results/20260301-101500-ab12
"""


@pytest.mark.parametrize(("width", "text"), [(120, WIDE), (80, NARROW)])
def test_a_run_with_one_of_everything_at_both_widths(width, text, monkeypatch):
    monkeypatch.setattr(
        warnings, "of_run", lambda records: [Warning_(name="few launches", detail="planted", remedy="more of them")]
    )
    run, verdicts = mixed()
    assert shown(run, verdicts, width) == text
    assert max(map(cell_len, text.splitlines())) <= width


def test_the_last_line_holds_counts_time_and_folder():
    skip = record("all_reduce", REDUCE, "skipped", "no InfiniBand")
    good = record("matmul", MATMUL)
    text = shown(loaded(good, skip), [verdict(good, "pass", "compute", 2e12, "FLOP/s", floor=1e12)])
    last = text.splitlines()[-1]
    assert last.startswith("1 pass · 1 skipped (no InfiniBand) · 3 min 12 s (75 % inside cases) ")
    assert last.endswith(f" run folder: results/{RUN}")
    assert len(last) == 120


def test_eight_gpus_get_a_heading_each_and_the_bad_one_comes_last():
    cases = [("read", "torch"), ("read", "triton"), ("copy", "torch"), ("copy", "triton")]
    records = [
        record("memory", {"backend": b, "op": o, "size": 1 << 30}, device=f"cuda:{gpu}") for gpu in range(8) for o, b in cases
    ]
    verdicts = [
        verdict(r, "FAIL" if i == 14 else "pass", "bandwidth", 2.15e12, "B/s", floor=2.8e12 if i == 14 else 1.8e12)
        for i, r in enumerate(records)
    ]
    text = shown(loaded(*records, machines=(GPU,)), verdicts, 80)
    assert text.startswith("node-017 · 8× NVIDIA H100 80GB HBM3                     run 20260301-101500-ab12\n")
    assert "nvidia driver 570.86 · cuda driver 12.8 · torch 2.13.0\n" in text
    assert [line for line in text.splitlines() if line.startswith("cuda:")] == [*(f"cuda:{i}" for i in range(8)), "cuda:3"]
    after = text[text.rindex("\ncuda:3\n") :].splitlines()
    assert re.fullmatch(r"memory/torch/copy/1GiB +1\.00 ms +2\.15 TB/s +~215 % +1\.0 % +FAIL", after[2])
    assert text.count("memory/torch/copy/1GiB ") == 8


def test_several_machines_are_told_apart_and_their_verdicts_not_mixed_up():
    other = msgspec.structs.replace(CPU, machine_id="m2", host="node-018")
    here, there = record("matmul", MATMUL), record("matmul", MATMUL, machine_id="m2", time=2e-3)
    verdicts = [
        verdict(here, "pass", "compute", 2e12, "FLOP/s", floor=1.9e12),
        verdict(there, "FAIL", "compute", 1e12, "FLOP/s", floor=1.9e12),
    ]
    run = loaded(here, there, machines=(CPU, other))
    run = LoadedRun(msgspec.structs.replace(run.run, planned=run.run.planned[:1]), run.machines, run.records, run.path, [])
    text = shown(run, verdicts)
    assert text.startswith("node-017, node-018 · AMD EPYC 7B13 · 2 cores")
    good, bad = text.index("node-017 · cpu:0\nmatmul/torch/fp32/1024  1.00 ms"), text.index("node-018 · cpu:0\nmatmul")
    assert good < bad
    assert [r.word for r in rows_of(run, verdicts)] == ["pass", "FAIL"]


def test_launches_of_a_case_are_one_row():
    run = loaded(*(record("matmul", MATMUL, launch=n, time=t) for n, t in enumerate((1e-3, 1e-3, 1e-3))))
    assert shown(run).count("matmul/torch/fp32/1024 ") == 1
    assert shown(run).splitlines()[-1].startswith("1 ok (no criterion) · 3 launches · 3 min 12 s ")


def test_a_case_that_failed_in_one_launch_shows_no_number_and_names_the_launch():
    run = loaded(record("matmul", MATMUL), record("matmul", MATMUL, "wrong", "row 7 is off", launch=1))
    text = shown(run)
    assert re.search(r"\nmatmul/torch/fp32/1024 +– +– +– +– +wrong\n  launch 1: row 7 is off\n", text)
    assert "1 wrong" in text.splitlines()[-1]
    assert " ok" not in text.splitlines()[-1]


def test_what_was_required_and_never_measured_is_shown_as_such():
    skip = record("all_reduce", REDUCE, "skipped", "no GPU")
    verdicts = [
        verdict(skip, "not measured", "busbw", reason="skipped: no GPU"),
        verdict(skip, "not measured", "algbw", reason="skipped: no GPU"),
    ]
    absent = msgspec.structs.replace(verdicts[0], case="matmul/*", device="", reason="no case of this run matches")
    text = shown(loaded(skip), [*verdicts, absent], 80)
    assert re.search(r"\nall_reduce/gloo/fp32/64MiB +– .* not measured\n  busbw is required; skipped: no GPU\n", text)
    assert re.search(r"\nmatmul/\* +– .* not measured\n  busbw is required; no case of this run matches\n", text)
    assert "again:" not in text
    assert "2 not measured" in text


def test_a_limit_reads_the_other_way_round_and_other_metrics_are_named():
    slow = record("all_reduce", TINY, time=3e-6, ranks=2)
    text = shown(loaded(slow), [verdict(slow, "FAIL", "time", 3e-6, "s", limit=2.5e-6)])
    assert "FAIL  ≤ 2.50 (−20.0 %)" in text
    bound = record("memory", COPY)
    text = shown(loaded(bound), [verdict(bound, "pass", "time", 1e-3, "s", limit=2e-3)])
    assert "pass  time ≤ 2.00 ms" in text
    fraction = verdict(bound, "FAIL", "device_fraction", 0.5, "1", floor=0.9)
    assert "device_fraction 50 %, asked ≥ 90 % (−44.4 %)" in shown(loaded(bound), [fraction])


def test_the_worst_of_several_verdicts_decides_the_row():
    row = record("matmul", MATMUL)
    words = ["pass", "inconclusive", "FAIL", "unreferenced"]
    verdicts = [verdict(row, w, "time", 1e-3, "s", limit=1e-3) for w in words]
    assert [r.word for r in rows_of(loaded(row), verdicts)] == ["FAIL"]
    assert [r.word for r in rows_of(loaded(row), verdicts[:2])] == ["inconclusive"]
    assert [r.word for r in rows_of(loaded(row), [])] == ["unreferenced"]


def test_warnings_that_many_cases_share_are_one_line_with_one_remedy(monkeypatch):
    noisy = [record("memory", {**COPY, "op": op}) for op in ("read", "write", "copy", "scale", "add", "triad")]
    monkeypatch.setattr(
        warnings,
        "doubts",
        lambda records, ceiling: [Warning_(name="drift", detail=f"{records[0].params['op']} drifts", remedy="wait")],
    )
    text = shown(loaded(*noisy), width=80)
    assert (
        "warning: drift: 6 cases: memory/torch/read/256MiB, … +5\n  → wait\n" in text
        or "warning: drift: 6 cases: memory/torch/read/256MiB, memory/torch/write/256MiB, … +4\n  → wait\n" in text
    )
    assert text.count("→ wait") == 1
    text = shown(loaded(*noisy[:2]))
    assert "warning: drift: memory/torch/read/256MiB: read drifts\nwarning: drift: memory/torch/write/256MiB: write" in text
    assert text.count("→ wait") == 1


def test_a_warning_that_many_cases_share_names_the_rank_and_the_host_it_is_about(monkeypatch):
    places = [Place(rank=n, host=f"h{n}") for n in range(3)]
    late = {"late": Series(unit="s", values=[0.0, 1e-6, 0.02]), "last": Series(unit="", values=[0.0, 0.1, 0.9])}

    def one(op: str, who: int):
        series = {name: msgspec.structs.replace(s, values=s.values[2 - who :] + s.values[: 2 - who]) for name, s in late.items()}
        made = record("memory", {**COPY, "op": op}, ranks=3, placement=places)
        return msgspec.structs.replace(made, measurement=msgspec.structs.replace(made.measurement, series=series))

    slow = [one("read", 2), one("write", 2), one("copy", 1), one("add", 2)]
    text = shown(loaded(*slow), width=120)
    assert "warning: late rank: 4 cases: " in text
    assert "\n  most often: rank 2 on h2 (3 of 4), rank 1 on h1 (1 of 4)\n  → look at that host" in text


@pytest.mark.parametrize(("hosts", "told"), [("aaab", "most often: host-a (3 of 4)"), ("aabb", "")])
def test_a_warning_that_many_cases_share_names_the_host_where_most_of_them_are(monkeypatch, hosts, told):
    monkeypatch.setattr(warnings, "doubts", lambda records, ceiling: [Warning_(name="drift", detail="x", remedy="wait")])
    machines = tuple(msgspec.structs.replace(CPU, machine_id=name, host=f"host-{name}") for name in "ab")
    rows = [record("memory", {**COPY, "size": n}, machine_id=name) for n, name in enumerate(hosts)]
    text = shown(loaded(*rows, machines=machines))
    assert "warning: drift: 4 cases" in text
    assert ("most often" in text) == bool(told)
    assert told in text


def test_a_number_above_an_estimate_is_a_warning_whatever_its_verdict():
    fast = record("memory", COPY, time=0.5e-3)
    for word, floor in (("pass", 4e11), ("FAIL", 2e12)):
        text = shown(loaded(fast), [verdict(fast, word, "bandwidth", 1.07e12, "B/s", floor=floor)])
        assert (
            "warning: above the ceiling: memory/torch/copy/256MiB: bandwidth 1.07 TB/s, at most 1.00 TB/s: planted\n"
            "  → believe neither before" in text
        )
    slow = record("memory", COPY)
    assert "above the ceiling" not in shown(loaded(slow), [verdict(slow, "pass", "bandwidth", 5e11, "B/s", floor=4e11)])


def at(mhz: float | None, **more):
    """A case whose clock was so high while it was sampled; 2 TFLOP/s of the 2.5 planted ones, which hold at 2000 MHz."""
    said = {"window": "sampling", "cpu_mhz_median": mhz}
    return record("matmul", MATMUL, telemetry=said | more.pop("telemetry", {}), **more)


@pytest.fixture
def clocked(monkeypatch):
    """The planted ceiling of compute holds at 2000 MHz; ``firm`` or not as the list says."""
    firm = [True]

    def ceiling(record, machine, metric, catalogue=None):
        return ceilings.Ceiling(2.5e12, "FLOP/s", firm[0], "planted", 2000.0) if metric.name == "compute" else None

    monkeypatch.setattr(ceilings, "ceiling", ceiling)
    return firm


def test_a_clock_off_that_of_the_ceiling_gets_the_share_at_that_clock(clocked):
    text = shown(loaded(at(1700.0)))
    (row, line) = text.splitlines()[3:5]
    assert row.endswith("80 %  1.0 %  ok")
    assert line == "  at the clock observed, 1700 MHz instead of 2000: 94 % of ceiling"
    assert "2500 MHz instead of 2000: 64 % of ceiling" in shown(loaded(at(2500.0)))
    clocked[0] = False
    assert "1700 MHz instead of 2000: ~94 % of ceiling" in shown(loaded(at(1700.0)))


def test_a_clock_that_is_about_that_of_the_ceiling_or_unknown_gets_no_line(clocked):
    for case in (at(1941.0), at(2059.0), at(None), at(1700.0, telemetry={"window": "case"})):
        assert "clock observed" not in shown(loaded(case))
    launches = [at(mhz, launch=n) for n, mhz in enumerate((1000.0, 1600.0, 1700.0))]
    assert "1600 MHz instead of 2000: 100 % of ceiling" in shown(loaded(*launches))
    assert "clock observed" not in shown(loaded(*launches, at(None, launch=3)))


def test_energy_by_a_counter_gets_a_line_with_its_ends():
    joules = {"window": "sampling", "cpu_energy_j": 100.0, "cpu_energy_from_s": 0.0, "cpu_energy_to_s": 2.0}
    case = record("matmul", MATMUL, time=0.1, telemetry=joules)
    taken = msgspec.structs.replace(case.measurement, sample_start_s=[i / 8 for i in range(40)])
    text = shown(loaded(msgspec.structs.replace(case, measurement=taken)))
    assert "\n  3.12 nJ/FLOP by the energy counter: 2.24 nJ/FLOP … 3.50 nJ/FLOP, with idle power and resets\n" in text
    assert "J/B" not in text


def test_doubts_are_of_the_measured_launches_of_a_case_together(monkeypatch):
    asked = []
    monkeypatch.setattr(warnings, "doubts", lambda records, _: asked.append([r.launch for r in records]) or [])
    shown(loaded(*(record("matmul", MATMUL, launch=n) for n in range(3)), record("memory", COPY, "error", "x")))
    assert asked == [[0, 1, 2]]


def test_health_that_changed_during_a_case_is_shown_once():
    counted = {"ecc_corrected": 3, "unknown": "gpu0.xid"}
    run = loaded(record("memory", COPY, health=counted), record("matmul", MATMUL, "error", "died", health={"gpu0.xid_79": 1}))
    text = shown(run)
    assert text.count("ecc_corrected") == 1
    assert "warning: health: memory/torch/copy/256MiB: ecc_corrected: +3\n" in text
    assert "warning: health: gpu0.xid_79: 1 during matmul/torch/fp32/1024\n" in text
    assert "unknown, because unreadable here: gpu0.xid\n" in text


def test_an_interrupted_run_says_how_to_go_on():
    missing = [planned(record("matmul", MATMUL, launch=n)) for n in (1, 2)]
    text = shown(loaded(record("matmul", MATMUL), missing=missing, interrupted=True, notes=["interrupted while writing: line 2"]))
    assert "interrupted while writing: line 2\n" in text
    goes_on = f"interrupted: 2 of 3 planned cases have no record; run_suite.py run --resume {RUN} goes on\n"
    assert goes_on in text
    assert "interrupted" not in shown(loaded(record("matmul", MATMUL)))


def test_a_run_of_nothing_is_a_few_lines():
    text = shown(loaded(machines=(), seconds=0), width=80)
    assert text.splitlines()[0].startswith("no machine was reached")
    assert text.splitlines()[-1].startswith("no case was measured ")


# --------------------------------------------------------------------------------------------------------------------------
# safe


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("width", [80, 120])
def test_nothing_a_record_says_steers_the_terminal_or_breaks_the_lines(text, width):
    params = {"backend": text.replace("/", "|"), "op": "copy"}
    machine = msgspec.structs.replace(
        CPU,
        host=text,
        cpu=Cpu(model=text, cores=2, threads=4, allowed=text),
        virtual=text,
        versions={"torch": text, text: "1"},
        findings=[finding(text, "warning", text, text), finding(text, "unknown")],
    )
    records = [
        record("matmul", params, "error", text, settings={"log": text}),
        record("memory", params, "skipped", text),
        record("latency", params, "verified", text),
        record("probe", params, device=text, health={text: text}),
    ]
    run = loaded(*records, machines=(machine,), command=("--target", text, "--probes", text), notes=[text])
    verdicts = [verdict(records[3], "FAIL", text, 1.0, "s", limit=0.5, reason=text, source=text)]
    page = terminal.page_of(run, verdicts, width)
    plain = page.text()
    for line in plain.split("\n"):
        assert line.isprintable(), line
        if not line.startswith(("  again:", "    -", "  log:", "run folder:")):
            assert cell_len(line) <= width, line
    assert re.sub(r"\x1b\[[0-9;]*m", "", page.text(color=True)) == plain
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", page.text(color=True))
    if text.startswith("[red]"):
        assert "[red]stop[/red]" in plain


@settings(deadline=None, max_examples=60)
@given(filled=strategies.filled_runs(), width=st.sampled_from([80, 120]))
def test_whatever_a_sound_run_holds_becomes_lines_that_fit_and_the_same_ones_every_time(filled, width):
    run = LoadedRun(filled.run, {filled.machine.machine_id: filled.machine}, filled.records, loaded().path, [])
    verdicts = accept.judge(run.records, [], None, run.run.planned)
    text = shown(run, verdicts, width)
    assert text == shown(run, verdicts, width)
    for line in text.split("\n"):
        assert line.isprintable()
        assert line == line.rstrip()
        if not line.startswith(("  again:", "    -", "  log:", "run folder:")):
            assert cell_len(line) <= width, line
    rows = rows_of(run, verdicts)
    assert sum(len(r.records) for r in rows) == len(run.records)


# --------------------------------------------------------------------------------------------------------------------------
# names and widths


def test_names_that_do_not_fit_lose_what_is_common_first_and_stay_different():
    names = [f"all_reduce/a_rather_long_backend/dtype_{t}/64MiB" for t in ("fp32", "bf16")]
    assert list(layout.squeezed(names, 30).values()) == ["all_reduce/…/dtype_fp32/64MiB", "all_reduce/…/dtype_bf16/64MiB"]
    assert list(layout.squeezed(names, 99).values()) == names
    assert layout.squeezed(["all_reduce/nccl/float8/64MiB"], 20) == {"all_reduce/nccl/float8/64MiB": "all_reduce…at8/64MiB"}


@given(st.lists(st.text(st.sampled_from("ab漢/é…"), max_size=30), max_size=6), st.integers(4, 40))
def test_squeezed_names_fit(names, width):
    assert all(cell_len(short) <= width for short in layout.squeezed(names, width).values())
    assert set(layout.squeezed(names, width)) == set(names)


@given(st.text(max_size=80), st.integers(0, 40))
def test_fitted_text_fits_and_text_that_fits_is_left_alone(text, width):
    fitted = layout.fit(text, width)
    assert cell_len(fitted) <= width
    if cell_len(text) <= width:
        assert fitted == text


@given(st.text(st.sampled_from("ab 漢字"), max_size=80), st.integers(2, 20))
def test_broken_lines_fit_and_lose_nothing(text, width):
    lines = layout.broken(text, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_the_part_that_is_cut_out_is_not_the_one_in_which_names_differ():
    names = [f"matmul/torch/{t}/{'1234' * 8}" for t in ("fp32", "bf16", "bf17")]
    assert list(layout.squeezed(names, 22).values()) == [f"matmul/…/{t}/1…341234" for t in ("fp32", "bf16", "bf17")]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_of_a_page_is_printable_whoever_wrote_it(text):
    page = layout.Page(80)
    page.add(text, (text, "red"))
    page.wrap(text, "> ")
    assert all(line.isprintable() for line in page.text().split("\n"))


def test_many_cases_are_named_in_few_words():
    cases = [("all_reduce", b, t, s) for b in ("mpi", "gloo") for t in ("fp32",) for s in ("8B", "64KiB")]
    assert layout.compact(cases) == ["all_reduce/{mpi,gloo}/fp32/{8B,64KiB}"]
    assert layout.compact([*cases[:3], ("memory", "x")]) == [
        "all_reduce/mpi/fp32/{8B,64KiB}",
        "all_reduce/gloo/fp32/8B",
        "memory/x",
    ]
    assert layout.compact([("p", str(i)) for i in range(9)]) == ["p/{0,1,…,8}"]
    assert layout.compact([]) == []


def test_names_are_whole_ids_where_values_alone_would_look_alike():
    params = {"a/x=1": {"x": 1}, "a/y=1": {"y": 1}, "a/x=2": {"x": 2}}
    assert layout.short_names(params) == {"a/x=1": "a/x=1", "a/y=1": "a/y=1", "a/x=2": "a/2"}


@given(st.lists(st.text("abc漢", min_size=1, max_size=9), max_size=9), st.integers(12, 50))
def test_lists_name_as_many_as_fit_and_count_the_rest(items, width):
    text = layout.listed(items, width)
    assert cell_len(text) <= width
    more = int(match[1]) if (match := re.search(r"… \+(\d+)$", text)) else 0
    assert len([t for t in re.sub(r"(, )?…? ?… \+\d+$", "", text).split(", ") if t]) + more == len(items)


# --------------------------------------------------------------------------------------------------------------------------
# rerun lines


def pasted(text: str) -> list[str]:
    """The words a shell makes of the first rerun line."""
    line = text[text.index("again: ") + 7 :].replace("\\\n", "")
    line = re.split(r"\n", line)[0]
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return out.decode().split("\0")[:-1]


NASTY = 'it\'s $(reboot); `x` "y" \\ & {ranks}'


@pytest.mark.parametrize("width", [80, 120])
def test_a_pasted_line_gives_the_command_line_what_the_run_was_given(width):
    command = ("--sui", "full", "--set", "size=1GiB", "--set=op=copy,add", "--probes", "my.probes", "--launcher", NASTY, "-oout")
    command += ("-kmemory*", "--device", "cpu", "--ranks", "2", "--launches", "5", "--format=json", "--dry-run")
    command += ("--target=-odd", "--target", "b", "--cross-check")
    words = pasted(shown(loaded(record("memory", COPY, "error", "died"), command=command), width=width))
    assert words[:2] == ["run_suite.py", "run"]
    options = run_suite.make_parser().parse_args(words[1:])
    assert options.globs == ["memory/backend=torch/op=copy/size=256MiB"]
    assert (options.suite, options.values, options.probes) == ("full", ["size=1GiB", "op=copy,add"], ["my.probes"])
    assert (options.launcher, options.output, options.device, options.ranks) == (NASTY, "out", "cpu", 2)
    assert (options.targets, options.launches, options.format, options.dry_run) == (["-odd", "b"], 1, "text", False)
    assert options.cross_check
    assert shlex.split(shlex.join(words)) == words


def test_what_is_the_default_anyway_is_not_said_again():
    run = loaded(command=("run", "--suite", "quick", "--device", "auto", "-o", "results")).run
    assert again(run, "a/b=1", broken=True) == ["run_suite.py run", "-k a/b=1"]


def test_every_flag_that_the_run_knows_is_known_to_the_rerun_line():
    from reports.again import _KEPT, _OTHER, _SWITCHES

    known = {"-k", *(f"--{name}" for name in (*_KEPT, *_OTHER, *_SWITCHES) if name != "k")}
    (verbs,) = [a for a in run_suite.make_parser()._actions if a.dest == "verb"]
    flags = {flag for action in verbs.choices["run"]._actions for flag in action.option_strings}
    assert flags - {"-h", "--help", "-o"} == known


def test_a_run_of_failed_cases_is_run_again_as_such():
    died, slow = record("memory", COPY, "error", "died"), record("matmul", MATMUL)
    run = loaded(died, slow, command=("run", "--rerun-failed", "20260101", "-o", "out", "--suite", "full")).run
    assert again(run, died.case, broken=True) == ["run_suite.py run", f"--rerun-failed {RUN}", "-o out"]
    assert again(run, slow.case, broken=False) == ["run_suite.py run", "--rerun-failed 20260101", "-o out"]
    latest = loaded(slow, command=("--rerun-failed", "latest")).run
    assert again(latest, slow.case, broken=False) == []


def test_a_command_that_cannot_be_understood_still_gives_a_line():
    assert again(loaded(command=("--suite",)).run, "a/b=1", broken=True) == ["run_suite.py run", "-k a/b=1"]
    assert again(msgspec.structs.replace(loaded().run, command=[]), "a", broken=True) == ["run_suite.py run", "-k a"]


@given(st.lists(st.text(st.sampled_from("ab=/*?[]-!1"), max_size=8).map(lambda t: t + "p"), min_size=1, max_size=6, unique=True))
def test_a_glob_chooses_its_case_and_no_other(cases):
    glob = glob_of(cases[0], cases)
    assert [case for case in cases if matches(glob, case)] == cases[:1]
    assert not glob.startswith("-")


# --------------------------------------------------------------------------------------------------------------------------
# where it goes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bare(monkeypatch):
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


def test_a_terminal_gets_colours_a_pipe_and_no_color_get_none(bare):
    run, verdicts = mixed()

    def printed(stream: io.StringIO) -> str:
        bare.setattr(sys, "stdout", stream)
        terminal.show(run, verdicts)
        return stream.getvalue()

    assert "\x1b[1;31mFAIL" in printed(Terminal())
    plain = printed(io.StringIO())
    assert "\x1b" not in plain
    assert plain == shown(run, verdicts, 120)
    bare.setenv("COLUMNS", "80")
    assert printed(io.StringIO()) == shown(run, verdicts, 80)
    bare.setenv("NO_COLOR", "1")
    assert printed(Terminal()) == shown(run, verdicts, 80)
    bare.delenv("NO_COLOR")
    bare.setenv("TERM", "dumb")
    assert "\x1b" not in printed(Terminal())


@pytest.mark.parametrize(
    ("columns", "width"), [("100", 100), ("", 120), ("0", 120), ("-5", 120), ("x", 120), ("7", 72), ("9999", 160)]
)
def test_the_width_of_a_pipe(bare, columns, width):
    bare.setenv("COLUMNS", columns)
    assert layout.width_of(io.StringIO()) == width


def test_signs_that_an_encoding_lacks_are_replaced(bare):
    raw = io.BytesIO()
    bare.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    run, verdicts = mixed()
    terminal.show(run, verdicts)
    sys.stdout.flush()
    assert b"3.00 us" in raw.getvalue()
    assert len(raw.getvalue().splitlines()) == len(shown(run, verdicts).splitlines())


def test_a_report_loads_no_device_library():
    code = "import sys; from reports import document, listing, progress, selfcheck, terminal; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not set(out) & {"torch", "scipy", "triton", "mpi4py", "pynvml", "cupy", "kernels", "collectives", "storage_io"}


def test_a_burn_in_tells_what_it_held():
    burn = record("matmul", MATMUL, settings={"burn_in": True})
    times = [1e-3] * 200 + [1.25e-3] * 200
    burn = msgspec.structs.replace(burn, measurement=msgspec.structs.replace(burn.measurement, samples_s=times))
    assert "\n  sustained 80.0%: 2.00 TFLOP/s → 1.60 TFLOP/s\n" in shown(loaded(burn))
    assert "sustained" not in shown(loaded(record("matmul", MATMUL)))


def with_series(case, **values):
    series = {name: Series(unit="s", values=[value] * 40) for name, value in values.items()}
    steps = 5 if "later_steps" in values else 1
    taken = msgspec.structs.replace(case.measurement, series=series, iterations_per_sample=steps)
    return msgspec.structs.replace(case, measurement=taken, workload=Workload(bytes_read=1 << 30, bound="storage"))


def test_a_checkpoint_tells_framework_from_device_and_how_much_it_was_in_80_columns():
    shard = "31 of 1164 tensors, 1.78 % of one of llama3-405b's 512 shards"
    case = record("checkpoint", {"format": "torch"}, time=2.0, settings={"shard": shard, "device_counters": True})
    text = shown(loaded(with_series(case, framework=1.5)), width=80)
    assert f"\n  framework 1.50 s · device 500 ms\n  {shard}\n" in text
    assert max(map(cell_len, text.splitlines()[:8])) <= 80
    raw = shown(loaded(with_series(case)))
    assert "framework" not in raw
    assert shard in raw
    hostile = msgspec.structs.replace(case, settings={"shard": "\x1b[31m" + "x" * 3000})
    assert max(map(cell_len, shown(loaded(with_series(hostile)), width=80).splitlines()[:8])) <= 80


def test_a_loader_tells_its_utilisation_and_what_it_is_about():
    case = record("loader", {"workers": 4}, time=0.04, settings={"compute_s": 0.036})
    assert "\n  AU 90.0 % with 36.0 ms of compute a batch\n" in shown(loaded(with_series(case, later_steps=0.16)))
    assert "AU" not in shown(loaded(with_series(msgspec.structs.replace(case, settings={}), later_steps=0.16)))


def test_a_collective_tells_what_peers_would_report_and_what_a_call_costs():
    reduce = record("all_reduce", REDUCE, settings={"call_overhead_s": 4.32e-7}, ranks=2)
    beside = {"loop_mean_s": 0.5, "arrival_skew_s": [1e-6, 3e-6, 2e-6]}
    reduce = msgspec.structs.replace(reduce, measurement=msgspec.structs.replace(reduce.measurement, **beside))
    rate = format_rate(reduce.workload.message_bytes / 0.5, "B/s")
    words = f"\n  in a loop 500 ms ({rate} bus) · a call alone 432 ns · ranks begin within 2.00 µs\n"
    assert words in shown(loaded(reduce))
    assert "in a loop" not in shown(loaded(record("all_reduce", REDUCE, ranks=2)))
