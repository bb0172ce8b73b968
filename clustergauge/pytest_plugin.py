"""The pytest plugin of the installed library: the fixture ``gauge`` measures a kernel of one's own inside a test.

```python
@pytest.mark.gauge(flops=2 * 4096**3, floor="700 TFLOP/s", device="cuda:0")
def test_product(gauge):
    gauge(lambda: torch.mm(a, b, out=c), check=lambda: torch.testing.assert_close(c, expected))
```

The test fails if the output is wrong, or if the whole interval lies on the wrong side of the threshold.  If the threshold lies
inside the interval the test passes with a `GaugeWarning`: nothing was shown either way; so does one that never called its gauge.
Under pytest-xdist, whose other workers would be measured along, and with ``--gauge-check-only`` the kernel runs once and is
checked, and nothing is timed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from clustergauge import marker

if TYPE_CHECKING:  # everything else is imported when the fixture is used: each pytest that has us installed loads this file
    from clustergauge.model import Measurement, Metric, Outcome
    from clustergauge.probe import Work

_KEPT = "gauge"
_GAUGE = pytest.StashKey["Gauge"]()


class GaugeWarning(UserWarning):
    """Nothing was shown: a threshold lies inside the interval of what was measured, or nothing was measured at all."""


@dataclass(frozen=True)
class Gauged:
    """What came of it.  ``metrics`` are empty and ``verdict`` is *not measured* where the kernel was only checked."""

    verdict: Outcome
    reason: str
    metrics: tuple[Metric, ...] = ()
    measurement: Measurement | None = None

    @property
    def text(self) -> str:
        """One line for a person: the number that the threshold is about with its interval, the verdict, and why."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


def pytest_addoption(parser: pytest.Parser) -> None:
    """One flag."""
    group = parser.getgroup("clustergauge")
    group.addoption("--gauge-check-only", action="store_true", help="run gauged kernels once and check them; time nothing")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    words = f"gauge({', '.join(f'{name}=…' for name in marker.FIELDS)}): declared work and threshold of a gauged kernel."
    config.addinivalue_line("markers", words)


@pytest.fixture
def gauge(request: pytest.FixtureRequest) -> Gauge:
    """Measures a function, checks it, and holds it against the threshold of ``@pytest.mark.gauge(…)``."""
    node = cast("pytest.Item", request.node)  # pyright: ignore[reportUnknownMemberType]
    node.stash[_GAUGE] = made = Gauge(node)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that asks for a gauge and never calls it does not pass in silence."""
    result = yield  # raises where the test failed or was skipped
    made = pyfuncitem.stash.get(_GAUGE, None)
    if not made.called if made else any(mark.name == _KEPT for mark in pyfuncitem.own_markers):
        warnings.warn(GaugeWarning(f"{pyfuncitem.nodeid}: gauge was never called: nothing was measured"), stacklevel=1)
    return result


class Gauge:
    """The fixture's value: call it once."""

    def __init__(self, node: pytest.Item) -> None:
        self.called = False
        self._node = node

    def __call__(
        self,
        run: Callable[[], object],
        *,
        check: Callable[[], object],
        reset: Callable[[], object] | None = None,
    ) -> Gauged:
        """Measure ``run``: the work and nothing else.

        ``check`` looks at the output of the last run; if it is wrong it raises, or returns something false that is not ``None``.
        ``reset``, untimed before each sample, should spoil the output, so that a run that did nothing is caught.  Fails the test
        as the module says, and for a marker that makes no sense.
        """
        __tracebackhide__ = True
        from clustergauge.probe import Work, Wrong

        self.called, only_check = True, _only_check(self._node.config)
        try:
            asked = marker.read(self._node)
            marker.require(self._node.nodeid, "" if only_check else asked.device, run, check)
        except pytest.UsageError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        work = Work(run=run, check=lambda: _checked(check), reset=reset, workload=asked.workload, clock="device")
        try:
            gauged = _checked_only(work) if only_check else _untraced(work, asked)
        except Wrong as wrong:
            self._keep(f"wrong: {wrong}")
            raise pytest.fail.Exception(f"wrong: {wrong}", pytrace=False) from wrong
        self._keep(gauged.text)
        if gauged.verdict == "FAIL":
            pytest.fail(gauged.text, pytrace=False)
        if gauged.verdict == "inconclusive":
            warnings.warn(GaugeWarning(gauged.text), stacklevel=2)
        return gauged

    def _keep(self, text: str) -> None:
        """For the summary and JUnit's properties; with the report it also comes from the workers of pytest-xdist."""
        self._node.user_properties.append((_KEPT, text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each kernel."""
    stats = cast("Mapping[str, list[Any]]", terminalreporter.stats)
    reports = [r for reports in stats.values() for r in reports if getattr(r, "when", "") == "call"]
    lines = [f"{r.nodeid}  {text}" for r in reports for name, text in r.user_properties if name == _KEPT]
    if lines:
        terminalreporter.section("gauged")
        for line in lines:
            terminalreporter.write_line(line)


# --------------------------------------------------------------------------------------------------------------------------
# steps


def _only_check(config: pytest.Config) -> bool:
    return bool(config.getoption("gauge_check_only")) or hasattr(config, "workerinput")


def _checked(check: Callable[[], object]) -> None:
    """The user's check; what it says is wrong is `Wrong`."""
    from clustergauge.probe import Wrong

    try:
        fine = check()
    except AssertionError as error:
        raise Wrong(" ".join(str(error).split())[:500] or "the check failed") from error
    if fine is not None and not fine:  # numpy's and torch's False are not the one False
        raise Wrong(f"the check returned {' '.join(repr(fine).split())[:100]}")


def _checked_only(work: Work) -> Gauged:
    if work.reset:
        work.reset()
    work.runs[0]()
    assert work.check
    work.check()
    return Gauged("not measured", "checked once, not timed")


def _untraced(work: Work, asked: marker.Asked) -> Gauged:
    """Measure without coverage, a debugger or a profiler of this thread: they would be part of every time."""
    tracer, profiler = sys.gettrace(), sys.getprofile()
    if tracer:
        _checked_only(work)  # for coverage to see it
    sys.settrace(None)
    sys.setprofile(None)
    try:
        return _measured(work, asked)
    finally:
        sys.setprofile(profiler)
        sys.settrace(tracer)


def _measured(work: Work, asked: marker.Asked) -> Gauged:
    """Time it with the suite's own loop, and judge."""
    from clustergauge import metrics
    from clustergauge.bounds import Asked
    from clustergauge.clocks import clock_for
    from clustergauge.measure import Plan, Sampler
    from clustergauge.model import Record
    from clustergauge.run import now_text
    from clustergauge.world import Serial

    clock = clock_for(work.clock, asked.device)
    with clock.owned():
        sampler = Sampler(work, clock, Serial(), Plan(budget_s=asked.budget_s))
        measurement = sampler.measure()
        if not sampler.checked_last and work.check:
            work.check()
    record = Record(
        run_id="pytest",
        case="gauge",
        probe="gauge",
        params={},
        machine_id="here",
        device=asked.device,
        status="ok",
        started=now_text(),
        workload=asked.workload,
        measurement=measurement,
    )
    found = tuple(metrics.derive([record]))
    metric = next((m for m in found if m.name == asked.metric and m.unit == asked.unit), None)
    if asked.bound is None:
        return Gauged("unreferenced", _said(found[0]) if found else "", found, measurement)
    if metric is None:
        return Gauged(
            "inconclusive", f"no {asked.metric} in {asked.unit}: {len(measurement.samples_s)} samples", found, measurement
        )
    low = None if asked.unit == "s" else asked.bound
    verdict, doubt = Asked(low, asked.unit, asked.bound if low is None else None).side_of(metric)
    why = doubt.partition(":")[0]  # the interval is said already
    reason = f"{_said(metric)}, asked for {asked.text}{f' ({why})' if why else ''}"
    if sampler.exposed:
        share = f"{sampler.exposed} of {len(measurement.samples_s)} samples may hold the time of launching"
        return Gauged(_no_worse(verdict), f"{reason}; {share}", found, measurement)
    return Gauged(verdict, reason, found, measurement)


def _no_worse(verdict: Outcome) -> Outcome:
    """Times that are too long, if anything, fail nothing."""
    return "inconclusive" if verdict == "FAIL" else verdict


def _said(metric: Metric) -> str:
    from clustergauge.units import format_rate

    value = f"{metric.name} {format_rate(metric.value, metric.unit)}"
    if metric.low is None or metric.high is None:
        return value
    return f"{value} ({format_rate(metric.low, metric.unit)} … {format_rate(metric.high, metric.unit)})"
