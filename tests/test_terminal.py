"""The report of a run as text: exact at 80 and 120 columns, and safe whatever a record says."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len

from clustergauge import accept, ceilings, warnings
from clustergauge.loading import LoadedRun
from clustergauge.model import Cpu, Place, Series, Warning_
from reports import layout, page, terminal
from reports.rows import rows_of
from tests import strategies
from tests.made_up import COPY, CPU, GPU, MATMUL, REDUCE, RUN, TINY, TRITON, finding, loaded, planned, record, verdict
from tests.shown import HOSTILE, planted_ceiling, shown

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def ceilings_planted(monkeypatch):
    monkeypatch.setattr(ceilings, "ceiling", planted_ceiling)


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


def test_nodes_stand_in_the_order_of_their_machines_whoever_was_first_and_what_spans_them_last():
    machines = [msgspec.structs.replace(CPU, machine_id=f"m{n}", host=f"n{n}") for n in (1, 2, 3)]
    spanning = record("all_reduce", TINY, device="cpu:nodes", machine_id="m1")
    run = loaded(spanning, *(record("matmul", MATMUL, machine_id=f"m{n}") for n in (3, 1, 2)), machines=machines)
    heads = [line for line in shown(run).splitlines() if re.fullmatch(r"n\d · cpu:\w+", line)]
    assert heads == ["n1 · cpu:0", "n2 · cpu:0", "n3 · cpu:0", "n1 · cpu:nodes"]
    page_of_it = page.html_of(run, rows_of(run, ()))
    assert re.findall(r">(n\d cpu:\w+)<", page_of_it)[:4] == ["n1 cpu:nodes", "n1 cpu:0", "n2 cpu:0", "n3 cpu:0"]  # by case


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


def test_names_that_would_look_alike_stand_above_their_rows():
    shapes, width = [f"{'a' * 25}{x}{'a' * 25}{y}{'a' * 25}" for x in "12" for y in "34"], 96
    run = loaded(*(record("matmul", {**MATMUL, "shape": shape}) for shape in (*shapes, "8")))
    lines = terminal.page_of(run, [], width).text().splitlines()
    assert any(line.startswith("matmul/torch/fp32/8 ") for line in lines)
    for shape in shapes:
        row = lines[lines.index(f"matmul/torch/fp32/{shape}") + 1]
        assert row.split()[:2] == ["1.00", "ms"]
        assert row.endswith("ok")
    assert max(map(cell_len, lines)) <= width
