"""Attention in Triton: how its kernels are launched, and what the code gate is to compile of them.

Which tiles an architecture gets is in `attention_tiles`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton

from kernels.triton.attention_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from kernels.triton.attention_decode import combine_kernel, decode_kernel
from kernels.triton.attention_forward import forward_kernel
from kernels.triton.attention_tiles import Config, Tile, configuration, fitted, others

if TYPE_CHECKING:
    from kernels.gate.entry import Entry

Call = Callable[[], object]
DELTA_ROWS = 64
MOST_SPLITS = 64


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
    configured, second = configuration(arch, d), others(arch, d)
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
            if name in second:
                yield name, kernel, 2, second[name]

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
    decoding = [configured.decode, *([second["decode"]] if "decode" in second else [])]
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
