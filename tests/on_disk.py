"""What tests of storage probes share: a context, mounts, data changed behind a probe's back, a worker to be killed."""

import contextlib
import errno
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustergauge import processes
from clustergauge.probe import Context
from clustergauge.world import Serial

ROOT = Path(__file__).resolve().parents[1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and changing owners needs root")


def context(target, budget_s=2.0):
    return Context(world=Serial(), device="cpu", seed=1, scratch=target, target=target, budget_s=budget_s)


@contextlib.contextmanager
def mounted(folder, *command):
    """A mount of the test's own; skipped where even root may not."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *command, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def refuse_direct(monkeypatch):
    """As if no file system had direct I/O."""
    real = os.open

    def opened(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def files(target):
    """The data files of the run folders."""
    return sorted(target.glob(".clustergauge-*/data-*"))


def slow(step_s):
    """A stopwatch on which every look is so many seconds after the last."""
    return lambda: functools.partial(next, itertools.count(step_s, step_s))


def data_file(target):
    (found,) = target.glob(".clustergauge-*/data-0")
    return found


def fraction(ctx, way):
    return ctx.device_bytes["read" if way == "read" else "written"] / ctx.device_bytes[f"asked_{way}"]


def flip(path, offset):
    """One bit, behind the probe's back."""
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 4]), offset)
        os.fsync(file.fileno())
    return byte


def has_device(ctx):
    """Whether the file lies on something whose traffic the kernel counts."""
    return ctx.settings["fs_type"] not in ("tmpfs", "ramfs") and ctx.settings["device_counters"]


WORKER = """
import json, signal, sys
from pathlib import Path
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.worker import load_probe
from clustergauge.world import Serial
from storage_io import workspace

workspace.require_space = lambda *_, **__: None
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
target, module, name, params = sys.argv[1:]
job = Job("x", module, name, json.loads(params), "cpu", budget_s=60, seed=1, target=target)
print(execute(job, load_probe(module, name), Serial(), Path(), lambda phase: print(phase, flush=True)))
"""


@contextlib.contextmanager
def measuring(target, module, name, **params):
    """Another process in the middle of its samples."""
    command = [sys.executable, "-c", WORKER, str(target), module, name, json.dumps(params)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if line == "measure\n":
                    break
            else:
                pytest.fail("".join(said))
            yield process
        finally:
            process.kill()


def end(process, number=signal.SIGTERM):
    """End a measuring process; returns its exit code."""
    process.send_signal(number)
    process.stdout.read()
    return process.wait(30)


def alive(pids, wait_s=20.0):
    """Those of the processes that are still there after at most ``wait_s`` seconds; zombies are not."""
    until = time.monotonic() + wait_s
    while True:
        left = [pid for pid in pids if (process := processes.read(pid)) and process.state != "Z"]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.01)
