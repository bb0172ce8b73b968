"""Transfers between all ordered pairs of ranks, so that a bad endpoint, its direction, or a bad link can be named.

A pass goes through all steps of a tournament: in each, disjoint pairs of ranks transfer at once (``quiet=round``), or one pair
alone (``quiet=one``).  A sample is one step, so each rank's time of a sample is that of its own pair; the times of all ranks
reach rank 0 over the control channel.  `clustergauge.pairs` reads the culprit out of them.

What a pair's time is.  On a processor from when both had begun until both are done: the sender once the receiver has said that
all of it arrived.  Ranks leave the meeting before a sample one by one, the last of them when a third, starved of its processor,
sends it a word: whoever left first waits inside its own time, and neither its partner nor the link between them is slow for
that.  (Libraries send nothing of messages so large before the receiver asks for them.)  On a GPU both ends are events on the
device, and the kernel of the rank that came first waits inside its time for the other: the smaller of the two.

Every message is compared bit for bit with what its sender sends, before the next sample: outside the timed region.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_size
from clustergauge.world import Mpi, TorchDistributed
from collectives import buffers, exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = (2**20, 2**21, 2**23, 2**26, 2**28, 2**30)
"""From 1 MiB: what bursts (a shaper's bucket, a switch's buffer) let through hides in what follows."""
ALL_ROUNDS = 64
"""Up to so many ranks all rounds of the tournament are played; beyond it, `SOME_ROUNDS` of them, chosen at random."""
SOME_ROUNDS = 8

Pair = tuple[int, int]
"""Sender and receiver (ranks)."""
Action = Callable[[], object]


def rounds(ranks: int, seed: int) -> list[list[Pair]]:
    """Rounds of disjoint pairs in which everybody meets everybody once (the circle method); with an odd number one rests.

    Beyond `ALL_ROUNDS` ranks so many distinct rounds as `SOME_ROUNDS` says, drawn by ``seed``.
    """
    seats = list(range(ranks + ranks % 2))  # the last, of an odd number, is the one who rests
    played = range(len(seats) - 1)
    if ranks > ALL_ROUNDS:
        played = sorted(random.Random(seed).sample(played, SOME_ROUNDS))  # noqa: S311 (which pairs, not a secret)
    found: list[list[Pair]] = []
    for turn in played:
        circle = [seats[0], *(seats[1:][turn:] + seats[1:][:turn])]
        met = [(circle[i], circle[-1 - i]) for i in range(len(circle) // 2)]
        found.append([(min(pair), max(pair)) for pair in met if max(pair) < ranks])
    return found


def steps(ranks: int, direction: str, quiet: str, seed: int) -> list[list[Pair]]:
    """The ordered pairs that transfer at once, step by step.  In ``bi`` a pair stands for both of its directions."""
    found: list[list[Pair]] = []
    for pairs_ in rounds(ranks, seed):
        ways = [pairs_] if direction == "bi" else [pairs_, [(b, a) for a, b in pairs_]]
        for way in ways:
            found += [[pair] for pair in way] if quiet == "one" else [way]
    return found


def needs(backend: str, direction: str, quiet: str, size: int) -> Needs:  # noqa: ARG001 (called with all axes)
    """MPI ranks, or torch.distributed ranks on the processor (gloo) or on GPUs (NCCL); two at least."""
    if backend == "mpi":
        return Needs(world="mpi", ranks=2, device="cpu", modules=("mpi4py",))
    return Needs(world="torch", ranks=2, device="cuda" if backend == "nccl" else "cpu", modules=("torch",))


@probe(
    "pairs",
    needs=needs,
    backend=("mpi", "gloo", "nccl"),
    direction=("uni", "bi"),
    quiet=("round", "one"),
    size=SIZES,
)
def pairs(ctx: Context, backend: str, direction: str, quiet: str, size: int) -> Work:
    """Every rank to every other, one message at a time.  size: bytes of the message, in ``bi`` each way."""
    if ctx.world.size < 2:
        raise Skip("one rank has no pair")
    count, rest = divmod(size, exact.FORMATS["fp32"].bytes)
    if rest or not count:
        raise Skip(f"{format_size(size)} is not a whole number of 4-byte elements")
    buffers.require(ctx, backend, 2 * size)
    plan = steps(ctx.world.size, direction, quiet, ctx.seed)
    length = min(count, exact.PERIOD)
    patterns = [
        exact.encode(exact.contribution("fp32", r, ctx.world.size, length), "fp32") for r in _senders(plan, ctx.world.rank)
    ]
    work = Work(
        run=[],
        workload=Workload(message_bytes=size, collective="send_recv", dtype="fp32", bound="network"),
        clock="device" if backend == "nccl" else "wall",
        sync=True,
        max_iterations=1,
    )
    transport = (_Mpi if backend == "mpi" else _Torch)(ctx, backend, count, patterns, _senders(plan, ctx.world.rank))
    mine = [_own(step, ctx.world.rank, direction == "bi") for step in plan]
    work.run = [transport.action(to, source) for to, source in mine]
    inbox = _Inbox(transport, work, [source for _, source in mine], ctx.world.rank)
    work.reset, work.check = inbox.reset, inbox.check
    work.sweep = functools.partial(_tell, ctx, plan, direction == "bi", _of_device if backend == "nccl" else _of_both)
    ctx.set("steps", len(plan))
    return work


def _own(step: Sequence[Pair], rank: int, both: bool) -> tuple[int | None, int | None]:
    """Whom the rank sends to in a step, and whom it receives from."""
    for a, b in step:
        if rank == a:
            return b, b if both else None
        if rank == b:
            return (a, a) if both else (None, a)
    return None, None


def _senders(plan: Sequence[Sequence[Pair]], rank: int) -> list[int]:
    """The rank itself, then all from whom it receives anything (in ``bi``: whom it meets)."""
    met = {peer for step in plan for pair in step if rank in pair for peer in pair}
    return [rank, *sorted(met - {rank})]


def _of_both(seconds: tuple[float, float], begun: tuple[float, float]) -> float:
    """Seconds from when both had begun until both are done."""
    late = begun[1] - begun[0]
    return max(seconds[0] - max(late, 0.0), seconds[1] - max(-late, 0.0))


def _of_device(seconds: tuple[float, float], _begun: tuple[float, float]) -> float:
    """Seconds of the one that waited less."""
    return min(seconds)


def _tell(
    ctx: Context,
    plan: Sequence[Sequence[Pair]],
    both: bool,
    of_two: Callable[[tuple[float, float], tuple[float, float]], float],
    times: Sequence[Sequence[float]],
    begun: Sequence[Sequence[float]],
) -> None:
    """Put who sent to whom, and the seconds it took, into series: pairs in the order of a pass, passes one after the other."""
    ordered = [
        (number, pair) for number, step in enumerate(plan) for a, b in step for pair in ([(a, b), (b, a)] if both else [(a, b)])
    ]
    ctx.add("pair_from", "rank", *(float(a) for _, (a, _) in ordered))
    ctx.add("pair_to", "rank", *(float(b) for _, (_, b) in ordered))
    for start in range(0, len(times[0]), len(plan)):
        for n, (a, b) in ordered:
            at = start + n
            ctx.add("pair_seconds", "s", of_two((times[a][at], times[b][at]), (begun[a][at], begun[b][at])))


class _Inbox:
    """Looks at what arrived: before each sample at the message of the last, so that none goes unseen."""

    def __init__(self, transport: _Mpi | _Torch, work: Work, sources: Sequence[int | None], rank: int) -> None:
        self._transport, self._work, self._sources, self._rank = transport, work, sources, rank
        self._ran = False
        self._problem = ""

    def reset(self) -> None:
        """Compare what the last sample brought, then poison the buffer."""
        if self._ran:
            self._look()
        self._ran = True
        self._transport.poison()

    def check(self) -> None:
        """Raise `Wrong` for the first message that was not what its sender sent."""
        self._look()
        if self._problem:
            raise Wrong(self._problem)

    def _look(self) -> None:
        source = self._sources[self._work.last]
        if source is None or self._problem:
            return
        try:
            exact.compare(self._transport.received, self._transport.expected[source], "fp32", self._rank)
        except Wrong as wrong:
            self._problem = f"message from rank {source}: {wrong}"


class _Mpi:
    """Host buffers over MPI.  The receiver answers with an empty message once it has all."""

    def __init__(self, ctx: Context, backend: str, count: int, patterns: Sequence[NDArray[Any]], senders: Sequence[int]) -> None:
        if not isinstance(ctx.world, Mpi):
            raise TypeError(f"pairs over {backend} need MPI ranks")
        import numpy as np

        self.comm: Any = ctx.world.comm
        self.sent = np.empty(count, patterns[0].dtype)
        self.received = np.empty_like(self.sent)
        exact.fill(self.sent, patterns[0])
        self.expected = dict(zip(senders, patterns, strict=True))
        self._word: Any = np.zeros(0, np.int8)
        ctx.set("library", ctx.world.library)

    def poison(self) -> None:
        """All bits set: in no message."""
        self.received.fill(-1)

    def action(self, to: int | None, source: int | None) -> Action:
        """What this rank does in a step."""
        comm, sent, received, word = self.comm, self.sent, self.received, self._word

        def send() -> None:
            comm.Send(sent, to)
            comm.Recv(word, to)

        def receive() -> None:
            comm.Recv(received, source)
            comm.Send(word, source)

        if to is not None and source is not None:
            return functools.partial(comm.Sendrecv, sent, to, 0, received, source, 0)
        return send if to is not None else receive if source is not None else _rest


class _Torch:
    """torch.distributed: gloo as MPI above; NCCL as a batch of one or two operations of the group's own communicator."""

    def __init__(self, ctx: Context, backend: str, count: int, patterns: Sequence[NDArray[Any]], senders: Sequence[int]) -> None:
        if not isinstance(ctx.world, TorchDistributed) or ctx.world.backend != backend:
            raise TypeError(f"pairs over {backend} need torch.distributed ranks joined by {backend}")
        import torch
        import torch.distributed as dist

        self.dist: Any = dist
        self.nccl = backend == "nccl"
        self.expected: dict[int, Any] = {
            sender: torch.from_numpy(pattern).to(ctx.device) for sender, pattern in zip(senders, patterns, strict=True)
        }
        self.sent: Any = torch.empty(count, dtype=torch.int32, device=ctx.device)
        self.received: Any = torch.empty_like(self.sent)
        exact.fill(self.sent, self.expected[senders[0]])
        self._word: Any = torch.zeros(1, dtype=torch.int8)
        ctx.set("library", f"{ctx.world.library}, torch {torch.__version__}")
        if self.nccl:
            import torch.cuda.nccl

            ctx.set("nccl", ".".join(map(str, torch.cuda.nccl.version())))

    def poison(self) -> None:
        """All bits set: in no message."""
        self.received.fill_(-1)

    def action(self, to: int | None, source: int | None) -> Action:
        """What this rank does in a step."""
        dist, sent, received, word = self.dist, self.sent, self.received, self._word
        if to is None and source is None:
            return _rest
        if self.nccl:
            wanted = [(dist.isend, sent, to), (dist.irecv, received, source)]
            batch = [dist.P2POp(what, buffer, peer) for what, buffer, peer in wanted if peer is not None]

            def exchange() -> None:
                for pending in dist.batch_isend_irecv(batch):
                    pending.wait()  # on the device: the stream waits, not the processor

            return exchange

        def send() -> None:
            dist.send(sent, to)
            dist.recv(word, to)

        def receive() -> None:
            dist.recv(received, source)
            dist.send(word, source)

        def both() -> None:
            pending = [dist.isend(sent, to), dist.irecv(received, source)]
            for one in pending:
                one.wait()

        return both if to is not None and source is not None else send if to is not None else receive


def _rest() -> None:
    """This rank has no part in the step."""
