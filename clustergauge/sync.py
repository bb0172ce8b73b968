"""When the ranks of a case arrived, on one clock: in the ranks' own times a late host and a slow network look alike.

Every rank reads ``time.perf_counter``, the kernel's monotonic clock.  Processes under one kernel (and one time namespace) share
it: their offset is zero.  Of other kernels one rank each plays ping-pong with rank 0; the exchange with the shortest round trip
gives the offset, and it can't be wrong by more than half of that round trip, whichever way was the slow one (Cristian 1989,
Probabilistic clock synchronization).  It is done before and after measuring: clocks that drift are corrected along a line.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clustergauge.model import Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from clustergauge.world import World

EXCHANGES = 12
"""Round trips with each other kernel; the shortest counts."""
CLEARLY_S = 10e-6
"""Ranks leave a barrier of shared memory within less: who is last by less is not worth a word."""
LATE_DELAY_S = 5e-3
"""How late a rank enters on purpose, to see whether the others wait for it: far beyond the error of clocks."""
_NS = 10**9


def kernel_clock() -> str:
    """What names the clock that this process reads: boot of the kernel and time namespace; empty if unreadable."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/time")
        return f"{boot} {namespace.readlink() if namespace.is_symlink() else ''}"
    except OSError:
        return ""


@dataclass(frozen=True)
class Look:
    """The clocks of all ranks at one moment.  ``at_s``: rank 0's clock then.  ``offsets_s``: by rank, what to add to its reading
    to have rank 0's.  ``error_s``: no offset is wrong by more."""

    at_s: float
    offsets_s: list[float]
    error_s: float


class Clocks:
    """The clocks of all ranks.  Making it, and every `look`, is for all ranks together."""

    def __init__(self, world: World, name: str | None = None) -> None:
        """``name``: of this process's clock (`kernel_clock`)."""
        self.world = world
        names = world.gather(kernel_clock() if name is None else name)
        leaders = None
        if names is not None:
            leaders = [names.index(own) if own else rank for rank, own in enumerate(names)]
        self.leaders: list[int] = world.from_root(leaders)
        """By rank: the first rank that reads the same clock."""

    def look(self) -> Look:
        """Find the offsets, one kernel after the other."""
        offsets, error = {0: 0.0}, 0.0
        for leader in sorted(set(self.leaders) - {0}):
            if self.world.rank == 0:
                offsets[leader], own_error = self._ask(leader)
                error = max(error, own_error)
            elif self.world.rank == leader:
                self._answer()
        found = None
        if self.world.rank == 0:
            found = [time.perf_counter(), [offsets[leader] for leader in self.leaders], error]
        return Look(*self.world.from_root(found))

    def _ask(self, rank: int) -> tuple[float, float]:
        """Rank 0's side: offset of the rank's clock and its error, in seconds."""
        shortest, offset = 0, 0.0
        for _ in range(EXCHANGES):
            asked = time.perf_counter_ns()
            self.world.send_number(rank, 0)
            told = self.world.receive_number(rank)
            trip = time.perf_counter_ns() - asked
            if not shortest or trip < shortest:
                shortest, offset = trip, (asked + trip / 2 - told) / _NS
        return offset, shortest / 2 / _NS

    def _answer(self) -> None:
        for _ in range(EXCHANGES):
            self.world.receive_number(0)
            self.world.send_number(0, time.perf_counter_ns())


class Arrivals:
    """When each rank began each sample.  ``rows``: one array (ranks × samples) a batch, each rank on its own clock."""

    def __init__(self, world: World) -> None:
        self.clocks = Clocks(world)
        self.before = self.after = self.clocks.look()
        self.rows: list[NDArray[np.float64]] = []

    def look_again(self) -> None:
        """After the last sample: how far clocks have drifted."""
        self.after = self.clocks.look()

    @property
    def error_s(self) -> float:
        """No arrival is known better than this."""
        return max(self.before.error_s, self.after.error_s)

    @property
    def drift_s(self) -> float:
        """The most that the offset of a clock changed while measuring (corrected for)."""
        pairs = zip(self.before.offsets_s, self.after.offsets_s, strict=True)
        return max(abs(after - before) for before, after in pairs)

    def on_one_clock(self) -> NDArray[np.float64]:
        """Arrivals of ranks (rows) at samples (columns) in seconds of rank 0's clock."""
        times = np.concatenate(self.rows, axis=1)
        before, after = (np.array(look.offsets_s)[:, None] for look in (self.before, self.after))
        elapsed = self.after.at_s - self.before.at_s
        share = (times + before - self.before.at_s) / elapsed if elapsed > 0 else np.zeros_like(times)
        return times + before + (after - before) * np.clip(share, 0.0, 1.0)

    def summary(self) -> tuple[list[float], dict[str, Series]]:
        """The skew of each sample (last arrival minus first), and by rank: ``late``, the median of seconds after the first;
        ``last``, the share of samples in which it was the last by more than the clocks' error and `CLEARLY_S`."""
        if not self.rows:
            return [], {}
        times = self.on_one_clock()
        late = times - times.min(axis=0)
        skew = late.max(axis=0)
        second = np.partition(late, -2, axis=0)[-2]
        clear = skew - second > self.error_s + CLEARLY_S
        last = np.bincount(late.argmax(axis=0)[clear], minlength=len(late)) / len(skew)
        medians = [float(median) for median in np.median(late, axis=1)]
        return [float(s) for s in skew], {
            "late": Series(unit="s", values=medians),
            "last": Series(unit="1", values=[float(share) for share in last]),
        }


def impatient(world: World, meet: Callable[[], object], late: int) -> str:
    """Let rank ``late`` enter ``meet`` late and see whether all wait for it: in words who left too early, on every rank; or "".

    For all ranks together.  A rank that leaves more than the clocks' error before the last has entered did not wait.
    """
    look = Clocks(world).look()
    world.barrier()
    if world.rank == late:
        time.sleep(LATE_DELAY_S)
    entered = time.perf_counter()
    meet()
    left = time.perf_counter()
    everybody = world.gather([entered, left])
    words = ""
    if everybody is not None:
        own = [(entry + offset, exit_ + offset) for (entry, exit_), offset in zip(everybody, look.offsets_s, strict=True)]
        last = max(range(len(own)), key=lambda rank: own[rank][0])
        first = min(range(len(own)), key=lambda rank: own[rank][1])
        early = own[last][0] - own[first][1]
        if early > 2 * look.error_s:  # both clocks may be wrong
            words = f"rank {first} left {1e3 * early:.3f} ms before rank {last} had entered"
    return world.from_root(words)
