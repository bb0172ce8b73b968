"""What a node sees of its workers from outside: phase, state and stack of each, and the files that libraries leave for a hang."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from clustergauge import hosts, messages as m, processes

INSPECT_S = 2.0
"""How long all workers together have to write their stacks."""
KEPT = ("nccl", "trace")
"""How the names of files in the scratch folder begin that NCCL and torch write (see `launch`)."""
FILE_BYTES, MOST_FILES = 4 << 20, 16
"""How much of each such file, and of how many, is kept of a node."""


def phase(scratch: Path, pid: int) -> str:
    """What the worker noted last."""
    with contextlib.suppress(OSError):
        return (scratch / f"phase.{pid}").read_bytes().rstrip(b"\0").decode("ascii", "replace")
    return "start"


def stack(scratch: Path, pid: int) -> str:
    """What a worker wrote about itself: on our signal, or while crashing."""
    with contextlib.suppress(OSError):
        return _stacks(scratch, pid).read_text(errors="replace")[-16384:]
    return ""


def inspect(scratch: Path, workers: Sequence[tuple[int, int]]) -> list[m.WorkerState]:
    """State, phase and stack of all workers (pid, rank); stopped ones are woken so that they can write theirs."""
    found = {pid: processes.read(pid) for pid, _ in workers}
    before = {pid: _size(_stacks(scratch, pid)) for pid, process in found.items() if process and process.state not in "ZXx"}
    for pid in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    for pid in before:
        process = found[pid]
        if process and process.state == "T":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + INSPECT_S
    while time.monotonic() < until and any(_size(_stacks(scratch, pid)) == size for pid, size in before.items()):
        time.sleep(0.02)
    time.sleep(0.05)  # what has begun to come, comes
    return [
        m.WorkerState(pid, rank, hosts.own(), phase(scratch, pid), process.state if process else "gone", stack(scratch, pid))
        for pid, rank, process in ((pid, rank, found[pid]) for pid, rank in workers)
    ]


def ask_for_dumps(scratch: Path) -> None:
    """Write to the pipes, one a rank, by which torch's NCCL monitor is told to dump its flight recorder; where there are any."""
    for pipe in scratch.glob("trace-pipe*.pipe"):
        with contextlib.suppress(OSError):
            handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(handle, b"1\n")
            finally:
                os.close(handle)


def kept_files(scratch: Path) -> dict[str, bytes]:
    """What NCCL and torch wrote, as it stands: the end of each file.  Nothing of it is parsed, and never unpickled."""
    kept: dict[str, bytes] = {}
    with contextlib.suppress(OSError):
        for path in sorted(scratch.iterdir()):
            if len(kept) < MOST_FILES and path.name.startswith(KEPT) and path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError), path.open("rb") as file:
                    file.seek(max(0, _size(path) - FILE_BYTES))
                    if content := file.read(FILE_BYTES):
                        kept[path.name] = content
    return kept


def oom_kills() -> int:
    """How often the kernel's OOM killer has struck on this node since it was started."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0


def _stacks(scratch: Path, pid: int) -> Path:
    return scratch / f"stack.{pid}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
