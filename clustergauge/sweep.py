"""Removing what killed workers left in a storage target: by a command of the target's room, which the library does not know."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from clustergauge import code
from clustergauge.output import quote

SWEEP_S = 10.0
"""How long it may take: the target may be what hangs."""


def sweep(command: Sequence[str], target: str) -> str:
    """Run the command with the target appended, in a process of its own; why the target was not swept, empty if it was."""
    try:
        process = subprocess.Popen(
            [*command, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": code.python_path()},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"{target} was not swept: {error}"
    try:
        said = process.communicate(timeout=SWEEP_S)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: it may hang in the kernel
        return f"{target} was not swept within {SWEEP_S:.0f} s: files may be left in it"
    return f"{target} was not swept{quote(said)}" if process.returncode else ""
