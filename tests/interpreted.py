"""Cases in the Triton interpreter, which needs a process of its own: TRITON_INTERPRET=1 set before triton is imported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from clustergauge.code import ROOT
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.worker import load_probe
from clustergauge.world import Serial

LIMIT_S = 600.0
"""For all cases of a module together, the first test among them: a busy machine takes several times the minute it should."""
VERIFIED = ["verified", "checked in the Triton interpreter, not timed", "not timed"]


def found_by(module: str) -> dict[str, object]:
    """What a test module prints (one line of JSON) when it is run as a program under the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def case(name: str, **params: object) -> list[str]:
    """What came of a case on Triton: status, reason, and whether it was timed."""
    job = Job(name, f"kernels.{name}", name, {"backend": "triton", **params}, "cpu", 0.1, 1, interpret=True)
    with tempfile.TemporaryDirectory() as scratch:
        done = execute(job, load_probe(f"kernels.{name}", name), Serial(), Path(scratch), lambda _: None)
    return [done.status, done.reason, "timed" if done.measurement else "not timed"]


def plant(room: str, old: str, new: str, rooms: tuple[str, ...] = ()) -> None:
    """Put copies in the place of modules of kernels.triton (that one alone, or ``rooms`` in their order), ``room`` mutated."""
    import kernels.triton

    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    for name in rooms or (room,):
        source = (ROOT / "kernels" / "triton" / f"{name}.py").read_text(encoding="utf-8")
        if name == room:
            assert old in source, f"nothing to mutate: {old}"
            source = source.replace(old, new)
        path = folder / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"kernels.triton.{name}", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        setattr(kernels.triton, name, module)


def caught(outcome: list[str]) -> bool:
    """Whether a planted error ended the case: a check that failed, or an address outside the tensors of the launch."""
    status, reason, _ = outcome
    return status == "wrong" or (status == "error" and "of a tensor of" in reason)
