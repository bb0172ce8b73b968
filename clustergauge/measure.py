"""The timing loop: warm up, calibrate, sample, and know when to stop.

The root (rank 0) decides how many samples come next and tells the others over the control channel, only at the looks of
`stats.looks`; between looks ranks do nothing but reset, meet and run.  The rules and their reasons are in `stats`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from clustergauge import stats, sync, turnstile
from clustergauge.clocks import Calls, Clock
from clustergauge.model import Measurement, Series
from clustergauge.probe import Work, Wrong
from clustergauge.world import World

NEAR = 100
LOOKS_AGAIN = 20
"""Within the factor ``NEAR`` of the shortest sample there is, calibration takes so many more, for their least."""
BURN_IN_SAMPLES, BURN_IN_BATCH = 5000, 20
"""Of work that runs for its whole budget: about the samples taken in all, and the most between two looks at the output."""
MARGIN = 1.5
"""Samples are made so much longer than the shortest there is: they may run faster later."""
CHECK_SHARE = 0.2
"""Share of the budget that checking outputs between batches may take; the first and the last are checked in any case."""
WARM_UP_SHARE = 0.25
"""Share of the budget after which no more buffer sets are warmed up."""
SWEEP_PASSES, SWEEP_PASSES_SLOW = 5, 3
"""Of a sweep: the fewest passes, and the fewest where so many take three times the budget."""
LOOPS, LOOP_CALLS, LOOP_SHARE = 5, 1000, 0.2
"""Loops for comparison with peers; the most calls in one; the share of the budget that they take together."""
OVERHEAD_CALLS, OVERHEAD_LOOPS = 200, 9
"""Calls in a loop, and loops of which the median counts, to time a call with nobody to talk to."""
STRETCH_S = 0.03
"""Of samples between two turns of another run: the shorter, the more of what disturbs the machine meets both alike."""
COLD_S = 0.005
"""The first sample after another's turn finds cold caches: where it is shorter than this, it is not taken."""
LEAD_S = 1e-3
LEAD_MOST = 20
"""Ranks that have talked over the control channel are cold: about so many seconds of samples, so many at most, are not taken."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.  ``target``: relative half-width of the 95 % interval at which to stop."""

    budget_s: float = 2.0
    target: float = stats.TARGET
    least: int = stats.LEAST_SAMPLES
    """Samples taken even if the budget does not allow them: the fewest that give an interval."""
    most: int = 10_000
    """Samples a record keeps."""


class Decision(NamedTuple):
    """What comes next: ``batch`` more samples after ``lead`` that do not count, or (0) the end and why.

    ``check``: the output of the last of them is to be checked.  ``problem``: why the output of rank ``culprit`` is wrong.
    """

    batch: int
    reason: Literal["", "converged", "budget", "samples"]
    lead: int = 0
    check: bool = False
    culprit: int = 0
    problem: str = ""


@dataclass
class Sampler:
    """One work being measured on one rank."""

    work: Work
    clock: Clock
    world: World
    plan: Plan
    phase: Callable[[str], None] = lambda _: None
    tell: Callable[[Measurement], None] = lambda _: None
    """Told, on rank 0 and between batches, what work that runs for its whole budget has measured since it was told last."""
    pass_on: Callable[[], None] | None = None
    """Lets another run measure meanwhile, on rank 0 and between batches: such a case is measured for its whole budget."""
    between: Callable[[], None] = lambda: None
    """Called on rank 0 between batches, after the first."""
    iterations: int = 1
    position: int = 0
    mine: list[float] = field(default_factory=list[float])
    starts: list[float] = field(default_factory=list[float])
    merged: list[float] = field(default_factory=list[float])
    everyone: list[list[float]] = field(default_factory=list[list[float]])
    """On rank 0, of a sweep and of a burn-in on several ranks: the seconds of every rank in every sample, ``[rank][sample]``."""
    ran: int = 0
    """Runs of the work so far, each step of them, those that do not count included."""
    digest: str = ""
    window: tuple[float, float] | None = None
    """When the first sample began and when sampling ended, by the clock's `now`."""
    exposed: int = 0
    """Samples whose time may hold the cost of launching (see `clocks`)."""
    checked: int = 0
    """Timed samples whose output was checked."""
    checked_last: bool = False
    """Whether the last sample is among them."""
    arrivals: sync.Arrivals | None = None
    """Of ranks that meet before each sample: when each began it."""
    loop_calls: int = 0
    _wrong: tuple[int, str] | None = None
    _checking_s: float = 0.0
    turn: float = 0.0
    """When the turn in hand began."""
    _turns: list[float] = field(default_factory=list[float])
    _away_s: float = 0.0
    _schedules: dict[tuple[int, int], Calls] = field(default_factory=dict[tuple[int, int], Calls])

    def measure(self) -> Measurement:
        """Take samples until converged or out of time.  Raises `Wrong`, on all ranks, if one finds an output wrong."""
        with _quiet():
            self.phase("warm up")
            self._warm_up()
            if self.work.digest:
                self.digest = self.work.digest()  # what all samples must agree with
            self.phase("calibrate")
            cost = 0.0 if self.work.sweep else self._calibrate()
            exposed = self.clock.exposed
            if self.work.sync and self.world.size > 1:
                self.phase("compare clocks")
                self.arrivals = sync.Arrivals(self.world)
            self.phase("measure")
            began = self.turn = self.clock.now()
            looks = stats.looks()
            look, at_a_look = next(looks), False
            while True:
                decision = self._decide(look, at_a_look, cost, began)
                if decision.batch == 0:
                    break
                self._batch(decision, began)
                at_a_look = len(self.mine) >= look  # looking in between makes the interval lie
                if at_a_look:
                    look = next(looks)
                cost = self._spent(began) / len(self.mine)
            self.window = (began + self.starts[0], self.clock.now())
            self.exposed = self.clock.exposed - exposed
            if self.arrivals:
                self.phase("compare clocks")
                self.arrivals.look_again()
            if self.work.sweep and self.everyone:
                self.work.sweep(self.everyone, self.arrivals.on_one_clock().tolist() if self.arrivals else [])
        return self._measurement(decision.reason or "budget")

    def _measurement(self, reason: Literal["converged", "budget", "samples", "interrupted"], since: int = 0) -> Measurement:
        """What was measured, of the samples only those from number ``since`` on."""
        skew, late = self.arrivals.summary() if self.arrivals and reason != "interrupted" else ([], {})
        cut = stats.warmup_cut(self.merged) if self.merged and not self.work.sweep else 0
        return Measurement(
            clock=self.clock.name,
            cache=self.work.cache,
            warmup_cut=cut,
            iterations_per_sample=self.iterations * self.work.steps,
            samples_s=self.merged[since:],
            sample_start_s=[start - self.starts[0] for start in self.starts[since:]],
            arrival_skew_s=skew,
            stop_reason=reason,
            digest=self.digest,
            series=late | (self._by_rank(cut) if self.work.whole_budget else {}) | self._by_turn(since),
        )

    def _by_rank(self, cut: int) -> dict[str, Series]:
        """How long each of several ranks took, the median of all its samples after the warm-up and of the last tenth of them."""
        ranks = [times[cut:] for times in self.everyone]
        if not ranks or not ranks[0]:
            return {}
        last = max(1, len(ranks[0]) // 10)
        return {
            "rank_time": Series(unit="s", values=[stats.median(times) for times in ranks]),
            "rank_time_last": Series(unit="s", values=[stats.median(times[-last:]) for times in ranks]),
        }

    def _by_turn(self, since: int) -> dict[str, Series]:
        """When the turn began in which each sample was taken, where there were turns."""
        return {turnstile.SERIES: Series(unit="s", values=self._turns[since:])} if self.pass_on else {}

    def loop_mean(self) -> float:
        """Mean seconds of a call in a loop without meeting in between, as OSU and nccl-tests report (outputs unchecked); of
        `LOOPS` such loops the median, where there is time for them: whatever interrupts a loop is in its mean."""
        with _quiet():
            self.phase("loop")
            loops, calls = 1, 1
            if self.world.rank == 0:
                one = max(stats.median(self.merged) * self.work.steps, self.clock.tick_s)
                affordable = LOOP_SHARE * self.plan.budget_s / one
                loops = LOOPS if affordable >= LOOPS else 1
                calls = int(min(LOOP_CALLS, self.clock.max_calls, max(1.0, affordable / loops)))
            loops, calls = self.world.from_root([loops, calls])
            self.loop_calls = calls
            took = [self._sample(calls) / (calls * self.work.steps) for _ in range(loops)]
            everybody = self.world.gather(took)
        return stats.median([max(of_ranks) for of_ranks in zip(*everybody or [took], strict=True)])

    def overhead(self) -> float | None:
        """Seconds of a call with nobody to talk to (``Work.overhead``), part of every sample; ``None`` where there is no such."""
        if self.work.overhead is None:
            return None
        calls = (self.work.overhead,) * OVERHEAD_CALLS
        with _quiet():
            return stats.median([self.clock.time(calls) for _ in range(OVERHEAD_LOOPS)]) / OVERHEAD_CALLS

    # -- the steps

    def _warm_up(self) -> None:
        """Run every callable once, while time allows: buffers are touched, libraries have chosen their kernels.

        A sweep takes its whole first pass: every pair of ranks has connected before its time counts.
        """
        began = self.clock.now()
        for index in range(len(self.work.runs)):
            self.position = index
            self._sample(1)
            if not self.work.sweep and self.world.from_root(self.clock.now() - began > WARM_UP_SHARE * self.plan.budget_s):
                return

    def _calibrate(self) -> float:
        """Find the iterations that make a sample long enough; returns the seconds a whole sample costs, reset included."""
        enough = stats.TICKS_PER_SAMPLE * self.clock.tick_s
        if self.work.whole_budget:
            enough = max(enough, self.plan.budget_s / BURN_IN_SAMPLES)
        most = min(self.clock.max_calls, self.work.max_iterations or self.clock.max_calls)
        while True:
            began = self.clock.now()
            took = self._sample(self.iterations)
            cost = self.clock.now() - began
            if self.world.from_root(took < NEAR * enough):  # so short that an interruption would pass for work
                took = min(took, *(self._sample(self.iterations) for _ in range(LOOKS_AGAIN)))
            wanted = self.iterations
            if took < enough and self.iterations < most:
                growth = min(10.0, MARGIN * enough / took) if took > 0 else 10.0
                wanted = min(most, max(self.iterations + 1, round(self.iterations * growth)))
            wanted = self.world.from_root(wanted)
            if wanted == self.iterations:
                return cost
            self.iterations = wanted

    def _decide(self, look: int, at_a_look: bool, cost: float, began: float) -> Decision:
        """The root's decision, known to all ranks.  Raises `Wrong` on all of them if it is that an output was wrong."""
        decision = None
        if self.world.rank == 0:
            self._let_pass()
            if self.merged:
                self.between()
            batch, reason, *_ = self._next(look, at_a_look, cost, self._spent(began))
            lead = self._lead(cost)
            if self.work.whole_budget and self.merged:
                lead = max(lead, self._between(batch))
            check = self._checking_s <= CHECK_SHARE * self.plan.budget_s
            decision = [batch, reason, lead, check, *(self._wrong or (0, ""))]
        decided = Decision(*self.world.from_root(decision))
        if decided.problem:
            raise Wrong(decided.problem, rank=decided.culprit)
        return decided

    def _let_pass(self) -> None:
        """The turn of another run, if there is one; the first when all is prepared, so that both then begin to measure."""
        if self.pass_on:
            began = self.clock.now()
            self.phase(turnstile.WAITING)
            self.pass_on()
            self.phase("measure")
            self.turn = self.clock.now()
            self._away_s += self.turn - began

    def _spent(self, began: float) -> float:
        """Seconds of the budget: not those of another's turns, and by turns those of checks neither, or a long one is the end."""
        return self.clock.now() - began - self._away_s - (self._checking_s if self.pass_on else 0.0)

    def _lead(self, cost: float) -> int:
        """Samples that are not taken, by what was done before.  None of a sweep, whose samples stand for pairs in their order."""
        if self.work.sweep:
            return 0
        if self.world.size > 1 or self.work.whole_budget:
            return max(1, min(LEAD_MOST, int(LEAD_S / max(cost, 1e-9))))
        if self.pass_on:
            return int(cost < COLD_S)
        return int(self.checked_last)  # checking leaves other threads and data behind: it was seen to cost a mean 4 %

    def _between(self, batch: int) -> int:
        """Samples of a burn-in that are not kept before ``batch`` that are: where the work allows none so long that about
        `BURN_IN_SAMPLES` fill the budget, so that the record does not end before the time is up."""
        one = max(self.merged[-1] * self.iterations * self.work.steps, self.clock.tick_s)
        return int(batch * max(0.0, self.plan.budget_s / BURN_IN_SAMPLES / one - 1))

    def _next(self, look: int, at_a_look: bool, cost: float, elapsed: float) -> Decision:
        taken = len(self.merged)
        if self.work.sweep:
            return self._next_pass(taken, cost, elapsed)
        if self.work.whole_budget:
            look = taken + BURN_IN_BATCH
        elif self.pass_on:
            look = taken + max(1, int(STRETCH_S / max(cost, 1e-9)))
        elif at_a_look and stats.converged(self.merged[stats.warmup_cut(self.merged) :], self.plan.target):
            return Decision(0, "converged")
        if taken >= self.plan.most:
            return Decision(0, "samples")
        affordable = int((self.plan.budget_s - elapsed) / max(cost, 1e-9))
        if taken == 0:
            least = self.plan.least if self.plan.least * cost <= stats.OVER_BUDGET * self.plan.budget_s else stats.FEWEST_SAMPLES
            return Decision(max(least, min(look, affordable)), "")
        batch = min(look - taken, affordable, self.plan.most - taken)
        return Decision(batch, "") if batch > 0 else Decision(0, "budget")

    def _next_pass(self, taken: int, cost: float, elapsed: float) -> Decision:
        """One more pass of a sweep, or the end."""
        whole = len(self.work.runs)
        passes = taken // whole
        least = SWEEP_PASSES if SWEEP_PASSES * cost * whole <= 3 * self.plan.budget_s else SWEEP_PASSES_SLOW
        if passes < least:
            return Decision(whole, "")
        if taken + whole > self.plan.most:
            return Decision(0, "samples")
        return Decision(whole, "") if elapsed + cost * whole <= self.plan.budget_s else Decision(0, "budget")

    def _batch(self, decision: Decision, began: float) -> None:
        for _ in range(decision.lead):
            self._sample(self.iterations)
        fresh: list[float] = []
        arrived: list[float] = []
        runs = self.iterations * self.work.steps
        for _ in range(decision.batch):
            self.starts.append(self.clock.now() - began)
            fresh.append(self._sample(self.iterations) / runs)
            if self.arrivals:
                arrived.append(self.clock.started_s)
            if self.work.note:
                self.work.note()
        self.mine += fresh
        self._turns += [self.turn] * len(fresh)
        everybody = self.world.gather([fresh, self._problem(decision.check), *([arrived] if self.arrivals else [])])
        if everybody:
            if self.work.sweep or (self.work.whole_budget and len(everybody) > 1):
                self.everyone = self.everyone or [[] for _ in everybody]
                for of_rank, (times, *_) in zip(self.everyone, everybody, strict=True):
                    of_rank.extend(times)
            self.merged += [max(of_ranks) for of_ranks in zip(*(times for times, *_ in everybody), strict=True)]
            self._wrong = next(((rank, problem) for rank, (_, problem, *_) in enumerate(everybody) if problem), None)
            if self.arrivals:
                self.arrivals.rows.append(np.array([arrived for *_, arrived in everybody]))
            if self.work.whole_budget and not self._wrong:  # what a wrong batch took is no number
                self.tell(self._measurement("interrupted", since=len(self.merged) - decision.batch))

    def _problem(self, check: bool) -> str:
        """What is wrong with the output of the last sample, in words; ranks agree on it before one of them leaves."""
        self.phase("check")
        began = self.clock.now()
        try:
            self.checked_last = check and self.work.check is not None
            if self.checked_last and self.work.check:
                self.work.check()  # first, for it knows where the output is wrong
                self.checked += 1
            if self.work.digest:
                digest = self.work.digest()
                if self.digest and digest != self.digest:
                    return f"two samples of a deterministic kernel differ (digests {self.digest} and {digest})"
                self.digest = digest
        except Wrong as wrong:
            return str(wrong)
        finally:
            self._checking_s += self.clock.now() - began
            self.phase("measure")
        return ""

    def _sample(self, iterations: int) -> float:
        """Reset, meet, run: seconds of ``iterations`` runs."""
        if self.work.reset:
            self.work.reset()
        calls = self._schedule(iterations)
        self.ran += iterations * self.work.steps
        if not self.work.sync:
            return self.clock.time(calls)
        self.clock.settle()  # a device still busy with the reset would make its rank late
        meet, take = self.world.barrier, self.clock.time
        meet()
        return take(calls)  # at once: what ranks do between meeting and beginning is how far apart they begin

    def _schedule(self, iterations: int) -> Calls:
        """The next ``iterations`` callables in rotation, made once for each starting point."""
        runs = self.work.runs
        key = (self.position, iterations)
        if key not in self._schedules:
            if len(self._schedules) > 64:
                self._schedules.clear()
            self._schedules[key] = tuple(runs[(self.position + step) % len(runs)] for step in range(iterations))
        self.work.last, self.work.count = (self.position + iterations - 1) % len(runs), iterations
        self.position = (self.position + iterations) % len(runs)
        return self._schedules[key]


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """No garbage collection while timing."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
