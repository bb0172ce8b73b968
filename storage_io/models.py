"""What one rank writes of a checkpoint: shapes of the tensors of its shard, for models that people train.

Every parameter is there four times: in bf16 as it is used, and in fp32 as the optimizer's master copy and Adam's two moments, 14
bytes a parameter (MLPerf Storage's checkpoints hold as much).  Tensor parallelism splits the projections between its ranks
(Megatron-LM, arXiv:1909.08053: the first of a pair by rows, the second by columns; the embeddings by words; norms whole), then
FSDP splits what is left by rows, rounded up.  Every rank's shard is alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"bf16": 2, "fp32": 4}
STATES = (("model", "bf16"), ("master", "fp32"), ("exp_avg", "fp32"), ("exp_avg_sq", "fp32"))
"""What is kept of each parameter, and its dtype."""


@dataclass(frozen=True)
class Part:
    """One tensor of a shard."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True)
class Model:
    """A decoder as Llama 3 is one (arXiv:2407.21783, table 3), and how it is spread.  ``kv``: rows of its k and v projections.

    ``tensor``: ranks of tensor parallelism; ``fsdp``: ranks that share each of those parts.
    """

    layers: int
    hidden: int
    ffn: int
    kv: int
    vocabulary: int
    tensor: int
    fsdp: int

    @property
    def ranks(self) -> int:
        """That the checkpoint is written by."""
        return self.tensor * self.fsdp

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
        """Name and shape of each parameter, and the dimension that tensor parallelism splits (``None``: whole on each rank)."""
        for layer in range(self.layers):
            for name, shape, split in self._layer():
                yield f"layers.{layer}.{name}", shape, split
        yield "norm", (self.hidden,), None
        yield "lm_head", (self.vocabulary, self.hidden), 0
        yield "embed_tokens", (self.vocabulary, self.hidden), 0

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
        hidden, ffn, kv = self.hidden, self.ffn, self.kv
        yield "input_layernorm", (hidden,), None
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            yield f"self_attn.{name}", (rows, hidden), 0
        yield "self_attn.o_proj", (hidden, hidden), 1
        yield "post_attention_layernorm", (hidden,), None
        yield "mlp.gate_proj", (ffn, hidden), 0
        yield "mlp.up_proj", (ffn, hidden), 0
        yield "mlp.down_proj", (hidden, ffn), 1

    def shard(self) -> list[Part]:
        """The tensors of one rank."""
        parts: list[Part] = []
        for name, shape, split in self.parameters():
            own = [-(-size // self.tensor) if dimension == split else size for dimension, size in enumerate(shape)]
            own[0] = -(-own[0] // self.fsdp)
            parts += [Part(f"{state}.{name}", tuple(own), dtype) for state, dtype in STATES]
        return parts


MODELS = {
    "llama3-8b": Model(32, 4096, 14336, 1024, 128256, 1, 8),
    "llama3-70b": Model(80, 8192, 28672, 1024, 128256, 8, 8),
    "llama3-405b": Model(126, 16384, 53248, 1024, 128256, 8, 64),
}
"""By name.  Ranks as many as memory asks for: 8, 64 and 512 GPUs of 80 GB."""


def first_of(parts: list[Part], size: int) -> list[Part]:
    """The first tensors that fit ``size`` bytes together; empty if none does."""
    room = size
    for number, part in enumerate(parts):
        room -= part.bytes
        if room < 0:
            return parts[:number]
    return parts
