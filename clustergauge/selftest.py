"""The gauge gauges itself: known durations and injected slowdowns through the whole path, from worker to verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clustergauge import accept, readings, stats
from clustergauge.conversation import Died
from clustergauge.model import Criterion, Machine, Planned, Record, Scalar
from clustergauge.plan import load_probes
from clustergauge.probe import Case
from clustergauge.supervise import CaseResult, Supervisor

MODULE = "clustergauge.selftest_probe"
CLEARLY = 1.5
"""A slowdown so many times the smallest that can be shown must be shown."""
LAUNCHES = 5
"""Fresh processes a side, as many as a comparison of two runs should have (see `stats`)."""
SLEW = 0.001
"""A disciplined clock may run at another rate than the hardware's: twice what adjtimex(2) allows (500 ppm)."""
TOLERANCE = 0.01
"""How far beyond what it can be explained by a figure must lie to contradict what is known."""


@dataclass(frozen=True)
class Known:
    """A known duration and what the gauge made of it.

    ``bias``: of the median, relative.  ``least``: the shortest sample; ``allowed``: seconds that the probe and the gauge may add.
    ``verdicts``: of a limit 2 % above (and what may be added), and of one 2 % below.
    """

    seconds: float
    measured: float
    half_width: float | None
    bias: float
    verdicts: tuple[str, str]
    least: float
    allowed: float


@dataclass(frozen=True)
class Shift:
    """An injected slowdown and what comparing made of it, on fresh launches where the first contradicted what is known."""

    injected: float
    shift: float
    low: float
    high: float
    word: str


@dataclass
class Selftest:
    """All figures; what was not reached is NaN (``null`` in JSON).

    ``problems``: where the gauge contradicted what is known; ``doubts``: where this machine was too restless to show it.
    """

    known: list[Known] = field(default_factory=list[Known])
    overhead_s: float = math.nan
    tick_s: float = math.nan
    shifts: list[Shift] = field(default_factory=list[Shift])
    smallest_change: float = math.nan
    launches: int = LAUNCHES
    problems: list[str] = field(default_factory=list[str])
    doubts: list[str] = field(default_factory=list[str])

    @property
    def passed(self) -> bool:
        """Nothing contradicts what is known."""
        return not self.problems


class Gauge(Protocol):
    """What is tested: a `Supervisor`."""

    notes: list[str]

    def start(self) -> Machine:
        """See `Supervisor.start`."""
        ...

    def run(self, planned: Planned, seed: int, llc_bytes: int) -> CaseResult:
        """See `Supervisor.run`."""
        ...

    def close(self) -> None:
        """See `Supervisor.close`."""
        ...


class Failed(Exception):
    """A case that cannot fail did; the text says which, and how."""


def run(short: bool, say: Callable[[str], None], gauge: Gauge | None = None) -> Selftest:
    """Measure the known cases in fresh processes and judge the gauge by them.  ``short``: a tenth of the time, for CI."""
    gauge = gauge or Supervisor()
    result = Selftest()
    try:
        _measure(_Bench(gauge, gauge.start().machine_id, 0.1 if short else 1.0, say), result)
    except (Died, Failed) as error:
        result.problems.append(str(error))
    finally:
        gauge.close()
    result.doubts += gauge.notes
    return result


@dataclass
class _Bench:
    """Takes cases through the gauge, in fresh processes."""

    gauge: Gauge
    machine_id: str
    budget_s: float
    say: Callable[[str], None]
    processes: int = 0

    def launch(self, a: Sequence[Case], b: Sequence[Case]) -> dict[str, list[Record]]:
        """The records by case of `LAUNCHES` fresh processes a side: A B, then B A, …, so that drift hits both sides alike."""
        taken: dict[str, list[Record]] = {case.id: [] for case in (*a, *b)}
        for number in range(LAUNCHES):
            self.say(f"selftest: launch {number + 1} of {LAUNCHES}")
            turn = 1 if number % 2 == 0 else -1
            for side in (a, b)[::turn]:
                self.processes += 1  # the number of the launch, so that it gets a process of its own
                for case in side[::turn]:
                    taken[case.id].append(self._record(case))
        return taken

    def _record(self, case: Case) -> Record:
        planned = Planned(
            case=case.id,
            probe=case.probe,
            module=MODULE,
            params=dict(case.params),
            device="cpu:0",
            launch=self.processes,
            budget_s=self.budget_s,
        )
        outcome = self.gauge.run(planned, seed=1, llc_bytes=0).outcome
        if outcome.status != "ok" or outcome.measurement is None:
            raise Failed(f"{case.id}: {outcome.status}: {outcome.reason}")
        return Record(
            run_id="selftest",
            case=planned.case,
            probe=planned.probe,
            params=planned.params,
            launch=planned.launch,
            machine_id=self.machine_id,
            status="ok",
            started="",
            workload=outcome.workload,
            measurement=outcome.measurement,
            settings=outcome.settings,
        )


def _measure(bench: _Bench, result: Selftest) -> None:
    """Fill in the figures, one after the other, and what they contradict."""
    probes = load_probes([MODULE])
    known, nothing = list(probes["known"].cases()), next(probes["nothing"].cases())
    base, slower = next(probes["hash"].cases(percent=[0], side=["a"])), list(probes["hash"].cases(side=["b"]))
    taken = bench.launch([*known, nothing, base], slower)
    result.tick_s = _number(taken[nothing.id][0].settings["clock_tick_s"])
    result.overhead_s = stats.median([stats.median(launch) for launch in _launches(taken[nothing.id])])
    result.known = [_known(_number(case.params["ns"]) * 1e-9, taken[case.id], result.overhead_s) for case in known]
    _judge_known(result)
    result.smallest_change = stats.smallest_change(_launches(taken[base.id]))
    for case in slower:
        shift = _shift(_number(case.params["percent"]) / 100, taken[base.id], taken[case.id])
        if told := _contradiction(shift) or _missed(
            shift, result.smallest_change
        ):  # once in some runs by chance; twice on fresh launches means something
            bench.say(f"selftest: {told}; launching both again, fresh")
            again = bench.launch([base], [case])
            shift = _shift(shift.injected, again[base.id], again[case.id])
            if told := _contradiction(shift) or _missed(shift, result.smallest_change):
                result.problems.append(f"{told}, twice")
        if shift.injected >= 0.05 and shift.word != "changed":
            result.doubts.append(f"a slowdown of {shift.injected:.0%} could not be told from noise here ({shift.word})")
        result.shifts.append(shift)


def _missed(shift: Shift, smallest: float) -> str:
    """A slowdown well above what can be shown here that was not shown; empty if there is none."""
    if shift.word == "changed" or shift.injected < CLEARLY * smallest:
        return ""
    return f"a slowdown of {shift.injected:.0%} was not shown, though one of {smallest:.1%} can be"


def _known(seconds: float, records: list[Record], overhead_s: float) -> Known:
    """What the gauge says of a known duration, and whether verdicts on it come out as they must."""
    launches = _launches(records)
    middle = stats.median([stats.median(launch) for launch in launches])
    allowed = overhead_s + _number(records[0].settings["own_step_s"])
    limits = ((seconds + allowed) * 1.02, seconds * 0.98)
    criteria = [Criterion(case=records[0].case, metric="time", unit="s", limit=limit) for limit in limits]
    above, below = (verdict.verdict for verdict in accept.judge(records, criteria))
    width = stats.judging_interval(launches).half_width
    return Known(seconds, middle, width, middle / seconds - 1, (above, below), min(map(min, launches)), allowed)


def _shift(injected: float, a: list[Record], b: list[Record]) -> Shift:
    found = stats.compare_launches(_launches(a), _launches(b))
    return Shift(injected, found.shift, found.low, found.high, found.word)


def _judge_known(result: Selftest) -> None:
    """What contradicts the truth is a problem; what this machine was too restless to show is a doubt."""
    for known in result.known:
        name = f"{known.seconds * 1e6:g} µs"
        if known.least < known.seconds * (1 - SLEW):
            result.problems.append(f"{name} was measured as {known.least * 1e6:.3f} µs: shorter than it can be")
        if known.verdicts[1] == "pass":
            result.problems.append(f"{name} passed a limit 2 % below it")
        if known.verdicts[0] == "FAIL":
            result.doubts.append(f"{name} failed a limit 2 % above it: something else was running")
    excess = min(known.least / (known.seconds + known.allowed) - 1 for known in result.known)
    if excess > TOLERANCE:  # noise spares some of the many short samples, a wrong clock none
        result.problems.append(f"no known duration was ever measured less than {excess:.1%} too long: the clock runs fast")


def _contradiction(shift: Shift) -> str:
    """What comparing said against the truth, in words; empty if nothing."""
    if shift.injected == 0 and shift.word == "changed":
        return f"two equal cases were called different ({shift.shift:+.2%})"
    if shift.injected > 0 and shift.word == "same":
        return f"a slowdown of {shift.injected:.0%} was called the same"
    if not shift.low - TOLERANCE <= shift.injected <= shift.high + TOLERANCE:
        return f"a slowdown of {shift.injected:.0%} was shown as {shift.low:+.2%} … {shift.high:+.2%}"
    return ""


def _launches(records: list[Record]) -> list[list[float]]:
    return [readings.samples(record) for record in records]


def _number(value: Scalar) -> float:
    assert isinstance(value, int | float)
    return value
