"""One case in one process: prepare, measure, check, and say what came of it.

All ranks agree on the outcome of preparing and checking before anybody goes on, over the control channel: a rank that failed
must not leave the others waiting in a collective.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from clustergauge import at_work, nccl_log, object_url, targets, transport
from clustergauge.clocks import clock_for
from clustergauge.closing import closing, told
from clustergauge.cross_check import Turns
from clustergauge.measure import Plan, Sampler
from clustergauge.messages import Job, Outcome
from clustergauge.model import Measurement, Scalar, Series
from clustergauge.probe import Context, NoRoom, Probe, Skip, Work, Wrong
from clustergauge.turnstile import WAITING, Turnstile
from clustergauge.waits import SERIES, Waits
from clustergauge.world import Serial

if TYPE_CHECKING:
    from clustergauge.world import World

OF_TARGET = (
    "folder",
    "free_bytes",
    "fs_type",
    "fs_source",
    "fs_options",
    "device_model",
    "device_rotational",
    "device_cached",
)
"""Settings that say what a storage case wrote to; told of one that failed, too."""
MOST_TEXT = 500
"""Characters of a reason."""
_SEVERITY = ("ok", "skipped", "wrong", "error")


@dataclass(frozen=True)
class Said:
    """What one rank has to say of a step."""

    status: Literal["ok", "skipped", "wrong", "error"]
    reason: str = ""
    detail: str = ""
    broken: bool = False


GLANCE_S = 1.0
"""The least time between two looks at who else is at work in a target."""


class Ended(Exception):
    """The ranks agreed that the case ends here."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.reason)
        self.said = said


def execute(
    job: Job,
    probe: Probe,
    world: World,
    scratch: Path,
    phase: Callable[[str], None],
    tell: Callable[[Outcome], None] = lambda _: None,
    turns: Turnstile | None = None,
) -> Outcome:
    """Run one case on this rank.  Never raises for what the case did; the outcome says it.

    ``tell``: told what work that runs for its whole budget has measured meanwhile (`messages.SoFar`).  ``turns``: with another
    run; all that the case does lies within its own.
    """
    to_objects = object_url.is_url(job.target)
    context = Context(
        world=world,
        device=job.device,
        seed=job.seed,
        scratch=scratch,
        budget_s=job.budget_s,
        target=Path(job.target) if job.target and not to_objects else None,
        objects=object_url.parse(job.target) if to_objects else None,
        interpret=job.interpret,
        cross_check=job.cross_check,
        llc_bytes=job.llc_bytes,
        pins=job.pins,
        tunes=isinstance(world, Serial) and not job.interpret and not job.check_only,  # ranks might choose differently
    )
    live = _Live(context, world, phase, tell, turns)
    try:
        with contextlib.ExitStack() as stack:
            if turns:
                phase(WAITING)
                if world.rank == 0:
                    stack.enter_context(turns.turn())
                world.from_root(None)
            stack.enter_context(closing(live))
            outcome = live.run(job, probe)
        msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome)  # what cannot be said is the case's fault
    except Ended as ended:
        said = replace(ended.said, reason=told(ended)[:MOST_TEXT])
    except Exception as error:  # noqa: BLE001 (whatever a probe raises costs one case)
        said = _explain(error, world.rank, world.size)
    else:
        return outcome
    return Outcome(said.status, said.reason, said.detail, settings=_of_target(context), broken=said.broken)


def _of_target(context: Context) -> dict[str, Scalar]:
    """What a case that came to nothing had found out of where it wrote."""
    found = {name: context.settings[name] for name in OF_TARGET if name in context.settings} if context.target else {}
    return {
        name: value for name, value in found.items() if value is not None and (isinstance(value, str) or 0 <= value < 1 << 63)
    }


class TargetFilled(Exception):
    """A target that had room for the case has none any more: no reason to pass the case over in silence.

    ``rank``: whose words they are, where it is not the one that raises.
    """

    def __init__(self, text: str, rank: int | None) -> None:
        super().__init__(text)
        self.rank = rank


class _Live:
    """One case while it lives."""

    def __init__(
        self,
        context: Context,
        world: World,
        phase: Callable[[str], None],
        tell: Callable[[Outcome], None],
        turns: Turnstile | None,
    ) -> None:
        self.turns = turns
        self.tell = tell
        self.context = context
        self.world = world
        self.phase = phase
        self.work: Work | None = None
        self.sampled: tuple[float, float] | None = None
        self.runs = 0
        self._others: dict[str, int] = {}
        self._looked = 0.0

    def run(self, job: Job, probe: Probe) -> Outcome:
        self._look_around()
        self.agree("prepare", lambda: self._prepare(job, probe))
        self._glance()
        work = self.work
        assert work
        if job.interpret or job.check_only:
            self.agree("check", lambda: self._verify(work))
            return self._outcome("verified", where="in the Triton interpreter" if job.interpret else "once")
        clock = clock_for(work.clock, job.device)
        self.context.set("clock_tick_s", clock.tick_s)
        with clock.owned():
            pass_on = self.turns.pass_on if self.turns else None
            sampler = Sampler(
                work, clock, self.world, Plan(budget_s=job.budget_s), self.phase, self._so_far, pass_on, self._glance
            )
            waits = Waits()
            measurement = sampler.measure()
            waited = waits.share()
            self.sampled = sampler.window
            if sampler.exposed:
                self.context.set("exposed_samples", sampler.exposed)
            if not sampler.checked_last:
                self.agree("check", work.check)
            self.context.set("checked_samples", sampler.checked + (work.check is not None and not sampler.checked_last))
            if (overhead := sampler.overhead()) is not None:
                self.context.set("call_overhead_s", overhead)
            if sampler.arrivals:
                self.context.set("clock_error_s", sampler.arrivals.error_s)
                self.context.set("clock_drift_s", sampler.arrivals.drift_s)
            if work.loop:
                measurement = msgspec.structs.replace(measurement, loop_mean_s=sampler.loop_mean())
                self.context.set("loop_calls", sampler.loop_calls)
                if work.max_iterations is None:  # where runs may follow each other the loop's output is what it must be, too
                    self.agree("check of the loop", work.check)
            self.runs = 0 if clock.name == "cuda_graph" else sampler.ran  # a replay runs what was captured, which runs too
            self.agree("exact check", work.exact)
            if job.cross_check and work.peer:
                self.phase("cross-check")
                self._cross_check(Turns(work, clock, work.peer), work.peer.name)
            elif job.cross_check:
                self.context.settings.setdefault("cross_check", "no program is asked to do the same")
        self._say_transport(work.workload.collective)
        self._say_waits(waited)
        series = {name: Series(unit=unit, values=values) for name, (unit, values) in self.context.series.items()}
        return self._outcome("ok", msgspec.structs.replace(measurement, series=measurement.series | series))

    def agree(self, phase: str, step: Callable[[], object] | None) -> None:
        """Do a step and agree with all ranks on how it went; raises `Ended` on every rank if it did not go well on one."""
        self.phase(phase)
        said = Said("ok")
        if step:
            try:
                step()
            except Exception as error:  # noqa: BLE001 (whatever a probe raises costs one case)
                said = _explain(error, self.world.rank, self.world.size)
        everybody = self.world.gather([said.status, said.reason, said.detail, said.broken])
        worst = max((Said(*s) for s in everybody), key=lambda s: _SEVERITY.index(s.status)) if everybody else said
        agreed = Said(*self.world.from_root([worst.status, worst.reason, worst.detail, worst.broken]))
        if agreed.status != "ok":
            raise Ended(agreed)

    def close(self) -> None:
        """Let go of what the case holds; what goes wrong here is the case's fault too."""
        self.phase("clean up")
        if self.work and self.work.close:
            self.work.close()
        self._look_around()

    def _look_around(self) -> None:
        """Record which other runs are at work in the target: looked for before the case, between samples, and after it."""
        self._looked = time.monotonic()
        if self.world.rank == 0 and self.context.target:
            with contextlib.suppress(OSError):
                self._others |= at_work.others(self.context.target)
        if self._others:
            of_user = Counter(self._others.values())
            self.context.set("other_runs", ", ".join(f"{count} of user {user}" for user, count in sorted(of_user.items())))

    def _glance(self) -> None:
        """Look around where that was some time ago: another run may come and go while this one measures."""
        if time.monotonic() - self._looked >= GLANCE_S:
            self._look_around()

    def _prepare(self, job: Job, probe: Probe) -> None:
        _make_current(job.device)
        if self.context.target and (folder := targets.real(self.context.target)):
            self.context.set("folder", folder)
        try:
            returned: object = probe.function(self.context, **targets.own_params(job.params))
        except NoRoom as lack:
            if not job.room:
                raise
            raise TargetFilled(f"{lack}; there was room when the run began", lack.rank) from lack
        if not isinstance(returned, Work):  # pyright: ignore[reportUnnecessaryIsInstance] (what a user's probe returns)
            raise TypeError(f"probe {probe.name!r} returned {type(returned).__name__}, not a Work: is a return missing?")
        self.work = returned
        msgspec.convert(msgspec.to_builtins(returned.workload), type(returned.workload))  # counts are whole numbers
        if self.work.check is None and self.work.exact is None:
            raise TypeError(f"probe {probe.name!r} checks nothing: its Work needs check or exact")

    def _verify(self, work: Work) -> None:
        """Not timed (an interpreter's time means nothing): every callable once, then every check."""
        for index, run in enumerate(work.runs):
            work.last, work.count = index, 1
            if work.reset:
                work.reset()
            if work.sync:
                self.world.barrier()
            run()
            if work.check:
                work.check()
        if work.exact:
            work.exact()

    def _cross_check(self, turns: Turns, name: str) -> None:
        """A peer that fails takes nothing from what was measured; bytes that it moved are not the case's."""
        self.context.set("cross_check", name)
        moved = dict(self.context.device_bytes)
        try:
            turns.take(between=self._glance)
        except OSError as error:
            self.context.set("cross_check", f"{name} failed: {error}"[:500])
        else:
            self.context.add("own_s", "s", *turns.own_s)
            self.context.add("peer_s", "s", *turns.peer_s)
        self.context.device_bytes.clear()
        self.context.device_bytes.update(moved)

    def _outcome(self, status: Literal["ok", "verified"], measurement: Measurement | None = None, where: str = "") -> Outcome:
        assert self.work
        return Outcome(
            status,
            reason=f"checked {where}, not timed" if status == "verified" else "",
            workload=self.work.workload,
            measurement=measurement if self.world.rank == 0 else None,
            settings=self.context.settings,
            device_bytes=self.context.device_bytes,
            sampled=self.sampled,
            runs=self.runs,
        )

    def _so_far(self, part: Measurement) -> None:
        self.tell(self._outcome("ok", part))

    def _say_transport(self, collective: str) -> None:
        """Record what NCCL says it chose, of all ranks."""
        if self.world.size < 2:
            return
        log = self.world.nccl.read() if self.world.nccl else nccl_log.Log()
        everybody = self.world.gather(dict(log.transports))
        together = Counter[str]()
        for part in everybody or []:
            together.update(part)
        for name, value in transport.settings(log, together, collective).items():
            self.context.set(name, value)

    def _say_waits(self, share: float | None) -> None:
        """Record how long each rank waited for a processor, where all know it."""
        everybody = self.world.gather(share)
        if everybody and None not in everybody:
            self.context.add(SERIES, "1", *everybody)


def _make_current(device: str) -> None:
    """Have this GPU be torch's and the driver's current one, before a probe touches it: Triton launches there, whatever device
    its tensors are on, and graphs, libraries' handles and pinned memory begin there."""
    if device.startswith("cuda"):
        with contextlib.suppress(ImportError):  # a probe may do without torch
            import torch

            torch.cuda.set_device(torch.device(device))


def _explain(error: BaseException, rank: int, size: int) -> Said:
    """An exception as a person should read it: one line, with the rank where there are several."""
    rank = whose if isinstance(whose := getattr(error, "rank", None), int) else rank
    who = f"rank {rank}: " if size > 1 else ""
    text = told(error).encode(errors="replace").decode()[:MOST_TEXT]
    if isinstance(error, Skip):
        return Said("skipped", who + text)
    if isinstance(error, Wrong):
        return Said("wrong", who + text)
    name = type(error).__name__
    memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
    broken = memory or "CUDA error" in text or "HIP error" in text or name == "AcceleratorError"
    reason = f"{who}out of memory{f' ({text})' if text else ''}" if memory else f"{who}{name}: {text}" if text else f"{who}{name}"
    return Said("error", reason, "".join(traceback.format_exception(error))[-16384:].encode(errors="replace").decode(), broken)
