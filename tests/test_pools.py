"""What libraries keep after a case is given back before the next one, and never while it is timed.  The devices are fakes."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from clustergauge import messages as m, pools, worker
from clustergauge.clocks import WallClock
from clustergauge.world import Serial
from tests.misbehaved import MODULE
from tests.test_conversation import Script


class Calls(list[str]):
    """Notes calls by name."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.append(name)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins of torch with a device and of CuPy, and the calls that they get."""
    calls = Calls()
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        synchronize=calls.synchronize,
        empty_cache=calls.empty_cache,
        current_device=lambda: 3,
    )
    torch = SimpleNamespace(cuda=cuda, accelerator=SimpleNamespace(empty_host_cache=calls.empty_host_cache))
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(Device=lambda index: contextlib.nullcontext(calls.append(f"device {index}"))),
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=calls.memory_pool),
        get_default_pinned_memory_pool=lambda: SimpleNamespace(free_all_blocks=calls.pinned_pool),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return SimpleNamespace(calls=calls, torch=torch)


def test_every_pool_is_emptied_once_the_device_is_done(libraries):
    pools.empty()
    assert libraries.calls == ["synchronize", "empty_cache", "empty_host_cache", "device 3", "memory_pool", "pinned_pool"]


def test_no_library_is_loaded_and_no_device_started_for_it(libraries, monkeypatch):
    libraries.torch.cuda.is_initialized = lambda: False
    pools.empty()
    assert libraries.calls == []
    monkeypatch.delitem(sys.modules, "cupy")
    libraries.torch.cuda.is_initialized = lambda: True
    pools.empty()
    assert libraries.calls == ["synchronize", "empty_cache", "empty_host_cache"]
    monkeypatch.delitem(sys.modules, "torch")
    pools.empty()
    assert "torch" not in sys.modules
    assert "cupy" not in sys.modules


def test_what_only_a_cycle_holds_is_let_go_before():
    class Array:
        pass

    gc.disable()
    try:
        held = Array()
        held.itself = held
        seen = weakref.ref(held)
        del held
        assert seen() is not None
        pools.empty()
        assert seen() is None
    finally:
        gc.enable()


def job(number: int, how: str = "well") -> m.Job:
    params = {"how": how, "world": "serial", "phase": "run"}
    return m.Job(f"case {number}", MODULE, "misbehave", params, "cpu", 0.05, 1, number=number)


def serve(tmp_path, log: list[str], *jobs: m.Job) -> list[m.Outcome]:
    script: Any = Script(*jobs, m.Leave())
    worker.serve(script, Serial(), log.append, tmp_path)
    return script.said


def test_pools_are_emptied_after_every_case_and_never_between_two_readings_of_its_clock(tmp_path, monkeypatch):
    log: list[str] = []
    time = WallClock.time

    def timed(self, calls):
        log.append("read")
        try:
            return time(self, calls)
        finally:
            log.append("read")

    monkeypatch.setattr(WallClock, "time", timed)
    monkeypatch.setattr(pools, "empty", lambda: log.append("emptied"))
    said = serve(tmp_path, log, job(1), job(2, "raise"))
    assert [(outcome.status, outcome.broken) for outcome in said] == [("ok", False), ("error", False)]
    first, second, last = " ".join(log).split("emptied")
    for part in (first, second):
        assert part.rstrip().endswith("clean up empty pools")  # after all of the case
        assert part.split().count("read") % 2 == 0  # no sample is open
        assert part.split().count("read") > 0
    assert last.split() == ["report", "idle"]


def test_a_device_whose_pools_cannot_be_emptied_serves_no_further_case(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(pools, "empty", fail)
    (outcome,) = serve(tmp_path, [], job(1))
    assert (outcome.status, outcome.broken, outcome.job) == ("ok", True, 1)


def test_a_process_that_is_replaced_anyway_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "empty", lambda: pytest.fail("it may hang on a broken device"))
    (outcome,) = serve(tmp_path, [], job(1, "memory"))
    assert outcome.broken


@pytest.mark.gpu
def test_a_gpu_has_as_much_memory_after_a_case_as_before():
    import torch

    pools.empty()
    torch.cuda.init()
    before = torch.cuda.mem_get_info()[0]
    size = before // 2
    block = torch.empty(size, dtype=torch.uint8, device="cuda")
    del block
    assert torch.cuda.mem_get_info()[0] < before - size // 2
    pools.empty()
    assert torch.cuda.mem_get_info()[0] > before - (64 << 20)
