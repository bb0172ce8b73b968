"""Probe ``launch``: what starting a kernel costs the host and the device, one by one, as a graph, and compiled from nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustergauge.clocks import WallClock
from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_duration, format_time

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]

IN_GRAPH = 100
"""Kernels in the graph that is replayed."""
QUEUE = 256
"""Launches a sample may hold: well below the depth of the launch queue (about 1000), beyond which launching itself blocks."""
EXACT = 7
"""Runs that the exact pass counts."""
COLUMNS = 1024
"""Length of the row whose softmax the compiled kernel computes: a power of two, so that the result is exact."""
WHATS = ("kernel", "round_trip", "back_to_back", "graph", "jit")


def _needs(backend: str, what: str) -> Needs:
    modules = ("torch", "triton") if backend == "triton" else ("torch",)
    arch = 80 if backend == "triton" else 0
    return Needs(
        device="any" if what == "kernel" else "cuda",
        modules=modules,
        arch=arch,
        interpreter=backend == "triton" and what == "kernel",
    )


@probe("launch", needs=_needs, backend=("torch", "triton"), what=WHATS)
def launch(ctx: Context, backend: str, what: str) -> Work:
    """Time of one launch of a kernel that adds one to a counter, so that every launch that was lost shows.

    kernel: the host's time to launch one while the device follows behind (on a processor: torch's own cost of a tiny operation);
    round_trip: until the host knows that it is done; back_to_back: the device's time a kernel, from a queue; graph: the device's
    time to replay a graph of 100 of them; jit: the host's time to compile a small Triton kernel, nothing kept from before, and
    to run it once.
    """
    if ctx.kind == "cpu" and what != "kernel":
        raise Skip("a processor has no launches to queue, no graphs and no compiler of kernels: only what=kernel has a meaning")
    if what == "jit":
        return _jit(ctx, backend)
    import torch

    counter = torch.zeros(1, dtype=torch.int32, device=ctx.device)
    run, each = _tiny(ctx, backend, counter), 1
    wait = functools.partial(torch.cuda.synchronize, torch.device(ctx.device)) if ctx.kind == "cuda" else _nothing
    if what == "round_trip":
        run = _and_wait(run, torch.cuda.current_stream(torch.device(ctx.device)).synchronize)
    elif what == "graph":
        run, each = _graph(run, wait), IN_GRAPH
    return counting(
        run, counter, each, wait, on_device=what in ("back_to_back", "graph"), most=QUEUE if ctx.kind == "cuda" else None
    )


def counting(run: Call, counter: torch.Tensor, each: int, wait: Call, *, on_device: bool, most: int | None) -> Work:
    """The work of a run that adds ``each`` to a counter.  ``wait``: returns when the device is done."""

    def reset() -> None:
        counter.zero_()
        wait()  # an empty queue, and nothing of the reset in the host's time

    def check() -> None:
        wait()
        if int(counter) != work.count * each:
            raise Wrong(
                f"a sample of {work.count} runs that each launch {each} added {int(counter)} to the counter, "
                f"not {work.count * each}"
            )

    def exact() -> None:
        reset()
        for _ in range(EXACT):
            run()
        wait()
        if int(counter) != EXACT * each:
            raise Wrong(f"{EXACT} runs that each launch {each} added {int(counter)} to the counter, not {EXACT * each}")

    work = Work(
        run=run,
        reset=reset,
        check=check,
        exact=exact,
        workload=Workload(bound="latency"),
        clock="device" if on_device else "wall",
        max_iterations=most,
    )
    return work


# --------------------------------------------------------------------------------------------------------------------------
# one tiny kernel


def _nothing() -> None:
    pass


def _tiny(ctx: Context, backend: str, counter: torch.Tensor) -> Call:
    """What launches one kernel.  Raises `Skip` where the case has no meaning."""
    if backend == "torch":
        import torch

        if ctx.kind == "cpu":
            ctx.set("threads", torch.get_num_threads())
        return functools.partial(counter.add_, torch.ones_like(counter))
    if ctx.interpret:
        from kernels.triton import interpreter

        interpreter.install()
    elif ctx.kind == "cpu":
        raise Skip("Triton kernels run on a processor in the interpreter only")
    from kernels.triton.launch import count_kernel

    return functools.partial(count_kernel[(1,)], counter, num_warps=1)


def _and_wait(run: Call, wait: Call) -> Call:
    def both() -> None:
        run()
        wait()

    return both


def _graph(run: Call, wait: Call) -> Call:
    """What replays a graph of `IN_GRAPH` launches, each after the one before."""
    import torch

    run()  # compiled and loaded: a capture allows neither
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(IN_GRAPH):
            run()
    return graph.replay


# --------------------------------------------------------------------------------------------------------------------------
# compiled from nothing


def _jit(ctx: Context, backend: str) -> Work:
    """Compile, load and run.  Raises `Skip` where there is nothing to compile, or it takes longer than the budget."""
    if backend != "triton":
        raise Skip("torch's operations are compiled beforehand: only Triton has a cold start")
    import torch

    return compiling(ctx, torch.device(ctx.device), functools.partial(torch.cuda.synchronize, torch.device(ctx.device)))


def compiling(ctx: Context, device: torch.device, wait: Call) -> Work:
    """The work of one cold start: a softmax over one row of equal values."""
    import torch
    import triton

    source = torch.ones((1, COLUMNS), device=device)
    out = torch.empty_like(source)
    ctx.set("triton", triton.__version__)
    cold = Cold(ctx.scratch / "triton-cache")

    def run() -> None:
        cold.kernel[(1,)](source, out, 1, COLUMNS, ROWS=1, BLOCK=COLUMNS, num_warps=4)
        wait()

    def reset() -> None:
        cold.forget()
        out.fill_(float("nan"))
        wait()

    def check() -> None:
        made = cold.compiled()
        if made != 1:
            raise Wrong(f"one cold start compiled {made} kernels: something was kept from before, or compiled twice")
        if not bool((out == 1 / COLUMNS).all()):
            at = int((out != 1 / COLUMNS).flatten().nonzero()[0])
            raise Wrong(f"column {at}: expected {1 / COLUMNS}, got {float(out[0, at])}")

    try:
        reset()
        seconds = WallClock().time([run])  # the first: it also reads all of triton's own source, once a process
        if seconds > ctx.budget_s:
            reset()
            seconds = WallClock().time([run])
        if seconds > ctx.budget_s:
            raise Skip(f"one cold start takes about {format_time(seconds)}, the budget is {format_duration(ctx.budget_s)}")
    except BaseException:
        cold.close()
        raise
    return Work(
        run=run,
        reset=reset,
        check=check,
        exact=lambda: (reset(), run(), check()),
        close=cold.close,
        workload=Workload(bound="latency"),
        clock="wall",
        max_iterations=1,
    )


class Cold:
    """A Triton kernel that has never been compiled, again and again: a new one each time, and an empty folder for its code."""

    _VARIABLE = "TRITON_CACHE_DIR"

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self._before = os.environ.get(self._VARIABLE)
        self.kernel: Any = None

    def forget(self) -> None:
        """Nothing is known of the kernel from here on."""
        import triton

        from kernels.triton.normalise import softmax_kernel

        self._number += 1
        os.environ[self._VARIABLE] = str(self._here)
        self.kernel = triton.jit(softmax_kernel.fn)

    def compiled(self) -> int:
        """Kernels compiled since `forget`: those whose first form lies in the folder."""
        return len(list(self._here.rglob("softmax_kernel.ttir")))

    def close(self) -> None:
        """Triton keeps its code where it did before."""
        if self._before is None:
            os.environ.pop(self._VARIABLE, None)
        else:
            os.environ[self._VARIABLE] = self._before

    @property
    def _here(self) -> Path:
        return self._folder / str(self._number)
