"""The benchmark lane under a real mpiexec, of each MPI that is here: ranks that serve one session and end as it does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from clustergauge import processes
from clustergauge.errors import UsageError
from clustergauge.launched import Launched
from tests.bench import conftest, seats

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
title = "seated"
budget_s = 0.1
timeout_s = 20
[[cases]]
probe = "seated"
"""
OPEN_MPI = next((path for path in ("/usr/bin/mpiexec.openmpi", "/usr/bin/orterun") if Path(path).exists()), "")
OPEN_LIBRARY = next((str(path) for path in Path("/usr").glob("lib*/*/libmpi.so.40")), "")


@dataclass
class Launcher:
    """An mpiexec, with what it needs where several ranks share few processors and the user is root."""

    library: str
    command: str
    environment: dict[str, str] = field(default_factory=dict)


MPICH = Launcher("MPICH", str(Path(sysconfig.get_path("scripts")) / "mpiexec"))
OPEN = Launcher(
    "Open MPI",
    OPEN_MPI,
    {
        "MPI4PY_LIBMPI": OPEN_LIBRARY,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    },
)


def each(*fast: Launcher):
    """A test with each MPI; with those that are not ``fast`` it is a slow variant."""
    missing = {MPICH.library: False, OPEN.library: not (OPEN_MPI and OPEN_LIBRARY)}
    return pytest.mark.parametrize(
        "launcher",
        [
            pytest.param(
                one,
                id=one.library,
                marks=[
                    pytest.mark.skipif(missing[one.library], reason=f"no {one.library} is installed"),
                    *([] if one in fast else [pytest.mark.slow]),
                ],
            )
            for one in (MPICH, OPEN)
        ],
    )


SLOW = pytest.mark.slow


@dataclass
class Session:
    """One launch of pytest under mpiexec."""

    folder: Path
    scratch: Path
    process: subprocess.Popen[str]
    mark: str
    earlier: set[Path]
    output: str = ""
    found: dict[str, str] = field(default_factory=dict)

    def end(self) -> int:
        """Its exit code; what it started is gone, and the folder in which its ranks met."""
        out, err = self.process.communicate(timeout=110)
        self.output = out + err
        self.found = {
            f"{how}/{world}": word
            for how, world, word in re.findall(r"how=(\w+)/world=(\w+)@cpu:0\] (PASSED|FAILED|SKIPPED|ERROR)", self.output)
        }
        until = time.monotonic() + 15
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == []
        return self.process.returncode

    def left(self) -> list[str]:
        """Processes and folders of it that are still there."""
        folders = [*(set(Path("/tmp").glob("clustergauge-ranks-*")) - self.earlier), *self.scratch.glob("clustergauge*")]
        return [*(process.describe() for process in processes.bearing(self.mark)), *map(str, filter(over, folders))]


def over(path: Path) -> bool:
    """Whether it is not a folder in which the ranks of another launch meet just now."""
    if not path.name.startswith("clustergauge-ranks-"):
        return True
    pid, start = path.name.split("-")[-2:]
    launcher = processes.read(int(pid))
    return launcher is None or launcher.state == "Z" or launcher.start != int(start)


@pytest.fixture
def start(tmp_path):
    """Launches a session; what is left of it when a test has failed is ended."""
    started: list[Session] = []

    def launch(launcher: Launcher, *words: str, ranks: int = 2, through: tuple[str, ...] = ()) -> Session:
        scratch = Path(tempfile.mkdtemp(dir="/tmp"))  # a short name: sockets lie in it
        started.append(launched(launcher, tmp_path, scratch, *words, ranks=ranks, through=through))
        return started[-1]

    yield launch
    for session in started:
        session.process.kill()
        processes.end_all(partial(processes.bearing, session.mark), 0.0)
        shutil.rmtree(session.scratch, ignore_errors=True)


def launched(launcher: Launcher, folder: Path, scratch: Path, *words: str, ranks: int, through: tuple[str, ...] = ()) -> Session:
    """``through``: a command that starts each rank's pytest."""
    (folder / "seated.toml").write_text(SUITE)
    mark = f"CLUSTERGAUGE_TEST_MARK={uuid.uuid4()}"
    name, value = mark.split("=")
    own = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    command = [
        launcher.command,
        "-n",
        str(ranks),
        *through,
        sys.executable,
        "-P",
        "-m",
        "pytest",
        str(ROOT / "tests/bench"),
        "-v",
    ]
    command += ["-p", "no:cacheprovider", "--color=no", "--bench-suite=seated.toml", "--bench-probes=tests.faults.seated", *words]
    earlier = set(Path("/tmp").glob("clustergauge-ranks-*"))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=own | launcher.environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), name: value},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Session(folder, scratch, process, mark, earlier)


def await_phase(session: Session, phase: bytes, ranks: int) -> None:
    """Until so many workers are in a phase."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if sum(phase in path.read_bytes() for path in session.scratch.glob("*/phase.*")) >= ranks:
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody came to {phase}")


def commands(session: Session) -> dict[int, str]:
    """What the session's processes are called with."""
    found: dict[int, str] = {}
    for process in processes.bearing(session.mark):
        path = Path(f"/proc/{process.pid}/cmdline")
        found[process.pid] = path.read_bytes().replace(b"\0", b" ").decode() if path.exists() else ""
    return found


@each(MPICH, OPEN)
def test_mpi_cases_run_in_the_launchers_world_and_rank_0_alone_writes(launcher, start, tmp_path):
    session = start(launcher, "--bench-case=*how=well*", "--bench-case=*how=wrong*", "--benchmark-json=out.json")
    assert session.end() == 1, session.output
    worlds = ("serial", "torch", "mpi")
    assert session.found == {f"{how}/{w}": word for how, word in (("well", "PASSED"), ("wrong", "FAILED")) for w in worlds}
    assert len(re.findall(r"^wrong: rank 1: element 3 is 4, not 5$", session.output, re.M)) == 2
    assert session.output.count("session starts") == 1
    benches = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    about = {b["params"]["case"].partition("world=")[2]: b["extra_info"] for b in benches}
    assert set(about) == {f"{world}@cpu:0" for world in worlds}
    settings = about["mpi@cpu:0"]["settings"]
    assert about["mpi@cpu:0"]["ranks"] == 2
    assert settings["library"].startswith(launcher.library)
    assert "RANK" in settings["given"]
    for world in ("serial", "torch"):
        assert about[f"{world}@cpu:0"]["settings"]["given"] == "", "of the launcher nothing, or a library would try to join"
    assert about["serial@cpu:0"]["settings"]["cpus"] == len(os.sched_getaffinity(0)), "as without a launcher that binds"


@SLOW
def test_every_rank_ends_as_the_session_does(start, tmp_path):
    note = """"$@"; code=$?; echo $code > "status.$PMI_RANK"; exit $code"""  # mpiexec itself ends with the worst of them
    session = start(MPICH, "--bench-case=*how=wrong/world=serial*", through=("sh", "-c", note, "sh"))
    assert session.end() == 1, session.output
    assert [(tmp_path / f"status.{rank}").read_text() for rank in (0, 1)] == ["1\n", "1\n"]


@each()
def test_disabled_cases_are_checked_and_all_ranks_end_well(launcher, start):
    session = start(launcher, "--benchmark-disable", "-k", "well and mpi", ranks=3)
    assert session.end() == 0, session.output
    assert session.found == {"well/mpi": "PASSED"}


@each(MPICH)
def test_a_worker_that_is_killed_is_named_and_no_second_world_is_feigned(launcher, start):
    session = start(launcher, "--bench-case=*how=kill/world=mpi*", "--bench-case=*how=late/world=mpi*")
    assert session.end() == 1, session.output
    assert session.found == {"kill/mpi": "FAILED", "late/mpi": "FAILED"}
    assert re.search(r"error: rank 1 on \S+ was killed by signal 9 \(Killed\) in phase 'warm up'", session.output)
    assert "a launcher's processes join one world in their life" in session.output


@each(MPICH)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@SLOW
def test_told_to_end_no_process_is_left(launcher, start, number):
    session = start(launcher, "-k", "late and mpi")
    await_phase(session, b"warm up", 2)
    session.process.send_signal(number)
    code = session.end()
    assert code != 0, session.output
    if (launcher, number) == (MPICH, signal.SIGINT):  # passed on as it is; others end their ranks by other signals
        assert code == pytest.ExitCode.INTERRUPTED, session.output


@each(MPICH)
@pytest.mark.parametrize("who", ["seat", *(pytest.param(who, marks=SLOW) for who in ("session", "hub", "launcher"))])
def test_whoever_is_killed_no_process_is_left_and_nobody_says_that_all_is_well(launcher, who, start):
    session = start(launcher, "-k", "late and mpi")
    await_phase(session, b"warm up", 2)
    called = commands(session)
    workers = {_rank(pid): processes.read(pid) for pid, command in called.items() if "clustergauge.worker" in command}
    seat, hub = (processes.read(workers[rank].parent) for rank in "10")
    assert "pytest" in called[seat.pid]
    assert "tests.bench.hub" in called[hub.pid]
    killed = {"seat": seat.pid, "session": hub.parent, "hub": hub.pid, "launcher": seat.parent}[who]
    os.kill(killed, signal.SIGKILL)
    assert session.end() != 0, session.output


def _rank(pid: int) -> str:
    found = re.search(rb"(?:PMI_RANK|OMPI_COMM_WORLD_RANK)=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
    return found[1].decode() if found else ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bench-ranks=3"], "ERROR: --bench-ranks 3: 2 were started: leave it out, or start so many"),
        (
            ["--bench-launcher=mpiexec"],
            "ERROR: --bench-launcher 'mpiexec': the ranks are there already: leave it out, or mpiexec",
        ),
        pytest.param(["-n", "2"], "ERROR: -n is for a pytest that is started once: leave it out, or mpiexec", marks=SLOW),
        pytest.param(["--bench-target=/no/such"], "ERROR: --bench-target /no/such: no such folder", marks=SLOW),
    ],
)
def test_a_mistake_is_one_line_and_every_rank_ends_with_it(start, words, said):
    session = start(MPICH, *words)
    assert session.end() == pytest.ExitCode.USAGE_ERROR, session.output
    assert [line for line in session.output.splitlines() if line.startswith("ERROR")] == [said]
    assert "collected" not in session.output


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Launched(0, 4, "LOCAL_RANK"), "what starts no MPI ranks (torchrun, srun without --mpi): start it once"),
        (
            Launched(0, 4, "PMI_RANK", joins=True, apart=True),
            "are on several hosts: this is a lane for one; run_suite.py",
        ),
        (Launched(0, 4, "PMI_RANK", joins=True), ""),
    ],
)
def test_what_cannot_be_one_lane_is_refused_by_every_rank(one, said, monkeypatch):
    config = SimpleNamespace(option=SimpleNamespace(numprocesses=None))
    why = conftest._no_way(one, config)
    assert said in why
    assert bool(said) == bool(why)
    if said:
        monkeypatch.setattr(conftest, "launched_as", lambda _: Launched(1, 4, one.by, one.joins, one.apart))
        assert conftest.pytest_seat(config) == pytest.ExitCode.OK, "and rank 0 has the word"


def test_a_folder_that_others_may_enter_is_not_believed(tmp_path):
    tmp_path.chmod(0o750)
    with pytest.raises(UsageError, match="is not a folder of this user alone"):
        seats.reach(tmp_path, 0.0)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is not a folder of this user alone"):
        seats.reach(tmp_path / "link", 0.0)
    with pytest.raises(UsageError, match="rank 0 was not met within 0 s"):
        seats.reach(tmp_path / "none", 0.0)


def test_all_ranks_of_a_launch_name_the_same_folder_also_where_a_script_stands_between():
    code = "import tests.bench.seats as s, clustergauge.launched as l; print(s.launcher(l.Launched(1, 2, 'PMI_RANK')).pid)"
    command = [sys.executable, "-c", code]
    between = ["sh", "-c", '"$@"; true', "sh", *command]
    environment = os.environ | {"PMI_RANK": "1", "PYTHONPATH": str(ROOT)}
    direct, through = (
        subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout for words in (command, between)
    )
    assert direct == through == f"{os.getpid()}\n"


@pytest.mark.skipif(not OPEN_MPI, reason="no Open MPI is installed")
@pytest.mark.slow
def test_a_launcher_of_another_mpi_than_the_library_is_named_and_what_to_do(start):
    foreign = Launcher("", OPEN.command, {name: value for name, value in OPEN.environment.items() if name != "MPI4PY_LIBMPI"})
    session = start(foreign, "-k", "well and mpi")
    assert session.end() == 1, session.output
    assert session.found == {"well/mpi": "FAILED"}
    assert "must be of one kind, and are the mpiexec that started pytest and the library of the MPICH" in session.output
    assert "export MPI4PY_LIBMPI=/PATH/OF/THAT/MPI/lib/libmpi.so, or leave out that mpiexec" in session.output
