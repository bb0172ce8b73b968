"""The gauge gauges itself: known durations and injected slowdowns through the whole path, from worker to verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clustergauge import accept, stats
from clustergauge.model import Counters, Criterion, Measurement, Planned, Record
from clustergauge.plan import load_probes
from clustergauge.supervise import Supervisor

MODULE = "clustergauge.selftest_probe"
LAUNCHES = 5
"""Fresh processes a side; the fewest for which the exact test can speak (see `stats`)."""


@dataclass(frozen=True)
class Known:
    """A known duration and what the gauge made of it.  ``bias``: relative; ``verdicts``: of limits 2 % above and 2 % below."""

    seconds: float
    measured: float
    half_width: float | None
    bias: float
    verdicts: tuple[str, str]


@dataclass(frozen=True)
class Shift:
    """An injected slowdown and what comparing made of it; ``confirmed`` by fresh launches where the first said *changed*."""

    injected: float
    shift: float
    low: float
    high: float
    word: str


@dataclass
class Selftest:
    """All figures.  ``problems``: where the gauge contradicted what is known; ``doubts``: where this machine was too restless."""

    known: list[Known] = field(default_factory=list[Known])
    overhead_s: float = 0.0
    tick_s: float = 0.0
    shifts: list[Shift] = field(default_factory=list[Shift])
    smallest_change: float = 0.0
    launches: int = 0
    problems: list[str] = field(default_factory=list[str])
    doubts: list[str] = field(default_factory=list[str])

    @property
    def passed(self) -> bool:
        """Nothing contradicts what is known."""
        return not self.problems


def run(short: bool, say: Callable[[str], None]) -> Selftest:
    """Measure the known cases in fresh processes and judge the gauge by them.  ``short``: a tenth of the time, for CI."""
    budget = 0.1 if short else 1.0
    probes = load_probes([MODULE])
    known = list(probes["known"].cases())
    base = [next(iter(probes["hash"].cases(percent=[0], side=[s]))) for s in "ab"]
    slower = [next(iter(probes["hash"].cases(percent=[p], side=["b"]))) for p in (2, 5)]
    everything = [*known, *probes["nothing"].cases(), *base, *slower]
    supervisor = Supervisor()
    result = Selftest(launches=LAUNCHES)
    try:
        machine = supervisor.start()
        taken: dict[str, list[Record]] = {c.id: [] for c in everything}

        def launch(number: int, ids: Sequence[str] | None = None) -> None:
            order = everything if number % 2 == 0 else everything[::-1]  # A B, B A, …: drift hits both sides alike
            for case in order:
                if ids is not None and case.id not in ids:
                    continue
                plan = Planned(
                    case=case.id,
                    probe=case.probe,
                    module=MODULE,
                    params=dict(case.params),
                    device="cpu:0",
                    launch=number,
                    budget_s=budget,
                )
                done = supervisor.run(plan, seed=1, llc_bytes=0)
                if done.outcome.status != "ok" or done.outcome.measurement is None:
                    result.problems.append(f"{case.id}: {done.outcome.status}: {done.outcome.reason}")
                    continue
                taken[case.id].append(_record(plan, machine.machine_id, done.outcome.measurement, done.outcome.settings))

        for number in range(LAUNCHES):
            say(f"selftest: launch {number + 1} of {LAUNCHES}")
            launch(number)
        if result.problems:
            return result
        result.known = [_known(int(str(c.params["ns"])) * 1e-9, taken[c.id]) for c in known]
        result.tick_s = float(str(taken["nothing"][0].settings["clock_tick_s"]))
        result.overhead_s = stats.median([stats.median(_samples(r)) for r in taken["nothing"]])
        for injected, case in ((0.0, base[1]), (0.02, slower[0]), (0.05, slower[1])):
            shift = _shift(injected, taken[base[0].id], taken[case.id])
            if injected == 0.0 and shift.word == "changed":
                say("selftest: two equal cases seemed to differ; launching them again, fresh")
                taken[base[0].id], taken[case.id] = [], []
                for number in range(LAUNCHES, 2 * LAUNCHES):
                    launch(number, [base[0].id, case.id])
                shift = _shift(injected, taken[base[0].id], taken[case.id])
            result.shifts.append(shift)
        result.smallest_change = stats.smallest_change([_samples(r) for r in taken[base[0].id]])
    finally:
        supervisor.close()
    _judge(result)
    return result


def _record(
    plan: Planned, machine_id: str, measurement: Measurement, settings: dict[str, str | int | float | bool | None]
) -> Record:
    return Record(
        run_id="selftest",
        case=plan.case,
        probe=plan.probe,
        params=plan.params,
        launch=plan.launch,
        machine_id=machine_id,
        status="ok",
        started="",
        measurement=measurement,
        counters=Counters(),
        settings=settings,
    )


def _samples(record: Record) -> list[float]:
    assert record.measurement
    return record.measurement.samples_s[record.measurement.warmup_cut :]


def _known(seconds: float, records: list[Record]) -> Known:
    """What the gauge says of a known duration, and whether verdicts on it come out as they must."""
    interval = stats.median_interval(_samples(records[0]))
    middle = stats.median([stats.median(_samples(r)) for r in records])
    limits = [Criterion(case=records[0].case, metric="time", unit="s", limit=seconds * factor) for factor in (1.02, 0.98)]
    verdicts = [accept.judge(records, [limit])[0].verdict for limit in limits]
    return Known(seconds, middle, interval.half_width, middle / seconds - 1, (verdicts[0], verdicts[1]))


def _shift(injected: float, a: list[Record], b: list[Record]) -> Shift:
    found = stats.compare_launches([_samples(r) for r in a], [_samples(r) for r in b])
    return Shift(injected, found.shift, found.low, found.high, found.word)


def _judge(result: Selftest) -> None:
    """What contradicts the truth is a problem; what this machine was too restless to show is a doubt."""
    for known in result.known:
        name = f"{known.seconds * 1e6:g} µs"
        if known.measured < known.seconds:
            result.problems.append(f"{name} was measured as {known.measured * 1e6:.3f} µs: shorter than it can be")
        if known.verdicts[1] == "pass":
            result.problems.append(f"{name} passed a limit 2 % below it")
        if known.verdicts[0] == "FAIL":
            result.doubts.append(f"{name} failed a limit 2 % above it: something else was running")
    for shift in result.shifts:
        if shift.injected == 0 and shift.word == "changed":
            result.problems.append(f"two equal cases were called different, twice ({shift.shift:+.2%})")
        if shift.injected >= 0.05 and shift.word != "changed":
            result.doubts.append(f"a slowdown of {shift.injected:.0%} could not be told from noise here ({shift.word})")
        if shift.injected > 0 and shift.word == "same":
            result.problems.append(f"a slowdown of {shift.injected:.0%} was called the same")
