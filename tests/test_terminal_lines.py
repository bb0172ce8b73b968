"""Lines below the row of a case: what its figures cannot say alone."""

from __future__ import annotations

import msgspec
import pytest
from rich.cells import cell_len

from clustergauge import ceilings, warnings
from clustergauge.model import Series, Workload
from clustergauge.units import format_rate
from tests.made_up import COPY, MATMUL, REDUCE, loaded, record, verdict
from tests.shown import planted_ceiling, shown


@pytest.fixture(autouse=True)
def ceilings_planted(monkeypatch):
    monkeypatch.setattr(ceilings, "ceiling", planted_ceiling)


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


def test_single_operations_tell_their_tails():
    latency = Series(unit="s", values=[1e-3] * 900 + [8e-3] * 95 + [9e-3] * 5)
    one = record("random", {"op": "read"})
    one = msgspec.structs.replace(one, measurement=msgspec.structs.replace(one.measurement, series={"latency": latency}))
    text = shown(loaded(one))
    assert "1.00 ms" in next(line for line in text.splitlines() if line.startswith("random"))
    assert "\n  p99 8.00 ms · p99.9 9.00 ms\n" in text


def test_a_collective_tells_what_peers_would_report_and_what_a_call_costs():
    reduce = record("all_reduce", REDUCE, settings={"call_overhead_s": 4.32e-7}, ranks=2)
    beside = {"loop_mean_s": 0.5, "arrival_skew_s": [1e-6, 3e-6, 2e-6]}
    reduce = msgspec.structs.replace(reduce, measurement=msgspec.structs.replace(reduce.measurement, **beside))
    rate = format_rate(reduce.workload.message_bytes / 0.5, "B/s")
    words = f"\n  in a loop 500 ms ({rate} bus) · a call alone 432 ns · ranks begin within 2.00 µs\n"
    assert words in shown(loaded(reduce))
    assert "in a loop" not in shown(loaded(record("all_reduce", REDUCE, ranks=2)))
