"""The Triton attention kernels in the interpreter: outputs and gradients are right, and every planted error is caught.

As in `tests.test_triton_kernels`, all cases are run in a process that interprets.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Skip, Wrong
from clustergauge.worker import load_probe
from clustergauge.world import Serial
from kernels import attended, attended_exact
from kernels.attended import Shape, Tensors
from kernels.triton import attention as kernel, attention_tiles as tiles
from tests.interpreted import caught, found_by, planted

CASES = [
    {"mode": mode, "mask": mask, "dtype": dtype, "head_dim": head_dim, "heads": heads, "seq": seq}
    for mode in ("forward", "backward")
    for mask in ("causal", "full")
    for dtype, head_dim, heads, seq in (("bf16", 64, "2x1", 70), ("fp16", 128, "1x1", 64))
] + [
    {"mode": "decode", "mask": "full", "dtype": dtype, "head_dim": head_dim, "heads": heads, "seq": seq}
    for dtype, head_dim, heads, seq in (("bf16", 64, "6x2", 101), ("fp16", 128, "2x2", 256), ("bf16", 128, "20x1", 33))
]
SMALL = tiles.CONFIGS["interpreter"][64]


def _tiled(bm, bn):
    return replace(SMALL, forward=tiles.Tile(bm, bn, 4, 2), keys=tiles.Tile(bm, bn, 4, 2), queries=tiles.Tile(bm, bn, 4, 2))


WAYS = {
    "pointers": (SMALL, (0, 1, 2, 3, 4)),
    "TMA": (replace(SMALL, tma=True), (0, 1, 2, 3, 4)),
    "TMA, warp-specialised": (replace(SMALL, tma=True, ws=True), (0,)),
    "wide and low": (_tiled(16, 64), (0, 3)),
    "narrow and high": (_tiled(64, 16), (0, 3)),
}
"""Name: configuration, and which of the shapes it is tried on."""
SHAPES = [
    Shape(1, 2, 1, 37, 70, 64, True),
    Shape(1, 2, 2, 5, 41, 64, True),
    Shape(2, 1, 1, 32, 32, 64, True),
    Shape(1, 2, 1, 37, 70, 64, False),
    Shape(1, 1, 1, 1, 1, 64, True),
]
SPLITS = [(101, 1), (101, 2), (101, 4), (33, 2), (20, 4)]

FORWARD, BACKWARD, DECODE = "attention_forward", "attention_backward", "attention_decode"
MUTANTS = {
    "rows past the end are written": (
        FORWARD,
        "value.to(target.dtype.element_ty), mask=rows < length)",
        "value.to(target.dtype.element_ty))",
    ),
    "keys past the end are read": (FORWARD, "if CLAMP:", "if False:"),
    "rows of padding count": (BACKWARD, 'other=float("inf"))\n        p =', "other=0.0)\n        p ="),
    "a key too many is seen": (FORWARD, "tl.arange(0, BM) + (N - M), N - 1)", "tl.arange(0, BM) + (N - M) + 1, N - 1)"),
    "the last block of keys is lost": (
        FORWARD,
        "return last, full // BN * BN, end",
        "return last, full // BN * BN, end // BN * BN",
    ),
    "the mask is off before full blocks end": (
        FORWARD,
        "full = min(tile * BM + N - M + 1, N)",
        "full = min((tile + 1) * BM + N - M, N)",
    ),
    "sums are not brought to the new peak": (FORWARD, "acc = acc * shrink[:, None]", "acc = acc"),
    "the peak is not scaled": (FORWARD, "tl.max(s, 1) * scale)", "tl.max(s, 1))"),
    "heads of keys are not shared": (FORWARD, "row = head // G", "row = head * 0"),
    "a tile of keys is lost": (BACKWARD, "steps = tl.cdiv(M - first, BM)", "steps = tl.cdiv(M - first, BM) - 1"),
    "one query head of a group is left out": (BACKWARD, "range(G * steps)", "range(steps)"),
    "delta is forgotten": (BACKWARD, "tl.trans(do)) - delta[None, :]", "tl.trans(do))"),
    "dK is not scaled": (BACKWARD, "store_tile(dk * sm_scale", "store_tile(dk"),
    "dQ is not scaled": (BACKWARD, "store_tile(dq * sm_scale", "store_tile(dq"),
    "the backward mask is off by one": (
        BACKWARD,
        "keys[:, None] <= queries[None, :] + (N - M)",
        "keys[:, None] < queries[None, :] + (N - M)",
    ),
    "splits overlap": (DECODE, "low = split * per_split", "low = split * per_split // 2"),
    "splits weigh alike": (DECODE, "weight = tl.math.exp2(lse - tl.max(lse, 0))", "weight = tl.math.exp2(lse * 0)"),
    "the tail of the cache is lost": (DECODE, "high = min(low + per_split, N)", "high = min(low + per_split, N // BN * BN)"),
    "padding heads are written": (DECODE, "acc / seen[:, None], mask=group[:, None] < G)", "acc / seen[:, None])"),
}
"""Name: module, what is there, what is planted."""
MODE = {FORWARD: "forward", BACKWARD: "backward", DECODE: "decode"}


# --------------------------------------------------------------------------------------------------------------------------
# in the process that interprets


def cases() -> dict[str, Callable[[], object]]:
    """What is run, by name."""
    from kernels.triton import interpreter

    interpreter.install()
    found: dict[str, Callable[[], object]] = {f"case {i}": partial(_case, **case) for i, case in enumerate(CASES)}
    found |= {f"{mask} {seq}": partial(_ragged, mask, seq) for mask, seq in (("full", 40), ("full", 32), ("causal", 40))}
    for way, (config, shapes) in WAYS.items():
        for i in shapes:
            dtype = torch.bfloat16 if (i + len(way)) % 2 else torch.float16
            found[f"{way} {i}"] = partial(_against_float64, config, SHAPES[i], dtype)
    found |= {f"decode {keys} {splits}": partial(_decode, keys, splits) for keys, splits in SPLITS}
    return found | {name: partial(_mutant, *how) for name, how in MUTANTS.items()}


def _ragged(mask: str, seq: int) -> list[str]:
    """With tiles of their own for the ragged full mask."""
    tiles.CONFIGS["interpreter"][64] = replace(SMALL, ragged_keys=tiles.Tile(16, 64, 4, 2))
    try:
        return _case(mode="backward", mask=mask, dtype="bf16", head_dim=64, heads="2x1", seq=seq)
    finally:
        tiles.CONFIGS["interpreter"][64] = SMALL


def _mutant(room: str, old: str, new: str) -> list[str]:
    with planted(room, old, new, (FORWARD, DECODE, BACKWARD, "attention")):
        mask = "full" if room == DECODE else "causal"
        return _case(mode=MODE[room], mask=mask, dtype="bf16", head_dim=64, heads="4x2", seq=40)


def _case(**params: object) -> list[str]:
    job = Job(
        number=1,
        case="attention",
        module="kernels.attention",
        probe="attention",
        params={"backend": "triton", "batch": 1, **params},
        device="cpu",
        budget_s=0.1,
        seed=1,
        interpret=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        done = execute(job, load_probe("kernels.attention", "attention"), Serial(), Path(scratch), lambda _: None)
    return [done.status, done.reason, str(done.settings.get("config"))]


def _random(shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    of_q = (shape.batch, shape.heads, shape.queries, shape.head_dim)
    of_k = (shape.batch, shape.kv_heads, shape.keys, shape.head_dim)
    return [torch.randn(size, generator=generator).to(dtype) for size in (of_q, of_k, of_k, of_q)]


def _against_float64(config: tiles.Config, shape: Shape, dtype: torch.dtype) -> str:
    """Forward and backward on random data and on codes; the saved sums against those of float64."""
    q, k, v, do = _random(shape, dtype)
    o, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    grads = tuple(torch.empty_like(x) for x in (q, k, v))
    made = Tensors(q, k, v, o, do, grads)
    forward = kernel.forward(config, q, k, v, o, lse, shape.causal)
    backward = kernel.backward(config, (q, k, v), o, do, lse, grads, shape.causal)

    def run() -> Tensors:
        attended.poison([o, lse, *grads])
        forward()
        backward()
        return made

    try:
        run()
        scores = q.double() @ k.double().repeat_interleave(shape.group, 1).transpose(2, 3) * shape.head_dim**-0.5
        scores.masked_fill_(~shape.sees(torch.arange(shape.queries)), -float("inf"))
        error = float((lse.double() * torch.log(torch.tensor(2.0, dtype=torch.float64)) - scores.logsumexp(3)).abs().max())
        if not error < 1e-5:
            raise Wrong(f"lse is off by {error}")
        attended.check_rows(shape, made, 1)
        attended.check_gradients(shape, made, 1)
        attended_exact.check_exact(shape, made, run, 1)
        if config == SMALL:
            attended_exact.check_counts(shape, made, run, 1)
    except Exception as error:  # noqa: BLE001 (the interpreter wraps them all)
        return f"{type(error).__name__}: {error}"
    return ""


def _decode(keys: int, splits: int) -> str:
    """As many splits as told, whatever the kernel's own choice; one may have no keys."""
    shape = Shape(1, 3, 1, 1, keys, 64, causal=False)
    q, k, v, _ = _random(shape, torch.bfloat16)
    o = torch.full_like(q, float("nan"))
    kernel.decode(SMALL, q, k, v, o, splits)()
    try:
        attended.check_rows(shape, Tensors(q, k, v, o), 1)
    except Wrong as error:
        return str(error)
    return ""


# --------------------------------------------------------------------------------------------------------------------------
# in the process that tests


@pytest.fixture(scope="module")
def found():
    """What comes of every case in a process of its own."""
    with found_by("tests.test_triton_attention") as found:
        yield found


@pytest.mark.parametrize("i", range(len(CASES)))
def test_every_mode_and_dtype_is_verified(found, i):
    status, reason, config = found[f"case {i}"]
    assert (status, reason) == ("verified", "checked in the Triton interpreter, not timed")
    assert config == SMALL.describe(CASES[i]["mode"])


@pytest.mark.parametrize(("mask", "seq", "tile"), [("full", 40, "16x64"), ("full", 32, "32x32"), ("causal", 40, "32x32")])
def test_tiles_of_their_own_for_the_ragged_full_mask_run_and_are_recorded(found, mask, seq, tile):
    status, _, config = found[f"{mask} {seq}"]
    assert (status, config.partition(",")[0]) == ("verified", f"dK dV {tile}")


@pytest.mark.parametrize(
    ("way", "i"),
    [
        pytest.param(way, i, marks=pytest.mark.slow if way != "pointers" and i in (1, 2, 4) else ())
        for way, (_, shapes) in WAYS.items()
        for i in shapes
    ],
)
def test_outputs_gradients_and_saved_sums_agree_with_float64(found, way, i):
    """Ragged lengths, more keys than queries, groups of heads; each way to move tiles, tiles of all proportions."""
    assert found[f"{way} {i}"] == ""


@pytest.mark.parametrize(("keys", "splits"), SPLITS)
def test_splits_of_the_cache_come_together_again(found, keys, splits):
    assert found[f"decode {keys} {splits}"] == ""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_kernel_with_a_planted_error_is_caught(found, name):
    assert caught(found[name]), found[name]


# -- which configuration, and how many splits


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942", "gfx950"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_architecture_has_a_configuration(arch, head_dim):
    config = tiles.configuration(arch, head_dim)
    assert config.tma == (arch in {"sm_90", "sm_100", "sm_103"})
    assert config.ws == (arch in {"sm_100", "sm_103"})
    assert arch.startswith("sm") or config.forward.stages == 2


@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_110", "gfx90a", "gfx1100", ""])
def test_an_unknown_architecture_is_skipped_by_name(arch):
    with pytest.raises(Skip, match=f"no configuration for head size 64 on {arch}"):
        tiles.configuration(arch, 64)


def test_a_configuration_says_what_runs():
    config = tiles.configuration("sm_100", 128)
    assert config.describe("forward") == "128x128, 8 warps, 2 stages by TMA, warp-specialised"
    assert config.describe("backward") == "dK dV 64x128, 8 warps, 2 stages; dQ 128x64, 8 warps, 2 stages by TMA"
    assert config.describe("decode") == "16x64, 4 warps, 3 stages"


def test_only_the_ragged_full_mask_gets_smaller_tiles_of_keys_and_only_where_larger_ones_would_spill():
    smaller = {("sm_90", 128): "32x128", ("sm_120", 64): "32x64"}
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"):
        for head_dim in (64, 128):
            config = tiles.configuration(arch, head_dim)
            for queries, causal in ((8192, False), (8192, True), (8191, True)):
                assert tiles.fitted(config, queries, causal) == config
            for queries in (8191, 8192 + config.keys.bm // 2):
                keys = tiles.fitted(config, queries, causal=False).keys
                expected = smaller.get((arch, head_dim))
                assert str(keys).startswith(expected) if expected else keys == config.keys


@pytest.mark.parametrize(
    ("keys", "programs", "units", "splits"),
    [(8192, 8, 132, 64), (8192, 64, 132, 8), (8192, 1024, 132, 1), (64, 1, 132, 1), (129, 1, 132, 2), (65536, 1, 132, 64)],
)
def test_the_cache_is_split_until_the_device_is_full(keys, programs, units, splits):
    tile = tiles.Tile(16, 64, 4, 3)
    assert kernel.splits(tile, keys, programs, units) == splits


def test_no_split_is_left_without_keys():
    tile = tiles.Tile(16, 64, 4, 3)
    for keys in range(1, 2000, 7):
        parts = kernel.splits(tile, keys, 1, 132)
        each = math.ceil(math.ceil(keys / parts) / tile.bn) * tile.bn
        assert (parts - 1) * each < keys


def test_every_entry_of_the_code_gate_is_declared_once():
    entries = kernel.gate_entries()
    names = [(entry.id, *entry.targets) for entry in entries]
    assert len(names) == len(set(names))
    assert {entry.kernel for entry in entries} == {
        f"attention_{name}" for name in ("forward", "keys", "queries", "decode", "combine", "delta")
    }
