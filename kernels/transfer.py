"""Probe ``transfer``: copies between host and device over the bus, one way or both ways at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clustergauge.budget import least_seconds
from clustergauge.errors import UsageError
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_duration, format_size, format_time

if TYPE_CHECKING:
    import torch

    Words = torch.Tensor

Call = Callable[[], object]

ITEM = 8
"""Bytes of a word: the unit of filling and checking."""
PAGE = 4096 // ITEM
SAMPLES = 4096
TRIAL = 16 << 20
"""Bytes copied beforehand, to know how long the case's copy will take."""
PATIENCE = 0.5
"""Share of the budget for which it is tried while it seems too slow."""
_FACTOR = 0x4F6C_DD1D
"""Odd and below 2^31: times any index below 2^32 it stays below 2^63."""
_LARGEST = 16 << 30
_CHUNK = 1 << 22


def _needs(direction: str, host: str, size: int) -> Needs:  # noqa: ARG001 (a case's needs get all its parameters)
    if size % ITEM or not ITEM <= size <= _LARGEST:
        raise UsageError(f"size {size}: copies are whole {ITEM}-byte words, at most {format_size(_LARGEST)}")
    return Needs(device="cuda", modules=("torch",))


@probe(
    "transfer",
    needs=_needs,
    direction=("to_device", "from_device", "both"),
    host=("pinned", "pageable"),
    size=(64 << 10, 16 << 20, 256 << 20, 1 << 30),
)
def transfer(ctx: Context, direction: str, host: str, size: int) -> Work:
    """Copies between host memory and a GPU.  size: bytes each way.

    Bytes are those that cross the bus, counted once where they land (``both``: twice the size), as nvbandwidth counts them.
    Pinned copies run on the device alone and are timed there.  A pageable copy holds its thread, which moves the data through a
    pinned buffer piece by piece, and is timed by the host.  ``both``: each way on a stream of its own, joined by events.
    """
    import torch

    from kernels import buffers

    if ctx.kind == "cpu":
        raise Skip("a processor has no bus to itself: host and device are one")
    if direction == "both" and host == "pageable":
        raise Skip("both directions at once need pinned memory: a copy of pageable memory holds its thread until it is done")
    pinned, ways = host == "pinned", {"both": 2}.get(direction, 1)
    buffers.require(ways * size, ctx.device)
    buffers.require(ways * size, "cpu")
    _refuse_long(ctx, pinned=pinned, size=size)

    landings: list[Landing] = []
    copies: list[Call] = []
    for way in ("to_device", "from_device"):
        if direction in (way, "both"):
            near = torch.empty(size // ITEM, dtype=torch.int64, pin_memory=pinned)
            far = torch.empty(size // ITEM, dtype=torch.int64, device=ctx.device)
            source, out = (near, far) if way == "to_device" else (far, near)
            landing = Landing(out, ctx.seed + len(landings))
            landing.fill(source)
            landings.append(landing)
            copies.append(_copy(out, source, pinned=pinned))

    def wait() -> None:
        torch.cuda.synchronize(torch.device(ctx.device))

    run = _at_once(torch.cuda, torch.device(ctx.device), copies) if direction == "both" else copies[0]
    return work_of(run, landings, wait, pinned=pinned)


def work_of(run: Call, landings: Sequence[Landing], wait: Call, *, pinned: bool) -> Work:
    """The work of one copy, or of several at once.  ``wait``: returns when what the device was asked to do is done."""

    def reset() -> None:
        for landing in landings:
            landing.poison()
        wait()  # the host's clock would take it for part of the copy

    def check() -> None:
        wait()
        for landing in landings:
            landing.check()

    def exact() -> None:
        for landing in landings:
            landing.spoil()
        wait()
        run()
        check()

    def digest() -> str:
        wait()
        return ",".join(landing.digest() for landing in landings)

    reset()
    return Work(
        run=run,
        reset=reset,
        check=check,
        exact=exact,
        digest=digest,
        workload=Workload(bytes_written=sum(landing.out.nbytes for landing in landings), bound="memory"),
        clock="device" if pinned else "wall",
        cache="none",
    )


# --------------------------------------------------------------------------------------------------------------------------
# what runs


def _copy(out: Words, source: Words, *, pinned: bool) -> Call:
    return lambda: out.copy_(source, non_blocking=pinned)


def _at_once(cuda: Any, device: torch.device, copies: Sequence[Call]) -> Call:
    """The copies side by side, each on a stream of its own; ``cuda`` is the module `torch.cuda`.

    None begins before the current stream (the clock's) has come so far, and that stream goes on when all are done.
    """
    begin = cuda.Event()
    lanes = [(cuda.Stream(device), copy, cuda.Event()) for copy in copies]

    def run() -> None:
        current = cuda.current_stream(device)
        begin.record(current)
        for stream, copy, done in lanes:
            stream.wait_event(begin)
            with cuda.stream(stream):
                copy()
            done.record(stream)
        for _, _, done in lanes:
            current.wait_event(done)

    return run


def _refuse_long(ctx: Context, *, pinned: bool, size: int) -> None:
    """Raises `Skip` if one copy would take longer than the budget, by a smaller one."""
    import torch

    words = min(size, TRIAL) // ITEM
    near = torch.zeros(words, dtype=torch.int64, pin_memory=pinned)
    far = torch.zeros(words, dtype=torch.int64, device=ctx.device)

    def there_and_back() -> None:
        far.copy_(near)
        near.copy_(far)

    refuse(ctx, there_and_back, size / (2 * words * ITEM))


def refuse(ctx: Context, trial: Call, times: float) -> None:
    """Raises `Skip` if a copy would take longer than the budget that takes ``times`` as long as a smaller one, at its fastest.

    A busy moment is no reason: the smaller one is tried a few times, and longer while it seems too slow.
    """
    seconds = times * least_seconds(trial, enough=ctx.budget_s / times, spend_s=PATIENCE * ctx.budget_s)
    if seconds > ctx.budget_s:
        budget = format_duration(ctx.budget_s)
        raise Skip(f"one copy would take about {format_time(seconds)}, the budget is {budget}: a smaller size fits")


# --------------------------------------------------------------------------------------------------------------------------
# what must land


class Landing:
    """Memory where words must land that no two indices share, so that one that is lost, doubled or misplaced shows.

    Both sides make them for themselves: nothing that crossed the bus is held against itself.
    """

    def __init__(self, out: Words, seed: int) -> None:
        import torch

        self.out, self._offset = out, seed % (1 << 20)
        n = out.numel()
        stretch = -(-n // SAMPLES)
        random = torch.randint(n, (SAMPLES,), generator=torch.Generator().manual_seed(seed))
        spread = torch.arange(SAMPLES) * stretch + random % stretch
        edge = torch.arange(min(n, PAGE))
        self.places = torch.cat([edge, n - 1 - edge, spread.clamp(max=n - 1)]).unique().to(out.device)
        self._wrong = ~self.words(self.places)

    def words(self, index: Words) -> Words:
        """What belongs at the indices: one to one, and varied in all 64 bits."""
        value = index * _FACTOR + self._offset
        return value ^ (value << 33)

    def fill(self, source: Words) -> None:
        """Put into another memory of the same length what must land here."""
        for start, piece in _pieces(source):
            piece.copy_(self._piece(start, piece))

    def poison(self) -> None:
        """Wrong words in the first and the last page and in one place of each of `SAMPLES` equal stretches.

        All of it would cost as much as the copy itself, before every sample.
        """
        self.out[self.places] = self._wrong

    def spoil(self) -> None:
        """Wrong words everywhere."""
        for start, piece in _pieces(self.out):
            piece.copy_(~self._piece(start, piece))

    def check(self) -> None:
        """Compare every bit.  Raises `Wrong` naming the first word that differs."""
        for start, piece in _pieces(self.out):
            right = self._piece(start, piece)
            same = piece == right
            if not bool(same.all()):
                at = int((~same).nonzero()[0])
                want, got = (int(words[at]) % (1 << 64) for words in (right, piece))
                where = "on the device" if self.out.is_cuda else "on the host"
                raise Wrong(f"byte {(start + at) * ITEM} {where}: expected {want:016x}, got {got:016x}")

    def digest(self) -> str:
        """Sum of the words modulo 2^64: one that changes always changes it."""
        return f"{int(self.out.sum()) % (1 << 64):016x}"

    def _piece(self, start: int, piece: Words) -> Words:
        import torch

        return self.words(torch.arange(start, start + piece.numel(), device=piece.device))


def _pieces(words: Words) -> list[tuple[int, Words]]:
    """Pieces of a memory, each with the index of its first word."""
    return [(number * _CHUNK, piece) for number, piece in enumerate(words.split(_CHUNK))]
