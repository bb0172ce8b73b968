"""Probe ``launch``: every launch that is lost or doubled shows, cold starts are cold, and what has no meaning is skipped."""

import functools
import os
import re
from collections.abc import Callable

import pytest
import torch

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Probe, Skip, Wrong
from clustergauge.world import Serial
from kernels import launch
from tests import interpreted

LAUNCH = launch.launch


def cases() -> dict[str, Callable[[], object]]:
    """What the process that interprets runs, by name."""

    def mutant(new: str) -> list[str]:
        with interpreted.planted("launch", "+ 1)", new):
            return interpreted.case("launch", what="kernel")

    return {
        "kernel": lambda: interpreted.case("launch", what="kernel"),
        "adds nothing": lambda: mutant("+ 0)"),
        "adds two": lambda: mutant("+ 2)"),
    }


@pytest.fixture(scope="module")
def found():
    with interpreted.found_by("tests.test_launch") as found:
        yield found


def run_case(tmp_path, probe, **params):
    job = Job("launch", "kernels.launch", "launch", params, "cpu", 0.02, 1)
    return execute(job, probe, Serial(), tmp_path, lambda _: None)


@pytest.fixture
def outcome(tmp_path):
    return functools.partial(run_case, tmp_path, LAUNCH)


@pytest.fixture
def counted(tmp_path):
    """Runs the work of ``add(counter)``."""

    def run(add, each=1, on_device=False, most=None):
        counter = torch.zeros(1, dtype=torch.int32)

        def work(ctx):
            return launch.counting(lambda: add(counter), counter, each, lambda: None, on_device=on_device, most=most)

        return run_case(tmp_path, Probe("launch", "tests", work, launch._needs, {}))

    return run


def test_dispatching_a_tiny_operation_is_timed_on_a_processor(outcome):
    done = outcome(backend="torch", what="kernel")
    assert (done.status, done.reason) == ("ok", "")
    assert (done.workload.bound, done.workload.flops, done.workload.bytes_written) == ("latency", 0, 0)
    assert (done.measurement.clock, done.measurement.cache) == ("wall", "none")


@pytest.mark.parametrize("what", ["round_trip", "back_to_back", "graph", "jit"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_has_no_meaning_on_a_processor_is_skipped(outcome, backend, what):
    done = outcome(backend=backend, what=what)
    reason = "a processor has no launches to queue, no graphs and no compiler of kernels: only what=kernel has a meaning"
    assert (done.status, done.reason) == ("skipped", reason)


def test_torch_has_no_cold_start(tmp_path):
    with pytest.raises(Skip, match="torch's operations are compiled beforehand: only Triton has a cold start"):
        LAUNCH.function(Context(Serial(), "cuda:0", 1, tmp_path), backend="torch", what="jit")


def test_triton_on_a_processor_runs_in_the_interpreter_only(outcome):
    done = outcome(backend="triton", what="kernel")
    assert (done.status, done.reason) == ("skipped", "Triton kernels run on a processor in the interpreter only")


def test_the_triton_kernel_is_verified_in_the_interpreter(found):
    assert found["kernel"] == interpreted.VERIFIED


@pytest.mark.parametrize("name", ["adds nothing", "adds two"])
def test_a_kernel_with_a_planted_error_is_caught(found, name):
    assert found[name][0] == "wrong"


def test_needs_name_device_and_interpreter():
    def needs(backend, what):
        return LAUNCH.needs_of({"backend": backend, "what": what})

    assert [needs("torch", what).device for what in launch.WHATS] == ["any", "cuda", "cuda", "cuda", "cuda"]
    assert [needs("triton", what).interpreter for what in launch.WHATS] == [True, False, False, False, False]
    assert (needs("torch", "graph").arch, needs("triton", "graph").arch) == (0, 80)


# -- every launch counts


def test_a_graph_of_a_hundred_is_right(counted):
    assert counted(lambda counter: counter.add_(100), each=100).status == "ok"


def test_a_sample_holds_no_more_launches_than_the_queue(counted):
    most = []

    def add(counter):
        counter.add_(1)
        most.append(int(counter))

    assert counted(add, most=3).measurement.iterations_per_sample <= 3
    assert max(most[: -launch.EXACT]) <= 3


@pytest.mark.parametrize(
    ("add", "each", "reason"),
    [
        (lambda counter: None, 1, "a sample of 1 runs that each launch 1 added 0 to the counter"),
        (lambda counter: counter.sub_(1), 1, "a sample of 1 runs that each launch 1 added -"),
        (lambda counter: counter.add_(99), 100, "a sample of 1 runs that each launch 100 added 99"),
        (lambda counter: counter.add_(2), 1, "a sample of 1 runs that each launch 1 added 2 to the counter, not 1"),
    ],
)
def test_launches_that_are_lost_or_doubled_are_caught(counted, add, each, reason):
    done = counted(add, each, most=1)
    assert (done.status, done.measurement) == ("wrong", None)
    assert done.reason.startswith(reason)


def test_one_launch_lost_now_and_then_is_caught(counted):
    calls = []

    def add(counter):
        calls.append(1)
        if len(calls) % 5:
            counter.add_(1)

    assert re.match(r"a sample of \d+ runs that each launch 1 added ", counted(add).reason)


@pytest.mark.parametrize(
    ("add", "each", "reason"),
    [
        (lambda counter: counter.fill_(1), 1, "7 runs that each launch 1 added 1 to the counter, not 7"),
        (lambda counter: counter.fill_(100), 100, "7 runs that each launch 100 added 100 to the counter, not 700"),
    ],
)
def test_launches_that_do_not_add_up_are_caught_by_more_runs_than_a_sample_held(counted, add, each, reason):
    assert counted(add, each, most=1).reason == reason


def test_a_round_trip_waits_after_its_launch():
    log = []
    launch._and_wait(lambda: log.append("launch"), lambda: log.append("wait"))()
    assert log == ["launch", "wait"]


# -- cold starts, really compiled for a GPU that is not here


class Driver:
    """Stands in for Triton's driver: kernels are compiled for sm_90; launching one puts ``value`` into its second tensor."""

    def __init__(self, value=1 / launch.COLUMNS):
        self.value, self.utils = value, self

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, *_):
        return None, 1, 32, 0, 1024

    def unload_module(self, module):
        pass

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def launcher_cls(self, src, metadata):
        return lambda *args: [a for a in args if isinstance(a, torch.Tensor)][1].fill_(self.value)


@pytest.fixture
def driver(monkeypatch):
    from triton.runtime.driver import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", "/nowhere/at/all")
    stand_in = Driver()
    monkeypatch.setattr(driver, "_active", stand_in)
    return stand_in


def prepare(tmp_path, budget_s=1e6):
    return launch.compiling(Context(Serial(), "cpu", 1, tmp_path, budget_s=budget_s), torch.device("cpu"), lambda: None)


def test_every_cold_start_compiles_anew_and_triton_s_folder_is_given_back(tmp_path, driver):
    work = prepare(tmp_path)
    assert (work.clock, work.max_iterations, work.workload.bound) == ("wall", 1, "latency")
    for _ in range(2):
        work.reset()
        work.run()
        work.check()
    work.exact()
    work.close()
    assert os.environ["TRITON_CACHE_DIR"] == "/nowhere/at/all"
    folders = [path.relative_to(tmp_path).parts[1] for path in tmp_path.rglob("*.cubin")]
    assert len(folders) == len(set(folders)) == 4


def test_a_start_that_was_not_cold_is_caught(tmp_path, driver, monkeypatch):
    work = prepare(tmp_path)
    work.reset()
    with pytest.raises(Wrong, match=r"^one cold start compiled 0 kernels: something was kept from before"):
        work.check()
    cold = launch.Cold.forget

    def keeps_the_kernel(self):
        kernel = self.kernel
        cold(self)
        self.kernel = kernel

    monkeypatch.setattr(launch.Cold, "forget", keeps_the_kernel)
    work.run()
    with pytest.raises(Wrong, match=r"^one cold start compiled 0 kernels"):
        work.exact()
    work.close()


def test_a_compiled_kernel_that_computes_the_wrong_thing_is_caught(tmp_path, driver):
    driver.value = 0.5
    work = prepare(tmp_path)
    work.reset()
    work.run()
    with pytest.raises(Wrong, match=r"^column 0: expected 0\.0009765625, got 0\.5$"):
        work.check()
    work.close()


def test_a_cold_start_longer_than_the_budget_is_skipped_and_leaves_nothing(tmp_path, driver):
    with pytest.raises(Skip, match=r"^one cold start takes about .*, the budget is 0 ms$"):
        prepare(tmp_path, budget_s=1e-9)
    assert os.environ["TRITON_CACHE_DIR"] == "/nowhere/at/all"


def test_where_triton_kept_its_code_nowhere_in_particular_it_does_so_again(tmp_path, driver, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR")
    cold = launch.Cold(tmp_path)
    cold.forget()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "1")
    cold.close()
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("what", launch.WHATS)
def test_launches_on_a_gpu_are_counted(tmp_path, backend, what):
    job = Job("launch", "kernels.launch", "launch", {"backend": backend, "what": what}, "cuda:0", 1.0, 1)
    done = execute(job, LAUNCH, Serial(), tmp_path, lambda _: None)
    if (backend, what) == ("torch", "jit"):
        assert done.status == "skipped"
        return
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == ("cuda_event" if what in ("back_to_back", "graph") else "wall")
