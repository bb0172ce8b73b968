"""Options of the benchmark lane, and its cases: one test each."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from pytest_benchmark.logger import PytestBenchmarkWarning

from clustergauge import flags, machine, plan, processes, spread, targets
from clustergauge.errors import UsageError
from clustergauge.launched import Launched, launched_as
from tests.bench import lane as lanes, seats
from tests.bench.hub import Ranks
from tests.bench.lane import Lane, Tape

_RANKS = pytest.StashKey[Ranks]()
_LANE = pytest.StashKey[Lane]()
_MACHINE = pytest.StashKey[machine.Machine]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What to measure; everything else is pytest-benchmark's."""
    group = parser.getgroup("bench", "the cases of a suite under pytest-benchmark")
    group.addoption("--bench-suite", default="quick", metavar="NAME|FILE", help="suite name or TOML file (default: quick)")
    group.addoption("--bench-case", action="append", default=[], metavar="GLOB", help="only cases whose id matches")
    group.addoption("--bench-device", choices=("auto", "cpu", "cuda"), default="auto")
    group.addoption("--bench-duration", metavar="TIME", help="measure each case for so long, not as the suite says")
    group.addoption("--bench-ranks", type=flags.count, metavar="N", help="ranks of collective cases")
    group.addoption("--bench-launcher", metavar="CMD", help="command that starts MPI ranks")
    group.addoption("--bench-target", metavar="DIR", help="folder for storage cases (without it they are skipped)")
    group.addoption("--bench-probes", action="append", default=[], metavar="MODULE", help="also load the probes of this module")


@pytest.hookimpl(tryfirst=True, specname="pytest_cmdline_main")
def pytest_seat(config: pytest.Config) -> int | None:
    """Of processes that mpiexec started together the first alone is a session; the others serve it, and end as it does."""
    one = launched_as(os.environ)
    if one.size < 2 or not one.rank:
        return None
    if _no_way(one, config):
        return pytest.ExitCode.OK  # rank 0 says why not: it would be ended before that if we ended badly
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is rank 0's to hear
    with _told():
        return seats.sit(seats.place(seats.launcher(one)), one.rank)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int | None, int | None]:
    """Rank 0: the others come together before anything is planned, and hear at the end how it ended."""
    one = launched_as(os.environ)
    if one.size < 2 or one.rank:
        return (yield)
    if why := _no_way(one, config):
        raise pytest.UsageError(why)
    with _told():
        ranks = config.stash[_RANKS] = Ranks(one)
    status: int | None = pytest.ExitCode.INTERNAL_ERROR
    try:
        status = yield
    except pytest.UsageError:
        status = pytest.ExitCode.USAGE_ERROR
        raise
    finally:
        ranks.over(int(status or 0))
    return status


def _no_way(one: Launched, config: pytest.Config) -> str:
    """Why processes that were started together can't be one lane, in words; empty if they can."""
    if not one.joins:
        return (
            f"pytest was started {one.size} times at once, by what starts no MPI ranks (torchrun, srun without --mpi): start it "
            f"once, by itself; cases of several ranks start their own (--bench-ranks {one.size}, --bench-launcher CMD)"
        )
    if one.apart:
        return f"the {one.size} ranks are on several hosts: this is a lane for one; run_suite.py --hosts a,b measures several"
    if getattr(config.option, "numprocesses", None):
        return "-n is for a pytest that is started once: leave it out, or mpiexec"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    """Our own tests take warnings for errors; what pytest-benchmark remarks (nothing to save, say) is for a person to read."""
    warnings.filterwarnings("default", category=PytestBenchmarkWarning)  # for what is not within one of pytest's own contexts
    config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Plan before anything is collected: a mistake in our options is told in one line."""
    _lane(session.config)


@contextmanager
def _told() -> Generator[None]:
    """The user's mistakes as pytest tells them, by the names that flags have here."""
    try:
        yield
    except UsageError as error:
        text = str(error)
        raise pytest.UsageError(f"--bench-{text[2:]}" if text.startswith("--") else text) from None


def _machine(config: pytest.Config) -> machine.Machine:
    if _MACHINE not in config.stash:
        with _told():
            config.stash[_MACHINE] = machine.describe_apart()
    return config.stash[_MACHINE]


def _lane(config: pytest.Config) -> Lane:
    """Planned once, started with the first case."""
    if _LANE not in config.stash:
        option: Any = config.option
        python_path = [str(config.invocation_params.dir)] if option.bench_probes else []
        sys.path.extend(python_path)
        ranks = config.stash.get(_RANKS, None)
        _check_given(option)
        with _told():
            _check_ranks(option, ranks)
            spread.check_launcher(option.bench_launcher or "", 0)
            wish = plan.Wish(
                globs=option.bench_case,
                device=option.bench_device,
                targets=targets.parse([option.bench_target]) if option.bench_target is not None else (),
                ranks=ranks.count if ranks else option.bench_ranks,
                duration_s=flags.duration("--duration", option.bench_duration),
            )
            suite, probes = plan.load_suite(lanes.suite_path(option.bench_suite)), lanes.probes(option.bench_probes)
            planned = plan.plan(suite, probes, _machine(config), wish)
        launcher = ranks.launcher if ranks else option.bench_launcher or ""
        config.stash[_LANE] = Lane(planned, _machine(config), launcher, python_path)
    return config.stash[_LANE]


def _check_given(option: Any) -> None:
    """Raise ``pytest.UsageError`` for an option of ours that is given and empty."""
    for name, value in vars(option).items():
        if name.startswith("bench_") and (value == "" or (isinstance(value, list) and "" in value)):
            words = "nothing is given (a variable that is not set?); to do without, leave it out"
            raise pytest.UsageError(f"--{name.replace('_', '-')}: {words}")


def _check_ranks(option: Any, ranks: Ranks | None) -> None:
    """Raises `UsageError` where other ranks are asked for than those that were started."""
    if ranks and option.bench_ranks not in (None, ranks.count):
        raise UsageError(f"--ranks {option.bench_ranks}: {ranks.count} were started: leave it out, or start so many")
    if ranks and option.bench_launcher:
        raise UsageError(f"--launcher {option.bench_launcher!r}: the ranks are there already: leave it out, or mpiexec")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, in a group by probe, timed by a tape of its own."""
    if "case" in metafunc.fixturenames:
        lane = _lane(metafunc.config)
        metafunc.parametrize(
            "case",
            [
                pytest.param(
                    name,
                    id=name,
                    marks=[
                        pytest.mark.benchmark(group=p.probe, timer=Tape()),
                        pytest.mark.timeout(2 * (p.timeout_s + p.budget_s) + 180),  # ours end a hang long before
                        *([pytest.mark.skip(reason=p.skip)] if p.skip else []),
                    ],
                )
                for name, p in lane.planned.items()
            ],
        )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Our description beside the plugin's, so that a comparison warns when parts or versions differ."""
    machine_info["clustergauge"] = lanes.machine_info(_machine(config))  # asked before collection for --benchmark-compare


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What the supervisor has to say at the end: processes that it could not end, say."""
    ranks = config.stash.get(_RANKS, None)
    if notes := config.stash[_LANE].notes if _LANE in config.stash else []:
        terminalreporter.section("clustergauge")
        for note in notes:
            terminalreporter.write_line(ranks.in_words(note) if ranks else note)


@pytest.fixture(scope="session")
def lane(request: pytest.FixtureRequest) -> Generator[Lane]:
    """The supervisor of the session; all its processes end with it, also where the session is told to end."""
    lane = _lane(request.config)
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup means it
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield lane
    finally:
        with processes.undisturbed():
            lane.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def tape(request: pytest.FixtureRequest) -> Tape:
    """The timer that this test's marker gave to pytest-benchmark."""
    marker = request.node.get_closest_marker("benchmark")
    assert marker
    return marker.kwargs["timer"]
