"""Our Triton kernels run in the fastest of their configurations, on devices that are made up."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from clustergauge import tuning
from clustergauge.pins import parse
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from tests.faults.tuned import Clock
from tests.test_tuning import raise_


@pytest.fixture
def device(monkeypatch):
    """A GPU that is made up, and its clock; candidates take the seconds that are planted, and all that ran is noted."""
    clock, planted, ran = Clock(), {}, []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    monkeypatch.setattr(tuning, "clock_for", lambda kind, where: clock if (kind, where) == ("device", "cuda:0") else None)

    def call(name):
        move = clock.pass_by(planted.get(name, 2e-3))
        return lambda: (ran.append(name), move())

    return SimpleNamespace(clock=clock, planted=planted, ran=ran, call=call)


def on_gpu(tmp_path, **more):
    return Context(Serial(), "cuda:0", 1, tmp_path, **more)


def test_products_run_in_the_fastest_configuration_on_all_buffer_sets(tmp_path, monkeypatch, device):
    from kernels import matmul_backends as backends
    from kernels.triton import matmul as kernel, matmul_tiles

    monkeypatch.setattr(kernel, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(kernel, "call", lambda config, dtype, a, b, c, scales: device.call((str(config), a)))
    names = [str(config) for config in matmul_tiles.candidates("sm_90", "bf16", 64, 64, 128)]
    device.planted |= {(names[2], 0): 1e-3, (names[2], 1): 1e-3}
    ctx = on_gpu(tmp_path)
    start = backends.tune(ctx, "bf16", (128, 64, 64), (None, None), ([0, 1], [0, 1], [0, 1]))
    assert {name for name, _ in device.ran} == set(names)
    assert {number for _, number in device.ran} == {0, 1}
    device.ran.clear()
    start(0, 0, 0)()
    assert device.ran == [(names[2], 0)]
    pin = {"matmul bf16 128x64x64 on H100": names[2]}
    assert parse(ctx.settings) == pin
    assert (ctx.settings["config"], ctx.settings["candidates"]) == (names[2], len(names))
    later = on_gpu(tmp_path, pins=pin, tunes=False)
    device.ran.clear()
    backends.tune(later, "bf16", (128, 64, 64), (None, None), ([0], [0], [0]))
    assert (later.settings["config"], device.ran) == (names[2], [(names[2], 0)])  # once, to see that it fits


@pytest.mark.parametrize(("mode", "choices"), [("forward", 2), ("backward", 2), ("decode", 2)])
def test_attention_runs_in_the_fastest_configuration(tmp_path, monkeypatch, device, mode, choices):
    from kernels import attention_live as live
    from kernels.attended import Shape
    from kernels.triton import attention as kernel

    shape = Shape(1, 8, 2, 1 if mode == "decode" else 128, 128, 64, causal=False)
    monkeypatch.setattr(live, "_architecture", lambda _: "sm_90")
    monkeypatch.setattr(live, "_units", lambda _: 132)
    for name in ("forward", "backward", "decode"):
        monkeypatch.setattr(kernel, name, lambda config, *_, name=name: device.call((name, config.describe(name))))
    q, kv = torch.zeros(1, 8, shape.queries, 64), torch.zeros(1, 2, 128, 64)
    ctx = on_gpu(tmp_path)
    sets = [live.Triton(ctx, shape, mode, (q, kv, kv, q)) for _ in range(2)]
    names = [config.describe(mode) for config in sets[0].candidates]
    assert len(names) == len(set(names)) == choices
    device.planted[mode, names[-1]] = 1e-3
    live.tune(ctx, sets, shape, "bf16")
    assert ctx.settings["config"] == names[-1]
    device.ran.clear()
    for one in sets:
        one.run()
    assert device.ran == [(mode, names[-1])] * 2
    grouped = f"1x8:2x{shape.queries}:128x64"
    assert parse(ctx.settings) == {f"attention {mode} full bf16 {grouped} on H100": names[-1]}


def test_torchs_own_attention_is_not_tuned(tmp_path):
    from kernels import attention_live as live
    from kernels.attended import Shape

    shape = Shape(1, 8, 2, 16, 16, 64, causal=False)
    q, kv = torch.zeros(1, 8, 16, 64), torch.zeros(1, 2, 16, 64)
    ctx = on_gpu(tmp_path)
    live.tune(ctx, [live.Torch(shape, "forward", (q, kv, kv))], shape, "bf16")
    assert ctx.settings == {}


@pytest.mark.parametrize(
    "arch", ["interpreter", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942", "gfx950"]
)
def test_there_are_few_candidates_each_once_and_the_first_is_the_configuration(arch):
    from kernels.triton import attention_tiles, matmul_tiles

    for dtype in matmul_tiles.DTYPES:
        for m, n, k in itertools.product((1, 16, 17, 64, 65, 8192), (8192,), (8192, 8191)):
            try:
                found = matmul_tiles.candidates(arch, dtype, n, k, m)
            except Skip:
                continue
            assert 1 <= len(found) == len(set(map(str, found))) <= 6
            assert found[0] == matmul_tiles.chosen(arch, dtype, n, k, m)
            assert len(found) == 1 or k % 16 == 0
            assert len({(type(config), config.promote) for config in found}) == 1  # they sum alike
    for mode, head_dim, queries, causal in itertools.product(
        ("forward", "backward", "decode"), (64, 128), (8192, 8191), (True, False)
    ):
        found = attention_tiles.candidates(arch, head_dim, mode, queries, causal)
        assert 1 <= len(found) == len({config.describe(mode) for config in found}) <= 6
        assert found[0] == attention_tiles.fitted(attention_tiles.configuration(arch, head_dim), queries, causal)
    assert arch != "interpreter" or len(matmul_tiles.candidates(arch, "bf16", 64, 64)) == len(found) == 1


def test_what_runs_in_triton_tunes_and_nothing_else():
    from kernels.attention import attention
    from kernels.best import best_matmul
    from kernels.burnin import burnin
    from kernels.matmul import matmul

    product = {"dtype": "bf16", "shape": "64"}
    sizes = {"mask": "full", "dtype": "bf16", "head_dim": 64, "heads": "8x2", "seq": 128, "batch": 1}
    for backend, tunes in (("triton", True), ("torch", False)):
        assert matmul.needs_of({"backend": backend, **product}).tunes == tunes
        assert best_matmul.needs_of({"backend": backend, "dtype": "bf16"}).tunes == tunes
        assert burnin.needs_of({"backend": backend, "on": "gpus", **product}).tunes == tunes
        assert not burnin.needs_of({"backend": backend, "on": "cores", **product}).tunes
    for backend, tunes in (("triton", True), ("sdpa_flash", False)):
        assert attention.needs_of({"backend": backend, "mode": "forward", **sizes}).tunes == tunes


def test_what_does_not_fit_this_device_is_passed_over(tmp_path, device):
    from triton import OutOfResources

    from kernels.triton import tuned

    def start(name):
        return [lambda: raise_(OutOfResources(2, 1, "shared memory"))] if name == "large" else [device.call(name)]

    names = {name: name for name in ("large", "small", "other")}
    device.planted["other"] = 3e-3
    assert tuned.choose(on_gpu(tmp_path), "x", names, start) == "small"


@pytest.mark.parametrize("how", ["tuned", "pinned", "not tuned", "alone"])
def test_where_nothing_fits_this_device_the_case_is_skipped_and_says_what_is_needed(tmp_path, device, how):
    from triton import OutOfResources

    from kernels.triton import tuned

    needs = {"large": 98304, "larger": 131072} if how != "alone" else {"large": 98304}

    def start(name):
        return [lambda: raise_(OutOfResources(needs[name], 65536, "shared memory"))]

    ctx = on_gpu(tmp_path, tunes=how != "not tuned", pins={"x on H100": "large"} if how == "pinned" else {})
    said = "^the kernel needs 98304 bytes of shared memory, a block on H100 has 65536$"
    with pytest.raises(Skip, match=said):
        tuned.choose(ctx, "x", {name: name for name in needs}, start)
    assert ctx.settings.get("tuned") != "measured"


def test_other_errors_of_a_kernel_that_was_not_measured_are_the_cases(tmp_path, device):
    from kernels.triton import tuned

    with pytest.raises(ZeroDivisionError):
        tuned.choose(on_gpu(tmp_path), "x", {"one": 1}, lambda _: [lambda: 1 // 0])
