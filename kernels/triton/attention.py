"""Attention in Triton: the configuration each architecture gets, and how its kernels are launched.

Configurations compile without spilling registers as `gate_entries` lists them; where there are several a case chooses
(`clustergauge.tuning`).  Tiles are moved by the copy engine (TMA) from Hopper on, with warp specialisation in Blackwell's forward
kernel; by pointers with cp.async on Ampere, Ada and consumer Blackwell (99 KiB of shared memory), with two stages on AMD.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import triton

from clustergauge.probe import Skip
from kernels.triton.attention_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from kernels.triton.attention_decode import combine_kernel, decode_kernel
from kernels.triton.attention_forward import forward_kernel

if TYPE_CHECKING:
    from kernels.gate.entry import Entry

Call = Callable[[], object]
DELTA_ROWS = 64
MOST_SPLITS = 64
GROUP_ROWS = 16
"""Rows of the smallest product that a tensor core makes: query heads of a decode program are padded to a multiple of it."""


@dataclass(frozen=True)
class Tile:
    """Queries × keys that a program handles at a time, and how it is run."""

    bm: int
    bn: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.bm}x{self.bn}, {self.warps} warps, {self.stages} stages"


@dataclass(frozen=True)
class Config:
    """What one architecture gets for one head size.  ``keys``: the kernel of dK and dV; ``queries``: that of dQ.

    ``decode``: ``bm`` is the least number of padded query heads.  ``tma``: tiles move by descriptors; ``ws``: warp-specialised.
    ``ragged_keys``: in the place of ``keys`` where that would spill registers (`fitted`).
    """

    forward: Tile
    keys: Tile
    queries: Tile
    decode: Tile
    tma: bool = False
    ws: bool = False
    ragged_keys: Tile | None = None

    def describe(self, mode: str) -> str:
        """For a record: the tiles of the kernels that a mode runs."""
        tiles = f"dK dV {self.keys}; dQ {self.queries}" if mode == "backward" else str(getattr(self, mode))
        moved = " by TMA" if self.tma and mode != "decode" else ""
        return f"{tiles}{moved}{', warp-specialised' if self.ws and mode == 'forward' else ''}"


_SMALL = Config(Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(16, 32, 4, 2))
_AMPERE = {
    64: Config(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3)),
    128: Config(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(128, 32, 8, 2), Tile(16, 64, 4, 3)),
}
_HOPPER = {
    64: Config(Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3), tma=True),
    128: Config(
        Tile(128, 128, 8, 2),
        Tile(64, 128, 8, 2),
        Tile(128, 64, 8, 2),
        Tile(16, 64, 4, 3),
        tma=True,
        ragged_keys=Tile(32, 128, 8, 2),
    ),
}
_BLACKWELL = {
    64: Config(Tile(128, 128, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3), tma=True, ws=True),
    128: Config(Tile(128, 128, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3), tma=True, ws=True),
}
_CONSUMER_BLACKWELL = _AMPERE | {64: replace(_AMPERE[64], ragged_keys=Tile(32, 64, 8, 2))}
_CDNA = {
    64: Config(Tile(128, 64, 4, 2), Tile(16, 128, 8, 2), Tile(64, 64, 4, 2), Tile(16, 64, 4, 2)),
    128: Config(Tile(128, 32, 8, 2), Tile(16, 64, 4, 2), Tile(128, 32, 8, 2), Tile(16, 64, 4, 2)),
}
"""Larger tiles of the backward kernels spill; so does 128×64 of the forward kernel for bf16."""
CONFIGS: dict[str, dict[int, Config]] = {
    "interpreter": {64: _SMALL, 128: _SMALL},
    "sm_8": _AMPERE,
    "sm_9": _HOPPER,
    "sm_10": _BLACKWELL,
    "sm_12": _CONSUMER_BLACKWELL,
    "gfx942": _CDNA,
    "gfx950": _CDNA,
}
"""By architecture (for NVIDIA the major version of the capability) and head size."""
OTHERS: dict[str, dict[int, dict[str, Tile]]] = {
    "sm_80": {
        64: {"forward": Tile(128, 64, 4, 3), "decode": Tile(16, 128, 4, 2)},
        128: {"forward": Tile(64, 64, 4, 3), "decode": Tile(16, 32, 4, 4)},
    },
    "sm_9": {
        64: {"forward": Tile(128, 128, 8, 2), "queries": Tile(64, 64, 4, 2), "decode": Tile(16, 128, 4, 2)},
        128: {"forward": Tile(128, 64, 8, 3), "queries": Tile(64, 64, 4, 2), "decode": Tile(16, 128, 4, 2)},
    },
    "sm_10": {
        64: {"forward": Tile(128, 64, 8, 3), "decode": Tile(16, 128, 4, 2)},
        128: {"forward": Tile(128, 64, 8, 3), "decode": Tile(16, 128, 4, 2)},
    },
}
"""What may be faster in the place of a tile of `CONFIGS`: a launch tries it (`candidates`).  They compile as well."""


def configuration(arch: str, head_dim: int) -> Config:
    """Raises `Skip` if there is none for the architecture."""
    family = _family(arch)
    if head_dim not in CONFIGS.get(family, {}):
        raise Skip(f"the Triton attention has no configuration for head size {head_dim} on {arch}")
    return CONFIGS[family][head_dim]


def candidates(arch: str, head_dim: int, mode: str, queries: int, causal: bool) -> list[Config]:
    """What may run a mode, the one to be had without trying first; `fitted`.  Raises `Skip` if there is none."""
    found = [fitted(configuration(arch, head_dim), queries, causal)]
    for name in ("keys", "queries") if mode == "backward" else (mode,):
        tile = _others(arch, head_dim).get(name)
        found += [replace(config, **{name: tile}) for config in found] if tile else []
    return found


def _others(arch: str, head_dim: int) -> dict[str, Tile]:
    return OTHERS.get(arch if arch in OTHERS else _family(arch), {}).get(head_dim, {})


def _family(arch: str) -> str:
    return arch[:-1] if arch.startswith("sm_") else arch


def fitted(config: Config, queries: int, causal: bool) -> Config:
    """With ``ragged_keys`` (if any) in the place of ``keys``: for the full mask and queries that ``keys`` does not divide."""
    if config.ragged_keys and not causal and queries % config.keys.bm:
        return replace(config, keys=config.ragged_keys)
    return config


def forward(
    config: Config, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor, lse: torch.Tensor, causal: bool
) -> Call:
    """A callable that computes ``o`` (as ``q``: batch × heads × M × D) and ``lse`` (batch × heads × M, float32, base 2).

    ``k``, ``v``: batch × kv heads × N × D.  All contiguous.
    """
    (batch, heads, m, d), n, tile = q.shape, k.shape[2], config.forward
    launch = forward_kernel[(triton.cdiv(m, tile.bm), batch * heads)]
    sources = [_source(config, x, rows) for x, rows in ((q, tile.bm), (k, tile.bn), (v, tile.bn), (o, tile.bm))]
    numbers = (_scale(d) / math.log(2), m, n, heads // k.shape[1])
    fixed = {"D": d, "BM": tile.bm, "BN": tile.bn, "CAUSAL": causal, "TMA": config.tma, "WS": config.ws}
    return lambda: launch(*sources, lse, *numbers, num_warps=tile.warps, num_stages=tile.stages, **fixed)


def backward(
    config: Config,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    o: torch.Tensor,
    do: torch.Tensor,
    lse: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    causal: bool,
) -> Call:
    """A callable that computes ``grads`` (dQ, dK, dV) from ``inputs`` (Q, K, V) and what `forward` left: three launches."""
    (q, k, v), (dq, dk, dv) = inputs, grads
    (batch, heads, m, d), (kv_heads, n) = q.shape, k.shape[1:3]
    delta = torch.empty_like(lse)
    rows = batch * heads * m
    first = delta_kernel[(triton.cdiv(rows, DELTA_ROWS),)]
    numbers = (_scale(d) / math.log(2), _scale(d), m, n, heads // kv_heads)

    def prepared(tile: Tile, kernel: Any, grid: tuple[int, int], outputs: list[tuple[torch.Tensor, int]], **more: bool) -> Call:
        reads = ((q, tile.bm), (k, tile.bn), (v, tile.bn), (do, tile.bm))
        sources = [_source(config, x, length) for x, length in reads]
        targets = [_source(config, x, length) for x, length in outputs]
        fixed = {"D": d, "BM": tile.bm, "BN": tile.bn, "CAUSAL": causal, "TMA": config.tma, **more}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        return lambda: kernel[grid](*sources, lse, delta, *targets, *numbers, **fixed, **options)

    tile = config.keys
    grid = (triton.cdiv(n, tile.bn), batch * kv_heads)
    of_keys = prepared(tile, backward_keys_kernel, grid, [(dk, tile.bn), (dv, tile.bn)], EVEN_M=m % tile.bm == 0)
    tile = config.queries
    of_queries = prepared(tile, backward_queries_kernel, (triton.cdiv(m, tile.bm), batch * heads), [(dq, tile.bm)])

    def run() -> None:
        first(o, do, delta, rows, D=d, BM=DELTA_ROWS)
        of_keys()
        of_queries()

    return run


def decode(config: Config, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor, splits: int) -> Call:
    """A callable that computes ``o`` for one query a sequence (M = 1): ``splits`` programs (a power of two) for each kv head."""
    (batch, heads, _, d), (kv_heads, n), tile = q.shape, k.shape[1:3], config.decode
    group = heads // kv_heads
    part = torch.empty((batch * kv_heads, splits, group, d), dtype=torch.float32, device=q.device)
    lse = torch.empty((batch * kv_heads, splits, group), dtype=torch.float32, device=q.device)
    per_split = triton.cdiv(triton.cdiv(n, splits), tile.bn) * tile.bn
    each = decode_kernel[(batch * kv_heads, splits)]
    together = combine_kernel[(batch * kv_heads, group)]
    scale, rows = _scale(d) / math.log(2), padded(tile, group)

    def run() -> None:
        each(
            q, k, v, part, lse, scale, n, group, per_split,
            D=d, BG=rows, BN=tile.bn, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        together(part, lse, o, group, SPLITS=splits, D=d)

    return run


def padded(tile: Tile, group: int) -> int:
    """Rows of a decode program's tile for a group of query heads."""
    return max(tile.bm, triton.next_power_of_2(group))


def splits(tile: Tile, keys: int, programs: int, units: int) -> int:
    """Parts to split the cache into, a power of two: two programs for each of the device's multiprocessors, none without keys.

    ``programs``: there are without splitting.
    """
    wanted = triton.next_power_of_2(triton.cdiv(2 * units, programs))
    while wanted > 1 and (wanted - 1) * triton.cdiv(triton.cdiv(keys, wanted), tile.bn) * tile.bn >= keys:
        wanted //= 2
    return min(wanted, MOST_SPLITS)


def _scale(head_dim: int) -> float:
    return head_dim**-0.5


def _source(config: Config, x: torch.Tensor, rows: int) -> Any:
    """What a kernel gets to find a tensor: itself, or a descriptor of heads × length × D in blocks of ``rows``."""
    if not config.tma:
        return x
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, heads, length, d = x.shape
    return TensorDescriptor(x, [batch * heads, length, d], [length * d, d, 1], [1, rows, d])


# --------------------------------------------------------------------------------------------------------------------------
# for the code gate


def gate_entries() -> list[Entry]:
    """For the code gate: every kernel in every configuration, with each dtype, mask and kind of length at least once."""
    from kernels.gate.targets import TARGETS

    return [entry for name in TARGETS for head_dim in (64, 128) for entry in _entries(name, head_dim)]


def _entries(target: str, d: int) -> Iterator[Entry]:
    from kernels.gate.entry import Argument, Descriptor, Entry, Expects, Pointer, named

    arch = target.replace("sm", "sm_")
    configured, others = configuration(arch, d), _others(arch, d)
    queries, kv, group = 32, 8, 4

    def source(dtype: str, heads: int, length: int, rows: int) -> Argument:
        return Descriptor(dtype, (1, rows, d), (heads, length, d)) if configured.tma else Pointer(dtype)

    def tiles(config: Config) -> Iterator[tuple[str, Any, int, Tile]]:
        for name, kernel in (
            ("forward", forward_kernel),
            ("keys", backward_keys_kernel),
            ("queries", backward_queries_kernel),
        ):
            yield name, kernel, 1, getattr(config, name)
            if name in others:
                yield name, kernel, 2, others[name]

    fp32 = Pointer("fp32")
    for dtype, mask, length in (
        ("bf16", "causal", 8192),
        ("bf16", "full", 8192),
        ("bf16", "causal", 8191),
        ("bf16", "full", 8191),
        ("fp16", "causal", 8192),
    ):
        config = fitted(configured, length, mask == "causal")
        numbers: dict[str, Argument] = {"scale": 0.1, "M": length, "N": length, "G": group}
        for name, kernel, number, tile in tiles(config):
            q, k = source(dtype, queries, length, tile.bm), source(dtype, kv, length, tile.bn)
            arguments: dict[str, Argument] = {"q_src": q, "k_src": k, "v_src": k, "lse_ptr": fp32, **numbers}
            constants: dict[str, Any] = {"D": d, "BM": tile.bm, "BN": tile.bn, "CAUSAL": mask == "causal", "TMA": config.tma}
            if name == "forward":
                arguments |= {"o_dst": q}
                constants |= {"WS": config.ws}
            else:
                arguments |= {"do_src": q, "delta_ptr": fp32, "sm_scale": 0.1}
                arguments |= {"dk_dst": k, "dv_dst": k} if name == "keys" else {"dq_dst": q}
                constants |= {"EVEN_M": length % tile.bm == 0} if name == "keys" else {}
            yield Entry(
                kernel=f"attention_{name}",
                variant=named(f"{dtype} D{d} {mask}{'' if length == 8192 else ' ragged'}", number),
                function=kernel,
                arguments=arguments,
                constants=constants,
                warps=tile.warps,
                stages=tile.stages,
                targets=(target,),
                expects=Expects(tensor=dtype, bulk=config.tma),
                config=str(tile),
            )
    decoding = [configured.decode, *([others["decode"]] if "decode" in others else [])]
    for (dtype, length), (number, tile) in itertools.product(
        (("bf16", 8192), ("bf16", 8191), ("fp16", 8192)), enumerate(decoding, 1)
    ):
        cache = Pointer(dtype)
        yield Entry(
            kernel="attention_decode",
            variant=named(f"{dtype} D{d}{'' if length == 8192 else ' ragged'}", number),
            function=decode_kernel,
            arguments={"q_ptr": cache, "k_ptr": cache, "v_ptr": cache, "part_ptr": fp32, "lse_ptr": fp32, "scale": 0.1}
            | {"N": length, "G": group, "per_split": 512},
            constants={"D": d, "BG": padded(tile, group), "BN": tile.bn},
            warps=tile.warps,
            stages=tile.stages,
            targets=(target,),
            expects=Expects(tensor=dtype, narrow=True, wide=frozenset({"loads"} if target.startswith("sm") else ())),
            config=str(tile),
        )
    for name, kernel, arguments, constants in (
        ("combine", combine_kernel, {"part_ptr": fp32, "lse_ptr": fp32, "o_ptr": Pointer("bf16"), "G": group}, {"SPLITS": 64}),
        (
            "delta",
            delta_kernel,
            {"o_ptr": Pointer("bf16"), "do_ptr": Pointer("bf16"), "delta_ptr": fp32, "rows": 32 * 8192},
            {"BM": DELTA_ROWS},
        ),
    ):
        yield Entry(
            kernel=f"attention_{name}",
            variant=f"bf16 D{d}",
            function=kernel,
            arguments=arguments,
            constants={"D": d, **constants},
            warps=4,
            stages=3,
            targets=(target,),
        )
