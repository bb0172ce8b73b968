"""What work that runs for its whole budget (a burn-in) had measured when it was cut short: kept, whatever cut it.

Its rank 0 says after every look at the outputs what it has measured since the one before.  So the supervisor has it when Ctrl-C
comes, when the time is up, and when a worker dies, hangs or finds an output wrong.
"""

from __future__ import annotations

from msgspec.structs import replace

from clustergauge.messages import Outcome
from clustergauge.units import format_duration


def join(before: Outcome | None, part: Outcome) -> Outcome:
    """All that was said so far: samples one after the other, all else as it was said last."""
    old, new = before.measurement if before else None, part.measurement
    if old is None or new is None:
        return part
    samples, starts = old.samples_s + new.samples_s, old.sample_start_s + new.sample_start_s
    return replace(part, measurement=replace(new, samples_s=samples, sample_start_s=starts))


def stands(so_far: Outcome | None) -> bool:
    """Whether there is enough to be kept: samples after the warm-up."""
    measured = so_far.measurement if so_far else None
    return measured is not None and measured.warmup_cut < len(measured.samples_s)


def cut_short(so_far: Outcome, why: str, budget_s: float) -> Outcome:
    """The end of a case that nothing was wrong with, and that somebody ended: its outputs were checked until then."""
    return replace(so_far, status="ok", reason=f"{why} {_share(so_far, budget_s)}")


def broken_off(outcome: Outcome, so_far: Outcome, budget_s: float) -> Outcome:
    """The end of a case that went wrong, with what it had measured before that."""
    return replace(
        outcome,
        reason=f"{outcome.reason}; {_share(so_far, budget_s)}",
        workload=so_far.workload,
        measurement=so_far.measurement,
        settings=so_far.settings | outcome.settings,
    )


def _share(so_far: Outcome, budget_s: float) -> str:
    measured = so_far.measurement
    assert measured
    last = measured.samples_s[-1] * measured.iterations_per_sample
    return f"after {format_duration(measured.sample_start_s[-1] + last)} of {format_duration(budget_s)}"
