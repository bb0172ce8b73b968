"""Probe ``best_matmul``: the matrix product in the shape that is fastest here.

The search decides what is measured, and is no result.  First every shape of a ladder is tried for a moment, then the few fastest
again: in turn, in bursts of equal length, for the shortest of each, so that whatever else the machine does meets them alike.
(Where two programs share a core in slices of 4 ms, simulation lost 8 % by choosing from the shortest of bursts of 5 to 90 ms, and
1 % with bursts of equal length.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping

from clustergauge import searched
from clustergauge.budget import least_in_turn, least_seconds, stopwatch
from clustergauge.probe import Context, Needs, Skip, Work, probe
from kernels import matmul, shapes

Call = Callable[[], object]
Rates = Mapping[str, float]
"""Operations a second by shape, smaller products first."""

SHARE = 0.5
"""Of the budget, for the search."""
FIRST_SHARE = 0.5
"""Of that, for the first round."""
FIRST_TRIES = 2
FINALISTS = 4
TURNS = 3
"""The fewest looks at each finalist."""
BURST_S = 20e-3
"""Seconds of a burst: so long that starting, and waiting for the device, cost little."""
BURST_MOST = 2000
ALIKE = 0.005
"""Of shapes whose rates differ by no more than this the smaller is chosen, so that the choice depends less on chance."""


def _needs(backend: str, dtype: str) -> Needs:
    needs = matmul.matmul.needs_of({"backend": backend, "dtype": dtype, "shape": "16"})
    return Needs(
        modules=needs.modules, device="cuda" if backend == "triton" else needs.device, arch=needs.arch, tunes=needs.tunes
    )


@probe("best_matmul", needs=_needs, backend=("torch", "numpy", "triton", "cupy", "cuda"), dtype=matmul.DTYPES)
def best_matmul(ctx: Context, backend: str, dtype: str) -> Work:
    """The product of probe ``matmul`` in the shape that is fastest here: what the device reaches at best.

    The shape is searched while preparing, among those of `kernels.shapes.SEARCHED` that half of the budget allows, each on one
    buffer set.  Series ``search`` has their rates (of the shapes in the setting ``searched``), ``finals`` those of the second
    round (``finalists``): they decide what is measured and are no results, but a rate far below them is no best one
    (`clustergauge.searched`).  ``untried``: what there was no time for.  What was chosen is the setting ``mnk``; several launches
    may choose differently: then they have a rate in common and no time.
    """
    try:
        shape = search(ctx, backend, dtype)
    finally:
        matmul.set_precision("fp32")
    return matmul.matmul.function(ctx, backend, dtype, shape)


def search(ctx: Context, backend: str, dtype: str) -> str:
    """The fastest shape, as it is written.  Raises `Skip` where none can be tried."""
    elapsed, spend_s = stopwatch(), SHARE * ctx.budget_s
    start = functools.partial(matmul.trial, ctx, backend, dtype)
    rates = _first_round(ctx, start, FIRST_SHARE * spend_s)
    unit = "OP/s" if dtype == "int8" else "FLOP/s"
    ctx.add("search", unit, *rates.values())
    ctx.set(searched.SERIES["search"], " ".join(rates))
    finals = _second_round(ctx, start, _finalists(rates, spend_s - elapsed()), lambda: spend_s - elapsed())
    if finals:
        ctx.add("finals", unit, *finals.values())
        ctx.set(searched.SERIES["finals"], " ".join(finals))
    return choose(finals or rates)


def choose(rates: Rates) -> str:
    """The first shape whose rate is as good as the best, up to `ALIKE`."""
    enough = max(rates.values()) * (1 - ALIKE)
    return next(shape for shape, rate in rates.items() if rate >= enough)


def _first_round(ctx: Context, start: Callable[[str], Call], spend_s: float) -> Rates:
    """Shapes in order, while what the next would take, at the best rate so far, fits ``spend_s`` now, and again as a finalist.

    The first is tried in any case and before the time counts: starting threads, loading and compiling fall to it.
    """
    rates: dict[str, float] = {}
    elapsed, refused = stopwatch(), "no shape is to be tried"
    ladder = shapes.SEARCHED[ctx.kind]
    for index, shape in enumerate(ladder):
        work = _work(shape)
        seconds = work / max(rates.values(), default=math.inf)
        if rates and max(elapsed() + _cost(seconds), _cost_of_finals(2, seconds)) > spend_s:
            ctx.set(searched.UNTRIED, " ".join(ladder[index:]))
            break
        try:
            call = start(shape)
        except Skip as skip:
            refused = str(skip)
            continue
        rates[shape] = work / _least(ctx, call)
        del call  # its memory is for the next
        if len(rates) == 1:
            elapsed = stopwatch()
    if not rates:
        raise Skip(refused)
    return rates


def _finalists(rates: Rates, left_s: float) -> Rates:
    """The fastest shapes: `FINALISTS` of them, or fewer, but two, where looking at those would take longer than is left."""
    fastest = sorted(rates, key=rates.__getitem__, reverse=True)[:FINALISTS]
    while len(fastest) > 2 and _cost_of_finals(len(fastest), _length(rates, fastest)) > left_s:
        fastest.pop()
    return {shape: rate for shape, rate in rates.items() if shape in fastest}


def _second_round(ctx: Context, start: Callable[[str], Call], rates: Rates, left: Callable[[], float]) -> Rates:
    """The rates of the finalists, tried in turn while time is ``left``; empty where there are not two to compare."""
    calls: dict[str, Call] = {}
    for shape in rates:
        try:
            calls[shape] = start(shape)
        except Skip:  # there is no memory for all of them at once
            continue
        calls[shape]()
    if len(calls) < 2:
        return {}
    length = _length(rates, calls)
    repeats = {shape: _repeats(_work(shape) / rates[shape], length) for shape in calls}
    bursts = [_burst(ctx, call, repeats[shape]) for shape, call in calls.items()]
    least = least_in_turn(bursts, TURNS, left())
    return {shape: _work(shape) * repeats[shape] / took for shape, took in zip(calls, least, strict=True)}


def _length(rates: Rates, chosen: Iterable[str]) -> float:
    """Seconds of a burst of every finalist: of one call of the slowest, or more."""
    return max(BURST_S, *(_work(shape) / rates[shape] for shape in chosen))


# --------------------------------------------------------------------------------------------------------------------------
# trying one


def _work(shape: str) -> int:
    return 2 * math.prod(shapes.parse_shape(shape))


def _cost(seconds: float) -> float:
    """Seconds that the first round spends on a product which takes ``seconds``."""
    repeats = _repeats(seconds, BURST_S)
    return (FIRST_TRIES + 1) * seconds * (1 + repeats * (repeats > 1))


def _cost_of_finals(count: int, length: float) -> float:
    """Seconds that the second round takes at least: ``count`` shapes, bursts of ``length`` seconds, and a call of each before."""
    return (TURNS + 1) * count * length


def _repeats(seconds: float, length: float) -> int:
    """Calls that make a burst."""
    return max(1, min(BURST_MOST, round(length / seconds))) if seconds > 0 else BURST_MOST


def _least(ctx: Context, call: Call) -> float:
    """Seconds of one call, from the shortest of a few bursts."""
    alone = least_seconds(_burst(ctx, call, 1), FIRST_TRIES)
    repeats = _repeats(alone, BURST_S)
    return least_seconds(_burst(ctx, call, repeats), FIRST_TRIES) / repeats if repeats > 1 else alone


def _burst(ctx: Context, call: Call, repeats: int) -> Call:
    """A call so many times, and waiting until the device is done."""
    wait = _nothing
    if ctx.kind == "cuda":
        import torch

        wait = functools.partial(torch.cuda.synchronize, torch.device(ctx.device))

    def run() -> None:
        for _ in range(repeats):
            call()
        wait()

    return run


def _nothing() -> None:
    """A processor is done when a call returns."""
