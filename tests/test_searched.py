"""A rate that its own search refutes is not the best one; a search with no time to search says so."""

from __future__ import annotations

import pytest

from clustergauge import metrics, searched, warnings
from clustergauge.accept import judge
from clustergauge.model import Criterion, Measurement, Record, Series, Workload
from tests import made


def best(seconds: float, finals: list[float], unit: str = "FLOP/s", **more) -> Record:
    """2 GFLOP in each sample of so many seconds, after a search that saw these rates."""
    measurement = Measurement(
        clock="wall",
        cache="none",
        samples_s=[seconds] * 30,
        series={"search": Series(unit=unit, values=[1e9, 2e9, 3e9]), "finals": Series(unit=unit, values=finals)},
    )
    settings = {"searched": "256 384 512", "finalists": "256 384 512"}
    work = Workload(flops=2 * 10**9, dtype="fp32", bound="compute")
    return made.record("best_matmul", measurement=measurement, work=work, settings=settings | more.pop("settings", {}), **more)


def test_a_rate_far_below_what_the_search_saw_is_invalid_whatever_is_asked():
    record = best(2 / 1.34, [1.5e9, 13.8e9, 13.7e9])
    words = "not the best rate: 1.34 GFLOP/s was measured, 13.8 GFLOP/s seen at 384 while searching"
    for asked in ([], [Criterion(case="*", floor=1.0, unit="GFLOP/s")]):
        (verdict,) = judge([record], asked)
        assert (verdict.verdict, verdict.reason) == ("invalid", f"{words} (did others take the machine meanwhile?)")


@pytest.mark.parametrize("seconds", [2 / 13.8, 2 / 7.0])
def test_a_rate_about_as_high_as_seen_stands(seconds):
    (verdict,) = judge([best(seconds, [1.5e9, 13.8e9, 13.7e9])])
    assert verdict.verdict == "unreferenced"


def test_of_several_launches_the_best_that_any_saw_counts():
    records = [best(1.0, [2e9, 2e9]), best(1.0, [2e9, 5e9], launch=1)]
    assert "5.00 GFLOP/s seen at 384" in searched.refuted(records, metrics.derive(records))
    assert searched.refuted(records[:1], metrics.derive(records[:1])) == ""


def test_what_searched_in_another_unit_or_not_at_all_refutes_nothing():
    for record in (best(1.0, [9e99], "OP/s"), made.record()):
        assert searched.refuted([record], metrics.derive([record])) == ""
    assert searched.refuted([best(1.0, [9e9])], []) == ""


def test_a_search_that_time_ended_at_the_foot_of_its_ladder_is_told_and_one_that_ended_later_not():
    def said(searched: str, untried: str) -> list[str]:
        record = best(1.0, [2e9], settings={"searched": searched, "untried": untried})
        return [w.detail for w in warnings.doubts([record]) if w.name == "short search"]

    assert said("256 384 512", "768 1024") == ["there was time to try 256, 384, 512 of 5: what is larger may well be faster"]
    assert said("256 384 512 768", "1024") == []
    assert said("256", "") == []
