"""Asking a target whether it can be used, before a run begins: by a command of the target's room, in a process that may hang."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from clustergauge import code

REACH_S = 30.0


def problem(command: Sequence[str], target: str) -> str:
    """Run the command with the target appended; the last line that it printed to say why not, empty if all is well."""
    try:
        done = subprocess.run(
            [*command, target],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": code.python_path()},
            timeout=REACH_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {REACH_S:.0f} s"
    except (OSError, ValueError) as error:
        return f"cannot be asked: {error}"
    said = done.stderr.decode(errors="replace").split("\n")
    return next((line.strip()[:500] for line in reversed(said) if line.strip()), "no reason given") if done.returncode else ""
