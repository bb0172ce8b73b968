"""Comparing runs: planted samples with known shifts, planted differences, and what is said of them."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from clustergauge import compare, differ, path
from clustergauge.execute import execute
from clustergauge.loading import LoadedRun
from clustergauge.messages import Job
from clustergauge.model import Counters, Gpu, Measurement, Place, Workload
from clustergauge.worker import load_probe
from clustergauge.world import Serial
from reports import comparison, side_by_side
from reports.markdown import cell
from tests import made


def launches(time: float, count: int = 5, spread: float = 0.001, seed: int = 0, **more):
    """Launches whose samples lie around ``time`` (s), each with a shift of its own."""
    rng = random.Random(seed)
    found = []
    for launch in range(count):
        own = time * (1 + spread * rng.uniform(-1, 1))
        samples = [own * (1 + spread * rng.gauss(0, 1)) for _ in range(30)]
        found.append(made.record(samples=samples, launch=launch, **{"shape": "1024"} | more))
    return found


def loaded(records, machine=None, run_id="run", **more) -> LoadedRun:
    machine = machine or made.machine()
    records = [msgspec.structs.replace(r, run_id=run_id, machine_id=machine.machine_id) for r in records]
    return LoadedRun(made.run(records, run_id=run_id, **more), {machine.machine_id: machine}, records, Path("x"), [])


def words(report):
    return [comparison.word_of(pair) for pair in report.pairs]


@pytest.mark.parametrize(("factor", "word", "code"), [(1.05, "slower", 1), (0.95, "faster", 0), (1.0, "same", 0)])
def test_a_planted_shift_is_found_with_its_direction_and_exit_code(factor, word, code):
    report = compare.compare(loaded(launches(1.0)), loaded(launches(factor, seed=1)))
    assert words(report) == [word]
    assert compare.exit_code(report) == code
    shift = report.pairs[0].shift
    assert shift.low <= factor - 1 <= shift.high
    assert not shift.weak


def test_one_launch_a_side_is_a_weak_word():
    report = compare.compare(loaded(launches(1.0, 1)), loaded(launches(1.2, 1, seed=1)))
    assert report.pairs[0].shift.weak
    assert "weak" in comparison.page_of(report, 120).text()


def test_noise_that_hides_a_change_is_inconclusive_and_exits_4():
    report = compare.compare(loaded(launches(1.0, spread=0.2)), loaded(launches(1.02, spread=0.2, seed=1)))
    assert words(report) == ["inconclusive"]
    assert compare.exit_code(report) == 4


def other_machine(**more):
    return made.machine(machine_id="m2", host="node-2", **more)


@pytest.mark.parametrize(
    ("machine", "kind", "name"),
    [
        (other_machine(cores=4), "device", "processor"),
        (other_machine(versions={"torch": "2.14"}), "library", "torch"),
        (other_machine(versions={"nvidia_driver": "570"}), "driver", "nvidia_driver"),
        (other_machine(settings={"governor": "powersave"}), "setting", "governor"),
        (other_machine(kernel="6.1"), "driver", "kernel"),
    ],
)
def test_machines_that_differ_are_not_compared_unless_somebody_insists(machine, kind, name):
    a, b = loaded(launches(1.0)), loaded(launches(1.05, seed=1), machine)
    refused = compare.compare(a, b)
    assert [(d.kind, d.name) for d in refused.differences if d.bars] == [(kind, name)]
    assert words(refused) == ["incomparable"]
    assert name in refused.pairs[0].why
    assert compare.exit_code(refused) == 4
    assert "--anyway" in comparison.page_of(refused, 120).text()
    anyway = compare.compare(a, b, anyway=True)
    assert words(anyway) == ["slower"]
    assert "compared anyway" in comparison.page_of(anyway, 120).text()


def test_what_the_kernel_keeps_of_the_memory_makes_no_other_machine():
    """Around 251.5 GiB, and a GiB less: as much as another kernel, or a dump of one, takes."""
    sizes = [int(gib * 2**30) for gib in (251.4999, 251.5001, 250.6)]
    machines = [made.machine(memory_bytes=size) for size in sizes]
    assert [differ.of_machines(machines[0], other) for other in machines] == [[], [], []]
    (lost,) = differ.of_machines(machines[0], made.machine(memory_bytes=int(219.9 * 2**30)))
    assert (lost.name, lost.a, lost.b) == ("memory", "256 GiB", "224 GiB")


def test_gpus_that_run_at_another_clock_or_power_limit_are_other_machines():
    gpu = Gpu(index=0, name="H100", uuid="GPU-0", sm_clock_max_mhz=1980, power_limit_w=700, ecc=True)
    one = made.machine(gpus=0)
    a, b = (msgspec.structs.replace(one, gpus=[g]) for g in (gpu, msgspec.structs.replace(gpu, power_limit_w=500, ecc=False)))
    assert {(d.kind, d.name) for d in differ.of_machines(a, b)} == {("clock", "gpu 0 power limit, W"), ("setting", "gpu 0 ECC")}


def test_other_code_of_the_suite_is_told_and_forbids_nothing():
    report = compare.compare(loaded(launches(1.0), code="aaa"), loaded(launches(1.0, seed=1), code="bbb"))
    assert [d.kind for d in report.differences] == ["code"]
    assert words(report) == ["same"]


def test_other_threads_forbid_and_other_observations_do_not():
    a = loaded(launches(1.0, settings={"threads": 2, "huge_page_share": 0.9, "exposed_samples": 1}))
    seen = loaded(launches(1.0, seed=1, settings={"threads": 2, "huge_page_share": 0.1, "exposed_samples": 7}))
    chosen = loaded(launches(1.0, seed=1, settings={"threads": 4, "huge_page_share": 0.9, "exposed_samples": 1}))
    assert words(compare.compare(a, seen)) == ["same"]
    refused = compare.compare(a, chosen)
    assert words(refused) == ["incomparable"]
    assert "threads: 2 against 4" in refused.pairs[0].why


@pytest.mark.parametrize(
    ("module", "name", "params"),
    [
        ("sequential", "sequential", {"op": "read", "depth": 1, "size": 4 << 20}),
        ("random_io", "random", {"op": "mixed", "block": "4KiB", "depth": 1, "size": 16 << 20}),
        ("small_files", "small_files", {"op": "write", "depth": 1, "size": 16 << 10}),
        ("metadata", "metadata", {"op": "stat", "layout": "one", "files": 100}),
    ],
)
def test_what_was_seen_of_a_disk_forbids_no_comparison_of_two_runs_on_it(tmp_path, monkeypatch, module, name, params):
    monkeypatch.setattr("storage_io.workspace.require_space", lambda *_, **__: None)
    sides = []
    for n in range(2):
        (tmp_path / f"filler-{n}").write_bytes(b"x" * (1 << 20))  # what is free is never the same
        job = Job("x", f"storage_io.{module}", name, params, "cpu", budget_s=0.05 * (1 + n), seed=1, target=str(tmp_path))
        outcome = execute(job, load_probe(job.module, name), Serial(), tmp_path, lambda _: None)
        assert outcome.status == "ok", outcome.reason
        fields = {
            "measurement": outcome.measurement,
            "settings": outcome.settings | {"free_bytes": n, "other_runs": f"{n} of user 0"},
        }
        sides.append(made.record(name, work=outcome.workload, **fields))
    assert differ.of_records(sides[:1], sides[1:]) == []


def test_other_work_is_never_compared_whoever_insists():
    a = loaded(launches(1.0))
    b = loaded(launches(1.0, work=Workload(flops=10**12, dtype="fp32", bound="compute")))
    report = compare.compare(a, b, anyway=True)
    assert words(report) == ["incomparable"]
    assert "flops" in report.pairs[0].why


def test_launches_of_one_side_that_did_different_work_are_not_compared_by_their_times():
    double = Workload(flops=4 * 10**12, dtype="fp32", bound="compute")
    mixed = [*launches(1.0, 3), *(msgspec.structs.replace(r, launch=r.launch + 3) for r in launches(2.0, 2, work=double))]
    report = compare.compare(loaded(mixed), loaded(launches(1.0, seed=1)), anyway=True)
    assert words(report) == ["incomparable"]
    assert report.pairs[0].why == "launches did different amounts of work"
    assert report.pairs[0].a.name == "compute"


def test_launches_that_have_nothing_in_common_have_no_number():
    apart = [*launches(1.0, 2, ranks=2), *(msgspec.structs.replace(r, launch=r.launch + 2) for r in launches(1.0, 2, ranks=3))]
    (pair,) = compare.compare(loaded(apart), loaded(launches(1.0, seed=1)), anyway=True).pairs
    assert (pair.word, pair.a) == ("incomparable", None)
    assert [line.values for line in side_by_side.table_of([loaded(apart)]).lines] == []


def test_another_cache_policy_is_other_work():
    hot = Measurement(clock="wall", cache="hot", samples_s=[1.0] * 30)
    report = compare.compare(loaded(launches(1.0)), loaded(launches(1.0, measurement=hot)), anyway=True)
    assert words(report) == ["incomparable"]


def test_what_broke_in_b_is_broken_and_exits_3():
    broken = [made.failed("wrong", "element 3", shape="1024")]
    report = compare.compare(loaded(launches(1.0)), loaded(broken))
    assert words(report) == ["broken"]
    assert "element 3" in report.pairs[0].why
    assert report.pairs[0].b is None
    assert compare.exit_code(report) == 3


def test_what_was_broken_in_a_is_incomparable():
    broken = [made.failed("error", "it died", shape="1024")]
    report = compare.compare(loaded(broken), loaded(launches(1.0)))
    assert words(report) == ["incomparable"]
    assert "in A: error: it died" in report.pairs[0].why


def test_a_number_that_cannot_be_true_is_not_compared():
    device_bytes = {"read": 1, "asked_read": 100}
    report = compare.compare(loaded(launches(1.0)), loaded(launches(0.1, device_bytes=device_bytes)))
    assert words(report) == ["broken"]
    assert "invalid" in report.pairs[0].why


def test_cases_of_one_run_alone_are_listed():
    both, one, two = launches(1.0), launches(1.0, shape="512"), launches(1.0, shape="256")
    report = compare.compare(loaded([*both, *one]), loaded([*both, *two]))
    assert (report.only_a, report.only_b) == (["matmul/shape=512"], ["matmul/shape=256"])
    assert words(report) == ["same"]


def test_skipped_cases_say_nothing_and_two_empty_runs_are_unknown():
    skipped = [made.failed("skipped", "no GPU", shape="1024")]
    report = compare.compare(loaded(skipped), loaded(skipped))
    assert report.pairs == []
    assert compare.exit_code(report) == 4


@pytest.mark.parametrize(("side", "code"), [("A", 4), ("B", 4)])
def test_what_both_planned_and_one_skipped_does_not_read_as_unchanged(side, code):
    gone = [made.failed("skipped", "no GPU", shape="2")]
    whole = [*launches(1.0, shape="1"), *launches(1.0, shape="2")]
    sides = {"A": whole, "B": whole} | {side: [*launches(1.0, seed=1, shape="1"), *gone]}
    report = compare.compare(loaded(sides["A"]), loaded(sides["B"]))
    assert sorted(words(report)) == ["incomparable", "same"]
    left = report.pairs[0]
    assert (left.why, left.launches) == (f"in {side}: skipped: no GPU", (0, 5) if side == "A" else (5, 0))
    assert (left.a is None, left.b is None) == (side == "A", side == "B")
    assert (report.only_a, report.only_b) == ([], [])
    assert compare.exit_code(report) == code
    assert "in both runs" not in comparison.markdown(report)


def test_a_case_that_moved_from_the_gpu_to_the_processor_is_not_the_same_case():
    on_gpu, both = launches(1.0, device="cuda:0"), launches(1.0, shape="1")
    report = compare.compare(loaded([*on_gpu, *both]), loaded([*launches(1.0), *both]))
    assert words(report) == ["incomparable", "same"]
    assert report.pairs[0].why == "in B: only on cpu:0"
    assert report.only_b == ["matmul/shape=1024"]
    assert compare.exit_code(report) == 4


def test_a_case_that_a_run_did_not_get_to_is_incomparable():
    a = loaded([*launches(1.0, shape="1"), *launches(1.0, shape="2")])
    b = loaded(launches(1.0, seed=1, shape="1"), planned=a.run.planned)
    report = compare.compare(a, b)
    assert [(p.word, p.why) for p in report.pairs] == [("incomparable", "in B: it has no record"), ("same", "")]
    back = compare.compare(b, a)
    assert [(p.word, p.why) for p in back.pairs] == [("incomparable", "in A: it has no record"), ("same", "")]


def test_what_broke_in_b_and_was_skipped_in_a_is_broken():
    skipped, broken = made.failed("skipped", "no GPU", shape="1"), made.failed("error", "it died", shape="1")
    report = compare.compare(loaded([skipped, *launches(1.0)]), loaded([broken, *launches(1.0, seed=1)]))
    assert sorted(words(report)) == ["broken", "same"]
    assert report.pairs[-1].why == "in B: error: it died; in A: skipped: no GPU"
    assert compare.exit_code(report) == 3


def test_fresh_launches_speak_for_their_case_as_in_the_report_of_their_run():
    fresh = [msgspec.structs.replace(r, launch=r.launch + 1, confirms=True) for r in launches(1.0, 4)]
    report = compare.compare(loaded([*launches(9.0, 1), *fresh]), loaded(launches(1.0, seed=1)))
    assert words(report) == ["same"]
    assert report.pairs[0].launches == (4, 5)


def test_bytes_that_went_another_way_are_not_compared():
    """Memory that ranks share was meant, and the loopback moved the bytes: as invalid here as in the report of the run."""
    machine = made.machine()
    moved = {"runs": 10, "node-1/lo.tx_bytes": 20 << 26, "node-1/lo.rx_bytes": 20 << 26}
    work = Workload(message_bytes=1 << 26, collective="all_reduce", dtype="fp32", bound="network")
    more = {"ranks": 2, "work": work, "placement": [Place(rank=n, host="node-1") for n in range(2)]}
    right = launches(1.0, backend="mpi", **more)
    astray = launches(0.5, backend="mpi", counters=Counters(path=moved), **more)
    assert path.proof(astray[0], [machine]).state == "contradicted"
    report = compare.compare(loaded(right, machine), loaded(astray, machine))
    assert words(report) == ["broken"]
    assert "another path" in report.pairs[0].why


def test_the_largest_slowdown_comes_last_and_first_in_markdown():
    a = loaded([*launches(1.0, shape="1"), *launches(1.0, shape="2"), *launches(1.0, shape="3")])
    b = loaded([*launches(1.2, seed=1, shape="1"), *launches(0.8, seed=1, shape="2"), *launches(1.1, seed=1, shape="3")])
    report = compare.compare(a, b)
    assert [p.params["shape"] for p in report.pairs] == ["2", "3", "1"]
    text = comparison.markdown(report)
    assert text.index("matmul/1") < text.index("matmul/3") < text.index("matmul/2")


def two_machines(run_id):
    machines = [made.machine(machine_id=f"m{i}", host=f"node-{i}") for i in (1, 2)]
    records = [msgspec.structs.replace(r, machine_id=m.machine_id) for m in machines for r in launches(1.0)]
    return LoadedRun(made.run(records, run_id=run_id), {m.machine_id: m for m in machines}, records, Path("x"), [])


def test_machines_of_a_fleet_are_matched_each_with_itself():
    report = compare.compare(two_machines("a"), two_machines("b"))
    assert words(report) == ["same", "same"]
    assert {pair.hosts for pair in report.pairs} == {("node-1", "node-1"), ("node-2", "node-2")}
    assert "node-2" in comparison.page_of(report, 120).text()


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_page(width):
    a = loaded([*launches(1.0, shape="1"), *launches(1.0, shape="2" * 90)])
    b = loaded([*launches(1.2, seed=1, shape="1"), *launches(0.8, seed=1, shape="2" * 90)])
    text = comparison.page_of(compare.compare(a, b), width).text()
    assert max(map(len, text.splitlines())) <= width


def test_names_that_would_look_alike_stand_above_their_rows():
    shapes = [f"{'a' * 15}{x}{'a' * 15}{y}{'a' * 15}" for x in "12" for y in "34"]
    sides = [loaded([r for shape in shapes for r in launches(1.0, seed=seed, shape=shape)]) for seed in (0, 1)]
    lines = comparison.page_of(compare.compare(*sides), 80).text().splitlines()
    for shape in shapes:
        row = lines[lines.index(f"matmul/{shape}") + 1]
        assert row.endswith("same")
    assert max(map(len, lines)) <= 80


def test_the_table_of_two_runs_as_it_is_printed():
    flat = [made.record(samples=[1e-3] * 30, launch=n, shape="1") for n in range(5)]
    late = [made.record(samples=[1.1e-3] * 30, launch=n, shape="1") for n in range(5)]
    report = compare.compare(loaded(flat, run_id="r1"), loaded(late, run_id="r2"))
    assert comparison.page_of(report, 100).text() == (
        "B r2 against A r1\n"
        "\n"
        "case                 A             B     time               95 %  launches\n"
        "matmul/1  2.00 PFLOP/s  1.82 PFLOP/s  +10.0 %  +10.0 % … +10.0 %       5+5  slower\n"
        "\n"
        "1 slower\n"
    )


def test_many_runs_mark_the_best_and_say_how_much_of_it_the_others_reach():
    runs = [loaded(launches(t, spread=0.0), run_id=f"r{i}") for i, t in enumerate((1.0, 0.5, 2.0))]
    table = side_by_side.table_of(runs)
    (line,) = table.lines
    assert line.best == 1
    assert [line.ratio(i) for i in range(3)] == pytest.approx([0.5, 1.0, 0.25])
    text = side_by_side.page_of(table, 120).text()
    assert "4.00 TFLOP/s    *" in text
    assert "1.00 TFLOP/s 25 %" in text
    assert "**4.00 TFLOP/s**" in side_by_side.markdown(table)


@pytest.mark.parametrize("kind", ["wrong", "invalid"])
def test_what_cannot_be_believed_is_best_of_nothing(kind):
    fast = launches(0.1)
    if kind == "wrong":
        fast[0] = made.failed("wrong", "element 3", shape="1024")
    else:
        fast = launches(0.1, device_bytes={"read": 1, "asked_read": 100})
    table = side_by_side.table_of([loaded(launches(1.0)), loaded(fast, run_id="fast"), loaded(launches(2.0))])
    (line,) = table.lines
    assert (line.values[1], line.words) == (None, ["", kind, ""])
    assert line.best == 0
    remark = f"in B: 1 {kind}, of 5 cases: report fast says why"
    assert remark in side_by_side.page_of(table, 120).text()
    assert f"- {cell(remark)}" in side_by_side.markdown(table)
    assert f" {kind} " in side_by_side.page_of(table, 120).text().partition("* best")[0]


def test_a_case_that_broke_wherever_it_ran_is_no_gap_in_the_table():
    runs = [loaded([made.failed("error", "it died", shape="1024")], run_id=name) for name in "abc"]
    assert [line.words for line in side_by_side.table_of(runs).lines] == [["error"] * 3]
    assert side_by_side.show(runs, "md") is False  # nothing was measured, which is no success


def test_one_bad_device_of_a_run_is_told_beside_the_number_of_the_others():
    bad = made.failed("wrong", "element 3", shape="1024", device="cuda:1")
    runs = [loaded([*launches(t, device="cuda:0"), *([bad] if t == 2 else [])], run_id=f"r{t}") for t in (1, 2, 3)]
    table = side_by_side.table_of(runs)
    assert [None in line.values for line in table.lines] == [False]
    assert list(table.remarks()) == ["in B: 1 wrong, of 6 cases: report r2 says why"]


@pytest.mark.parametrize("width", [80, 120])
def test_many_columns_stand_in_blocks_that_fit(width):
    runs = [loaded(launches(1.0 + i / 100), run_id=f"run-{i}") for i in range(30)]
    text = side_by_side.page_of(side_by_side.table_of(runs), width).text()
    assert max(map(len, text.splitlines())) <= width
    heads = [line.split()[1:] for line in text.splitlines() if line.startswith("case ")]
    assert len(heads) > 1
    assert [label for head in heads for label in head] == [side_by_side.letter_of(i) for i in range(30)]
    assert text.count("FLOP/s") == 30


def test_the_machines_of_the_columns_are_named():
    runs = [loaded(launches(1.0), made.machine(gpus, host=f"n{gpus}"), run_id=f"r{gpus}") for gpus in (0, 4, 8)]
    table = side_by_side.table_of(runs)
    text = side_by_side.page_of(table, 120).text()
    assert "C  r8  n8 · 8× NVIDIA A100-SXM4-80GB" in text
    assert "n8 · 8× NVIDIA A100-SXM4-80GB" in side_by_side.markdown(table)


def test_a_run_that_lacks_a_case_shows_none():
    runs = [loaded(launches(1.0)), loaded(launches(1.0, shape="2"))]
    lines = side_by_side.table_of(runs).lines
    assert [line.values.count(None) for line in lines] == [1, 1]
    assert all(line.best is None for line in lines)
    assert all(line.words == ["", ""] for line in lines)


def test_names_from_a_foreign_run_are_no_markup():
    evil = "<script>alert(1)</script>|`x`\n# heading"
    assert "<script>" not in cell(evil)
    assert "\n" not in cell(evil)
    assert "\\|" in cell(evil)
    a = loaded(launches(1.0), made.machine(versions={"torch": evil}))
    b = loaded(launches(1.0), made.machine(versions={"torch": "2"}))
    text = comparison.markdown(compare.compare(a, b))
    assert "<script>" not in text
    assert text.count("heading") == text.count("\\# heading") > 0


def test_machines_are_held_against_each_other_once_however_many_cases_they_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(differ, "of_machines", lambda a, b: asked.append((a.machine_id, b.machine_id)) or [])
    runs = [loaded([r for shape in "123" for r in launches(1.0, shape=shape)], run_id=name) for name in "ab"]
    assert len(compare.compare(*runs).pairs) == 3
    assert asked == [("m1", "m1")]


def test_a_machine_is_no_partner_of_two():
    """Of two hosts that swapped a machine for a new one, B's old machine is itself, wherever it hangs now."""

    def run(name: str, **hosts: str) -> LoadedRun:
        machines = {m: made.machine(machine_id=m, host=host) for m, host in hosts.items()}
        records = [made.record(samples=[1.0] * 20, run_id=name, machine_id=m) for m in machines]
        return LoadedRun(made.run(records, run_id=name), machines, records, Path("x"), [])

    report = compare.compare(run("a", old="n1", other="n2"), run("b", new="n3", other="n1"))
    assert [pair.hosts for pair in report.pairs] == [("n1", ""), ("n2", "n1")]
    assert (report.pairs[0].word, report.pairs[0].why) == ("incomparable", "in B: this machine is not there")
    assert (report.only_a, report.only_b) == ([], ["matmul"])
