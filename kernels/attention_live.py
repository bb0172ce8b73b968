"""The work of the ``attention`` probe on one set of buffers: torch's kernels and ours, each with its own outputs."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from clustergauge.probe import Context, Skip
from kernels import attended
from kernels.attended import Shape, Tensors

if TYPE_CHECKING:
    from kernels.triton.attention_tiles import Config

INTERPRETED = 1 << 18
"""Most (query, key) pairs of all heads that are worth sending through the interpreter (a few seconds)."""


class Live(ABC):
    """One set of buffers at work.  ``run`` is the work; `restart` does what must happen once when the inputs have changed."""

    run: Callable[[], object]

    @abstractmethod
    def restart(self) -> None:
        """Make the next run start from the inputs as they are now."""

    @abstractmethod
    def poison(self) -> None:
        """NaN in all outputs."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """Inputs, and the outputs of the last run."""


class Torch(Live):
    """torch allocates outputs anew in every run: the old ones are let go first, so that the same memory serves again."""

    def __init__(self, shape: Shape, mode: str, inputs: tuple[torch.Tensor, ...]) -> None:
        self.inputs, self.mode = inputs, mode
        self.made: list[torch.Tensor] = []
        self.graph: list[torch.Tensor] = []
        q, k, v = inputs[:3]
        options = {"is_causal": shape.causal, "enable_gqa": True} if shape.group > 1 else {"is_causal": shape.causal}
        made, graph = self.made, self.graph

        def forward() -> None:
            made.clear()
            made.append(scaled_dot_product_attention(q, k, v, **options))

        def backward() -> None:
            if not graph:  # in the first run, on the stream that is timed: autograd goes back on the stream it came by
                graph.append(scaled_dot_product_attention(q, k, v, **options))
            made.clear()
            made.extend(torch.autograd.grad(graph[0], inputs[:3], inputs[3], retain_graph=True))

        if mode == "backward":
            for x in inputs[:3]:
                x.requires_grad_()
        self.run = backward if mode == "backward" else forward

    def restart(self) -> None:
        """Forget the graph, which holds what was computed from the old inputs."""
        self.graph.clear()

    def poison(self) -> None:
        """NaN in all outputs."""
        attended.poison(self.made)

    def tensors(self) -> Tensors:
        """Inputs, and the outputs of the last run."""
        q, k, v = (x.detach() for x in self.inputs[:3])
        if self.mode == "backward":
            o = self.graph[0].detach() if self.graph else q  # before the first run there is none to look at
            return Tensors(q, k, v, o, self.inputs[3], tuple(self.made))
        return Tensors(q, k, v, self.made[0] if self.made else q)


class Triton(Live):
    """Our kernels, into buffers of our own."""

    def __init__(self, ctx: Context, shape: Shape, mode: str, inputs: tuple[torch.Tensor, ...]) -> None:
        from kernels.triton import attention as kernel, attention_tiles, tuned

        self.ctx, self.shape, self.mode, self.inputs = ctx, shape, mode, inputs
        self.o = torch.empty_like(inputs[0])
        self.grads = tuple(torch.empty_like(x) for x in inputs[:3]) if mode == "backward" else ()
        arch = "interpreter" if ctx.interpret else _architecture(ctx.device)
        self.candidates = attention_tiles.candidates(arch, shape.head_dim, mode, shape.queries, shape.causal)
        self.forward: Callable[[], object] | None = None
        self.lse = torch.empty(self.o.shape[:3], dtype=torch.float32, device=self.o.device)
        if mode == "backward":
            self.forward = kernel.forward(self.candidates[0], *inputs[:3], self.o, self.lse, shape.causal)
            tuned.attempt(ctx, self.forward)
        self.configure(self.candidates[0])

    def configure(self, config: Config) -> Callable[[], object]:
        """Run in this configuration from now on; what runs."""
        from kernels.triton import attention as kernel

        (q, k, v), shape = self.inputs[:3], self.shape
        if self.mode == "decode":
            parts = kernel.splits(config.decode, shape.keys, shape.batch * shape.kv_heads, _units(self.ctx))
            self.ctx.set("splits", parts)
            self.run = kernel.decode(config, q, k, v, self.o, parts)
        elif self.mode == "backward":
            self.run = kernel.backward(config, (q, k, v), self.o, self.inputs[3], self.lse, self.grads, shape.causal)
        else:
            self.run = kernel.forward(config, q, k, v, self.o, self.lse, shape.causal)
        self.ctx.set("config", config.describe(self.mode))
        return self.run

    def restart(self) -> None:
        """A backward pass needs the output and the sums of a forward pass."""
        if self.forward:
            self.forward()

    def poison(self) -> None:
        """NaN in all outputs."""
        attended.poison(self.grads or (self.o,))

    def tensors(self) -> Tensors:
        """Inputs, and the outputs of the last run."""
        return Tensors(*self.inputs[:3], self.o, self.inputs[3] if self.mode == "backward" else None, self.grads)


def _architecture(device: str) -> str:
    from kernels.triton.matmul import architecture

    return architecture(device)


def _units(ctx: Context) -> int:
    """Multiprocessors; in the interpreter as many as make it split."""
    return 4 if ctx.kind == "cpu" else torch.cuda.get_device_properties(torch.device(ctx.device)).multi_processor_count


def starter(ctx: Context, stack: ExitStack, backend: str, mode: str, shape: Shape) -> Callable[[tuple[torch.Tensor, ...]], Live]:
    """What makes a set of buffers work.  Raises `Skip` where the case has no meaning."""
    if backend == "triton":
        if ctx.interpret:
            from kernels.triton import interpreter

            if shape.batch * shape.heads * shape.queries * shape.keys > INTERPRETED:
                raise Skip(f"too large for the interpreter: batch·heads·queries·keys up to {INTERPRETED} fits")
            interpreter.install()
        elif ctx.kind == "cpu":
            raise Skip("Triton kernels run on a processor in the interpreter only")
        return lambda inputs: Triton(ctx, shape, mode, inputs)
    fused = {
        "sdpa_flash": SDPBackend.FLASH_ATTENTION,
        "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
        "sdpa_math": SDPBackend.MATH,
    }[backend]
    stack.enter_context(sdpa_kernel(fused))  # until the case is closed: entering costs microseconds, which are not the kernel's
    if ctx.kind == "cpu":
        ctx.set("threads", torch.get_num_threads())
        ctx.set("vector", torch.backends.cpu.get_cpu_capability())
    return lambda inputs: Torch(shape, mode, inputs)


def tune(ctx: Context, live: Sequence[Live], shape: Shape, dtype: str) -> None:
    """Have our kernels run in the fastest of their configurations (`clustergauge.tuning`); torch's are as they are."""
    ours = [one for one in live if isinstance(one, Triton)]
    if not ours:
        return
    from kernels.triton import tuned

    mode, mask = ours[0].mode, "causal" if shape.causal else "full"
    sizes = f"{shape.batch}x{shape.heads}:{shape.kv_heads}x{shape.queries}:{shape.keys}x{shape.head_dim}"
    candidates = {config.describe(mode): config for config in ours[0].candidates}
    what = f"attention {mode} {mask} {dtype} {sizes}"
    config = tuned.choose(ctx, what, candidates, lambda config: [one.configure(config) for one in ours])
    for one in ours:
        one.configure(config)


def attempt(live: Live) -> None:
    """Run once.  Raises `Skip` with torch's own reasons if it refuses."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            live.run()
        except RuntimeError as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            reasons = [re.sub(r" \(Triggered internally.*", "", " ".join(str(w.message).split())) for w in heard]
            told = "; ".join(dict.fromkeys(r for r in reasons if "Memory" not in r or len(reasons) == 1))
            raise Skip(f"torch has no such kernel for this case: {told or error}") from None
    live.restart()
