"""A probe that misbehaves on purpose, on one rank, in one phase: what the supervisor must survive and name."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from clustergauge import hosts
from clustergauge.model import Workload
from clustergauge.placement import format_cpus
from clustergauge.probe import Context, Needs, Skip, Work, Wrong, probe

HOW = (
    "well",
    "raise",
    "skip",
    "wrong",
    "kill",
    "stop",
    "segfault",
    "exit0",
    "memory",
    "oom",
    "flood",
    "hang",
    "orphan",
    "print",
    "unequal",
    "steer",
    "nothing",
    "number",
    "nan",
    "surrogate",
    "where",
    "deaf",
    "litter",
    "sick",
    "lose",
)

PLANTED = ("MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "OMP_PLACES", "CUDA_DEVICE_ORDER")
"""Variables that a test plants: which of them a worker inherits."""
OOM_GROUPS = Path("/sys/fs/cgroup/memory")
"""Control groups (version 1) that can limit memory; writable by root only."""


def needs(how: str, world: str, phase: str) -> Needs:
    return Needs(world=world, ranks=1 if world == "serial" else 2)  # type: ignore[arg-type]


def misbehave(how: str) -> None:
    match how:
        case "raise":
            raise RuntimeError("planned failure")
        case "skip":
            raise Skip("planned skip")
        case "wrong":
            raise Wrong("element 3: expected 1, got 2")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "segfault":
            ctypes.string_at(0)
        case "exit0":
            os._exit(0)
        case "memory":
            bytearray(1 << 50)
        case "oom":  # a real one: the kernel kills what outgrows its control group
            group = OOM_GROUPS / f"clustergauge-{os.getpid()}"
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(128 << 20))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            hoard = [b"x" * (16 << 20) for _ in range(64)]
            raise RuntimeError(f"{len(hoard)} blocks fitted")
        case "flood":
            block = b"flood " * 10_000 + b"\n"
            for _ in range(2_000):  # 120 MB
                os.write(1, block)
        case "hang":
            time.sleep(3600)
        case "orphan":  # a grandchild in a session of its own that ignores SIGTERM, and a parent that dies
            code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('planned orphan', flush=True); time.sleep(3600)"
            subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose":  # the agent of this node, whose only child here we are, is killed
            if hosts.own().endswith("-sick"):
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(3600)
        case "print":
            print("{}" * 100, flush=True)
            os.write(1, b"\x00\xff\x1b[31m not json\n")


@probe("misbehave", needs=needs, how=HOW, world=("serial", "mpi", "torch"), phase=("prepare", "run", "check"))
def misbehaving(ctx: Context, how: str, world: str, phase: str) -> Work:
    """Sleeps 1 ms a run, until the last rank misbehaves in the given phase."""
    victim = ctx.world.rank == ctx.world.size - 1
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        if victim and phase == "run" and runs == 10:
            misbehave("stop" if how == "deaf" else how)
        if how == "deaf" and runs == 10 and not victim:
            time.sleep(0.2)
            ctx.world.from_root("x" * (8 << 20))  # more than any socket holds, to a rank that is stopped
        time.sleep(0.001)

    def check() -> None:
        if victim and phase == "check":
            misbehave(how)

    if how == "where":
        ctx.set("cpus", format_cpus(os.sched_getaffinity(0)))
        ctx.set("threads", os.environ["OMP_NUM_THREADS"])
        ctx.set("inherited", " ".join(name for name in PLANTED if name in os.environ))
    if how == "litter":
        assert ctx.target
        (ctx.target / "litter").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sick" and hosts.own().endswith("-sick"):
        raise Wrong("planned on this node only")
    if how in ("nothing", "number"):
        return {"nothing": None, "number": 42}[how]  # type: ignore[return-value]
    if how == "nan":
        return Work(run=run, check=check, workload=Workload(bytes_read=float("nan")))  # type: ignore[arg-type]
    if how == "surrogate":
        raise Skip("not \udc80 text")
    if how == "steer":
        ctx.set("\x1b[2J", "a key that would clear the screen")
    if victim and phase == "prepare":
        misbehave(how)
    return Work(
        run=run,
        check=check,
        digest=(lambda: str(runs)) if how == "unequal" else None,
        sync=world != "serial",
        workload=Workload(flops=1_000_000, bound="compute"),
    )
